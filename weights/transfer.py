"""From a pretrained model to one for fine-tuning: trunk and ATAC head moved, RNA head fresh, all of it said.

The original restores a pretraining checkpoint into its fine-tuning model without looking what matched (spec, section
2.3). Here every tensor of both is accounted for: moved, fresh or dropped, each with its reason. What the original
leaves out without a word is an error, unless it is asked for by name (`ALLOWED`).
"""

import dataclasses
import hashlib
from collections.abc import Collection

import numpy as np
import torch

from torch_impl import EpiBERT, EpiBERTRampage
from weights.constants import Choice, Constants, ConstantsFinder
from weights.errors import CheckpointError, MappingError, listing
from weights.inits import LAYER_NORMS
from weights.pretrained import (
    FOLDER,
    LIGHTNING,
    Pretrained,
    Source,
    dtype_of,
    is_fine_tuned,
    read_pretrained,
    sha256,
)
from weights.table import CONSTANTS, RAMPAGE, rows
from weights.transfer_record import ALLOWED, ATAC_HEAD, LAYERS, NORMS, SEED, Left, Moved, Transfer

__all__ = ["ALLOWED", "FUNCTION", "Transfer", "is_fine_tuned", "transfer"]

_FIXED = (
    "filter_list_seq",
    "filter_list_atac",
    "num_heads",
    "num_motifs",
    "motif_units_fc",
    "norm",
    "num_random_features",
)
"""Sizes that both models must have alike."""

_FORMULAS = (
    "kernel_transformation",
    "kernel_stabilizer",
    "use_rot_emb",
    "rotary_bfloat16",
    "batch_norm_epsilon",
    "layer_norm_epsilon",
    "gelu_cubic_coefficient",
    "gelu_erf_scale",
)
FUNCTION = (*_FORMULAS, "seed")
"""Fields that decide what is computed with the same tensors."""


def transfer(
    source: Source,
    model: EpiBERTRampage,
    *,
    allow: Collection[str] = (),
    seed: float | None = None,
    constants: Choice = "auto",
) -> Transfer:
    """Fill a fine-tuning model from a pretrained one; nothing changes unless every tensor is accounted for.

    Args:
        source: a pretraining checkpoint: anything that `transplant` takes, a folder that `transplant` wrote, a
            Lightning checkpoint, or the `inits` dictionary of the original's constructor.
        model: gets trunk, ATAC head, BatchNorm statistics and constants. Its RNA head stays as it is, and so do its
            mode, device and dtypes, in which the numbers must be exact.
        allow: what of `ALLOWED` may happen.
        seed: seed of the pretrained model's projection matrix, which a checkpoint of the original does not tell; it is
            taken to be the model's otherwise, and the record says so. A folder of ours tells.
        constants: as for `transplant`. `"auto"` takes those of a folder of ours where they fit.

    Returns:
        the record.

    Raises:
        CheckpointError: the source cannot be read or is damaged; also MappingError, listing every size in which the two
            differ, every missing or unexpected key, and everything that happens only when asked for by name.
    """
    if not isinstance(model, EpiBERTRampage):
        raise MappingError(f"to be filled is an EpiBERTRampage, not {type(model).__name__}")
    if unknown := sorted(set(allow) - set(ALLOWED)):
        raise MappingError(f"nothing can be allowed by the names {unknown}; there are {', '.join(ALLOWED)}")
    pretrained = read_pretrained(source, model, seed)
    asked = _insist(pretrained, model, allow)
    moved, fresh, dropped = _plan(pretrained, model, norms=NORMS not in asked)
    with ConstantsFinder(_choice(constants, pretrained, model), model) as finder:
        found = finder.result()
    for name, array in (("projection matrix", found.projection_matrix), ("rotary table", found.rotary_table)):
        if array is not None and not np.isfinite(array).all():
            raise CheckpointError(f"the {name} has NaN or infinity")
    _fill(model, pretrained.model, [tensor.name for tensor in moved], found)
    return Transfer(
        kind=pretrained.kind,
        files=pretrained.files,
        moved=moved,
        fresh=fresh,
        dropped=(*dropped, *pretrained.unused),
        asked=asked,
        pretraining=dataclasses.asdict(pretrained.model.config),
        assumed=pretrained.assumed,
        config=dataclasses.asdict(model.config),
        constants={
            "origin": found.origin,
            "note": found.note,
            **{
                f"{name}_sha256": hashlib.sha256(array.tobytes()).hexdigest()
                for name, array in (
                    ("projection_matrix", found.projection_matrix),
                    ("rotary_table", found.rotary_table),
                )
                if array is not None
            },
        },
    )


def _insist(pretrained: Pretrained, model: EpiBERTRampage, allow: Collection[str]) -> tuple[str, ...]:
    """What was asked for by name and happens; raises with everything that was not, and every other difference."""
    before, after = pretrained.model.config, model.config
    wrong = [
        f"{name}: pretrained with {getattr(before, name)}, to be filled is {getattr(after, name)}"
        for name in (*_FIXED, *_FORMULAS)
        if getattr(before, name) != getattr(after, name)
    ]
    widths = [config.hidden_size // config.final_point_scale for config in (before, after)]
    if after.predict_atac and widths[0] != widths[1]:
        wrong.append(f"final_point_scale: pretrained with a head of {widths[0]}, to be filled is one of {widths[1]}")
    target = dtype_of(model)
    wrong += [
        f"{name}: {value.dtype} would be rounded to {target}".replace("torch.", "")
        for name, value in pretrained.model.state_dict().items()
        if value.is_floating_point() and name not in CONSTANTS and torch.promote_types(value.dtype, target) != target
    ]
    happens = {
        LAYERS: before.num_transformer_layers != after.num_transformer_layers,
        SEED: pretrained.seed is not None and int(pretrained.seed) != int(after.seed),
        ATAC_HEAD: not after.predict_atac and any(name.startswith("final_") for name in pretrained.origin),
        # The norms are there to be moved; only who wants the original's omission asks for it.
        NORMS: pretrained.norms_read and NORMS in allow,
    }
    details = {
        LAYERS: f"{before.num_transformer_layers} against {after.num_transformer_layers}",
        SEED: f"{before.seed} against {after.seed}",
    }
    wrong += [
        f"{ALLOWED[name]}{f' ({details[name]})' if name in details else ''}; ask for it by the name {name!r}"
        for name, does in happens.items()
        if does and name not in allow
    ]
    if wrong:
        raise MappingError(listing("the pretrained model and the one to be filled do not match", wrong))
    return tuple(name for name, does in happens.items() if does)


def _plan(
    pretrained: Pretrained, model: EpiBERTRampage, *, norms: bool
) -> tuple[tuple[Moved, ...], tuple[Left, ...], tuple[Left, ...]]:
    """Every tensor of both models: moved, fresh, dropped."""
    listed = [row.name for row in rows(model.config, RAMPAGE.table)]
    state = model.state_dict()
    ignored = set()
    if not norms:
        count = pretrained.model.config.num_transformer_layers
        ignored = {f"performer.layers.{i}.norm.{part}" for i in range(count) for part in ("weight", "bias")}
    moved, fresh = [], []
    for name in listed:
        if name in pretrained.origin and name not in ignored:
            key, digest = pretrained.origin[name]
            moved.append(Moved(key=key, name=name, sha256=digest))
            continue
        reason = "the pretrained model has no such layer"
        if "_rna." in name:
            reason = "the RNA head is new in fine-tuning"
        elif name in ignored:
            reason = f"as the original, which reads {' and '.join(LAYER_NORMS)} and does not use them"
        fresh.append(Left(name=name, reason=reason, sha256=sha256(state[name])))
    dropped = [
        Left(
            name=key,
            reason=ALLOWED[NORMS]
            if name in ignored
            else "the model to be filled has no such layer"
            if name.startswith("performer.")
            else "the model to be filled has no ATAC head",
        )
        for name, (key, _) in pretrained.origin.items()
        if name not in listed or name in ignored
    ]
    unaccounted = set(state) - {tensor.name for tensor in (*moved, *fresh)} - set(CONSTANTS)
    if unaccounted:
        raise MappingError(listing("the mapping table does not fit the model", sorted(unaccounted)))
    return tuple(moved), tuple(fresh), tuple(dropped)


def _choice(constants: Choice, pretrained: Pretrained, model: EpiBERTRampage) -> Choice:
    """Constants of a folder of ours are those that it was trained with: better than making them anew."""
    if constants != "auto" or pretrained.seed is None or int(pretrained.seed) != int(model.config.seed):
        return constants
    if pretrained.kind not in (FOLDER, LIGHTNING):
        return constants
    ours, theirs = pretrained.model.performer, model.performer
    tables = [None if part.rotary_table is None else part.rotary_table.table for part in (ours, theirs)]
    shapes = [None if table is None else table.shape for table in tables]
    if shapes[0] != shapes[1] or ours.projection_matrix.shape != theirs.projection_matrix.shape:
        return constants
    table = None if tables[0] is None else tables[0].cpu().numpy()
    return ours.projection_matrix.cpu().numpy(), table, pretrained.model.constants_origin


@torch.no_grad()
def _fill(model: EpiBERTRampage, pretrained: EpiBERT, names: Collection[str], constants: Constants) -> None:
    """Change the model. Everything has been checked; what could still raise comes before the first change."""
    source, target = pretrained.state_dict(), model.state_dict()
    wrong = [
        f"{name}: {tuple(source[name].shape)} into {tuple(target[name].shape)}"
        for name in names
        if source[name].shape != target[name].shape
    ]
    if wrong:
        raise MappingError(listing("wrong shapes", wrong))
    table = None if constants.rotary_table is None else torch.from_numpy(np.array(constants.rotary_table))
    projection = torch.from_numpy(np.array(constants.projection_matrix))
    try:
        model.set_constants(projection, table, origin=constants.origin)
    except ValueError as error:
        raise MappingError(f"the constants do not fit the model: {error}") from None
    for name in names:
        target[name].copy_(source[name])

"""From a pretrained model to one for fine-tuning: trunk and ATAC head moved, RNA head fresh, all of it said.

The original restores a pretraining checkpoint into its fine-tuning model without looking what matched (spec, section
2.3). Here every tensor of both is accounted for: moved, fresh or dropped, each with its reason. What the original
leaves out without a word is an error, unless it is asked for by name (`ALLOWED`).
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from torch_impl import EpiBERT, EpiBERTConfig, EpiBERTRampage
from torch_impl.model import Trunk
from weights.checkpoint import ArrayCheckpoint, Checkpoint, open_checkpoint
from weights.configuration import infer_configuration
from weights.constants import Choice, Constants, ConstantsFinder
from weights.errors import CheckpointError, ConfigurationError, MappingError, listing
from weights.inits import LAYER_NORMS, is_inits, read_inits
from weights.keras_weights import KerasWeights
from weights.lightning_checkpoint import is_lightning_checkpoint, load_lightning
from weights.mapping import canonical_shapes
from weights.model_directory import is_model_directory, load_transplanted
from weights.output import atomic_directory
from weights.table import CONSTANTS, RAMPAGE, rows
from weights.transplant import CONFIG_FILE, MODEL_FILE, RECORD_FILE, SourceFile, software, transplant

LAYERS, SEED, ATAC_HEAD, NORMS = "layers", "seed", "atac_head", "layer_norms"
ALLOWED: Mapping[str, str] = {
    LAYERS: "another number of transformer layers: those that both have are moved, the first ones",
    SEED: "another seed: the layers then compute with another projection matrix than they were trained with",
    ATAC_HEAD: "a model without ATAC head: that of the checkpoint is dropped",
    NORMS: "the norms in front of each attention of an `inits` dictionary, which the original reads and never uses",
}
"""What the original does without a word, by the name to ask for it by."""

FORMAT = "epibert transfer 1"
FOLDER, LIGHTNING = "transplanted model", "Lightning checkpoint"
"""Sources in our own forms, which tell configuration and constants."""
BEGIN_ANEW = "training state of the pretraining: both optimizers begin anew"
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

Source = str | os.PathLike[str] | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Moved:
    """One tensor that was moved.

    Attributes:
        key: where it came from: key of the checkpoint, or name in our own folder.
        name: in the state of both models.
        sha256: of its bytes as they were stored (little-endian, C order).
    """

    key: str
    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Left:
    """One tensor that stayed as it was, or that was not used, and why.

    Attributes:
        name: in the model that was filled, or key in the source.
        reason: why.
        sha256: of its bytes in the model; empty for what was not used.
    """

    name: str
    reason: str
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """The evidence of one transfer.

    Attributes:
        kind: what was read.
        files: the files that were read.
        moved: every tensor that was moved.
        fresh: every tensor of the model that was not filled, with what it holds instead.
        dropped: every tensor of the source that was not used.
        asked: what was asked for by name and happened.
        pretraining: configuration of the pretrained model.
        assumed: arguments of it that nothing tells, taken from the model that was filled.
        config: configuration of the model that was filled.
        constants: origin and sha256 of matrix and table.
    """

    kind: str
    files: tuple[SourceFile, ...]
    moved: tuple[Moved, ...]
    fresh: tuple[Left, ...]
    dropped: tuple[Left, ...]
    asked: tuple[str, ...]
    pretraining: Mapping[str, Any]
    assumed: tuple[str, ...]
    config: Mapping[str, Any]
    constants: Mapping[str, str]

    def to_json(self) -> str:
        """Everything but the tensors' numbers, and the sha256 of every source file.

        Raises:
            CheckpointError: a source file has changed since.
        """
        return json.dumps(self._as_dict(), indent=1)

    def _as_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "kind": self.kind,
            "files": [{"name": file.path.name, "bytes": file.bytes, "sha256": file.sha256()} for file in self.files],
            "pretraining": {"config": dict(self.pretraining), "assumed": list(self.assumed)},
            "config": dict(self.config),
            "constants": dict(self.constants),
            "asked for": {name: ALLOWED[name] for name in self.asked},
            "moved": [dataclasses.asdict(tensor) for tensor in self.moved],
            "fresh": [dataclasses.asdict(tensor) for tensor in self.fresh],
            "dropped": [{"key": tensor.name, "reason": tensor.reason} for tensor in self.dropped],
            "software": software(),
        }

    def save(self, directory: str | os.PathLike[str], model: EpiBERTRampage, *, overwrite: bool = False) -> None:
        """Write model, configuration and this record, as `Transplant.save` does; all of them or nothing.

        Args:
            directory: gets `model.safetensors`, `config.json` and `transplant.json`. There is no training state: both
                optimizers begin anew.
            model: the model that was filled.
            overwrite: replace an earlier result there.

        Raises:
            OutputError: not writable, or there is an earlier result.
            CheckpointError: a source file has changed since.
        """
        with atomic_directory(directory, last=RECORD_FILE, overwrite=overwrite) as folder:
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
            save_file(state, folder / MODEL_FILE)
            config = json.dumps(dataclasses.asdict(model.config), indent=1)
            (folder / CONFIG_FILE).write_text(config + "\n", encoding="utf-8")
            record = {**self._as_dict(), "training_state": []}
            (folder / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class _Pretrained:
    """A source, read and checked.

    Attributes:
        model: the pretrained model.
        kind: what was read.
        files: the files that were read.
        origin: {name in the model: (key, sha256)}.
        unused: what is in the source and in no model.
        seed: of its projection matrix; None where nothing tells.
        assumed: arguments that nothing tells.
        norms_read: whether its norms in front of the attention come from `inits`, which the original does not use.
    """

    model: EpiBERT
    kind: str
    files: tuple[SourceFile, ...]
    origin: Mapping[str, tuple[str, str]]
    unused: tuple[Left, ...]
    seed: float | None
    assumed: tuple[str, ...]
    norms_read: bool = False


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
    pretrained = _read(source, model, seed)
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


def is_fine_tuned(path: str | os.PathLike[str]) -> bool:
    """Whether a path holds a model for fine-tuning already; a Keras .h5 file, which does not say, counts as pretrained.

    Args:
        path: anything that `transplant` takes, a folder that it wrote, or a Lightning checkpoint.

    Raises:
        CheckpointError: it cannot be read.
    """
    if is_model_directory(path):
        return isinstance(load_transplanted(path), EpiBERTRampage)
    if is_lightning_checkpoint(path):
        return isinstance(load_lightning(path)[0], EpiBERTRampage)
    checkpoint = open_checkpoint(path)
    return not isinstance(checkpoint, KerasWeights) and infer_configuration(canonical_shapes(checkpoint)).fine_tuning


# --- reading ---------------------------------------------------------------------------------------------------------


def _read(source: Source, model: EpiBERTRampage, seed: float | None) -> _Pretrained:
    if isinstance(source, str | os.PathLike):
        if is_model_directory(source):
            files = [Path(source) / name for name in (MODEL_FILE, CONFIG_FILE)]
            return _read_ours(load_transplanted(source), FOLDER, files, (), seed)
        if is_lightning_checkpoint(source):
            pretrained, training_state = load_lightning(source)
            return _read_ours(pretrained, LIGHTNING, [Path(source)], training_state, seed)
    norms_read = is_inits(source)
    if isinstance(source, Checkpoint):
        checkpoint = source
    elif isinstance(source, Mapping):
        checkpoint = ArrayCheckpoint(read_inits(source) if norms_read else source)
    else:
        checkpoint = open_checkpoint(source)
    config, assumed = _pretraining_config(checkpoint, model.config, seed)
    pretrained = EpiBERT(config).to(_dtype(model))
    # Verifies, reads and maps all of the checkpoint, and refuses one of the fine-tuning model.
    record = transplant(checkpoint, pretrained, constants="keep")
    in_model = [tensor for tensor in record.tensors if tensor.role in ("parameter", "statistic")]
    unused = [
        Left(name=tensor.key, reason=BEGIN_ANEW)
        for tensor in record.tensors
        if tensor.role not in ("parameter", "statistic")
    ]
    return _Pretrained(
        model=pretrained,
        kind="inits" if norms_read else record.kind,
        files=record.files,
        origin={tensor.name: (tensor.key, tensor.sha256) for tensor in in_model},
        unused=(*unused, *(Left(name=key, reason=reason) for key, reason in record.ignored)),
        seed=seed,
        assumed=assumed,
        norms_read=norms_read,
    )


def _read_ours(
    pretrained: Trunk, kind: str, files: list[Path], unused: Collection[str], seed: float | None
) -> _Pretrained:
    """A model in one of our forms, of which everything is known."""
    if not isinstance(pretrained, EpiBERT):
        raise MappingError(f"{files[0]} is of a fine-tuning model already; what is transferred is a pretrained EpiBERT")
    told = pretrained.config.seed
    if seed is not None and int(seed) != int(told):
        raise MappingError(f"the seed {seed} was given, and {files[-1]} says {told}")
    state = {name: value for name, value in pretrained.state_dict().items() if name not in CONSTANTS}
    wrong = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if wrong:
        raise MappingError(listing("tensors with NaN or infinity", wrong))
    return _Pretrained(
        model=pretrained,
        kind=kind,
        files=tuple(map(SourceFile.of, files)),
        origin={name: (name, _sha256(value)) for name, value in state.items()},
        unused=tuple(Left(name=name, reason=BEGIN_ANEW) for name in unused),
        seed=told,
        assumed=(),
    )


def _pretraining_config(
    checkpoint: Checkpoint, config: EpiBERTConfig, seed: float | None
) -> tuple[EpiBERTConfig, tuple[str, ...]]:
    """The pretrained model's configuration: what shapes tell, then the model's that is filled."""
    told = {} if seed is None else {"seed": seed}
    if isinstance(checkpoint, KerasWeights):
        return dataclasses.replace(config, predict_atac=True, **told), ()
    inferred = infer_configuration(canonical_shapes(checkpoint))
    if inferred.fine_tuning:
        raise MappingError("the checkpoint holds a fine-tuning model already: transplant it")
    untold = {name: getattr(config, name) for name in inferred.assumed}
    assumed = tuple(name for name in untold if name not in (*told, "name"))
    try:
        return inferred.config(**{**untold, **told}), assumed
    except ConfigurationError as error:
        raise MappingError(str(error)) from None


def _dtype(model: Trunk) -> torch.dtype:
    return next(model.parameters()).dtype


def _sha256(tensor: torch.Tensor) -> str:
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().tobytes()).hexdigest()


# --- matching --------------------------------------------------------------------------------------------------------


def _insist(pretrained: _Pretrained, model: EpiBERTRampage, allow: Collection[str]) -> tuple[str, ...]:
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
    target = _dtype(model)
    wrong += [
        f"{name}: {value.dtype} would be rounded to {target}".replace("torch.", "")
        for name, value in pretrained.model.state_dict().items()
        if value.is_floating_point() and name not in CONSTANTS and torch.promote_types(value.dtype, target) != target
    ]
    happens = {
        LAYERS: before.num_transformer_layers != after.num_transformer_layers,
        SEED: pretrained.seed is not None and int(pretrained.seed) != int(after.seed),
        ATAC_HEAD: not after.predict_atac,
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
    pretrained: _Pretrained, model: EpiBERTRampage, *, norms: bool
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
        fresh.append(Left(name=name, reason=reason, sha256=_sha256(state[name])))
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


def _choice(constants: Choice, pretrained: _Pretrained, model: EpiBERTRampage) -> Choice:
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

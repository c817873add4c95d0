"""Reads a pretrained model, in whatever form it is, for the fine-tuning model that is to begin with it."""

import dataclasses
import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torch_impl import EpiBERT, EpiBERTConfig, EpiBERTRampage
from torch_impl.model import Trunk
from weights.checkpoint import ArrayCheckpoint, Checkpoint, open_checkpoint
from weights.configuration import infer_configuration
from weights.errors import ConfigurationError, MappingError, listing
from weights.inits import has_head, is_inits, read_inits
from weights.keras_weights import KerasWeights
from weights.lightning_checkpoint import LightningCheckpoint, files_of, is_lightning_checkpoint, load_lightning
from weights.mapping import canonical_shapes
from weights.model_directory import is_model_directory, load_transplanted
from weights.table import CONSTANTS, TABLE, rows
from weights.transfer_record import Left
from weights.transplant import CONFIG_FILE, MODEL_FILE, SourceFile, transplant

FOLDER, LIGHTNING = "transplanted model", LightningCheckpoint.kind
"""Sources in our own forms, which tell configuration and constants."""

BEGIN_ANEW = "training state of the pretraining: both optimizers begin anew"
Source = str | os.PathLike[str] | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Pretrained:
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


def read_pretrained(source: Source, model: EpiBERTRampage, seed: float | None = None) -> Pretrained:
    """Reads a pretrained model for the one that is to be filled from it.

    Args:
        source: as for `transfer`.
        model: says what nothing else tells of the pretrained one.
        seed: as for `transfer`.

    Raises:
        CheckpointError: the source cannot be read or is damaged; also MappingError, when it is of a fine-tuning model,
            or its keys are not those of a pretrained one.
    """
    if isinstance(source, str | os.PathLike):
        if is_model_directory(source):
            files = [Path(source) / name for name in (MODEL_FILE, CONFIG_FILE)]
            return _read_ours(load_transplanted(source), FOLDER, files, (), seed)
        if is_lightning_checkpoint(source):
            pretrained, training_state = load_lightning(source)
            return _read_ours(pretrained, LIGHTNING, list(files_of(source)), training_state, seed)
    norms_read = is_inits(source)
    stand_in: dict[str, np.ndarray] = {}
    if isinstance(source, Checkpoint):
        checkpoint = source
    elif isinstance(source, Mapping):
        if norms_read:
            needed = model.config.predict_atac or has_head(source)
            stand_in = {} if needed else _fresh_head(model.config)
            source = read_inits(source, atac_head=needed)
        checkpoint = ArrayCheckpoint({**source, **stand_in})
    else:
        checkpoint = open_checkpoint(source)
    config, assumed = _pretraining_config(checkpoint, model.config, seed)
    pretrained = EpiBERT(config).to(dtype_of(model))
    # Verifies, reads and maps all of the checkpoint, and refuses one of the fine-tuning model.
    record = transplant(checkpoint, pretrained, constants="keep")
    in_model = [
        tensor for tensor in record.tensors if tensor.role in ("parameter", "statistic") and tensor.key not in stand_in
    ]
    unused = [
        Left(name=tensor.key, reason=BEGIN_ANEW)
        for tensor in record.tensors
        if tensor.role not in ("parameter", "statistic")
    ]
    return Pretrained(
        model=pretrained,
        kind="inits" if norms_read else record.kind,
        files=record.files,
        origin={tensor.name: (tensor.key, tensor.sha256) for tensor in in_model},
        unused=(*unused, *(Left(name=key, reason=reason) for key, reason in record.ignored)),
        seed=seed,
        assumed=assumed,
        norms_read=norms_read,
    )


def _fresh_head(config: EpiBERTConfig) -> dict[str, np.ndarray]:
    """An ATAC head by checkpoint path, for a source that has none and a model that needs none.

    What is read is a whole pretrained model all the same, so that nothing of the trunk can be missing; this part of it
    goes nowhere.
    """
    model = EpiBERT(dataclasses.replace(config, predict_atac=True))
    state = model.state_dict()
    return {
        row.path: row.layout.to_stored(
            state[row.name].numpy(), row.layout.stored_shape(state[row.name].shape, config.num_heads)
        )
        for row in rows(config, TABLE)
        if row.path.startswith("model/final_")
    }


def _read_ours(
    pretrained: Trunk, kind: str, files: list[Path], unused: Collection[str], seed: float | None
) -> Pretrained:
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
    return Pretrained(
        model=pretrained,
        kind=kind,
        files=tuple(map(SourceFile.of, files)),
        origin={name: (name, sha256(value)) for name, value in state.items()},
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


def dtype_of(model: Trunk) -> torch.dtype:
    """The dtype of a model's parameters."""
    return next(model.parameters()).dtype


def sha256(tensor: torch.Tensor) -> str:
    """Of a tensor's bytes."""
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().tobytes()).hexdigest()

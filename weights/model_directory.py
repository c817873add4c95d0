"""Reading back what `Transplant.save` wrote: the model for PyTorch users, and its training state."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from torch_impl import EpiBERT, EpiBERTConfig, EpiBERTRampage
from torch_impl.model import Trunk
from weights.errors import CheckpointError, ConfigurationError, CorruptCheckpointError, NotACheckpointError
from weights.training_state import TrainingState, load_training_state
from weights.transplant import CONFIG_FILE, MODEL_FILE, RECORD_FILE


def is_model_directory(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder that `Transplant.save` has written."""
    return (Path(path) / MODEL_FILE).is_file()


def read_arguments(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Constructor arguments in a JSON file, as they stand there.

    Raises:
        NotACheckpointError: the file cannot be read.
        ConfigurationError: it is no JSON object.
    """
    try:
        arguments = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise NotACheckpointError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigurationError(f"{path} is no JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise ConfigurationError(f"{path} holds no JSON object")
    return arguments


def load_config(path: str | os.PathLike[str]) -> EpiBERTConfig:
    """Read a whole configuration from a JSON file with the constructor's arguments.

    Raises:
        NotACheckpointError: the file cannot be read.
        ConfigurationError: it is no JSON object, or its arguments are unknown or impossible.
    """
    try:
        return EpiBERTConfig(**read_arguments(path))
    except (TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise ConfigurationError(f"{path}: {error}") from None


def load_transplanted(directory: str | os.PathLike[str]) -> Trunk:
    """The model that `Transplant.save` wrote, in evaluation mode, in the dtypes in which it was saved.

    It is an `EpiBERTRampage` when the state has an RNA head, else an `EpiBERT`.

    Args:
        directory: with `model.safetensors` and `config.json`.

    Raises:
        CheckpointError: a file is missing or damaged, or state and configuration do not match key by key.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise NotACheckpointError(f"{directory} is no folder with {MODEL_FILE} and {CONFIG_FILE}")
    config = load_config(directory / CONFIG_FILE)
    try:
        state = load_file(directory / MODEL_FILE)
    except (OSError, SafetensorError) as error:
        raise CorruptCheckpointError(f"{directory / MODEL_FILE}: {error}") from None
    try:
        model = EpiBERTRampage(config) if "final_dense_profile_rna.weight" in state else EpiBERT(config)
        model.load_state_dict(state, strict=True, assign=True)
    except (RuntimeError, ValueError) as error:
        raise CorruptCheckpointError(f"{directory / MODEL_FILE} and {CONFIG_FILE} do not match: {error}") from None
    return model.eval()


def _record(directory: Path) -> Mapping[str, Any]:
    path = directory / RECORD_FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotACheckpointError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise CorruptCheckpointError(f"{path} is no JSON: {error}") from None


def load_saved_training_state(directory: str | os.PathLike[str]) -> TrainingState:
    """The slots and counters that `Transplant.save` wrote, read on access.

    Raises:
        CheckpointError: a file that the record names is missing or damaged.
    """
    directory = Path(directory)
    return load_training_state(directory, _record(directory).get("training_state", []))

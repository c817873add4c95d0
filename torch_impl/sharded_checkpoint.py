"""Reads the folder that Lightning's ``ModelParallelStrategy`` writes of a sharded model, running no code.

Tensors lie in PyTorch's distributed form, each process having written its part: ``.metadata`` says where each part is.
It is a pickle, and so is every value that is no tensor. PyTorch's own reader unpickles both whatever they name; here
the first may name nothing but the records that it is made of, and the second are read as ``weights_only``.
"""

import io
import math
import os
import pickle
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

import torch
from torch.distributed.checkpoint import metadata as records
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.serialization import _get_layout

from torch_impl.checkpointing import TrainingError

OTHERS_FILE, METADATA_FILE = "meta.pt", ".metadata"
"""Of such a folder: what is neither the model's state nor an optimizer's, and where each tensor lies."""

STATE = "state_dict"

_RECORDS = (
    records._MEM_FORMAT_ENCODING,
    records.BytesStorageMetadata,
    records.ChunkStorageMetadata,
    records.Metadata,
    records.MetadataIndex,
    records.StorageMeta,
    records.TensorProperties,
    records.TensorStorageMetadata,
    _StorageInfo,
    _get_layout,
    torch.Size,
)
_DTYPES = {("torch", str(value).removeprefix("torch.")): value for value in vars(torch).values()
           if isinstance(value, torch.dtype)}  # fmt: skip
_KNOWN: dict[tuple[str, str], Any] = {
    **{(record.__module__, record.__name__): record for record in _RECORDS},
    **_DTYPES,
    # Where the folder was written; newer versions of Python say it by the second name.
    ("pathlib", "PosixPath"): PurePosixPath,
    ("pathlib._local", "PosixPath"): PurePosixPath,
}


class _MetadataUnpickler(pickle.Unpickler):
    """Finds the records of PyTorch's metadata, and nothing else that a pickle may name."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of such metadata") from None


class _Reader(FileSystemReader):
    """Reads metadata by ``_MetadataUnpickler``; tensors PyTorch itself reads as ``weights_only``."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> records.Metadata:
        with (Path(self.path) / METADATA_FILE).open("rb") as file:
            found = _MetadataUnpickler(file).load()
        _check(found)
        return found


class _Planner(DefaultLoadPlanner):
    """Keeps values that are no tensors, read as ``weights_only``, in ``values``."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Any] = {}

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO | IO[bytes]) -> None:
        self.values[read_item.dest_index.fqn] = torch.load(value, map_location="cpu", weights_only=True)


def check_sharded_checkpoint(folder: str | os.PathLike[str], tensors: Collection[str] = ()) -> dict[str, Any]:
    """Insists that a folder is a sharded checkpoint which runs no code when it is read, by whatever reads it.

    Lightning's strategy reads such folders by PyTorch's own reader, so this comes first.

    Args:
        folder: As ``ModelParallelStrategy`` writes it.
        tensors: Names of tensors to read, of the model's state.

    Returns:
        What is neither the model's state nor an optimizer's, and the tensors that were asked for as ``state_dict``.

    Raises:
        TrainingError: It is not.
    """
    content, parts = _read(Path(folder), {f"{STATE}.{name}" for name in tensors})
    state = parts.get(STATE, {})
    return {**content, STATE: {name: state[name] for name in tensors if name in state}}


def read_sharded_checkpoint(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a sharded checkpoint as that of a Lightning checkpoint in one file, on the CPU.

    Args:
        folder: As ``ModelParallelStrategy`` writes it.

    Raises:
        TrainingError: It is none, or damaged, or holds more than tensors and plain values.
    """
    folder = Path(folder)
    content, parts = _read(folder, None)
    try:
        state = parts.pop(STATE)
        optimizers = [parts.pop(f"optimizer_{number}") for number in range(len(parts))]
        return {**content, STATE: state, "optimizer_states": [_numbered(each) for each in optimizers]}
    except (KeyError, TypeError, AttributeError) as error:
        raise TrainingError(f"{folder} is no sharded checkpoint of a Lightning module: {error!r}") from None


def _read(folder: Path, tensors: Collection[str] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the file beside the shards holds, and what these hold, nested: of tensors all, or those of some names."""
    missing = [name for name in (OTHERS_FILE, METADATA_FILE) if not (folder / name).is_file()]
    if missing:
        raise TrainingError(f"{folder} is a folder, but no sharded checkpoint: it has no {' and no '.join(missing)}")
    try:
        content = torch.load(folder / OTHERS_FILE, map_location="cpu", weights_only=True)
        reader, planner = _Reader(folder), _Planner()
        metadata = reader.read_metadata()
        flat: dict[str, Any] = {}
        for name, entry in metadata.state_dict_metadata.items():
            if not isinstance(entry, records.TensorStorageMetadata):
                flat[name] = None
            elif tensors is None or name in tensors:
                flat[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
        with warnings.catch_warnings():
            # That one process reads alone is no news.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(flat, storage_reader=reader, planner=planner, no_dist=True)
        flat |= planner.values
        return dict(content), _nested(flat, metadata.planner_data)
    except CheckpointException as error:
        first = next(iter(error.failures.values()))[0]
        raise TrainingError(_damaged(folder, first)) from None
    except (
        OSError, pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError, AttributeError, ValueError
    ) as error:  # fmt: skip
        raise TrainingError(_damaged(folder, error)) from None


def _damaged(folder: Path, error: BaseException) -> str:
    if isinstance(error, pickle.UnpicklingError):
        what = str(error).partition("\n")[0]
        return f"{folder} holds more than tensors and plain values, or is damaged: not read ({what})"
    return f"{folder} is damaged or no checkpoint: {type(error).__name__} {str(error).partition(chr(10))[0]}"


def _check(metadata: records.Metadata) -> None:
    """Insists that every number of every tensor is somewhere, and in this folder."""
    for name, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, records.TensorStorageMetadata):
            here = sum(math.prod(chunk.sizes) for chunk in entry.chunks)
            if here != math.prod(entry.size):
                raise ValueError(f"{name} has {math.prod(entry.size)} numbers, of which {here} are here")
    for place in metadata.storage_data.values():
        if Path(place.relative_path).name != place.relative_path:
            raise ValueError(f"{place.relative_path} is not a file of this folder")


def _nested(flat: Mapping[str, Any], paths: Mapping[str, tuple[Any, ...]]) -> dict[Any, Any]:
    """Values by the names that the paths consist of, one below the other; places in a list are numbers."""
    whole: dict[Any, Any] = {}
    for name, value in flat.items():
        *outer, last = paths[name]
        inner = whole
        for step in outer:
            inner = inner.setdefault(step, {})
        inner[last] = value
    return whole


def _numbered(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's state by numbers of parameters, which in a folder are names."""
    groups = [optimizer["param_groups"][place] for place in range(len(optimizer["param_groups"]))]
    names = [name for group in groups for name in group["params"]]
    number = {name: place for place, name in enumerate(names)}
    return {
        "state": {number[name]: slots for name, slots in optimizer.get("state", {}).items()},
        "param_groups": [{**group, "params": [number[name] for name in group["params"]]} for group in groups],
    }

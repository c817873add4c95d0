"""Opening a checkpoint of whatever kind as one read-only mapping from key to array.

Kinds: a TensorFlow object-based checkpoint, the variables of a SavedModel, a Keras 2 `.h5` weights file, and a plain
mapping of arrays. All share one interface, so that the transplant reads each in the same way: shapes first, then bytes
piece by piece.
"""

import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
from google.protobuf import text_format

from weights import messages
from weights.errors import NotACheckpointError
from weights.object_graph import GRAPH_KEY, SUFFIX, ObjectGraph
from weights.tensor_bundle import TensorBundle, Visitor, index_path

PathLike = str | os.PathLike[str]
MODEL = "model"
_BESIDE_THE_MODEL = ("optimizer", "optimizer1", "optimizer2", "save_counter", "keras_api")


class Checkpoint(Mapping[str, np.ndarray]):
    """Tensors by key; reading one never changes anything.

    Attributes:
        kind: what was opened, in words.
        files: what it was read from; empty for arrays in memory.
        has_checksums: whether the format lets `verify` find every flipped bit.
    """

    kind: str
    files: tuple[Path, ...] = ()
    has_checksums = False

    @abstractmethod
    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""

    @abstractmethod
    def dtype(self, key: str) -> np.dtype:
        """Data type of a tensor, without reading it."""

    @abstractmethod
    def read(self, key: str, *visitors: Visitor) -> np.ndarray:
        """Read and check a tensor; visitors see its bytes (little-endian, C order) piece by piece."""

    def visit(self, key: str, *visitors: Visitor) -> None:
        """Show a tensor's bytes to the visitors and check them, without keeping the tensor."""
        self.read(key, *visitors)

    def verify(self) -> None:
        """Check every tensor's bytes as far as the format allows.

        Raises:
            CorruptCheckpointError: names the damaged tensors.
        """
        for key in self:
            self.visit(key)

    def path(self, key: str) -> str:
        """The key as a path of attributes below `model/`, `optimizer/` and so on, without suffix."""
        return key.removesuffix(SUFFIX)

    def find(self, path: str, alias: str | None = None) -> str | None:
        """The key of the tensor at a canonical path; `alias` is another name for the path's last component."""
        candidates = [path, f"{path.rpartition('/')[0]}/{alias}"] if alias else [path]
        for candidate in candidates:
            for key in (candidate + SUFFIX, candidate):
                if key in self:
                    return key
        return None

    def __getitem__(self, key: str) -> np.ndarray:
        return self.read(key)


class ArrayCheckpoint(Checkpoint):
    """Arrays in memory, `{key: array}`, keys with or without TensorFlow's suffix."""

    kind = "arrays"

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = {key: np.asarray(array) for key, array in arrays.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __contains__(self, key: object) -> bool:
        return key in self._arrays

    def shape(self, key: str) -> tuple[int, ...]:
        """See `Checkpoint`."""
        return self._arrays[key].shape

    def dtype(self, key: str) -> np.dtype:
        """See `Checkpoint`."""
        return self._arrays[key].dtype

    def read(self, key: str, *visitors: Visitor) -> np.ndarray:
        """See `Checkpoint`; the array itself, not a copy."""
        array = self._arrays[key]
        if visitors and array.dtype.kind != "O":
            little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
            for visitor in visitors:
                visitor(np.ascontiguousarray(little).reshape(-1).view(np.uint8))
        return array


class TensorFlowCheckpoint(Checkpoint):
    """A tensor bundle with its object graph.

    Args:
        prefix: path without `.index`.
        canonical: name the tensors by their paths in the object graph, as a SavedModel needs, not by the stored keys.

    Raises:
        CheckpointError: see `TensorBundle`; also when the object graph is damaged.
    """

    kind = "TensorFlow checkpoint"
    has_checksums = True

    def __init__(self, prefix: PathLike, *, canonical: bool = False) -> None:
        self._bundle = TensorBundle(prefix)
        self.files = (index_path(Path(prefix)), *self._bundle.paths)
        self._keys = {key: key for key in self._bundle}
        self._root_is_model = not any(key.startswith(f"{MODEL}/") for key in self._bundle)
        if canonical:
            self.kind = "SavedModel"
            paths = {} if self._graph is None else self._graph.canonical_paths()
            self._root_is_model = not any(path.startswith(f"{MODEL}/") for path in paths.values())
            self._keys = {self._below_model(paths[key]) + SUFFIX if key in paths else key: key for key in self._bundle}
            self._root_is_model = False

    @cached_property
    def _graph(self) -> ObjectGraph | None:
        """Read only when needed: where it is damaged, `verify` can still name everything else that is."""
        return ObjectGraph(self._bundle.read(GRAPH_KEY).item()) if GRAPH_KEY in self._bundle else None

    def _below_model(self, path: str) -> str:
        """A checkpoint of the bare model has no `model/` in its paths; the table does."""
        if not self._root_is_model or path.partition("/")[0] in (*_BESIDE_THE_MODEL, GRAPH_KEY):
            return path
        return f"{MODEL}/{path}"

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def shape(self, key: str) -> tuple[int, ...]:
        """See `Checkpoint`."""
        return self._bundle.info(self._keys[key]).shape

    def dtype(self, key: str) -> np.dtype:
        """See `Checkpoint`."""
        return self._bundle.info(self._keys[key]).dtype

    def read(self, key: str, *visitors: Visitor) -> np.ndarray:
        """See `Checkpoint`."""
        return self._bundle.read(self._keys[key], *visitors)

    def visit(self, key: str, *visitors: Visitor) -> None:
        """See `Checkpoint`."""
        self._bundle.visit(self._keys[key], *visitors)

    def verify(self) -> None:
        """See `Checkpoint`; every checksum is verified."""
        self._bundle.verify()

    def path(self, key: str) -> str:
        """See `Checkpoint`."""
        return self._below_model(super().path(key))

    def find(self, path: str, alias: str | None = None) -> str | None:
        """See `Checkpoint`; asks the object graph where the plain key does not exist."""
        paths = [path, path.removeprefix(f"{MODEL}/")] if self._root_is_model else [path]
        for candidate in paths:
            if (key := super().find(candidate, alias)) is not None:
                return key
            if self._graph is not None and (key := self._graph.resolve(candidate)) in self._keys:
                return key
        return None


def _named_by_state_file(directory: Path) -> Path:
    """The newest checkpoint that the `checkpoint` file of a directory names."""
    file = directory / "checkpoint"
    try:
        state = text_format.Parse(file.read_text(encoding="utf-8"), messages.CheckpointState())
    except OSError as error:
        raise NotACheckpointError(f"cannot read {file}: {error.strerror}") from None
    except (text_format.ParseError, UnicodeDecodeError):
        raise NotACheckpointError(f"{file} is no checkpoint state file") from None
    if not state.model_checkpoint_path:
        raise NotACheckpointError(f"{file} names no checkpoint")
    named = Path(state.model_checkpoint_path)
    prefix = named if named.is_absolute() else directory / named
    # A directory that was moved still names its old place; the files lie beside the state file.
    moved = directory / named.name
    if not index_path(prefix).exists() and index_path(moved).exists():
        return moved
    return prefix


def _open_directory(directory: Path) -> Checkpoint:
    if (directory / "variables" / "variables.index").exists():
        return TensorFlowCheckpoint(directory / "variables" / "variables", canonical=True)
    if (directory / "checkpoint").exists():
        return TensorFlowCheckpoint(_named_by_state_file(directory))
    found = sorted(directory.glob("*.index"))
    if len(found) == 1:
        return TensorFlowCheckpoint(found[0].with_suffix(""))
    if found:
        names = ", ".join(path.stem for path in found)
        raise NotACheckpointError(f"{directory} has no `checkpoint` file and several checkpoints; name one of: {names}")
    raise NotACheckpointError(f"{directory} holds neither a TensorFlow checkpoint nor a SavedModel")


def open_checkpoint(path: PathLike) -> Checkpoint:
    """Open a checkpoint; its tensors' bytes are verified when they are read.

    Args:
        path: see `read_checkpoint`.

    Raises:
        CheckpointError: see `read_checkpoint`, except that damaged tensors show only on access.
    """
    from weights.keras_weights import KerasWeights  # it builds on the classes above

    if not os.fspath(path):
        raise NotACheckpointError("an empty path names no checkpoint")
    path = Path(path)
    if path.is_dir():
        return _open_directory(path)
    if index_path(path).exists():
        return TensorFlowCheckpoint(path)
    if path.suffix == ".index":
        return TensorFlowCheckpoint(path.with_suffix(""))
    if path.suffix in (".h5", ".hdf5", ".keras"):
        return KerasWeights(path)
    if path.exists():
        raise NotACheckpointError(f"{path} is no checkpoint: give a prefix, a directory, an .index or an .h5 file")
    raise NotACheckpointError(f"no checkpoint at {path}: neither {index_path(path).name} nor a file or directory")


def read_checkpoint(path: PathLike) -> Checkpoint:
    """Open a checkpoint of the original and verify all of it, in bounded memory. TensorFlow is not needed.

    Args:
        path: a checkpoint prefix (`.../ckpt-1`) or its `.index` file; a directory with a `checkpoint` file, of whose
            checkpoints the latest is taken; a SavedModel directory; a Keras 2 `.h5` weights file.

    Returns:
        mapping `{key: array}`. Keys are exactly those stored, such as
        `model/stem_conv/kernel/.ATTRIBUTES/VARIABLE_VALUE` (spec, section 6); a SavedModel's are brought to that form;
        those of an `.h5` file are `layer/weight`. Each access reads its tensor from disk and verifies it again.

    Raises:
        NotACheckpointError: nothing there, another kind of file, or not readable.
        MissingShardError: a data file is missing.
        CorruptCheckpointError: truncated or damaged; names the tensors.
        UnsupportedCheckpointError: compressed or partitioned.
    """
    checkpoint = open_checkpoint(path)
    checkpoint.verify()
    return checkpoint

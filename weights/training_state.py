"""Optimizer slots and counters of a checkpoint, by the port's names, read only when they are asked for.

Names: `exp_avg/<parameter>` and `exp_avg_sq/<parameter>` in the parameter's PyTorch layout, and the counters of the
table. On disk they are safetensors files of bounded size, so that writing them takes no more memory than one file.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from weights.checkpoint import Checkpoint
from weights.errors import CorruptCheckpointError
from weights.mapping import Assignment

FILE_BYTES = 64 << 20
_STEM = "training_state"


class TrainingState(Mapping[str, np.ndarray]):
    """Arrays by name; each access reads one."""

    def __init__(self, readers: Mapping[str, Callable[[], np.ndarray]]) -> None:
        self._readers = dict(readers)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def __contains__(self, name: object) -> bool:
        return name in self._readers


def from_checkpoint(checkpoint: Checkpoint, assignments: Sequence[Assignment]) -> TrainingState:
    """The training state that a checkpoint holds; it stays open as long as the result lives."""

    def reader(assignment: Assignment) -> Callable[[], np.ndarray]:
        return lambda: assignment.layout.to_port(checkpoint.read(assignment.key))

    return TrainingState({assignment.name: reader(assignment) for assignment in assignments if not assignment.in_model})


def save_training_state(state: Mapping[str, np.ndarray], directory: Path) -> list[str]:
    """Write a training state as safetensors files of about `FILE_BYTES`.

    Args:
        state: arrays by name, read one after another.
        directory: an existing folder.

    Returns:
        the names of the files.
    """
    files: list[str] = []
    pending: dict[str, np.ndarray] = {}

    def flush() -> None:
        if pending:
            files.append(f"{_STEM}-{len(files):05d}.safetensors")
            save_file(pending, directory / files[-1])
            pending.clear()

    for name, array in state.items():
        pending[name] = np.asarray(array, order="C")  # unlike ascontiguousarray it keeps () a ()
        if sum(held.nbytes for held in pending.values()) >= FILE_BYTES:
            flush()
    flush()
    return files


def load_training_state(directory: Path, files: Sequence[str]) -> TrainingState:
    """Open what `save_training_state` wrote.

    Raises:
        CorruptCheckpointError: a file is missing, damaged, or repeats a name.
    """
    readers: dict[str, Callable[[], np.ndarray]] = {}

    def reader(path: Path, name: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            with safe_open(path, framework="numpy") as file:
                return file.get_tensor(name)

        return read

    for file_name in files:
        path = directory / file_name
        try:
            with safe_open(path, framework="numpy") as file:
                names = list(file.keys())
        except (OSError, SafetensorError) as error:
            raise CorruptCheckpointError(f"{path}: {error}") from None
        for name in names:
            if name in readers:
                raise CorruptCheckpointError(f"{path}: {name} is in two files")
            readers[name] = reader(path, name)
    return TrainingState(readers)

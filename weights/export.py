"""From the port back to a TensorFlow checkpoint, without TensorFlow.

The result is what `tf.train.Checkpoint(model=..., optimizer=..., batch_num=..., ...)` would have written: keys of the
original (spec, section 6), Adam's slots by number, and an object graph with which the reference and the original
restore at `assert_consumed` strength, also into a model that is not built yet.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np
import torch
from google.protobuf import text_format

from torch_impl.model import Trunk
from weights import messages
from weights.errors import CheckpointError, MappingError, listing
from weights.mapping import check_table
from weights.object_graph import GRAPH_KEY, SUFFIX, build_graph
from weights.output import atomic_directory
from weights.table import MOMENTS, Row, kind_of, path_aliases, rows, slot_paths
from weights.tensor_bundle_writer import write_bundle

NAME = "ckpt-1"
STATE_FILE = "checkpoint"
SAVE_COUNTER = "save_counter"
Dtype = Literal["float32", "float64"]


def _array(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's numbers in NumPy; bfloat16 as ml_dtypes'."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def wide_enough(model: Trunk) -> Dtype:
    """The narrowest type of a checkpoint's variables in which a model's are exact."""
    return "float64" if any(value.dtype == torch.float64 for value in model.state_dict().values()) else "float32"


class CheckpointTensors(Mapping[str, np.ndarray]):
    """A model and its training state under the checkpoint's keys and in its layouts, converted on access.

    Args:
        model: the port.
        training_state: names and arrays as in `Transplant.training_state`; may be empty.
        dtype: of the model's variables in the checkpoint; None is float32, and then every number must be one.

    Raises:
        MappingError: the training state has unknown names, lacks some slots, or has wrong shapes.
    """

    def __init__(
        self, model: Trunk, training_state: Mapping[str, np.ndarray] | None = None, dtype: Dtype | None = None
    ) -> None:
        self._state = model.state_dict()
        self._training = {} if training_state is None else training_state
        self._heads = model.config.num_heads
        self._dtype = dtype
        kind = kind_of(model)
        self.rows = rows(model.config, kind.table)
        if complaints := check_table(model, self.rows):
            raise MappingError(listing("the mapping table does not fit the model", complaints))
        self._slots: dict[str, tuple[str, Row]] = {}
        self._slot_aliases: list[tuple[str, str]] = []
        for optimizer in kind.optimizers:
            updated = [row for row in rows(model.config, optimizer.table) if row.trainable]
            if any(f"{moment}/{row.name}" in self._training for row in updated for moment in MOMENTS):
                self._number_slots(optimizer.name, updated)
        self._model = {row.path: row for row in self.rows}
        self._counters = {counter.path: counter for counter in kind.counters if counter.name in self._training}
        self._iterations = [(f"{each.name}/_variables/0", f"{each.name}/_iterations") for each in kind.optimizers]
        known = {name for name, _ in self._slots.values()} | {counter.name for counter in kind.counters}
        complaints = [f"{name} is missing" for name, _ in self._slots.values() if name not in self._training]
        complaints += [f"{name} is unknown" for name in self._training if name not in known]
        if complaints:
            raise MappingError(listing("the training state does not belong to this model", complaints))
        self._paths = sorted([*self._model, *self._slots, *self._counters])

    def _number_slots(self, optimizer: str, updated: list[Row]) -> None:
        """Place the slots of one optimizer; Keras' Adam reaches them by moment as well as by number."""
        for order, row in enumerate(updated):
            paths = slot_paths(order, optimizer)
            self._slots |= {path: (f"{moment}/{row.name}", row) for moment, path in zip(MOMENTS, paths, strict=True)}
            self._slot_aliases += [
                (f"{optimizer}/{attribute}/{order}", path)
                for attribute, path in zip(("_momentums", "_velocities"), paths, strict=True)
            ]

    def __iter__(self) -> Iterator[str]:
        return (path + SUFFIX for path in self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, key: str) -> np.ndarray:
        path = key.removesuffix(SUFFIX)
        if path in self._counters:
            return self._counter(path)
        if path in self._slots:
            name, row = self._slots[path]
            array = self._training[name]
        else:
            row = self._model[path]
            array = self._cast(row.name, _array(self._state[row.name]))
        shape = tuple(self._state[row.name].shape)
        if array.shape != shape:
            raise MappingError(f"{path}: shape {array.shape} where the model has {shape}")
        return row.layout.to_stored(array, row.layout.stored_shape(shape, self._heads))

    def _cast(self, name: str, array: np.ndarray) -> np.ndarray:
        converted = array.astype(self._dtype or np.float32, copy=False)
        if not np.isfinite(converted).all():
            raise MappingError(f"{name} has NaN or infinity")
        if self._dtype is None and not np.array_equal(converted, array):
            raise CheckpointError(
                f"{name} is {array.dtype} and not exact in float32, the checkpoint's type; "
                "ask for dtype='float64', or for 'float32' to round"
            )
        return converted

    def _counter(self, path: str) -> np.ndarray:
        counter = self._counters[path]
        array = np.asarray(self._training[counter.name])
        if array.shape != () or array.dtype != counter.dtype:
            raise MappingError(f"{counter.name}: {array.dtype} {array.shape} where {counter.dtype} () belongs")
        return array

    def graph(self) -> bytes:
        """The serialized object graph."""
        aliases = [alias for row in self.rows for alias in path_aliases(row)]
        aliases += [alias for alias in self._iterations if alias[1] in self._counters]
        return build_graph(self._paths, [*aliases, *self._slot_aliases])


def export(
    model: Trunk,
    directory: str | os.PathLike[str],
    *,
    training_state: Mapping[str, np.ndarray] | None = None,
    dtype: Dtype | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a TensorFlow checkpoint that the reference and the original restore; all of its files or none.

    Args:
        model: the port. Projection matrix and rotary table are not stored, as in the original: whoever restores
            computes them from the seed.
        directory: gets `ckpt-1.index`, `ckpt-1.data-00000-of-00001` and `checkpoint`.
        training_state: slots and counters, such as `Transplant.training_state`. Without a save counter, 1 is written.
        dtype: of the variables. None is float32, the original's, and an error when that would round.
        overwrite: replace a checkpoint of that name.

    Returns:
        the prefix, `directory/ckpt-1`.

    Raises:
        OutputError: not writable, or there is such a checkpoint already.
        CheckpointError: NaN or infinity in the model, numbers that float32 cannot hold, or a training state that does
            not fit the model.
    """
    state: dict[str, np.ndarray] | Mapping[str, np.ndarray] = {} if training_state is None else training_state
    if SAVE_COUNTER not in state:
        state = _With(state, SAVE_COUNTER, np.array(1, np.int64))
    tensors = CheckpointTensors(model, state, dtype)
    with atomic_directory(directory, last=STATE_FILE, overwrite=overwrite) as folder:
        write_bundle(folder / NAME, _all(tensors))
        named = messages.CheckpointState(model_checkpoint_path=NAME, all_model_checkpoint_paths=[NAME])
        (folder / STATE_FILE).write_text(text_format.MessageToString(named), encoding="utf-8")
    return Path(directory) / NAME


def _all(tensors: CheckpointTensors) -> Iterator[tuple[str, np.ndarray]]:
    yield GRAPH_KEY, np.array(tensors.graph(), object)
    yield from tensors.items()


class _With(Mapping[str, np.ndarray]):
    """A mapping with one more entry, the others still read on access."""

    def __init__(self, base: Mapping[str, np.ndarray], name: str, array: np.ndarray) -> None:
        self._base, self._name, self._array = base, name, array

    def __getitem__(self, name: str) -> np.ndarray:
        return self._array if name == self._name else self._base[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._base
        yield self._name

    def __len__(self) -> int:
        return len(self._base) + 1

"""Keras 2 weights files (`model.save_weights("x.h5")`), and which of their tensors is which.

Such a file knows no attribute names: it holds one group per top-level layer, in the order in which the model's
attributes were created, and in it the weights in Keras' order, trainable before non-trainable. Names carry counters
that depend on what else the process had built. So tensors are assigned by order, and every piece of evidence must
agree: the number of weights of each layer, the last component of each name, the role of an attention kernel where the
name tells it, and the shape, which the transplant compares for every kind of checkpoint.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from weights.checkpoint import Checkpoint
from weights.errors import CorruptCheckpointError, MappingError, NotACheckpointError, listing
from weights.table import Row
from weights.tensor_bundle import Visitor

_ROLES = ("query", "key", "value", "output")


def _texts(attribute: Any) -> list[str]:
    return [text.decode() if isinstance(text, bytes) else str(text) for text in attribute]


class KerasWeights(Checkpoint):
    """A Keras 2 weights file, or the weights inside a whole-model `.h5`. Keys are `layer/weight`.

    The format has no checksums: truncation and structural damage are found, a flipped bit in a number is not.

    Raises:
        NotACheckpointError: not HDF5, or HDF5 of another kind, or not readable.
        CorruptCheckpointError: a listed weight is missing.
    """

    kind = "Keras h5 weights"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.files = (Path(path),)
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise NotACheckpointError(f"{path} cannot be read as HDF5: {error}") from None
        root = self._file.get("model_weights", self._file)
        if "layer_names" not in root.attrs:
            raise NotACheckpointError(f"{path} is HDF5 but no Keras 2 weights file (it has no layer_names)")
        self.layers: dict[str, list[str]] = {}
        self._datasets: dict[str, h5py.Dataset] = {}
        for layer in _texts(root.attrs["layer_names"]):
            self.layers[layer] = []
            group = root.get(layer)
            if not isinstance(group, h5py.Group) or "weight_names" not in group.attrs:
                raise CorruptCheckpointError(f"{path}: the layer {layer} is listed and missing")
            for weight in _texts(group.attrs["weight_names"]):
                key, dataset = f"{layer}/{weight}", group.get(weight)
                if not isinstance(dataset, h5py.Dataset):
                    raise CorruptCheckpointError(f"{path}: {key} is listed and missing")
                if key in self._datasets:
                    raise CorruptCheckpointError(f"{path}: {key} occurs twice")
                self.layers[layer].append(key)
                self._datasets[key] = dataset

    def __iter__(self) -> Iterator[str]:
        return iter(self._datasets)

    def __len__(self) -> int:
        return len(self._datasets)

    def __contains__(self, key: object) -> bool:
        return key in self._datasets

    def shape(self, key: str) -> tuple[int, ...]:
        """See `Checkpoint`."""
        return self._datasets[key].shape

    def dtype(self, key: str) -> np.dtype:
        """See `Checkpoint`."""
        return self._datasets[key].dtype

    def read(self, key: str, *visitors: Visitor) -> np.ndarray:
        """See `Checkpoint`."""
        try:
            array = self._datasets[key][()]
        except OSError as error:
            raise CorruptCheckpointError(f"{key}: cannot be read from {self.files[0]}: {error}") from None
        array = np.asarray(array)
        for visitor in visitors:
            visitor(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        return array

    def has_the_layers_of(self, rows: Sequence[Row]) -> bool:
        """Whether it has as many layers with weights as a model with these rows."""
        return len([keys for keys in self.layers.values() if keys]) == len({row.path.split("/")[1] for row in rows})

    def assign(self, rows: Sequence[Row]) -> dict[str, str]:
        """Say which key belongs to which row of the table.

        Args:
            rows: the table for one configuration, in Keras' order.

        Returns:
            `{row.path: key}` for every row and every key.

        Raises:
            MappingError: numbers or names do not agree; lists every place.
        """
        expected = [list(group) for _, group in groupby(rows, key=lambda row: row.path.split("/")[1])]
        stored = [keys for keys in self.layers.values() if keys]
        complaints, assigned = [], {}
        if len(stored) != len(expected):
            complaints.append(f"the file has {len(stored)} layers with weights, the model {len(expected)}")
        else:
            for keys, layer_rows in zip(stored, expected, strict=True):
                ordered = sorted(layer_rows, key=lambda row: not row.trainable)  # stable: keeps the table's order
                if len(keys) != len(ordered):
                    complaints.append(f"{keys[0]} and its layer: {len(keys)} weights, the model has {len(ordered)}")
                    continue
                for key, row in zip(keys, ordered, strict=True):
                    if not _agree(key, row.path):
                        complaints.append(f"{key} stands where {row.path} was expected")
                    assigned[row.path] = key
        if complaints:
            raise MappingError(listing(f"{self.files[0]} does not hold the weights of this model", complaints))
        return assigned


def _agree(key: str, path: str) -> bool:
    """Whether a weight's name in the file fits a path: same last component, no other attention role."""
    name = key.rpartition(":")[0] or key
    last = name.rpartition("/")[2].lstrip("_")
    told = [role for role in _ROLES if any(role in part.split("_") for part in name.split("/"))]
    meant = [role for role in _ROLES if f"/{role}_dense_layer/" in path]
    return last == path.rpartition("/")[2] and (not told or told == meant)

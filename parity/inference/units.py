"""Layers as the search sees them, and what speaks for two of them being the same: shapes, weights, names."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from parity.inference.records import Evidence
from parity.layer_map import HEADS
from parity.trace import Call

CHANNELS_FIRST = ("convolution", "transposed", "batch norm", "pool", "upsample", "pad")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """A layer that was called."""

    path: str
    kind: str
    call: Call
    tensors: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first tensor that it returned."""
        return shape_of(self.call.outputs)


def by_shapes(unit: Unit) -> Any:
    """The key in which two layers agree that have the same type and tensors of the same shapes."""
    return unit.kind, frozenset((name, array.shape) for name, array in unit.tensors.items())


def by_equal_weights(left: Sequence[Unit], right: Sequence[Unit]) -> dict[str, str]:
    """{port path: reference path} of layers that hold the same numbers, and no third does."""
    found = {}
    for ours in right:
        equal = [
            theirs.path
            for theirs in left
            if theirs.tensors
            and ours.tensors
            and all(
                name in theirs.tensors and _equal(array, theirs.tensors[name]) for name, array in ours.tensors.items()
            )
        ]
        if len(equal) == 1:
            found[ours.path] = equal[0]
    return found if len(set(found.values())) == len(found) else {}


def _equal(found: np.ndarray, expected: np.ndarray) -> bool:
    # A port in float32 holds a float64 reference's weights rounded.
    return found.shape == expected.shape and np.array_equal(found.astype(np.float32), expected.astype(np.float32))


def by_names(left: Sequence[Unit], right: Sequence[Unit]) -> tuple[dict[str, str], Evidence]:
    """By what both sides call them where that is one to one, else by order; ``{port path: reference path}``."""
    theirs, ours = [_name(unit.path) for unit in left], [_name(unit.path) for unit in right]
    if len(left) == 1:
        return {right[0].path: left[0].path}, "type and shape"
    if sorted(theirs) == sorted(ours) and len(set(theirs)) == len(theirs):
        return {unit.path: left[theirs.index(name)].path for unit, name in zip(right, ours, strict=True)}, "name"
    return {own.path: their.path for own, their in zip(right, left, strict=True)}, "order"


def _name(path: str) -> tuple[str, ...]:
    """Numbers on the way and the last word: ``encoder.layer.0.query`` and ``bert/encoder/layer/0/query`` alike."""
    words = path.replace("/", ".").split(".")
    return (*(word for word in words[:-1] if word.isdigit()), words[-1].lower())


def listed(units: Iterable[Unit]) -> str:
    """Their paths, in one line."""
    return ", ".join(unit.path for unit in units)


def shape_of(arrays: Sequence[Any] | None) -> tuple[int, ...]:
    """Of the first array, if there is any."""
    return tuple(arrays[0].shape) if arrays else ()


def possible_layouts(found: tuple[int, ...], expected: tuple[int, ...], kind: str) -> list[str]:
    """Layouts that make one shape of the other, the likeliest for this kind of layer first."""
    names = ["same"] if found == expected else []
    if len(found) == len(expected) >= 3 and (found[0], *found[2:], found[1]) == expected:
        names.insert(0 if kind in CHANNELS_FIRST else len(names), "channels_first")
    if len(expected) == len(found) + 1 and found[:-1] == expected[:-2] and found[-1] == expected[-1] * expected[-2]:
        names.append(f"{HEADS}{expected[-2]}x{expected[-1]}")
    return names

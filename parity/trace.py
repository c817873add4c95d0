"""What a forward pass left behind: the calls of every layer, with their inputs and outputs as float64 arrays."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np

T = TypeVar("T")
Key = tuple[str, int]
"""Path of a layer and number of its call."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """A part of an array that was too large to record, and summaries of the whole.

    Attributes:
        values: The kept part.
        positions: Indices of the kept part along ``axis``.
        axis: Axis that was thinned.
        full_shape: Shape of the whole array.
        summaries: Statistics over the whole array: ``mean``, ``std``, ``min``, ``max``, ``axis_mean``.
    """

    values: np.ndarray
    positions: np.ndarray
    axis: int
    full_shape: tuple[int, ...]
    summaries: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """One execution of one layer.

    Attributes:
        path: Path of the layer in its model.
        index: 0 for the first call of this layer in the pass, 1 for the second ...
        order: Position among all calls, by the time they began.
        inputs: Tensor arguments in order, None where they were not recorded.
        outputs: Returned tensors in order, nested structures flattened.
        error: What the layer raised, if it did.
    """

    path: str
    index: int
    order: int
    inputs: tuple[np.ndarray, ...] | None
    outputs: tuple[np.ndarray | Sample, ...]
    error: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
    """All calls of one forward pass.

    Attributes:
        calls: By path and index, in order of execution.
        state: Buffers that the pass may change (statistics), after it: {layer path: {name: array}}.
        error: What ended the pass early, if anything did.
    """

    calls: Mapping[Key, Call]
    state: Mapping[str, Mapping[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    error: str = ""

    def count(self, path: str) -> int:
        """How often a layer was called."""
        return sum(1 for called, _ in self.calls if called == path)

    def entered(self, key: Key) -> Call | None:
        """A call of which the inputs are needed; None if there was none."""
        return self.calls.get(key)

    def left(self, key: Key) -> Call | None:
        """A call of which the outputs are needed; None if there was none."""
        return self.calls.get(key)

    def release(self, key: Key) -> None:
        """Says that a call is no longer needed, which matters to a pass that is read while it runs."""


class Readable(Protocol):
    """What layers are fed from and compared with: a whole ``Trace``, or a pass that is read while it runs."""

    def entered(self, key: Key) -> Call | None:
        """A call with its inputs."""
        ...

    def left(self, key: Key) -> Call | None:
        """A call with its outputs."""
        ...

    def release(self, key: Key) -> None:
        """Says that a call is no longer needed."""
        ...


class Recorder:
    """Collects calls while a pass runs; both sides use it, so that order and counting mean the same on both.

    Attributes:
        wide: Whether it wants float64, or arrays as narrow as holds them exactly.
        keeps: Whether it keeps outputs beyond the end of a call, when they may be changed in place.
    """

    wide = True
    keeps = True

    def __init__(self) -> None:
        self.calls: dict[Key, Call] = {}
        self._counts: dict[str, int] = {}
        self._orders: dict[Key, int] = {}

    def begin(self, path: str) -> Key:
        """Registers the start of a call and returns its key."""
        key = (path, self._counts.get(path, 0))
        self._counts[path] = key[1] + 1
        self._orders[key] = len(self._orders)
        return key

    def enter(self, key: Key, inputs: tuple[np.ndarray, ...]) -> None:
        """Says what a call was given, before it is known what it returns."""

    def end(self, key: Key, inputs: tuple[np.ndarray, ...], outputs: tuple[np.ndarray, ...], error: str = "") -> None:
        """Registers what went in and what came out."""
        self.calls[key] = self._call(key, inputs, outputs, error)

    def _call(self, key: Key, inputs: tuple[np.ndarray, ...], outputs: tuple[np.ndarray, ...], error: str = "") -> Call:
        order = self._orders[key]
        return Call(path=key[0], index=key[1], order=order, inputs=inputs, outputs=outputs, error=error)

    def trace(self, state: Mapping[str, Mapping[str, np.ndarray]], error: str = "") -> Trace:
        """Everything collected, in order of execution."""
        ordered = sorted(self.calls.items(), key=lambda item: item[1].order)
        return Trace(calls=dict(ordered), state=state, error=error)


def flatten(structure: Any, is_tensor: Callable[[Any], bool]) -> list[Any]:
    """Tensors of nested tuples, lists and mappings, in the order in which they stand there."""
    if is_tensor(structure):
        return [structure]
    if isinstance(structure, Mapping):
        return [leaf for item in structure.values() for leaf in flatten(item, is_tensor)]
    if isinstance(structure, list | tuple):
        return [leaf for item in structure for leaf in flatten(item, is_tensor)]
    return []


def replace(structure: Any, is_tensor: Callable[[Any], bool], substitutes: list[Any]) -> Any:
    """The same structure with its tensors taken from ``substitutes``, which is emptied from the front."""
    if is_tensor(structure):
        return substitutes.pop(0)
    if isinstance(structure, Mapping) and dataclasses.is_dataclass(structure) and not isinstance(structure, type):
        # Results with named fields that are read by position as well.
        return type(structure)(**{key: replace(item, is_tensor, substitutes) for key, item in structure.items()})
    if isinstance(structure, Mapping):
        return {key: replace(item, is_tensor, substitutes) for key, item in structure.items()}
    if isinstance(structure, tuple) and hasattr(structure, "_fields"):
        return type(structure)(*(replace(item, is_tensor, substitutes) for item in structure))
    if isinstance(structure, list | tuple):
        return type(structure)(replace(item, is_tensor, substitutes) for item in structure)
    return structure


def attempt(call: Callable[[], T]) -> tuple[T | None, str]:
    """What a call into the port returns, or what it raised in one line: whatever it raises is a finding."""
    try:
        return call(), ""
    except Exception as exception:  # noqa: BLE001  see above
        return None, describe(exception)


def describe(exception: Exception) -> str:
    """An exception in one line."""
    return f"{type(exception).__name__}: {' '.join(str(exception).split())}"

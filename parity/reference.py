"""What the port is held against: a living Keras model, or numbers that the original EpiBERT left behind.

What any Keras model leaves behind is read by ``parity.recording``.
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np

from parity.draws import Draws
from parity.keras_side import KerasSide, activation_path
from parity.layer_map import LayerMap
from parity.records import Reading
from parity.stream import Outline
from parity.trace import Call, Readable, Recorder, Sample, Trace


class Reference(Protocol):
    """What ``parity.ladder.compare_live`` needs of a reference."""

    inputs: tuple[np.ndarray, ...]
    streamed: bool

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions in which it runs, the most precise first."""
        ...

    def trace(self, precision: str, *, training: bool, reading: Reading) -> Trace:
        """Its own pass."""
        ...

    def outline(self, precision: str, *, training: bool) -> Trace:
        """The end-to-end pass where of the arrays only statistics and what the model returns are needed."""
        ...

    def on_other_inputs(self) -> "Reference":
        """The same on inputs that no layer has seen."""
        ...

    def on_shuffled_inputs(self, draw: int) -> "Reference":
        """The same on its inputs in another order."""
        ...

    def graph_output(self, precision: str, *, training: bool) -> tuple[np.ndarray | Sample, ...] | None:
        """The final output of the same pass as a ``tf.function``."""
        ...

    def lacks(self, precision: str, *, training: bool, reading: Reading) -> str:
        """Why it has no such pass; empty when it has."""
        ...


class StreamedReference(Reference, Protocol):
    """One whose passes are read while they run."""

    def fed_paths(self, reading: Reading) -> frozenset[str]:
        """Layers that are fed in a reading."""
        ...

    def run(
        self, precision: str, *, training: bool, reading: Reading, truth: Readable | None, recorder: Recorder
    ) -> Trace:
        """A pass of which the recorder decides what is kept; fed from the truth where there is one."""
        ...


class LiveReference:
    """Keras models of one function in several precisions, run on demand.

    Args:
        models: {precision: built tf_keras model}; ``float64`` decides semantics and should be among them.
        inputs: The models' arguments.
        layer_map: Tells which layers are blocks and which are ignored.
        name: What it is, with versions.
        remember: Keep every pass, for small models that many ports are held against.
        streamed: Whether comparisons read its passes while they run, so that memory grows with the largest layer and
            not with the number of layers; each comparison then runs passes of its own.
    """

    def __init__(
        self,
        models: Mapping[str, Any],
        inputs: tuple[np.ndarray, ...],
        layer_map: LayerMap,
        name: str,
        *,
        remember: bool = False,
        streamed: bool = False,
    ) -> None:
        self.name = name
        self.remember = remember
        self.streamed = streamed
        self.inputs = inputs
        self.sides = {
            precision: KerasSide(model, layer_map.ignored, layer_map.split) for precision, model in models.items()
        }
        self.blocks = frozenset(pair.reference for pair in layer_map if pair.block)
        self._forget()

    def _forget(self) -> None:
        self._traces: dict[tuple[str, bool, Reading], Trace] = {}
        self._graphs: dict[tuple[str, bool], tuple[np.ndarray | Sample, ...]] = {}
        self._others: dict[str, LiveReference] = {}

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions in which it runs."""
        return tuple(self.sides)

    @property
    def paths(self) -> tuple[str, ...]:
        """Every layer that it has, the model itself first."""
        return tuple(next(iter(self.sides.values())).layers)

    def trace(self, precision: str, *, training: bool, reading: Reading) -> Trace:
        """The reference's own pass; isolated and block readings are fed from its most precise end-to-end trace.

        That one is remembered, because every comparison needs it; the others are large and needed once.
        """
        key = precision, training, reading
        if key in self._traces:
            return self._traces[key]
        truth = fed = None
        if reading is not Reading.ACCUMULATED:
            truth = self.trace(self.precisions[0], training=training, reading=Reading.ACCUMULATED)
            fed = self.blocks if reading is Reading.BLOCK else None
        trace = self.sides[precision].trace(self.inputs, training=training, truth=truth, fed=fed)
        if self.remember or (precision == self.precisions[0] and reading is Reading.ACCUMULATED):
            self._traces[key] = trace
        return trace

    def fed_paths(self, reading: Reading) -> frozenset[str]:
        """Layers that are fed in a reading."""
        if reading is Reading.ACCUMULATED:
            return frozenset()
        side = self.sides[self.precisions[0]]
        paths = self.blocks if reading is Reading.BLOCK else frozenset(side.layers)
        return paths | {activation_path(path) for path in side.split & paths}

    def run(
        self, precision: str, *, training: bool, reading: Reading, truth: Readable | None, recorder: Recorder
    ) -> Trace:
        """A pass of which the recorder decides what is kept; fed from the truth where there is one."""
        fed = self.blocks if reading is Reading.BLOCK else None
        return self.sides[precision].trace(self.inputs, training=training, truth=truth, fed=fed, recorder=recorder)

    def outline(self, precision: str, *, training: bool) -> Trace:
        """The end-to-end pass where of the arrays only statistics and what the model returns are needed."""
        if not self.streamed:
            return self.trace(precision, training=training, reading=Reading.ACCUMULATED)
        return self.sides[precision].trace(self.inputs, training=training, recorder=Outline())

    def lacks(self, precision: str, *, training: bool, reading: Reading) -> str:
        """Nothing: it lives."""
        return ""

    def on_other_inputs(self) -> "LiveReference":
        """The same models on inputs that no layer has seen: examples in reverse order, longest axes turned by one."""
        return self.on("turned", tuple(_turned(array) for array in self.inputs))

    def on_shuffled_inputs(self, draw: int) -> "LiveReference":
        """The same models on the same numbers in another order: along the longest axis, arrays of one length alike.

        Every value keeps its precision, bases stay bases and words stay words.

        Args:
            draw: Tells one order from another.
        """
        name = f"shuffled {draw}"
        return self.on(name, tuple(_shuffled(array, Draws(draw)) for array in self.inputs))

    def on(self, name: str, inputs: tuple[np.ndarray, ...]) -> "LiveReference":
        """The same models on other inputs, which go by a name where passes are kept."""
        if name in self._others:
            return self._others[name]
        other = copy.copy(self)
        other.inputs = inputs
        other._forget()
        if self.remember:
            self._others[name] = other
        return other

    def graph_output(self, precision: str, *, training: bool) -> tuple[np.ndarray | Sample, ...]:
        """The final output of the same pass as a ``tf.function``."""
        key = precision, training
        if key in self._graphs:
            return self._graphs[key]
        outputs = self.sides[precision].trace(self.inputs, training=training, graph=True).calls[("", 0)].outputs
        if self.remember:
            self._graphs[key] = outputs
        return outputs


def _turned(array: np.ndarray) -> np.ndarray:
    reversed_examples = array[::-1]
    if array.ndim < 2:
        return reversed_examples
    return np.roll(reversed_examples, 1, axis=1 + int(np.argmax(array.shape[1:])))


def _shuffled(array: np.ndarray, draws: Draws) -> np.ndarray:
    if array.ndim < 2:
        return array
    axis = 1 + int(np.argmax(array.shape[1:]))
    length = array.shape[axis]
    return np.take(array, draws.generator(f"positions {length}").permutation(length), axis=axis)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goldens:
    """Numbers of the original in the HDF5 form that ``goldens/README.md`` describes; not a ``parity.Recording``.

    Attributes:
        name: What was recorded, with versions.
        traces: {precision: trace of an evaluation pass}.
        finals: {(precision, ``eager`` | ``graph`` | ``training``): final outputs, in the order in which the model
            returns them}.
        state: {precision: {checkpoint key: statistics after one training pass}}.
        inputs: sequence (base indices), atac, motif_activity.
        constants: Constants of the model by name.
    """

    name: str
    traces: Mapping[str, Trace]
    finals: Mapping[tuple[str, str], tuple[np.ndarray, ...]]
    state: Mapping[str, Mapping[str, np.ndarray]]
    inputs: Mapping[str, np.ndarray]
    constants: Mapping[str, np.ndarray]


MODES = {"f64": "float64", "f32": "float32", "bf16": "bfloat16"}
"""Names of the precisions in recordings, the most precise first."""

FINALS = ("final_atac", "final_rna")
"""Names of final outputs in recordings."""


def read_goldens(path: str | Path, *, name: str, outputs: Sequence[str] = FINALS) -> Goldens:
    """Reads a recorded forward pass.

    Args:
        path: ``forward.h5``.
        name: What was recorded.
        outputs: Names of final outputs in the order in which a model returns them; which of them there are is what the
            file says of the most precise mode.

    Raises:
        OSError: The file is missing or no HDF5.
        KeyError: A part of the recording is missing.
    """
    traces, finals, state = {}, {}, {}
    with h5py.File(path) as file:
        exact = _group(file[f"modes/{next(iter(MODES))}"])
        names = [output for output in outputs if output in exact]
        if not names:
            raise KeyError(f"{path}: none of {', '.join(outputs)} is recorded")
        for mode, precision in MODES.items():
            group = _group(file[f"modes/{mode}"])
            traces[precision] = _read_trace(_group(group["taps"]))
            finals[precision, "eager"] = tuple(_values(group[output]) for output in names)
            finals[precision, "graph"] = tuple(_values(group[f"{output}_graph"]) for output in names)
            training = _group(group["training_true"])
            finals[precision, "training"] = tuple(_values(training[output]) for output in names)
            state[precision] = _leaves(_group(training["bn"]))
        for precision, trace in traces.items():
            uneven = sorted({path for path, _ in trace.calls.keys() ^ traces["float64"].calls.keys()})
            if uneven:
                raise KeyError(f"{path}: float64 and {precision} do not record the same layers: {', '.join(uneven)}")
        inputs = _leaves(_group(file["inputs"]))
        constants = _leaves(_group(file["constants"]))
    return Goldens(name=name, traces=traces, finals=finals, state=state, inputs=inputs, constants=constants)


def _read_trace(taps: h5py.Group) -> Trace:
    """Every tap; the arrays of one call are the datasets beside each other, named by what they are."""
    calls: dict[tuple[str, int], Call] = {}

    def visit(group: h5py.Group, path: str) -> None:
        arrays = [name for name in ("output", "k_prime", "q_prime") if name in group]
        if arrays:
            layer, _, call = path.partition("@")
            index = int(call) if call else 0
            outputs = tuple(read_array(group[name]) for name in arrays)
            calls[layer, index] = Call(path=layer, index=index, order=len(calls), inputs=None, outputs=outputs)
        for name, item in group.items():
            if isinstance(item, h5py.Group):
                visit(item, f"{path}/{name}" if path else name)
            elif name not in arrays:
                raise KeyError(f"{item.name}: not a name of a recorded array")

    visit(taps, "")
    return Trace(calls=calls)


def read_array(dataset: Any) -> np.ndarray | Sample:
    """A recorded array, or the part of it that was kept, in float64."""
    values = _values(dataset)
    if "axis" not in dataset.attrs:
        return values
    names = ("mean", "std", "min", "max", "axis_mean")
    return Sample(
        values=values,
        positions=np.asarray(dataset.attrs["positions"]),
        axis=int(dataset.attrs["axis"]),
        full_shape=tuple(int(size) for size in dataset.attrs["full_shape"]),
        summaries={name: np.asarray(dataset.attrs[name]) for name in names if name in dataset.attrs},
    )


def _values(dataset: Any) -> np.ndarray:
    return np.asarray(dataset[()], dtype=np.float64)


def _group(item: Any) -> h5py.Group:
    if not isinstance(item, h5py.Group):
        raise KeyError(f"{item.name}: expected a group")
    return item


def _leaves(group: h5py.Group) -> dict[str, np.ndarray]:
    leaves: dict[str, np.ndarray] = {}

    def visit(path: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            leaves[path] = item[()]

    group.visititems(visit)
    return leaves

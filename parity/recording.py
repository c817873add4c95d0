"""A reference that is not there: what a Keras model computed in another Python, as ``parity.recorder`` wrote it down.

A recording holds whole arrays, so that every layer of a port can be fed with what the reference's layer was fed with:
each is read by itself, as beside a living reference.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from parity.keras_side import activation_path
from parity.layer_map import LayerMap
from parity.recorder import SCHEMA, SHUFFLED, hash_array
from parity.records import NotCompared, Reading
from parity.trace import Call, Sample, Trace

_READINGS = {Reading.ACCUMULATED: "accumulated", Reading.ISOLATED: "isolated"}
_SECTIONS = {
    "model": dict,
    "arguments": dict,
    "environment": dict,
    "precisions": list,
    "layers": list,
    "hidden": dict,
    "weights": list,
    "constants": dict,
    "inputs": dict,
    "passes": list,
    "graphs": list,
    "given": dict,
    "not_recorded": list,
}


class NotARecording(ValueError):
    """A file that is no recording, or one that was damaged or changed."""


class Recording:
    """A recorded Keras model. Takes the place of the model in ``parity.infer``, ``load_weights`` and ``verify``.

    Every array is held against its hash when the file is opened.

    Args:
        path: File written by ``epibert record``.

    Attributes:
        path: The file.
        sha256: Hash of everything in it.
        environment: Versions and machine that it was made with.
        precisions: Precisions in which it was recorded, the most precise first.
        arguments: Keyword arguments with which the model was made.
        layers: {path: what ``parity.recorder.describe_layer`` says of the layer}, the model itself first.

    Raises:
        NotARecording: It is none, was truncated or changed, or is of another version of the schema.
        OSError: It cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self.path.open("rb"):  # what is missing or forbidden is said by the system, not by HDF5
            pass
        try:
            with h5py.File(self.path) as file:
                self._index, self.sha256 = _read_index(self.path, file)
                for name in file["arrays"]:
                    if hash_array(np.asarray(file["arrays"][name][()])) != name:
                        raise NotARecording(f"{path}: the array {name[:12]} was changed since it was recorded")
                absent = sorted(_arrays_of(self._index) - set(file["arrays"]))
        except NotARecording:
            raise
        except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise NotARecording(f"{path}: no recording of epibert record, or a truncated one: {reason}") from None
        if absent:
            raise NotARecording(f"{path}: {len(absent)} arrays are missing, the first {absent[0][:12]}")
        self.environment: Mapping[str, Any] = self._index["environment"]
        self.precisions: tuple[str, ...] = tuple(self._index["precisions"])
        self.arguments: Mapping[str, Any] = self._index["arguments"]
        self.layers: Mapping[str, Mapping[str, Any]] = {row["path"]: row for row in self._index["layers"]}
        self._variables: dict[str, np.ndarray] | None = None

    @property
    def name(self) -> str:
        """Class of the model."""
        return str(self._index["model"]["class"])

    @property
    def described(self) -> str:
        """What it is, with versions and hash."""
        made = self.environment
        return (
            f"recording {self.sha256[:12]} of {self.name}, TensorFlow {made['tensorflow']}, "
            f"{made['keras_package']} {made['keras']}, Python {made['python']}"
        )

    @property
    def inputs(self) -> tuple[np.ndarray, ...]:
        """The arguments that the model was recorded with."""
        return tuple(self._raw(self._index["inputs"]["given"]))

    @property
    def variables(self) -> Mapping[str, np.ndarray]:
        """Every variable by layer path and own name, ``conv/kernel``, in float64."""
        if self._variables is None:
            rows = self._index["weights"]
            values = self._raw([row["array"] for row in rows])
            self._variables = {
                row["key"]: np.asarray(value, dtype=np.float64) for row, value in zip(rows, values, strict=True)
            }
        return self._variables

    @property
    def weight_hashes(self) -> dict[str, str]:
        """Hash of every variable by its name."""
        return {row["key"]: row["array"] for row in self._index["weights"]}

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of the variables that training changes by their gradients."""
        return tuple(row["key"] for row in self._index["weights"] if row["trainable"])

    @property
    def constants(self) -> Mapping[str, np.ndarray]:
        """What the model computes with and no variable holds."""
        names = self._index["constants"]
        return dict(zip(names, self._raw(list(names.values())), strict=True))

    @property
    def given(self) -> tuple[str, tuple[np.ndarray, ...]]:
        """Precision and outputs of the model as its function made it."""
        given = self._index["given"]
        return given["precision"], tuple(self.arrays(given["outputs"]))

    @property
    def training(self) -> Mapping[str, Any] | None:
        """Gradients and steps, as ``parity.recorder.Recorder.training`` writes them; None if there are none."""
        return self._index["training"]

    @property
    def execution(self) -> tuple[str, ...]:
        """Paths of the layers in the order in which they are first called."""
        return tuple(dict.fromkeys(call["path"] for call in self._index["passes"][0]["calls"]))

    def arrays(self, names: Sequence[str | None]) -> list[Any]:
        """Arrays by their names, in float64, None for None."""
        found = iter(self._raw([name for name in names if name is not None]))
        return [None if name is None else np.asarray(next(found), dtype=np.float64) for name in names]

    def inputs_of(self, which: str) -> tuple[np.ndarray, ...]:
        """Those of a pass, by the name that it has in the recording.

        Raises:
            LookupError: There are none of that name.
        """
        if which not in self._index["inputs"]:
            raise LookupError(f"no passes on {which} inputs were recorded (epibert record --looks true)")
        return tuple(self._raw(self._index["inputs"][which]))

    def training_inputs(self) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        """Those of the gradients and of every other step, and those of the steps between."""
        return self.inputs, tuple(self._raw(self._index["inputs"]["turned"]))

    def rates(self) -> dict[str, float]:
        """Rate of every dropout layer."""
        return {
            path: float(layer["rate"])
            for path, layer in self.layers.items()
            if "Dropout" in layer["classes"] and "rate" in layer
        }

    def trace(
        self,
        *,
        precision: str,
        training: bool,
        reading: Reading = Reading.ACCUMULATED,
        which: str = "given",
        ignored: Collection[str] = (),
        split: Collection[str] = (),
        renumbered: Mapping[str, Sequence[int]] | None = None,
    ) -> Trace:
        """One recorded pass.

        Args:
            precision: One of ``precisions``.
            training: Training mode, dropout off.
            reading: End to end, or every layer fed with the most precise pass.
            which: ``given`` inputs, or the ``turned`` ones.
            ignored: Paths to leave out.
            split: Paths of layers whose own activation is a layer beside them, as in ``parity.keras_side.KerasSide``.
            renumbered: {path: the number that each of its calls gets}, of layers that the port calls in another order.

        Raises:
            KeyError: There is no such pass.
            ValueError: A layer that is to be split does not call its activation.
        """
        row = self._find(precision, training, reading, which)
        if row is None:
            raise KeyError(f"{self.path}: no pass in {precision}, {_mode(training)}, {reading}, {which} inputs")
        numbers = renumbered or {}
        loaded: dict[str, np.ndarray] = {}
        with h5py.File(self.path) as file:

            def load(names: Sequence[str]) -> tuple[np.ndarray, ...]:
                for name in names:
                    if name not in loaded:
                        loaded[name] = np.asarray(_array(file, name), dtype=np.float64)
                return tuple(loaded[name] for name in names)

            calls: dict[tuple[str, int], Call] = {}
            by_key = {(call["path"], call["index"]): call for call in row["calls"]}
            for call in row["calls"]:
                path, order = call["path"], 2 * call["order"]
                if path in ignored:
                    continue
                index = call["index"] if path not in numbers else numbers[path][call["index"]]
                outputs = call["outputs"]
                if path in split:
                    beside = activation_path(path)
                    own = call.get("activation") or by_key.get((beside, call["index"]))
                    if own is None:
                        raise ValueError(f"{path} does not call its activation, so it cannot be split from it")
                    outputs = own["inputs"]
                    if "activation" in call and beside not in ignored:
                        calls[beside, index] = Call(
                            path=beside,
                            index=index,
                            order=order + 1,
                            inputs=load(own["inputs"]),
                            outputs=load(own["outputs"]),
                        )
                calls[path, index] = Call(
                    path=path, index=index, order=order, inputs=load(call["inputs"]), outputs=load(outputs)
                )
            state = {
                path: {name: load([array])[0] for name, array in own.items()}
                for path, own in row["state"].items()
                if path not in ignored
            }
        return Trace(calls=dict(sorted(calls.items(), key=lambda item: item[1].order)), state=state)

    def has(self, precision: str, *, training: bool, reading: Reading, which: str = "given") -> bool:
        """Whether such a pass was recorded."""
        return self._find(precision, training, reading, which) is not None

    def graph_output(self, precision: str, *, training: bool, which: str = "given") -> tuple[np.ndarray, ...] | None:
        """The final output of a pass as a ``tf.function``; None where there is none."""
        for row in self._index["graphs"]:
            of_pass = (row.get("inputs", "given"), row["precision"], row["mode"])
            if of_pass == (which, precision, _mode(training)):
                return tuple(self.arrays(row["outputs"]))
        return None

    def not_compared(self) -> tuple[NotCompared, ...]:
        """What the recording does not hold, by name."""
        rows = [(row["name"], row["reason"]) for row in self._index["not_recorded"]]
        rows += [(path, reason) for path, reason in self._index["hidden"].items()]
        rows.append(
            ("other inputs than the recorded ones", "the model that was recorded is not here to be run on them")
        )
        return tuple(NotCompared(side="recording", name=name, reason=reason) for name, reason in rows)

    def _find(self, precision: str, training: bool, reading: Reading, which: str) -> Mapping[str, Any] | None:
        wanted = {
            "precision": precision,
            "mode": _mode(training),
            "reading": _READINGS.get(reading),
            "inputs": which,
        }
        rows = (row for row in self._index["passes"] if all(row[name] == value for name, value in wanted.items()))
        return next(rows, None)

    def _raw(self, names: Sequence[str]) -> list[np.ndarray]:
        with h5py.File(self.path) as file:
            return [_array(file, name) for name in names]


class RecordedReference:
    """A recording under a layer map, in the place of ``parity.reference.LiveReference``.

    Args:
        recording: The recording.
        layer_map: Tells which layers are ignored and which are split.
        precisions: Those to compare in, all recorded ones when None.
        which: Name of the inputs: ``given``, ``turned``, or one that is ``SHUFFLED``.
        renumbered: As for ``Recording.trace``.
    """

    streamed = False

    def __init__(
        self,
        recording: Recording,
        layer_map: LayerMap,
        precisions: Sequence[str] | None = None,
        which: str = "given",
        renumbered: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.recording, self.layer_map, self.which = recording, layer_map, which
        self.renumbered = renumbered
        self.name = recording.described
        self.inputs = recording.inputs_of(which)
        self.precisions = tuple(p for p in recording.precisions if precisions is None or p in precisions)
        self._truths: dict[bool, Trace] = {}

    def trace(self, precision: str, *, training: bool, reading: Reading) -> Trace:
        """A recorded pass; the most precise one from end to end is remembered, because every comparison needs it."""
        remembered = precision == self.precisions[0] and reading is Reading.ACCUMULATED
        if remembered and training in self._truths:
            return self._truths[training]
        trace = self.recording.trace(
            precision=precision,
            training=training,
            reading=reading,
            which=self.which,
            ignored=self.layer_map.ignored,
            split=self.layer_map.split,
            renumbered=self.renumbered,
        )
        if remembered:
            self._truths[training] = trace
        return trace

    def on_other_inputs(self) -> "RecordedReference":
        """The same model on the other inputs that it was recorded with."""
        return RecordedReference(self.recording, self.layer_map, self.precisions[:1], "turned", self.renumbered)

    def on_shuffled_inputs(self, draw: int) -> "RecordedReference":
        """The same model on inputs in another order.

        Raises:
            LookupError: No such pass was recorded: a ratio that fails is judged by the given inputs alone.
        """
        which = SHUFFLED.format(draw=draw)
        return RecordedReference(self.recording, self.layer_map, self.precisions, which, self.renumbered)

    def outline(self, precision: str, *, training: bool) -> Trace:
        """The end-to-end pass."""
        return self.trace(precision, training=training, reading=Reading.ACCUMULATED)

    def graph_output(self, precision: str, *, training: bool) -> tuple[np.ndarray | Sample, ...] | None:
        """The final output of the same pass as a ``tf.function``."""
        return self.recording.graph_output(precision, training=training, which=self.which)

    def lacks(self, precision: str, *, training: bool, reading: Reading) -> str:
        """Why a comparison cannot be made; empty where it can."""
        first = precision == self.precisions[0]
        if not self.recording.has(self.precisions[0], training=training, reading=Reading.ACCUMULATED, which=self.which):
            return f"no pass in {_mode(training)} mode was recorded on these inputs"
        if not first and not self.recording.has(precision, training=training, reading=reading, which=self.which):
            return f"it was not recorded; {self.precisions[0]} decides"
        return ""


def _mode(training: bool) -> str:
    return "training" if training else "evaluation"


def _array(file: Any, name: str) -> np.ndarray:
    return np.asarray(file["arrays"][name][()])


def _read_index(path: Path, file: Any) -> tuple[dict[str, Any], str]:
    schema = file.attrs.get("schema")
    if schema is None or "index" not in file or "arrays" not in file:
        raise NotARecording(f"{path}: no recording of epibert record")
    if int(schema) != SCHEMA:
        raise NotARecording(f"{path}: a recording with schema {schema}; this version reads {SCHEMA}")
    text = np.asarray(file["index"][()]).tobytes()
    sha256 = hashlib.sha256(text).hexdigest()
    if sha256 != file.attrs.get("sha256"):
        raise NotARecording(f"{path}: the recording was changed since it was made: its hash is another")
    index = json.loads(text)
    for name, kind in _SECTIONS.items():
        if not isinstance(index.get(name), kind):
            raise NotARecording(f"{path}: the recording has no {name}")
    if not index["precisions"] or not index["layers"] or "training" not in index:
        raise NotARecording(f"{path}: the recording is empty")
    return index, sha256


def _arrays_of(value: Any) -> set[str]:
    """Everything in the index that names an array: 64 hexadecimal digits, but for the hash of the source."""
    if isinstance(value, Mapping):
        return {name for key, item in value.items() if key != "source_sha256" for name in _arrays_of(item)}
    if isinstance(value, list):
        return {name for item in value for name in _arrays_of(item)}
    if isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef"):
        return {value}
    return set()

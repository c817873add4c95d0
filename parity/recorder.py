"""Writes down what a Keras model computes, in the Python in which the model lives.

This file stands alone: it imports NumPy, h5py and TensorFlow (2.8 or newer, with its Keras 2, with tf_keras or with
Keras 3) and nothing of the package that it comes with, and its syntax is that of Python 3.8. ``epibert record`` runs it
in another Python; it can as well be copied to another machine and run there::

    python recorder.py model.py:build --inputs inputs.npz --out recording.h5

``build`` returns the model. What else the file ``model.py`` may define:

* ``input_names``: names of the arrays in ``inputs.npz``, in the order in which the model takes them;
* ``constants(model)``: {name: array} of what the model computes with and no variable holds.

The form of a recording is that of ``SCHEMA``: ``index``, a JSON text, names everything; arrays are datasets below
``arrays``, each by the SHA-256 of its dtype, shape and bytes, so that equal ones are stored once and none can change
unnoticed. The attribute ``sha256`` of the file is the hash of ``index``, which holds the hashes of all arrays.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import platform
import sys
import zipfile
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence

import h5py
import numpy as np

SCHEMA = 1
POLICIES = {"float64": "float64", "float32": "float32", "bfloat16": "mixed_bfloat16"}
"""Keras' dtype policy of each precision, the most precise first."""

MODES = ("evaluation", "training")
STEPS = 3
LOOKS = 16
"""More inputs on which a ratio of errors is measured again that is too large on the given ones."""

SHUFFLED = "shuffled {draw}"
"""Name of those inputs."""

STEP_SIZE = 1e-2
"""Length of the first step of gradient descent, as a share of the length of all weights."""

SAME_PROGRAM = 1e-9
"""Largest relative difference between two runs of one program in one precision, float32 or better."""

_BOOKKEEPING = ("_self_", "_obj_reference", "_metrics", "_compiled", "_layers", "_call_", "_saved_model", "_functional")
_WITH_ACTIVATION = ("Dense", "Conv", "DepthwiseConv", "EinsumDense")
_SYMBOLIC = "it is called inside a graph, where it has no values"
_PART = "a part of {owner}, which is recorded as one layer"


class RecordingError(ValueError):
    """A model, inputs or a place to write to that cannot be used, in one line for the user."""


# --- Keras, whichever it is -------------------------------------------------------------------------------------------


def keras_of(model: Any) -> Any:
    """The Keras module that a model belongs to: ``tf_keras`` or ``keras``.

    Raises:
        RecordingError: It is no Keras model.
    """
    for cls in type(model).__mro__:
        package = cls.__module__.partition(".")[0]
        if cls.__name__ == "Model" and package in ("keras", "tf_keras"):
            return importlib.import_module(package)
    raise RecordingError(f"what the function returns is no Keras model but a {type(model).__name__}")


def is_keras_3(keras: Any) -> bool:
    """Whether this is the Keras that has left TensorFlow."""
    return int(keras.__version__.partition(".")[0]) >= 3


def class_names(layer: Any) -> list[str]:
    """Names of Keras' own classes that a layer is an instance of, the most special first."""
    classes = type(layer).__mro__
    return [cls.__name__ for cls in classes if cls.__module__.partition(".")[0] in ("keras", "tf_keras")]


def _is_layer(value: Any) -> bool:
    return not isinstance(value, type) and "Layer" in class_names(value)


def _is_functional(layer: Any) -> bool:
    return bool(getattr(layer, "_is_graph_network", False)) or "Functional" in class_names(layer)


def layers_by_path(model: Any) -> dict[str, Any]:
    """Every layer by its attribute path from the model, which is the empty path.

    Children of a Sequential go by index, of a functional model by name, of other layers by attribute. A layer reachable
    in several ways has the path that is found first.
    """
    found = {"": model}
    seen = {id(model)}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                visit(f"{prefix}/{index}", item)
        elif isinstance(value, Mapping):
            for key, item in value.items():
                visit(f"{prefix}/{key}", item)
        elif _is_layer(value) and id(value) not in seen:
            seen.add(id(value))
            found[prefix] = value
            descend(prefix, value)

    def descend(path: str, layer: Any) -> None:
        start = path + "/" if path else ""
        if "Sequential" in class_names(layer):
            for index, child in enumerate(layer.layers):
                visit(f"{start}{index}", child)
        elif _is_functional(layer):
            for child in layer.layers:
                visit(start + child.name, child)
        else:
            for name, value in vars(layer).items():
                if not name.startswith(_BOOKKEEPING):
                    visit(start + name, value)
            for child in layer._flatten_layers(recursive=False, include_self=False):
                visit(start + child.name, child)

    descend("", model)
    return found


def own_variables(path: str, layer: Any) -> list[tuple[str, Any, bool]]:
    """(full name, variable, trainable) of a layer's own variables; a name given twice gets a number."""
    new = "_trainable_variables"
    trainable = getattr(layer, new) if hasattr(layer, new) else layer._trainable_weights
    fixed = layer._non_trainable_variables if hasattr(layer, new) else layer._non_trainable_weights
    found: dict[str, tuple[Any, bool]] = {}
    for variables, flag in ((trainable, True), (fixed, False)):
        for variable in variables:
            short = variable.name.rpartition("/")[2].partition(":")[0]
            name = path + "/" + short if path else short
            earlier = sum(1 for key in found if key == name or key.startswith(name + "@"))
            found[f"{name}@{earlier}" if earlier else name] = (variable, flag)
    return [(key, variable, flag) for key, (variable, flag) in found.items()]


def model_variables(model: Any) -> list[tuple[str, Any, bool]]:
    """(full name, variable, trainable) of all variables of a model."""
    return [row for path, layer in layers_by_path(model).items() for row in own_variables(path, layer)]


def describe_layer(path: str, layer: Any) -> dict[str, Any]:
    """What has to be known of a layer to find its counterpart in another framework, as plain data."""
    classes = class_names(layer)
    activation = getattr(layer, "activation", None)
    linear = activation is None or getattr(activation, "__name__", "") == "linear"
    symbol = getattr(layer, "symbol", None)
    cell = getattr(layer, "cell", None)
    description = {
        "path": path,
        "class": type(layer).__name__,
        "classes": classes,
        "activation": "" if linear else getattr(activation, "__name__", type(activation).__name__),
        "keys": _keys(path, layer),
        "cell_keys": _keys(path + "/cell", cell) if _is_layer(cell) else {},
    }
    if symbol is not None or type(layer).__name__ == "TFOpLambda":
        description["symbol"] = str(layer.name if symbol is None else symbol)
    for name in ("rank", "rate", "equation", "reset_after"):
        value = getattr(layer, name, None)
        if isinstance(value, (bool, int, float, str)):
            description[name] = value
    return description


def _keys(path: str, layer: Any) -> dict[str, str]:
    return {key.rpartition("/")[2]: key for key, _, _ in own_variables(path, layer)}


def _numpy(variable: Any) -> np.ndarray:
    value = variable.numpy()
    # NumPy itself has no bfloat16; float32 holds every value of it.
    return np.asarray(value, dtype=np.float32) if value.dtype.kind == "V" or "bfloat16" in str(value.dtype) else value


# --- the file ---------------------------------------------------------------------------------------------------------


class Store:
    """Arrays in a file, each once.

    Args:
        file: HDF5 file, open for writing.
    """

    def __init__(self, file: Any) -> None:
        self.file = file
        self.group = file.create_group("arrays")

    def put(self, array: Any) -> str:
        """Stores an array and returns its hash."""
        values = np.asarray(array)
        name = hash_array(values)
        if name not in self.group:
            packed = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if values.ndim else {}
            self.group.create_dataset(name, data=values, **packed)
        return name

    def get(self, name: str) -> np.ndarray:
        """A stored array."""
        return np.asarray(self.group[name][()])


def hash_array(array: np.ndarray) -> str:
    """SHA-256 of an array's dtype, shape and bytes, in little-endian order."""
    values = np.asarray(array)
    values = values.astype(values.dtype.newbyteorder("<"), copy=False)
    digest = hashlib.sha256(f"{values.dtype.str}{list(values.shape)}".encode())
    digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


# --- one pass ---------------------------------------------------------------------------------------------------------


def flatten(structure: Any) -> list[Any]:
    """Tensors of nested tuples, lists and mappings, in the order in which they stand there."""
    import tensorflow as tf

    if tf.is_tensor(structure):
        return [structure]
    if isinstance(structure, Mapping):
        return [leaf for item in structure.values() for leaf in flatten(item)]
    if isinstance(structure, (list, tuple)):
        return [leaf for item in structure for leaf in flatten(item)]
    return []


def replace(structure: Any, substitutes: list[Any]) -> Any:
    """The same structure with its tensors taken from ``substitutes``, which is emptied from the front."""
    import tensorflow as tf

    if tf.is_tensor(structure):
        return substitutes.pop(0)
    if isinstance(structure, Mapping):
        items = {key: replace(item, substitutes) for key, item in structure.items()}
        # Results with named fields that are read by position as well.
        return type(structure)(**items) if hasattr(structure, "__dataclass_fields__") else items
    if isinstance(structure, tuple) and hasattr(structure, "_fields"):
        return type(structure)(*[replace(item, substitutes) for item in structure])
    if isinstance(structure, (list, tuple)):
        return type(structure)([replace(item, substitutes) for item in structure])
    return structure


class Watch:
    """All layers of a model, watched during one pass; what they compute goes to a store as it appears.

    Args:
        layers: {path: layer}.
        store: Where arrays go.
        truth: {(path, index): call} of a more precise pass. With it every layer gets that pass' inputs, and what it
            returns is replaced by that pass' outputs after it was recorded: each layer is read by itself.
    """

    def __init__(self, layers: Mapping[str, Any], store: Store, truth: Mapping[Any, Any] | None = None) -> None:
        self.layers, self.store, self.truth = layers, store, truth
        self.calls: dict[tuple[str, int], dict[str, Any]] = {}
        self.unwatched: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._began = 0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Watch]:
        """Puts every layer's ``call``, and its own activation, under watch for a while."""
        undo: list[tuple[Any, str, Any]] = []
        try:
            for path, layer in self.layers.items():
                waiting: list[dict[str, Any]] = []
                if _has_own_activation(layer):
                    self._set(undo, layer, "activation", self._activation(layer.activation, waiting))
                self._set(undo, layer, "call", self._call(path, layer.call, waiting))
            yield self
        finally:
            for layer, name, own in reversed(undo):
                if own is None:
                    del vars(layer)[name]
                else:
                    vars(layer)[name] = own

    @staticmethod
    def _set(undo: list[tuple[Any, str, Any]], layer: Any, name: str, value: Any) -> None:
        # Keras looks both up on the instance; writing to its dictionary avoids its tracking of attributes.
        undo.append((layer, name, vars(layer).get(name)))
        vars(layer)[name] = value

    def _call(self, path: str, call: Callable[..., Any], waiting: list[dict[str, Any]]) -> Callable[..., Any]:
        import tensorflow as tf

        def watched(*args: Any, **kwargs: Any) -> Any:
            given = flatten((args, kwargs))
            if not tf.executing_eagerly():
                self.unwatched[path] = _SYMBOLIC
                return call(*args, **kwargs)
            index = self._counts.get(path, 0)
            self._counts[path] = index + 1
            order, self._began = self._began, self._began + 1
            recorded = {"path": path, "index": index, "order": order, "inputs": self._put(given)}
            truth = None if self.truth is None else self.truth.get((path, index))
            if truth is not None:
                args, kwargs = replace((args, kwargs), self._fed(path, truth["inputs"], given))
            waiting.append({"truth": truth})
            result = call(*args, **kwargs)
            activation = waiting.pop()
            returned = flatten(result)
            recorded["outputs"] = self._put(returned)
            if "inputs" in activation:
                recorded["activation"] = {name: activation[name] for name in ("inputs", "outputs")}
            self.calls[path, index] = recorded
            return result if truth is None else replace(result, self._fed(path, truth["outputs"], returned))

        return watched

    def _activation(self, activation: Callable[..., Any], waiting: list[dict[str, Any]]) -> Callable[..., Any]:
        """Also read as a layer of its own: what the layer hands to it, and what it makes of the truth's."""

        def watched(x: Any) -> Any:
            y = activation(x)
            if waiting:
                truth = waiting[-1]["truth"]
                fed = y if truth is None else activation(self._fed("", truth["activation"]["inputs"], [x])[0])
                waiting[-1].update(inputs=self._put([x]), outputs=self._put([fed]))
            return y

        return watched

    def _put(self, tensors: Sequence[Any]) -> list[str]:
        import tensorflow as tf

        if any(tensor.dtype.is_complex for tensor in tensors):
            raise RecordingError("complex activations cannot be compared: let the layer return both parts")
        return [
            self.store.put((tf.cast(tensor, tf.float32) if tensor.dtype == tf.bfloat16 else tensor).numpy())
            for tensor in tensors
        ]

    def _fed(self, path: str, names: Sequence[str], like: Sequence[Any]) -> list[Any]:
        import tensorflow as tf

        if len(names) != len(like):
            raise RecordingError("{}: takes or returns other tensors in another precision".format(path or "the model"))
        return [tf.cast(tf.constant(self.store.get(name)), like[place].dtype) for place, name in enumerate(names)]


def _has_own_activation(layer: Any) -> bool:
    """Whether it ends with a function that is no layer: an activation that is one is watched as such."""
    activation = getattr(layer, "activation", None)
    if activation is None or getattr(activation, "__name__", "") == "linear" or _is_layer(activation):
        return False
    return any(name.startswith(_WITH_ACTIVATION) for name in class_names(layer))


@contextlib.contextmanager
def kept(model: Any, layers: Mapping[str, Any]) -> Iterator[None]:
    """No dropout for a while, and afterwards the variables as they were."""
    values = [(variable, variable.numpy()) for _, variable, _ in model_variables(model)]
    rates = [
        (part, name, getattr(part, name))
        for layer in layers.values()
        for part, names in ((layer, ("rate",)), (getattr(layer, "cell", None), ("dropout", "recurrent_dropout")))
        for name in names
        if part is not None
        and isinstance(getattr(part, name, None), (int, float))
        and (name != "rate" or any("Dropout" in known for known in class_names(layer)))
    ]
    for part, name, _ in rates:
        vars(part)[name] = 0.0
    try:
        yield
    finally:
        for part, name, rate in rates:
            vars(part)[name] = rate
        for variable, value in values:
            variable.assign(value)


# --- the recording ----------------------------------------------------------------------------------------------------


class Recorder:
    """Records a model.

    Args:
        models: {precision: the model in it}, the most precise first.
        inputs: The models' arguments, batch first.
        store: Where arrays go.
        say: Told what is going on.
        looks: On how many more inputs, the same numbers in other orders, to record what is measured again.
    """

    def __init__(
        self,
        models: Mapping[str, Any],
        inputs: Sequence[np.ndarray],
        store: Store,
        say: Callable[[str], None],
        looks: int = 0,
    ) -> None:
        self.models, self.store, self.say = models, store, say
        self.shuffled = [SHUFFLED.format(draw=draw) for draw in range(1, 1 + looks)]
        self.inputs = {"given": list(inputs), "turned": [turned(array) for array in inputs]}
        self.inputs.update(
            {name: [shuffled(array, draw) for array in inputs] for draw, name in enumerate(self.shuffled, 1)}
        )
        self.first = next(iter(models))
        self.layers: dict[str, dict[str, Any]] = {}
        self.hidden: dict[str, str] = {}
        for precision, model in models.items():
            found = layers_by_path(model)
            if precision == self.first:
                owners = [path for path, layer in found.items() if path and "RNN" in class_names(layer)]
                self.hidden = {
                    path: _PART.format(owner=owner)
                    for owner in owners
                    for path in found
                    if path.startswith(owner + "/")
                }
            self.layers[precision] = {path: layer for path, layer in found.items() if path not in self.hidden}
        self.not_recorded: list[dict[str, str]] = []
        self.passes: list[dict[str, Any]] = []
        self.graphs: list[dict[str, Any]] = []

    def leave_out(self, name: str, reason: str) -> None:
        """Notes what the recording does not hold."""
        self.not_recorded.append({"name": name, "reason": reason})

    def tensors(self, precision: str, which: str = "given") -> Any:
        """The arguments of a call."""
        import tensorflow as tf

        dtype = "bfloat16" if precision == "bfloat16" else precision
        tensors = [tf.constant(array) for array in self.inputs[which]]
        tensors = [tf.cast(tensor, dtype) if tensor.dtype.is_floating else tensor for tensor in tensors]
        return tensors[0] if len(tensors) == 1 else tuple(tensors)

    def run(self, modes: Sequence[str]) -> None:
        """All passes, in every precision."""
        for precision in self.models:
            # Unwatched: a Sequential of Keras 2 that was built for a batch of another size first calls its layers
            # inside a graph, for their shapes.
            self.outputs(precision, training=False)
        for mode in modes:
            if mode == "training" and not self._repeats():
                continue
            for which in ["given", *self.shuffled]:
                truth = self._pass(self.first, mode, "accumulated", which=which)
                for precision in self.models:
                    if precision != self.first:
                        self._pass(precision, mode, "accumulated", which=which)
                        self._pass(precision, mode, "isolated", which=which, truth=truth)
                        self._graph(precision, mode, which)
        self._pass(self.first, modes[0], "accumulated", which="turned")

    def _pass(
        self, precision: str, mode: str, reading: str, *, which: str = "given", truth: Mapping[Any, Any] | None = None
    ) -> Mapping[Any, Any]:
        self.say(f"recording {precision} {mode} {reading}, {which} inputs")
        model, layers = self.models[precision], self.layers[precision]
        watch = Watch(layers, self.store, truth)
        with kept(model, layers), watch():
            model(self.tensors(precision, which), training=mode == "training")
            state = {path: self._statistics(path, layer) for path, layer in layers.items()}
        for path, reason in watch.unwatched.items():
            if path not in self.hidden:
                self.hidden[path] = reason
        calls = sorted(watch.calls.values(), key=lambda call: call["order"])
        about = {"inputs": which, "precision": precision, "mode": mode, "reading": reading}
        self.passes.append({**about, "calls": calls, "state": {path: own for path, own in state.items() if own}})
        return watch.calls

    def _statistics(self, path: str, layer: Any) -> dict[str, str]:
        """A layer's own variables that a pass may change."""
        fixed = [(key, variable) for key, variable, trainable in own_variables(path, layer) if not trainable]
        return {key.rpartition("/")[2]: self.store.put(_numpy(variable)) for key, variable in fixed}

    def _graph(self, precision: str, mode: str, which: str) -> None:
        """The final output of the same pass as a ``tf.function``."""
        import tensorflow as tf

        model = self.models[precision]
        function = tf.function(tf.autograph.experimental.do_not_convert(model), autograph=False)
        with kept(model, self.layers[precision]):
            outputs = flatten(function(self.tensors(precision, which), training=mode == "training"))
        about = {"inputs": which, "precision": precision, "mode": mode}
        self.graphs.append({**about, "outputs": [self.store.put(_numpy(output)) for output in outputs]})

    def _repeats(self) -> bool:
        """Whether a pass in training mode computes the same twice, with dropout off."""
        runs = [self.outputs(self.first, training=True) for _ in range(2)]
        for index, output in enumerate(runs[0]):
            if float(np.max(np.abs(output - runs[1][index]), initial=0.0)) > SAME_PROGRAM * _size(output):
                self.leave_out("mode training", "with dropout off the model still draws random numbers there")
                return False
        return True

    def outputs(self, precision: str, *, training: bool) -> list[np.ndarray]:
        """The final outputs of an unwatched pass."""
        model = self.models[precision]
        with kept(model, self.layers[precision]):
            return [_numpy(tensor) for tensor in flatten(model(self.tensors(precision), training=training))]

    def training(self, steps: int, *, training: bool) -> dict[str, Any] | None:
        """Gradients and plain gradient descent of a loss that needs no targets: outputs weighted by drawn numbers.

        The loss is the sum over all floating outputs of the mean of output times weight. It is that of no user, but its
        gradients pass through every layer, and what is right for drawn weights is right for any loss.
        """
        import tensorflow as tf

        model, generator = self.models[self.first], np.random.RandomState(0)
        rows = [row for row in model_variables(model) if row[2]]
        variables = [variable for _, variable, _ in rows]
        weights: list[np.ndarray] = []

        def loss_of(tensors: Any) -> Any:
            outputs = [output for output in flatten(model(tensors, training=training)) if output.dtype.is_floating]
            for output in outputs[len(weights) :]:
                weights.append(generator.standard_normal(tuple(output.shape)))
            return tf.add_n(
                [tf.reduce_mean(output * tf.cast(weights[place], output.dtype)) for place, output in enumerate(outputs)]
            )

        def gradients_of(tensors: Any) -> tuple[Any, list[Any], list[Any]]:
            parts = tensors if isinstance(tensors, tuple) else (tensors,)
            floating = [part for part in parts if part.dtype.is_floating]
            with tf.GradientTape() as tape:
                tape.watch(floating)
                loss = loss_of(tensors)
            values = [_plain(variable) for variable in variables]
            found = tape.gradient(loss, [*values, *floating])
            dense = [None if gradient is None else tf.convert_to_tensor(gradient) for gradient in found]
            return loss, dense[: len(values)], dense[len(values) :]

        def put(gradients: Sequence[Any]) -> list[str | None]:
            return [None if gradient is None else self.store.put(_numpy(gradient)) for gradient in gradients]

        self.say(f"recording gradients and {steps} steps")
        with kept(model, self.layers[self.first]):
            loss, gradients, of_inputs = gradients_of(self.tensors(self.first))
            if not weights or all(gradient is None for gradient in gradients):
                self.leave_out("gradients and steps", "no output of the model depends on a trainable variable")
                return None
            found = put(gradients)
            names = [key for key, _, _ in rows]
            record = {
                "precision": self.first,
                "mode": "training" if training else "evaluation",
                "loss_weights": [self.store.put(weight) for weight in weights],
                "loss": float(loss),
                "gradients": {key: found[place] for place, key in enumerate(names)},
                "input_gradients": put(of_inputs),
                "losses": [],
            }
        with kept(model, self.layers[self.first]):
            length = np.sqrt(sum(float(np.sum(np.square(_numpy(variable)))) for variable in variables))
            slope = np.sqrt(sum(float(np.sum(np.square(_numpy(g)))) for g in gradients if g is not None))
            record["rate"] = rate = float(STEP_SIZE * length / slope) if slope else 0.0
            for step in range(steps):
                which = "turned" if step % 2 else "given"
                loss, gradients, _ = gradients_of(self.tensors(self.first, which))
                record["losses"].append(float(loss))
                for place, variable in enumerate(variables):
                    if gradients[place] is not None:
                        variable.assign(variable.numpy() - rate * gradients[place].numpy())
            record["weights_after"] = {
                key: self.store.put(_numpy(variable)) for key, variable, _ in model_variables(model)
            }
        return record


def _plain(variable: Any) -> Any:
    """TensorFlow's own variable; that of Keras 3 is a wrapper of it."""
    return getattr(variable, "value", variable) if not callable(getattr(variable, "value", None)) else variable


def _size(array: np.ndarray) -> float:
    return float(np.max(np.abs(array), initial=0.0)) or 1.0


def turned(array: np.ndarray) -> np.ndarray:
    """Other inputs than the given, of the same kind: examples in reverse order, the longest axis turned by one."""
    reversed_examples = array[::-1]
    if array.ndim < 2:
        return reversed_examples
    return np.roll(reversed_examples, 1, axis=1 + int(np.argmax(array.shape[1:])))


def shuffled(array: np.ndarray, draw: int) -> np.ndarray:
    """The same numbers in another order, that of a draw: along the longest axis, arrays of one length alike."""
    if array.ndim < 2:
        return array
    axis = 1 + int(np.argmax(array.shape[1:]))
    length = array.shape[axis]
    return np.take(array, np.random.default_rng((draw, length)).permutation(length), axis=axis)


# --- the same model in another precision ------------------------------------------------------------------------------


class Factory:
    """Makes a model, in whatever precision is asked for.

    Args:
        place: ``file.py:function``.
        arguments: Keyword arguments of the function.
        inputs: What the model is called with once, where it builds its weights in the first call.

    Raises:
        RecordingError: There is no such file or function, or it fails.
    """

    def __init__(self, place: str, arguments: Mapping[str, Any], inputs: Mapping[str, np.ndarray]) -> None:
        file, colon, name = place.rpartition(":")
        if not colon or not file or not name:
            raise RecordingError(f"{place}: expected file.py:function")
        self.path = Path(file)
        if not self.path.is_file():
            raise RecordingError(f"{file}: no such file")
        specification = importlib.util.spec_from_file_location("model_to_record", str(self.path))
        if specification is None or specification.loader is None:
            raise RecordingError(f"{file}: no Python file")
        sys.path.insert(0, str(self.path.resolve().parent))
        self.module = importlib.util.module_from_spec(specification)
        sys.modules["model_to_record"] = self.module
        with _reported(file):
            specification.loader.exec_module(self.module)
        function = getattr(self.module, name, None)
        if not callable(function):
            raise RecordingError(f"{file} has no function {name}")
        self.function: Callable[..., Any] = function
        self.place, self.arguments = place, arguments
        self.model = self._make()
        self.keras = keras_of(self.model)
        self.inputs = self._ordered(inputs)
        self._build(self.model)

    def _make(self) -> Any:
        import tensorflow as tf

        # A model that draws its weights draws the same in every run; where TensorFlow must be deterministic, none can
        # be drawn without a seed.
        tf.random.set_seed(0)
        with _reported(self.place):
            return self.function(**self.arguments)

    def _ordered(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        names = getattr(self.module, "input_names", None)
        if names is None and (_is_functional(self.model) or getattr(self.model, "input_names", None)):
            names = getattr(self.model, "input_names", None) or [tensor.name for tensor in self.model.inputs]
        numbered = [f"arr_{place}" for place in range(len(inputs))]
        if names is None or list(inputs) == numbered:
            if names is not None and len(names) != len(inputs):
                raise RecordingError(f"the model takes {len(names)} inputs, {len(inputs)} are given")
            return list(inputs.values())
        missing = [name for name in names if name not in inputs]
        unknown = [name for name in inputs if name not in names]
        if missing or unknown:
            raise RecordingError(
                "the model takes the inputs {}; given are {}".format(", ".join(names), ", ".join(inputs) or "none")
            )
        return [inputs[name] for name in names]

    def _build(self, model: Any) -> None:
        if not getattr(model, "built", False) or not model_variables(model):
            import tensorflow as tf

            with _reported(self.place):
                tensors = [tf.constant(array) for array in self.inputs]
                dtype = self._compute_dtype(model)
                tensors = [tf.cast(tensor, dtype) if tensor.dtype.is_floating else tensor for tensor in tensors]
                model(tensors[0] if len(tensors) == 1 else tuple(tensors), training=False)

    @staticmethod
    def _compute_dtype(model: Any) -> str:
        return str(model.compute_dtype)

    @property
    def precision(self) -> str:
        """The precision that the model has by itself."""
        return self._compute_dtype(self.model)

    def models(self, precisions: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
        """The model in each precision that can be had, the most precise first; why the others cannot.

        A functional or sequential model is rebuilt from its configuration. Any other is made anew by its function,
        under Keras' policy of that precision, and given the first one's weights.
        """
        found: dict[str, Any] = {}
        absent: dict[str, str] = {}
        for precision in [name for name in POLICIES if name in precisions]:
            if precision == self.precision:
                found[precision] = self.model
                continue
            model, reason = self._rebuilt(precision)
            if model is None:
                made, again = self._remade(precision)
                model, reason = made, again if reason == "" else f"{reason}; {again}"
            if model is None:
                absent[precision] = reason
            else:
                found[precision] = model
        return found, absent

    def _rebuilt(self, precision: str) -> tuple[Any, str]:
        if not (_is_functional(self.model) or "Sequential" in class_names(self.model)):
            return None, ""
        try:
            model = type(self.model).from_config(_with_policy(self.model.get_config(), POLICIES[precision]))
            if hasattr(model, "_set_dtype_policy"):
                # The configuration of a whole model has no dtype; inputs are cast to the one that it ends up with.
                model._set_dtype_policy(POLICIES[precision])
            if not model.built:
                model.build(self.model.input_shape)
            model.set_weights(self.model.get_weights())
        except (TypeError, ValueError) as error:
            return None, f"Keras cannot rebuild this model: {_one_line(error)}"
        return self._checked(model, precision)

    def _remade(self, precision: str) -> tuple[Any, str]:
        policies = self.keras.config if is_keras_3(self.keras) else self.keras.mixed_precision
        get, put = (
            (policies.dtype_policy, policies.set_dtype_policy)
            if is_keras_3(self.keras)
            else (policies.global_policy, policies.set_global_policy)
        )
        before = get()
        try:
            put(POLICIES[precision])
            model = self._make()
            if self._compute_dtype(model) != precision:
                return (
                    None,
                    f"made under the policy {POLICIES[precision]}, it still computes in {self._compute_dtype(model)}",
                )
            self._build(model)
            model.set_weights(self.model.get_weights())
        except Exception as error:  # noqa: BLE001  whatever the model's own code raises says why it cannot be had
            return None, _one_line(error)
        finally:
            put(before)
        return self._checked(model, precision)

    def _checked(self, model: Any, precision: str) -> tuple[Any, str]:
        """The model, if it has the very weights of the given one."""
        rows, others = model_variables(self.model), model_variables(model)
        if [key for key, _, _ in rows] != [key for key, _, _ in others]:
            return None, f"in {precision} its variables have other names"
        for place, (key, variable, _) in enumerate(rows):
            value, other = _numpy(variable), _numpy(others[place][1])
            narrow = np.float64 if "float64" in (str(value.dtype), str(other.dtype)) else np.float32
            if value.shape != other.shape or not np.array_equal(value.astype(other.dtype).astype(narrow), other):
                return None, f"in {precision} the variable {key} has other values"
        return model, ""

    def constants(self) -> dict[str, np.ndarray]:
        """What the model computes with and no variable holds, as its file tells."""
        function = getattr(self.module, "constants", None)
        if function is None:
            return {}
        with _reported(self.place):
            return {str(name): np.asarray(value) for name, value in function(self.model).items()}


def _with_policy(config: Any, policy: str) -> Any:
    """A Keras configuration with every floating dtype replaced."""
    if isinstance(config, Mapping):
        if config.get("class_name") == "InputLayer":
            # An input has a plain dtype; that of the variables, as under a policy set by Keras.
            policy = policy.replace("mixed_bfloat16", "float32")
        return {
            key: policy
            if key == "dtype" and (isinstance(value, Mapping) or (isinstance(value, str) and "float" in value))
            else _with_policy(value, policy)
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)):
        return type(config)([_with_policy(item, policy) for item in config])
    return config


@contextlib.contextmanager
def _reported(place: str) -> Iterator[None]:
    """Whatever the user's own code raises, in one line."""
    try:
        yield
    except RecordingError:
        raise
    except Exception as error:
        raise RecordingError(f"{place}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return "{}: {}".format(type(error).__name__, " ".join(str(error).split())[:400])


# --- the whole --------------------------------------------------------------------------------------------------------


def read_inputs(path: str) -> dict[str, np.ndarray]:
    """Arrays of an ``.npz`` file, in its order.

    Raises:
        RecordingError: There is none, or an array is no batch of numbers.
    """
    if Path(path).is_file() and not zipfile.is_zipfile(path):
        raise RecordingError(f"the inputs {path} cannot be read: it is no .npz file")
    try:
        with np.load(path, allow_pickle=False) as file:
            inputs = {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, EOFError) as error:
        raise RecordingError(f"the inputs {path} cannot be read: {_one_line(error)}") from None
    for name, array in inputs.items():
        if array.ndim == 0 or array.size == 0 or array.dtype.kind not in "fiub":
            raise RecordingError(f"the input {name} of {path} is no batch of numbers")
    if not inputs:
        raise RecordingError(f"{path} holds no arrays")
    return inputs


def describe_environment(keras: Any) -> dict[str, Any]:
    """What a recording was made with."""
    import tensorflow as tf

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "keras_package": keras.__name__,
        "numpy": np.__version__,
        "h5py": h5py.__version__,
        "gpus": [device.name for device in tf.config.list_physical_devices("GPU")],
    }


def record(
    place: str,
    inputs: str,
    out: str,
    *,
    precisions: Sequence[str] = ("float64", "float32"),
    modes: Sequence[str] = MODES,
    steps: int = STEPS,
    looks: int = 0,
    arguments: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> str:
    """Records a model.

    Args:
        place: ``file.py:function``, which returns the model.
        inputs: ``.npz`` file with the model's arguments.
        out: File to write.
        precisions: In which to record, of ``POLICIES``; those that cannot be had are named in the recording.
        modes: ``evaluation``, or that and ``training``.
        steps: Number of training steps.
        looks: On how many more inputs to record all passes but the gradients'; a ratio of errors that is too large by
            chance asks for ``LOOKS``.
        arguments: Keyword arguments of the function.
        say: Told what is going on.

    Returns:
        The recording's hash.

    Raises:
        RecordingError: The model, the inputs or the place to write to cannot be used.
    """
    arrays = read_inputs(inputs)
    factory = Factory(place, arguments or {}, arrays)
    models, absent = factory.models(precisions)
    if not models:
        raise RecordingError("the model can be had in none of the precisions: {}".format("; ".join(absent.values())))
    say("the model is there in {}".format(", ".join(models)))
    target = Path(out)
    scratch = target.with_name(".writing-" + target.name)
    try:
        file = h5py.File(str(scratch), "w")
    except OSError as error:
        raise RecordingError(f"cannot write to {out}: {_one_line(error)}") from None
    try:
        with file:
            digest = _write(file, factory, models, absent, precisions, modes, steps, looks, say)
        scratch.replace(target)
    finally:
        if scratch.exists():
            scratch.unlink()
    return digest


def _write(
    file: Any,
    factory: Factory,
    models: Mapping[str, Any],
    absent: Mapping[str, str],
    precisions: Sequence[str],
    modes: Sequence[str],
    steps: int,
    looks: int,
    say: Callable[[str], None],
) -> str:
    store = Store(file)
    recorder = Recorder(models, factory.inputs, store, say, looks)
    for precision in POLICIES:
        if precision not in models:
            recorder.leave_out("precision " + precision, absent.get(precision, "not asked for"))
    for mode in MODES:
        if mode not in modes:
            recorder.leave_out("mode " + mode, "not asked for")
    ordered = [mode for mode in MODES if mode in modes]
    with _reported(factory.place):
        recorder.run(ordered)
        both = any(row["mode"] == "training" for row in recorder.passes)
        training = recorder.training(steps, training=both) if steps else None
        given = Recorder({factory.precision: factory.model}, factory.inputs, store, say)
        outputs = given.outputs(factory.precision, training=False)
    if not steps:
        recorder.leave_out("gradients and steps", "not asked for")
    first = models[recorder.first]
    index = {
        "schema": SCHEMA,
        "model": {"name": str(first.name), "class": type(first).__name__, "function": factory.place.rpartition(":")[2]},
        "arguments": dict(factory.arguments),
        "source_sha256": hashlib.sha256(factory.path.read_bytes()).hexdigest(),
        "environment": describe_environment(factory.keras),
        "precisions": list(models),
        "layers": [describe_layer(path, layer) for path, layer in layers_by_path(first).items()],
        "hidden": recorder.hidden,
        "weights": [
            {"key": key, "array": store.put(_numpy(variable)), "trainable": trainable}
            for key, variable, trainable in model_variables(factory.model)
        ],
        "constants": {name: store.put(value) for name, value in factory.constants().items()},
        "inputs": {which: [store.put(array) for array in arrays] for which, arrays in recorder.inputs.items()},
        "passes": recorder.passes,
        "graphs": recorder.graphs,
        "given": {"precision": factory.precision, "outputs": [store.put(array) for array in outputs]},
        "training": training,
        "not_recorded": recorder.not_recorded,
    }
    text = json.dumps(index, sort_keys=True, allow_nan=False)
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
    file.create_dataset("index", data=np.frombuffer(text.encode("utf-8"), dtype=np.uint8), compression="gzip")
    file.attrs["schema"] = SCHEMA
    file.attrs["sha256"] = digest
    return digest


def main(given: Sequence[str] | None = None) -> int:
    """The command line; exit status 0: recorded, 2: wrong use or bad input, with one line that says what."""
    parser = argparse.ArgumentParser(prog="recorder", description="Records what a Keras model computes.")
    parser.add_argument("model", help="file.py:function, which returns the model")
    parser.add_argument("--inputs", required=True, help=".npz file with the model's arguments, batch first")
    parser.add_argument("--out", required=True, help="file to write, .h5")
    parser.add_argument("--precisions", default="float64,float32", help="of float64, float32, bfloat16")
    parser.add_argument("--modes", default=",".join(MODES), help="evaluation, or evaluation,training")
    parser.add_argument("--steps", type=int, default=STEPS, help="number of training steps")
    parser.add_argument("--looks", action="store_true", help=f"also record all passes on {LOOKS} more inputs")
    parser.add_argument("--arguments", help="JSON file with keyword arguments of the function")
    options = parser.parse_args(given)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # The folder of this file comes first otherwise, and may hold names that others mean something else by.
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [entry for entry in sys.path if str(Path(entry or ".").resolve()) != here] + [""]
    try:
        lists = {}
        for name, known in (("precisions", POLICIES), ("modes", MODES)):
            lists[name] = [part for part in getattr(options, name).replace(",", " ").split() if part]
            if not lists[name] or set(lists[name]) - set(known):
                raise RecordingError("--{} takes some of {}".format(name, ", ".join(known)))
        if MODES[0] not in lists["modes"]:
            raise RecordingError(f"--modes must have {MODES[0]}, by which layers are paired")
        if options.steps < 0:
            raise RecordingError("--steps must not be negative")
        if importlib.util.find_spec("tensorflow") is None:
            raise RecordingError(f"there is no TensorFlow in {sys.executable}")
        arguments = _read_arguments(options.arguments)
        digest = record(
            options.model,
            options.inputs,
            options.out,
            steps=options.steps,
            looks=LOOKS if options.looks else 0,
            arguments=arguments,
            say=lambda text: print(text, flush=True),
            **lists,
        )
    except RecordingError as error:
        print(f"recorder: error: {error}", file=sys.stderr)
        return 2
    print(f"sha256 {digest}")
    return 0


def _read_arguments(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        arguments = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordingError(f"{path}: {_one_line(error)}") from None
    if not isinstance(arguments, dict):
        raise RecordingError(f"{path}: expected a JSON object")
    return arguments


if __name__ == "__main__":
    sys.exit(main())

"""Watching a Keras 2 model: its calls as a trace, fed freely or layer by layer.

TensorFlow is imported when a model is watched, not when this module is.
"""

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from parity.records import NotCompared
from parity.trace import Key, Readable, Recorder, Sample, Trace, flatten, replace

POLICIES = {"float64": "float64", "float32": "float32", "bfloat16": "mixed_bfloat16"}
"""Keras dtype policy of each precision, most precise first; bfloat16 computes with float32 variables."""

_BOOKKEEPING = ("_self_", "_obj_reference", "_metrics", "_compiled", "_layers", "_call_", "_saved_model")


class KerasSide:
    """The reference.

    Args:
        model: A built tf_keras model, in the precision that it computes in. It is left as it was found.
        ignored: Paths not to watch.
        split: Paths of layers whose own ``activation`` is watched as a layer beside them, ``PATH/activation``. What
            such a layer returns then counts as what it hands to its activation.
    """

    def __init__(self, model: Any, ignored: Mapping[str, str] | None = None, split: Collection[str] = ()) -> None:
        self.model = model
        self.dtype = model.compute_dtype
        self.layers = layers_by_path(model)
        self.split = frozenset(split)
        self.ignored = frozenset(ignored or {})
        self._graph: Any = None
        for path in ignored or {}:
            self.layers.pop(path, None)

    def trace(
        self,
        inputs: tuple[np.ndarray, ...],
        *,
        training: bool,
        truth: Readable | None = None,
        fed: frozenset[str] | None = None,
        graph: bool = False,
        recorder: Recorder | None = None,
    ) -> Trace:
        """One forward pass.

        Args:
            inputs: The model's arguments; several are passed as one tuple, as Keras wants it.
            training: Training mode, dropout off.
            truth: A trace of the same model in float64 to feed the layers with, as ``TorchSide.trace`` does.
            fed: Paths to feed; all when None.
            graph: Run as one ``tf.function``; only the final output is then recorded.
            recorder: What collects the calls, where not all of their arrays are to be kept.

        Returns:
            The trace. Exceptions are raised: the reference has to work.
        """
        import tensorflow as tf

        tensors = [tf.constant(array) for array in inputs]
        tensors = [tf.cast(tensor, self.dtype) if tensor.dtype.is_floating else tensor for tensor in tensors]
        recorder = Recorder() if recorder is None else recorder
        with contextlib.ExitStack() as stack:
            stack.enter_context(_kept_variables(self.model))
            stack.enter_context(_no_dropout(self.layers))
            if graph:
                key = recorder.begin("")
                arguments = tensors[0] if len(tensors) == 1 else tuple(tensors)
                # Made once: tracing it takes longer than many passes.
                self._graph = self._graph or as_graph(self.model)
                output = self._graph(arguments, training=training)
                recorder.end(key, (), _arrays(flatten(output, tf.is_tensor)))
            else:
                for path, layer in self.layers.items():
                    feed = truth if fed is None or path in fed else None
                    if path in self.split:
                        stack.enter_context(_watched_activation(path, layer, recorder, feed, self.ignored))
                    else:
                        stack.enter_context(_watched(path, layer, recorder, feed))
                self._call(tensors, training)
            return recorder.trace(self._state())

    def _call(self, tensors: list[Any], training: bool) -> Any:
        return self.model(tensors[0] if len(tensors) == 1 else tuple(tensors), training=training)

    def _state(self) -> dict[str, dict[str, np.ndarray]]:
        states = {}
        for path, layer in self.layers.items():
            own = {_short_name(variable): variable.numpy() for variable in layer._non_trainable_weights}
            if own:
                states[path] = {name: np.asarray(value, dtype=np.float64) for name, value in own.items()}
        return states


def as_graph(function: Callable[..., Any]) -> Callable[..., Any]:
    """A ``tf.function`` of what is graph operations already: AutoGraph would take most of the time to trace."""
    import tensorflow as tf

    return tf.function(tf.autograph.experimental.do_not_convert(function), autograph=False)


def layers_by_path(model: Any) -> dict[str, Any]:
    """Every layer by its attribute path from the model: ``conv_tower/0/1``; the model itself is the empty path.

    Children of a Sequential go by index, of a functional model by name, of other layers by attribute. A layer reachable
    in several ways has the path that is found first.
    """
    import tf_keras

    found: dict[str, Any] = {"": model}
    seen = {id(model)}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, tf_keras.layers.Layer):
            if id(value) not in seen:
                seen.add(id(value))
                found[prefix] = value
                descend(prefix, value)
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                visit(f"{prefix}/{index}", item)
        elif isinstance(value, Mapping):
            for key, item in value.items():
                visit(f"{prefix}/{key}", item)

    def descend(path: str, layer: Any) -> None:
        start = f"{path}/" if path else ""
        if isinstance(layer, tf_keras.Sequential):
            for index, child in enumerate(layer.layers):
                visit(f"{start}{index}", child)
        elif isinstance(layer, tf_keras.models.Model) and layer._is_graph_network:
            for child in layer.layers:
                visit(f"{start}{child.name}", child)
        else:
            for name, value in vars(layer).items():
                if not name.startswith(_BOOKKEEPING):
                    visit(f"{start}{name}", value)
            # What hides behind a name of Keras' own bookkeeping or in another container goes by its own name.
            for child in layer._flatten_layers(recursive=False, include_self=False):
                visit(f"{start}{child.name}", child)

    descend("", model)
    return found


@contextlib.contextmanager
def _kept_variables(model: Any) -> Iterator[None]:
    """Puts back what a training pass changes."""
    values = [(variable, variable.numpy()) for variable in model.non_trainable_variables]
    try:
        yield
    finally:
        for variable, value in values:
            variable.assign(value)


@contextlib.contextmanager
def _no_dropout(layers: Mapping[str, Any]) -> Iterator[None]:
    import tf_keras

    rates = [(layer, layer.rate) for layer in layers.values() if isinstance(layer, tf_keras.layers.Dropout)]
    for layer, _ in rates:
        layer.rate = 0.0
    try:
        yield
    finally:
        for layer, rate in rates:
            layer.rate = rate


@contextlib.contextmanager
def _watched(path: str, layer: Any, recorder: Recorder, truth: Readable | None) -> Iterator[None]:
    """Records every call of one layer and, with a truth, feeds it."""
    import tensorflow as tf

    call, own_call = layer.call, vars(layer).get("call")

    def watched_call(*args: Any, **kwargs: Any) -> Any:
        key, given, args, kwargs = _begun(path, args, kwargs, recorder, truth)
        result = call(*args, **kwargs)
        returned = flatten(result, tf.is_tensor)
        recorder.end(key, given, _arrays(returned, recorder.wide))
        return result if truth is None else replace(result, tf.is_tensor, _fed_outputs(truth, key, returned))

    # Layer.__call__ looks ``call`` up on the instance; writing to its dictionary avoids Keras' attribute tracking.
    vars(layer)["call"] = watched_call
    try:
        yield
    finally:
        if own_call is None:
            del vars(layer)["call"]
        else:
            vars(layer)["call"] = own_call


@contextlib.contextmanager
def _watched_activation(
    path: str, layer: Any, recorder: Recorder, truth: Readable | None, ignored: Collection[str]
) -> Iterator[None]:
    """As ``_watched``, the layer and its own activation as two."""
    call, own_call, activation = layer.call, vars(layer).get("call"), layer.activation
    waiting: list[tuple[Key, tuple[np.ndarray, ...]]] = []

    def watched_activation(x: Any) -> Any:
        key, given = waiting.pop()
        recorder.end(key, given, _arrays([x], recorder.wide))
        (x,) = [x] if truth is None else _fed_outputs(truth, key, [x])
        if activation_path(path) in ignored:
            return activation(x)
        # What it is given is the reference's already.
        key = recorder.begin(activation_path(path))
        given = _arrays([x], recorder.wide)
        recorder.enter(key, given)
        y = activation(x)
        recorder.end(key, given, _arrays([y], recorder.wide))
        return y if truth is None else _fed_outputs(truth, key, [y])[0]

    def watched_call(*args: Any, **kwargs: Any) -> Any:
        key, given, args, kwargs = _begun(path, args, kwargs, recorder, truth)
        waiting.append((key, given))
        result = call(*args, **kwargs)
        if waiting:
            raise ValueError(f"{path} does not call its activation, so it cannot be split from it")
        return result

    vars(layer)["call"], vars(layer)["activation"] = watched_call, watched_activation
    try:
        yield
    finally:
        vars(layer)["activation"] = activation
        if own_call is None:
            del vars(layer)["call"]
        else:
            vars(layer)["call"] = own_call


def _begun(
    path: str, args: tuple[Any, ...], kwargs: dict[str, Any], recorder: Recorder, truth: Readable | None
) -> tuple[Key, tuple[np.ndarray, ...], tuple[Any, ...], dict[str, Any]]:
    """(key, what the call was given, the arguments to go on with) of a call that begins."""
    import tensorflow as tf

    key = recorder.begin(path)
    given = flatten((args, kwargs), tf.is_tensor)
    arrays = _arrays(given, recorder.wide)
    recorder.enter(key, arrays)
    reference = None if truth is None else truth.entered(key)
    if reference is not None and reference.inputs is not None:
        fed = [_tensor(array, like) for array, like in zip(reference.inputs, given, strict=True)]
        args, kwargs = replace((args, kwargs), tf.is_tensor, fed)
    return key, arrays, args, kwargs


def activation_path(path: str) -> str:
    """Name of a layer's own activation where it is watched beside the layer."""
    return f"{path}/activation"


def _fed_outputs(truth: Readable, key: Key, returned: list[Any]) -> list[Any]:
    """What the call returned in the truth; what it returned itself where that has no such call."""
    reference = truth.left(key)
    if reference is None:
        return returned
    fed = [_tensor(array, like) for array, like in zip(reference.outputs, returned, strict=True)]
    truth.release(key)
    return fed


def _short_name(variable: Any) -> str:
    return variable.name.rpartition("/")[2].partition(":")[0]


def _arrays(tensors: list[Any], wide: bool = True) -> tuple[np.ndarray, ...]:
    """Tensors as float64 arrays; if not wide, as narrow as holds them exactly and without a copy where that can be."""
    import tensorflow as tf

    if any(tensor.dtype.is_complex for tensor in tensors):
        raise TypeError("complex activations cannot be compared: let the layer return real and imaginary part")
    if wide:
        return tuple(tf.cast(tensor, tf.float64).numpy() for tensor in tensors)
    # Tensors of TensorFlow never change, so a view of their memory will do.
    narrow = (tf.float64, tf.float32)
    return tuple(np.asarray(t if t.dtype in narrow else tf.cast(t, _exact_dtype(t))) for t in tensors)


def _exact_dtype(tensor: Any) -> Any:
    import tensorflow as tf

    return tf.float32 if tensor.dtype in (tf.bfloat16, tf.float16) else tf.float64


def _tensor(array: np.ndarray | Sample, like: Any) -> Any:
    import tensorflow as tf

    if isinstance(array, Sample):
        raise TypeError("a sample cannot feed a layer")
    return tf.cast(tf.constant(array), like.dtype)


def read_all(variables: Iterable[Any]) -> list[np.ndarray]:
    """Values of variables, by one operation each; a variable's own ``numpy`` takes four times as long."""
    import tensorflow as tf

    return [tf.raw_ops.ReadVariableOp(resource=each.handle, dtype=each.dtype).numpy() for each in variables]


def write_all(variables: Iterable[Any], values: Iterable[np.ndarray]) -> None:
    """Sets variables to values of their shapes, by one operation each."""
    import tensorflow as tf

    for each, value in zip(variables, values, strict=True):
        tf.raw_ops.AssignVariableOp(resource=each.handle, value=tf.constant(value, each.dtype, each.shape))


def variables_by_path(model: Any) -> dict[str, np.ndarray]:
    """Every variable by layer path and own name, ``conv/kernel``, in float64; a name given twice gets a number."""
    return {
        key: np.asarray(variable.numpy(), dtype=np.float64)
        for path, layer in layers_by_path(model).items()
        for key, variable in _own_variables(path, layer)
    }


def _own_variables(path: str, layer: Any) -> list[tuple[str, Any]]:
    found: dict[str, Any] = {}
    for variable in (*layer._trainable_weights, *layer._non_trainable_weights):
        name = f"{path}/{_short_name(variable)}" if path else _short_name(variable)
        earlier = sum(1 for key in found if key == name or key.startswith(f"{name}@"))
        found[f"{name}@{earlier}" if earlier else name] = variable
    return list(found.items())


def lift(model: Any, precisions: Sequence[str]) -> tuple[dict[str, Any], tuple[NotCompared, ...]]:
    """Copies of a model that compute in the given precisions, most precise first.

    Works for models that Keras can rebuild from their configuration. Of one that it cannot, only the model itself is
    left, in the precision that it has; what that leaves out is named.

    Raises:
        ValueError: A precision is unknown.
    """
    import tf_keras

    unknown = sorted(set(precisions) - set(POLICIES))
    if unknown or not precisions:
        raise ValueError(f"unknown precisions {unknown}; there are {', '.join(POLICIES)}")
    ordered = [precision for precision in POLICIES if precision in precisions]
    if not isinstance(model, tf_keras.Sequential) and not model._is_graph_network:
        reason = "a subclassed Keras model cannot be rebuilt in another precision; build it under the policy float64"
        return _as_it_is(model, ordered, reason)
    models = {}
    for precision in ordered:
        config = _with_policy(model.get_config(), POLICIES[precision])
        try:
            models[precision] = type(model).from_config(config)
        except (TypeError, ValueError) as error:
            # Layers of the user's own that are not registered, lambdas.
            return _as_it_is(model, ordered, f"Keras cannot rebuild this model: {' '.join(str(error).split())}")
        # The configuration of a whole model has no dtype; inputs are cast to the one that it ends up with.
        models[precision]._set_dtype_policy(POLICIES[precision])
        if not models[precision].built:
            models[precision].build(model.input_shape)
        models[precision].set_weights(model.get_weights())
    return models, ()


def _as_it_is(model: Any, ordered: Sequence[str], reason: str) -> tuple[dict[str, Any], tuple[NotCompared, ...]]:
    own = model.compute_dtype
    return {own: model}, tuple(
        NotCompared(side="reference", name=f"{precision} readings", reason=reason)
        for precision in ordered
        if precision != own
    )


def _with_policy(config: Any, policy: str) -> Any:
    """A Keras configuration with every floating dtype replaced."""
    if isinstance(config, Mapping):
        if config.get("class_name") == "InputLayer":
            # An input has a plain dtype; that of the variables, as under a policy set by Keras.
            policy = policy.replace("mixed_bfloat16", "float32")
        return {
            key: policy if key == "dtype" and _is_floating_policy(value) else _with_policy(value, policy)
            for key, value in config.items()
        }
    if isinstance(config, list | tuple):
        return type(config)(_with_policy(item, policy) for item in config)
    return config


def _is_floating_policy(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, str) and "float" in value)

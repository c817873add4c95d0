"""A Keras 2 model in training: its gradients, and its steps, with random numbers from outside.

TensorFlow is imported when a model is trained, not when this module is.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from parity.draws import Draws
from parity.keras_side import _arrays, _kept_variables, as_graph, layers_by_path, read_all, write_all
from parity.trace import Recorder, flatten, replace
from parity.training import Backward, Inputs, Recipe, Snapshot, Targets, TensorPair


class KerasTraining:
    """The reference.

    Args:
        model: A built tf_keras model, in the precision that it computes in.
        variables: Its variables by the keys that ``TensorPair.reference`` uses.
        recipe: How it is trained.
        draws: Where its dropouts take their numbers from.
        ignored: Layers not to watch.
    """

    def __init__(
        self,
        model: Any,
        variables: Mapping[str, Any],
        recipe: Recipe,
        draws: Draws,
        ignored: Mapping[str, str] | None = None,
    ) -> None:
        self.model = model
        self.variables = dict(variables)
        self.recipe = recipe
        self.draws = draws
        self.layers = layers_by_path(model)
        for path in ignored or {}:
            self.layers.pop(path, None)
        self._apply: tuple[Sequence[tuple[Any, Sequence[Any]]], Callable[[Any], None]] | None = None
        self._step: tuple[Sequence[tuple[Any, Sequence[Any]]], Callable[[Any, Any], Any]] | None = None

    def gradients(
        self, inputs: Inputs, targets: Targets, *, disturb: Callable[[str, np.ndarray], np.ndarray] | None = None
    ) -> Backward:
        """One forward and one backward pass, eager, in training mode; the model is left as it was found.

        Args:
            inputs: Of the model, batch first.
            targets: Of the loss.
            disturb: Called with each variable's key and its value; returns the value that it has in this pass.
        """
        import tensorflow as tf

        values, gradients = Recorder(), Recorder()
        watched: dict[tuple[str, int], tuple[list[Any], list[Any]]] = {}
        with contextlib.ExitStack() as stack:
            stack.enter_context(_kept_variables(self.model))
            if disturb is not None:
                stack.enter_context(_disturbed(self.variables, disturb))
            stack.enter_context(fed_dropout(self.model, self.layers, self.draws))
            tape = stack.enter_context(tf.GradientTape())
            for path, layer in self.layers.items():
                stack.enter_context(_watched(path, layer, tape, values, watched))
            output = self.model(self._arguments(inputs), training=True)
            loss = self.recipe.loss(output, self._targets(targets))
        trainable = {key: variable for key, variable in self.variables.items() if variable.trainable}
        sources = [tensor for given, returned in watched.values() for tensor in (*given, *returned)]
        found = iter(
            tape.gradient(loss, [*trainable.values(), *sources], unconnected_gradients=tf.UnconnectedGradients.ZERO)
        )
        parameters = {key: _array(next(found)) for key in trainable}
        for key, (given, returned) in watched.items():
            gradients.begin(key[0])
            into = tuple(_array(next(found)) for _ in given)
            gradients.end(key, into, tuple(_array(next(found)) for _ in returned))
        return Backward(
            loss=float(loss),
            forward=values.trace({}),
            gradients=gradients.trace({}),
            parameters=parameters,
        )

    def run(
        self,
        batches: Callable[[int], tuple[Inputs, Targets]],
        steps: int,
        tensors: Sequence[TensorPair],
        *,
        disturb: Callable[[str, int, np.ndarray], np.ndarray] | None = None,
    ) -> list[Snapshot]:
        """Trains with optimizers as if new; afterwards the model has the weights that it came with.

        Args:
            batches: Inputs and targets of a step counted from 0.
            steps: Number of steps.
            tensors: What to keep after each step.
            disturb: Called before every step with each variable's key, the step and its value; returns the value that
                it has from there on.

        Returns:
            A snapshot after every step.
        """
        kept = read_all(self.model.variables)
        snapshots = []
        with fed_dropout(self.model, self.layers, self.draws):
            try:
                optimizers, step_function = self._compiled()
                for step in range(steps):
                    self.draws.step = step
                    inputs, targets = batches(step)
                    rates = _set_rates(optimizers, self.recipe.schedule(step))
                    if disturb is not None:
                        values = zip(self.variables, read_all(self.variables.values()), strict=True)
                        write_all(self.variables.values(), [disturb(key, step, value) for key, value in values])
                    loss = float(step_function(self._arguments(inputs), self._targets(targets)))
                    snapshots.append(self._snapshot(step + 1, loss, rates, optimizers, tensors))
            finally:
                write_all(self.model.variables, kept)
        return snapshots

    def steps(self, gradients: Sequence[Mapping[str, np.ndarray]], tensors: Sequence[TensorPair]) -> list[Snapshot]:
        """Optimizer steps along given gradients, one {variable key: array} a step; the weights are put back."""
        import tensorflow as tf

        kept = read_all(self.model.variables)
        optimizers, apply = self._applied()
        key_of = {id(variable): key for key, variable in self.variables.items()}
        snapshots = []
        try:
            for step, given in enumerate(gradients):
                rates = _set_rates(optimizers, self.recipe.schedule(step))
                apply(
                    [
                        [tf.constant(given[key_of[id(variable)]], variable.dtype) for variable in variables]
                        for _, variables in optimizers
                    ]
                )
                snapshots.append(self._snapshot(step + 1, 0.0, rates, optimizers, tensors))
        finally:
            write_all(self.model.variables, kept)
        return snapshots

    def _applied(self) -> tuple[Sequence[tuple[Any, Sequence[Any]]], Callable[[Any], None]]:
        """Optimizers as if new and their steps as a graph, made once."""
        if self._apply is None:
            optimizers = self.recipe.optimizers(self.model)

            def apply(gradients: Any) -> None:
                for (optimizer, variables), own in zip(optimizers, gradients, strict=True):
                    optimizer.apply_gradients(list(zip(own, variables, strict=True)))

            for optimizer, variables in optimizers:
                optimizer.build(variables)
            self._apply = optimizers, as_graph(apply)
        _reset(self._apply[0])
        return self._apply

    def _compiled(self) -> tuple[Sequence[tuple[Any, Sequence[Any]]], Callable[[Any, Any], Any]]:
        """Optimizers as if new and the step as a graph, which is made once: tracing takes longer than many steps."""
        if self._step is None:
            optimizers = self.recipe.optimizers(self.model)
            for optimizer, variables in optimizers:
                optimizer.build(variables)
            step = self._step_function(optimizers)
            self._step = optimizers, as_graph(step)
        _reset(self._step[0])
        return self._step

    def _step_function(self, optimizers: Sequence[tuple[Any, Sequence[Any]]]) -> Callable[[Any, Any], Any]:
        import tensorflow as tf

        trained = [variable for _, variables in optimizers for variable in variables]

        def step(arguments: Any, targets: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = self.recipe.loss(self.model(arguments, training=True), targets)
            gradients = tape.gradient(loss, trained)
            position = 0
            for optimizer, variables in optimizers:
                own = gradients[position : position + len(variables)]
                optimizer.apply_gradients(list(zip(own, variables, strict=True)))
                position += len(variables)
            return loss

        return step

    def _snapshot(
        self,
        step: int,
        loss: float,
        rates: tuple[float, ...],
        optimizers: Sequence[tuple[Any, Sequence[Any]]],
        tensors: Sequence[TensorPair],
    ) -> Snapshot:
        arrays = read_all(self.variables[pair.reference] for pair in tensors)
        values = {pair.port: pair.to_port(array) for pair, array in zip(tensors, arrays, strict=True)}
        moments: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
        by_variable = {id(self.variables[pair.reference]): pair for pair in tensors}
        for optimizer, variables in optimizers:
            positions = [optimizer._index_dict[optimizer._var_key(variable)] for variable in variables]
            for group, slots in zip(moments, (optimizer._momentums, optimizer._velocities), strict=True):
                arrays = read_all(slots[position] for position in positions)
                for variable, array in zip(variables, arrays, strict=True):
                    pair = by_variable[id(variable)]
                    group[pair.port] = pair.to_port(array)
        return Snapshot(
            step=step,
            loss=loss,
            learning_rates=rates,
            weights={pair.port: values[pair.port] for pair in tensors if pair.trainable},
            statistics={pair.port: values[pair.port] for pair in tensors if not pair.trainable},
            exp_avg=moments[0],
            exp_avg_sq=moments[1],
            counters=tuple(int(optimizer.iterations.numpy()) for optimizer, _ in optimizers),
        )

    def _arguments(self, inputs: Inputs) -> Any:
        import tensorflow as tf

        tensors = [tf.constant(array) for array in inputs]
        dtype = self.model.compute_dtype
        tensors = [tf.cast(tensor, dtype) if tensor.dtype.is_floating else tensor for tensor in tensors]
        return tensors[0] if len(tensors) == 1 else tuple(tensors)

    def _targets(self, targets: Targets) -> dict[str, Any]:
        import tensorflow as tf

        # Losses are computed in the precision of the variables, never in bfloat16.
        dtype = self.model.variable_dtype
        return {
            name: tf.constant(array, dtype) if np.issubdtype(array.dtype, np.floating) else tf.constant(array)
            for name, array in targets.items()
        }


@contextlib.contextmanager
def fed_dropout(model: Any, layers: Mapping[str, Any], draws: Draws) -> Iterator[None]:
    """Lets every dropout layer of a model take its masks from ``draws``; all else about the layer stays its own.

    Raises:
        TypeError: A layer draws random numbers in another way than Keras' Dropout.
    """
    import tensorflow as tf
    import tf_keras
    from tf_keras.src.engine.base_layer import BaseRandomLayer

    counts: dict[str, int] = {}
    patched: list[Any] = []
    call, own_call = model.call, vars(model).get("call")

    def counted_call(*args: Any, **kwargs: Any) -> Any:
        counts.clear()
        return call(*args, **kwargs)

    def fed(path: str) -> Callable[..., Any]:
        def dropout(inputs: Any, rate: float, noise_shape: Any = None) -> Any:
            index = counts.get(path, 0)
            counts[path] = index + 1
            shape = tf.shape(inputs) if noise_shape is None else noise_shape
            # Run at every execution of a graph, so that each step has masks of its own.
            keep = tf.numpy_function(
                lambda sizes: draws.keep(path, index, tuple(int(size) for size in sizes), rate), [shape], tf.bool
            )
            keep.set_shape(inputs.shape if noise_shape is None else None)
            return tf.where(keep, inputs * (1 / (1 - rate)), tf.zeros([], inputs.dtype))

        return dropout

    random_layers = {path: layer for path, layer in layers.items() if isinstance(layer, BaseRandomLayer)}
    for path, layer in random_layers.items():
        if not isinstance(layer, tf_keras.layers.Dropout):
            raise TypeError(f"{path}: a {type(layer).__name__} draws random numbers that cannot be fed")
    try:
        # Written to the dictionaries, which avoids Keras' attribute tracking.
        vars(model)["call"] = counted_call
        for path, layer in random_layers.items():
            vars(layer._random_generator)["dropout"] = fed(path)
            patched.append(layer._random_generator)
        yield
    finally:
        if own_call is None:
            del vars(model)["call"]
        else:
            vars(model)["call"] = own_call
        for generator in patched:
            del vars(generator)["dropout"]


@contextlib.contextmanager
def _watched(
    path: str,
    layer: Any,
    tape: Any,
    values: Recorder,
    watched: dict[tuple[str, int], tuple[list[Any], list[Any]]],
) -> Iterator[None]:
    """Gives what goes into and comes out of every call a tensor of its own, for the tape to find the gradient by."""
    import tensorflow as tf

    call, own_call = layer.call, vars(layer).get("call")

    def own_tensors(structure: Any) -> tuple[Any, list[Any]]:
        found = [_own(tensor, tape) for tensor in flatten(structure, tf.is_tensor)]
        return replace(structure, tf.is_tensor, list(found)), [tensor for tensor in found if tensor.dtype.is_floating]

    def watched_call(*args: Any, **kwargs: Any) -> Any:
        key = values.begin(path)
        (args, kwargs), given = own_tensors((args, kwargs))
        result, returned = own_tensors(call(*args, **kwargs))
        values.end(key, _arrays(given), _arrays(returned))
        watched[key] = (given, returned)
        return result

    vars(layer)["call"] = watched_call
    try:
        yield
    finally:
        if own_call is None:
            del vars(layer)["call"]
        else:
            vars(layer)["call"] = own_call


def _own(tensor: Any, tape: Any) -> Any:
    import tensorflow as tf

    own = tf.identity(tensor)
    if own.dtype.is_floating:
        tape.watch(own)
    return own


def _reset(optimizers: Sequence[tuple[Any, Sequence[Any]]]) -> None:
    """Counters and moments as if no step had been made; the learning rate is set before each."""
    import tensorflow as tf

    for optimizer, _ in optimizers:
        for variable in optimizer.variables:
            variable.assign(tf.zeros_like(variable))


@contextlib.contextmanager
def _disturbed(variables: Mapping[str, Any], disturb: Callable[[str, np.ndarray], np.ndarray]) -> Iterator[None]:
    """Variables with other values for a while."""
    kept = read_all(variables.values())
    write_all(variables.values(), [disturb(key, value) for key, value in zip(variables, kept, strict=True)])
    try:
        yield
    finally:
        write_all(variables.values(), kept)


def _set_rates(optimizers: Sequence[tuple[Any, Sequence[Any]]], rates: Sequence[float]) -> tuple[float, ...]:
    """Sets the learning rates and returns them as the optimizers then hold them."""
    for (optimizer, _), rate in zip(optimizers, rates, strict=True):
        optimizer.learning_rate = rate
    return tuple(float(optimizer.learning_rate.numpy()) for optimizer, _ in optimizers)


def _array(tensor: Any) -> np.ndarray:
    import tensorflow as tf

    return tf.cast(tf.convert_to_tensor(tensor), tf.float64).numpy()

"""A Keras model that is here and one that was recorded, read alike: arguments, variables, layers and one pass."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from parity.keras_side import KerasSide, layers_by_path, lift, variables_by_path
from parity.recorder import describe_layer
from parity.recording import Recording
from parity.trace import Trace


def input_arrays(reference: Any, inputs: Any) -> tuple[np.ndarray, ...]:
    """The models' arguments: those that are given, or those of a recording.

    Raises:
        ValueError: Both are there, or neither.
    """
    if isinstance(reference, Recording):
        if inputs is not None:
            raise ValueError("a recording holds the inputs that it was made with: leave inputs out")
        return reference.inputs
    if inputs is None:
        raise ValueError("a living reference needs inputs")
    parts = inputs if isinstance(inputs, tuple | list) else (inputs,)
    return tuple(np.asarray(part) for part in parts)


def reference_variables(reference: Any) -> Mapping[str, np.ndarray]:
    """Every variable of a living or a recorded model by layer path and own name, in float64."""
    return reference.variables if isinstance(reference, Recording) else variables_by_path(reference)


class Living:
    """What the search reads of a model that is here, in float64 where it can be had."""

    def __init__(self, reference: Any) -> None:
        models, _ = lift(reference, ("float64",))
        self.precision, self._model = next(iter(models.items()))
        self.layers = {path: describe_layer(path, layer) for path, layer in layers_by_path(self._model).items()}
        self.variables = variables_by_path(self._model)

    def trace(self, inputs: tuple[np.ndarray, ...], ignored: Mapping[str, str], split: frozenset[str]) -> Trace:
        """One pass in evaluation mode."""
        return KerasSide(self._model, ignored, split).trace(inputs, training=False)


class Recorded:
    """The same of a model that was recorded."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self.precision = recording.precisions[0]
        self.layers, self.variables = recording.layers, recording.variables

    def trace(self, inputs: tuple[np.ndarray, ...], ignored: Mapping[str, str], split: frozenset[str]) -> Trace:
        """The recorded pass."""
        return self._recording.trace(precision=self.precision, training=False, ignored=ignored, split=split)

"""Twins: one layer of the reference and the same layer of the port, with the same random weights, fed the same numbers.

Which variable is which parameter, and in what layout, comes from the weight table (weights/table.py) alone, so a
mistake in the table is a failure of the layer as well.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
import torch
from torch import nn

from tests.assertions import assert_same
from tests.strategies import ModelInputs, Sample
from torch_impl import EpiBERTConfig
from weights.table import CONSTANTS, Row, rows


@dataclass
class Twins:
    """A layer of both sides.

    Attributes:
        reference: Keras layer in float64; is built by its first call.
        port: PyTorch module in float64.
        alike: Path in the checkpoint and name in the port of a place in ``config`` where a layer of this type stands;
            its rows of the weight table are this layer's. None for layers without weights.
        config: Configuration to take the rows from.
        call_reference: How the reference is called, with inputs and ``training``; plainly by default.
        call_port: How the port is called, likewise.
    """

    reference: Any
    port: nn.Module
    alike: tuple[str, str] | None = None
    config: EpiBERTConfig = field(default_factory=EpiBERTConfig.tiny)
    call_reference: Callable[[Any, bool], Any] | None = None
    call_port: Callable[[Any], Any] | None = None

    @cached_property
    def rows(self) -> dict[str, tuple[Row, tf.Variable, torch.Tensor]]:
        """Name in the port -> row of the table, variable of the reference, tensor of the port. Total on both sides."""
        tensors = {name: tensor for name, tensor in self.port.state_dict().items() if not _is_constant(name)}
        found = {}
        if self.alike is not None:
            stored, name = (f"{place}{mark}" if place else "" for place, mark in zip(self.alike, "/.", strict=True))
            for row in rows(self.config):
                if row.path.startswith(stored):
                    here = row.name.removeprefix(name)
                    found[here] = (row, _variable(self.reference, row.path.removeprefix(stored)), tensors[here])
        assert found.keys() == tensors.keys(), f"{sorted(tensors.keys() ^ found.keys())} are not in the weight table"
        variables = {id(variable) for _, variable, _ in found.values()}
        assert variables == {id(variable) for variable in getattr(self.reference, "variables", [])}
        return found

    def draw(self, seed: int) -> None:
        """Gives both sides the same random weights and statistics, none of which is zero or a default."""
        generator = np.random.default_rng(seed)
        for row, variable, tensor in self.rows.values():
            values = _random(row.path.rpartition("/")[2], variable.numpy().shape, tensor, generator)
            variable.assign(values)
            with torch.no_grad():
                tensor.copy_(torch.from_numpy(row.layout.to_port(values).copy()))

    def run(self, inputs: Sample | ModelInputs, *, training: bool = False) -> dict[str, tuple[Any, Any]]:
        """One forward of both sides: every output, then every moving statistic as the forward left it."""
        self.port.train(training)
        with torch.no_grad():
            port = (self.call_port or self.port)(_for_port(inputs))
        reference = (self.call_reference or self._plainly)(_for_reference(inputs), training)
        found_port, found_reference = _flat(port), _flat(reference)
        assert found_port.keys() == found_reference.keys()
        pairs = {name: (found_port[name], found_reference[name]) for name in found_port}
        for name, (row, variable, tensor) in self.rows.items():
            if not row.trainable:
                pairs[name] = (tensor, row.layout.to_port(variable.numpy()))
        return pairs

    def build(self, inputs: Sample | ModelInputs) -> None:
        """Makes the reference create its variables, which Keras does at the first call."""
        if isinstance(self.reference, tf_keras.layers.Layer) and not self.reference.built:
            (self.call_reference or self._plainly)(_for_reference(inputs), False)

    def _plainly(self, inputs: Any, training: bool) -> Any:
        takes_training = "training" in inspect.signature(getattr(self.reference, "call", self.reference)).parameters
        return self.reference(inputs, training=training) if takes_training else self.reference(inputs)


def assert_twins_agree(
    twins: Twins,
    inputs: Sample | ModelInputs,
    *,
    seed: int | None = 1,
    training: bool = False,
    tolerance: str = "float64",
) -> None:
    """With weights drawn from ``seed``, or as they are when it is None, all outputs and moving statistics are the same.

    Raises:
        Disagreement: They are not.
    """
    twins.build(inputs)
    if seed is not None:
        twins.draw(seed)
    for name, (port, reference) in twins.run(inputs, training=training).items():
        assert_same(port, reference, tolerance, what=name)


def _for_reference(inputs: Sample | ModelInputs) -> Any:
    if isinstance(inputs, ModelInputs):
        return tuple(tf.constant(part.numbers) for part in (inputs.sequence, inputs.atac, inputs.motifs))
    return tf.constant(inputs.numbers)


def _for_port(inputs: Sample | ModelInputs) -> Any:
    if isinstance(inputs, ModelInputs):
        return tuple(part.tensor for part in (inputs.sequence, inputs.atac, inputs.motifs))
    return inputs.tensor


def _is_constant(name: str) -> bool:
    """Whether it is one of the model's constants, as it is called in the model or in a part of it."""
    return any(f".{constant}".endswith(f".{name}") for constant in CONSTANTS)


def _variable(layer: Any, path: str) -> tf.Variable:
    """The variable at a path of the checkpoint, below a layer."""
    for part in path.split("/"):
        if part.startswith("layer_with_weights-"):
            weighted = [child for child in layer.layers if child.weights]
            layer = weighted[int(part.rpartition("-")[2])]
        else:
            layer = layer[int(part)] if part.isdigit() else getattr(layer, part)
    return layer


def _random(
    kind: str, stored_shape: tuple[int, ...], tensor: torch.Tensor, generator: np.random.Generator
) -> np.ndarray:
    match kind:
        case "kernel":
            return generator.standard_normal(stored_shape) / np.sqrt(tensor[0].numel())
        case "gamma" | "moving_variance":
            return generator.uniform(0.5, 2.0, stored_shape)
        case "bias" | "beta":
            # Away from zero: where a layer's result is its bias, the comparison is relative to it.
            return generator.choice([-1.0, 1.0], stored_shape) * generator.uniform(0.5, 1.5, stored_shape)
        case "moving_mean":
            return generator.standard_normal(stored_shape)
    raise ValueError(f"no rule for a variable called {kind}")


def _flat(output: Any, name: str = "output") -> dict[str, Any]:
    if isinstance(output, dict):
        parts = output.items()
    elif isinstance(output, tuple | list):
        parts = enumerate(output)
    else:
        return {name: output}
    return {key: value for index, part in parts for key, value in _flat(part, f"{name}.{index}").items()}

"""Twins: one layer of the reference and the same layer of the port, with the same random weights, fed the same numbers.

The reference is the Keras layer, or its formula in NumPy, which needs no TensorFlow. Which variable is which parameter,
and in what layout, comes from the weight table (weights/table.py) alone, so a mistake in the table is a failure of the
layer as well.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from parity.compare import compare
from parity.pairs.samples import ModelInputs, Sample
from parity.records import Comparison, Reading
from torch_impl import EpiBERTConfig
from weights.table import CONSTANTS, Row, rows

Side = Literal["formula", "tensorflow"]
Formula = Callable[[Mapping[str, np.ndarray], np.ndarray, bool], tuple[Any, dict[str, np.ndarray]]]
"""From the weights by their path below the layer, the input and whether it trains, to the result and the statistics."""


@dataclass
class Twins:
    """A layer of both sides.

    Attributes:
        make_reference: Makes the Keras layer in float64; it is made when it is first asked for.
        port: PyTorch module in float64.
        formula: What the layer computes, in NumPy; None where only the Keras layer says it.
        alike: Path in the checkpoint and name in the port of a place in ``config`` where a layer of this type stands;
            its rows of the weight table are this layer's. None for layers without weights.
        config: Configuration to take the rows from.
        heads: Number of heads, which split some stored tensors.
        call_reference: How the reference is called, with the layer, inputs and ``training``; plainly by default.
        call_port: How the port is called, likewise.
    """

    make_reference: Callable[[], Any]
    port: nn.Module
    formula: Formula | None = None
    alike: tuple[str, str] | None = None
    config: EpiBERTConfig = field(default_factory=EpiBERTConfig.tiny)
    heads: int = 1
    call_reference: Callable[[Any, Any, bool], Any] | None = None
    call_port: Callable[[Any, Any], Any] | None = None

    @cached_property
    def reference(self) -> Any:
        """The Keras layer; is built by its first call."""
        return self.make_reference()

    @cached_property
    def places(self) -> dict[str, tuple[Row, str]]:
        """Name in the port -> row of the table and path below the layer. Total on the port's side."""
        found = {}
        if self.alike is not None:
            stored, name = (f"{place}{mark}" if place else "" for place, mark in zip(self.alike, "/.", strict=True))
            for row in rows(self.config):
                if row.path.startswith(stored):
                    found[row.name.removeprefix(name)] = (row, row.path.removeprefix(stored))
        return found

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The port's parameters and statistics, without the model's constants."""
        return {name: tensor for name, tensor in self.port.state_dict().items() if not _is_constant(name)}

    def unmatched(self) -> list[str]:
        """Tensors that only one of the port and the weight table has."""
        return sorted(self.tensors.keys() ^ self.places.keys())

    def variables(self) -> dict[str, Any]:
        """Path below the layer -> variable of the reference. Total on the reference's side."""
        found = {path: _variable(self.reference, path) for _, path in self.places.values()}
        everything = {id(variable) for variable in getattr(self.reference, "variables", [])}
        assert {id(variable) for variable in found.values()} == everything
        return found

    def draw(self, seed: int) -> dict[str, np.ndarray]:
        """Random weights and statistics by their path below the layer, none of which is zero or a default."""
        generator = np.random.default_rng(seed)
        drawn = {}
        for name, (row, path) in self.places.items():
            tensor = self.tensors[name]
            shape = row.layout.stored_shape(tuple(tensor.shape), self.heads)
            drawn[path] = _random(row.path.rpartition("/")[2], shape, tensor, generator)
        return drawn

    def fill(self, weights: Mapping[str, np.ndarray], *, reference: bool) -> None:
        """Gives the port such weights, and the Keras layer as well."""
        variables = self.variables() if reference else {}
        for name, (row, path) in self.places.items():
            if reference:
                variables[path].assign(weights[path])
            with torch.no_grad():
                self.tensors[name].copy_(torch.from_numpy(row.layout.to_port(weights[path]).copy()))

    def run_port(self, inputs: Sample | ModelInputs, *, training: bool) -> dict[str, Any]:
        """One forward of the port: every output, then every moving statistic as the forward left it."""
        self.port.train(training)
        with torch.no_grad():
            found = _flat(self.call(inputs))
        return found | {name: self.tensors[name] for name, (row, _) in self.places.items() if not row.trainable}

    def call(self, inputs: Sample | ModelInputs) -> Any:
        """Calls the port."""
        given = _for_port(inputs)
        return self.port(given) if self.call_port is None else self.call_port(self.port, given)

    def run_reference(self, inputs: Sample | ModelInputs, *, training: bool) -> dict[str, Any]:
        """The same of the Keras layer."""
        found = _flat((self.call_reference or _plainly)(self.reference, _for_reference(inputs), training))
        variables = self.variables()
        statistics = {
            name: row.layout.to_port(variables[path].numpy())
            for name, (row, path) in self.places.items()
            if not row.trainable
        }
        return found | statistics

    def run_formula(
        self, inputs: Sample | ModelInputs, weights: Mapping[str, np.ndarray], *, training: bool
    ) -> dict[str, Any]:
        """The same of the formula."""
        if self.formula is None or isinstance(inputs, ModelInputs):
            raise TypeError("there is no formula of the whole model")
        with np.errstate(under="ignore"):
            result, after = self.formula(weights, inputs.numbers, training)
        statistics = {
            name: row.layout.to_port(after.get(path, weights[path]))
            for name, (row, path) in self.places.items()
            if not row.trainable
        }
        return _flat(result) | statistics

    def build(self, inputs: Sample | ModelInputs) -> None:
        """Makes the reference create its variables, which Keras does at the first call."""
        if not getattr(self.reference, "built", True):
            (self.call_reference or _plainly)(self.reference, _for_reference(inputs), False)


def compare_twins(
    twins: Twins,
    inputs: Sample | ModelInputs,
    weights: Mapping[str, np.ndarray] | None,
    *,
    training: bool = False,
    tolerance: str = "float64",
    side: Side = "tensorflow",
) -> list[tuple[Comparison, np.ndarray | None, np.ndarray | None]]:
    """Every output and moving statistic: the comparison, what was got, what was expected.

    Args:
        twins: The layer.
        inputs: What both are given.
        weights: What both are filled with; they are left as they are when None, which only Keras layers allow.
        training: Whether they train.
        tolerance: Row of the table of tolerances.
        side: What the port is compared with.
    """
    if side == "tensorflow":
        twins.build(inputs)
    if weights is not None:
        twins.fill(weights, reference=side == "tensorflow")
    found = twins.run_port(inputs, training=training)
    if side == "tensorflow":
        expected = twins.run_reference(inputs, training=training)
    else:
        expected = twins.run_formula(inputs, weights or {}, training=training)
    return _compared(found, expected, tolerance)


def compare_formula(
    twins: Twins, inputs: Sample, weights: Mapping[str, np.ndarray], *, training: bool = False, tolerance: str
) -> list[tuple[Comparison, np.ndarray | None, np.ndarray | None]]:
    """The formula, in the port's place, against the Keras layer."""
    twins.build(inputs)
    twins.fill(weights, reference=True)
    found = twins.run_formula(inputs, weights, training=training)
    return _compared(found, twins.run_reference(inputs, training=training), tolerance)


def _compared(
    found: Mapping[str, Any], expected: Mapping[str, Any], tolerance: str
) -> list[tuple[Comparison, np.ndarray | None, np.ndarray | None]]:
    compared = []
    for name in dict.fromkeys([*expected, *found]):
        port, reference = (None if name not in side else as_array(side[name]) for side in (found, expected))
        row = compare(
            port,
            reference,
            gate="layers",
            reading=Reading.ISOLATED,
            precision="float64",
            tolerance=tolerance,
            reference_path=name,
            port_path=name,
            layer=name,
            quantity=name,
        )
        compared.append((row, port, reference))
    return compared


def as_array(values: Any) -> np.ndarray:
    """NumPy array of a torch tensor, a TensorFlow tensor or variable, or anything that NumPy understands.

    bfloat16, which NumPy lacks, is widened to float32; that loses nothing.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)


def _plainly(layer: Any, inputs: Any, training: bool) -> Any:
    takes_training = "training" in inspect.signature(getattr(layer, "call", layer)).parameters
    return layer(inputs, training=training) if takes_training else layer(inputs)


def _for_reference(inputs: Sample | ModelInputs) -> Any:
    import tensorflow as tf

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


def _variable(layer: Any, path: str) -> Any:
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

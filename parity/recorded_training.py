"""Gradients and steps of a recording, against those of a port.

The recorded loss needs no targets: it is the sum over all floating outputs of the mean of output times drawn weight.
Its gradients pass through every layer. The steps are plain gradient descent on it, in whatever mode was recorded.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parity.arrangements import NO_SECOND_BIAS
from parity.compare import compare
from parity.inference.weight_map import WeightMap, arranged
from parity.layer_map import LayerMap
from parity.recording import Recording
from parity.records import Comparison, NotCompared, Reading
from parity.torch_side import DTYPES, TorchSide
from parity.trace import describe, flatten

NEARLY_ZERO = 1e-11
"""A gradient this small a share of all gradients is what is left of terms that cancel: it is judged in their units."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorRow:
    """The variable that a tensor of the port answers to.

    Attributes:
        key: Name of the variable in the recording.
        to_port: Its values, and so its gradients, in the port's layout: a permutation of axes, a reshaping.
        surplus: Why the port has this tensor and the reference none: it takes no part in training then.
    """

    key: str
    to_port: Callable[[np.ndarray], np.ndarray]
    surplus: str = ""

    @classmethod
    def of_weight_map(cls, weight_map: WeightMap) -> dict[str, "TensorRow"]:
        """Rows of a weight map."""
        return {
            name: cls(
                key=key,
                to_port=lambda array, axes=axes: arranged(array, axes),
                surplus=NO_SECOND_BIAS.name if axes is NO_SECOND_BIAS else "",
            )
            for name, (key, axes) in weight_map.items()
        }


def compare_training(
    recording: Recording, side: TorchSide, tensors: Mapping[str, TensorRow], layer_map: LayerMap, *, case: str = ""
) -> tuple[list[Comparison], list[NotCompared]]:
    """Every gradient and, after the recorded steps, every variable.

    Args:
        recording: A recording that has them.
        side: The port.
        tensors: {tensor of the port: the variable that it answers to}.
        layer_map: For the layouts of inputs and outputs, and for the tolerances of statistics.
        case: Name of the case.

    Returns:
        The comparisons, and what is left out.
    """
    training = recording.training
    if training is None:
        raise ValueError("the recording has neither gradients nor steps")
    if training["precision"] != "float64":
        reason = "the recording has them in float32 alone, where a ratio of two such errors decides nothing"
        return [], [NotCompared(side="recording", name="gradients and steps", reason=reason)]
    shared = [
        key
        for key, names in _by_key(tensors).items()
        if len(names) > 1 and not _are_parts(recording.variables[key].shape, [tensors[name] for name in names])
    ]
    if shared:
        reason = f"several tensors of the port share a variable, and are not its parts: {', '.join(sorted(shared))}"
        return [], [NotCompared(side="port", name="gradients and steps", reason=reason)]
    work = _Training(recording, training, side, tensors, layer_map, case)
    left_out = [
        NotCompared(side="port", name=f"gradient of {name}", reason=row.surplus)
        for name, row in tensors.items()
        if row.surplus
    ]
    return [*work.gradients(), *work.steps()], left_out


class _Training:
    """The port's side, and the comparisons."""

    def __init__(
        self,
        recording: Recording,
        training: Mapping[str, Any],
        side: TorchSide,
        tensors: Mapping[str, TensorRow],
        layer_map: LayerMap,
        case: str,
    ) -> None:
        self.recording, self.training, self.side, self.tensors = recording, training, side, tensors
        self.module = side.original
        self.root = next(pair for pair in layer_map if pair.port == "" and not pair.alias)
        self.weights = recording.arrays(training["loss_weights"])
        self.trainable = frozenset(recording.trainable)
        self.common: dict[str, Any] = {
            "case": case,
            "reading": Reading.ACCUMULATED,
            "precision": training["precision"],
            "mode": training["mode"],
        }
        port_of = {pair.reference: pair for pair in layer_map}
        self.statistics = {
            f"{pair.reference}/{name}": pair.state_tolerance for pair in port_of.values() for _, name in pair.state
        }

    def gradients(self) -> Iterator[Comparison]:
        """The loss, and its gradient by every trainable variable and every floating input."""
        with self.side.prepared(self.module, "float64", self.training["mode"] == "training"):
            parameters = self._parameters()
            loss, found, of_inputs, error = self._backward(self.recording.training_inputs()[0], parameters)
        yield self._scalar("gradients", "loss", loss, self.training["loss"], error)
        names = list(self.training["gradients"])
        values = self.recording.arrays(list(self.training["gradients"].values()))
        expected = dict(zip(names, values, strict=True))
        size = _root_mean_square([value for value in expected.values() if value is not None])
        by_key = _by_key(self.tensors)
        for order, (key, gradient) in enumerate(expected.items()):
            # A variable that the loss does not depend on has no gradient, or zeros.
            truth = np.zeros_like(self.recording.variables[key]) if gradient is None else gradient
            for name in by_key.get(key, ("",)):
                own = None if not name else found.get(name)
                yield self._row("gradients", "gradient", name, key, own, self._to_port(name, truth), size, order, error)
        for index, gradient in enumerate(self.recording.arrays(self.training["input_gradients"])):
            own = of_inputs[index] if index < len(of_inputs) else None
            yield self._row("gradients", f"gradient of input {index}", "", "", own, gradient, size, len(names), error)

    def steps(self) -> Iterator[Comparison]:
        """The losses of all steps, and every variable after the last."""
        if not self.training["losses"]:
            return
        given, turned = self.recording.training_inputs()
        losses: list[float | None] = []
        error = ""
        with self.side.prepared(self.module, "float64", self.training["mode"] == "training"):
            parameters = self._parameters()
            for step in range(len(self.training["losses"])):
                loss, gradients, _, error = self._backward(turned if step % 2 else given, parameters)
                losses.append(loss)
                if error:
                    break
                for name, gradient in gradients.items():
                    row = self.tensors.get(name)
                    if row is not None and not row.surplus and row.key in self.trainable:
                        step_taken = torch.from_numpy(self.training["rate"] * gradient).to(parameters[name].device)
                        # Not in place: the numbers may be the port's own, which get back what they were.
                        parameters[name].data = parameters[name].data - step_taken
            after = {name: _array(tensor) for name, tensor in self._tensors().items()}
        for step, expected in enumerate(self.training["losses"]):
            found = losses[step] if step < len(losses) else None
            yield self._scalar("trajectory", f"loss of step {step + 1}", found, expected, error)
        keys = list(self.training["weights_after"])
        values = self.recording.arrays(list(self.training["weights_after"].values()))
        by_key = _by_key(self.tensors)
        for order, (key, expected) in enumerate(zip(keys, values, strict=True)):
            for name in by_key.get(key, ("",)):
                yield compare(
                    after.get(name) if name else None,
                    self._to_port(name, expected),
                    gate="trajectory",
                    tolerance=self.statistics.get(key) or ("optimizer" if key in self.trainable else "state"),
                    reference_path=key,
                    port_path=name,
                    layer=name.rpartition(".")[0],
                    quantity=f"after {len(losses)} steps",
                    order=order,
                    detail=error or ("" if name else "no tensor of the port answers to this variable"),
                    **self.common,
                )

    def _row(
        self,
        gate: str,
        quantity: str,
        name: str,
        key: str,
        found: np.ndarray | None,
        expected: np.ndarray,
        size: float,
        order: int,
        error: str,
    ) -> Comparison:
        small = _root_mean_square([expected]) < NEARLY_ZERO * size
        return compare(
            found,
            expected,
            gate=gate,
            tolerance="zero_gradient" if small else "gradient",
            scale=size if small else None,
            reference_path=key,
            port_path=name,
            layer=name.rpartition(".")[0],
            quantity=quantity,
            order=order,
            detail=error or ("" if name or not key else "no tensor of the port answers to this variable"),
            **self.common,
        )

    def _scalar(self, gate: str, quantity: str, found: float | None, expected: float, error: str) -> Comparison:
        return compare(
            None if found is None else np.asarray([found]),
            np.asarray([expected]),
            # A sum of products of both signs may come near to zero.
            scale=max(abs(expected), max(_root_mean_square([weight]) for weight in self.weights)),
            gate=gate,
            tolerance="state",
            reference_path="",
            port_path="",
            layer="",
            quantity=quantity,
            detail=error,
            **self.common,
        )

    def _to_port(self, name: str, array: np.ndarray) -> np.ndarray:
        return self.tensors[name].to_port(array) if name else array

    def _tensors(self) -> dict[str, Tensor]:
        return {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}

    def _parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.module.named_parameters())

    def _backward(
        self, inputs: Sequence[np.ndarray], parameters: Mapping[str, nn.Parameter]
    ) -> tuple[float | None, dict[str, np.ndarray], list[np.ndarray], str]:
        """Loss, gradients by parameters and by floating inputs, and what ended the pass."""
        device = next((parameter.device for parameter in parameters.values()), None)
        arguments = [torch.from_numpy(np.array(array)).to(device) for array in inputs]
        arguments = [part.to(DTYPES["float64"]) if part.is_floating_point() else part for part in arguments]
        floating = [part.requires_grad_() for part in arguments if part.is_floating_point()]
        learning = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        try:
            with torch.enable_grad():
                outputs = flatten(self.module(*arguments), torch.is_tensor)
                loss = self._loss([output for output in outputs if output.is_floating_point()])
                found = torch.autograd.grad(loss, [*learning.values(), *floating], allow_unused=True)
        except Exception as exception:  # noqa: BLE001  whatever the port raises is a finding, not our failure
            return None, {}, [], describe(exception)
        leaves = [*learning.values(), *floating]
        arrays = [
            _array(torch.zeros_like(leaf) if gradient is None else gradient)
            for leaf, gradient in zip(leaves, found, strict=True)
        ]
        by_name = dict(zip(learning, arrays[: len(learning)], strict=True))
        return float(loss.detach()), by_name, arrays[len(learning) :], ""

    def _loss(self, outputs: Sequence[Tensor]) -> Tensor:
        if len(outputs) != len(self.weights):
            raise ValueError(f"the port returns {len(outputs)} floating tensors, the reference {len(self.weights)}")
        terms = []
        for output, weight in zip(outputs, self.weights, strict=True):
            values = torch.from_numpy(np.ascontiguousarray(self.root.to_port(weight))).to(output)
            if values.shape != output.shape:
                raise ValueError(f"the port returns {tuple(output.shape)}, expected {tuple(values.shape)}")
            terms.append((output * values).mean())
        return torch.stack(terms).sum()


def _by_key(tensors: Mapping[str, TensorRow]) -> dict[str, tuple[str, ...]]:
    """The tensors that answer to each variable; a GRU has two biases where Keras has one of two rows."""
    found: dict[str, tuple[str, ...]] = {}
    for name, row in tensors.items():
        if not row.surplus:
            found[row.key] = (*found.get(row.key, ()), name)
    return found


def _are_parts(shape: tuple[int, ...], rows: Sequence[TensorRow]) -> bool:
    """Whether tensors have every number of a variable between them, and each once."""
    places = np.arange(math.prod(shape))
    taken = [np.ravel(row.to_port(places.reshape(shape))) for row in rows]
    return np.array_equal(np.sort(np.concatenate(taken)), places)


def _root_mean_square(arrays: Sequence[np.ndarray]) -> float:
    count = sum(array.size for array in arrays)
    return math.sqrt(sum(float(np.sum(np.square(array))) for array in arrays) / count) if count else 0.0


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy().copy()

"""Gradients and steps of a recording, by hand for one dense layer: what is right passes, what is wrong has a name."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from parity import LayerMap, LayerPair, Status
from parity.arrangements import AS_IT_IS, DENSE, NO_SECOND_BIAS, Arrangement
from parity.recorded_training import TensorRow, compare_training
from parity.torch_side import TorchSide

X = np.random.default_rng(0).standard_normal((4, 3))
KERNEL = np.random.default_rng(1).standard_normal((3, 2))
BIAS = np.asarray([0.5, -0.25])
WEIGHT = np.random.default_rng(2).standard_normal((4, 2))
RATE = 0.125
ROWS = {"weight": ("dense/kernel", DENSE), "bias": ("dense/bias", AS_IT_IS)}


class Recorded:
    """What ``parity.Recording`` offers, of y = X W + b and the loss mean(y * WEIGHT)."""

    trainable = ("dense/kernel", "dense/bias")

    def __init__(self, **changes: Any) -> None:
        kernel, bias, losses = KERNEL.copy(), BIAS.copy(), []
        batches = self.training_inputs()
        for step in range(2):
            x = batches[step % 2][0]
            losses.append(float(np.mean((x @ kernel + bias) * WEIGHT)))
            kernel, bias = kernel - RATE * x.T @ WEIGHT / 8, bias - RATE * WEIGHT.sum(axis=0) / 8
        self.variables = {"dense/kernel": KERNEL, "dense/bias": BIAS}
        self.training = {
            "precision": "float64",
            "mode": "evaluation",
            "loss_weights": [WEIGHT],
            "loss": losses[0],
            "gradients": {"dense/kernel": X.T @ WEIGHT / 8, "dense/bias": WEIGHT.sum(axis=0) / 8},
            "input_gradients": [WEIGHT @ KERNEL.T / 8],
            "losses": losses,
            "rate": RATE,
            "weights_after": {"dense/kernel": kernel, "dense/bias": bias},
            **changes,
        }

    @staticmethod
    def training_inputs() -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        return (X,), (X[::-1].copy(),)

    @staticmethod
    def arrays(names: list[Any]) -> list[Any]:
        return list(names)


def port() -> nn.Linear:
    layer = nn.Linear(3, 2).double()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(KERNEL.T))
        layer.bias.copy_(torch.from_numpy(BIAS))
    return layer


def compared(recorded: Any, module: nn.Module, rows: Any = ROWS) -> tuple[list[Any], list[Any]]:
    layer_map = LayerMap(pairs=(LayerPair(port="", reference="", inputs=0),))
    return compare_training(recorded, TorchSide(module, layer_map), TensorRow.of_weight_map(rows), layer_map)


def failures(recorded: Any, module: nn.Module, rows: Any = ROWS) -> set[tuple[str, str]]:
    return {(row.gate, row.quantity) for row in compared(recorded, module, rows)[0] if row.status is not Status.PASS}


def test_a_right_layer_passes_and_is_left_as_it_was():
    module = port()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    rows, left_out = compared(Recorded(), module)
    assert {row.status for row in rows} == {Status.PASS}
    assert len(rows) == 1 + 2 + 1 + 2 + 2  # loss, gradients, by the input; losses, variables
    assert left_out == []
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert module.weight.grad is None


def test_gradients_that_are_off_are_found_one_by_one():
    kernel = Recorded().training["gradients"]["dense/kernel"]
    wrong = Recorded(gradients={"dense/kernel": kernel * (1 + 1e-8), "dense/bias": np.zeros(2)})
    rows, _ = compared(wrong, port())
    assert {(row.port, row.quantity) for row in rows if row.status is not Status.PASS} == {
        ("weight", "gradient"),
        ("bias", "gradient"),
    }


def test_a_backward_pass_by_the_input_is_compared():
    assert failures(Recorded(input_gradients=[np.ones((4, 3))]), port()) == {("gradients", "gradient of input 0")}


def test_steps_that_are_off_are_found():
    after = Recorded().training["weights_after"]
    wrong = Recorded(weights_after={**after, "dense/bias": after["dense/bias"] + 1e-8}, losses=[*[9.0], 0.0])
    assert failures(wrong, port()) == {
        ("trajectory", "loss of step 1"),
        ("trajectory", "loss of step 2"),
        ("trajectory", "after 2 steps"),
    }


def test_a_variable_that_no_tensor_answers_to_is_missing():
    rows, _ = compared(Recorded(), port(), {"weight": ROWS["weight"]})
    missing = [row for row in rows if row.status is Status.MISSING]
    assert {row.reference for row in missing} == {"dense/bias"}
    assert all("no tensor of the port answers" in row.detail for row in missing)


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = port()
        self.weight, self.bias = self.inner.weight, self.inner.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("not today")


def test_what_a_port_raises_is_a_finding():
    rows, _ = compared(Recorded(), Failing())
    assert {row.status for row in rows if row.quantity != "after 1 steps"} == {Status.MISSING}
    assert all("not today" in row.detail for row in rows if row.status is not Status.PASS)
    assert any(row.status is Status.FAIL for row in rows if row.quantity == "after 1 steps")


@pytest.mark.parametrize("gradient", [0.0, 1e-16])
def test_a_gradient_that_is_zero_in_theory_is_judged_in_units_of_all(gradient):
    zero = Recorded(gradients={"dense/kernel": X.T @ WEIGHT / 8, "dense/bias": np.full(2, gradient)})
    rows, _ = compared(zero, port())
    (bias,) = (row for row in rows if row.port == "bias" and row.gate == "gradients")
    assert bias.tolerance == "zero_gradient"
    assert bias.status is Status.FAIL  # the port's is not zero
    flat = port()
    flat.bias.requires_grad_(False)
    (bias,) = (row for row in compared(zero, flat)[0] if row.port == "bias" and row.gate == "gradients")
    assert bias.status is Status.MISSING  # a frozen tensor has no gradient


def test_what_cannot_be_compared_is_named():
    rows, left_out = compared(Recorded(precision="float32"), port())
    assert rows == []
    assert [row.name for row in left_out] == ["gradients and steps"]
    rows, left_out = compared(Recorded(), port(), {**ROWS, "weight_again": ROWS["weight"]})
    assert rows == []
    assert "share a variable, and are not its parts: dense/kernel" in left_out[0].reason
    rows, left_out = compared(Recorded(), Halves(), {**HALVES, "right": HALVES["left"]})
    assert rows == []
    assert "not its parts: dense/kernel" in left_out[0].reason


class Halves(nn.Module):
    """The layer, with a tensor for each column of its kernel."""

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        self.left, self.right = (nn.Parameter(torch.from_numpy(KERNEL[:, column].copy())) for column in (0, 1))
        self.bias = nn.Parameter(torch.from_numpy(BIAS.copy()))
        self.right.register_hook(lambda gradient: gradient * share)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x @ self.left, x @ self.right], dim=1) + self.bias


HALVES = {
    "left": ("dense/kernel", Arrangement(name="first column", apply=lambda array: array[:, 0])),
    "right": ("dense/kernel", Arrangement(name="second column", apply=lambda array: array[:, 1])),
    "bias": ROWS["bias"],
}


def test_tensors_that_are_parts_of_a_variable_are_compared_each():
    rows, left_out = compared(Recorded(), Halves(), HALVES)
    assert left_out == []
    assert {row.status for row in rows} == {Status.PASS}
    assert {row.port for row in rows if row.gate == "gradients"} == {"left", "right", "bias", ""}
    rows, _ = compared(Recorded(), Halves(1 + 1e-8), HALVES)
    failed = {(row.port, row.gate) for row in rows if row.status is not Status.PASS}
    assert failed == {("right", "gradients"), ("right", "trajectory"), ("", "trajectory")}  # the second loss, too


def test_a_tensor_that_the_reference_has_none_for_stands_still():
    module: Any = port()
    module.register_parameter("second", nn.Parameter(torch.zeros(2, dtype=torch.float64)))
    module.forward = lambda input: type(module).forward(module, input) + module.second
    rows, left_out = compared(Recorded(), module, {**ROWS, "second": ("dense/bias", NO_SECOND_BIAS)})
    assert {row.status for row in rows} == {Status.PASS}
    assert [row.name for row in left_out] == ["gradient of second"]

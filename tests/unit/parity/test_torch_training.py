"""Optimizer steps of a port that lacks a tensor, or has one of another shape: found by name, and the rest goes on."""

import numpy as np
import torch
from torch import nn

from parity import LayerMap, LayerPair, Status
from parity.draws import Draws
from parity.torch_training import TorchTraining
from parity.training import Recipe, TensorPair, compare_steps

SHAPES = {"weight": (2, 3), "bias": (2,)}
RECIPE = Recipe(
    loss=lambda output, targets: output.sum(),
    optimizers=lambda module: [torch.optim.Adam(module.parameters(), lr=0.1)],
    schedule=lambda step: [0.1],
)
TENSORS = [
    TensorPair(
        port=name, reference=name, to_port=lambda array: array, to_reference=lambda array, _: array, trainable=True
    )
    for name in SHAPES
]
GRADIENTS = [{name: np.full(shape, 0.5) for name, shape in SHAPES.items()}]


def stepped(module: nn.Module):
    side = TorchTraining(module, LayerMap(pairs=(LayerPair(port="", reference=""),)), RECIPE, Draws(0))
    return side.steps(GRADIENTS, TENSORS, precision="float64")


def failed(module: nn.Module) -> set[tuple[str, Status]]:
    right = nn.Linear(3, 2)
    before = {name: tensor.detach().double().numpy() for name, tensor in right.named_parameters()}
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            if tuple(tensor.shape) == SHAPES.get(name):
                tensor.copy_(torch.from_numpy(before[name]))
    rows = compare_steps(stepped(module), stepped(right), before, TENSORS, steps=(1,), label="")
    return {(row.port, row.status) for row in rows if row.status is not Status.PASS}


def test_steps_of_a_port_that_is_right_pass():
    assert failed(nn.Linear(3, 2)) == set()


def test_a_parameter_that_the_port_lacks_is_missing_and_the_others_are_compared():
    assert failed(nn.Linear(3, 2, bias=False)) == {("bias", Status.MISSING)}


def test_a_parameter_of_another_shape_fails_and_the_others_are_compared():
    assert failed(nn.Linear(4, 2)) == {("weight", Status.FAIL)}


class Scaled(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 2)
        self.scale = nn.Parameter(torch.ones(2))


def test_a_parameter_that_no_pair_knows_gets_no_gradient_and_is_missing():
    module = Scaled()
    assert failed(module) == {("scale", Status.MISSING)}
    (after,) = stepped(module)
    assert "scale" not in after.exp_avg
    assert module.scale.grad is None

"""Functional operations get names, and nothing else about a port changes."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.operations import Operation, name_operations
from parity.torch_kinds import torch_kind


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 3, 1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor, scale: float = 0.5) -> Tensor:
        y = self.act(self.conv(self.act(x)))
        return torch.sigmoid(y) + x * scale


class Port(nn.Module):
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.unused = nn.Linear(2, 2)
        self.gain = nn.Parameter(torch.full((3, 1), 2.0))
        self.register_buffer("shift", torch.ones(3, 1))
        self.lstm = nn.LSTM(3, 3, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            x = block(x)
        y, _ = self.lstm(F.gelu(x).transpose(1, 2))
        return (x * self.gain + self.shift)[:, :, 1:-1], y.mean(dim=1)


INPUT = torch.linspace(-1, 1, 36).reshape(2, 3, 6)


def outputs(module: nn.Module) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return module(INPUT)


def test_every_operation_and_every_call_of_a_shared_activation_has_a_name():
    named = name_operations(Port())
    assert named.untraced == {}
    paths = {path for path, module in named.module.named_modules() if not any(module.children())}
    block = {"conv", "act", "act_1", "sigmoid", "mul", "add"}
    inside = {f"blocks.{index}.{name}" for index in range(2) for name in block}
    assert paths == inside | {"unused", "lstm", "gelu", "mul", "add", "crop", "mean"}


def test_the_twin_computes_the_same_with_the_same_tensors():
    port = Port()
    twin = name_operations(port).module
    assert all(torch.equal(found, expected) for found, expected in zip(outputs(twin), outputs(port), strict=True))
    ours, theirs = (dict(module.named_parameters()) | dict(module.named_buffers()) for module in (twin, port))
    assert list(ours) == list(theirs)
    assert all(ours[name] is theirs[name] for name in theirs)


def test_a_copy_of_the_twin_stands_alone():
    port = Port()
    expected = outputs(port)
    twin = copy.deepcopy(name_operations(port).module)
    with torch.no_grad():
        port.gain.zero_()
    assert all(torch.equal(found, other) for found, other in zip(outputs(twin), expected, strict=True))


def test_the_port_is_left_as_it_was():
    port = Port().eval()
    port.blocks[0].train()
    before = [(path, id(part), part.training, sorted(vars(part))) for path, part in port.named_modules()]
    name_operations(port)
    assert [(path, id(part), part.training, sorted(vars(part))) for path, part in port.named_modules()] == before


class Unsteady(nn.Module):
    """A forward that no graph holds."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        x = self.linear(x)
        if self.how == "value" and x.sum() > 0:
            return -x
        if self.how == "mode" and self.training:
            return 2 * x
        return x + torch.tensor(1.0) if self.how == "constant" else x


class Fixed(Unsteady):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (Unsteady("any"), "any number of arguments"),
        (Fixed("value"), "TraceError"),
        (Fixed("constant"), "tensors of its own"),
        (Fixed("mode"), "differs between training and evaluation"),
    ],
)
def test_what_cannot_be_traced_stays_as_it_is_and_is_named(part, reason):
    port = nn.Sequential(part, nn.ReLU())
    named = name_operations(port)
    assert named.module[0] is part  # pyright: ignore[reportIndexIssue]
    assert list(named.untraced) == ["0"]
    assert re.search(reason, named.untraced["0"])
    assert torch.equal(named.module(INPUT), port(INPUT))


def test_a_module_with_hooks_or_a_patched_forward_is_not_replaced():
    hooked, patched = Block(), Block()
    hooked.register_forward_hook(lambda module, args, result: -result)
    vars(patched)["forward"] = lambda x: x
    named = name_operations(nn.Sequential(hooked, patched))
    assert set(named.untraced) == {"0", "1"}
    assert torch.equal(named.module(INPUT), hooked(INPUT))


def test_an_operation_knows_its_kind():
    assert torch_kind(Operation("merge", torch.add)) == "merge"
    assert torch_kind(nn.ReLU()) == "activation"
    assert torch_kind(nn.BatchNorm2d(2)) == "batch norm"
    assert torch_kind(Block()) == "container"
    assert torch_kind(nn.PReLU()) == "custom"


def test_inside_a_module_that_cannot_be_traced_the_operations_have_names():
    class Outer(Fixed):
        def __init__(self) -> None:
            super().__init__("value")
            self.linear = nn.Sequential(Block())

    port = Outer()
    named = name_operations(port)
    assert list(named.untraced) == [""]
    assert isinstance(named.module.get_submodule("linear.0.sigmoid"), Operation)
    assert isinstance(port.linear[0], Block)
    assert torch.equal(named.module(INPUT), port(INPUT))


def test_an_argument_that_may_be_left_out_is_not_taken_for_given():
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
            return self.linear(x) if shift is None else self.linear(x) + shift

    port = Optional()
    named = name_operations(port)
    assert "optional" in named.untraced[""]
    assert torch.equal(named.module(INPUT), port(INPUT))

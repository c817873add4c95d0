"""Code and settings as text: enough of them to compute the same, and a reason where that cannot be."""

import functools
import math
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from parity.sources import NotSelfContained, Sources, method_of, settings
from torch_impl import EpiBERTConfig
from torch_impl.model import BatchNorm, Conv1d, EpiBERT, softplus

SCALE = 3.0
needed_nowhere = Path()


def scaled(x: torch.Tensor) -> torch.Tensor:
    return SCALE * x


class Layer(nn.Module):
    """A layer that uses a function, which uses a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.where = Path()

    def forward(self, x: "torch.Tensor") -> torch.Tensor:
        return self._twice(scaled(x))

    def _twice(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    def unused(self) -> Any:
        return needed_nowhere


class ReadsFiles(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return pytest.param(x).values[0]


def taken(value: Any, *modules: nn.Module) -> Sources:
    sources = Sources(modules)
    sources.add(value)
    return sources


def test_a_class_comes_with_all_that_it_needs_and_no_more():
    sources = taken(Layer, Layer())
    assert set(sources.definitions) == {"SCALE", "scaled", "Layer"}
    assert list(sources.imports) == ["from torch import nn"]
    assert "_twice" in sources.text
    assert "unused" not in sources.text
    assert "__init__" not in sources.text
    names: dict[str, Any] = {}
    text = "\n".join(["from __future__ import annotations", *sources.imports, sources.text])
    code = compile(text, "text", "exec")
    types.FunctionType(code, names)()
    made = names["Layer"].__new__(names["Layer"])
    nn.Module.__init__(made)
    assert made(torch.ones(2)).tolist() == [6.0, 6.0]


def test_code_of_other_modules_of_the_package_is_followed():
    sources = taken(BatchNorm, BatchNorm(3, 1e-5, 0.9))
    expected = {"SumOverProcesses", "channel_mean", "NormalizedBatch", "_image", "SHORT_SUM", "BatchNorm"}
    assert expected <= set(sources.definitions)
    assert set(sources.modules) == {"torch_impl.model", "torch_impl.kernels"}
    assert "import torch.distributed as dist" in sources.imports


def test_constructors_are_left_out_with_what_only_they_need():
    model = EpiBERT(EpiBERTConfig.tiny())
    assert "projection_matrix" not in taken(EpiBERT, model).definitions
    assert "lecun_normal_" not in taken(Conv1d, model).definitions


@pytest.mark.parametrize(
    ("value", "modules", "reason"),
    [
        (ReadsFiles, (ReadsFiles(),), "needs the package pytest"),
        (lambda x: x, (Layer(),), "stands inside another definition"),
        (functools.partial(scaled), (Layer(),), "a partial is not what functools"),
    ],
)
def test_what_cannot_be_written_down_says_why(value, modules, reason):
    with pytest.raises(NotSelfContained, match=reason):
        taken(value, *modules)


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 0.1, math.inf, "a'b\n", (), (1,), (1, (2.5, "x")), [1, [2]], {"a": (1,), 2: None}, torch.float32],
)
def test_settings_are_text_that_means_them(value):
    assert eval(Sources(()).expression(value), {"torch": torch}) == value  # noqa: S307  our own text


def test_a_configuration_is_its_class_with_its_fields():
    config = EpiBERTConfig.tiny()
    sources = Sources([EpiBERT(config)])
    assert eval(sources.expression(config), {"EpiBERTConfig": EpiBERTConfig}) == config  # noqa: S307  our own text
    assert "EpiBERTConfig" in sources.definitions


@pytest.mark.parametrize("function", [torch.exp, F.relu, torch.neg, math.sqrt])
def test_functions_of_libraries_are_named(function):
    sources = Sources(())
    assert sources.expression(function).endswith(function.__name__)
    assert sources.definitions == {}


def test_a_function_of_ours_is_copied():
    sources = Sources([EpiBERT(EpiBERTConfig.tiny())])
    assert sources.expression(softplus) == "softplus"
    assert "logaddexp" in sources.text


def test_an_object_is_no_plain_data():
    with pytest.raises(NotSelfContained, match="plain data"):
        Sources(()).expression(Path())


def test_a_module_with_hooks_is_refused():
    layer = Layer()
    assert set(settings(layer)) == {"where"}
    layer.register_forward_hook(lambda *_: None)
    with pytest.raises(NotSelfContained, match="hooks"):
        settings(layer)


def test_a_method_that_was_put_on_a_module_is_told_from_others():
    layer = Layer()
    assert method_of(layer, types.MethodType(scaled, layer)) is scaled
    assert method_of(layer, types.MethodType(scaled, Layer())) is None
    assert method_of(layer, scaled) is None

"""Backward passes that are written out against those that PyTorch derives."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.assertions import assert_same
from torch_impl import EpiBERTConfig, kernels
from torch_impl import model as model_module
from torch_impl.kernels import (
    Convolution,
    DroppedOut,
    Normalization,
    NormalizedBatch,
    TanhGELUByPieces,
    WeightedMean,
    tanh_gelu,
)
from torch_impl.model import BatchNorm, ConvBlock, Dropout, SoftmaxPool

CUBIC = EpiBERTConfig().gelu_cubic_coefficient


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
    monkeypatch.setattr(kernels, "PIECE", 40)
    monkeypatch.setattr(kernels, "SHORT_SUM", 3)
    monkeypatch.setattr(kernels, "LONG_PIECE", 4)
    monkeypatch.setattr(kernels, "FEW_FACTORS", 15)
    torch.manual_seed(0)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def plain_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, dim=(0, 1), correction=0)
    return (x - mean) * torch.rsqrt(variance + 1e-5) * weight + bias


def plain_mean(x: Tensor, logits: Tensor) -> Tensor:
    return (logits.softmax(dim=2) * x).sum(dim=2)


def plain_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + CUBIC * x**3)))


def normalized_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    norm = BatchNorm(5, 1e-5, 0.9).double().train()
    normalized = torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x,))
    value = TanhGELUByPieces.apply(normalized, CUBIC, Normalization.of(normalized))
    # Kept are the norm's input and three vectors; what was normalised could be overwritten.
    assert len(value.grad_fn.saved_tensors) == 4
    normalized.detach().fill_(torch.nan)
    return value


def again(draw: Callable[[], Tensor]) -> Tensor:
    torch.manual_seed(7)
    return draw()


def mask_of(x: Tensor, rate: float) -> Tensor:
    return again(lambda: DroppedOut.apply(torch.ones_like(x), rate)).ne(0).detach()


CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "convolution": (
        lambda x, weight, bias: Convolution.apply(x, weight, bias, False),
        lambda x, weight, bias: F.conv1d(x.mT, weight, bias, padding=2).mT,
        [(2, 11, 5), (3, 5, 5), (3,)],
    ),
    "convolution of few channels": (
        lambda x, weight, bias: Convolution.apply(x, weight, bias, False),
        lambda x, weight, bias: F.conv1d(x.mT, weight, bias, padding=2).mT,
        [(2, 11, 3), (4, 3, 5), (4,)],
    ),
    "convolution of single positions": (
        lambda x, weight, bias: Convolution.apply(x, weight, bias, False),
        lambda x, weight, bias: F.conv1d(x.mT, weight, bias).mT,
        [(2, 11, 16), (3, 16, 1), (3,)],
    ),
    "kernel longer than the sequence": (
        lambda x, weight, bias: Convolution.apply(x, weight, bias, False),
        lambda x, weight, bias: F.conv1d(x.mT, weight, bias, padding=2).mT,
        [(1, 2, 3), (4, 3, 5), (4,)],
    ),
    "norm": (
        lambda x, weight, bias: NormalizedBatch.apply(x, weight, bias, 1e-5, False)[0],
        plain_norm,
        [(2, 11, 5), (5,), (5,)],
    ),
    "pool": (WeightedMean.apply, plain_mean, [(2, 7, 2, 5), (2, 7, 2, 1)]),
    "gelu": (lambda x: TanhGELUByPieces.apply(x, CUBIC), plain_gelu, [(3, 31)]),
    "gelu of what is normalised again": (
        lambda x, weight, bias: normalized_gelu(x, weight, bias),
        lambda x, weight, bias: plain_gelu(plain_norm(x, weight, bias)),
        [(2, 11, 5), (5,), (5,)],
    ),
    "dropout": (
        lambda x: again(lambda: DroppedOut.apply(x, 0.3)),
        lambda x: x * mask_of(x, 0.3) / (1 - 0.3),
        [(7, 31)],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_plain_formula(case):
    written, plain, shapes = CASES[case]
    arguments = [drawn(*shape) for shape in shapes]
    results = []
    for function in (written, plain):
        value = function(*arguments)
        slope = torch.sin(torch.arange(value.numel(), dtype=torch.float64)).view(value.shape)
        results.append([value.detach(), *torch.autograd.grad(value, arguments, slope)])
    for got, expected in zip(*results, strict=True):
        assert_same(got, expected)


def test_statistics_are_those_of_the_batch():
    x = drawn(2, 11, 5)
    _, mean, variance = NormalizedBatch.apply(x, torch.ones(5).double(), torch.zeros(5).double(), 1e-5, False)
    for got, expected in zip((variance, mean), torch.var_mean(x.detach(), dim=(0, 1), correction=0), strict=True):
        assert_same(got, expected)
        assert not got.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_lower_precision_a_gelu_rounds_no_worse_than_pytorch(dtype):
    x = (3 * torch.randn(5000)).to(dtype)
    exact = plain_gelu(x.double())
    own, other = ((value.double() - exact).norm() for value in (tanh_gelu(x, CUBIC), F.gelu(x, approximate="tanh")))
    assert own <= 1.5 * other


def test_only_what_is_asked_for_is_computed():
    x, weight, bias = drawn(1, 6, 3), drawn(2, 3, 5), drawn(2)
    weight.requires_grad_(False)
    (by_input,) = torch.autograd.grad(Convolution.apply(x, weight, bias, False).sum(), [x])
    assert by_input.shape == x.shape


@pytest.mark.parametrize("training", [True, False])
def test_layers_of_a_model_use_them_and_compute_the_same(monkeypatch, training):
    block = ConvBlock(EpiBERTConfig.tiny(), 4, 6, 5).double().train(training)
    pool = SoftmaxPool(6).double()
    results, used = [], []
    for chosen in (True, False):
        monkeypatch.setattr(model_module, "worthwhile", lambda _, chosen=chosen: chosen)
        torch.manual_seed(1)
        x = drawn(2, 12, 4)
        value = pool(block(x))
        names, waiting = set(), [value.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is not None:
                names.add(type(node).__name__)
                waiting += [before for before, _ in node.next_functions]
        used.append(names)
        parameters = [*block.parameters(), *pool.parameters()]
        results.append([value.detach(), *torch.autograd.grad(value.square().sum(), [x, *parameters])])
    for got, expected in zip(*results, strict=True):
        assert_same(got, expected)
    own = {"ConvolutionBackward", "WeightedMeanBackward", "TanhGELUByPiecesBackward"}
    assert (own | ({"NormalizedBatchBackward"} if training else set())) <= used[0]
    assert not own & used[1]


def test_what_changed_since_it_was_normalised_is_kept_itself():
    norm = BatchNorm(5, 1e-5, 0.9).train()
    normalized = norm(torch.randn(2, 11, 5))
    assert Normalization.of(normalized) is not None
    assert Normalization.of(normalized * 1) is None
    with torch.no_grad():
        normalized.mul_(2)
    assert Normalization.of(normalized) is None


def test_no_function_has_a_second_derivative():
    x = drawn(3, 31)
    for value in (DroppedOut.apply(x, 0.5), TanhGELUByPieces.apply(x, CUBIC)):
        given = torch.ones_like(value).requires_grad_()
        (slope,) = torch.autograd.grad(value, x, given, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            slope.sum().backward()


def test_masks_come_from_the_state_of_pytorchs_generator():
    dropout, x = Dropout(0.25).train(), torch.ones(1000)
    state = torch.get_rng_state()
    first, second = dropout(x), dropout(x)
    torch.set_rng_state(state)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)
    assert torch.equal(first.unique(), torch.tensor([0, 1 / 0.75]))
    assert torch.equal(dropout.eval()(x), x)


def test_whoever_replaces_pytorchs_dropout_is_asked(monkeypatch):
    asked = []
    monkeypatch.setattr(F, "dropout", lambda x, *_: asked.append(x.shape) or x)
    x = torch.ones(3, 4)
    assert torch.equal(Dropout(0.25).train()(x), x)
    assert asked == [(3, 4)]

"""The losses of the port: against recorded numbers, and what they promise beyond."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.assertions import assert_same
from tests.unit.sources import ROOT
from torch_impl.losses import LOSS_TYPES, finetuning_loss, masked_loss, poisson, poisson_multinomial

DTYPES = {"f64": torch.float64, "f32": torch.float32}
# Rows of the table of tolerances: float32 sums round at another place when they are taken in another order.
ROWS = {"f64": "float64", "f32": "float32_only"}
WHOLE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"poisson": poisson, "poisson_multinomial": poisson_multinomial}


def recorded_losses(mode: str) -> Iterator[tuple[str, Callable[..., Tensor], Tensor, Tensor, float, np.ndarray]]:
    """Name, loss, targets, predictions, and the recorded mean and gradient."""
    with h5py.File(ROOT / "goldens" / "functions.h5") as file:
        for case, sample in file["losses"].items():
            y_true, y_pred = (torch.from_numpy(sample[key][()]).to(DTYPES[mode]) for key in ("y_true", "y_pred"))
            losses = {"poisson": (poisson, sample[mode]["poisson"])}
            for name, group in sample[mode]["poisson_multinomial"].items():
                weight, rescale = name.removeprefix("w").split("_rescale")
                options: dict[str, Any] = {"total_weight": float(weight), "rescale": rescale == "1"}
                losses[name] = (partial(poisson_multinomial, **options), group)
            for name, (loss, group) in losses.items():
                mean = float(np.mean(group["value"][()], dtype=np.float64))
                yield f"{case} {name}", loss, y_true, y_pred, mean, group["grad_of_mean_wrt_y_pred"][()]


@pytest.mark.parametrize("mode", ["f64", "f32"])
def test_losses_and_their_gradients(mode):
    number = 0
    for number, (what, loss, y_true, y_pred, mean, gradient) in enumerate(recorded_losses(mode), start=1):  # noqa: B007
        y_pred.requires_grad_()
        value = loss(y_true, y_pred)
        assert value.dtype == DTYPES[mode]
        assert_same(value, mean, ROWS[mode], what=what)
        assert_same(torch.autograd.grad(value, y_pred)[0], gradient, ROWS[mode], what=f"gradient of {what}")
    assert number == 3 * 11


@pytest.mark.parametrize("loss", WHOLE.values(), ids=WHOLE)
def test_a_bfloat16_prediction_is_cast_to_float32_first(loss):
    y_true, y_pred = torch.tensor([[[3.0], [1.0]]]), torch.tensor([[[2.5], [0.3]]], dtype=torch.bfloat16)
    value = loss(y_true.bfloat16(), y_pred)
    assert value.dtype == torch.float32
    assert value == loss(y_true, y_pred.float())


@pytest.fixture
def bins() -> tuple[Tensor, Tensor, Tensor]:
    """Targets, predictions, and a mask that selects more of one example than of another."""
    generator = np.random.default_rng(5)
    y_true, y_pred = generator.gamma(0.5, 4.0, (2, 3, 24, 1))
    mask = generator.random((3, 24, 1)) < [[[0.2]], [[0.5]], [[0.7]]]
    return torch.from_numpy(y_true), torch.from_numpy(y_pred), torch.from_numpy(mask)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_masked_loss_is_the_loss_of_the_gathered_bins(bins, loss_type, dtype):
    y_true, y_pred, mask = bins
    y_pred.requires_grad_()
    results = []
    for chosen in (mask, ~mask):
        gathered = WHOLE[loss_type](y_true[chosen].reshape(1, -1, 1), y_pred[chosen].reshape(1, -1, 1))
        results.append((gathered, torch.autograd.grad(gathered, y_pred)[0]))
    (inside, gradient), (outside, outside_gradient) = results
    value = masked_loss(y_true, y_pred, mask.to(dtype), loss_type=loss_type)
    assert_same(value, inside)
    assert_same(torch.autograd.grad(value, y_pred)[0], gradient)
    both = masked_loss(y_true, y_pred, mask.to(dtype), loss_type=loss_type, unmask=(~mask).to(dtype))
    assert_same(both, inside + outside)
    assert_same(torch.autograd.grad(both, y_pred)[0], gradient + outside_gradient)


def test_pooling_is_no_mean_of_the_examples(bins):
    y_true, y_pred, mask = bins
    for loss_type in LOSS_TYPES:
        pooled = masked_loss(y_true, y_pred, mask, loss_type=loss_type)
        singles = [masked_loss(*(x[i : i + 1] for x in bins), loss_type=loss_type) for i in range(3)]
        assert abs(pooled / torch.stack(singles).mean() - 1) > 0.01


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_what_is_not_masked_has_no_influence(bins, loss_type):
    y_true, y_pred, mask = bins
    expected = masked_loss(y_true, y_pred, mask, loss_type=loss_type)
    for value in (torch.nan, torch.inf, -1.0, 0.0):
        spoilt = torch.where(mask, y_pred, value).requires_grad_()
        loss = masked_loss(torch.where(mask, y_true, value), spoilt, mask, loss_type=loss_type)
        loss.backward()
        assert loss == expected
        assert spoilt.grad is not None
        assert spoilt.grad.isfinite().all()
        assert not spoilt.grad[~mask].any()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_an_empty_mask_gives_nan_and_no_gradient_or_raises(bins, loss_type):
    y_true, y_pred, mask = bins
    y_pred.requires_grad_()
    nothing = torch.zeros_like(mask)
    loss = masked_loss(y_true, y_pred, nothing, loss_type=loss_type)
    assert loss.isnan()
    assert not torch.autograd.grad(loss, y_pred)[0].any()
    with pytest.raises(ValueError, match="mask selects none of its 72 bins"):
        masked_loss(y_true, y_pred, nothing, loss_type=loss_type, empty="raise")
    with pytest.raises(ValueError, match="unmask selects none"):
        masked_loss(y_true, y_pred, mask, loss_type=loss_type, unmask=nothing, empty="raise")
    assert masked_loss(y_true, y_pred, mask, loss_type=loss_type, empty="raise").isfinite()


def test_impossible_arguments_are_refused(bins):
    with pytest.raises(ValueError, match="one of poisson, poisson_multinomial, not 'mse'"):
        masked_loss(*bins, loss_type="mse")
    with pytest.raises(ValueError, match="not 'mse'"):
        finetuning_loss(*bins[:2], loss_type="mse")
    with pytest.raises(ValueError, match="its target and its mask"):
        finetuning_loss(*bins[:2], atac_pred=bins[1], loss_type="poisson")


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_derivatives_are_those_of_finite_differences(bins, loss_type):
    y_true, y_pred, mask = bins
    loss = partial(masked_loss, y_true, mask=mask, loss_type=loss_type, unmask=~mask)
    assert torch.autograd.gradcheck(lambda p: loss(p), (y_pred + 0.1).requires_grad_())


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_fine_tuning_adds_the_scaled_loss_of_accessibility(bins, loss_type):
    atac_true, atac_pred, mask = bins
    rna_true, rna_pred = atac_pred, atac_true
    loss = finetuning_loss(rna_true, rna_pred, atac_true, atac_pred, mask, loss_type=loss_type, atac_scale=0.25)
    assert_same(loss.rna, WHOLE[loss_type](rna_true, rna_pred), "exact")
    assert loss.atac is not None
    assert_same(loss.atac, masked_loss(atac_true, atac_pred, mask, loss_type=loss_type), "exact")
    assert_same(loss.total, 0.25 * loss.atac + loss.rna, "exact")
    alone = finetuning_loss(rna_true, rna_pred, loss_type=loss_type)
    assert alone.atac is None
    assert alone.total is alone.rna


# In an interpreter of its own, because the compiler does not look through the shape checks of the tests.
COMPILED = """
import torch
from torch_impl.losses import LOSS_TYPES, finetuning_loss, masked_loss
true, predicted, mask = torch.rand(3, 3, 40, 1, dtype=torch.float64)
mask = (mask > 0.5).double()
for loss_type in LOSS_TYPES:
    def loss(true, predicted, mask):
        atac = masked_loss(true, predicted, mask, loss_type=loss_type, unmask=1 - mask)
        return atac + finetuning_loss(true, predicted, true, predicted, mask, loss_type=loss_type).total
    results = []
    for run in (loss, torch.compile(loss, fullgraph=True, backend="eager")):
        p = predicted.clone().requires_grad_()
        value = run(true, p, mask)
        value.backward()
        results.append(torch.cat([value.detach().reshape(1), p.grad.flatten()]))
    torch.testing.assert_close(*results, rtol=1e-14, atol=0)
"""


def test_the_losses_compile_as_one_graph():
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", COMPILED],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr

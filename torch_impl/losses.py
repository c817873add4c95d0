"""The two losses that the original trains with, and how its train steps apply them.

Source of the semantics: the specification of the original TensorFlow implementation (naumanjaved/EpiBERT, MIT), its
section 3.1. Targets come before predictions, as in Keras. All losses are computed in float32, those of float64
predictions in float64. Values are counts per bin: non-negative, of no unit.

Letters in shapes: B batch, N bins, T channels.

Under data parallelism each process computes the loss of its own part of the batch and gradients are averaged, which is
what the original does: its loss is the mean of the means of the replicas, not the mean over all bins of all replicas.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

LOG_EPSILON = 1e-7
"""Inside the logarithm of Keras' Poisson loss."""

POISSON, POISSON_MULTINOMIAL = LOSS_TYPES = ("poisson", "poisson_multinomial")

Scalar = Float[Tensor, ""]


class FinetuningLoss(NamedTuple):
    """The loss of the fine-tuning model and its parts.

    Attributes:
        total: What is minimised.
        rna: Loss of the RNA head.
        atac: Unscaled loss of the ATAC head; None for a model without one.
    """

    total: Scalar
    rna: Scalar
    atac: Scalar | None


def poisson(y_true: Float[Tensor, "*shape"], y_pred: Float[Tensor, "*shape"]) -> Scalar:
    """Mean of p - y ln(p + 1e-7).

    Args:
        y_true: Counts y.
        y_pred: Predicted means p.

    Returns:
        The mean over all elements; NaN of no elements.
    """
    y_true, y_pred = _widened(y_true, y_pred)
    return _poisson_terms(y_true, y_pred).mean()


def poisson_multinomial(
    y_true: Float[Tensor, "B N T"],
    y_pred: Float[Tensor, "B N T"],
    total_weight: float = 0.15,
    *,
    epsilon: float = 1e-6,
    rescale: bool = True,
) -> Scalar:
    """How counts spread over the bins (multinomial), plus how many there are (Poisson), both per bin.

    y and p are first raised by epsilon; Y and P are their sums over the bins. The multinomial term is
    -Σ y ln(p / P) / N for every example and channel, the Poisson term (P - Y ln(P + 1e-7)) / N, averaged over channels.

    Args:
        y_true: Counts y.
        y_pred: Predicted means p.
        total_weight: Weight w of the Poisson term.
        epsilon: Added to both before anything else.
        rescale: Multiply by 2 / (1 + w), so that the weight does not change the size of the loss.

    Returns:
        The mean over examples and channels of multinomial + w · Poisson.
    """
    y_true, y_pred = _widened(y_true, y_pred)
    y_true, y_pred = y_true + epsilon, y_pred + epsilon
    bins = y_pred.shape[-2]
    true_total, predicted_total = y_true.sum(dim=-2, keepdim=True), y_pred.sum(dim=-2, keepdim=True)
    total = _poisson_terms(true_total, predicted_total).mean(dim=-1) / bins
    spread = -(y_true * torch.log(y_pred / predicted_total)).sum(dim=-2) / bins
    return ((spread + total_weight * total) * _scale(total_weight, rescale=rescale)).mean()


def masked_loss(
    y_true: Float[Tensor, "B N T"],
    y_pred: Float[Tensor, "B N T"],
    mask: Shaped[Tensor, "B N T"],
    *,
    loss_type: str,
    total_weight: float = 0.15,
    unmask: Shaped[Tensor, "B N T"] | None = None,
    empty: Literal["nan", "raise"] = "nan",
) -> Scalar:
    """The loss on the masked bins of the whole batch, pooled into one example of shape (1, n, 1).

    Pooling makes it a mean over bins: examples with more masked bins weigh more. Nothing is gathered, so shapes are
    static and a GPU is not waited for; values of other bins, whatever they are, have no influence and no gradient.

    Args:
        y_true: Counts.
        y_pred: Predicted means.
        mask: 1 where a bin counts.
        loss_type: ``poisson`` or ``poisson_multinomial``.
        total_weight: As for ``poisson_multinomial``.
        unmask: When given, the loss on the bins where it is 1 is added, with the same weight.
        empty: What to do when no bin is masked: ``nan`` returns NaN with a gradient of zero, as the original does;
            ``raise`` raises, at the price of waiting for the device.

    Raises:
        ValueError: The loss type is unknown, or no bin is masked and ``empty`` is ``raise``.
    """
    _check(loss_type)
    if empty not in ("nan", "raise"):
        raise ValueError(f"empty must be 'nan' or 'raise', not {empty!r}")
    y_true, y_pred = _widened(y_true, y_pred)
    loss = y_pred.new_zeros(())
    for name, selection in (("mask", mask), ("unmask", unmask)):
        if selection is None:
            continue
        keep = selection == 1
        if empty == "raise" and not bool(keep.any()):
            raise ValueError(f"{name} selects none of its {keep.numel()} bins")
        if loss_type == POISSON:
            loss = loss + _pooled_poisson(y_true, y_pred, keep)
        else:
            loss = loss + _pooled_poisson_multinomial(y_true, y_pred, keep, total_weight, epsilon=1e-6)
    return loss


def finetuning_loss(
    rna_true: Float[Tensor, "B N 1"],
    rna_pred: Float[Tensor, "B N 1"],
    atac_true: Float[Tensor, "B N 1"] | None = None,
    atac_pred: Float[Tensor, "B N 1"] | None = None,
    mask: Shaped[Tensor, "B N 1"] | None = None,
    *,
    loss_type: str,
    total_weight: float = 0.15,
    atac_scale: float = 1e-3,
    empty: Literal["nan", "raise"] = "nan",
) -> FinetuningLoss:
    """Loss of the fine-tuning model: RNA on all bins, plus ATAC on the masked ones when the model predicts it.

    Args:
        rna_true: RNA counts.
        rna_pred: Predicted RNA.
        atac_true: ATAC counts.
        atac_pred: Predicted ATAC; None for a model without that head.
        mask: 1 where an ATAC bin counts.
        loss_type: ``poisson`` or ``poisson_multinomial``, for both heads.
        total_weight: As for ``poisson_multinomial``.
        atac_scale: Weight of the ATAC loss.
        empty: As for ``masked_loss``.

    Raises:
        ValueError: The loss type is unknown, or ATAC is predicted and has no target or no mask.
    """
    _check(loss_type)
    if loss_type == POISSON:
        rna = poisson(rna_true, rna_pred)
    else:
        rna = poisson_multinomial(rna_true, rna_pred, total_weight)
    if atac_pred is None:
        return FinetuningLoss(rna, rna, None)
    if atac_true is None or mask is None:
        raise ValueError("predicted ATAC needs its target and its mask")
    atac = masked_loss(atac_true, atac_pred, mask, loss_type=loss_type, total_weight=total_weight, empty=empty)
    return FinetuningLoss(atac_scale * atac + rna, rna, atac)


def _check(loss_type: str) -> None:
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type must be one of {', '.join(LOSS_TYPES)}, not {loss_type!r}")


def _widened(y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32, or in float64 where the prediction is: the original casts bfloat16 outputs before its loss."""
    dtype = torch.promote_types(y_pred.dtype, torch.float32)
    return y_true.to(dtype), y_pred.to(dtype)


def _poisson_terms(y_true: Tensor, y_pred: Tensor) -> Tensor:
    return y_pred - y_true * torch.log(y_pred + LOG_EPSILON)


def _scale(total_weight: float, *, rescale: bool) -> float:
    return 2 / (1 + total_weight) if rescale else 1.0


def _pooled_poisson(y_true: Tensor, y_pred: Tensor, keep: Tensor) -> Tensor:
    # Of zero counts and a zero mean, a Poisson term is zero.
    zero = y_pred.new_zeros(())
    return _poisson_terms(torch.where(keep, y_true, zero), torch.where(keep, y_pred, zero)).sum() / keep.sum()


def _pooled_poisson_multinomial(
    y_true: Tensor, y_pred: Tensor, keep: Tensor, total_weight: float, *, epsilon: float
) -> Tensor:
    zero, one = y_pred.new_zeros(()), y_pred.new_ones(())
    y_true = torch.where(keep, y_true + epsilon, zero)
    # One, so that the logarithm of a bin that does not count is finite before it is multiplied by zero.
    y_pred = torch.where(keep, y_pred + epsilon, one)
    bins = keep.sum()
    true_total, predicted_total = y_true.sum(), torch.where(keep, y_pred, zero).sum()
    total = _poisson_terms(true_total, predicted_total) / bins
    spread = -(y_true * torch.log(y_pred / predicted_total)).sum() / bins
    return (spread + total_weight * total) * _scale(total_weight, rescale=True)

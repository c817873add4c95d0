"""Streaming correlation metrics of the original, as torchmetrics.

Source of the semantics: the specification of the original TensorFlow implementation (naumanjaved/EpiBERT, MIT), its
section 3.2. Both metrics keep six sums, in float32 as the original does, so what cancellation costs there it costs
here; ``state_dtype=torch.float64`` does better. The sums of several processes are added up, hence the result is that of
all their batches together. torchmetrics makes a scalar of a single number, where the original returns shape (1,).
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric


class _Sums(Metric):
    """Sums over all elements seen so far.

    Args:
        reduce_axis: Axes of a batch that are summed; None sums them all.
        shape: Shape of what is left of a batch then; one channel, (1,), by default, and () when all is summed.
        state_dtype: Dtype of the sums, in which the result is computed as well.

    Attributes:
        count: Number of elements.
        true_sum, true_squared_sum: Σ y and Σ y² of the targets.
        pred_sum, pred_squared_sum: Σ p and Σ p² of the predictions.
        product_sum: Σ y p.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    count: Tensor
    true_sum: Tensor
    true_squared_sum: Tensor
    pred_sum: Tensor
    pred_squared_sum: Tensor
    product_sum: Tensor

    def __init__(
        self,
        reduce_axis: tuple[int, ...] | None = (0, 1),
        *,
        shape: tuple[int, ...] | None = None,
        state_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.reduce_axis = reduce_axis
        if shape is None:
            shape = () if reduce_axis is None else (1,)
        for name in ("count", "true_sum", "true_squared_sum", "pred_sum", "pred_squared_sum", "product_sum"):
            self.add_state(name, torch.zeros(shape, dtype=state_dtype), dist_reduce_fx="sum")

    def update(self, pred: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"]) -> None:
        """Add a batch.

        Args:
            pred: Predictions p.
            target: Targets y.

        Raises:
            ValueError: What is left of the batch after summing does not have the shape of the state.
        """
        dtype = self.count.dtype
        pred, target = pred.to(dtype), target.to(dtype)
        axes = tuple(range(pred.ndim)) if self.reduce_axis is None else self.reduce_axis
        product = (target * pred).sum(dim=axes)
        if product.shape != self.count.shape:
            raise ValueError(
                f"summed over axes {axes}, a batch of shape {tuple(pred.shape)} has shape {tuple(product.shape)}, "
                f"the state {tuple(self.count.shape)}"
            )
        self.count = self.count + pred.numel() // product.numel()
        self.true_sum = self.true_sum + target.sum(dim=axes)
        self.true_squared_sum = self.true_squared_sum + target.square().sum(dim=axes)
        self.pred_sum = self.pred_sum + pred.sum(dim=axes)
        self.pred_squared_sum = self.pred_squared_sum + pred.square().sum(dim=axes)
        self.product_sum = self.product_sum + product


class PearsonR(_Sums):
    """Pearson correlation of everything seen since the last reset.

    There is no epsilon: predictions or targets that are all alike give NaN (0 / 0), or, where the sums of squares
    round, anything. Before the first update the result is NaN, and torchmetrics warns; the original raises
    AttributeError then, and is NaN after a reset.
    """

    def compute(self) -> Float[Tensor, "*reduced"]:
        """Correlation, one for each element that was not summed over."""
        true_mean, pred_mean = self.true_sum / self.count, self.pred_sum / self.count
        covariance = (
            self.product_sum
            - true_mean * self.pred_sum
            - pred_mean * self.true_sum
            + self.count * true_mean * pred_mean
        )
        true_variance = self.true_squared_sum - self.count * true_mean.square()
        pred_variance = self.pred_squared_sum - self.count * pred_mean.square()
        return covariance / (true_variance.sqrt() * pred_variance.sqrt())


class R2(_Sums):
    """Coefficient of determination, 1 - Σ (y - p)² / Σ (y - ȳ)², of everything seen since the last reset.

    Targets that are all alike give NaN or minus infinity. Before the first update: as for ``PearsonR``.
    """

    def compute(self) -> Float[Tensor, "*reduced"]:
        """One minus the unexplained share of the variance, one for each element that was not summed over."""
        true_mean = self.true_sum / self.count
        residual = self.pred_squared_sum - 2 * self.product_sum + self.true_squared_sum
        return 1 - residual / (self.true_squared_sum - self.count * true_mean.square())

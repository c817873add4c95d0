"""Metrics of the original, as torchmetrics: streaming correlations, and correlations across genes and cell types.

Source of the semantics: the specification of the original TensorFlow implementation (naumanjaved/EpiBERT, MIT), its
section 3.2. The streaming metrics keep six sums, in float32 as the original does, so what cancellation costs there it
costs here; ``state_dtype=torch.float64`` does better. The sums of several processes are added up, hence the result is
that of all their batches together. torchmetrics makes a scalar of a single number, where the original returns shape
(1,).
"""

from typing import Any

import torch
from jaxtyping import Float, Int
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


class Mean(Metric):
    """Mean of all numbers since the last reset, each batch's counting once, whatever its size: Keras' running mean.

    Before the first update the result is NaN, and torchmetrics warns.
    """

    is_differentiable = False
    full_state_update = False

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "count"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, value: Float[Tensor, ""]) -> None:
        """Add a number."""
        # Not in place: a state that was reset in inference mode could not be changed outside of it, as when a Trainer
        # validates and then trains.
        self.total = self.total + value.detach().to(self.total.dtype)
        self.count = self.count + 1

    def compute(self) -> Float[Tensor, ""]:
        """The mean."""
        return self.total / self.count


class GeneCellCorrelation(Metric):
    """Correlation of predicted and measured expression across genes, and across cell types.

    An example is one gene in one cell type: the sum of its bins at transcription start sites. Examples of one gene and
    cell type are summed; log2(1 + x) of the sums is standardised over the genes of each cell type, by the population's
    standard deviation. Then, for each cell type, Pearson's correlation over its genes, and for each gene over its cell
    types. A correlation that is not defined (all values alike, fewer than two) counts in neither mean; how many did is
    part of the result.

    Everything seen is kept, three numbers and two tokens an example. Processes that saw no example at all take part in
    the synchronisation as those that did.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    target: list[Tensor]
    pred: list[Tensor]
    gene: list[Tensor]
    cell: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("target", "pred", "gene", "cell"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(
        self,
        pred: Float[Tensor, "B N 1"],
        target: Float[Tensor, "B N 1"],
        tss_tokens: Float[Tensor, "B N 1"],
        gene: Int[Tensor, " B"],
        cell: Int[Tensor, " B"],
    ) -> None:
        """Add a batch.

        Args:
            pred: Predicted RNA.
            target: Measured RNA.
            tss_tokens: 1 in the bins of the gene's start sites.
            gene: Number of the gene.
            cell: Number of the cell type.
        """
        dtype = torch.promote_types(pred.dtype, torch.float32)
        tokens = tss_tokens.to(dtype)
        for state, bins in ((self.pred, pred), (self.target, target)):
            state.append((bins.to(dtype) * tokens).sum(dim=(1, 2)).detach().double())
        self.gene.append(gene.long())
        self.cell.append(cell.long())

    def compute(self) -> dict[str, Tensor]:
        """The two means, each with the number of correlations behind it.

        Returns:
            ``cell_pearson``: mean over cell types of the correlation over genes, and ``cells``; ``gene_pearson``: mean
            over genes of that over cell types, and ``genes``. float64 and int64; NaN where nothing is defined.
        """
        pred, target, gene, cell = (_joined(values) for values in (self.pred, self.target, self.gene, self.cell))
        pairs, which = torch.unique(torch.stack([cell, gene]).long(), dim=1, return_inverse=True)
        sums = pred.new_zeros((2, pairs.shape[1]), dtype=torch.float64)
        sums.index_add_(1, which, torch.stack([pred, target]).double())
        levels = torch.log2(1 + sums)
        _, cells = pairs[0].unique(return_inverse=True)
        _, genes = pairs[1].unique(return_inverse=True)
        centred = levels - _group_mean(levels, cells)
        variance = _group_mean(centred.square(), cells)
        alike = variance <= _noise(levels) * _group_mean(levels.square(), cells)
        standardised = torch.where(alike, torch.nan, centred / variance.sqrt())
        found: dict[str, Tensor] = {}
        for name, groups in (("cell", cells), ("gene", genes)):
            correlations = _group_correlation(standardised, groups)
            defined = correlations[~correlations.isnan()]
            found |= {f"{name}_pearson": defined.mean(), f"{name}s": torch.tensor(len(defined), device=pred.device)}
        return found

    def _sync_dist(self, *arguments: Any, **keywords: Any) -> None:
        # A process with empty lists would make no collective call, and all others wait for it forever.
        for name in ("target", "pred", "gene", "cell"):
            if not getattr(self, name):
                dtype = torch.int64 if name in ("gene", "cell") else torch.float64
                setattr(self, name, [torch.zeros(0, dtype=dtype, device=self.device)])
        super()._sync_dist(*arguments, **keywords)


def _joined(values: list[Tensor] | Tensor) -> Tensor:
    """A list state as one tensor; torchmetrics makes it one itself when it has synchronised."""
    if isinstance(values, Tensor):
        return values
    return torch.cat(values) if values else torch.zeros(0)


def _noise(values: Tensor) -> float:
    """Share of their mean square below which the variance of values is rounding: they are all alike."""
    return torch.finfo(values.dtype).eps * values.shape[-1]


def _group_mean(values: Float[Tensor, "K P"], groups: Int[Tensor, " P"]) -> Float[Tensor, "K P"]:
    """The mean of each value's group, in the place of the value."""
    count = int(groups.max()) + 1 if len(groups) else 0
    sums = values.new_zeros((len(values), count)).index_add_(1, groups, values)
    return (sums / torch.bincount(groups, minlength=count))[:, groups]


def _group_correlation(values: Float[Tensor, "2 P"], groups: Int[Tensor, " P"]) -> Float[Tensor, " G"]:
    """Pearson's correlation of the two rows within each group; NaN where it is not defined."""
    count = int(groups.max()) + 1 if len(groups) else 0
    x, y = values - _group_mean(values, groups)
    moments = values.new_zeros((3, count)).index_add_(1, groups, torch.stack([x * y, x * x, y * y]))
    squares = values.new_zeros((2, count)).index_add_(1, groups, values.square())
    alike = (moments[1:] <= _noise(values) * squares).any(dim=0)
    return torch.where(alike, torch.nan, moments[0] / (moments[1] * moments[2]).sqrt())

"""Metrics of the original: streaming correlations, and correlations across genes and cell types.

Source of the semantics: the specification of the original TensorFlow implementation (naumanjaved/EpiBERT, MIT), its
section 3.2. The streaming metrics keep six sums in float32 and add no epsilon anywhere: 0 / 0 is NaN, and cancellation
shows.
"""

import collections
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from jaxtyping import Shaped


class _Sums(tf_keras.metrics.Metric):
    """Sums over everything seen since the last reset.

    The original makes its state at the first update, so that a result before it raises AttributeError. Here the state
    is there from the start and such a result is NaN, as it is after a reset.

    Args:
        reduce_axis: Axes of a batch that are summed; None sums them all.
        shape: Shape of what is left of a batch then; one channel, (1,), by default, and () when all is summed.
        name: Name of the metric.
        dtype: Dtype of the sums; float32 in the original, whatever the precision of the model.

    Attributes:
        count: Number of elements.
        true_sum, true_squared_sum: Σ y and Σ y² of the targets.
        pred_sum, pred_squared_sum: Σ p and Σ p² of the predictions.
        product_sum: Σ y p.
    """

    def __init__(
        self,
        reduce_axis: tuple[int, ...] | None = (0, 1),
        *,
        shape: tuple[int, ...] | None = None,
        name: str | None = None,
        dtype: str = "float32",
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.reduce_axis = reduce_axis
        if shape is None:
            shape = () if reduce_axis is None else (1,)
        self.count = self.add_weight("count", shape, initializer="zeros")
        self.true_sum = self.add_weight("true_sum", shape, initializer="zeros")
        self.true_squared_sum = self.add_weight("true_squared_sum", shape, initializer="zeros")
        self.pred_sum = self.add_weight("pred_sum", shape, initializer="zeros")
        self.pred_squared_sum = self.add_weight("pred_squared_sum", shape, initializer="zeros")
        self.product_sum = self.add_weight("product_sum", shape, initializer="zeros")

    def update_state(
        self, y_true: Shaped[tf.Tensor, "*shape"], y_pred: Shaped[tf.Tensor, "*shape"], sample_weight: Any = None
    ) -> None:
        """Add a batch.

        Args:
            y_true: Targets y.
            y_pred: Predictions p.
            sample_weight: Ignored, as in the original.
        """
        y_true, y_pred = (tf.cast(values, self.count.dtype) for values in (y_true, y_pred))
        for state, values in (
            (self.count, tf.ones_like(y_true)),
            (self.true_sum, y_true),
            (self.true_squared_sum, tf.square(y_true)),
            (self.pred_sum, y_pred),
            (self.pred_squared_sum, tf.square(y_pred)),
            (self.product_sum, y_true * y_pred),
        ):
            state.assign_add(tf.reduce_sum(values, axis=self.reduce_axis))

    def reset_state(self) -> None:
        """Forget everything."""
        for state in self.variables:
            state.assign(tf.zeros_like(state))


class PearsonR(_Sums):
    """Pearson correlation."""

    def result(self) -> dict[str, tf.Tensor]:
        """``{"PearsonR": r}``, one number for each element that was not summed over."""
        true_mean, pred_mean = self.true_sum / self.count, self.pred_sum / self.count
        covariance = (
            self.product_sum
            - true_mean * self.pred_sum
            - pred_mean * self.true_sum
            + self.count * true_mean * pred_mean
        )
        true_variance = self.true_squared_sum - self.count * tf.square(true_mean)
        pred_variance = self.pred_squared_sum - self.count * tf.square(pred_mean)
        return {"PearsonR": covariance / (tf.sqrt(true_variance) * tf.sqrt(pred_variance))}


class R2(_Sums):
    """Coefficient of determination."""

    def result(self) -> dict[str, tf.Tensor]:
        """``{"R2": r2}``, one number for each element that was not summed over."""
        true_mean = self.true_sum / self.count
        residual = self.pred_squared_sum - 2 * self.product_sum + self.true_squared_sum
        return {"R2": 1 - residual / (self.true_squared_sum - self.count * tf.square(true_mean))}


class GeneCellCorrelation:
    """Correlation of predicted and measured expression across genes, and across cell types.

    The original collects the sums of its validation steps and computes this on the host, in float64. Examples of one
    gene and cell type are summed; log2(1 + x) is standardised within each cell type (population standard deviation);
    correlations that are not defined count in neither mean.
    """

    def __init__(self) -> None:
        self.reset_state()

    def reset_state(self) -> None:
        """Forget everything."""
        self.sums: dict[Any, dict[Any, np.ndarray]] = collections.defaultdict(
            lambda: collections.defaultdict(lambda: np.zeros(2))
        )

    def update_state(
        self,
        true: Shaped[Any, " B"],
        predicted: Shaped[Any, " B"],
        gene: Shaped[Any, " B"],
        cell: Shaped[Any, " B"],
    ) -> None:
        """Add examples.

        Args:
            true: Measured RNA of each, summed over the bins of start sites.
            predicted: Predicted RNA, likewise.
            gene: Number of the gene.
            cell: Number of the cell type.
        """
        columns = [np.asarray(values).reshape(-1).tolist() for values in (true, predicted, gene, cell)]
        for y, p, gene_token, cell_type in zip(*columns, strict=True):
            self.sums[cell_type][gene_token] += (y, p)

    def result(self) -> dict[str, float]:
        """Both means and the numbers of correlations behind them; NaN where nothing is defined.

        Returns:
            ``cell_pearson`` (over genes within a cell type), ``cells``, ``gene_pearson`` (over cell types for a gene)
            and ``genes``.
        """
        by_cell: list[np.ndarray] = []
        by_gene: dict[Any, list[np.ndarray]] = collections.defaultdict(list)
        for genes in self.sums.values():
            levels = np.log2(1 + np.array(list(genes.values())))
            spread = levels.std(axis=0)
            with np.errstate(invalid="ignore", divide="ignore"):
                standardised = (levels - levels.mean(axis=0)) / np.where(_flat(levels), np.nan, spread)
            by_cell.append(standardised)
            for gene, row in zip(genes, standardised, strict=True):
                by_gene[gene].append(row)
        cells, genes_found = _defined(by_cell), _defined(np.array(rows) for rows in by_gene.values())
        return {
            "cell_pearson": math.fsum(cells) / len(cells) if cells else math.nan,
            "cells": len(cells),
            "gene_pearson": math.fsum(genes_found) / len(genes_found) if genes_found else math.nan,
            "genes": len(genes_found),
        }


def _flat(values: np.ndarray) -> np.ndarray:
    """Which columns hold one value over and over, up to rounding."""
    largest = np.abs(values).max(axis=0)
    return np.ptp(values, axis=0) <= np.sqrt(np.finfo(np.float64).eps) * largest


def _defined(groups: Iterable[np.ndarray]) -> list[float]:
    """Pearson's correlations of the two columns of each group, where there is one."""
    found = []
    for values in groups:
        if len(values) > 1 and np.isfinite(values).all() and not _flat(values).any():
            found.append(float(np.corrcoef(values, rowvar=False)[0, 1]))
    return found

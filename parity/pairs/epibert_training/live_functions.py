"""The rung losses, live: losses, their gradients and metrics against the reference's functions, on drawn numbers."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from parity.draws import Draws
from parity.pairs.epibert_training.function_rows import loss_row, streamed, value_and_gradient, with_arguments
from parity.pairs.epibert_training.parts import ATAC_SCALE, PORT, TOTAL_WEIGHT, PortTraining
from parity.records import Comparison
from parity.trace import attempt
from parity.training import METRIC

LOSS_TYPES = (("poisson", TOTAL_WEIGHT), ("poisson_multinomial", TOTAL_WEIGHT), ("poisson_multinomial", 1.0))
SAMPLES = {"ordinary": (2, 60, 1), "extreme": (3, 17, 1), "one bin each": (2, 2, 1)}
"""Shapes of the samples that losses are compared on."""


def compare_losses(port: PortTraining = PORT, *, case: str = "", seed: int = 0) -> Iterator[Comparison]:
    """Value and gradient of every loss, living reference against port, on drawn targets and predictions in float64.

    Args:
        port: What trains the port.
        case: Name of the case.
        seed: From which targets and predictions are drawn.
    """
    import tensorflow as tf

    from tf_reference import losses

    def both(ours: Callable[..., Any], theirs: Callable[..., Any], label: str, sample: "LossSample") -> Iterator[Any]:
        true, predicted, *masks = map(torch.from_numpy, (sample.true, sample.predicted, *sample.masks))
        value, gradient, error = value_and_gradient(lambda p: ours(true, p, *masks), predicted)
        with tf.GradientTape() as tape:
            watched = tf.constant(sample.predicted)
            tape.watch(watched)
            expected = theirs(tf.constant(sample.true), watched, *map(tf.constant, sample.masks))
        truth: Any = tape.gradient(expected, watched)
        yield loss_row(value, expected.numpy(), f"{label}, {sample.name}", case, detail=error)
        yield loss_row(gradient, truth.numpy(), f"{label}, {sample.name}, gradient", case, detail=error)

    for sample in loss_samples(seed):
        for loss_type, weight in LOSS_TYPES:
            label = f"{loss_type}, total weight {weight:g}"
            if loss_type == "poisson":
                whole = dataclasses.replace(sample, masks=())
                # Keras' Poisson leaves one value for each bin; the train step takes their mean.
                yield from both(port.poisson, losses.poisson, loss_type, whole)
            else:
                whole = dataclasses.replace(sample, masks=())
                yield from both(
                    with_arguments(port.poisson_multinomial, total_weight=weight),
                    with_arguments(losses.poisson_multinomial, total_weight=weight),
                    label,
                    whole,
                )
            for unmasked in (False, True):
                chosen = dataclasses.replace(sample, masks=sample.masks[: 2 if unmasked else 1])
                yield from both(
                    _masked(port.masked_loss, loss_type, weight),
                    _masked(losses.masked_loss, loss_type, weight),
                    f"masked {label}{' with the unmasked term' if unmasked else ''}",
                    chosen,
                )


def compare_metrics(port: PortTraining = PORT, *, case: str = "", seed: int = 0) -> Iterator[Comparison]:
    """Streamed correlation metrics after every batch, with sums in float64 and, as in the original, in float32.

    Arguments are those of ``compare_losses``.
    """
    import tensorflow as tf

    from tf_reference import metrics

    # Predictions that follow the target: what correlates by chance alone is left of terms that cancel, and in float32
    # may be rounding.
    generator = Draws(seed).generator("metrics")
    truth = [generator.gamma(0.5, 8.0, size=(2, 30 + index, 1)) for index in range(4)]
    batches = [(0.5 * true + 0.25 * generator.gamma(1.0, 4.0, size=true.shape), true) for true in truth]
    for name, make in port.metrics.items():
        for precision, dtype, tensorflow_dtype in (
            ("float64", torch.float64, "float64"),
            ("float32", torch.float32, "float32"),
        ):
            given = [[torch.from_numpy(array).to(dtype) for array in batch] for batch in batches]
            ours = streamed(lambda make=make, dtype=dtype: make(state_dtype=dtype), given)
            theirs = getattr(metrics, name)(dtype=tensorflow_dtype)
            for index, (predicted, true) in enumerate(batches):
                theirs.update_state(tf.constant(true, tensorflow_dtype), tf.constant(predicted, tensorflow_dtype))
                value, error = ours[index]
                yield loss_row(
                    value,
                    _metric_result(theirs),
                    f"{name} after batch {index + 1}",
                    case,
                    tolerance="float64" if precision == "float64" else "float32_metric",
                    layer=METRIC,
                    detail=error,
                )


def compare_finetuning_losses(port: PortTraining = PORT, *, case: str = "", seed: int = 0) -> Iterator[Comparison]:
    """The joint loss of both heads and of the RNA head alone, its parts and its gradients by both predictions.

    Arguments are those of ``compare_losses``.
    """
    import tensorflow as tf

    from tf_reference import training

    for sample in loss_samples(seed):
        # The other head's numbers are the same in reverse order, so that one taken for the other shows.
        arrays = {
            "rna_true": sample.true,
            "rna_pred": sample.predicted,
            "atac_true": sample.true[:, ::-1].copy(),
            "atac_pred": sample.predicted[:, ::-1].copy(),
        }
        for loss_type, weight in LOSS_TYPES:
            for heads in (("rna", "atac"), ("rna",)):
                names = [f"{head}_{what}" for head in heads for what in ("true", "pred")]
                common = {"loss_type": loss_type, "total_weight": weight, "atac_scale": ATAC_SCALE}
                given = {name: torch.from_numpy(arrays[name]) for name in names}
                if "atac" in heads:
                    given["mask"] = torch.from_numpy(sample.masks[0])

                def ours(given: Any = given, common: Any = common, heads: Any = heads) -> Any:
                    watched = {f"{head}_pred": given[f"{head}_pred"].clone().requires_grad_() for head in heads}
                    loss = port.finetuning_loss(**given | watched, **common)
                    loss.total.backward()
                    values = [float(getattr(loss, name).detach()) for name in ("total", *heads)]
                    return values, [watched[f"{head}_pred"].grad.numpy() for head in heads]

                found, error = attempt(ours)
                predictions = [tf.constant(arrays[f"{head}_pred"]) for head in heads]
                with tf.GradientTape() as tape:
                    for prediction in predictions:
                        tape.watch(prediction)
                    rna, *others = predictions
                    loss = training.finetuning_loss(
                        (others[0] if others else None, rna),
                        tf.constant(arrays["rna_true"]),
                        tf.constant(arrays["atac_true"]),
                        tf.constant(sample.masks[0]),
                        **common,
                    )
                gradients: Any = tape.gradient(loss.total, predictions)
                label = f"{' and '.join(heads)}, {loss_type}, total weight {weight:g}, {sample.name}"
                for index, name in enumerate(("total", *heads)):
                    value = None if found is None else found[0][index]
                    expected: Any = getattr(loss, name)
                    yield loss_row(value, expected.numpy(), f"{name} of {label}", case, detail=error)
                for index, head in enumerate(heads):
                    value = None if found is None else found[1][index]
                    quantity = f"gradient by {head} of {label}"
                    yield loss_row(value, gradients[index].numpy(), quantity, case, detail=error)


def compare_gene_metrics(port: PortTraining = PORT, *, case: str = "") -> Iterator[Comparison]:
    """Correlations across genes and cell types, living reference against port, after every batch.

    Among the genes are some seen more than once, some seen in one cell type only, and one without any expression; one
    cell type has a single gene.
    """
    from tf_reference.metrics import GeneCellCorrelation as Reference

    generator = Draws(0).generator("gene metric")
    made, error = attempt(port.gene_metric)
    ours: Any = made
    theirs = Reference()
    for number in range(4):
        shape = (9, 12, 1)
        true, predicted = generator.gamma(0.5, 8.0, size=shape), generator.gamma(1.0, 4.0, size=shape)
        tokens = (generator.random(shape) < 0.3).astype(np.float64)
        gene, cell = generator.integers(0, 5, size=9), generator.integers(0, 3, size=9)
        gene[:4], cell[:4], tokens[2:4] = (7, 6, 8, 8), (9, number % 3, 0, 1), 0.0
        theirs.update_state((true * tokens).sum(axis=(1, 2)), (predicted * tokens).sum(axis=(1, 2)), gene, cell)
        batch = [torch.from_numpy(array) for array in (predicted, true, tokens, gene, cell)]
        if not error:
            _, error = attempt(lambda batch=batch: ours.update(*batch))
        found, raised = (None, error) if error else attempt(lambda: ours.compute())
        for name, expected in theirs.result().items():
            value = None if found is None else float(found[name])
            yield loss_row(value, expected, f"{name} after batch {number + 1}", case, layer=METRIC, detail=raised)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossSample:
    """Counts, predictions and two masks, float64 (B, N, 1)."""

    name: str
    true: np.ndarray
    predicted: np.ndarray
    masks: tuple[np.ndarray, ...]


def loss_samples(seed: int = 0) -> Iterator[LossSample]:
    """Ordinary counts; zeros and extremes; examples of which one has many masked bins and the other few.

    The extremes are those of seed 0 alone: of terms of both signs and a size of 1e6 others may leave so little that it
    is rounding.
    """
    draws = Draws(seed)
    for name, shape in SAMPLES.items():
        if name == "extreme" and seed != 0:
            continue
        generator = draws.generator(f"loss {name}")
        true = generator.gamma(0.5, 8.0, size=shape)
        predicted = generator.gamma(1.0, 4.0, size=shape)
        if name == "extreme":
            true[0], true[1, :5], true[2, 0] = 0.0, 1e6, 1e-6
            predicted[0, :3], predicted[1, 5:9], predicted[2, 1] = 0.0, 1e6, 1e-9
        mask = (generator.random(shape) < np.linspace(0.1, 0.9, shape[0])[:, None, None]).astype(np.int32)
        mask[:, 0], mask[:, 1] = 1, 0
        yield LossSample(name=name, true=true, predicted=predicted, masks=(mask, 1 - mask))


def _masked(function: Callable[..., Any], loss_type: str, weight: float) -> Callable[..., Any]:
    def call(true: Any, predicted: Any, mask: Any, unmask: Any = None) -> Any:
        return function(true, predicted, mask, loss_type=loss_type, total_weight=weight, unmask=unmask)

    return call


def _metric_result(metric: Any) -> np.ndarray:
    """Keras metrics of the original answer with a dictionary of one entry."""
    result = metric.result()
    if isinstance(result, Mapping):
        (result,) = result.values()
    return np.asarray(result)

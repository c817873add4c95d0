"""EpiBERT in training: which parts of the port's training answer to which of the reference's, and on what they meet.

TensorFlow is needed for the living reference only, and imported there.
"""

import ast
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import nn

from parity.compare import compare, compare_array
from parity.draws import Draws
from parity.keras_training import KerasTraining
from parity.layer_map import LayerMap
from parity.pairs import epibert
from parity.records import Comparison, NotCompared, Reading, Status
from parity.reference import Goldens, read_array
from parity.second_look import look_again
from parity.torch_training import TorchTraining
from parity.trace import Sample, attempt
from parity.training import (
    LOSS,
    METRIC,
    MOMENTS,
    OPTIMIZER,
    SCHEDULE,
    Backward,
    Inputs,
    Recipe,
    Snapshot,
    Targets,
    TensorPair,
    compare_gradients,
    compare_schedules,
    compare_state,
    compare_steps,
    compare_trajectory,
    in_reference_layout,
    parameter_gradients,
    root_mean_square,
)
from torch_impl import EpiBERTConfig, EpiBERTRampage
from torch_impl import losses as port_losses
from torch_impl.metrics import R2, GeneCellCorrelation, PearsonR
from torch_impl.model import Trunk
from torch_impl.optim import KerasAdam, KerasAdamW, cosine_warmup, decay_groups
from torch_impl.rampage import optimizer_parts
from weights.table import TABLE, Group, kind_of
from weights.table import rows as weight_rows

ADAM_EPSILON = 1e-8
CLIP = 1.0
WEIGHT_DECAY = 1e-4
TOTAL_WEIGHT = 0.15
ATAC_SCALE = 0.10
DROPOUT = {"dropout_rate": 0.20, "pointwise_dropout_rate": 0.10, "motif_dropout_rate": 0.25}
"""Rates of the published model, for cases that were recorded without dropout."""

SEED = 2026
TRAINING_BINS = 16
"""Window of the training rungs: no weight depends on the length, so a short one exercises all."""
TRAJECTORY_STEPS = 50
TRAJECTORY_DRAWS = 3
STATE_STEPS = (1, 5)
RUN_APART = 1000
"""Training runs that are measured again are of batches of other steps: so many later than those of the run before."""
SCHEDULE_ARGUMENTS: Mapping[str, Any] = {"peak": 1e-3, "warmup": 10, "decay": 30, "floor": 0.1}
"""Warm-up, decay and floor all lie within the trajectory."""

FINETUNING_SCHEDULES = (SCHEDULE_ARGUMENTS, {**SCHEDULE_ARGUMENTS, "peak": 4e-4})
"""Of trunk and ATAC head, and of the RNA head: two peaks, or nothing would show whose parameter it is."""

GRADIENT_SCALES = (1e-8, 1e-6, 1e-4, 1e-2, 1.0, 1e2)
DECAY_SCALES = (1e-4, 1.0)
OPTIMIZER_RUNS = (*(("adam", scale) for scale in GRADIENT_SCALES), *(("adamw", scale) for scale in DECAY_SCALES))
GRADIENT_RECIPE = {"loss_type": "poisson_multinomial", "unmasked": True}
PRECISIONS = ("float64", "float32")
LOSS_TYPES = (("poisson", TOTAL_WEIGHT), ("poisson_multinomial", TOTAL_WEIGHT), ("poisson_multinomial", 1.0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PortTraining:
    """The parts that train the port. Tests put faulty ones in their place.

    Attributes:
        poisson: Loss of a batch.
        poisson_multinomial: Loss of a batch.
        masked_loss: Loss on masked bins.
        finetuning_loss: Loss of the fine-tuning model's two heads.
        adam: From a module to its optimizers.
        adamw: The same with weight decay.
        schedule: Learning rate of a step.
        metrics: Streaming metrics by name.
        finetuning_optimizers: From the fine-tuning model, and ``adam`` or ``adamw``, to its two optimizers.
        gene_metric: Correlation across genes and cell types.
    """

    poisson: Callable[..., Any] = port_losses.poisson
    poisson_multinomial: Callable[..., Any] = port_losses.poisson_multinomial
    masked_loss: Callable[..., Any] = port_losses.masked_loss
    finetuning_loss: Callable[..., Any] = port_losses.finetuning_loss
    adam: Callable[[nn.Module], Sequence[torch.optim.Optimizer]] = lambda module: [
        KerasAdam(module.parameters(), eps=ADAM_EPSILON, global_clipnorm=CLIP)
    ]
    adamw: Callable[[nn.Module], Sequence[torch.optim.Optimizer]] = lambda module: [
        KerasAdamW(decay_groups(module, WEIGHT_DECAY), eps=ADAM_EPSILON, global_clipnorm=CLIP)
    ]
    schedule: Callable[..., float] = cosine_warmup
    metrics: Mapping[str, Callable[..., Any]] = dataclasses.field(
        default_factory=lambda: {"PearsonR": PearsonR, "R2": R2}
    )
    finetuning_optimizers: Callable[..., Sequence[torch.optim.Optimizer]] = lambda model, make: [
        made for part in optimizer_parts(model) for made in make(part)
    ]
    gene_metric: Callable[[], Any] = GeneCellCorrelation


PORT = PortTraining()


# --- which tensor is which -------------------------------------------------------------------------------------------


def tensor_pairs(config: EpiBERTConfig, groups: Iterable[Group] = TABLE) -> list[TensorPair]:
    """Every parameter and statistic, from the weight table, with what is known of its gradient."""
    zero, small = zero_gradients(config), small_gradients(config)
    return [
        TensorPair(
            port=row.name,
            reference=row.path,
            to_port=row.layout.to_port,
            to_reference=row.layout.to_stored,
            trainable=row.trainable,
            zero_gradient=zero.get(row.name, ""),
            small_gradient=small.get(row.name, ""),
        )
        for row in weight_rows(config, groups)
    ]


def zero_gradients(config: EpiBERTConfig) -> dict[str, str]:
    """Parameters whose gradient in training mode is zero in exact arithmetic: {name in the port: why}.

    They add one number to a whole channel, pooling and residual connections pass that on, and the next BatchNorm takes
    it away again with the mean of the batch.
    """
    names = ["stem_conv.bias", "stem_res_conv.block.conv.bias"]
    names += ["stem_conv_atac.bias", "stem_res_conv_atac.block.conv.bias"]
    names += [f"conv_tower.{index}.block.conv.bias" for index in range(len(config.filter_list_seq) - 1)]
    names += [f"conv_tower_atac.{index}.block.conv.bias" for index in range(len(config.filter_list_atac) - 1)]
    if config.norm:
        names.append("performer.norm.bias")
    return dict.fromkeys(names, "shifts a channel in front of a BatchNorm")


def small_gradients(config: EpiBERTConfig) -> dict[str, str]:
    """Parameters whose gradient is left of terms that cancel: {name in the port: why}."""
    if not config.norm:
        return {}
    return {
        "performer.norm.weight": "scales a channel in front of a BatchNorm, which takes the scale away up to its "
        "epsilon of 1e-5 beside the variance"
    }


# --- batches ---------------------------------------------------------------------------------------------------------


def drawn_batch(
    config: EpiBERTConfig, draws: Draws, *, batch: int = 2, finetuning: bool = False
) -> tuple[Inputs, Targets]:
    """Inputs and targets of the present step, with the data noise of the original (spec, section 4.2).

    Returns:
        (sequence, atac, motif_activity) and {target, mask, unmask}; the masks differ in size between examples. For
        fine-tuning also target_rna, roots of counts as its readers make them.
    """
    bases = draws.generator("sequence").choice(
        5, size=(batch, config.sequence_length), p=[0.249, 0.249, 0.249, 0.249, 0.004]
    )
    signal = draws.generator("atac").gamma(0.3, 4.0, size=(batch, config.atac_length, 1))
    noise = np.abs(draws.generator("atac noise").normal(1e-4, 1e-4, size=signal.shape))
    motifs = draws.generator("motifs").random((batch, 1, config.num_motifs))
    motifs += np.abs(draws.generator("motif noise").normal(0.0, 1e-4, size=motifs.shape))
    bins = config.output_length - 2 * config.crop
    target = draws.generator("target").gamma(0.5, 8.0, size=(batch, bins, 1))
    rates = np.linspace(0.2, 0.5, batch)[:, None, None]
    mask = (draws.generator("mask").random(target.shape) < rates).astype(np.int32)
    mask[:, 0] = 1  # an empty mask has no loss
    mask[:, 1] = 0
    kept = draws.generator("kept").random(signal.shape) >= 0.3
    inputs = (epibert.one_hot(bases), ((signal + noise) * kept).astype(np.float32), motifs.astype(np.float32))
    targets = {"target": target.astype(np.float32), "mask": mask, "unmask": 1 - mask}
    if finetuning:
        targets["target_rna"] = np.sqrt(draws.generator("target rna").gamma(0.3, 20.0, size=target.shape)).astype(
            np.float32
        )
    return inputs, targets


# --- recipes ---------------------------------------------------------------------------------------------------------


def port_recipe(
    port: PortTraining = PORT,
    *,
    loss_type: str = "poisson",
    optimizer: str = "adam",
    schedule: Mapping[str, Any] | None = None,
    unmasked: bool = False,
) -> Recipe:
    """How the port is trained."""

    def loss(output: Any, targets: Any) -> Any:
        return port.masked_loss(
            targets["target"],
            output,
            targets["mask"],
            loss_type=loss_type,
            total_weight=TOTAL_WEIGHT,
            unmask=targets["unmask"] if unmasked else None,
        )

    arguments = SCHEDULE_ARGUMENTS if schedule is None else schedule
    return Recipe(
        loss=loss,
        optimizers=getattr(port, optimizer),
        schedule=lambda step: [port.schedule(step, **arguments)],
    )


def reference_recipe(
    *,
    loss_type: str = "poisson",
    optimizer: str = "adam",
    schedule: Mapping[str, Any] | None = None,
    unmasked: bool = False,
) -> Recipe:
    """How the living reference is trained."""
    import tensorflow as tf

    from tf_reference import losses, optim

    def loss(output: Any, targets: Any) -> Any:
        # As the original's train step: in float32, or in float64 where the model computes in that.
        output = output if output.dtype == tf.float64 else tf.cast(output, tf.float32)
        return losses.masked_loss(
            targets["target"],
            output,
            targets["mask"],
            loss_type=loss_type,
            total_weight=TOTAL_WEIGHT,
            unmask=targets["unmask"] if unmasked else None,
        )

    def optimizers(model: Any) -> list[tuple[Any, list[Any]]]:
        if optimizer == "adam":
            made = optim.adam(epsilon=ADAM_EPSILON, global_clipnorm=CLIP, dtype=model.variable_dtype)
        else:
            made = optim.adamw(
                epsilon=ADAM_EPSILON, global_clipnorm=CLIP, weight_decay=WEIGHT_DECAY, dtype=model.variable_dtype
            )
        return [(made, list(model.trainable_variables))]

    arguments = SCHEDULE_ARGUMENTS if schedule is None else schedule
    return Recipe(loss=loss, optimizers=optimizers, schedule=lambda step: [optim.cosine_warmup(step, **arguments)])


# --- losses and metrics ----------------------------------------------------------------------------------------------


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
        value, gradient, error = _value_and_gradient(lambda p: ours(true, p, *masks), predicted)
        with tf.GradientTape() as tape:
            watched = tf.constant(sample.predicted)
            tape.watch(watched)
            expected = theirs(tf.constant(sample.true), watched, *map(tf.constant, sample.masks))
        truth: Any = tape.gradient(expected, watched)
        yield _loss_row(value, expected.numpy(), f"{label}, {sample.name}", case, detail=error)
        yield _loss_row(gradient, truth.numpy(), f"{label}, {sample.name}, gradient", case, detail=error)

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
                    _with(port.poisson_multinomial, total_weight=weight),
                    _with(losses.poisson_multinomial, total_weight=weight),
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


def _value_and_gradient(
    loss: Callable[[torch.Tensor], torch.Tensor], predicted: torch.Tensor
) -> tuple[np.ndarray | None, np.ndarray | None, str]:
    """A loss of the port, its gradient by the prediction, and what it raised instead."""
    watched = predicted.detach().clone().requires_grad_()

    def both() -> tuple[np.ndarray, np.ndarray | None]:
        value = loss(watched)
        value.backward()
        return value.detach().double().numpy(), None if watched.grad is None else watched.grad.double().numpy()

    found, error = attempt(both)
    return (None, None, error) if found is None else (*found, "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossSample:
    """Counts, predictions and two masks, float64 (B, N, 1)."""

    name: str
    true: np.ndarray
    predicted: np.ndarray
    masks: tuple[np.ndarray, ...]


SAMPLES = {"ordinary": (2, 60, 1), "extreme": (3, 17, 1), "one bin each": (2, 2, 1)}
"""Shapes of the samples that losses are compared on."""


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


def _with(function: Callable[..., Any], **arguments: Any) -> Callable[..., Any]:
    return lambda true, predicted: function(true, predicted, **arguments)


def _masked(function: Callable[..., Any], loss_type: str, weight: float) -> Callable[..., Any]:
    def call(true: Any, predicted: Any, mask: Any, unmask: Any = None) -> Any:
        return function(true, predicted, mask, loss_type=loss_type, total_weight=weight, unmask=unmask)

    return call


def _loss_row(
    found: Any,
    expected: Any,
    quantity: str,
    case: str,
    *,
    tolerance: str = "float64",
    layer: str = LOSS,
    detail: str = "",
) -> Comparison:
    return compare(
        None if found is None else np.atleast_1d(np.asarray(found, dtype=np.float64)),
        np.atleast_1d(np.asarray(expected, dtype=np.float64)),
        gate="losses",
        case=case,
        reading=Reading.ISOLATED,
        precision="float32" if tolerance.startswith("float32") else "float64",
        mode="training",
        tolerance=tolerance,
        reference_path="",
        port_path="",
        layer=layer,
        quantity=quantity,
        detail=detail,
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
            ours = _streamed(lambda make=make, dtype=dtype: make(state_dtype=dtype), given)
            theirs = getattr(metrics, name)(dtype=tensorflow_dtype)
            for index, (predicted, true) in enumerate(batches):
                theirs.update_state(tf.constant(true, tensorflow_dtype), tf.constant(predicted, tensorflow_dtype))
                value, error = ours[index]
                yield _loss_row(
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
                    yield _loss_row(value, expected.numpy(), f"{name} of {label}", case, detail=error)
                for index, head in enumerate(heads):
                    value = None if found is None else found[1][index]
                    quantity = f"gradient by {head} of {label}"
                    yield _loss_row(value, gradients[index].numpy(), quantity, case, detail=error)


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
            yield _loss_row(value, expected, f"{name} after batch {number + 1}", case, layer=METRIC, detail=raised)


def _streamed(
    make: Callable[[], Any], batches: Sequence[Sequence[torch.Tensor]]
) -> list[tuple[np.ndarray | None, str]]:
    """What a metric of the port says after every batch (prediction, truth), or what it raised."""
    made, error = attempt(make)
    metric: Any = made
    results: list[tuple[np.ndarray | None, str]] = []
    for batch in batches:
        if not error:
            _, error = attempt(lambda batch=batch: metric.update(*batch))
        value, raised = (None, error) if error else attempt(lambda: metric.compute().numpy())
        results.append((value, raised))
    return results


def _metric_result(metric: Any) -> np.ndarray:
    """Keras metrics of the original answer with a dictionary of one entry."""
    result = metric.result()
    if isinstance(result, Mapping):
        (result,) = result.values()
    return np.asarray(result)


def compare_recorded_functions(path: Path, port: PortTraining = PORT, *, case: str) -> Iterator[Comparison]:
    """Losses, metrics and schedule of the original, each with drawn arguments, from ``functions.h5``."""
    with h5py.File(path) as file:
        for name, sample in _groups(file["losses"]):
            true = torch.from_numpy(_numbers(sample["y_true"]))
            predicted = torch.from_numpy(_numbers(sample["y_pred"]))
            for recorded, call in _recorded_losses(_group(sample["f64"]), port):
                value, gradient, error = _value_and_gradient(functools.partial(call, true), predicted)
                label = f"{recorded.name.partition('/f64/')[2]}, {name}"
                yield _loss_row(value, _numbers(recorded["value"]).mean(), label, case, detail=error)
                expected = _numbers(recorded["grad_of_mean_wrt_y_pred"])
                yield _loss_row(gradient, expected, f"{label}, gradient", case, detail=error)
                same = _group(sample["f32"])[f"{recorded.name.partition('/f64/')[2]}/grad_of_mean_wrt_y_pred"]
                yield _float32_gradient(call, sample, expected, _numbers(same), f"{label}, gradient", case)
        for name, sample in _groups(file["metrics"]):
            if name == "helpers":
                continue
            yield from _recorded_metric(name, sample, port, case)
        settings = _numbers(file["cos_w_warmup/settings_target_warmup_decay_alpha_constant"])
        for index, (peak, warmup, decay, floor, constant) in enumerate(settings):
            expected = _numbers(file[f"cos_w_warmup/lr_{index}"])
            yield from compare_schedules(
                lambda step, a=(peak, warmup, decay, floor), c=bool(constant): [port.schedule(step, *a, constant=c)],
                lambda step, rates=expected: [rates[step]],
                range(len(expected)),
                label=f"recorded schedule {index}",
                case=case,
            )


def _float32_gradient(
    call: Callable[..., Any], sample: h5py.Group, truth: np.ndarray, own: np.ndarray, quantity: str, case: str
) -> Comparison:
    """The same gradient in float32, against float64, by the original's own distance to it."""
    true, predicted = (torch.from_numpy(sample[key][()]) for key in ("y_true", "y_pred"))
    _, gradient, error = _value_and_gradient(lambda p: call(true, p), predicted)
    return compare(
        gradient,
        truth,
        reference_same_precision=own,
        gate="losses",
        case=case,
        reading=Reading.ISOLATED,
        precision="float32",
        mode="training",
        tolerance="float32",
        reference_path="",
        port_path="",
        layer=LOSS,
        quantity=quantity,
        detail=error,
    )


def _recorded_losses(group: h5py.Group, port: PortTraining) -> Iterator[tuple[h5py.Group, Callable[..., Any]]]:
    yield _group(group["poisson"]), port.poisson
    for name, recorded in _groups(group["poisson_multinomial"]):
        weight, rescale = name.removeprefix("w").split("_rescale")
        yield recorded, _with(port.poisson_multinomial, total_weight=float(weight), rescale=rescale == "1")


def _recorded_metric(name: str, sample: h5py.Group, port: PortTraining, case: str) -> Iterator[Comparison]:
    axes = ast.literal_eval(str(sample.attrs["reduce_axis"]))
    kind = name.partition("_")[2]
    batches = [_group(sample[f"batch{index}"]) for index in range(len([key for key in sample if "batch" in key]))]
    shape = tuple(_group(sample["state"])["count"].shape)
    given = [[torch.from_numpy(batch[key][()]) for key in ("y_pred", "y_true")] for batch in batches]
    found = _streamed(lambda: port.metrics[kind](reduce_axis=axes, shape=shape), given)
    for index, (batch, (value, error)) in enumerate(zip(batches, found, strict=True)):
        yield _loss_row(
            value,
            _numbers(batch["result_so_far"]),
            f"{name} after batch {index + 1}",
            case,
            tolerance="float32_metric",
            layer=METRIC,
            detail=error,
        )


def _group(item: Any) -> h5py.Group:
    if not isinstance(item, h5py.Group):
        raise KeyError(f"{item.name}: expected a group")
    return item


def _groups(item: Any) -> Iterator[tuple[str, h5py.Group]]:
    for name, group in _group(item).items():
        yield name, _group(group)


def _numbers(dataset: Any) -> np.ndarray:
    return np.asarray(dataset[()], dtype=np.float64)


# --- recorded training -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One recorded way to train.

    Attributes:
        name: Group in ``train.h5``.
        loss_type: Loss.
        optimizer: ``adam`` or ``adamw``.
        unmasked: With the loss on the unmasked bins added.
        finetuning: Of the fine-tuning model: two heads, an optimizer for each group of parameters.
    """

    name: str
    loss_type: str
    optimizer: str = "adam"
    unmasked: bool = False
    finetuning: bool = False


RECORDED_VARIANTS = {
    "P1": (
        Variant(name="poisson", loss_type="poisson"),
        Variant(name="poisson_multinomial", loss_type="poisson_multinomial"),
        Variant(name="poisson_multinomial_unmask", loss_type="poisson_multinomial", unmasked=True),
    ),
    "R1": (
        Variant(name="poisson", loss_type="poisson", finetuning=True),
        Variant(name="poisson_multinomial", loss_type="poisson_multinomial", finetuning=True),
        Variant(name="poisson_multinomial_adamw", loss_type="poisson_multinomial", optimizer="adamw", finetuning=True),
    ),
}
RECORDED_STEPS = (1, 5)
RECORDED_SCHEDULE = {"peak": 1e-4, "warmup": 5, "decay": 100, "floor": 0.1}


def recorded_targets(recording: Goldens) -> Targets:
    """What the losses take beside the output, in a recording."""
    mask = np.asarray(recording.inputs["mask"]).astype(np.int32)
    return {
        "target": recording.inputs["target_atac"],
        "target_rna": recording.inputs["target_rna"],
        "mask": mask,
        "unmask": 1 - mask,
    }


def finetuning_recipe(
    port: PortTraining = PORT,
    *,
    loss_type: str = "poisson",
    optimizer: str = "adam",
    schedules: Sequence[Mapping[str, Any]] = FINETUNING_SCHEDULES,
) -> Recipe:
    """How the fine-tuning model is trained: each of two optimizers clips its own parameters (spec, section 3.4)."""

    def loss(output: Any, targets: Any) -> Any:
        atac, rna = output
        return port.finetuning_loss(
            targets["target_rna"],
            rna,
            targets["target"],
            atac,
            targets["mask"],
            loss_type=loss_type,
            total_weight=TOTAL_WEIGHT,
            atac_scale=ATAC_SCALE,
        ).total

    return Recipe(
        loss=loss,
        optimizers=lambda model: port.finetuning_optimizers(model, getattr(port, optimizer)),
        schedule=lambda step: [port.schedule(step, **arguments) for arguments in schedules],
    )


def finetuning_reference_recipe(*, loss_type: str = "poisson", optimizer: str = "adam") -> Recipe:
    """How the living reference of the fine-tuning model is trained."""
    from tf_reference import optim, training

    def loss(output: Any, targets: Any) -> Any:
        return training.finetuning_loss(
            training.heads(output),
            targets["target_rna"],
            targets["target"],
            targets["mask"],
            loss_type=loss_type,
            total_weight=TOTAL_WEIGHT,
            atac_scale=ATAC_SCALE,
        ).total

    def optimizers(model: Any) -> list[tuple[Any, list[Any]]]:
        arguments = {"epsilon": ADAM_EPSILON, "global_clipnorm": CLIP, "dtype": model.variable_dtype}
        if optimizer == "adam":
            return [(optim.adam(**arguments), variables) for variables in training.finetuning_variables(model)]
        arguments["weight_decay"] = WEIGHT_DECAY
        return [(optim.adamw(**arguments), variables) for variables in training.finetuning_variables(model)]

    return Recipe(
        loss=loss,
        optimizers=optimizers,
        schedule=lambda step: [optim.cosine_warmup(step, **arguments) for arguments in FINETUNING_SCHEDULES],
    )


def compare_recorded_training(
    port: Trunk,
    variant: Variant,
    path: Path,
    inputs: Inputs,
    targets: Targets,
    *,
    training: PortTraining = PORT,
    case: str,
) -> Iterator[Comparison]:
    """Loss, every gradient, and five steps of the original, against the port in float64.

    Args:
        port: The port with the recorded weights and constants.
        variant: What was recorded.
        path: ``train.h5``.
        inputs: Recorded inputs, the same in every step.
        targets: Recorded targets.
        training: What trains the port.
        case: Name of the case.
    """
    case = f"{case}, {variant.name}"
    kind = kind_of(port)
    tensors = tensor_pairs(port.config, kind.table)
    orders = [
        [row.path for row in weight_rows(port.config, optimizer.table) if row.trainable]
        for optimizer in kind.optimizers
    ]
    if variant.finetuning:
        recipe = finetuning_recipe(
            training,
            loss_type=variant.loss_type,
            optimizer=variant.optimizer,
            schedules=(RECORDED_SCHEDULE, RECORDED_SCHEDULE),
        )
    else:
        recipe = port_recipe(
            training,
            loss_type=variant.loss_type,
            optimizer=variant.optimizer,
            schedule=RECORDED_SCHEDULE,
            unmasked=variant.unmasked,
        )
    # Recorded without dropout, so nothing is drawn.
    side = TorchTraining(port, epibert.layer_map(port.config), recipe, Draws(SEED), epibert.set_precision)
    with h5py.File(path) as file:
        recorded = _group(file[f"f64/{variant.name}"])
        gradients = _group(recorded["grad0"])
        backward = side.gradients(inputs, targets, precision="float64")
        yield _recorded_value(backward.loss, recorded["own_loss_step0"], "losses", "loss", LOSS, "float64", case)
        expected = {pair.reference: read_array(gradients[pair.reference]) for pair in tensors if pair.trainable}
        count = sum(int(np.prod(g.full_shape if isinstance(g, Sample) else g.shape)) for g in expected.values())
        yield from parameter_gradients(
            backward.parameters,
            expected,
            tensors,
            tolerance="gradient",
            scale=float(_numbers(recorded["grad0_global_norm"])) / count**0.5,
            detail=backward.error,
            gate="gradients",
            case=case,
            reading=Reading.ACCUMULATED,
            precision="float64",
            mode="training",
        )
        norm = None
        if not backward.error:
            norm = float(np.sqrt(sum(np.sum(np.square(gradient)) for gradient in backward.parameters.values())))
        yield _recorded_value(norm, recorded["grad0_global_norm"], "gradients", "global norm", LOSS, "gradient", case)
        steps = len(recorded["learning_rate"])
        snapshots = side.run(lambda step: (inputs, targets), steps, tensors, precision="float64")
        yield from _recorded_series(snapshots, recorded, len(orders), case)
        for step in RECORDED_STEPS:
            yield from _recorded_weights(snapshots, _group(recorded[f"weights_after_{step}"]), step, tensors, case)
        for number, order in enumerate(orders, start=1):
            if f"optimizer{number}" in recorded:
                slots = _group(recorded[f"optimizer{number}"])
                yield from _recorded_slots(snapshots, slots, number, order, tensors, steps, case)


def not_compared_recorded(case: str, variants: Sequence[Variant], path: Path) -> tuple[NotCompared, ...]:
    """What the recording of a training run does not say, or cannot decide, by name."""
    rows = [
        NotCompared(
            side=case,
            name="training in bfloat16",
            reason="the original's own bfloat16 gradients are off by 10 to 20 % of their norm, too far to judge by",
        ),
        NotCompared(
            side=case,
            name="single layers in isolation, activation gradients, dropout",
            reason="not recorded; the living reference is read so",
        ),
        NotCompared(
            side=case,
            name="streamed metrics of the run, losses of the single heads",
            reason="made by the metrics and losses that are compared on their own, from the outputs that are compared",
        ),
    ]
    with h5py.File(path) as file:
        for variant in variants:
            recorded = _group(file[f"f64/{variant.name}"])
            rows += [
                NotCompared(
                    side=case,
                    name=f"slots of {variant.name}, optimizer {number}",
                    reason="not recorded for this variant; the weights after five steps were made by them",
                )
                for number in ((1, 2) if variant.finetuning else (1,))
                if f"optimizer{number}" not in recorded
            ]
    return tuple(rows)


def _recorded_value(
    found: float | None, dataset: Any, gate: str, quantity: str, layer: str, tolerance: str, case: str
) -> Comparison:
    return compare(
        None if found is None else np.asarray([found]),
        np.atleast_1d(_numbers(dataset)),
        gate=gate,
        case=case,
        reading=Reading.ACCUMULATED,
        precision="float64",
        mode="training",
        tolerance=tolerance,
        reference_path="",
        port_path="",
        layer=layer,
        quantity=quantity,
    )


def _recorded_series(
    snapshots: Sequence[Snapshot], recorded: h5py.Group, optimizers: int, case: str
) -> Iterator[Comparison]:
    """Learning rates and losses, one number a step. A series that ended early has another shape, which fails."""
    common: dict[str, Any] = {
        "case": case,
        "reading": Reading.ACCUMULATED,
        "precision": "float64",
        "mode": "training",
        "reference_path": "",
        "port_path": "",
    }
    done = [snapshot for snapshot in snapshots if not snapshot.error]
    detail = next((snapshot.error for snapshot in snapshots if snapshot.error), "")
    series = [("state", "loss of every step", "train_loss", [s.loss for s in done], "", "state")]
    for number in range(1, optimizers + 1):
        rates = [s.learning_rates[number - 1] for s in done if len(s.learning_rates) == optimizers]
        quantity = f"learning rates of optimizer {number}"
        # One schedule was recorded, which sets the rates of all optimizers.
        series.append(("optimizer", quantity, "learning_rate", rates, SCHEDULE, "recorded_rate"))
    for gate, quantity, name, values, layer, tolerance in series:
        yield compare(
            np.asarray(values, dtype=np.float64),
            _numbers(recorded[name]),
            gate=gate,
            layer=layer,
            tolerance=tolerance,
            quantity=quantity,
            detail=detail,
            **common,
        )


def _recorded_weights(
    snapshots: Sequence[Snapshot], group: h5py.Group, step: int, tensors: Sequence[TensorPair], case: str
) -> Iterator[Comparison]:
    snapshot = next((s for s in snapshots if s.step == step and not s.error), None)
    for order, pair in enumerate(tensors):
        found = None
        if snapshot is not None:
            found = (snapshot.weights if pair.trainable else snapshot.statistics).get(pair.port)
        yield from _recorded_array(
            found,
            group[pair.reference],
            pair,
            gate="optimizer" if pair.trainable else "state",
            tolerance="optimizer" if pair.trainable else "state",
            quantity=f"{pair.port.rpartition('.')[2]} after step {step}",
            layer=OPTIMIZER if pair.trainable else pair.layer,
            order=order,
            case=case,
        )


def _recorded_slots(
    snapshots: Sequence[Snapshot],
    slots: h5py.Group,
    number: int,
    order: Sequence[str],
    tensors: Sequence[TensorPair],
    step: int,
    case: str,
) -> Iterator[Comparison]:
    snapshot = next((s for s in snapshots if s.step == step and not s.error), None)
    yield _recorded_value(
        None if snapshot is None else float(snapshot.counters[number - 1]),
        slots["0000"],
        "state",
        f"step counter of optimizer {number}",
        OPTIMIZER,
        "exact",
        case,
    )
    by_key = {pair.reference: pair for pair in tensors}
    expected = {f"{2 * index + offset:04d}" for index in range(len(order)) for offset in (1, 2)}
    for name in sorted(set(slots) - expected - {"0000"}):
        yield compare(
            None,
            _numbers(slots[name]),
            gate="optimizer",
            case=case,
            reading=Reading.ACCUMULATED,
            precision="float64",
            tolerance="optimizer",
            reference_path=str(slots[name].attrs["name"]),
            port_path="",
            layer=OPTIMIZER,
            quantity="slot",
            detail="no variable of the reference is known for this slot",
        )
    for offset, moment in enumerate(MOMENTS, start=1):
        # Averages of noise are noise; they are related to the moments of all parameters, as such gradients are.
        scale = root_mean_square(
            _kept(slots[f"{2 * index + offset:04d}"])
            for index, key in enumerate(order)
            if not by_key[key].zero_gradient
        )
        for index, key in enumerate(order):
            pair, dataset = by_key[key], slots[f"{2 * index + offset:04d}"]
            found = None if snapshot is None else getattr(snapshot, moment).get(pair.port)
            where: dict[str, Any] = {
                "gate": "optimizer",
                "layer": OPTIMIZER,
                "order": index,
                "case": case,
            }
            quantity = f"{moment} after step {step}"
            if not pair.zero_gradient:
                yield from _recorded_array(found, dataset, pair, tolerance="optimizer", quantity=quantity, **where)
                continue
            for side, noise in (("port", found), ("reference", _kept(dataset))):
                yield compare(
                    noise,
                    np.zeros_like(_kept(dataset)),
                    scale=scale,
                    reading=Reading.ACCUMULATED,
                    precision="float64",
                    mode="training",
                    tolerance="zero_gradient",
                    reference_path=pair.reference,
                    port_path=pair.port,
                    quantity=f"{quantity} of the {side}, zero in theory",
                    **where,
                )


def _kept(dataset: Any) -> np.ndarray:
    array = read_array(dataset)
    return array.values if isinstance(array, Sample) else array


def _recorded_array(found: np.ndarray | None, dataset: Any, pair: TensorPair, **where: Any) -> Iterator[Comparison]:
    """A recorded tensor, of which only a part may have been kept, in the reference's layout."""
    array = read_array(dataset)
    shape = tuple(array.shape) if isinstance(array, np.ndarray) else array.full_shape
    yield from compare_array(
        in_reference_layout(found, pair, shape),
        array,
        None,
        reading=Reading.ACCUMULATED,
        precision="float64",
        mode="training",
        reference_path=pair.reference,
        port_path=pair.port,
        **where,
    )


# --- living reference ------------------------------------------------------------------------------------------------


def training_config(config: EpiBERTConfig, bins: int = TRAINING_BINS) -> EpiBERTConfig:
    """A configuration as it is trained: with the published model's dropout where it has none, and a short window."""
    rates = {name: rate for name, rate in DROPOUT.items() if getattr(config, name) == 0.0}
    trimmed = config.output_length - config.final_output_length
    bins = max(bins, trimmed + 4)
    return dataclasses.replace(config, **rates, output_length=bins, final_output_length=bins - trimmed)


def compare_live_training(
    config: EpiBERTConfig,
    stored: Mapping[str, np.ndarray],
    make_port: Callable[[EpiBERTConfig], Trunk],
    *,
    gates: Sequence[str],
    training: PortTraining = PORT,
    steps: int = TRAJECTORY_STEPS,
    case: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Comparison]:
    """Every training rung against the living reference, dropout on, both sides fed with the same masks and noise.

    Args:
        config: Of the port; ``training_config`` of it is what is trained.
        stored: The model's tensors by canonical path.
        make_port: A port with these weights and TensorFlow's constants for a configuration.
        gates: Rungs wanted.
        training: What trains the port.
        steps: Length of the trajectory.
        case: Name of the case.
        say: Told what is going on.
    """
    config = training_config(config)
    pair, right = LivePair(config, stored, make_port(config), training), True
    if "gradients" in gates:
        say(f"{case}: gradients")
        rows = tuple(live_gradients(pair, case=case))
        right = right and _pass(rows)
        yield from rows
    if "optimizer" in gates:
        say(f"{case}: optimizer steps")
        rows = tuple(live_steps(pair, case=case))
        right = right and _pass(rows)
        yield from rows
    if "state" in gates or "trajectory" in gates:
        say(f"{case}: {steps} training steps")
        runs = live_runs(pair, "float64", steps, case=case, with_trajectory="trajectory" in gates, again=right)
        rows = tuple(row for row in runs if row.gate in gates)
        right = right and _pass(rows)
        yield from rows
    if "trajectory" in gates:
        yield from live_runs(pair, "float32", steps, case=case, again=right)


def _pass(rows: Iterable[Comparison]) -> bool:
    return all(row.status is Status.PASS for row in rows)


class LivePair:
    """Reference and port with the same weights, constants and draws, and recipes to train them by.

    What the reference computes is remembered: several ports can be held against it.

    Args:
        config: What is trained, as ``training_config`` makes it.
        stored: The model's tensors by canonical path.
        port: The port with these weights.
        training: What trains the port.
        seed: From which batches and dropouts are drawn.
    """

    def __init__(
        self,
        config: EpiBERTConfig,
        stored: Mapping[str, np.ndarray],
        port: Trunk,
        training: PortTraining = PORT,
        *,
        seed: int = SEED,
    ) -> None:
        self.config = config
        self.stored = stored
        self.port = port
        self.training = training
        self.finetuning = isinstance(port, EpiBERTRampage)
        self.layer_map: LayerMap = epibert.layer_map_of(port)
        self.tensors = tensor_pairs(config, kind_of(port).table)
        self.draws = Draws(seed)
        self._remembered: dict[tuple[Any, ...], Any] = {}

    def of(self, port: Trunk, training: PortTraining = PORT) -> "LivePair":
        """Another port beside the same reference."""
        other = copy.copy(self)
        other.port, other.training = port, training
        return other

    def anew(self, stored: Mapping[str, np.ndarray], port: Trunk, *, seed: int) -> "LivePair":
        """The same models with other weights and other draws; what this pair remembers of them is no longer so.

        Args:
            stored: As for the pair, and so is the next.
            port: The port with these weights.
            seed: From which batches and dropouts are drawn.
        """
        other = self.of(port, self.training)
        other.stored = stored
        # The models' graphs hold on to these draws.
        other.draws.seed = seed
        other._remembered = {key: made for key, made in self._remembered.items() if key[0] in ("model", "side")}
        for key, made in other._remembered.items():
            if key[0] == "model":
                made.assign(stored)
        return other

    def side(self, **recipe: Any) -> TorchTraining:
        """The port, to be trained by a recipe."""
        own = (finetuning_recipe if self.finetuning else port_recipe)(self.training, **self._understood(recipe))
        return TorchTraining(self.port, self.layer_map, own, self.draws, epibert.set_precision)

    def reference(self, precision: str, **recipe: Any) -> KerasTraining:
        """The reference in a precision, to be trained by a recipe."""

        def build() -> Any:
            inputs, _ = self.batch(0)
            return epibert.build_reference(
                self.config, self.stored, precision, dropout=True, rampage=self.finetuning, inputs=inputs
            )

        model = self._remember(("model", precision), build)
        make = finetuning_reference_recipe if self.finetuning else reference_recipe
        return self._remember(
            ("side", precision, *sorted(recipe.items())),
            lambda: KerasTraining(model, model.checkpoint_variables(), make(**self._understood(recipe)), self.draws),
        )

    def _understood(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """A recipe's arguments without that for unmasked bins, which fine-tuning ignores (spec, section 3.1)."""
        return {name: value for name, value in recipe.items() if name != "unmasked" or not self.finetuning}

    def batch(self, step: int) -> tuple[Inputs, Targets]:
        """Inputs and targets of a step."""
        self.draws.step = step
        return drawn_batch(self.config, self.draws, finetuning=self.finetuning)

    def weights(self) -> dict[str, np.ndarray]:
        """The parameters by the port's names and in its layout."""
        return {
            pair.port: np.asarray(pair.to_port(self.stored[pair.reference]), dtype=np.float64)
            for pair in self.tensors
            if pair.trainable
        }

    def gradients(self, precision: str, step: int = 0) -> Backward:
        """The reference's pass on the batch of a step; that on the first is remembered."""
        reference = self.reference(precision, **GRADIENT_RECIPE)
        if step:
            return reference.gradients(*self.batch(step))
        return self._remember(("gradients", precision), lambda: reference.gradients(*self.batch(0)))

    def given_gradients(self, scale: float) -> list[dict[str, np.ndarray]]:
        """Drawn gradients of a size for a few steps, by the reference's keys and in its layout."""
        steps = []
        for step in range(max(STATE_STEPS)):
            self.draws.step = step
            steps.append(
                {
                    pair.reference: scale
                    * self.draws.generator(f"gradient|{pair.reference}").standard_normal(
                        self.stored[pair.reference].shape
                    )
                    for pair in self.tensors
                    if pair.trainable
                }
            )
        return steps

    def steps(self, optimizer: str, scale: float) -> list[Snapshot]:
        """The reference's steps along drawn gradients."""
        reference = self.reference("float64", optimizer=optimizer)
        return self._remember(
            ("steps", optimizer, scale), lambda: reference.steps(self.given_gradients(scale), self.tensors)
        )

    def batches(self, number: int) -> Callable[[int], tuple[Inputs, Targets]]:
        """Those of a training run of a number; dropouts go by the batch as well."""
        return lambda step: self.batch(number * RUN_APART + step)

    def run(self, precision: str, steps: int, *, perturbed: int | None = None, number: int = 0) -> list[Snapshot]:
        """The reference's training run of a number, as it is or perturbed in every step; the first is remembered."""
        reference = self.reference(precision)
        disturb = None if perturbed is None else functools.partial(perturb, draw=perturbed)

        def run() -> list[Snapshot]:
            return reference.run(self.batches(number), steps, self.tensors, disturb=disturb)

        return run() if number else self._remember(("run", precision, steps, perturbed), run)

    def _remember(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._remembered:
            self._remembered[key] = make()
        return self._remembered[key]


def live_gradients(pair: LivePair, *, case: str = "", precisions: Sequence[str] = PRECISIONS) -> Iterator[Comparison]:
    """The gradients rung: every layer in isolation and end to end in float64, end to end in float32.

    A ratio of float32 that fails is measured on other batches (``parity.second_look``), unless the port is wrong in
    float64 already.
    """
    inputs, targets = pair.batch(0)
    truth = pair.gradients("float64")
    side, right = pair.side(**GRADIENT_RECIPE), True
    for reading in (Reading.ISOLATED, Reading.ACCUMULATED) if "float64" in precisions else ():
        fed = truth if reading is Reading.ISOLATED else None
        rows = tuple(
            compare_gradients(
                side.gradients(inputs, targets, precision="float64", truth=fed),
                truth,
                pair.tensors,
                pair.layer_map,
                reading=reading,
                precision="float64",
                tolerance="gradient_live",
                case=case,
            )
        )
        right = right and _pass(rows)
        yield from rows
    if "float32" in precisions:

        def measured(step: int) -> tuple[Comparison, ...]:
            return tuple(
                compare_gradients(
                    side.gradients(*pair.batch(step), precision="float32"),
                    pair.gradients("float64", step),
                    pair.tensors,
                    pair.layer_map,
                    reading=Reading.ACCUMULATED,
                    precision="float32",
                    tolerance="gradient_float32",
                    own=pair.gradients("float32", step),
                    case=case,
                )
            )

        rows = measured(0)
        yield from look_again(rows, measured) if right else rows


def live_steps(
    pair: LivePair, *, case: str = "", runs: Sequence[tuple[str, float]] = OPTIMIZER_RUNS
) -> Iterator[Comparison]:
    """The optimizer rung: steps along gradients of many sizes, and the schedule."""
    before = pair.weights()
    schedule, truth = pair.side().recipe.schedule, pair.reference("float64").recipe.schedule
    for optimizer, scale in runs:
        given = [
            {tensor.port: tensor.to_port(step[tensor.reference]) for tensor in pair.tensors if tensor.trainable}
            for step in pair.given_gradients(scale)
        ]
        side = pair.side(optimizer=optimizer)
        # The optimizer is fed with the reference's rates as well, so that a wrong schedule is not its fault.
        side.recipe = dataclasses.replace(side.recipe, schedule=truth)
        yield from compare_steps(
            side.steps(given, pair.tensors, precision="float64"),
            pair.steps(optimizer, scale),
            before,
            pair.tensors,
            steps=STATE_STEPS,
            label=f"{optimizer}, gradients of size {scale:g}",
            case=case,
        )
    steps = range(2 * int(SCHEDULE_ARGUMENTS["warmup"] + SCHEDULE_ARGUMENTS["decay"]))
    yield from compare_schedules(schedule, truth, steps, label="warm-up, decay, floor", case=case)
    yield from compare_schedules(*_constant_rates(pair), steps, label="constant after the warm-up", case=case)


def _constant_rates(pair: LivePair) -> tuple[Callable[[int], list[float]], Callable[[int], list[float]]]:
    """The schedule that keeps its peak (the original's ``return_constant_lr``), of the port and of the reference."""
    from tf_reference import optim

    peaks = [
        {**each, "constant": True} for each in (FINETUNING_SCHEDULES if pair.finetuning else (SCHEDULE_ARGUMENTS,))
    ]
    return (
        lambda step: [pair.training.schedule(step, **arguments) for arguments in peaks],
        lambda step: [optim.cosine_warmup(step, **arguments) for arguments in peaks],
    )


def live_runs(
    pair: LivePair,
    precision: str,
    steps: int,
    *,
    case: str = "",
    draws: int = TRAJECTORY_DRAWS,
    with_trajectory: bool = True,
    again: bool = True,
) -> Iterator[Comparison]:
    """Whole training runs: the state that they leave behind (float64), and the trajectory.

    A ratio of the trajectory that fails is measured on runs of other batches (``parity.second_look``).

    Args:
        pair: Both sides.
        precision: ``float64`` or ``float32``.
        steps: Length of the trajectory.
        case: Name of the case.
        draws: Runs of the reference that are perturbed.
        with_trajectory: Whether to compare the trajectory; else the run ends with the last state.
        again: Whether what fails is measured again: not where the port was wrong before.
    """
    count = steps if with_trajectory else max(STATE_STEPS)
    side = pair.side()

    def observed(number: int) -> list[Snapshot]:
        return side.run(pair.batches(number), count, pair.tensors, precision=precision)

    def measured(number: int, found: Sequence[Snapshot] | None = None) -> tuple[Comparison, ...]:
        found = observed(number) if found is None else found
        perturbed = [pair.run(precision, count, perturbed=draw, number=number) for draw in range(draws)]
        truth = pair.run(precision, count, number=number)
        return tuple(compare_trajectory(found, truth, perturbed, steps=count, precision=precision, case=case))

    first = observed(0)
    if precision == "float64":
        rows = tuple(compare_state(first, pair.run(precision, count), pair.tensors, steps=STATE_STEPS, case=case))
        again = again and _pass(rows)
        yield from rows
    if with_trajectory:
        rows = measured(0, first)
        yield from look_again(rows, measured) if again else rows


def perturb(key: str, step: int, value: np.ndarray, *, draw: int) -> np.ndarray:
    """Every number moved to a neighbour in its precision, up or down at random."""
    draws = Draws(draw)
    draws.step = step
    up = draws.generator(f"perturb|{key}").random(value.shape) < 0.5
    return np.nextafter(value, np.where(up, np.inf, -np.inf).astype(value.dtype))

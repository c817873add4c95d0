"""The reference trains as the original trained: its functions, and five whole steps, against the recorded numbers."""

import ast
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest import mock

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from parity.compare import compare, compare_array
from parity.records import Comparison, Reading, Status
from parity.reference import read_array
from parity.tolerances import TABLE
from parity.trace import Sample
from tests.assertions import assert_same
from tests.unit.tf_reference.recordings import GOLDENS, Recording
from tf_reference import EpiBERT, EpiBERTRampage, metrics
from tf_reference.early_stopping import early_stopping
from tf_reference.losses import gather, masked_loss, poisson, poisson_multinomial, whole_loss
from tf_reference.optim import EXCLUDED_FROM_WEIGHT_DECAY, adam, adamw, cosine_warmup
from tf_reference.training import (
    finetuning_metrics,
    finetuning_step,
    finetuning_validation_step,
    finetuning_variables,
    pretraining_metrics,
    pretraining_step,
)
from torch_impl.early_stopping import EarlyStoppingCounter

FUNCTIONS = h5py.File(GOLDENS / "functions.h5")
DTYPES = {"f64": "float64", "f32": "float32"}
# Rows of the table of tolerances: float32 sums round at another place when they are taken in another order.
ROWS = {"f64": "float64", "f32": "float32_only"}
STEPS = 5


def verified(comparisons: Iterator[Comparison] | list[Comparison]) -> int:
    """Number of comparisons; all of them must have passed."""
    comparisons = list(comparisons)
    failures = [
        f"{c.reference} {c.quantity}: {c.status} {c.detail} error {c.error}, peak {c.peak}, limit {c.limit}"
        for c in comparisons
        if c.status is not Status.PASS
    ]
    assert failures == []
    return len(comparisons)


def comparison(got: Any, expected: np.ndarray | Sample, tolerance: str, what: str, scale: float | None = None) -> Any:
    where: dict[str, Any] = {
        "gate": "test",
        "reading": Reading.ISOLATED,
        "precision": "float64",
        "tolerance": tolerance,
        "reference_path": what,
        "port_path": what,
        "layer": what,
        "quantity": "value",
    }
    if scale is not None:
        assert isinstance(expected, np.ndarray), f"{what} is not complete"
        return [compare(np.asarray(got), expected, scale=scale, **where)]
    return compare_array(np.asarray(got), expected, None, **where)


# --- losses


def recorded_losses(mode: str) -> Iterator[tuple[str, Any, tf.Tensor, tf.Tensor, h5py.Group]]:
    for case, sample in FUNCTIONS["losses"].items():
        y_true, y_pred = (tf.constant(sample[name][()], DTYPES[mode]) for name in ("y_true", "y_pred"))
        yield f"{case} poisson", poisson, y_true, y_pred, sample[mode]["poisson"]
        for name, group in sample[mode]["poisson_multinomial"].items():
            weight, rescale = name.removeprefix("w").split("_rescale")
            options = {"total_weight": float(weight), "rescale": rescale == "1"}

            def loss(y_true, y_pred, options=options):
                return poisson_multinomial(y_true, y_pred, **options)

            yield f"{case} {name}", loss, y_true, y_pred, group


@pytest.mark.parametrize("mode", ["f64", "f32"])
def test_losses_and_their_gradients(mode):
    comparisons = []
    for what, loss, y_true, y_pred, recorded in recorded_losses(mode):
        with tf.GradientTape() as tape:
            tape.watch(y_pred)
            value = loss(y_true, y_pred)
        gradient = tape.gradient(value, y_pred)
        mean = np.mean(recorded["value"][()], dtype=np.float64)
        comparisons += comparison(value, mean, ROWS[mode], what)
        comparisons += comparison(gradient, recorded["grad_of_mean_wrt_y_pred"][()], ROWS[mode], f"{what} gradient")
        assert value.dtype == DTYPES[mode]
    assert verified(comparisons) == 2 * 3 * 11


def test_a_bfloat16_prediction_is_cast_to_float32_first():
    y_true, y_pred = tf.constant([[[3.0], [1.0]]]), tf.constant([[[2.5], [0.3]]], tf.bfloat16)
    for loss in (poisson, poisson_multinomial):
        value = loss(tf.cast(y_true, tf.bfloat16), y_pred)
        assert value.dtype == tf.float32
        assert value == loss(y_true, tf.cast(y_pred, tf.float32))


@pytest.fixture
def bins():
    generator = np.random.default_rng(5)
    y_true, y_pred = generator.gamma(0.5, 4.0, (2, 3, 24, 1))
    mask = (generator.random((3, 24, 1)) < [[[0.2]], [[0.5]], [[0.7]]]).astype(np.float64)
    return tuple(tf.constant(array) for array in (y_true, y_pred, mask))


@pytest.mark.parametrize("loss_type", ["poisson", "poisson_multinomial"])
def test_the_masked_loss_pools_the_bins_of_all_examples(bins, loss_type):
    y_true, y_pred, mask = bins
    chosen = mask.numpy() == 1
    pooled = [tf.constant(values.numpy()[chosen].reshape(1, -1, 1)) for values in (y_true, y_pred)]
    expected = whole_loss(*pooled, loss_type=loss_type)
    assert masked_loss(y_true, y_pred, mask, loss_type=loss_type) == expected
    others = masked_loss(y_true, y_pred, 1 - mask, loss_type=loss_type)
    assert masked_loss(y_true, y_pred, mask, loss_type=loss_type, unmask=1 - mask) == expected + others
    assert gather(y_true, mask).shape == (1, chosen.sum(), 1)


def test_an_empty_mask_gives_nan(bins):
    y_true, y_pred, mask = bins
    for loss_type in ("poisson", "poisson_multinomial"):
        assert math.isnan(masked_loss(y_true, y_pred, 0 * mask, loss_type=loss_type))


def test_unknown_losses_are_refused(bins):
    with pytest.raises(ValueError, match="poisson, poisson_multinomial, not 'mse'"):
        masked_loss(*bins, loss_type="mse")


# --- metrics


@pytest.mark.parametrize("name", ["case0_PearsonR", "case1_R2", "case2_PearsonR", "case3_R2"])
def test_metrics_after_every_batch(name):
    recorded = FUNCTIONS["metrics"][name]
    kind = name.partition("_")[2]
    axes = ast.literal_eval(recorded.attrs["reduce_axis"])
    metric = getattr(metrics, kind)(axes, shape=recorded["state/count"].shape)
    comparisons = []
    for index in range(4):
        batch = recorded[f"batch{index}"]
        metric.update_state(batch["y_true"][()], batch["y_pred"][()])
        result = metric.result()[kind]
        comparisons += comparison(result, batch["result_so_far"][()], "float32_metric", f"{name} {index}")
        assert result.dtype == tf.float32
    for state, expected in recorded["state"].items():
        comparisons += comparison(getattr(metric, state), expected[()], "float32_only", f"{name} {state}")
    assert verified(comparisons) == 4 + 6
    metric.reset_state()
    assert np.isnan(metric.result()[kind]).all()


def test_a_metric_without_data_is_nan_and_ignores_weights():
    for kind in (metrics.PearsonR, metrics.R2):
        metric = kind(dtype="float64")
        assert np.isnan(metric.result()[kind.__name__]).all()
        values = tf.constant([[[1.0], [2.0], [4.0]]])
        metric.update_state(values, values, sample_weight=[0.0])
        assert abs(metric.result()[kind.__name__] - 1) <= TABLE["float64"].limit
        assert metric.result()[kind.__name__].shape == (1,)


# --- learning rate, early stopping


def test_learning_rates():
    settings = FUNCTIONS["cos_w_warmup/settings_target_warmup_decay_alpha_constant"][()]
    comparisons = []
    for index, (peak, warmup, decay, floor, constant) in enumerate(settings):
        rates = [cosine_warmup(step, peak, warmup, decay, floor, constant=bool(constant)) for step in range(50)]
        comparisons += comparison(rates, FUNCTIONS[f"cos_w_warmup/lr_{index}"][()], "recorded_rate", f"row {index}")
    assert verified(comparisons) == 7


@pytest.mark.parametrize(
    ("losses", "counters", "best_epochs"),
    [
        ([3.0, 2.0, 1.0], [1, 0, 0], [None, 1, 2]),  # the first is compared with itself
        ([3.0, 3.0, 4.0, 2.0], [1, 2, 3, 0], [None, None, None, 3]),
        ([3.0, 2.95, 2.85, 2.7], [1, 2, 3, 0], [None, None, None, 3]),  # the best moves without an improvement
        ([3.0, 1.0, 2.0, 0.9], [1, 0, 1, 2], [None, 1, 1, 1]),  # exactly min_delta better is none
    ],
)
def test_early_stopping_counts_as_the_original(losses, counters, best_epochs):
    counter, best_epoch = 0, None
    for epoch in range(len(losses)):
        stop, counter, best_epoch = early_stopping(
            losses[: epoch + 1], counter, best_epoch, patience=3, min_delta=0.1 if losses[-1] != 0.9 else 0.125
        )
        assert (counter, best_epoch) == (counters[epoch], best_epochs[epoch])
        assert stop == (counters[epoch] >= 3)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_the_port_counts_as_the_reference_in_epochs_with_and_without_a_validation(every):
    """Fine-tuning asks in every epoch, whether its list of losses has grown or not (spec, section 3.5)."""
    generator = np.random.default_rng(every)
    for _ in range(50):
        port, losses = EarlyStoppingCounter(patience=5, min_delta=0.25), []
        counter, best_epoch = 0, None
        for epoch in range(24):
            if epoch % every == 0:
                losses.append(float(generator.integers(0, 32)) / 8)
                stop = port.update(losses[-1])
            else:
                stop = port.repeat()
            wanted, counter, best_epoch = early_stopping(losses, counter, best_epoch, patience=5, min_delta=0.25)
            assert (stop, port.counter, port.best_epoch) == (wanted, counter, best_epoch)


# --- optimizers


def test_weight_decay_spares_biases_and_norms():
    model = built("P1")
    optimizer = adamw(weight_decay=1e-4)
    decaying = {
        key for key, v in model.checkpoint_variables().items() if v.trainable and optimizer._use_weight_decay(v)
    }
    exempt = ("bias", "gamma", "beta")
    expected = {key for key, v in model.checkpoint_variables().items() if v.trainable and not key.endswith(exempt)}
    assert decaying == expected
    assert len(decaying) == 36
    assert EXCLUDED_FROM_WEIGHT_DECAY[0] == "bias"


def test_the_learning_rate_is_rounded_to_the_dtype_of_the_variable():
    """Two ways to hold it make the same float32 step; float64 variables tell them apart."""
    steps = {}
    for dtype in ("float32", "float64"):
        for variable_dtype in ("float32", "float64"):
            optimizer, variable = adam(1e-7, dtype=dtype), tf.Variable(tf.zeros(3, variable_dtype))
            optimizer.apply_gradients([(tf.constant([1.0, -2.0, 1e-4], variable_dtype), variable)])
            assert optimizer.learning_rate.dtype == dtype
            steps[dtype, variable_dtype] = variable.numpy()
    assert np.array_equal(steps["float32", "float32"], steps["float64", "float32"])
    assert not np.array_equal(steps["float32", "float64"], steps["float64", "float64"])
    assert tf_keras.backend.floatx() == "float32"


# --- whole steps


@cache
def built(case: str) -> Any:
    kind = EpiBERT if case == "P1" else EpiBERTRampage
    return kind(**Recording(case).config, dtype="float64").build_weights()


def as_recorded(case: str) -> Any:
    """The model with the weights and constants of the recording."""
    model, recording = built(case), Recording(case)
    model.assign(recording.weights)
    constants = recording.under("constants")
    model.set_constants(constants["projection_matrix_0"][0], constants["rotary_table_bfloat16"][0])
    return model


@dataclass
class Training:
    """A recorded training run, and the same steps by the reference."""

    case: str
    variant: str

    def __post_init__(self) -> None:
        self.recording = Recording(self.case)
        self.inputs = tuple(tf.cast(array, tf.float64) for array in self.recording.inputs)
        names = ("target_atac", "mask") if self.case == "P1" else ("target_rna", "target_atac", "mask")
        targets = [tf.constant(self.recording.array(f"inputs/{name}")) for name in names]
        if self.variant.endswith("unmask"):
            targets.append(1 - targets[-1])
        self.targets = tuple(targets)
        self.loss_type = "poisson" if self.variant == "poisson" else "poisson_multinomial"

    def optimizer(self) -> Any:
        make = adamw if self.variant.endswith("adamw") else adam
        return make(global_clipnorm=1.0)

    def run(self, group: h5py.Group, eager: bool) -> Iterator[Comparison]:
        """Five steps, compared with everything that was recorded of them; gradients are seen only in eager ones."""
        model = as_recorded(self.case)
        if self.case == "P1":
            optimizers, kept = (self.optimizer(),), pretraining_metrics()
            step = pretraining_step(
                model,
                optimizers[0],
                loss_type=self.loss_type,
                unmask_loss=self.variant.endswith("unmask"),
                metrics=kept,
            )
        else:
            optimizers, kept = (self.optimizer(), self.optimizer()), finetuning_metrics()
            step = finetuning_step(model, optimizers, loss_type=self.loss_type, atac_scale=0.10, metrics=kept)
        step = step.python_function if eager else step
        losses = []
        for number in range(STEPS):
            rate = cosine_warmup(number, 1e-4, 5, 100, 0.1)
            yield from comparison(rate, group["learning_rate"][number], "recorded_rate", f"rate {number}")
            for optimizer in optimizers:
                optimizer.learning_rate = rate
            with handed_over() as gradients:
                losses.append(np.ravel(step(self.inputs, *self.targets)))
            if number == 0:
                yield from comparison(losses[0][0], group["own_loss_step0"][()], "float64", "loss")
                if eager:
                    yield from self.gradients(model, gradients, group)
            if number in (0, STEPS - 1):
                yield from self.weights(model, group[f"weights_after_{number + 1}"])
        names = ["train_loss", "train_loss_rna", "train_loss_atac"][: len(losses[0])]
        for name, values in zip(names, np.transpose(losses), strict=True):
            yield from comparison(values, group[name][()], "float64", name)
        for name, recorded in group["metrics"].items():
            result = next(iter(kept[name].result().values()))
            yield from comparison(result, recorded[()], "float32_metric", name)
        for index, optimizer in enumerate(optimizers):
            if f"optimizer{index + 1}" in group:
                yield from self.slots(optimizer, group[f"optimizer{index + 1}"])

    def weights(self, model: Any, group: h5py.Group) -> Iterator[Comparison]:
        variables, recorded = model.checkpoint_variables(), datasets(group)
        assert variables.keys() == recorded.keys()
        assert len(recorded) == {"P1": 110, "R1": 118}[self.case]
        for key, expected in recorded.items():
            yield from comparison(variables[key], expected, "optimizer", key)

    def gradients(self, model: Any, found: dict[int, np.ndarray], group: h5py.Group) -> Iterator[Comparison]:
        """Those that are zero in theory are related to all others, as is one that is what is left of larger terms."""
        variables, recorded = model.checkpoint_variables(), datasets(group["grad0"])
        assert recorded.keys() == {key for key, variable in variables.items() if variable.trainable}
        assert len(recorded) == len(found) == {"P1": 88, "R1": 94}[self.case]
        norm = np.sqrt(sum(np.sum(np.square(gradient)) for gradient in found.values()))
        yield from comparison(norm, group["grad0_global_norm"][()], "gradient", "norm")
        scale, noise = root_mean_square(found.values()), 0
        for key, expected in recorded.items():
            gradient = found[id(variables[key])]
            if is_noise(key):
                noise += 1
                assert isinstance(expected, np.ndarray)
                for side in (gradient, expected):
                    yield from comparison(side, np.zeros(expected.shape), "zero_gradient", key, scale)
            else:
                cancels = key == "model/performer/layer_norm/gamma"
                yield from comparison(gradient, expected, "gradient", key, scale if cancels else None)
        assert noise == 11

    def slots(self, optimizer: Any, group: h5py.Group) -> Iterator[Comparison]:
        """Moments of gradients that are only noise are compared with all others."""
        variables = list(optimizer.variables)
        assert len(variables) == len(group)
        count, *moments = variables
        yield from comparison(count, group["0000"][()].astype(np.float64), "exact", "iterations")
        for kind, own in enumerate((moments[::2], moments[1::2])):
            scale = root_mean_square(own)
            for number, variable in enumerate(own):
                recorded = group[f"{1 + 2 * number + kind:04d}"]
                expected = read_array(recorded)
                noise = root_mean_square([variable]) < 1e-10 * scale
                assert recorded.attrs["name"].split("/")[1] == "mv"[kind]
                what = recorded.attrs["name"]
                row = "zero_gradient" if noise else "optimizer"
                yield from comparison(variable, expected, row, what, scale if noise else None)


@contextmanager
def handed_over() -> Iterator[dict[int, np.ndarray]]:
    """Gradients that eager optimizers are given meanwhile, by the identity of their variables."""
    found: dict[int, np.ndarray] = {}
    original = tf_keras.optimizers.Optimizer.apply_gradients

    def apply_gradients(optimizer, pairs, *arguments, **keywords):
        if tf.executing_eagerly():
            found.update({id(variable): gradient.numpy() for gradient, variable in pairs})
        return original(optimizer, pairs, *arguments, **keywords)

    with mock.patch.object(tf_keras.optimizers.Optimizer, "apply_gradients", apply_gradients):
        yield found


def datasets(group: h5py.Group) -> dict[str, np.ndarray | Sample]:
    found: dict[str, np.ndarray | Sample] = {}
    group.visititems(
        lambda name, item: found.update({name: read_array(item)} if isinstance(item, h5py.Dataset) else {})
    )
    return found


def root_mean_square(arrays: Any) -> float:
    everything = np.concatenate([np.ravel(array) for array in arrays])
    return float(np.sqrt(np.mean(np.square(everything))))


def weights_and_gradients(weights: int, gradients: int) -> int:
    """Twice the weights; the norm, each gradient, and those that are noise once more, on the recorded side."""
    return 2 * weights + (1 + gradients + 11 if gradients else 0)


# All comparisons of arrays, without those of summaries: rates, losses, weights and gradients, metrics, slots.
RUNS = {
    ("P1", "poisson"): 5 + 2 + weights_and_gradients(110, 88) + 2 + 177,
    ("P1", "poisson_multinomial"): 5 + 2 + weights_and_gradients(110, 88) + 2 + 177,
    ("P1", "poisson_multinomial_unmask"): 5 + 2 + weights_and_gradients(110, 88) + 2,
    ("R1", "poisson_multinomial"): 5 + 4 + weights_and_gradients(118, 94) + 4 + 177 + 13,
    ("R1", "poisson_multinomial_adamw"): 5 + 4 + weights_and_gradients(118, 94) + 4,
}


@pytest.mark.parametrize(("case", "variant"), RUNS)
def test_five_steps(case, variant):
    """Losses, gradients, weights, statistics, slots and metrics."""
    with h5py.File(GOLDENS / case / "train.h5") as file:
        comparisons = list(Training(case, variant).run(file["f64"][variant], eager=True))
    assert len([c for c in comparisons if c.quantity == "value"]) == RUNS[case, variant]
    verified(comparisons)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "variant"), RUNS)
def test_five_steps_in_a_graph(case, variant):
    """As the original takes them; tracing one takes as long as ten eager ones, and says nothing of the gradients."""
    with h5py.File(GOLDENS / case / "train.h5") as file:
        comparisons = list(Training(case, variant).run(file["f64"][variant], eager=False))
    gradients = weights_and_gradients(0, {"P1": 88, "R1": 94}[case])
    assert len([c for c in comparisons if c.quantity == "value"]) == RUNS[case, variant] - gradients
    verified(comparisons)


def is_noise(key: str) -> bool:
    """Offsets that a BatchNorm removes in training mode: pooling and the residual connection pass them on unchanged."""
    if key in ("model/performer/layer_norm/beta", "model/stem_conv/bias", "model/stem_conv_atac/bias"):
        return True
    last = ("model/conv_tower/layer_with_weights-5", "model/conv_tower_atac/layer_with_weights-1")
    convolutions = ("model/conv_tower", "model/stem_res_conv")
    return key.startswith(convolutions) and key.endswith("layer_with_weights-1/bias") and not key.startswith(last)


class Scaled(tf_keras.Model):
    """The least that can be trained: its second input times one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = self.add_weight("factor", (), initializer="ones")

    def call(self, inputs, training=None):
        return tf.cast(inputs[1], tf.float32) * self.factor


def test_the_loss_is_divided_by_the_replicas(bins):
    target, values, mask = bins
    losses = []
    for replicas in (1, 4):
        model, optimizer = Scaled(), tf_keras.optimizers.SGD(1.0)
        kept = pretraining_metrics()
        step = pretraining_step(model, optimizer, loss_type="poisson", replicas=replicas, metrics=kept)
        losses.append((float(step((values, values, values), target, mask)), 1 - float(model.factor)))
        assert float(kept["train_loss"].result()) == losses[-1][0]
        assert np.isfinite(kept["ATAC_R2_tr"].result()["R2"])
    quarters = np.array(losses[0]) / np.array(losses[1]) / 4
    assert np.max(np.abs(quarters - 1)) <= TABLE["float32_only"].limit


def test_fine_tuning_without_accessibility():
    model = EpiBERTRampage(
        predict_atac=False, num_transformer_layers=1, output_length=8, final_output_length=6, max_seq_length=8,
        filter_list_seq=(4, 8), filter_list_atac=(3,), num_heads=2, num_motifs=3, final_point_scale=2,
    ).build_weights()  # fmt: skip
    trunk, head = finetuning_variables(model)
    assert {id(v) for v in trunk + head} == {id(v) for v in model.trainable_variables}
    assert len(head) == 6
    optimizers, kept = (adam(), adam()), finetuning_metrics()
    step = finetuning_step(model, optimizers, loss_type="poisson", metrics=kept).python_function
    inputs = tuple(tf.random.uniform(shape) for shape in ((1, 64, 4), (1, 64, 1), (1, 1, 3)))
    loss = step(inputs, tf.random.uniform((1, 6, 1)))
    assert loss.atac is None
    assert loss.total == loss.rna
    assert [len(optimizer.variables) for optimizer in optimizers] == [1 + 2 * len(trunk), 1 + 2 * 6]
    assert np.isfinite(kept["RNA_PearsonR_tr"].result()["PearsonR"])
    assert np.isnan(kept["ATAC_PearsonR_tr"].result()["PearsonR"])


@pytest.mark.parametrize("predict_atac", [True, False])
def test_a_validation_of_fine_tuning_changes_nothing_and_sums_at_start_sites(predict_atac):
    model = EpiBERTRampage(
        predict_atac=predict_atac, num_transformer_layers=1, output_length=8, final_output_length=6, max_seq_length=8,
        filter_list_seq=(4, 8), filter_list_atac=(3,), num_heads=2, num_motifs=3, final_point_scale=2,
    ).build_weights()  # fmt: skip
    before = [variable.numpy() for variable in model.variables]
    kept = finetuning_metrics("val")
    assert {"val_loss", "val_loss_rna", "RNA_PearsonR", "ATAC_R2"} <= set(kept)
    step = finetuning_validation_step(model, loss_type="poisson", atac_scale=0.5, metrics=kept).python_function
    second = finetuning_metrics("val_ho")
    assert set(second) == {f"{name}_ho" for name in kept}
    held_out = finetuning_validation_step(model, loss_type="poisson", atac_scale=0.5, metrics=second).python_function
    generator = np.random.default_rng(0)
    inputs = tuple(tf.constant(generator.random(s, np.float32)) for s in ((2, 64, 4), (2, 64, 1), (2, 1, 3)))
    rna, atac = (generator.gamma(1.0, 3.0, (2, 6, 1)).astype(np.float32) for _ in range(2))
    mask, tokens = (generator.integers(0, 2, (2, 6, 1)).astype(np.int32) for _ in range(2))
    found = step(inputs, *map(tf.constant, (rna, atac, mask, tokens)))
    assert all(np.array_equal(b, v.numpy()) for b, v in zip(before, model.variables, strict=True))
    predicted = found.outputs[1].numpy()
    assert np.array_equal(predicted, step(inputs, tf.constant(rna), tf.constant(atac), mask).outputs[1].numpy())
    for got, bins in ((found.true_at_starts, rna), (found.predicted_at_starts, predicted)):
        assert_same(got.numpy(), (bins * tokens).sum(axis=(1, 2)), "float32_only")
    assert step(inputs, tf.constant(rna), tf.constant(atac), mask).true_at_starts is None
    loss = found.loss
    assert (loss.atac is not None) == (found.outputs[0] is not None) == predict_atac
    total = loss.rna if loss.atac is None else loss.rna + 0.5 * loss.atac
    assert_same(loss.total.numpy(), total.numpy(), "float32_only")
    assert_same(loss.rna.numpy(), np.mean(predicted - rna * np.log(predicted + 1e-7)), "float32_only")
    assert_same(np.float32(kept["val_loss"].result()), loss.total.numpy(), "float32_only")
    # The second set has metrics of its own, by names of its own.
    assert np.isnan(second["RNA_R2_ho"].result()["R2"])
    for metric in kept.values():
        metric.reset_state()
    for each in (step, held_out):
        each(inputs, *map(tf.constant, (rna, atac, mask, tokens)))
    for name, metric in kept.items():
        pair = (metric.result(), second[f"{name}_ho"].result())
        one, other = (np.asarray(next(iter(r.values())) if isinstance(r, dict) else r) for r in pair)
        if predict_atac or "atac" not in name.lower():
            assert_same(other, one, "exact", what=name)
    assert np.isfinite(kept["RNA_R2"].result()["R2"])
    assert np.isnan(kept["ATAC_R2"].result()["R2"]) == (not predict_atac)


def test_correlations_across_genes_and_cell_types():
    generator = np.random.default_rng(1)
    table = generator.gamma(1.0, 5.0, (2, 3, 5))  # true and predicted, cell types, genes
    metric = metrics.GeneCellCorrelation()
    assert np.isnan(metric.result()["cell_pearson"])
    cell, gene = (index.reshape(-1) for index in np.meshgrid(range(3), range(5), indexing="ij"))
    for _ in range(2):  # examples of one gene and cell type are summed
        metric.update_state(*(table.reshape(2, -1) / 2), gene, cell)
    levels = np.log2(1 + table)
    z = (levels - levels.mean(axis=2, keepdims=True)) / levels.std(axis=2, keepdims=True)
    found = metric.result()
    assert_same(np.array(found["cell_pearson"]), np.mean([np.corrcoef(*z[:, c])[0, 1] for c in range(3)]))
    assert_same(np.array(found["gene_pearson"]), np.mean([np.corrcoef(*z[:, :, g])[0, 1] for g in range(5)]))
    assert (found["cells"], found["genes"]) == (3, 5)
    metric.update_state([1.0], [2.0], [0], [9])  # a cell type of one gene leaves that gene undefined
    assert (metric.result()["cells"], metric.result()["genes"]) == (3, 4)
    metric.reset_state()
    assert metric.result()["genes"] == 0

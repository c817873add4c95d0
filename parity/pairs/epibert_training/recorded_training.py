"""The rungs losses to state, recorded: loss, every gradient and five steps of the original, against the port."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from parity.compare import compare, compare_array
from parity.draws import Draws
from parity.pairs import epibert
from parity.pairs.epibert_training.hdf5 import group_of, numbers
from parity.pairs.epibert_training.parts import PORT, PortTraining
from parity.pairs.epibert_training.recipes import SEED, finetuning_recipe, port_recipe
from parity.pairs.epibert_training.tensors import tensor_pairs
from parity.records import Comparison, NotCompared, Reading
from parity.reference import Goldens, read_array
from parity.torch_training import TorchTraining
from parity.trace import Sample
from parity.training import (
    LOSS,
    MOMENTS,
    OPTIMIZER,
    SCHEDULE,
    Inputs,
    Snapshot,
    Targets,
    TensorPair,
    in_reference_layout,
    parameter_gradients,
    root_mean_square,
)
from torch_impl.model import Trunk
from weights.table import kind_of
from weights.table import rows as weight_rows


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
        recorded = group_of(file[f"f64/{variant.name}"])
        gradients = group_of(recorded["grad0"])
        backward = side.gradients(inputs, targets, precision="float64")
        yield _recorded_value(backward.loss, recorded["own_loss_step0"], "losses", "loss", LOSS, "float64", case)
        expected = {pair.reference: read_array(gradients[pair.reference]) for pair in tensors if pair.trainable}
        count = sum(int(np.prod(g.full_shape if isinstance(g, Sample) else g.shape)) for g in expected.values())
        yield from parameter_gradients(
            backward.parameters,
            expected,
            tensors,
            tolerance="gradient",
            scale=float(numbers(recorded["grad0_global_norm"])) / count**0.5,
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
            yield from _recorded_weights(snapshots, group_of(recorded[f"weights_after_{step}"]), step, tensors, case)
        for number, order in enumerate(orders, start=1):
            if f"optimizer{number}" in recorded:
                slots = group_of(recorded[f"optimizer{number}"])
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
            recorded = group_of(file[f"f64/{variant.name}"])
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
        np.atleast_1d(numbers(dataset)),
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
            numbers(recorded[name]),
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
            numbers(slots[name]),
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

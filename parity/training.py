"""Training, held against training: gradients, optimizer steps, statistics, trajectories.

What is compared comes from two sides that know their framework, ``parity.keras_training`` and
``parity.torch_training``, as the records below; nothing here does.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from parity.compare import compare, compare_array, distance
from parity.layer_map import LayerMap
from parity.records import Comparison, NotCompared, Reading, Status
from parity.trace import Sample, Trace, attempt

LOSS, METRIC, OPTIMIZER, SCHEDULE = "loss", "metric", "optimizer", "schedule"
"""What answers for a failure that is no layer's."""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""First and second moment of Adam under PyTorch's names."""

Inputs = tuple[np.ndarray, ...]
Targets = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorPair:
    """A tensor of the port and the variable of the reference that it answers to.

    Attributes:
        port: Name in the port's ``state_dict``.
        reference: Key of the variable.
        to_port: From the reference's layout to the port's.
        to_reference: And back, given the reference's shape.
        trainable: A parameter; otherwise a statistic.
        zero_gradient: Why its gradient is zero in exact arithmetic; empty when it is not.
        small_gradient: Why its gradient is what is left of much larger terms that cancel; empty when it is not.
    """

    port: str
    reference: str
    to_port: Callable[[np.ndarray], np.ndarray]
    to_reference: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    trainable: bool
    zero_gradient: str = ""
    small_gradient: str = ""

    @property
    def layer(self) -> str:
        """Module of the port that holds the tensor."""
        return self.port.rpartition(".")[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one side is trained.

    Attributes:
        loss: From the model's output and the targets to a scalar.
        optimizers: From the model to its optimizers: on the Keras side pairs (optimizer, variables), on the PyTorch
            side optimizers that hold their parameters.
        schedule: Learning rates of the optimizers at a step counted from 0.
    """

    loss: Callable[[Any, Mapping[str, Any]], Any]
    optimizers: Callable[[Any], Sequence[Any]]
    schedule: Callable[[int], Sequence[float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backward:
    """What a forward and a backward pass left behind.

    Attributes:
        loss: The loss; None when the pass ended early.
        forward: Values: what went into every call and came out of it.
        gradients: Gradients of the loss in the same form: by each call's inputs through that call alone, and by its
            outputs through everything after it. Zero where no gradient flows.
        parameters: Gradient by each parameter under the side's own name, in the side's own layout.
        error: What ended the pass early.
    """

    loss: float | None
    forward: Trace
    gradients: Trace
    parameters: Mapping[str, np.ndarray]
    error: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A side after one training step; tensors under the port's names and in its layout.

    Attributes:
        step: Number of steps taken.
        loss: Loss of the last step, before its update.
        learning_rates: Learning rates of the last step.
        weights: Parameters; of the port also those that no pair knows.
        statistics: Everything else in the model that training changes.
        exp_avg: First moments by parameter.
        exp_avg_sq: Second moments by parameter.
        counters: Step counters of the optimizers.
        error: What ended the run at this step, if anything did; the tensors are then those of the step before.
    """

    step: int
    loss: float
    learning_rates: tuple[float, ...]
    weights: Mapping[str, np.ndarray]
    statistics: Mapping[str, np.ndarray]
    exp_avg: Mapping[str, np.ndarray]
    exp_avg_sq: Mapping[str, np.ndarray]
    counters: tuple[int, ...]
    error: str = ""


GROUPS = ("weights", "statistics", *MOMENTS)
"""The tensors of a snapshot."""


# --- gradients -------------------------------------------------------------------------------------------------------


def compare_gradients(
    observed: Backward,
    truth: Backward,
    tensors: Sequence[TensorPair],
    layer_map: LayerMap,
    *,
    reading: Reading,
    precision: str,
    tolerance: str,
    own: Backward | None = None,
    case: str = "",
) -> Iterator[Comparison]:
    """Every gradient of the port: by each parameter, and by what goes into and comes out of each layer.

    Args:
        observed: The port's pass. In the isolated reading every layer was handed the reference's values on the way
            forward and the reference's gradient on the way back, so each difference is its own.
        truth: The reference's pass in its most precise form.
        tensors: Which parameter is which variable.
        layer_map: Which layer is which.
        reading: ``ISOLATED`` or ``ACCUMULATED``.
        precision: Precision of the port's pass.
        tolerance: Row of the table.
        own: The reference's pass in the port's precision, where the row is a ratio.
        case: Name of the case.
    """
    common: dict[str, Any] = {
        "gate": "gradients",
        "case": case,
        "reading": reading,
        "precision": precision,
        "mode": "training",
    }
    yield compare(
        _scalar(observed.loss),
        _scalar(truth.loss),
        reference_same_precision=None if own is None else _scalar(own.loss),
        tolerance=tolerance,
        reference_path="",
        port_path="",
        layer=LOSS,
        quantity="loss",
        detail=observed.error,
        **common,
    )
    yield from parameter_gradients(
        observed.parameters,
        truth.parameters,
        tensors,
        tolerance=tolerance,
        scale=root_mean_square(truth.parameters.values()),
        own=None if own is None else own.parameters,
        detail=observed.error,
        **common,
    )
    known = {pair.port for pair in tensors if pair.trainable}
    for name in sorted(set(observed.parameters) - known):
        detail = "no row of the weight map names this parameter of the port"
        where = {"reference_path": "", "port_path": name, "layer": name.rpartition(".")[0]}
        yield compare(None, None, tolerance=tolerance, quantity="gradient", detail=detail, **where, **common)
    if own is None:
        yield from _activation_gradients(observed, truth, layer_map, tolerance=tolerance, **common)


def parameter_gradients(
    found: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray | Sample],
    tensors: Sequence[TensorPair],
    *,
    tolerance: str,
    scale: float,
    own: Mapping[str, np.ndarray] | None = None,
    **common: Any,
) -> Iterator[Comparison]:
    """One row for the gradient by each parameter, in the reference's layout.

    A gradient that is zero in exact arithmetic is rounding noise on both sides. Both are held against zero, in units of
    the root mean square of all the reference's gradients. In the same units stands the error of a gradient that is left
    of larger terms: it cannot be more accurate than they are.

    Args:
        found: The port's, by name and in the port's layout.
        expected: The reference's, by key and in its own layout.
        tensors: Which is which.
        tolerance: Row of the table.
        scale: Root mean square of all elements of all the reference's gradients.
        own: The reference's in the port's precision.
        **common: What all rows have in common.
    """
    for order, pair in enumerate(tensor for tensor in tensors if tensor.trainable):
        truth = expected[pair.reference]
        shape = truth.full_shape if isinstance(truth, Sample) else truth.shape
        gradient = in_reference_layout(found.get(pair.port), pair, tuple(shape))
        where: dict[str, Any] = {
            "reference_path": pair.reference,
            "port_path": pair.port,
            "layer": pair.layer,
            "order": order,
        }
        if not pair.zero_gradient and not pair.small_gradient:
            same = None if own is None else own[pair.reference]
            yield from compare_array(gradient, truth, same, tolerance=tolerance, quantity="gradient", **where, **common)
            continue
        if isinstance(truth, Sample):
            raise TypeError(f"{pair.reference}: a gradient related to all others must be complete")
        if pair.small_gradient:
            yield compare(
                gradient,
                truth,
                reference_same_precision=None if own is None else own[pair.reference],
                scale=scale,
                tolerance=tolerance,
                quantity="gradient",
                **where,
                **common,
            )
        elif own is None:  # in other precisions there is nothing but noise; see ``not_compared_gradients``
            for side, noise in (("port", gradient), ("reference", truth)):
                yield compare(
                    noise,
                    np.zeros_like(truth),
                    scale=scale,
                    tolerance="zero_gradient",
                    quantity=f"gradient of the {side}, zero in theory",
                    **where,
                    **common,
                )


def root_mean_square(arrays: Iterable[np.ndarray]) -> float:
    """Of all elements of all arrays together."""
    everything = np.concatenate([np.ravel(array) for array in arrays])
    return float(np.sqrt(np.mean(np.square(everything))))


def in_reference_layout(array: np.ndarray | None, pair: TensorPair, shape: tuple[int, ...]) -> np.ndarray | None:
    """The port's array as the reference would hold it; one that is not laid out as the port's keeps another shape."""
    if array is None or array.shape != pair.to_port(np.empty(shape, dtype=bool)).shape:
        # Left in the reference's layout it is wrong in a port, and must not pass for what it would have been turned to.
        return pair.to_port(array) if array is not None and array.shape == shape else array
    return pair.to_reference(array, shape)


def not_compared_gradients(tensors: Sequence[TensorPair], *, case: str) -> tuple[NotCompared, ...]:
    """What the comparison of gradients leaves out, by name."""
    rows = [
        NotCompared(
            side=case,
            name=f"float32 gradient by {pair.port}",
            reason=f"zero in exact arithmetic ({pair.zero_gradient}): two draws of rounding noise; float64 compares it",
        )
        for pair in tensors
        if pair.zero_gradient
    ]
    rows += [
        NotCompared(
            side=case,
            name="float32 gradients by activations",
            reason="the gradients by all parameters are made from them and are compared",
        ),
        NotCompared(
            side=case,
            name="gradients, steps and trajectories in bfloat16",
            reason="the original's own bfloat16 gradients are off by 10 to 20 % of their norm, too far to judge by",
        ),
    ]
    return tuple(rows)


def _activation_gradients(
    observed: Backward, truth: Backward, layer_map: LayerMap, *, tolerance: str, **common: Any
) -> Iterator[Comparison]:
    for pair in layer_map:
        if pair.alias:
            continue
        expected, found = truth.gradients.count(pair.reference), observed.gradients.count(pair.port)
        for index in range(max(expected, found, 1)):
            suffix = f"@{index}" if index else ""
            port, reference = (
                observed.gradients.calls.get((pair.port, index)),
                truth.gradients.calls.get((pair.reference, index)),
            )
            owner = LOSS if pair.port == "" else layer_map.owner(pair.port)
            where = {"reference_path": pair.reference + suffix, "port_path": pair.port + suffix}
            if port is None or reference is None:
                detail = f"called {found} times in the port and {expected} times in the reference"
                if observed.error:
                    detail = f"{detail}; the pass ended with {observed.error}"
                yield compare(
                    None, None, tolerance=tolerance, layer=owner, quantity="gradients", detail=detail, **where, **common
                )
                continue
            for position in range(max(len(reference.outputs), len(port.outputs), len(pair.outputs))):
                name = pair.outputs[position] if position < len(pair.outputs) else f"output_{position}"
                yield compare(
                    _at(port.outputs, position),
                    _at(reference.outputs, position),
                    tolerance=tolerance,
                    layer=owner,
                    quantity=f"gradient by {name}",
                    order=reference.order,
                    **where,
                    **common,
                )
            for position in range(pair.inputs):
                yield compare(
                    _at(port.inputs or (), position),
                    _at(reference.inputs or (), position),
                    tolerance=tolerance,
                    layer=pair.port,
                    quantity=f"gradient by input_{position}" if position else "gradient by input",
                    order=reference.order,
                    **where,
                    **common,
                )


def _at(arrays: Sequence[Any], position: int) -> np.ndarray | None:
    return arrays[position] if position < len(arrays) else None


def _scalar(value: float | None) -> np.ndarray | None:
    return None if value is None else np.asarray([value], dtype=np.float64)


# --- optimizer -------------------------------------------------------------------------------------------------------


def compare_steps(
    observed: Sequence[Snapshot],
    truth: Sequence[Snapshot],
    before: Mapping[str, np.ndarray],
    tensors: Sequence[TensorPair],
    *,
    steps: Sequence[int],
    label: str,
    case: str = "",
) -> Iterator[Comparison]:
    """Optimizer steps from the same weights along the same gradients: what each moved, and both moments.

    Args:
        observed: The port after each step.
        truth: The reference after each step.
        before: Weights before the first step, by the port's names.
        tensors: Which tensor is which.
        steps: Numbers of the steps to compare.
        label: Which gradients.
        case: Name of the case.
    """
    common: dict[str, Any] = {
        "gate": "optimizer",
        "case": f"{case}, {label}" if case else label,
        "reading": Reading.ISOLATED,
        "precision": "float64",
        "mode": "training",
        "layer": OPTIMIZER,
    }
    for step in steps:
        port, reference = _taken(observed, step), _taken(truth, step)
        if port is None or reference is None or port.error:
            detail = _error(observed) or f"one side has no step {step}"
            yield compare(
                None,
                None,
                tolerance="optimizer_update",
                reference_path="",
                port_path="",
                quantity=f"step {step}",
                detail=detail,
                **common,
            )
            continue
        for order, pair in enumerate(tensor for tensor in tensors if tensor.trainable):
            where = {"reference_path": pair.reference, "port_path": pair.port, "order": order}
            found, expected = port.weights.get(pair.port), reference.weights[pair.port]
            start = before[pair.port]
            yield compare(
                # Of another shape it has not moved from there, and the comparison of shapes says so.
                found if found is None or found.shape != start.shape else found - start,
                expected - start,
                tolerance="optimizer_update",
                quantity=f"change after step {step}",
                **where,
                **common,
            )
            for moment in MOMENTS:
                yield compare(
                    getattr(port, moment).get(pair.port),
                    getattr(reference, moment)[pair.port],
                    tolerance="optimizer",
                    quantity=f"{moment} after step {step}",
                    **where,
                    **common,
                )
        for name in sorted(set(port.weights) - {pair.port for pair in tensors if pair.trainable}):
            yield compare(
                None,
                None,
                tolerance="optimizer_update",
                reference_path="",
                port_path=name,
                quantity=f"change after step {step}",
                detail="no row of the weight map names this parameter of the port",
                **common,
            )
        yield from _bookkeeping(port, reference, gate="optimizer", case=common["case"], layer=OPTIMIZER)


def compare_schedules(
    observed: Callable[[int], Sequence[float]],
    truth: Callable[[int], Sequence[float]],
    steps: Sequence[int],
    *,
    label: str,
    case: str = "",
) -> Iterator[Comparison]:
    """The learning rate of every step asked for."""
    found, error = attempt(lambda: np.asarray([observed(step) for step in steps], dtype=np.float64))
    yield compare(
        found,
        np.asarray([truth(step) for step in steps], dtype=np.float64),
        gate="optimizer",
        case=case,
        reading=Reading.ISOLATED,
        precision="float64",
        mode="training",
        tolerance="float64",
        reference_path="",
        port_path="",
        layer=SCHEDULE,
        quantity=f"learning rates, {label}",
        detail=error,
    )


def _taken(snapshots: Sequence[Snapshot], step: int) -> Snapshot | None:
    return next((snapshot for snapshot in snapshots if snapshot.step == step), None)


def _error(snapshots: Sequence[Snapshot]) -> str:
    """What ended a run early."""
    return next((snapshot.error for snapshot in snapshots if snapshot.error), "")


def _bookkeeping(
    port: Snapshot, reference: Snapshot, *, gate: str, case: str, layer: str, precision: str = "float64"
) -> Iterator[Comparison]:
    """Step counters and learning rates."""
    pairs = (
        ("step counters", port.counters, reference.counters, OPTIMIZER, "exact"),
        ("learning rates", port.learning_rates, reference.learning_rates, SCHEDULE, "float64"),
    )
    for quantity, found, expected, blamed, tolerance in pairs:
        yield compare(
            np.asarray(found, dtype=np.float64),
            np.asarray(expected, dtype=np.float64),
            gate=gate,
            case=case,
            reading=Reading.ISOLATED if layer == OPTIMIZER else Reading.ACCUMULATED,
            precision=precision,
            mode="training",
            tolerance=tolerance,
            reference_path="",
            port_path="",
            layer=blamed,
            quantity=f"{quantity} at step {reference.step}",
        )


# --- state -----------------------------------------------------------------------------------------------------------


def compare_state(
    observed: Sequence[Snapshot],
    truth: Sequence[Snapshot],
    tensors: Sequence[TensorPair],
    *,
    steps: Sequence[int],
    case: str = "",
) -> Iterator[Comparison]:
    """What whole training steps leave behind beside the weights: every statistic, every counter, the learning rates.

    After the first step a statistic is its own layer's work; later ones carry everything that the steps before did.
    """
    common: dict[str, Any] = {
        "gate": "state",
        "case": case,
        "precision": "float64",
        "mode": "training",
        "tolerance": "state",
    }
    for step in steps:
        port, reference = _taken(observed, step), _taken(truth, step)
        common["reading"] = Reading.STATE if step == 1 else Reading.ACCUMULATED
        if port is None or reference is None or port.error:
            detail = _error(observed) or f"one side has no step {step}"
            where = {"reference_path": "", "port_path": "", "layer": ""}
            yield compare(None, None, quantity=f"step {step}", detail=detail, **where, **common)
            continue
        for order, pair in enumerate(tensor for tensor in tensors if not tensor.trainable):
            yield compare(
                port.statistics.get(pair.port),
                reference.statistics[pair.port],
                reference_path=pair.reference,
                port_path=pair.port,
                layer=pair.layer if step == 1 else "",
                order=order,
                quantity=f"{pair.port.rpartition('.')[2]} after step {step}",
                **common,
            )
        yield from _bookkeeping(port, reference, gate="state", case=case, layer="")


# --- trajectory ------------------------------------------------------------------------------------------------------


def compare_trajectory(
    observed: Sequence[Snapshot],
    truth: Sequence[Snapshot],
    perturbed: Sequence[Sequence[Snapshot]],
    *,
    steps: int,
    precision: str,
    case: str = "",
) -> Iterator[Comparison]:
    """Every step of a training run against the reference's own divergence.

    The envelope at a step is how far the reference has drifted from itself by then when its weights are moved by one
    unit in the last place before every step: the farthest of several such runs, at this step or an earlier one, because
    a single number such as the loss comes close to itself by accident now and then.

    Args:
        observed: The port's run.
        truth: The reference's run.
        perturbed: Runs of the reference whose weights were perturbed in every step.
        steps: Number of steps that there must be.
        precision: Precision of all of them.
        case: Name of the case.
    """
    widest = dict.fromkeys(("loss", *GROUPS), 0.0)
    for step in range(1, steps + 1):
        port, reference = _taken(observed, step), _taken(truth, step)
        others = [_taken(run, step) for run in perturbed]
        for quantity in widest:
            detail, found, own = "", None, None
            if port is not None and not port.error:
                found = _flat(port, quantity)
            else:
                detail = _error(observed)
            expected = None if reference is None else _flat(reference, quantity)
            if expected is not None and others and all(other is not None for other in others):
                flat = [_flat(other, quantity) for other in others if other is not None]
                own = _farthest([run for run in flat if run is not None], expected)
                drift = distance(own, expected)[0]
                widest[quantity] = max(widest[quantity], drift)
                if drift < widest[quantity]:
                    # As far as the widest: this drift scaled up or, where there is none, a share of the truth.
                    moved = (own - expected) / drift if drift else expected
                    own = expected + moved * widest[quantity]
            row = compare(
                found,
                expected,
                reference_same_precision=own,
                gate="trajectory",
                case=case,
                reading=Reading.ACCUMULATED,
                precision=precision,
                mode="training",
                order=step,
                tolerance=f"trajectory_{precision}",
                reference_path="",
                port_path="",
                layer="",
                quantity=f"{quantity} at step {step}",
                detail=detail,
            )
            if row.status is Status.FAIL and port is not None and reference is not None and quantity in GROUPS:
                row = dataclasses.replace(row, detail=f"{row.detail}; {_worst_tensor(port, reference, quantity)}")
            yield row


def _flat(snapshot: Snapshot, quantity: str) -> np.ndarray | None:
    """One group of a snapshot as one vector, in the order of the names; None when there is nothing in it."""
    if quantity == "loss":
        return np.asarray([snapshot.loss], dtype=np.float64)
    group: Mapping[str, np.ndarray] = getattr(snapshot, quantity)
    if not group:
        return None
    return np.concatenate([np.ravel(group[name]).astype(np.float64) for name in sorted(group)])


def _farthest(runs: Sequence[np.ndarray], truth: np.ndarray) -> np.ndarray:
    return max(runs, key=lambda run: float(np.linalg.norm(run - truth)))


def _worst_tensor(port: Snapshot, reference: Snapshot, quantity: str) -> str:
    """The tensor that contributes most to a difference."""
    group: Mapping[str, np.ndarray] = getattr(reference, quantity)
    found: Mapping[str, np.ndarray] = getattr(port, quantity)
    if group.keys() != found.keys():
        return f"the sides differ in {sorted(group.keys() ^ found.keys())}"
    name = max(group, key=lambda key: float(np.linalg.norm(found[key] - group[key])))
    return f"most of it in {name}"

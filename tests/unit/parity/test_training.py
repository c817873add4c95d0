"""What the rungs of training make of records: every gradient, every step, every tensor is held against its counterpart.

No framework runs here; the suites feed the same functions with trained models.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from parity import Comparison, LayerMap, LayerPair, Reading, Status
from parity.trace import Call, Trace
from parity.training import (
    GROUPS,
    LOSS,
    MOMENTS,
    OPTIMIZER,
    SCHEDULE,
    Backward,
    Snapshot,
    TensorPair,
    compare_gradients,
    compare_schedules,
    compare_state,
    compare_steps,
    compare_trajectory,
)

GENERATOR = np.random.default_rng(5)
Arrays = Mapping[str, np.ndarray]


def normal(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape)


def tensor(name: str, *, trainable: bool = True, zero: str = "") -> TensorPair:
    return TensorPair(
        port=name,
        reference=f"r/{name}",
        to_port=np.transpose,
        to_reference=lambda array, _: np.transpose(array),
        trainable=trainable,
        zero_gradient=zero,
    )


NAMES = ("first.weight", "second.weight")
ZERO = "first.bias"
TENSORS = (*map(tensor, NAMES), tensor(ZERO, zero="shifts a channel in front of a norm"))
MAP = LayerMap(
    pairs=(
        LayerPair(port="", reference="", inputs=0),
        LayerPair(port="first", reference="r/first"),
        LayerPair(port="second", reference="r/second"),
    )
)


def failing(rows: Sequence[Comparison]) -> list[Comparison]:
    return [row for row in rows if row.status is not Status.PASS]


def blamed(rows: Sequence[Comparison]) -> set[str]:
    return {row.layer for row in failing(rows)}


# --- gradients -------------------------------------------------------------------------------------------------------


def trace(prefix: str) -> Trace:
    names = ["", "first", "second"]
    calls = {}
    for order, name in enumerate(names):
        path = f"{prefix}{name}" if name else ""
        call = Call(path=path, index=0, order=order, inputs=(normal(2, 3),), outputs=(normal(2, 3),))
        calls[path, 0] = call
    return Trace(calls=calls)


def renamed(source: Trace) -> Trace:
    """The reference's trace under the port's names."""
    calls = {
        (path.removeprefix("r/"), index): dataclasses.replace(call, path=path.removeprefix("r/"))
        for (path, index), call in source.calls.items()
    }
    return Trace(calls=calls)


TRUTH = Backward(
    loss=1.5,
    forward=trace("r/"),
    gradients=trace("r/"),
    parameters={f"r/{name}": normal(4, 5) for name in NAMES} | {f"r/{ZERO}": np.zeros((4, 5))},
)
PORT = Backward(
    loss=1.5,
    forward=renamed(TRUTH.forward),
    gradients=renamed(TRUTH.gradients),
    parameters={name.removeprefix("r/"): array.T.copy() for name, array in TRUTH.parameters.items()},
)


def gradients(port: Backward, own: Backward | None = None) -> list[Comparison]:
    return list(
        compare_gradients(
            port,
            TRUTH,
            TENSORS,
            MAP,
            reading=Reading.ISOLATED,
            precision="float64" if own is None else "float32",
            tolerance="gradient" if own is None else "gradient_float32",
            own=own,
        )
    )


def with_parameter(name: str, array: np.ndarray | None) -> Backward:
    parameters = {**PORT.parameters, name: array}
    return dataclasses.replace(PORT, parameters={key: value for key, value in parameters.items() if value is not None})


def test_right_gradients_pass_and_each_has_its_row():
    rows = gradients(PORT)
    assert failing(rows) == []
    assert {row.port for row in rows if row.quantity == "gradient"} == set(NAMES)
    assert {row.quantity for row in rows if row.port == ZERO} == {
        f"gradient of the {side}, zero in theory" for side in ("port", "reference")
    }
    by_layer = {(row.port, row.quantity) for row in rows if "gradient by" in row.quantity}
    outputs = {(name, "gradient by output") for name in ("", "first", "second")}
    assert by_layer == outputs | {(name, "gradient by input") for name in ("first", "second")}


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_gradient_names_the_layer_of_its_parameter(name):
    wrong = PORT.parameters[name].copy()
    wrong[1, 2] += 1e-6
    assert blamed(gradients(with_parameter(name, wrong))) == {name.partition(".")[0]}


def test_a_gradient_left_in_the_layout_of_the_reference_fails_by_its_shape():
    (row,) = failing(gradients(with_parameter(NAMES[0], TRUTH.parameters[f"r/{NAMES[0]}"])))
    assert (row.port, row.status, row.detail) == (NAMES[0], Status.FAIL, "shape: expected (4, 5), got (5, 4)")


def test_a_parameter_without_a_gradient_is_missing():
    (row,) = failing(gradients(with_parameter(NAMES[1], None)))
    assert (row.port, row.status) == (NAMES[1], Status.MISSING)


def test_a_parameter_of_the_port_that_no_row_names_is_missing():
    (row,) = failing(gradients(with_parameter("first.extra", normal(2))))
    assert (row.port, row.status, row.layer) == ("first.extra", Status.MISSING, "first")


def test_a_gradient_that_should_be_zero_and_is_not_fails():
    (row,) = failing(gradients(with_parameter(ZERO, np.full((5, 4), 1e-6))))
    assert (row.port, row.layer) == (ZERO, "first")


def test_a_wrong_loss_is_the_losses_fault():
    assert blamed(gradients(dataclasses.replace(PORT, loss=1.5 + 1e-6))) == {LOSS}
    assert blamed(gradients(dataclasses.replace(PORT, loss=None, error="RuntimeError: boom"))) == {LOSS}


@pytest.mark.parametrize(
    ("path", "field", "layer"), [("second", "inputs", "second"), ("second", "outputs", ""), ("", "outputs", LOSS)]
)
def test_a_wrong_gradient_by_an_activation_fails_though_the_activations_are_right(path, field, layer):
    call = PORT.gradients.calls[path, 0]
    changes: dict[str, Any] = {field: (getattr(call, field)[0] * (1 + 1e-6),)}
    changed = dataclasses.replace(call, **changes)
    wrong = Trace(calls={**PORT.gradients.calls, (path, 0): changed})
    assert blamed(gradients(dataclasses.replace(PORT, gradients=wrong))) == {layer}


def test_wrong_activations_are_no_wrong_gradients():
    turned = Trace(
        calls={
            key: dataclasses.replace(c, outputs=(-np.asarray(c.outputs[0]),)) for key, c in PORT.forward.calls.items()
        }
    )
    assert failing(gradients(dataclasses.replace(PORT, forward=turned))) == []


def test_a_layer_without_a_gradient_is_missing():
    fewer = Trace(calls={key: call for key, call in PORT.gradients.calls.items() if key[0] != "second"})
    (row,) = failing(gradients(dataclasses.replace(PORT, gradients=fewer)))
    assert (row.port, row.status) == ("second", Status.MISSING)
    assert "called 0 times in the port and 1 times in the reference" in row.detail


# --- steps -----------------------------------------------------------------------------------------------------------

BEFORE = {name: normal(5, 4) for name in NAMES}
STATISTICS = (tensor("norm.running_mean", trainable=False),)
STEPS = 3


def snapshot(step: int) -> Snapshot:
    return Snapshot(
        step=step,
        loss=1.0 / step,
        learning_rates=(1e-3 * step,),
        weights={name: array + 0.1 * step * normal(5, 4) for name, array in BEFORE.items()},
        statistics={"norm.running_mean": normal(4)},
        exp_avg={name: normal(5, 4) for name in NAMES},
        exp_avg_sq={name: normal(5, 4) ** 2 for name in NAMES},
        counters=(step,),
    )


RUN = tuple(snapshot(step) for step in range(1, STEPS + 1))


def changed(step: int, **changes: Any) -> list[Snapshot]:
    return [dataclasses.replace(taken, **changes) if taken.step == step else taken for taken in RUN]


def moved(step: int, group: str, factor: float = 1 + 1e-6) -> list[Snapshot]:
    """One tensor of a group scaled at one step."""
    tensors: Arrays = getattr(RUN[step - 1], group)
    name = next(iter(tensors))
    return changed(step, **{group: {**tensors, name: tensors[name] * factor}})


def steps(port: Sequence[Snapshot]) -> list[Comparison]:
    return list(compare_steps(port, RUN, BEFORE, TENSORS[:2], steps=range(1, STEPS + 1), label="drawn"))


def test_right_steps_pass_and_every_step_has_its_rows():
    rows = steps(RUN)
    assert failing(rows) == []
    assert len(rows) == STEPS * (len(NAMES) * (1 + len(MOMENTS)) + 2)


@pytest.mark.parametrize("group", ["weights", *MOMENTS])
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_wrong_tensor_of_any_step_is_the_optimizers_fault(step, group):
    rows = steps(moved(step, group))
    assert blamed(rows) == {OPTIMIZER}
    assert all(f"after step {step}" in row.quantity for row in failing(rows))


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_counters_and_learning_rates_of_any_step_are_compared(step):
    assert blamed(steps(changed(step, counters=(7,)))) == {OPTIMIZER}
    assert blamed(steps(changed(step, learning_rates=(0.5,)))) == {SCHEDULE}


def test_steps_that_were_not_taken_are_missing():
    assert [row.quantity for row in failing(steps(RUN[:-1]))] == [f"step {STEPS}"]
    broken_off = changed(2, error="RuntimeError: boom")
    assert [(row.quantity, row.detail) for row in failing(steps(broken_off))] == [("step 2", "RuntimeError: boom")]


def test_a_weight_that_the_port_lacks_is_missing():
    rows = failing(steps(changed(2, weights={NAMES[0]: RUN[1].weights[NAMES[0]]})))
    assert [(row.port, row.status) for row in rows] == [(NAMES[1], Status.MISSING)]


def test_every_learning_rate_is_compared():
    def rate(step: int) -> list[float]:
        return [0.1 * step + 1]

    assert failing(list(compare_schedules(rate, rate, range(9), label="cosine"))) == []
    wrong = compare_schedules(lambda step: [rate(step)[0] + (step == 4) * 1e-9], rate, range(9), label="cosine")
    assert blamed(list(wrong)) == {SCHEDULE}
    raising = compare_schedules(lambda step: [1 / 0], rate, range(9), label="cosine")
    assert [row.status for row in raising] == [Status.MISSING]


# --- state -----------------------------------------------------------------------------------------------------------


def state(port: Sequence[Snapshot]) -> list[Comparison]:
    return list(compare_state(port, RUN, STATISTICS, steps=(1, 3)))


def test_statistics_of_every_step_asked_for_are_compared():
    assert failing(state(RUN)) == []
    assert blamed(state(moved(1, "statistics"))) == {"norm"}
    assert blamed(state(moved(3, "statistics"))) == {""}
    assert failing(state(moved(2, "statistics"))) == []


def test_a_statistic_or_a_step_that_the_port_lacks_is_missing():
    assert [row.status for row in failing(state(changed(1, statistics={})))] == [Status.MISSING]
    assert [row.quantity for row in failing(state(RUN[:2]))] == ["step 3"]


# --- trajectory ------------------------------------------------------------------------------------------------------


def drifted(size: float) -> list[Snapshot]:
    """The run with everything moved by this share of itself."""

    def move(tensors: Arrays) -> Arrays:
        return {name: array * (1 + size) for name, array in tensors.items()}

    return [
        dataclasses.replace(t, loss=t.loss * (1 + size), **{group: move(getattr(t, group)) for group in GROUPS})
        for t in RUN
    ]


OWN = 1e-8
PERTURBED = [drifted(OWN), drifted(-OWN / 2)]


def trajectory(port: Sequence[Snapshot], steps: int = STEPS) -> list[Comparison]:
    return list(compare_trajectory(port, RUN, PERTURBED, steps=steps, precision="float64"))


def test_a_run_within_the_references_own_divergence_passes_at_every_step():
    rows = trajectory(drifted(1.9 * OWN))
    assert failing(rows) == []
    assert {row.quantity for row in rows} == {
        f"{quantity} at step {step}" for quantity in ("loss", *GROUPS) for step in range(1, STEPS + 1)
    }


def test_a_run_that_leaves_it_fails_everywhere():
    assert len(failing(trajectory(drifted(2.1 * OWN)))) == STEPS * (1 + len(GROUPS))


@pytest.mark.parametrize("step", range(1, STEPS + 1))
@pytest.mark.parametrize("group", GROUPS)
def test_one_group_that_leaves_it_at_one_step_fails_there(step, group):
    assert [row.quantity for row in failing(trajectory(moved(step, group)))] == [f"{group} at step {step}"]


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_loss_that_leaves_it_at_one_step_fails_there(step):
    rows = failing(trajectory(changed(step, loss=RUN[step - 1].loss * (1 + 1e-6))))
    assert [row.quantity for row in rows] == [f"loss at step {step}"]


def test_a_run_that_broke_off_is_missing_what_it_lacks():
    for port in (RUN[:2], changed(3, error="RuntimeError: boom")):
        rows = failing(trajectory(port))
        assert {row.status for row in rows} == {Status.MISSING}
        assert {row.order for row in rows} == {STEPS}
    assert len(failing(trajectory(RUN, STEPS + 1))) == 1 + len(GROUPS)


def test_the_tensor_that_went_astray_is_named():
    (row,) = failing(trajectory(moved(2, "weights")))
    assert f"most of it in {NAMES[0]}" in row.detail

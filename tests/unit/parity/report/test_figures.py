"""What the figures of training are drawn from."""

import dataclasses
import math

import pytest

from parity.convergence import Side
from parity.records import Gate, GateStatus, Reading, Result, Status
from parity.report.figures import absent, by_case, convergence, figures, gradients, trajectory
from parity.report.summary import decision
from tests.unit.parity.report import results


@pytest.fixture(scope="module")
def passing() -> Result:
    return results.passing()


def missing(result: Result) -> list[tuple[str, str]]:
    return absent(result, figures(result))


def of(gate: str, *rows) -> Result:
    found = Gate(name=gate, status=GateStatus.PASSED, comparisons=rows)
    return Result(pair="pair", reference="reference", requested=(gate,), gates={gate: found})


def test_nothing_is_drawn_of_what_was_not_measured():
    for result in (results.forward(), results.empty(), results.nothing_asked(), results.failing()):
        assert figures(result) == {}
        assert by_case(result) == []


def test_gradients_stand_in_the_order_of_the_model(passing):
    found = gradients(passing)
    assert found["series"] == ["isolated float64", "accumulated float64", "accumulated float32"]
    entries = found["cases"]["P1 live"]["parameters"]
    rows = passing.comparisons
    assert [rows[entry["isolated float64"]].port for entry in entries] == [port for port, _ in results.parameters()]
    for entry in entries:
        drawn = {name: rows[index] for name, index in entry.items()}
        assert len({row.port for row in drawn.values()}) == 1
        assert all(row.gate == "gradients" for row in drawn.values())
        assert all(name.startswith(f"{row.reading.value} {row.precision}") for name, row in drawn.items())


def test_every_gradient_is_drawn_once(passing):
    views = gradients(passing)["cases"]["P1 live"]
    drawn = [index for entries in views.values() for entry in entries for index in entry.values()]
    assert len(drawn) == len(set(drawn))
    expected = {index for index, row in enumerate(passing.comparisons) if row.quantity.startswith("gradient")}
    assert set(drawn) == {index for index in expected if passing.comparisons[index].gate == "gradients"}


def test_gradients_that_are_zero_in_theory_have_both_sides(passing):
    entries = gradients(passing)["cases"]["P1 live"]["parameters"]
    noisy = [entry for entry in entries if "isolated float64, reference" in entry]
    assert len(noisy) == 7
    for entry in noisy:
        assert passing.comparisons[entry["isolated float64"]].quantity == "gradient of the port, zero in theory"
        assert "accumulated float32" not in entry


def test_parameters_of_several_calls_and_summaries():
    rows = [
        results.comparison(gate="gradients", quantity=quantity)
        for quantity in ("gradient", "gradient.mean", "gradient by output", "gradient by output", "global norm")
    ]
    found = gradients(of("gradients", *rows))
    series = "isolated float64"
    assert found["cases"] == {"": {"parameters": [{series: 0}], "activations": [{series: 2}, {series: 3}]}}


def test_trajectory_is_drawn_by_step(passing):
    found = trajectory(passing)
    assert found["precisions"] == ["float64", "float32"]
    assert found["quantities"][0] == "weights"
    assert set(found["quantities"]) == set(results.QUANTITIES)
    for precision in found["precisions"]:
        for quantity in results.QUANTITIES:
            rows = [passing.comparisons[index] for index in found["cases"]["P1 live"][precision][quantity]]
            assert [row.order for row in rows] == list(range(1, results.STEPS + 1))
            assert {row.quantity.partition(" at ")[0] for row in rows} == {quantity}
            assert {row.precision for row in rows} == {precision}


def test_trajectory_is_sorted_whatever_the_order_of_the_rows():
    rows = [results.comparison(gate="trajectory", quantity=f"loss at step {step}", order=step) for step in (2, 10, 1)]
    assert trajectory(of("trajectory", *rows))["cases"][""]["float64"]["loss"] == [2, 0, 1]


def test_convergence_pairs_the_seeds(passing):
    found = convergence(passing)
    assert found["seeds"] == list(results.SEEDS)
    assert [panel["quantity"] for panel in found["panels"]] == ["losses", "pearsons"]
    assert found["broken"] == []
    for panel, equivalence in zip(found["panels"], passing.equivalences, strict=True):
        assert panel["passed"]
        assert [pair["difference"] for pair in panel["pairs"]] == list(equivalence.differences)
        for pair in panel["pairs"]:
            assert pair["difference"] == pair["port"] - pair["reference"]


def test_a_run_that_broke_has_no_difference_and_no_decision():
    found = convergence(results.broken_run())
    panel = found["panels"][0]
    assert panel["pairs"][0]["reference"] is not None
    assert panel["pairs"][0]["port"] is panel["pairs"][0]["difference"] is None
    assert panel["pairs"][1]["difference"] is not None
    assert panel["passed"] is False
    assert panel["decision"].startswith("No decision, which counts as not equivalent: 1 of 48 runs are missing")
    assert [(run["side"], run["seed"]) for run in found["broken"]] == [("port", 1)]


def test_non_finite_values_and_seeds_of_one_side_stay_out_of_the_drawing():
    first, second, *others = results.training_runs()
    assert second.side is Side.PORT
    runs = (first, dataclasses.replace(second, losses=(1.0, math.nan)), *others[1:])
    panel = convergence(results.with_runs(results.passing(), runs))["panels"][0]
    assert panel["pairs"][0]["port"] is None
    assert panel["pairs"][1]["reference"] is panel["pairs"][1]["difference"] is None
    assert panel["pairs"][2]["difference"] is not None


def test_decision_in_words(passing):
    same = decision(passing.equivalences[0])
    assert same.startswith("Equivalent: the interval lies inside the margin. Mean difference (port - reference) ")
    for words in ("margin ±0.012", "p ", "power above 0.999", "n = 24 pairs"):
        assert words in same
    assert decision(results.different().equivalences[0]).startswith("Different: the whole interval lies outside")
    wide = dataclasses.replace(passing.equivalences[0], high=0.02, passed=False)
    assert decision(wide).startswith("Not shown to be equivalent: the interval is not inside the margin. Mean")


def test_thousands_of_rows_are_summed_up(passing):
    groups = by_case(passing)
    assert sum(group["count"] for group in groups) == sum(
        len(passing.gates[name].comparisons) for name in ("losses", "gradients", "optimizer", "state", "trajectory")
    )
    lines = sum(len(group["kinds"]) for group in groups)
    assert lines < 60
    adam = next(group for group in groups if group["gate"] == "optimizer")
    assert adam["case"] == "P1 live, adam, gradients of size 1"
    kinds = {kind["quantity"]: kind for kind in adam["kinds"]}
    assert list(kinds) == ["change", "exp_avg", "exp_avg_sq", "step counters", "learning rates"]
    assert kinds["exp_avg"]["steps"] == "steps 1, 5"
    assert kinds["exp_avg"]["count"] == 2 * len(results.parameters())
    weights = next(kind for kind in groups[-1]["kinds"] if kind["quantity"] == "weights")
    assert weights["steps"] == "steps 1 to 50"
    metric = next(kind for kind in groups[0]["kinds"] if kind["quantity"] == "PearsonR")
    assert metric["steps"] == "batches 1 to 4"


def test_sums_count_failures_and_show_the_worst():
    group = next(group for group in by_case(results.wrong_optimizer()) if group["failed"])
    assert group["gate"] == "optimizer"
    assert group["failed"] == 2 * len(results.parameters())
    assert group["worst"].status is Status.FAIL
    assert [kind["quantity"] for kind in group["kinds"] if kind["failed"]] == ["change"]


def test_what_is_not_shown_is_named(passing):
    assert missing(passing) == []
    assert [name for name, _ in missing(results.forward())] == ["gradients", "trajectory", "convergence"]
    assert dict(missing(results.leaving())) == {
        "convergence": "blocked: the gate 'trajectory' did not pass. Nothing was measured."
    }
    failed = of("trajectory")
    failed = dataclasses.replace(failed, gates={"trajectory": Gate(name="trajectory", status=GateStatus.FAILED)})
    assert missing(failed) == [("trajectory", "failed; nothing was recorded that could be drawn.")]


def test_readings_without_a_place_of_their_own_come_last():
    rows = [
        results.comparison(gate="gradients", quantity="gradient", reading=reading)
        for reading in (Reading.BLOCK, Reading.ACCUMULATED, Reading.ISOLATED)
    ]
    assert gradients(of("gradients", *rows))["series"] == [
        "isolated float64",
        "accumulated float64",
        "block float64",
    ]

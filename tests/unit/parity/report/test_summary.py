"""The verdict in words, and the small formats that all renderings share."""

import dataclasses
import math

import pytest

from parity.records import Comparison, Culprit, Gate, GateStatus, Reading, Result, Status
from parity.report.summary import beginning, excess, ladder, number, printable, share, verdict
from tests.unit.parity.report import results


def failed(name: str, *rows: Comparison) -> Gate:
    return Gate(name=name, status=GateStatus.FAILED, comparisons=rows)


def of(
    *gates: Gate, culprits: tuple[Comparison, ...] = (), certain: bool = True, requested: tuple[str, ...] | None = None
) -> Result:
    rows = tuple(
        Culprit(port=row.port, reference=row.reference, gates=(row.gate,), worst=row, certain=certain)
        for row in culprits
    )
    names = tuple(gate.name for gate in gates)
    return Result(
        pair="pair",
        reference="reference",
        requested=names if requested is None else requested,
        gates={gate.name: gate for gate in gates},
        culprit_rows=rows,
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0"),
        (3.14e-15, "3.1e-15"),
        (1e-12, "1e-12"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (2.0, "2e+00"),
    ],
)
def test_number(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("part", "text"), [(0, "0 %"), (0.123, "12 %"), (1.0, "1 x"), (2.13e8, "2.13e+08 x"), (math.inf, "over")]
)
def test_share(part, text):
    assert share(part) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("performer.layers.0", "performer.layers.0"),
        ("Größe", "Größe"),
        ("a\nb", r"a\x0ab"),
        ("\u2028", r"\u2028"),
        ("\U000e0041", r"\U000e0041"),
        ("\ufffe", r"\ufffe"),
        ("", ""),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown


def test_printable_keeps_line_breaks_on_request():
    assert printable("a\nb\r", multiline=True) == "a\nb\\x0d"


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({"error": 0.0, "limit": 0.0}, 0.0),
        ({"error": 1e-300, "limit": 0.0}, math.inf),
        ({"error": 5e-13, "limit": 1e-12}, 0.5),
        ({"error": math.nan, "status": Status.NON_FINITE}, math.inf),
        ({"error": None, "status": Status.MISSING}, math.inf),
        ({"error": 1.0, "limit": None, "status": Status.FAIL}, math.inf),
    ],
)
def test_excess(changes, value):
    assert excess(results.comparison(**changes)) == value


def test_gate_that_contradicts_itself_is_failed():
    row = results.comparison(status=Status.FAIL, error=1.0)
    liar = Gate(name="layers", status=GateStatus.PASSED, comparisons=(row,))
    result = of(liar)
    assert result.passed
    assert not verdict(result).proven
    assert ladder(result)[0].status is GateStatus.FAILED
    assert "marked as passed" in ladder(result)[0].reason


def test_one_contradicting_gate_among_good_ones_is_enough():
    good = results.passing()
    gates = dict(good.gates) | {"model": Gate(name="model", status=GateStatus.PASSED)}
    answer = verdict(dataclasses.replace(good, gates=gates))
    assert not answer.proven
    assert (
        answer.sentence
        == "1 of 12 gates did not pass: gate model is failed: marked as passed, but nothing was compared."
    )


def test_subset_is_not_the_whole():
    good = results.passing()
    gates = dict(good.gates) | {"model": Gate(name="model", status=GateStatus.NOT_RUN, reason="not asked for")}
    answer = verdict(dataclasses.replace(good, gates=gates, requested=("weights", "constants", "layers", "blocks")))
    assert answer.proven
    assert answer.headline == "Proven in part"
    assert "Nothing is said about model" in answer.next_step


def test_wrong_weights_come_before_the_layers_that_use_them():
    weight = results.comparison(
        gate="weights",
        reading=Reading.VALUE,
        precision="exact",
        mode="",
        port="a.weight",
        status=Status.FAIL,
        error=0.1,
        limit=0.0,
    )
    layer = results.comparison(status=Status.FAIL, error=0.1)
    answer = verdict(of(failed("weights", weight), failed("layers", layer), culprits=(layer,)))
    assert answer.start is weight
    assert "weight map" in answer.next_step


def test_wrong_weights_that_nobody_asked_for_are_named():
    weight = results.comparison(gate="weights", port="a.weight", status=Status.FAIL, error=0.1)
    blocked = Gate(name="layers", status=GateStatus.BLOCKED, reason="gate weights did not pass")
    answer = verdict(of(failed("weights", weight), blocked, requested=("layers",)))
    assert answer.start is weight
    assert answer.sentence.startswith("1 of 1 gate did not pass: 1 of 1 value in gate weights differs")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"error": 1e-3}, "the fault is in this layer"),
        ({"status": Status.NON_FINITE, "error": math.nan}, "NaN or infinity"),
        ({"status": Status.MISSING, "error": None}, "never produced"),
        ({"reading": Reading.STATE, "error": 1e-3}, "momentum"),
        ({"mode": "training", "error": 1e-3}, "differs in training mode"),
        ({"precision": "bfloat16", "error": 1e-1, "limit": 1e-2}, "in bfloat16 it rounds worse"),
    ],
)
def test_next_step_fits_the_pattern_of_failures(changes, words):
    fine = tuple(results.comparison(mode=mode) for mode in ("evaluation", "training"))
    row = results.comparison(**({"status": Status.FAIL} | changes))
    answer = verdict(of(failed("layers", *fine, row), culprits=(row,)))
    assert words in answer.next_step
    assert answer.start is row
    assert "stem.conv computes something else" in answer.sentence


def test_uncertain_culprit_is_not_accused():
    row = results.comparison(reading=Reading.ACCUMULATED, status=Status.FAIL, error=1.0)
    answer = verdict(of(failed("model", row), culprits=(row,), certain=False))
    assert "stem.conv is where the two first part" in answer.sentence
    assert "end-to-end" in answer.next_step


def test_failure_without_a_culprit_points_at_the_wiring():
    row = results.comparison(gate="blocks", reading=Reading.BLOCK, status=Status.FAIL, error=1.0)
    answer = verdict(of(failed("blocks", row)))
    assert "no single layer is at fault" in answer.sentence
    assert "order of calls" in answer.next_step


def test_blocked_without_comparisons_says_why():
    row = results.comparison()
    passed = Gate(name="weights", status=GateStatus.PASSED, comparisons=(row,))
    blocked = Gate(name="layers", status=GateStatus.BLOCKED, reason="gate constants was not run")
    assert "gate layers is blocked: gate constants was not run" in verdict(of(passed, blocked)).sentence


@pytest.mark.parametrize(
    ("quantities", "words"),
    [
        (["change after step 1"], "where epsilon is added"),
        (["change after step 5"], "The first step agrees and later ones do not"),
        (["exp_avg after step 1", "change after step 1"], "Its moments differ"),
        (["step counters at step 1"], "Its step counter differs"),
    ],
)
def test_what_fails_in_the_optimizer_says_where_to_look(quantities, words):
    def row(quantity: str, **changes) -> Comparison:
        common = {"gate": "optimizer", "layer": "optimizer", "port": "stem.weight", "case": "a"}
        return results.comparison(**(common | changes), quantity=quantity)

    fine = tuple(row(f"{name} after step {step}") for name in ("change", "exp_avg") for step in (1, 5))
    bad = tuple(row(quantity, status=Status.FAIL, error=1.0) for quantity in quantities)
    # A culprit is known by what answers for it.
    culprit = dataclasses.replace(of(culprits=bad[:1]).culprit_rows[0], port="optimizer")
    answer = verdict(dataclasses.replace(of(failed("optimizer", *fine, *bad)), culprit_rows=(culprit,)))
    assert "the optimizer computes something else" in answer.sentence
    assert words in answer.next_step


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("loss", "sum or mean"),
        ("metric", "what is prediction and what is target"),
        ("schedule", "whether steps count from 0 or 1"),
    ],
)
def test_parts_of_training_are_named_and_explained(part, words):
    row = results.comparison(gate="losses", layer=part, port="", reference="", status=Status.FAIL, error=1.0)
    culprit = Culprit(port=part, reference="pair", gates=("losses",), worst=row)
    answer = verdict(dataclasses.replace(of(failed("losses", row)), culprit_rows=(culprit,)))
    assert f"the {part} computes something else than the reference" in answer.sentence
    assert words in answer.next_step


def test_a_loss_of_which_only_the_gradient_fails():
    common = {"gate": "losses", "layer": "loss", "port": "", "reference": ""}
    fine = results.comparison(quantity="poisson", **common)
    bad = results.comparison(quantity="poisson, gradient", status=Status.FAIL, error=1.0, **common)
    culprit = Culprit(port="loss", reference="pair", gates=("losses",), worst=bad)
    answer = verdict(dataclasses.replace(of(failed("losses", fine, bad)), culprit_rows=(culprit,)))
    assert "Its value agrees and its gradient does not" in answer.next_step


def test_optimizer_that_fails_in_some_cases_says_in_which():
    answer = verdict(results.wrong_optimizer())
    assert "It fails in P1 live, adamw, gradients of size 1e-08 and agrees in 1 other case" in answer.next_step


def test_layer_that_fails_backward_only():
    answer = verdict(results.wrong_gradients())
    assert "performer.layers.1.norm and 2 other layers" in answer.sentence
    row = next(row for row in results.wrong_gradients().culprit_rows if "layers.3" in row.port)
    answer = verdict(dataclasses.replace(results.wrong_gradients(), culprit_rows=(row,)))
    assert "Forward it agrees, backward it does not" in answer.next_step


def test_uncertain_culprits_of_training_are_not_explained_as_layers():
    row = results.comparison(
        gate="state", reading=Reading.ACCUMULATED, layer="", port="a.mean", status=Status.FAIL, error=1.0
    )
    answer = verdict(of(failed("state", row), culprits=(row,), certain=False))
    assert "the state of the two parts after the first training step" in answer.sentence
    assert "what one step hands to the next" in answer.next_step


@pytest.mark.parametrize(
    ("fine", "precision", "words"),
    [
        ([], "float64", "first in model order"),
        ([Reading.ISOLATED], "float64", "what differs is handed to it"),
        ([Reading.ISOLATED, Reading.ACCUMULATED], "float32", "In float64 it agrees, so the backward pass is right"),
    ],
)
def test_gradients_that_differ_end_to_end_only(fine, precision, words):
    common = {"gate": "gradients", "quantity": "gradient", "mode": "training"}
    rows = [results.comparison(reading=reading, **common) for reading in fine]
    row = results.comparison(reading=Reading.ACCUMULATED, precision=precision, status=Status.FAIL, error=1.0, **common)
    answer = verdict(of(failed("gradients", *rows, row), culprits=(row,), certain=False))
    assert "the gradient at stem.conv differs end to end" in answer.sentence
    assert words in answer.next_step


def test_trajectory_says_when_it_leaves_the_envelope():
    answer = verdict(results.leaving())
    assert "training in float64 leaves the reference's envelope with " in answer.sentence
    assert " at step 20, " in answer.sentence
    assert "19 steps agree" in answer.next_step
    assert answer.start is not None
    assert (answer.start.order, answer.start.precision) == (20, "float64")


def test_trajectory_that_parts_at_once_or_ends_early():
    row = results.comparison(gate="trajectory", port="", order=1, quantity="loss at step 1", status=Status.FAIL)
    assert "at the first step" in verdict(of(failed("trajectory", row))).next_step
    ended = dataclasses.replace(row, status=Status.MISSING, error=None, order=7, quantity="loss at step 7")
    answer = verdict(of(failed("trajectory", ended)))
    assert "the training run in float64 ends early (loss at step 7" in answer.sentence
    assert "the error that ended it" in answer.next_step


def test_trajectory_comes_before_its_own_culprit():
    result = results.leaving()
    row = result.gates["trajectory"].failures[0]
    culprit = Culprit(port="EpiBERT", reference="EpiBERT", gates=("trajectory",), worst=row, certain=False)
    assert verdict(dataclasses.replace(result, culprit_rows=(culprit,))) == verdict(result)


def test_convergence_that_differs():
    answer = verdict(results.different())
    assert "the final validation loss differs (the 90 % interval [" in answer.sentence
    assert "The port ends higher throughout" in answer.next_step


def test_convergence_that_is_only_too_noisy():
    result = results.passing()
    row = results.comparison(
        gate="convergence", port="", reference="", tolerance="convergence", quantity="final losses", status=Status.FAIL
    )
    found = dataclasses.replace(result.equivalences[0], low=-1.0, high=1.0, passed=False, reason="too wide")
    result = dataclasses.replace(of(failed("convergence", row)), equivalences=(found,))
    answer = verdict(result)
    assert "the final validation loss is not shown to be equivalent (too wide)" in answer.sentence
    assert "Train more pairs before you look for a fault" in answer.next_step
    weak = dataclasses.replace(row, tolerance="convergence_power", quantity="final losses.power", error=0.5)
    answer = verdict(of(failed("convergence", weak)))
    assert "could not have told (a power of 0.5)" in answer.sentence
    assert "train more pairs" in answer.next_step


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"status": Status.MISSING}, "train its seed alone"),
        ({"status": Status.NON_FINITE}, "NaN or infinity"),
        ({"status": Status.FAIL, "error": 0.9}, "does not learn"),
        ({"status": Status.FAIL, "tolerance": "convergence"}, "Train each planned seed once"),
    ],
)
def test_convergence_with_a_run_of_no_use(changes, words):
    common = {"gate": "convergence", "port": "seed 3", "reference": "", "tolerance": "convergence_learned"}
    row = results.comparison(**(common | changes), quantity="losses", detail="why")
    decided = dataclasses.replace(row, port="", tolerance="convergence", status=Status.MISSING, error=None)
    answer = verdict(of(failed("convergence", decided, row)))
    assert "1 training run cannot be used, first port, seed 3 (why)" in answer.sentence
    assert words in answer.next_step
    assert answer.start is row


def test_blocked_convergence_says_what_comes_first():
    gate = Gate(name="convergence", status=GateStatus.BLOCKED, reason="no proof of gate trajectory")
    row = results.comparison()
    answer = verdict(of(Gate(name="layers", status=GateStatus.PASSED, comparisons=(row,)), gate))
    assert "gate convergence is blocked: no proof of gate trajectory" in answer.sentence
    assert "every earlier gate" in answer.next_step


def test_proven_claims_no_more_than_was_asked():
    assert "arrives at the same place" in verdict(results.passing()).sentence
    result = results.passing()
    gates = {name: gate for name, gate in result.gates.items() if name != "convergence"}
    answer = verdict(dataclasses.replace(result, gates=gates, requested=tuple(gates)))
    assert "trains as it trains" in answer.sentence
    assert "arrives" not in answer.sentence


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, ("stem.conv", "", "stem/conv")),
        ({"layer": "", "port": "", "reference": ""}, ("(model)", "", "(model)")),
        ({"layer": "stem"}, ("stem", "stem.conv", "stem/conv")),
        ({"gate": "optimizer", "layer": "optimizer"}, ("optimizer", "stem.conv", "stem/conv")),
        ({"gate": "losses", "layer": "loss", "port": "", "reference": ""}, ("loss", "", "")),
        (
            {"gate": "gradients", "layer": "loss", "port": "", "reference": "", "quantity": "gradient by output"},
            ("loss", "(model)", "(model)"),
        ),
        (
            {"gate": "trajectory", "layer": "", "port": "", "reference": "", "quantity": "loss at step 3"},
            ("loss at step 3", "", ""),
        ),
        (
            {"gate": "state", "layer": "", "quantity": "mean after step 5"},
            ("mean after step 5", "stem.conv", "stem/conv"),
        ),
        ({"gate": "convergence", "layer": "", "port": "", "reference": "seed 3"}, ("reference, seed 3", "", "")),
        (
            {"gate": "convergence", "layer": "", "port": "", "reference": "", "quantity": "final losses"},
            ("final losses", "", ""),
        ),
    ],
)
def test_where_to_begin(changes, shown):
    assert beginning(results.comparison(**({"layer": "stem.conv"} | changes))) == shown

"""The verdict in words, and the small formats that all renderings share."""

import dataclasses
import math

import pytest

from parity.records import Comparison, Culprit, Gate, GateStatus, Reading, Result, Status
from parity.report.summary import excess, ladder, number, printable, share, verdict
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
        == "1 of 5 gates did not pass: gate model is failed: marked as passed, but nothing was compared."
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

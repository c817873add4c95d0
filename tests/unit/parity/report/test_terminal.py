"""What the terminal shows, at the usual widths."""

import dataclasses
import io

import pytest
from rich.console import Console

from parity.records import Comparison, Culprit, Gate, GateStatus, KnownDifference, Result, Status
from parity.report.terminal import SHOWN_FAILURES, print_result
from tests.unit.parity.report import results


def printed(result: Result, width: int = 400, **options) -> str:
    console = Console(file=io.StringIO(), width=width, **options)
    print_result(result, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_passing_result_ends_with_the_verdict():
    text = printed(results.passing())
    assert text.splitlines()[-1].startswith(
        f"Proven. All 12 gates pass: {len(results.passing().comparisons):,} comparisons"
    )
    assert "Culprits" not in text
    assert "First failures" not in text


def test_ladder_shows_counts_and_worst_error_against_limit():
    lines = printed(results.passing()).splitlines()
    layers = next(line for line in lines if line.startswith("layers"))
    assert layers.split()[:4] == ["layers", "passed", "768", "0"]
    assert "/ 1e-12" in layers
    assert "bit for bit" in next(line for line in lines if line.startswith("weights"))


def one_gate(*rows: Comparison) -> Result:
    gate = Gate(name="layers", status=GateStatus.PASSED, comparisons=rows)
    tolerances = {**results.TOLERANCES, "known": {"limit": 0.5, "floor": 0.0, "reason": ""}}
    return dataclasses.replace(results.passing(), gates={"layers": gate}, requested=("layers",), tolerances=tolerances)


def test_largest_errors_are_shown_by_the_rule_that_judged_them():
    common = {"precision": "float32", "tolerance": "float32"}
    result = one_gate(
        results.comparison(port="a", error=3e-15),
        results.comparison(port="b", error=2e-15),
        results.comparison(port="c", error=3e-7, reference_error=2e-7, limit=4e-7, **common),
        results.comparison(port="d", error=4e-7, reference_error=4e-7, limit=8e-7, **common),
        results.comparison(port="e", error=3e-8, reference_error=1e-9, limit=3.4e-8, **common),
        results.comparison(port="f", error=0.25, limit=0.5, tolerance="known"),
    )
    lines = [" ".join(line.split()) for line in printed(result).splitlines()]
    assert "float64 2 3e-15 1e-12 a (evaluation)" in lines
    assert "float32 3 1.50 x 2 x c (evaluation)" in lines
    assert "known 1 2.5e-01 5e-01 f (evaluation)" in lines
    note = next(line for line in lines if line.startswith("x: times"))
    assert "; 1 comparison farther off, but below the floor" in note
    assert not any(line.startswith("bfloat16") for line in lines)
    ladder = next(line for line in lines if line.startswith("layers"))
    assert "3e-15 / 1e-12" in ladder, "a wider rule of its own hides the rule of the precision"


def test_a_failure_is_the_largest_of_its_rule_whatever_its_error():
    result = one_gate(
        results.comparison(port="a", error=0.9e-12),
        results.comparison(port="b", error=None, limit=None, status=Status.MISSING),
        results.comparison(port="c", error=2e-15, peak=1.0, status=Status.FAIL),
    )
    lines = [" ".join(line.split()) for line in printed(result).splitlines()]
    assert "float64 3 missing 1e-12 b (evaluation)" in lines


def test_failing_result_shows_culprits_with_both_names():
    text = printed(results.failing())
    assert "performer.layers.2.attention  reference performer/layers/2/self_attention" in text
    assert text.splitlines()[-1].startswith(
        "Not proven. 10 of 12 gates did not pass: performer.layers.2.attention and 4 other layers"
    )
    assert "blocks: gate layers did not pass" in text


def test_failures_are_limited_and_the_rest_is_counted():
    result = results.failing()
    text = printed(result)
    count = len(result.gates["layers"].failures)
    assert f"First failures (of {count})" in text
    assert f"... and {count - SHOWN_FAILURES} more failures" in text


@pytest.mark.parametrize("result", [results.empty(), results.nothing_asked()], ids=["empty", "nothing asked"])
def test_empty_result_is_not_proven(result):
    last = printed(result).splitlines()[-1]
    assert last.startswith("Not proven.")
    assert "nothing is proven" in last


def test_not_compared_is_counted_by_reason():
    text = printed(results.passing())
    assert "Not compared: 8" in text
    assert "7  dropout is off: it passes its input on (performer/layers/0/dropout" in text
    assert "Not compared: 0" in printed(results.empty())


def test_known_differences_are_shown():
    unmeasured = KnownDifference(name="other", reference="a", port="b", bound=1e-3, measured=None, reason="because")
    text = printed(dataclasses.replace(results.passing(), known_differences=(unmeasured,)))
    assert "not measured" in text
    assert "because" in text


def test_uncertain_culprit_says_so():
    row = results.failing().culprit_rows[0]
    uncertain = Culprit(port=row.port, reference=row.reference, gates=row.gates, worst=row.worst, certain=False)
    text = printed(dataclasses.replace(results.failing(), culprit_rows=(uncertain,)))
    assert "end-to-end readings only" in text
    assert "is where the two first part" in text


def test_a_culprits_script_is_named_or_why_there_is_none():
    first, second, *_ = results.failing().culprit_rows
    rows = (
        dataclasses.replace(first, script="repro/first.py"),
        dataclasses.replace(second, no_script="it has hooks \x1b[31m"),
    )
    text = printed(dataclasses.replace(results.failing(), culprit_rows=rows))
    lines = [line.strip() for line in text.splitlines()]
    assert "repro/first.py" in lines
    assert "no script: it has hooks \\x1b[31m" in lines
    assert "no script" not in printed(results.failing())


def test_hostile_names_do_not_reach_the_terminal():
    text = printed(results.failing(), force_terminal=True, color_system=None)
    assert "\x1b[31m" not in text
    assert "\x00" not in text
    assert r"[red]%{y}\x1b[31m\ud800\u202e\x00" in text


def test_eighty_columns_are_enough():
    lines = printed(results.passing(), width=80).splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("layers"))
    assert "2e-15" in lines[first]
    assert "/ 1e-12" in lines[first + 1]
    assert max(map(len, lines)) <= 80


def test_decision_of_the_convergence_is_printed():
    lines = printed(results.passing()).splitlines()
    start = lines.index("Convergence")
    assert lines[start + 1].startswith("final losses  Equivalent: the interval lies inside the margin. Mean difference")
    assert lines[start + 2].startswith("final pearsons  Equivalent")
    assert "Convergence" not in printed(results.forward()).splitlines()


def test_failures_of_training_are_named():
    text = printed(results.leaving())
    assert "trajectory  (training run) loss at step 20  reference (training run)" in text
    assert "the envelope is" in text
    text = printed(results.wrong_optimizer())
    assert "Culprits (1, in model order)" in text
    assert "optimizer  stem_conv.weight change after step 1" in text
    text = printed(results.broken_run())
    assert "convergence  (all runs) final losses  reference (all runs)" in text
    assert "convergence  port, seed 1 losses  reference -" in text
    assert "\x00" not in text


def test_culprit_that_is_no_layer_fits_eighty_columns():
    for result in (results.wrong_optimizer(), results.leaving(), results.different()):
        lines = printed(result, width=80).splitlines()
        assert max(map(len, lines)) <= 80

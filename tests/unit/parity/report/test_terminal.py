"""What the terminal shows, at the usual widths."""

import dataclasses
import io

import pytest
from rich.console import Console

from parity.records import Culprit, KnownDifference, Result
from parity.report.terminal import SHOWN_FAILURES, print_result
from tests.unit.parity.report import results


def printed(result: Result, width: int = 400, **options) -> str:
    console = Console(file=io.StringIO(), width=width, **options)
    print_result(result, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_passing_result_ends_with_the_verdict():
    text = printed(results.passing())
    assert text.splitlines()[-1].startswith("Proven. All 5 gates pass: 1,755 comparisons")
    assert "Culprits" not in text
    assert "First failures" not in text


def test_ladder_shows_counts_and_worst_error_against_limit():
    lines = printed(results.passing()).splitlines()
    layers = next(line for line in lines if line.startswith("layers"))
    assert layers.split()[:4] == ["layers", "passed", "768", "0"]
    assert "/ 1e-12" in layers
    assert "bit for bit" in next(line for line in lines if line.startswith("weights"))


def test_failing_result_shows_culprits_with_both_names():
    text = printed(results.failing())
    assert "performer.layers.2.attention  reference performer/layers/2/self_attention" in text
    assert text.splitlines()[-1].startswith(
        "Not proven. 3 of 5 gates did not pass: performer.layers.2.attention and 4 other layers"
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

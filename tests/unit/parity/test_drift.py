"""What changed between two results, and what it is laid to."""

import copy
import json
from typing import Any

import pytest

from parity.drift import NotAResult, compare_results, read_result
from parity.ladder import judge
from parity.records import Comparison, Reading, Result, Status, WeightRow
from parity.tolerances import TABLE, table

SOURCES = {"torch_impl": "a", "tf_reference": "b", "weights": "c", "parity": "d"}


def comparison(layer: str = "conv", error: float = 5e-13) -> Comparison:
    return Comparison(
        gate="layers", reading=Reading.ISOLATED, precision="float64", mode="evaluation", reference=layer, port=layer,
        layer=layer, status=Status.PASS, error=error, limit=TABLE["float64"].limit, tolerance="float64",
    )  # fmt: skip


def result(*rows: Comparison) -> dict[str, Any]:
    found = Result(
        pair="pair",
        reference="reference",
        requested=("layers",),
        gates=judge(rows or (comparison(),), requested=("layers",), ladder=("layers",)),
        weights=(WeightRow(key="conv/kernel", name="conv.weight", shape=(2,), layout="identity", sha256="e"),),
        tolerances=table(),
        configuration={"P1": {"seed": 5}},
        environment={
            "python": "3.11",
            "sources": SOURCES,
            "versions": {"torch": "2", "tensorflow": "2"},
            "content": {"P1/forward.h5": "f"},
            "recorded with": {"tensorflow": "2.15.1"},
        },
    )
    return json.loads(found.to_json())


def changed(*path: Any, value: Any = "other", of: dict[str, Any] | None = None) -> dict[str, Any]:
    whole = copy.deepcopy(result() if of is None else of)
    part: Any = whole
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    return whole


WORSE = changed("gates", "layers", "comparisons", 0, "status", value="fail")


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        (("environment", "sources", "torch_impl"), "the port"),
        (("environment", "sources", "tf_reference"), "the reference"),
        (("environment", "sources", "weights"), "the weights' map"),
        (("environment", "sources", "parity"), "the harness"),
        (("environment", "content", "P1/forward.h5"), "the recordings"),
        (("environment", "versions", "torch"), "the environment"),
        (("environment", "python"), "the environment"),
        (("environment", "recorded with", "tensorflow"), "the reference's environment"),
        (("weights", 0, "sha256"), "the weights"),
        (("configuration", "P1"), "the configuration"),
    ],
)
def test_a_change_is_laid_to_what_alone_changed(path, cause):
    drift = compare_results(result(), changed(*path, of=WORSE))
    assert list(drift.causes) == [cause]
    assert drift.explanation == f"the change comes from {cause}: nothing else changed"
    assert len(drift.worse) == 1


def test_two_causes_are_not_told_apart():
    later = changed("environment", "versions", "torch", of=changed("environment", "sources", "torch_impl", of=WORSE))
    assert "not to be told apart" in compare_results(result(), later).explanation


def test_numbers_that_move_by_themselves_are_said_to():
    assert "not deterministic" in compare_results(result(), WORSE).explanation


def test_equal_results_have_no_drift():
    drift = compare_results(result(), result())
    assert drift.explanation == "no number moved"
    assert drift.causes == {}
    assert (drift.worse, drift.better, drift.moved, drift.loosened) == ((), (), (), ())


def test_better_worse_missing_and_moved_rows_are_named():
    assert compare_results(WORSE, result()).better == (
        "layers float64 evaluation isolated conv [output]: fail, now pass",
    )
    gone = compare_results(result(comparison(), comparison("dense")), result())
    assert gone.vanished == ("layers float64 evaluation isolated dense [output]",)
    assert gone.worse == ()
    grown = compare_results(result(comparison(error=2e-14)), result())
    assert grown.moved == ("layers float64 evaluation isolated conv [output]: error 2e-14, now 5e-13",)
    assert compare_results(result(comparison(error=1e-13)), result()).moved == ()


def test_a_gate_that_no_longer_passes_is_named():
    drift = compare_results(result(), changed("gates", "layers", "status", value="blocked"))
    assert drift.gates == ("the gate layers: passed, now blocked",)


def test_a_run_that_compares_less_is_not_said_to_be_another_one():
    later = changed("gates", "layers", value={"status": "not_run", "comparisons": []})
    for less in (later, changed("gates", value={"weights": {"status": "passed", "comparisons": []}})):
        drift = compare_results(result(), less)
        assert len(drift.vanished) == 1
        assert drift.vanished[0].startswith("the gate layers: 1 comparisons, passed, now ")
        assert "not deterministic" not in drift.explanation
        assert "does not compare all that the earlier one did" in drift.explanation
    assert compare_results(later, result()).vanished == ()


def test_an_error_that_is_no_number_is_named_as_it_is():
    before = changed("gates", "layers", "comparisons", 0, "error", value="inf")
    assert compare_results(before, result()).moved == (
        "layers float64 evaluation isolated conv [output]: error inf, now 5e-13",
    )


def test_what_an_earlier_file_holds_does_not_steer_the_terminal():
    before = changed("gates", "layers", "comparisons", 0, "port", value="a\x1b[31m\nlimit: fine")
    lines = str(compare_results(before, result())).splitlines()
    assert lines[1:] == [
        "  not compared any more: layers float64 evaluation isolated a\\x1b[31m\\x0alimit: fine [output]"
    ]


def test_a_limit_that_could_be_tighter_is_reported_and_one_that_could_not_is_not():
    assert compare_results(result(), result()).tighter == ()
    spare = result(comparison(error=1e-14), comparison("dense", error=9e-14))
    assert compare_results(spare, spare).tighter == ("float64: at most 9.0% of its limit is used",)


@pytest.mark.parametrize("field", ["limit", "peak", "floor", "peak_ratio", "largest_own", "spread"])
def test_a_limit_that_grew_needs_a_new_reason(field):
    loose = changed("tolerances", "float32", field, value=100.0)
    (named,) = compare_results(result(), loose).loosened
    assert named.startswith(f"float32: {field} ")
    reasoned = changed("tolerances", "float32", "reason", value="measured on another processor", of=loose)
    assert compare_results(result(), reasoned).loosened == ()
    assert compare_results(loose, result()).loosened == ()


def test_a_ratio_that_became_a_distance_and_a_row_that_left_the_table_are_named():
    flipped = changed("tolerances", "float32", "ratio", value=False)
    assert compare_results(result(), flipped).loosened == ("float32: ratio True, now False; write down why",)
    fewer = result()
    del fewer["tolerances"]["float32"]
    (named,) = compare_results(result(), fewer).loosened
    assert named.startswith("float32: no longer in the table")
    assert compare_results(fewer, result()).loosened == ()


@pytest.mark.parametrize(("row", "limit"), [("state", 1e-10), ("float32", 4e-7), ("bfloat16", None)])
def test_a_comparison_that_moved_to_a_looser_row_is_named(row, limit):
    moved = changed("gates", "layers", "comparisons", 0, "tolerance", value=row)
    moved["gates"]["layers"]["comparisons"][0]["limit"] = limit
    assert compare_results(result(), moved).loosened == (
        f"1 comparisons judged by float64, now by the looser {row}, "
        "the first layers float64 evaluation isolated conv [output]",
    )
    if limit is not None:
        assert compare_results(moved, result()).loosened == ()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("gates",), []),
        (("gates",), {}),
        (("gates", "layers"), "passed"),
        (("gates", "layers", "comparisons"), None),
        (("gates", "layers", "comparisons", 0), {}),
        (("gates", "layers", "comparisons", 0, "case"), 3),
        (("tolerances",), []),
        (("tolerances", "float64"), {"reason": "none"}),
        (("tolerances", "float64", "limit"), "much"),
        (("tolerances", "float64", "limit"), None),
        (("environment",), None),
        (("environment", "sources"), []),
        (("weights",), [{}]),
        (("configuration",), []),
    ],
)
def test_a_broken_result_is_refused_when_it_is_read(tmp_path, path, value):
    file = tmp_path / "parity.json"
    file.write_text(json.dumps(changed(*path, value=value)))
    with pytest.raises(NotAResult, match="no result of this harness: "):
        read_result(file)


@pytest.mark.parametrize("text", ["no json", "[]", '{"schema": 0, "gates": {}}', '{"schema": 1}'])
def test_what_is_no_result_is_refused(tmp_path, text):
    path = tmp_path / "parity.json"
    path.write_text(text)
    with pytest.raises(NotAResult):
        read_result(path)


def test_a_result_is_read_back(tmp_path):
    path = tmp_path / "parity.json"
    path.write_text(json.dumps(result()))
    assert compare_results(read_result(path), result()).worse == ()

"""JUnit: as many cases as comparisons, nothing skipped, nothing green that is not proven."""

import xml.etree.ElementTree as ElementTree

import pytest

from parity.records import Gate, GateStatus, Reading, Result, Status
from parity.report.junit import write_junit
from tests.unit.parity.report import results


def written(tmp_path, result: Result) -> ElementTree.Element:
    path = tmp_path / "junit.xml"
    write_junit(result, path)
    root = ElementTree.parse(path).getroot()
    for element in (root, *root):
        assert int(element.get("tests", "-1")) == len(element.findall(".//testcase"))
        assert int(element.get("failures", "-1")) == len(element.findall(".//failure"))
        assert int(element.get("errors", "-1")) == len(element.findall(".//error"))
        assert element.get("skipped") == "0"
    assert not root.findall(".//skipped")
    return root


def single(gate: Gate, *, requested: bool = True) -> Result:
    return Result(
        pair="pair", reference="reference", requested=(gate.name,) if requested else (), gates={gate.name: gate}
    )


def test_passing_result_has_one_green_case_per_comparison(tmp_path):
    result = results.passing()
    root = written(tmp_path, result)
    assert [suite.get("name") for suite in root] == list(results.GATES)
    assert root.get("tests") == str(len(result.comparisons))
    assert root.get("failures") == root.get("errors") == "0"
    for suite, gate in zip(root, result.gates.values(), strict=True):
        assert suite.get("tests") == str(len(gate.comparisons))
        assert suite.get("time") == f"{result.seconds.get(gate.name, 0.0):.3f}"


def test_failing_result_is_red_where_it_failed(tmp_path):
    result = results.failing()
    suites = {suite.get("name"): suite for suite in written(tmp_path, result)}
    assert suites["layers"].get("tests") == str(len(result.gates["layers"].comparisons))
    assert suites["layers"].get("failures") == str(len(result.gates["layers"].failures))
    kinds = {failure.get("type") for failure in suites["layers"].iter("failure")}
    assert kinds == {"fail", "missing", "non-finite"}
    assert suites["weights"].get("failures") == "0"


def test_failure_says_got_expected_and_where(tmp_path):
    row = results.comparison(port="stem.conv", status=Status.FAIL, error=2.13e-4, detail="off by one")
    gate = Gate(name="layers", status=GateStatus.FAILED, comparisons=(row,))
    failure = written(tmp_path, single(gate)).find(".//failure")
    assert failure is not None
    assert failure.get("message") == "relative error 2.1e-04; expected at most 1e-12 (float64)"
    assert failure.text is not None
    assert failure.text.splitlines() == [
        "got: relative error 2.1e-04",
        "expected: at most 1e-12 (float64)",
        "where: port stem.conv, reference stem/conv, output, shape (2, 8, 4), isolated, float64, evaluation",
        "answers for it: stem.conv",
        "detail: off by one",
    ]


def test_nothing_in_a_blocked_gate_is_green(tmp_path):
    result = results.failing()
    suite = {suite.get("name"): suite for suite in written(tmp_path, result)}["blocks"]
    assert result.gates["blocks"].failures == ()
    assert suite.get("failures") == suite.get("tests") == str(len(result.gates["blocks"].comparisons))
    assert {failure.get("type") for failure in suite.iter("failure")} == {"blocked"}


@pytest.mark.parametrize(
    ("status", "tag"),
    [
        (GateStatus.BLOCKED, "failure"),
        (GateStatus.NOT_RUN, "error"),
        (GateStatus.FAILED, "error"),
        (GateStatus.PASSED, "error"),
    ],
)
def test_empty_gate_is_red_whatever_it_claims(tmp_path, status, tag):
    root = written(tmp_path, single(Gate(name="layers", status=status)))
    problem = root.find(f"testsuite/testcase/{tag}")
    assert problem is not None
    assert problem.get("message")
    assert root.get("tests") == "1"


@pytest.mark.parametrize("status", [GateStatus.FAILED, GateStatus.NOT_RUN])
def test_gate_that_fails_without_a_failing_comparison_is_red(tmp_path, status):
    gate = Gate(name="weights", status=status, reason="two keys were never read", comparisons=(results.comparison(),))
    root = written(tmp_path, single(gate))
    assert root.get("tests") == "2"
    assert root.get("errors") == "1"


def test_gate_that_is_asked_for_and_absent_is_an_error(tmp_path):
    root = written(tmp_path, Result(pair="pair", reference="reference", requested=("layers",), gates={}))
    assert root.get("errors") == "1"


def test_comparison_that_was_not_run_is_an_error(tmp_path):
    row = results.comparison(status=Status.NOT_RUN, error=None)
    root = written(tmp_path, single(Gate(name="layers", status=GateStatus.FAILED, comparisons=(row,))))
    assert root.get("errors") == "1"
    assert root.get("tests") == "1"


def test_gate_that_nobody_asked_for_and_that_did_not_run_has_no_suite(tmp_path):
    passed = Gate(name="layers", status=GateStatus.PASSED, comparisons=(results.comparison(),))
    result = Result(
        pair="pair",
        reference="reference",
        requested=("layers",),
        gates={"layers": passed, "model": Gate(name="model", status=GateStatus.NOT_RUN)},
    )
    assert [suite.get("name") for suite in written(tmp_path, result)] == ["layers"]


def test_result_without_any_gate_is_an_error(tmp_path):
    assert written(tmp_path, results.nothing_asked()).get("errors") == "1"
    assert written(tmp_path, results.empty()).get("errors") == str(len(results.GATES))


def test_several_calls_of_one_layer_have_their_own_names(tmp_path):
    rows = tuple(results.comparison(reading=Reading.ACCUMULATED) for _ in range(3))
    root = written(tmp_path, single(Gate(name="model", status=GateStatus.PASSED, comparisons=rows)))
    names = [case.get("name") for case in root.iter("testcase")]
    assert len(set(names)) == 3


def test_characters_that_xml_cannot_hold_are_written_out(tmp_path):
    root = written(tmp_path, results.failing())
    names = [case.get("name", "") for case in root.iter("testcase")]
    assert any(r"\x1b[31m\ud800\u202e\x00" in name and "</script>" in name for name in names)


def test_training_is_named_by_what_answers_for_it(tmp_path):
    suites = {suite.get("name"): suite for suite in written(tmp_path, results.passing())}
    cases = {
        name: {(case.get("classname"), case.get("name")) for case in suite.iter("testcase")}
        for name, suite in suites.items()
    }
    assert ("losses.metric", "metric PearsonR after batch 1 [functions live, isolated, float64, training]") in cases[
        "losses"
    ]
    assert ("gradients.loss", "loss [P1 live, isolated, float64, training]") in cases["gradients"]
    case = "P1 live, adam, gradients of size 1"
    assert ("optimizer.schedule", f"schedule learning rates at step 1 [{case}, isolated, float64, training]") in cases[
        "optimizer"
    ]
    assert ("optimizer.optimizer", f"stem_conv.weight change after step 5 [{case}, isolated, float64, training]") in (
        cases["optimizer"]
    )
    title = "(training run) weights at step 50 [P1 live, accumulated, float32, training]"
    assert ("trajectory.(training run)", title) in cases["trajectory"]
    title = "reference, seed 24 losses [planted motifs, run, float32, training]"
    assert ("convergence.(all runs)", title) in cases["convergence"]
    assert not any("#2" in str(name) for _, name in cases["trajectory"] | cases["convergence"])


def test_blocked_convergence_is_red(tmp_path):
    suite = {suite.get("name"): suite for suite in written(tmp_path, results.wrong_gradients())}["convergence"]
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.get("message") == "the gate 'gradients' did not pass"
    assert suite.get("tests") == "1"


def test_convergence_is_said_in_its_own_units(tmp_path):
    suite = {suite.get("name"): suite for suite in written(tmp_path, results.different())}["convergence"]
    message = next(case for case in suite if "final losses [" in str(case.get("name")))[0].get("message")
    assert message is not None
    assert message.startswith(
        "an interval that reaches 1.9 of the reference's spread; expected at most 1 (convergence)"
    )

"""Records: frozen, without a truth value, complete as JSON, and passed only where something was proven."""

import dataclasses
import json
import math

import pytest

from parity import Comparison, Culprit, Gate, GateStatus, Reading, Result, Status
from parity.records import SCHEMA, KnownDifference, NotCompared, WeightRow


def comparison(**changes: object) -> Comparison:
    values = {
        "gate": "layers",
        "reading": Reading.ISOLATED,
        "precision": "float64",
        "reference": "conv",
        "port": "conv",
        "layer": "conv",
        "status": Status.PASS,
    }
    return Comparison(**values | changes)  # type: ignore[arg-type]


def result(requested: tuple[str, ...] = (), **statuses: GateStatus) -> Result:
    gates = {name: Gate(name=name, status=status) for name, status in statuses.items()}
    return Result(pair="a and b", reference="a", requested=requested, gates=gates)


@pytest.mark.parametrize(
    "record",
    [comparison(), Gate(name="layers", status=GateStatus.PASSED), result(("layers",), layers=GateStatus.PASSED)],
    ids=lambda record: type(record).__name__,
)
def test_a_verdict_has_no_truth_value(record):
    for ask in (bool, lambda value: value and True, lambda value: not value, lambda value: all([value])):
        with pytest.raises(TypeError, match=f"a {type(record).__name__} has no truth value"):
            ask(record)


@pytest.mark.parametrize("status", list(Status))
@pytest.mark.parametrize("other", list(GateStatus))
def test_the_statuses_of_comparisons_and_gates_are_not_confused(status, other):
    assert status != other or {status, other} == {"fail"}


@pytest.mark.parametrize(
    "record",
    [
        comparison(),
        Gate(name="layers", status=GateStatus.PASSED),
        result(),
        Culprit(port="a", reference="a", gates=("layers",), worst=comparison()),
        NotCompared(side="port", name="a", reason="why"),
        KnownDifference(name="a", reference="1", port="2", bound=1.0, measured=None, reason="why"),
        WeightRow(key="a", name="b", shape=(1,), layout="identity", sha256=""),
    ],
    ids=lambda record: type(record).__name__,
)
def test_records_cannot_be_changed_nor_built_by_position(record):
    first = dataclasses.fields(record)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, first, "other")
    with pytest.raises(TypeError):
        type(record)("value by position")


def test_nothing_requested_is_not_passed():
    assert result(layers=GateStatus.PASSED).passed is False
    assert result().passed is False


def test_a_requested_gate_that_passed_is_passed():
    assert result(("layers",), layers=GateStatus.PASSED).passed is True


@pytest.mark.parametrize("status", [status for status in GateStatus if status is not GateStatus.PASSED])
def test_a_requested_gate_of_any_other_status_is_not_passed(status):
    assert result(("layers",), layers=status).passed is False
    assert result(("weights", "layers"), weights=GateStatus.PASSED, layers=status).passed is False


def test_a_requested_gate_that_does_not_exist_is_not_passed():
    assert result(("layers", "gradients"), layers=GateStatus.PASSED).passed is False


def test_the_failures_of_a_gate_are_all_that_did_not_pass():
    rows = tuple(comparison(status=status) for status in Status)
    gate = Gate(name="layers", status=GateStatus.FAILED, comparisons=rows)
    assert [row.status for row in gate.failures] == [status for status in Status if status is not Status.PASS]


def test_a_result_lists_culprits_and_comparisons_in_their_order():
    rows = [comparison(port=name) for name in ("c", "a", "b")]
    full = Result(
        pair="",
        reference="",
        requested=("layers",),
        gates={
            "weights": Gate(name="weights", status=GateStatus.FAILED, comparisons=(rows[0],)),
            "layers": Gate(name="layers", status=GateStatus.BLOCKED, comparisons=(rows[1], rows[2])),
        },
        culprit_rows=tuple(Culprit(port=row.port, reference="", gates=(), worst=row) for row in rows),
    )
    assert full.culprits == ("c", "a", "b")
    assert full.comparisons == tuple(rows)


def numbers(**values: float) -> Result:
    row = comparison(shape=(2, 3), **values)
    gate = Gate(name="layers", status=GateStatus.FAILED, comparisons=(row,))
    return Result(pair="a", reference="b", requested=("layers",), gates={"layers": gate})


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize(("value", "written"), [(math.inf, "inf"), (-math.inf, "-inf"), (math.nan, "nan")])
def test_non_finite_numbers_are_written_as_text_because_json_has_none(value, written):
    text = numbers(error=value, limit=0.5).to_json()
    (row,) = json.loads(text, parse_constant=refuse)["gates"]["layers"]["comparisons"]
    assert row["error"] == written
    assert row["limit"] == 0.5


def test_json_holds_every_field_the_verdict_and_the_culprits():
    found = numbers(error=0.25)
    data = json.loads(found.to_json(), parse_constant=refuse)
    assert {field.name for field in dataclasses.fields(Result)} <= data.keys()
    assert data["passed"] is False
    assert data["culprits"] == []
    assert data["schema"] == SCHEMA
    (row,) = data["gates"]["layers"]["comparisons"]
    assert row == {**dataclasses.asdict(found.comparisons[0]), "shape": [2, 3], "looks": []}


def test_json_is_written_to_the_path_as_well(tmp_path):
    found = numbers(error=0.25)
    assert found.to_json(tmp_path / "parity.json") == (tmp_path / "parity.json").read_text(encoding="utf-8")


def test_a_value_that_json_cannot_hold_is_an_error_and_no_file(tmp_path):
    found = dataclasses.replace(numbers(error=0.25), environment={"array": object()})
    with pytest.raises(TypeError):
        found.to_json(tmp_path / "parity.json")
    assert not (tmp_path / "parity.json").exists()


def test_paths_in_the_environment_are_text():
    from pathlib import Path

    found = dataclasses.replace(numbers(error=0.25), environment={"folder": Path("a") / "b"})
    assert json.loads(found.to_json())["environment"]["folder"] == str(Path("a") / "b")

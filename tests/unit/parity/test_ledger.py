"""The ledger of proofs: what it takes for a rung to count as proven, and every way in which it must not."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from parity import Gate, GateStatus, Result
from parity.ladder import GATES
from parity.ledger import FOLDER_VARIABLE, Ledger, NotProven, content, fingerprint
from tests.unit.sources import ROOT

BEFORE = GATES[: GATES.index("convergence")]


def result(**changed: GateStatus) -> Result:
    statuses = {**dict.fromkeys(BEFORE, GateStatus.PASSED), "convergence": GateStatus.NOT_RUN, **changed}
    gates = {name: Gate(name=name, status=status) for name, status in statuses.items()}
    return Result(pair="pair", reference="both", requested=BEFORE, gates=gates)


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger(tmp_path / "ledger")


def test_what_was_proven_is_proven(ledger):
    ledger.record(result())
    ledger.require(BEFORE)


def test_nothing_is_proven_in_an_empty_ledger(ledger):
    with pytest.raises(NotProven, match=r"weights.*never run.*epibert parity"):
        ledger.require(BEFORE)


@pytest.mark.parametrize("status", [GateStatus.FAILED, GateStatus.BLOCKED, GateStatus.NOT_RUN])
def test_one_rung_that_did_not_pass_is_named(ledger, status):
    ledger.record(result(gradients=status))
    ledger.require(BEFORE[: BEFORE.index("gradients")])
    with pytest.raises(NotProven, match="gradients"):
        ledger.require(BEFORE)


def test_the_latest_run_counts(ledger):
    ledger.record(result())
    ledger.record(result(layers=GateStatus.FAILED))
    with pytest.raises(NotProven, match="layers"):
        ledger.require(BEFORE)
    ledger.record(result())
    ledger.require(BEFORE)


def test_rungs_of_two_runs_add_up(ledger):
    ledger.record(result())
    ledger.record(result(**dict.fromkeys(BEFORE, GateStatus.NOT_RUN), convergence=GateStatus.PASSED))
    ledger.require(GATES)


def test_what_is_proven_of_one_subject_is_proven_of_no_other(ledger):
    ledger.record(result())
    other = ledger.about("rampage_tiny")
    assert other.about("rampage_tiny") is other
    with pytest.raises(NotProven, match=r"never run.*epibert parity --config rampage_tiny"):
        other.require(BEFORE)
    other.record(result(layers=GateStatus.FAILED))
    ledger.require(BEFORE)
    with pytest.raises(NotProven, match="layers"):
        ledger.about("rampage_tiny").require(BEFORE)


def test_a_deleted_ledger_proves_nothing(ledger):
    ledger.record(result())
    ledger.path.unlink()
    with pytest.raises(NotProven, match="never run"):
        ledger.require(BEFORE)


def edit_status(entry):
    entry["gates"]["gradients"]["status"] = "passed"


def edit_count(entry):
    entry["gates"]["gradients"]["comparisons"] += 1


def edit_content(entry):
    entry["content"]["versions"]["torch"] = "0"


def drop_seal(entry):
    del entry["seal"]


@pytest.mark.parametrize("edit", [edit_status, edit_count, edit_content, drop_seal])
def test_an_edited_entry_proves_nothing_and_says_so(ledger, edit):
    ledger.record(result(gradients=GateStatus.FAILED))
    entry = json.loads(ledger.path.read_text())
    edit(entry)
    ledger.path.write_text(json.dumps(entry))
    with pytest.raises(NotProven, match="edited or damaged"):
        ledger.require(("weights",))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"gates": {}}'])
def test_a_damaged_entry_proves_nothing(ledger, text):
    ledger.record(result())
    ledger.path.write_text(text)
    with pytest.raises(NotProven, match="edited or damaged"):
        ledger.require(BEFORE)


def test_an_edited_entry_does_not_lend_its_rungs_to_the_next_run(ledger):
    ledger.record(result(gradients=GateStatus.FAILED))
    entry = json.loads(ledger.path.read_text())
    edit_status(entry)
    ledger.path.write_text(json.dumps(entry))
    ledger.record(result(**dict.fromkeys(BEFORE, GateStatus.NOT_RUN), convergence=GateStatus.PASSED))
    with pytest.raises(NotProven, match="weights"):
        ledger.require(BEFORE)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("sources", {"torch_impl": "0"}),
        ("goldens", {}),
        ("versions", {"tensorflow": None}),
        ("python", "3.0"),
        ("machine", ["another", "machine"]),
    ],
)
def test_other_content_is_not_proven(ledger, part, value):
    ledger.record(result())
    other = Ledger(ledger.folder)
    other.content = {**ledger.content, part: value}
    other.fingerprint = fingerprint(other.content)
    with pytest.raises(NotProven, match="never run"):
        other.require(BEFORE)


def test_sources_that_change_while_the_ladder_is_climbed_prove_nothing(ledger, monkeypatch):
    monkeypatch.setattr("parity.ledger.content", lambda goldens: {**ledger.content, "sources": {}})
    with pytest.raises(NotProven, match="changed while the ladder was climbed"):
        ledger.record(result())
    assert not ledger.path.exists()


def test_an_entry_of_other_content_under_this_name_is_not_taken(ledger, monkeypatch):
    other = Ledger(ledger.folder)
    other.content = {**ledger.content, "python": "3.0"}
    monkeypatch.setattr("parity.ledger.content", lambda goldens: other.content)
    other.record(result())
    assert other.path == ledger.path
    with pytest.raises(NotProven, match="edited or damaged"):
        ledger.require(BEFORE)


def test_a_writer_that_dies_leaves_the_entry_as_it_was(ledger, monkeypatch):
    ledger.record(result())

    def die(entry, file, **_):
        file.write('{"content": {}')
        raise KeyboardInterrupt

    monkeypatch.setattr(json, "dump", die)
    with pytest.raises(KeyboardInterrupt):
        ledger.record(result(layers=GateStatus.FAILED))
    ledger.require(BEFORE)


def test_content_names_every_package_recording_and_version():
    described = content()
    assert set(described["sources"]) == {"torch_impl", "tf_reference", "weights", "parity"}
    assert "P1/train.h5" in described["goldens"]
    assert {"torch", "tensorflow", "lightning", "numpy"} <= set(described["versions"])


def test_a_result_is_only_entered_with_the_rungs_that_were_run(ledger):
    partial = dataclasses.replace(result(), gates={"weights": Gate(name="weights", status=GateStatus.PASSED)})
    ledger.record(partial)
    ledger.require(("weights",))
    with pytest.raises(NotProven, match="constants"):
        ledger.require(BEFORE)


CONVERGENCE = "tests/suites/test_convergence.py"


@pytest.mark.parametrize(
    "selection",
    [
        pytest.param([CONVERGENCE], id="the file alone", marks=pytest.mark.slow),
        pytest.param([CONVERGENCE, "-n", "1"], id="a worker"),
        pytest.param([CONVERGENCE, "-k", "rung"], id="one test by -k", marks=pytest.mark.slow),
        pytest.param([CONVERGENCE, "--lf"], id="only what failed last", marks=pytest.mark.slow),
    ],
)
def test_the_convergence_rung_fails_as_blocked_however_it_is_selected(tmp_path, selection):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "convergence",
        "-p",
        "no:cacheprovider",
        *selection,
    ]
    if "--lf" in command:
        command.remove("no:cacheprovider")
        command[command.index("-p")] = "--cache-clear"
    environment = {**os.environ, FOLDER_VARIABLE: str(tmp_path / "empty")}
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "blocked: the gate 'weights' is not proven" in done.stdout
    assert "prove it with: epibert parity" in done.stdout
    assert " passed" not in done.stdout

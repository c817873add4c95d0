"""Campaigns: every part is done once, whatever the number of processes, and nothing that changed counts as done."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from parity.attack import campaign as module
from parity.attack.campaign import CONFIGURATIONS, SHARING, Part, Store, run_campaign
from parity.attack.records import Campaign
from tests.unit.parity.attack.toy import CALLS

TOY = "tests.unit.parity.attack.toy:Toy"


@pytest.fixture
def calls(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "calls.txt"
    monkeypatch.setenv(CALLS, str(path))
    return path


def run(folder: Path, names: tuple[str, ...] = ("caught", "missed", "infinite"), **options: Any) -> Campaign:
    return run_campaign(TOY, **{"names": names, "clean": 3, "sensitivity": True, "folder": folder, **options})


def done(calls: Path) -> Counter[str]:
    return Counter(calls.read_text().splitlines()) if calls.exists() else Counter()


def test_every_part_is_done_once_and_found_again(tmp_path, calls):
    first = run(tmp_path / "results", jobs=2)
    assert set(done(calls).values()) == {1}
    assert len(done(calls)) == 7
    assert [outcome.name for outcome in first.outcomes] == ["caught", "missed", "infinite"]
    assert [run.seed for run in first.clean] == [0, 1, 2]
    assert math.isinf(first.outcomes[2].effect)
    again = run(tmp_path / "results", jobs=1)
    assert set(done(calls).values()) == {1}
    assert again.reused == 7
    assert (again.outcomes, again.clean, again.sensitivity) == (first.outcomes, first.clean, first.sensitivity)


def test_parts_of_all_processes_end_where_processes_are_made_anew(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(module, "TASKS_OF_A_PROCESS", 2)
    run(tmp_path / "results", jobs=2)
    assert len(done(calls)) == 7


def test_what_was_done_before_a_failure_is_kept(tmp_path, calls):
    with pytest.raises(RuntimeError, match="the target broke"):
        run(tmp_path / "results", names=("breaks", "caught"))
    assert run(tmp_path / "results", names=("caught",)).reused == 5
    assert done(calls)["caught"] == 1


def test_clean_runs_of_one_configuration_are_done_together_and_one_that_breaks_takes_no_other_with_it(tmp_path, calls):
    clean = 61 + CONFIGURATIONS
    with pytest.raises(RuntimeError, match="the target broke") as raised:
        run(tmp_path / "results", names=(), clean=clean, sensitivity=False)
    assert "in spare" in raised.value.__notes__[0]
    order = [int(line.removeprefix("seed ")) for line in calls.read_text().splitlines()]
    assert order[:4] == [0, CONFIGURATIONS, 2 * CONFIGURATIONS, 1]
    assert sorted(order) == list(range(clean))
    kept = [json.loads(file.read_text())["result"] for file in (tmp_path / "results").rglob("clean-*.json")]
    assert {run["seed"]: run["configuration"] for run in kept} == {
        seed: f"configuration {seed % CONFIGURATIONS}" for seed in range(clean) if seed != 60
    }


def test_other_seeds_have_other_configurations(tmp_path, calls):
    found = run(tmp_path / "results", names=(), clean=3, first_seed=SHARING - 1, sensitivity=False)
    assert [(run.seed, run.configuration) for run in found.clean] == [
        (SHARING - 1, f"configuration {CONFIGURATIONS - 1}"),
        (SHARING, f"configuration {CONFIGURATIONS}"),
        (SHARING + 1, f"configuration {CONFIGURATIONS + 1}"),
    ]


@pytest.mark.parametrize("harm", ["edited", "truncated", "of another part"])
def test_a_result_that_cannot_be_trusted_is_made_again(tmp_path, calls, harm):
    run(tmp_path / "results", names=("caught", "missed"), clean=0, sensitivity=False)
    (file,) = (tmp_path / "results").rglob(Part(kind="fault", name="missed").file)
    if harm == "edited":
        entry = json.loads(file.read_text())
        entry["result"]["rung"] = "layers"
        file.write_text(json.dumps(entry))
    elif harm == "truncated":
        file.write_text(file.read_text()[:-20])
    else:
        (other,) = (tmp_path / "results").rglob(Part(kind="fault", name="caught").file)
        file.write_text(other.read_text())
    found = run(tmp_path / "results", names=("caught", "missed"), clean=0, sensitivity=False)
    assert done(calls) == {"caught": 1, "missed": 2}
    assert [outcome.name for outcome in found.missed] == ["missed"]


def test_results_of_another_content_are_not_found(tmp_path, calls, monkeypatch):
    run(tmp_path / "results", names=("caught",), clean=0, sensitivity=False)
    original = module.content
    monkeypatch.setattr(module, "content", lambda: {**original(), "sources": "another hash"})
    assert run(tmp_path / "results", names=("caught",), clean=0, sensitivity=False).reused == 0
    assert done(calls) == {"caught": 2}


def test_verdicts_of_other_rules_are_results_of_their_own(tmp_path, calls):
    plain = run(tmp_path / "results", names=("caught",), clean=0, sensitivity=False)
    judged = run(tmp_path / "results", names=("caught",), clean=0, sensitivity=False, rules=True)
    assert plain.outcomes[0].verdicts == {}
    assert judged.outcomes[0].verdicts["some rule"].found
    assert done(calls) == {"caught": 2}


def test_a_result_is_sealed_with_the_content_that_it_depends_on(tmp_path):
    part = Part(kind="fault", name="some")
    Store(tmp_path, {"sources": "one"}).write(part, {"rung": "layers"})
    assert Store(tmp_path, {"sources": "one"}).read(part) == {"rung": "layers"}
    assert Store(tmp_path, {"sources": "two"}).read(part) is None

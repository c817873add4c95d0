"""What a campaign of seeded faults found, beside a result."""

import json
from pathlib import Path
from typing import Any

import pytest

from parity.attack.records import Campaign, CleanRun, Outcome
from parity.attack.report import write
from parity.environment import describe_environment
from parity.report.campaign import NotACampaignError, kill_matrix, read_campaign


def outcome(name: str, rung: str, *, expected: str = "layers") -> Outcome:
    return Outcome(
        name=name,
        kind="model",
        source="spec",
        where="stem",
        what="wrong",
        expected_rung=expected,
        expected=("stem",),
        rung=rung,
        stage=rung,
        named=("stem",) if rung else (),
        effect=1e-3,
        measured="stem",
        comparisons=10,
        seconds=1.0,
        right=bool(rung),
        located=bool(rung),
        of_layers=True,
    )


def written(folder: Path, *outcomes: Outcome, alarms: tuple[str, ...] = (), **environment: Any) -> Path:
    run = CleanRun(seed=3, configuration="small", comparisons={"layers": 5}, alarms=alarms, seconds=1.0)
    campaign = Campaign(outcomes=outcomes, clean=(run,), environment=describe_environment() | environment)
    write(campaign, folder)
    return folder / "attack.json"


def test_faults_are_counted_by_the_rung_expected_and_the_one_that_caught_them(tmp_path):
    path = written(
        tmp_path,
        outcome("a", "layers"),
        outcome("b", "layers"),
        outcome("c", "model"),
        outcome("d", ""),
        outcome("e", "data", expected="data"),
    )
    found = read_campaign(path, describe_environment())
    assert found["matrix"] == {"layers": {"layers": 2, "model": 1, "not caught": 1}, "data": {"data": 1}}
    assert found["passed"] is False
    assert found["same_sources"] is True
    assert list(found["survivors"]) == ["d"]
    columns, rows = kill_matrix(found)
    assert columns == ["layers", "data", "model", "not caught"]
    assert rows == [("layers", [2, 0, 1, 1]), ("data", [0, 1, 0, 0])]


def test_false_alarms_are_listed(tmp_path):
    found = read_campaign(written(tmp_path, outcome("a", "layers"), alarms=("stem: 1e-3",)), describe_environment())
    assert found["alarms"] == ["seed 3: stem: 1e-3"]


def test_a_campaign_of_other_sources_is_said_to_be(tmp_path):
    path = written(tmp_path, outcome("a", "layers"), sources={"torch_impl": "other"})
    assert read_campaign(path, describe_environment())["same_sources"] is False


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"outcomes": 3}', '{"outcomes": [{}]}'])
def test_another_file_is_an_error(tmp_path, text):
    path = tmp_path / "attack.json"
    path.write_text(text)
    with pytest.raises(NotACampaignError, match="no record of a campaign"):
        read_campaign(path, describe_environment())


def test_a_record_that_lost_a_part_is_an_error(tmp_path):
    path = written(tmp_path, outcome("a", "layers"))
    whole = json.loads(path.read_text())
    for name in ("passed", "summary", "survivors", "clean", "environment"):
        path.write_text(json.dumps({key: value for key, value in whole.items() if key != name}))
        with pytest.raises(NotACampaignError):
            read_campaign(path, describe_environment())

"""What people see of a campaign names every survivor and every false alarm."""

import dataclasses
import io
import json
import math

from rich.console import Console

from parity.attack.head_to_head import SAYS
from parity.attack.records import Campaign, CleanRun, Sensitivity
from parity.attack.report import draw, judged_by_others, list_faults, print_campaign, summary, write
from parity.attack.rules import Verdict
from tests.unit.parity.attack.toy import OUTCOME, Toy

MISSED = dataclasses.replace(OUTCOME, name="a <missed> one", rung="", named=(), right=False, located=False)
WITHOUT = dataclasses.replace(MISSED, name="without effect", effect=0.0)
ELSEWHERE = dataclasses.replace(OUTCOME, name="found elsewhere", rung="model", effect=math.inf)
ALARM = CleanRun(seed=7, configuration="[small]", comparisons={"layers": 2}, alarms=("layers: fail",), seconds=0.1)
ROW = Sensitivity(layer="a", perturbed="weights", precision="float64", exponent=40, monotone=True)
CAMPAIGN = Campaign(
    outcomes=(dataclasses.replace(OUTCOME, name="caught"), MISSED, WITHOUT, ELSEWHERE),
    clean=(dataclasses.replace(ALARM, seed=6, alarms=()), ALARM),
    sensitivity=(ROW, dataclasses.replace(ROW, layer="b", exponent=None)),
)


def printed(campaign: Campaign) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_campaign(campaign, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_survivors_alarms_and_misplaced_faults_are_printed_by_name():
    text = printed(CAMPAIGN)
    for name in ("a <missed> one", "without effect", "found elsewhere", "seed 7", "[small]", "2^-40"):
        assert name in text
    assert "NOT PROVEN" in text
    assert "NOT PROVEN" not in printed(Campaign(outcomes=(OUTCOME,)))


def test_the_figures_are_counted():
    faults, shares, clean, again = summary(CAMPAIGN)
    assert faults == ("faults: 4, caught 2; of 3 whose effect exceeds the rounding of float64, 2")
    assert shares.startswith("of these and 0 others that were caught: right rung 33.3 %, right name first 66.7 %")
    assert clean.startswith("clean runs: 2, seeds 6 to 7, false alarms 1 in 4 comparisons")
    assert again.endswith(": 0")


def test_who_is_named_is_counted_for_layers_and_for_other_parts():
    other = dataclasses.replace(OUTCOME, of_layers=False)
    wrong = dataclasses.replace(other, named=("b",), right=False, located=False)
    shares = summary(Campaign(outcomes=(OUTCOME, OUTCOME, other, wrong, MISSED, WITHOUT)))[1]
    assert "(where it is a layer's 2 of 3, where it is another part's 1 of 2)" in shares


def test_a_ratio_that_was_measured_again_is_printed():
    run = dataclasses.replace(ALARM, alarms=(), second_looks=("model bfloat16 conv", "model bfloat16 pool"))
    campaign = Campaign(outcomes=(OUTCOME,), clean=(run,))
    assert summary(campaign)[-1].endswith(": 2")
    assert "seed 7: model bfloat16 conv and 1 more" in printed(campaign)


def test_the_picture_has_a_dot_for_every_fault_with_its_name():
    picture = draw(CAMPAIGN)
    assert picture.count("<title>") == len(CAMPAIGN.outcomes)
    assert "a &lt;missed&gt; one" in picture
    assert draw(Campaign(outcomes=())).endswith("</svg>\n")


def test_the_files_hold_everything_in_plain_json(tmp_path):
    assert write(CAMPAIGN, tmp_path) == ["attack.json", "attack.svg"]
    record = json.loads((tmp_path / "attack.json").read_text())
    assert record["passed"] is False
    assert record["missed"] == ["a <missed> one"]
    assert set(record["survivors"]) == {"a <missed> one", "without effect"}
    assert record["outcomes"][3]["effect"] == "inf"


def test_visible_faults_and_clean_runs_go_head_to_head(tmp_path):
    verdicts = {rule: Verdict(found=True, named="a", compared=1) for rule in SAYS}
    sound = {rule: Verdict(found=False, compared=1) for rule in SAYS}
    judged = [
        dataclasses.replace(outcome, verdicts=verdicts, case=case, sound=sound)
        for outcome, case in zip(CAMPAIGN.outcomes, ("P1", "R1", "R1", "P1"), strict=True)
    ]
    clean = tuple(dataclasses.replace(run, verdicts=verdicts) for run in CAMPAIGN.clean)
    campaign = dataclasses.replace(CAMPAIGN, outcomes=tuple(judged), clean=clean)
    trials = judged_by_others(campaign)
    assert [trial.sound for trial in trials if trial.fault] == [sound] * 3
    names = [trial.name for trial in trials if not trial.fault]
    assert names == ["P1 without a fault", "R1 without a fault", "seed 6", "seed 7"]
    assert "head_to_head.md" in write(campaign, tmp_path)
    assert (tmp_path / "head_to_head.svg").is_file()


def test_the_catalogue_is_printed_whole():
    console = Console(file=io.StringIO(), width=200)
    list_faults(Toy.faults.values(), console)
    assert isinstance(console.file, io.StringIO)
    assert all(name in console.file.getvalue() for name in Toy.faults)


def test_the_summary_says_how_many_clean_runs_judged_what():
    run = dataclasses.replace(ALARM, comparisons={"layers": 2, "state": 3})
    lines = summary(Campaign(outcomes=(), clean=(run, ALARM, dataclasses.replace(ALARM, comparisons={"state": 0}))))
    assert "(layers: 4 in 2 runs, state: 3 in 1 runs)" in lines[0]

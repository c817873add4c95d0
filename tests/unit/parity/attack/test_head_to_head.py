"""Verdicts become counts, counts a table and a picture; nothing is counted that nobody judged."""

import dataclasses
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from parity.attack.head_to_head import COLUMNS, OURS, SAYS, Trial, draw, markdown, scores, table, write
from parity.attack.rules import RULES, Verdict


def trial(name: str, *expected: str, fault: bool = True, **verdicts: Verdict) -> Trial:
    """One run in which all rules but those given see nothing."""
    silent = dict.fromkeys(SAYS, Verdict(found=False, compared=3, seconds=2.0))
    return Trial(name=name, fault=fault, expected=expected, verdicts=silent | verdicts, sound=silent if fault else {})


def sees(named: str = "", seconds: float = 2.0) -> Verdict:
    return Verdict(found=True, named=named, compared=3, seconds=seconds)


TRIALS = (
    trial("wrong epsilon", "block.norm", ladder=sees("block.norm", 5.0), HF=sees("block")),
    trial("wrong pool", "tower.*.pool", ladder=sees("tower.3.pool", 7.0), OF=sees("tower.1.pool"), HF=sees()),
    trial("wrong moment", "optimizer", HF=sees("stem"), GX=Verdict(found=False, compared=0)),
    trial("clean", fault=False, HF=sees()),
    trial("clean too", fault=False),
)


def test_every_rule_is_scored_and_ours_stands_last():
    found = scores(TRIALS)
    assert [score.rule for score in found] == [*(rule.name for rule in RULES), OURS]


def test_what_was_found_located_and_accused_is_counted():
    by_rule = {score.rule: score for score in scores(TRIALS)}
    ours, hf, of = by_rule[OURS], by_rule["HF"], by_rule["OF"]
    assert (ours.found, ours.located, ours.near, ours.alarms, ours.missed) == (2, 2, 2, 0, ("wrong moment",))
    assert (hf.found, hf.located, hf.near, hf.alarms, hf.missed) == (3, 0, 1, 1, ())
    assert (of.found, of.located) == (1, 1)
    assert {(score.faults, score.clean) for score in by_rule.values()} == {(3, 2)}


def test_a_fault_that_a_rule_has_nothing_to_see_of_is_told_from_one_that_it_let_pass():
    by_rule = {score.rule: score for score in scores(TRIALS)}
    assert (by_rule["GX"].seen, by_rule["PD"].seen) == (2, 3)


def test_a_rule_that_says_the_same_of_the_port_without_the_fault_has_not_found_it():
    always = dataclasses.replace(sees("stem"), detail="stem: 1.5e-05")
    sound = trial("sound", HF=always).verdicts
    faults = [
        dataclasses.replace(judged, sound=sound)
        for judged in (
            trial("anyway", "stem", HF=always),
            trial("elsewhere", "a", HF=sees("a")),
            trial("larger", "stem", HF=dataclasses.replace(always, detail="stem: 0.2")),
        )
    ]
    score = {score.rule: score for score in scores([*faults, trial("clean", fault=False)])}["HF"]
    assert (score.found, score.anyway, score.located, score.missed) == (2, 1, 2, ("anyway",))


def test_a_fault_needs_the_verdicts_on_the_port_without_it():
    lacking = dataclasses.replace(TRIALS[0], sound={})
    with pytest.raises(ValueError, match="wrong epsilon: not every rule has judged it"):
        scores([lacking, *TRIALS[1:]])


def test_seconds_are_the_median():
    assert {score.rule: score.seconds for score in scores(TRIALS)}[OURS] == 2.0
    assert scores([TRIALS[0], trial("clean", fault=False, ladder=sees(seconds=9.0))])[-1].seconds == 7.0


@pytest.mark.parametrize(
    ("named", "right", "near"),
    [
        ("block.norm", True, True),
        ("block", False, True),
        ("block.norm.part", False, True),
        ("blo", False, False),
        ("block.normal", False, False),
        ("", False, False),
    ],
)
def test_a_name_is_right_near_or_neither(named, right, near):
    judged = trial("a", "block.norm")
    assert (judged.blames(named), judged.is_near(named)) == (right, near)


def test_who_names_nobody_has_not_named_the_right_layer():
    judged = trial("a", "*")
    assert (judged.blames("anything"), judged.blames(""), judged.is_near("")) == (True, False, False)


def test_without_faults_or_without_clean_runs_nothing_is_decided():
    for part in (TRIALS[:3], TRIALS[3:], ()):
        with pytest.raises(ValueError, match="decide nothing"):
            scores(part)


def test_a_verdict_that_is_missing_is_an_error():
    fewer = {name: verdict for name, verdict in TRIALS[0].verdicts.items() if name != "RW"}
    with pytest.raises(ValueError, match=r"wrong epsilon: .*\['RW'\]"):
        scores([dataclasses.replace(TRIALS[0], verdicts=fewer), *TRIALS[1:]])


def test_the_table_has_a_row_for_every_rule():
    lines = markdown(scores(TRIALS)).splitlines()
    assert len(lines) == 2 + len(SAYS)
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 1}
    assert re.search(r"\| ladder \(this repository\) \| [^|]* \| 2 of 3 \| 0 \| 2 \| 2 \| 0 of 2 \| 2 \|", lines[-1])
    printed = io.StringIO()
    Console(width=240, file=printed).print(table(scores(TRIALS)))
    assert len(printed.getvalue().splitlines()) == 1 + len(SAYS)


def test_the_picture_has_three_bars_for_every_rule_as_long_as_its_counts():
    root = ElementTree.fromstring(draw(scores(TRIALS)))
    bars = [round(float(bar.get("width", ""))) for bar in root.iter("{http://www.w3.org/2000/svg}rect")][4:]
    assert len(bars) == 3 * len(SAYS)
    whole = 640 - 100 - 70
    assert bars[:3] == [whole, 0, round(whole / 2)]
    assert bars[-3:] == [round(whole * 2 / 3)] * 2 + [0]


def test_three_files_are_written_and_hold_every_verdict(tmp_path: Path):
    found = write(TRIALS, tmp_path / "new")
    record = json.loads((tmp_path / "new" / "head_to_head.json").read_text())
    assert [score["rule"] for score in record["scores"]] == [score.rule for score in found]
    assert record["trials"][0]["verdicts"]["ladder"]["named"] == "block.norm"
    assert (tmp_path / "new" / "head_to_head.md").read_text() == markdown(found)
    assert len((tmp_path / "new" / "head_to_head.svg").read_text()) < 10_000

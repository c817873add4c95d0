"""What a campaign adds up to: it passes only if it judged something, missed nothing visible and accused nobody."""

import dataclasses
import math

import pytest

from parity.attack.records import Campaign, CleanRun, Sensitivity
from parity.tolerances import TABLE
from tests.unit.parity.attack.toy import OUTCOME

CLEAN = CleanRun(seed=0, configuration="small", comparisons={"layers": 2}, alarms=(), seconds=0.1)
MISSED = dataclasses.replace(OUTCOME, rung="", stage="", named=(), right=False, located=False)
ELSEWHERE = dataclasses.replace(OUTCOME, rung="model")
MISPLACED = dataclasses.replace(OUTCOME, named=("b",), right=False, located=False)
SMALLEST = TABLE["fault_effect"].limit
ABOVE = math.nextafter(SMALLEST, 1)


def test_all_caught_and_nobody_accused_passes():
    found = Campaign(outcomes=(OUTCOME,), clean=(CLEAN,))
    assert found.passed
    assert (found.right_rung, found.located, found.right) == (1.0, 1.0, 1.0)
    assert not found.survivors


@pytest.mark.parametrize(
    "campaign",
    [
        Campaign(outcomes=()),
        Campaign(outcomes=(MISSED,)),
        Campaign(outcomes=(OUTCOME, MISSED)),
        Campaign(outcomes=(OUTCOME, dataclasses.replace(MISSED, effect=math.inf))),
        Campaign(outcomes=(OUTCOME, dataclasses.replace(MISSED, effect=math.nan))),
        Campaign(outcomes=(dataclasses.replace(MISSED, effect=0.0),)),
        Campaign(outcomes=(OUTCOME,), clean=(dataclasses.replace(CLEAN, alarms=("layers: fail",)),)),
        Campaign(outcomes=(OUTCOME,), clean=(CLEAN, dataclasses.replace(CLEAN, comparisons={}))),
        Campaign(outcomes=(OUTCOME,), clean=(dataclasses.replace(CLEAN, comparisons={"layers": 0}),)),
        Campaign(outcomes=(*[OUTCOME] * 18, ELSEWHERE)),
        Campaign(outcomes=(*[OUTCOME] * 18, MISPLACED)),
    ],
)
def test_anything_missed_misplaced_or_accused_does_not_pass(campaign):
    assert not campaign.passed


def test_shares_are_of_the_faults_that_count_and_a_missed_one_is_not_located():
    without = dataclasses.replace(MISSED, effect=0.0)
    found = Campaign(outcomes=(OUTCOME, MISSED, without, dataclasses.replace(OUTCOME, effect=0.0), MISPLACED))
    assert len(found.judged) == 4
    assert (found.right_rung, found.located, found.right) == (0.75, 0.5, 0.5)


def test_a_share_of_one_in_twenty_may_be_caught_elsewhere():
    assert Campaign(outcomes=(*[OUTCOME] * 19, ELSEWHERE)).passed
    assert Campaign(outcomes=(*[OUTCOME] * 19, MISPLACED)).passed


def test_a_fault_without_effect_may_survive_and_is_named_with_its_reason():
    without = dataclasses.replace(MISSED, name="nothing", effect=0.0, measured="the output")
    found = Campaign(outcomes=(OUTCOME, without))
    assert found.passed
    assert [outcome.name for outcome in found.survivors] == ["nothing"]
    assert "within the rounding" in without.reason
    assert "MISSED" in dataclasses.replace(without, effect=ABOVE).reason
    assert OUTCOME.reason == ""


@pytest.mark.parametrize(
    ("effect", "visible"),
    [(0.0, False), (SMALLEST, False), (ABOVE, True), (math.inf, True), (math.nan, True)],
)
def test_a_fault_must_be_caught_when_its_effect_is_not_within_rounding(effect, visible):
    assert dataclasses.replace(OUTCOME, effect=effect).visible is visible


def test_a_layer_that_nothing_disturbs_has_no_smallest_perturbation():
    row = Sensitivity(layer="a", perturbed="output", precision="float64", exponent=None, monotone=True)
    assert math.isinf(row.size)
    assert dataclasses.replace(row, exponent=1).size == 0.5

"""Rung 5: the whole model end to end, every activation on the way, and the statistics that training leaves behind."""

import pytest

from parity import Reading
from parity.pairs import epibert
from parity.pairs.epibert_run import load_case
from tests.suites.rungs import CASES, MODES, PRECISIONS, assert_all_pass, assert_gate, layers_read, pick


def test_the_rung_is_proven(ladder):
    assert_gate(ladder, "model")


def test_the_whole_ladder_is_proven(ladder):
    assert ladder.passed
    assert ladder.culprits == ()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES)
def test_every_activation_of_the_living_reference(ladder, goldens, case, precision, mode):
    rows = pick(ladder, "model", case=f"{case} live", precision=precision, mode=mode)
    config, _ = load_case(goldens / case)
    called = {name.partition("@")[0] for name in layers_read(rows, Reading.ACCUMULATED)}
    assert called == {pair.reference for pair in epibert.layer_map(config)}
    assert_all_pass(rows)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES)
def test_the_recorded_output(ladder, case, precision, mode):
    rows = pick(ladder, "model", case=f"{case} recorded", precision=precision, mode=mode, reference="")
    assert_all_pass(rows)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES)
def test_the_recorded_statistics_after_a_training_pass(ladder, case, precision):
    rows = pick(ladder, "model", case=f"{case} recorded", precision=precision, mode="training")
    statistics = [row for row in rows if row.quantity in ("running_mean", "running_var")]
    assert len(statistics) == 2 * 11
    assert_all_pass(statistics)


@pytest.mark.parametrize("case", CASES)
def test_known_differences_are_needed_and_bounded(ladder, case):
    differences = [row for row in ladder.known_differences if row.name.startswith(case)]
    assert len(differences) == len(epibert.ROUNDED_CONSTANTS)
    assert all(row.measured is not None and row.measured <= row.bound for row in differences)

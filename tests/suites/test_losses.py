"""Rung 6: losses and metrics, against numbers of the original and against the living reference."""

import pytest

from parity.pairs.epibert_run import FINETUNING_CASE
from parity.pairs.epibert_training.live_functions import LOSS_TYPES
from parity.pairs.epibert_training.recorded_training import RECORDED_VARIANTS
from parity.training import LOSS, METRIC
from tests.suites.rungs import assert_all_pass, assert_gate, pick


def test_the_rung_is_proven(ladder):
    assert_gate(ladder, "losses")


def test_every_recorded_loss_and_its_gradient(ladder):
    rows = pick(ladder, "losses", case="functions recorded", layer=LOSS, precision="float64")
    # Three samples; Poisson, and the multinomial with five weights, rescaled or not; value and gradient.
    assert len(rows) == 3 * (1 + 5 * 2) * 2
    assert_all_pass(rows)


def test_recorded_losses_round_no_worse_than_the_original_in_float32(ladder):
    rows = pick(ladder, "losses", case="functions recorded", layer=LOSS, precision="float32")
    assert len(rows) == 3 * (1 + 5 * 2)
    assert_all_pass(rows)


def test_every_recorded_metric_after_every_batch(ladder):
    rows = pick(ladder, "losses", case="functions recorded", layer=METRIC)
    assert len(rows) == 4 * 4
    assert_all_pass(rows)


def test_every_loss_of_the_living_reference(ladder):
    rows = pick(ladder, "losses", case="functions live", layer=LOSS)
    # Three samples; each loss whole, masked, and masked with the unmasked term; value and gradient.
    assert len(rows) == 3 * len(LOSS_TYPES) * 3 * 2
    assert_all_pass(rows)


def test_every_metric_of_the_living_reference(ladder):
    rows = pick(ladder, "losses", case="functions live", layer=METRIC)
    assert len(rows) == 2 * 2 * 4
    assert_all_pass(rows)


@pytest.mark.parametrize("case", ["P1", FINETUNING_CASE])
def test_the_recorded_loss_of_the_first_step(ladder, case):
    for variant in RECORDED_VARIANTS[case]:
        assert_all_pass(pick(ladder, "losses", case=f"{case} recorded, {variant.name}"))


def test_training_that_was_not_recorded_is_named(ladder):
    named = {(row.side, row.name) for row in ladder.not_compared}
    assert ("P2 recorded", "training") in named
    assert ("P1 recorded", "training") not in named

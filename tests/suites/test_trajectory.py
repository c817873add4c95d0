"""Rung 10: a whole training run, dropout on, inside the reference's own divergence at every step."""

import itertools

import numpy as np
import pytest

from parity.pairs.epibert_training.live_training import PRECISIONS, TRAJECTORY_STEPS
from parity.training import GROUPS
from tests.suites.rungs import assert_all_pass, assert_gate, pick


def test_the_rung_is_proven(ladder):
    assert_gate(ladder, "trajectory")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_step_is_within_the_limit_on_the_envelope(ladder, precision):
    rows = pick(ladder, "trajectory", case="P1 live", precision=precision)
    expected = [
        f"{quantity} at step {step}" for step in range(1, TRAJECTORY_STEPS + 1) for quantity in ("loss", *GROUPS)
    ]
    assert [row.quantity for row in rows] == expected
    assert_all_pass(rows)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_envelope_is_narrow_enough_to_decide_and_widens(ladder, precision):
    rows = pick(ladder, "trajectory", case="P1 live", precision=precision)
    own = [row.reference_error or 0.0 for row in rows if row.quantity.startswith("weights ")]
    assert min(own) > 0.0
    # It only widens. How wide it is comes from the weights themselves with a part of that width added to them, each of
    # which rounds by half a unit in its last place: all of them by half of that of one, in parts of their norm.
    assert all(later >= earlier - np.finfo(np.float64).eps for earlier, later in itertools.pairwise(own))
    assert own[-1] > own[0]

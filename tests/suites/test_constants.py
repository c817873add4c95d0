"""Rung 2: projection matrix and rotary table, which no checkpoint holds, are the reference's own, bit for bit."""

import pytest

from parity.tolerances import TABLE
from tests.suites.rungs import CASES, assert_all_pass, assert_gate, pick


def test_the_rung_is_proven(ladder):
    assert_gate(ladder, "constants")


@pytest.mark.parametrize("reference", ["recorded", "live"])
@pytest.mark.parametrize("case", CASES)
def test_both_constants_are_compared_exactly(ladder, case, reference):
    rows = pick(ladder, "constants", case=f"{case} {reference}")
    assert {row.port for row in rows} == {"performer.projection_matrix", "performer.rotary_table.table"}
    assert {row.tolerance for row in rows} == {"exact"}
    assert_all_pass(rows)


@pytest.mark.parametrize("case", CASES)
def test_our_own_constants_keep_the_model_within_their_bound(ladder, case):
    (row,) = pick(ladder, "model", case=f"{case} recorded", quantity="output with our own constants")
    assert row.limit == TABLE["own_constants"].limit
    assert_all_pass([row])

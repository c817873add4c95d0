"""Rung 1: every tensor of the checkpoint is in the port, bit for bit, and every tensor of the port comes from it."""

import pytest

from parity.pairs.epibert_run import load_case, model_tensors
from tests.suites.rungs import CASES, assert_all_pass, assert_gate, pick
from torch_impl import EpiBERT


def test_the_rung_is_proven(ladder):
    assert_gate(ladder, "weights")


@pytest.mark.parametrize("reference", ["recorded", "live"])
@pytest.mark.parametrize("case", CASES)
def test_it_covers_both_sides_completely(ladder, goldens, case, reference):
    config, checkpoint = load_case(goldens / case)
    rows = pick(ladder, "weights", case=f"{case} {reference}")
    constants = {"performer.projection_matrix", "performer.rotary_table.table", "performer._extra_state"}
    assert {row.port for row in rows} == set(EpiBERT(config).state_dict()) - constants
    assert {row.reference for row in rows} == set(model_tensors(checkpoint, config))
    assert_all_pass(rows)
    assert {row.tolerance for row in rows} == {"exact"}

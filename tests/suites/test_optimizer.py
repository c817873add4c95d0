"""Rung 8: steps of the optimizers along given gradients, what they moved and both moments, and the schedule."""

import pytest

from parity.pairs.epibert_run import FINETUNING_CASE, load_case
from parity.pairs.epibert_training.live_pair import STATE_STEPS
from parity.pairs.epibert_training.live_training import OPTIMIZER_RUNS
from parity.pairs.epibert_training.recorded_training import RECORDED_STEPS, RECORDED_VARIANTS
from parity.pairs.epibert_training.tensors import tensor_pairs
from parity.training import MOMENTS, SCHEDULE
from tests.suites.rungs import assert_all_pass, assert_gate, pick
from weights.table import RAMPAGE_TABLE, TABLE


def parameters(goldens, case: str, table=TABLE) -> set[str]:
    config, _ = load_case(goldens / case)
    return {pair.port for pair in tensor_pairs(config, table) if pair.trainable}


def test_the_rung_is_proven(ladder):
    assert_gate(ladder, "optimizer")


@pytest.mark.parametrize(("optimizer", "scale"), OPTIMIZER_RUNS)
def test_every_tensor_after_the_first_and_the_last_step(ladder, goldens, optimizer, scale):
    rows = pick(ladder, "optimizer", case=f"P1 live, {optimizer}, gradients of size {scale:g}")
    expected = parameters(goldens, "P1")
    for step in STATE_STEPS:
        for quantity in ("change", *MOMENTS):
            assert {row.port for row in rows if row.quantity == f"{quantity} after step {step}"} == expected
    assert_all_pass(rows)


@pytest.mark.parametrize(("case", "table"), [("P1", TABLE), (FINETUNING_CASE, RAMPAGE_TABLE)])
def test_every_recorded_weight_and_slot(ladder, goldens, case, table):
    expected = parameters(goldens, case, table)
    for variant in RECORDED_VARIANTS[case]:
        rows = pick(ladder, "optimizer", case=f"{case} recorded, {variant.name}")
        for step in RECORDED_STEPS:
            found = [row for row in rows if row.quantity.endswith(f"after step {step}")]
            assert {row.port for row in found if not row.quantity.startswith("exp_")} == expected
        slots = {(row.port, row.quantity.partition(" ")[0]) for row in rows if row.quantity.startswith("exp_")}
        recorded = variant.name in ("poisson", "poisson_multinomial")
        assert slots == ({(name, moment) for name in expected for moment in MOMENTS} if recorded else set())
        assert_all_pass(rows)


def test_the_schedule_of_the_living_reference_and_the_recorded_ones(ladder):
    rows = pick(ladder, "optimizer", case="P1 live", layer=SCHEDULE)
    assert [row.quantity.partition(", ")[2] for row in rows] == ["warm-up, decay, floor", "constant after the warm-up"]
    assert_all_pass(rows)
    rows = pick(ladder, "optimizer", case="functions recorded", layer=SCHEDULE)
    assert len(rows) == 7
    assert_all_pass(rows)

"""Rung 9: what whole training steps leave behind beside the weights: BatchNorm statistics, counters, learning rates."""

import pytest

from parity.pairs.epibert_run import FINETUNING_CASE, load_case
from parity.pairs.epibert_training.live_pair import STATE_STEPS
from parity.pairs.epibert_training.recorded_training import RECORDED_STEPS, RECORDED_VARIANTS
from parity.pairs.epibert_training.tensors import tensor_pairs
from tests.suites.rungs import assert_all_pass, assert_gate, pick
from weights.table import RAMPAGE_TABLE, TABLE


def statistics(goldens, case: str, table=TABLE) -> set[str]:
    config, _ = load_case(goldens / case)
    return {pair.port for pair in tensor_pairs(config, table) if not pair.trainable}


def test_the_rung_is_proven(ladder):
    assert_gate(ladder, "state")


@pytest.mark.parametrize("step", STATE_STEPS)
def test_every_statistic_and_counter_of_the_living_reference(ladder, goldens, step):
    rows = [row for row in pick(ladder, "state", case="P1 live") if row.quantity.endswith(f"step {step}")]
    assert {row.port for row in rows if row.port} == statistics(goldens, "P1")
    others = {row.quantity for row in rows if not row.port}
    assert others == {f"step counters at step {step}", f"learning rates at step {step}"}
    assert_all_pass(rows)


@pytest.mark.parametrize(("case", "table"), [("P1", TABLE), (FINETUNING_CASE, RAMPAGE_TABLE)])
def test_every_recorded_statistic_and_the_loss_of_every_step(ladder, goldens, case, table):
    for variant in RECORDED_VARIANTS[case]:
        rows = pick(ladder, "state", case=f"{case} recorded, {variant.name}")
        for step in RECORDED_STEPS:
            found = {row.port for row in rows if row.quantity.endswith(f"after step {step}")}
            assert found == statistics(goldens, case, table)
        assert [row.shape for row in rows if row.quantity == "loss of every step"] == [(max(RECORDED_STEPS),)]
        assert_all_pass(rows)

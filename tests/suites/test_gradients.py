"""Rung 7: the gradient by every parameter and every activation, in training mode, dropout on."""

import pytest

from parity import Reading
from parity.pairs import epibert
from parity.pairs.epibert_run import FINETUNING_CASE, load_case
from parity.pairs.epibert_training.live_pair import training_config
from parity.pairs.epibert_training.recorded_training import RECORDED_VARIANTS
from parity.pairs.epibert_training.tensors import tensor_pairs, zero_gradients
from tests.suites.rungs import CASES, assert_all_pass, assert_gate, pick
from weights.table import RAMPAGE_TABLE, TABLE

READINGS = (Reading.ISOLATED, Reading.ACCUMULATED)


def names(rows) -> set[str]:
    return {row.port for row in rows if row.quantity.startswith("gradient") and " by " not in row.quantity}


def parameters(goldens, case: str, table=TABLE) -> set[str]:
    config, _ = load_case(goldens / case)
    return {pair.port for pair in tensor_pairs(config, table) if pair.trainable}


def test_the_rung_is_proven(ladder):
    assert_gate(ladder, "gradients")


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("case", CASES)
def test_every_parameter_of_the_living_reference(ladder, goldens, case, reading):
    rows = pick(ladder, "gradients", case=f"{case} live", precision="float64", reading=reading)
    assert names(rows) == parameters(goldens, case)
    assert_all_pass(rows)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("case", CASES)
def test_every_activation_of_the_living_reference(ladder, goldens, case, reading):
    rows = pick(ladder, "gradients", case=f"{case} live", precision="float64", reading=reading)
    config, _ = load_case(goldens / case)
    pairs = [pair for pair in epibert.layer_map(training_config(config)) if not pair.alias]
    outputs = {row.reference.partition("@")[0] for row in rows if row.quantity == "gradient by output"}
    inputs = {row.reference.partition("@")[0] for row in rows if row.quantity.startswith("gradient by input")}
    assert outputs == {pair.reference for pair in pairs}
    assert inputs == {pair.reference for pair in pairs if pair.inputs}
    assert_all_pass(rows)


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_in_float32(ladder, goldens, case):
    rows = pick(ladder, "gradients", case=f"{case} live", precision="float32")
    config, _ = load_case(goldens / case)
    assert names(rows) == parameters(goldens, case) - set(zero_gradients(config))
    assert_all_pass(rows)


@pytest.mark.parametrize(("case", "table"), [("P1", TABLE), (FINETUNING_CASE, RAMPAGE_TABLE)])
def test_every_recorded_parameter(ladder, goldens, case, table):
    for variant in RECORDED_VARIANTS[case]:
        rows = pick(ladder, "gradients", case=f"{case} recorded, {variant.name}")
        assert names(rows) == parameters(goldens, case, table)
        assert_all_pass(rows)


@pytest.mark.parametrize("case", CASES)
def test_gradients_that_are_zero_in_theory_are_so_on_both_sides(ladder, goldens, case):
    rows = pick(ladder, "gradients", case=f"{case} live", precision="float64", tolerance="zero_gradient")
    config, _ = load_case(goldens / case)
    expected = set(zero_gradients(config))
    for side in ("port", "reference"):
        assert {row.port for row in rows if f"of the {side}" in row.quantity} == expected

"""The whole ladder of the fine-tuning model: two heads, two optimizers; recorded and living, rung by rung.

Climbing it takes as long as that of pre-training, so it is climbed by ``make slow``, and by
``epibert parity --config rampage_tiny`` on demand.
"""

import pytest

from parity import Reading
from parity.ladder import CONVERGENCE, GATES
from parity.ledger import Ledger, NotProven
from parity.pairs import epibert
from parity.pairs.epibert_run import FINETUNING, FINETUNING_CASES, load_case, model_tensors
from parity.pairs.epibert_training.live_functions import LOSS_TYPES
from parity.pairs.epibert_training.live_pair import STATE_STEPS, training_config
from parity.pairs.epibert_training.live_training import OPTIMIZER_RUNS, TRAJECTORY_STEPS
from parity.pairs.epibert_training.recipes import FINETUNING_SCHEDULES
from parity.pairs.epibert_training.recorded_training import RECORDED_VARIANTS
from parity.pairs.epibert_training.tensors import tensor_pairs, zero_gradients
from parity.reference import read_goldens
from parity.training import GROUPS, LOSS, METRIC, MOMENTS, SCHEDULE
from tests.suites.rungs import MODES, PRECISIONS, assert_all_pass, assert_gate, layers_read, pick
from torch_impl import EpiBERTRampage
from weights.table import RAMPAGE_TABLE

pytestmark = pytest.mark.slow

HEADS = {"R1": ("final_atac", "final_rna"), "R2": ("final_rna",)}
"""Outputs of each case."""


def parameters(goldens, case: str) -> set[str]:
    config, _ = load_case(goldens / case)
    return {pair.port for pair in tensor_pairs(config, RAMPAGE_TABLE) if pair.trainable}


@pytest.mark.parametrize("gate", GATES[: GATES.index(CONVERGENCE)])
def test_the_rung_is_proven(rampage_ladder, gate):
    assert_gate(rampage_ladder, gate)


def test_the_whole_ladder_is_proven_and_entered_apart_from_that_of_pretraining(rampage_ladder, tmp_path):
    assert rampage_ladder.passed
    assert rampage_ladder.culprits == ()
    assert rampage_ladder.pair == "EpiBERTRampage"
    Ledger(subject=FINETUNING).require(GATES[: GATES.index(CONVERGENCE)])
    with pytest.raises(NotProven, match=f"epibert parity --config {FINETUNING}"):
        Ledger(tmp_path, subject=FINETUNING).require(("weights",))


@pytest.mark.parametrize("reference", ["recorded", "live"])
@pytest.mark.parametrize("case", FINETUNING_CASES)
def test_every_tensor_of_both_sides_is_compared(rampage_ladder, goldens, case, reference):
    config, checkpoint = load_case(goldens / case)
    rows = pick(rampage_ladder, "weights", case=f"{case} {reference}")
    constants = {"performer.projection_matrix", "performer.rotary_table.table", "performer._extra_state"}
    assert {row.port for row in rows} == set(EpiBERTRampage(config).state_dict()) - constants
    assert {row.reference for row in rows} == set(model_tensors(checkpoint, config))
    assert {row.tolerance for row in rows} == {"exact"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", FINETUNING_CASES)
def test_every_layer_of_the_living_reference(rampage_ladder, goldens, case, precision, mode):
    config, _ = load_case(goldens / case)
    layers = {pair.reference for pair in epibert.layer_map(config, rampage=True)}
    for gate, reading in (("layers", Reading.ISOLATED), ("model", Reading.ACCUMULATED)):
        rows = pick(rampage_ladder, gate, case=f"{case} live", precision=precision, mode=mode)
        called = layers_read(rows, reading)
        outputs = {row.quantity for row in rows if row.reference == "" and row.reading is reading}
        assert outputs >= set(HEADS[case])
        assert {name.partition("@")[0] for name in called} | {""} == layers
        # The layers that the heads have in common are called once by each.
        assert {name for name in called if "@" in name} >= {
            f"{name}@1" for name in ("dropout", "gelu", "crop_final") if case == "R1"
        }


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", FINETUNING_CASES)
def test_every_recorded_layer_and_output(rampage_ladder, goldens, case, precision):
    rows = [
        row
        for gate in ("layers", "blocks")
        for row in pick(rampage_ladder, gate, case=f"{case} recorded", precision=precision)
    ]
    recording = read_goldens(goldens / case / "forward.h5", name=case)
    recorded = {f"{path}@{call}" if call else path for path, call in recording.traces[precision].calls}
    assert layers_read(rows, Reading.ACCUMULATED) == recorded
    for mode in MODES:
        rows = pick(rampage_ladder, "model", case=f"{case} recorded", precision=precision, mode=mode, reference="")
        assert {row.quantity for row in rows} >= set(HEADS[case])


@pytest.mark.parametrize("case", FINETUNING_CASES)
def test_both_outputs_of_a_port_that_nobody_watches(rampage_ladder, case):
    rows = pick(rampage_ladder, "model", case=f"{case} live", reading=Reading.ACCUMULATED, precision="float64")
    found = [row for row in rows if row.quantity.endswith(", unwatched")]
    assert {row.quantity for row in found} == {f"{name}, unwatched" for name in HEADS[case]}
    assert {row.mode for row in found} == set(MODES)


def test_every_loss_and_metric_that_fine_tuning_has_alone(rampage_ladder):
    rows = pick(rampage_ladder, "losses", case="functions live")
    losses = [row for row in rows if row.layer == LOSS and "rna" in row.quantity]
    # Three samples; both heads: three values and two gradients; the RNA head alone: two values and a gradient.
    assert len(losses) == 3 * len(LOSS_TYPES) * (3 + 2 + 2 + 1)
    genes = [row for row in rows if row.layer == METRIC and ("gene" in row.quantity or "cell" in row.quantity)]
    assert len(genes) == 4 * 4


@pytest.mark.parametrize("case", FINETUNING_CASES)
def test_every_gradient_of_the_living_reference(rampage_ladder, goldens, case):
    config, _ = load_case(goldens / case)
    expected = parameters(goldens, case)
    for precision, missing in (("float64", set()), ("float32", set(zero_gradients(config)))):
        rows = pick(rampage_ladder, "gradients", case=f"{case} live", precision=precision)
        named = {row.port for row in rows if row.quantity.startswith("gradient") and " by " not in row.quantity}
        assert named == expected - missing
    pairs = [pair for pair in epibert.layer_map(training_config(config), rampage=True) if not pair.alias]
    rows = pick(rampage_ladder, "gradients", case=f"{case} live", precision="float64", reading=Reading.ISOLATED)
    inputs = {row.reference.partition("@")[0] for row in rows if row.quantity.startswith("gradient by input")}
    assert inputs == {pair.reference for pair in pairs if pair.inputs}


def test_every_recorded_gradient_weight_and_slot(rampage_ladder, goldens):
    expected = parameters(goldens, "R1")
    for variant in RECORDED_VARIANTS["R1"]:
        case = f"R1 recorded, {variant.name}"
        rows = pick(rampage_ladder, "gradients", case=case)
        assert {row.port for row in rows if row.port} == expected
        rows = pick(rampage_ladder, "optimizer", case=case)
        assert {row.port for row in rows if row.port} == expected
        slots = {(row.port, row.quantity.partition(" ")[0]) for row in rows if row.quantity.startswith("exp_")}
        both = {(name, moment) for name in expected for moment in MOMENTS}
        assert slots == (both if not variant.name.endswith("adamw") else set())


def test_training_that_was_not_recorded_is_named(rampage_ladder):
    """R2 has goldens of forward passes alone: its losses and gradients are compared with the living reference."""
    named = {(row.side, row.name) for row in rampage_ladder.not_compared}
    assert ("R2 recorded", "training") in named
    assert ("R1 recorded", "training") not in named
    for gate in ("losses", "gradients", "optimizer"):
        assert not [row for row in rampage_ladder.gates[gate].comparisons if row.case.startswith("R2 recorded")]
    assert pick(rampage_ladder, "gradients", case="R2 live")


@pytest.mark.parametrize(("optimizer", "scale"), OPTIMIZER_RUNS)
def test_every_tensor_after_steps_of_both_optimizers(rampage_ladder, goldens, optimizer, scale):
    rows = pick(rampage_ladder, "optimizer", case=f"R1 live, {optimizer}, gradients of size {scale:g}")
    for step in STATE_STEPS:
        for quantity in ("change", *MOMENTS):
            found = {row.port for row in rows if row.quantity == f"{quantity} after step {step}"}
            assert found == parameters(goldens, "R1")
        for quantity in ("step counters", "learning rates"):
            (row,) = [row for row in rows if row.quantity == f"{quantity} at step {step}"]
            assert row.shape == (2,)
    assert_all_pass(rows)


def test_both_schedules_are_compared_and_differ(rampage_ladder):
    rows = pick(rampage_ladder, "optimizer", case="R1 live", layer=SCHEDULE)
    assert {row.quantity for row in rows} == {
        "learning rates, warm-up, decay, floor",
        "learning rates, constant after the warm-up",
    }
    for row in rows:
        assert row.shape is not None
        assert row.shape[-1] == len(FINETUNING_SCHEDULES) == 2
    assert_all_pass(rows)
    assert len({arguments["peak"] for arguments in FINETUNING_SCHEDULES}) == 2


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_every_step_of_the_trajectory(rampage_ladder, precision):
    rows = pick(rampage_ladder, "trajectory", case="R1 live", precision=precision)
    steps = range(1, TRAJECTORY_STEPS + 1)
    assert [row.quantity for row in rows] == [
        f"{quantity} at step {step}" for step in steps for quantity in ("loss", *GROUPS)
    ]
    assert_all_pass(rows)

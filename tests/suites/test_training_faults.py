"""Mistakes that only training shows, injected one by one: the rung meant for each turns red and names who is at fault.

The forward rungs run without dropout, loss or optimizer, so they accept all of these but the two of BatchNorm's
statistics, which a forward pass in training mode shows as well. The mistakes are those of
``parity.pairs.epibert_faults``.
"""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from parity import Comparison, Reading, Status
from parity.attack.fault import Fault, injected
from parity.ladder import TRAINING_GATES, compare_live
from parity.pairs import epibert
from parity.pairs.epibert_faults import optimizers
from parity.pairs.epibert_faults.bench import STEPS, Bench
from parity.pairs.epibert_faults.catalogue import CATALOGUE
from parity.pairs.epibert_faults.optimizers import PlainAdam, Rule
from parity.pairs.epibert_faults.subject import FINETUNING, PRETRAINING, Subject
from parity.pairs.epibert_faults.training import raises
from parity.pairs.epibert_run import load_case
from parity.pairs.epibert_training import live_training, recorded_functions, recorded_training
from parity.pairs.epibert_training.live_pair import LivePair
from parity.pairs.epibert_training.parts import PORT, PortTraining
from parity.records import GateStatus
from parity.reference import read_goldens
from parity.second_look import SURE
from parity.tolerances import TABLE
from parity.torch_training import TorchTraining
from parity.training import LOSS, METRIC, OPTIMIZER, SCHEDULE, Backward, Snapshot
from torch_impl import EpiBERTRampage
from weights import transplant

SEEN_BY_STATE_TOO = ("unbiased running variance of all norms", "momentum 0.9 of all norms")
"""The layers' rung finds these first, in a pass in training mode; here they are looked for in a run."""

FLOAT32 = tuple(fault.name for fault in CATALOGUE.values() if fault.source == "precision")
CHOSEN = {
    fault.name: fault for fault in CATALOGUE.values() if fault.rung in TRAINING_GATES and fault.name not in FLOAT32
} | {name: dataclasses.replace(CATALOGUE[name], rung="state") for name in SEEN_BY_STATE_TOO}

STAGES = {
    "losses": ("losses and metrics",),
    "gradients": ("losses and metrics", "gradients"),
    "optimizer": ("losses and metrics", "gradients", "optimizer steps"),
    # State and trajectory stand on long runs; the rungs before them that a fault cannot touch are not climbed again.
    "state": ("gradients", "state"),
    "trajectory": ("state", "trajectory"),
}


QUICK = (
    *SEEN_BY_STATE_TOO,
    "decay on biases and norms",
    "decay not scaled by the learning rate",
    "decay to zero",
    "dropout scale missing",
    "masks that come again after six steps",
    "moment in the neighbour's slot",
    "schedule off by one",
    "squared correlation for the coefficient of determination",
    "straight-through ReLU",
    "the same mask at every step",
)
"""Beside the specification's traps; the others are run with the slow tests, and by ``epibert attack``."""


def faults(case: str) -> list[Any]:
    return [
        pytest.param(fault, id=name, marks=() if fault.source.startswith("trap") or name in QUICK else pytest.mark.slow)
        for name, fault in CHOSEN.items()
        if fault.case == case
    ]


def assert_sound(bench: Bench) -> None:
    stages = tuple(dict.fromkeys(stage for names in STAGES.values() for stage in names))
    found = bench.judge(None, stages=stages)
    assert {name: gate.status for name, gate in found.gates.items()} == dict.fromkeys(TRAINING_GATES, GateStatus.PASSED)


def assert_found(bench: Bench, fault: Fault) -> None:
    found = bench.judge(fault, stages=STAGES[fault.rung])
    red = [name for name, gate in found.gates.items() if gate.status is GateStatus.FAILED]
    assert red == [fault.rung], {name: gate.reason for name, gate in found.gates.items()}
    assert fault.names(found.named), found.named


def test_a_port_without_a_fault_passes_all_training_rungs(bench):
    assert_sound(bench)


@pytest.mark.parametrize("fault", faults(PRETRAINING))
def test_the_rung_meant_for_a_fault_turns_red_and_names_who_is_at_fault(bench, fault):
    assert_found(bench, fault)


@pytest.mark.slow
def test_a_fine_tuning_port_without_a_fault_passes_all_training_rungs(rampage_bench):
    assert_sound(rampage_bench)


@pytest.mark.slow
@pytest.mark.parametrize("fault", faults(FINETUNING))
def test_a_fault_of_fine_tuning_turns_its_rung_red_and_names_who_is_at_fault(rampage_bench, fault):
    assert_found(rampage_bench, fault)


@pytest.mark.parametrize("name", ["dropout scale missing", "the same mask at every step"])
def test_forward_rungs_accept_faults_of_dropout(bench, name):
    with injected(CATALOGUE[name], bench.subject()) as subject:
        rows = list(compare_live(epibert.watch(subject.port), bench.live, bench.layer_map))
    assert {row.reading for row in rows} >= {Reading.ISOLATED, Reading.BLOCK, Reading.ACCUMULATED}
    assert {row.status for row in rows} == {Status.PASS}


def test_adam_line_by_line_is_right_until_something_about_it_is_wrong(bench):
    """So that each fault made of it is wrong in one thing."""
    subject = bench.subject(training=True)
    subject.training = with_parts(**optimizers.by())
    pair = bench.training_pair.of(subject.port, subject.training)
    assert isinstance(subject.training.adam(subject.port)[0], PlainAdam)
    assert Rule().rounded_betas
    assert {row.status for row in live_training.live_steps(pair)} == {Status.PASS}


# --- functions, recorded: no living reference is needed --------------------------------------------------------------

RECORDED = {
    # A prediction of zero shows it in float32 as well.
    "epsilon twice in Poisson's logarithm": {(LOSS, "float64"), (LOSS, "float32")},
    "multinomial that never rescales": {(LOSS, "float64"), (LOSS, "float32")},
    "loss of narrow predictions": {(LOSS, "float32")},
    "multinomial loss of narrow predictions": {(LOSS, "float32")},
    "narrow sums in the metrics": {(METRIC, "float32")},
    "a loss that raises": {(LOSS, "float64"), (LOSS, "float32")},
    "a metric that cannot be made": {(METRIC, "float32")},
    "a schedule that raises": {(SCHEDULE, "float64")},
}


def with_parts(**parts: Any) -> PortTraining:
    return dataclasses.replace(PORT, **parts)


def training_of(name: str) -> PortTraining:
    """What trains the port, with this fault."""
    subject = Subject(pytest.fail)
    CATALOGUE[name].inject(subject)
    return subject.training


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_functions_find_a_fault_and_say_whose_it_is(goldens, name):
    training = training_of(name)
    rows = list(recorded_functions.compare_recorded_functions(goldens / "functions.h5", training, case="functions"))
    failing = {(row.layer, row.precision) for row in rows if row.status is not Status.PASS}
    assert failing == RECORDED[name]


def recorded_finetuning_failures(goldens: Path, training: PortTraining) -> list[Comparison]:
    """What the recorded training finds wrong with these parts."""
    config, checkpoint = load_case(goldens / "R1")
    recording = read_goldens(goldens / "R1" / "forward.h5", name="recorded")
    port = EpiBERTRampage(config)
    transplant(checkpoint, port, constants=(*epibert.recorded_constants(recording), recording.name))
    rows = recorded_training.compare_recorded_training(
        port,
        recorded_training.RECORDED_VARIANTS["R1"][0],
        goldens / "R1" / "train.h5",
        epibert.recorded_inputs(recording),
        recorded_training.recorded_targets(recording),
        training=training,
        case="R1",
    )
    return [row for row in rows if row.status is not Status.PASS]


@pytest.mark.parametrize("name", ["losses of both heads weigh alike", "a loss of both heads that raises"])
def test_the_recorded_training_of_the_fine_tuning_model_finds_a_fault_of_its_loss(goldens, name):
    failing = recorded_finetuning_failures(goldens, training_of(name))
    assert {row.layer for row in failing if row.gate == "losses"} == {LOSS}


@pytest.mark.parametrize("name", ["one clip over both optimizers", "the ATAC head trained by the RNA head's optimizer"])
def test_the_recorded_training_of_the_fine_tuning_model_finds_a_fault_of_its_optimizers(goldens, name):
    failing = recorded_finetuning_failures(goldens, training_of(name))
    assert {row.layer for row in failing if row.gate == "optimizer"} == {OPTIMIZER}
    assert not {row.gate for row in failing} & {"losses", "gradients"}


# --- float32, live ---------------------------------------------------------------------------------------------------


def test_a_loss_that_is_wrong_in_float32_alone_is_found_by_the_gradients(bench):
    name = "masked loss of narrow predictions"
    faulty = bench.training_pair.of(bench.port(training=True), training_of(name))
    rows = list(live_training.live_gradients(faulty))
    assert {row.precision for row in rows if row.status is not Status.PASS} == {"float32"}
    sound = list(live_training.live_gradients(bench.training_pair.of(bench.port(training=True))))
    assert {row.status for row in sound} == {Status.PASS}


@pytest.mark.slow
def test_moments_that_are_wrong_in_float32_alone_are_found_by_the_trajectory(bench):
    found = {}
    for name, training in (("sound", PORT), ("narrow", training_of("narrow moments"))):
        pair = bench.training_pair.of(bench.port(training=True), training)
        rows = list(live_training.live_runs(pair, "float32", STEPS))
        found[name] = [row for row in rows if row.status is not Status.PASS]
    assert found["sound"] == []
    assert any(row.quantity.startswith("exp_avg at") for row in found["narrow"])


BY_CHANCE = pytest.mark.parametrize("always", [False, True], ids=["by chance", "always"])
TENSOR = "conv_tower.3.block.conv.weight"


@pytest.mark.slow
@BY_CHANCE
def test_a_gradient_off_in_float32_is_measured_on_other_batches(bench, monkeypatch, always):
    pair = bench.training_pair.of(bench.port(training=True))
    (before,) = (row for row in float32_gradients(pair) if row.port == TENSOR)
    gradients = TorchTraining.gradients

    def moved(self: Any, *arguments: Any, **options: Any) -> Backward:
        found = gradients(self, *arguments, **options)
        factor = 1 + 2 * (before.limit or 0.0) * (always or self.draws.step == 0)
        return dataclasses.replace(found, parameters={**found.parameters, TENSOR: found.parameters[TENSOR] * factor})

    monkeypatch.setattr(TorchTraining, "gradients", moved)
    (row,) = (row for row in float32_gradients(pair) if row.looks)
    assert_judged(row, before, always=always)


@pytest.mark.slow
@BY_CHANCE
def test_a_trajectory_off_in_float32_is_measured_on_runs_of_other_batches(bench, monkeypatch, always):
    pair = bench.training_pair.of(bench.port(training=True))

    def rows() -> list[Comparison]:
        return list(live_training.live_runs(pair, "float32", 1, draws=1))

    (before,) = (row for row in rows() if row.quantity == "exp_avg at step 1")
    run = TorchTraining.run

    def moved(self: Any, *arguments: Any, **options: Any) -> list[Snapshot]:
        (found,) = run(self, *arguments, **options)
        factor = 1 + 2 * (before.limit or 0.0) * (always or self.draws.step == 0)
        return [dataclasses.replace(found, exp_avg={name: factor * array for name, array in found.exp_avg.items()})]

    monkeypatch.setattr(TorchTraining, "run", moved)
    (row,) = (row for row in rows() if row.looks)
    assert_judged(row, before, always=always)


def float32_gradients(pair: LivePair) -> list[Comparison]:
    return list(live_training.live_gradients(pair, precisions=("float32",)))


@pytest.mark.parametrize("right", [True, False])
def test_what_fails_is_measured_again_only_where_float64_was_right(monkeypatch, right):
    looked = []

    def rows(*_: Any, precision: str, **__: Any) -> list[Any]:
        return [SimpleNamespace(status=Status.PASS if right and precision == "float64" else Status.FAIL)]

    def look_again(found: Any, _: Any, moved: Any) -> Any:
        looked.append(found)
        assert len(list(moved(1))) == live_training.MOVED
        return found

    monkeypatch.setattr(live_training, "compare_gradients", rows)
    monkeypatch.setattr(live_training, "look_again", look_again)
    pair = MagicMock(batch=lambda _: (None, None))
    found = list(live_training.live_gradients(pair))
    assert len(found) == 3
    assert looked == ([(found[-1],)] if right else [])
    perturbed = [call.kwargs["perturbed"] for call in pair.gradients.mock_calls if call.kwargs]
    assert perturbed == (list(range(live_training.MOVED)) if right else [])


@pytest.mark.parametrize(("state", "again"), [(True, True), (False, True), (True, False)])
def test_a_trajectory_is_measured_again_only_where_the_port_was_right_before(monkeypatch, state, again):
    looked = []

    def look_again(found: Any, _: Any, moved: Any) -> Any:
        looked.append(found)
        assert len(list(moved(1))) == live_training.MOVED
        return found

    trajectory = SimpleNamespace(status=Status.FAIL)
    monkeypatch.setattr(live_training, "compare_state", lambda *_, **__: [rung("state", passes=state)])
    monkeypatch.setattr(live_training, "compare_trajectory", lambda *_, **__: [trajectory])
    monkeypatch.setattr(live_training, "look_again", look_again)
    pair = MagicMock()
    found = list(live_training.live_runs(pair, "float64", 1, again=again))
    assert found[-1] is trajectory
    assert looked == ([(trajectory,)] if state and again else [])
    perturbed = [call.kwargs.get("perturbed") for call in pair.run.mock_calls if call.kwargs.get("number") == 1]
    first, more = live_training.TRAJECTORY_DRAWS, live_training.MOVED
    assert perturbed == (list(range(first, first + more)) if looked else [])


@pytest.mark.parametrize("wrong", ["gradients", "optimizer", "state", None])
def test_runs_that_follow_a_wrong_rung_are_not_measured_again(monkeypatch, wrong):
    asked = []

    def live_runs(_: Any, precision: str, *__: Any, again: bool, **___: Any) -> list[Any]:
        asked.append((precision, again))
        return [rung("state", passes=wrong != "state")]

    monkeypatch.setattr(live_training, "LivePair", MagicMock())
    monkeypatch.setattr(live_training, "training_config", lambda config: config)
    for gate, name in (("gradients", "live_gradients"), ("optimizer", "live_steps")):
        rows = [rung(gate, passes=wrong != gate)]
        monkeypatch.setattr(live_training, name, lambda *_, rows=rows, **__: rows)
    monkeypatch.setattr(live_training, "live_runs", live_runs)
    rows = list(live_training.compare_live_training(MagicMock(), {}, MagicMock(), gates=TRAINING_GATES))
    assert len(rows) == 4
    assert asked == [("float64", wrong in ("state", None)), ("float32", wrong is None)]


def rung(gate: str, *, passes: bool) -> Any:
    return SimpleNamespace(gate=gate, status=Status.PASS if passes else Status.FAIL)


def assert_judged(row: Comparison, before: Comparison, *, always: bool) -> None:
    """It is the row that was moved, looked at again, and judged by all looks."""
    assert (row.port, row.quantity, before.status) == (before.port, before.quantity, Status.PASS)
    assert row.status is (Status.FAIL if always else Status.PASS)
    assert len(row.looks) == 1 + (SURE if always else TABLE[row.tolerance].looks)
    assert row.looks[0].error > (before.limit or 0.0)


@pytest.mark.parametrize("part", ["adam", "schedule"])
def test_a_part_that_raises_is_a_finding(bench, part):
    pair = bench.training_pair.of(bench.port(training=True), with_parts(**{part: raises}))
    rows = list(live_training.live_runs(pair, "float64", STEPS, draws=1, with_trajectory=False))
    assert rows
    assert {row.status for row in rows} == {Status.MISSING}
    assert all("no such thing" in row.detail for row in rows)
    steps = list(live_training.live_steps(pair, runs=(("adam", 1.0),)))
    assert any("no such thing" in row.detail for row in steps if row.status is Status.MISSING)

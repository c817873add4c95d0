"""Mistakes of the forward pass and of the mapping, injected one by one: the right rung turns red and names the layer.

The mistakes are those of ``parity.pairs.epibert_faults``; ``epibert attack`` judges all of them by the whole ladder.
"""

import dataclasses
from typing import Any

import pytest

from parity import GateStatus, Status
from parity.attack.fault import Fault, Kind, injected
from parity.ladder import compare_live, find_culprits
from parity.pairs import epibert
from parity.pairs.epibert_faults.bench import Bench
from parity.pairs.epibert_faults.catalogue import CATALOGUE
from parity.pairs.epibert_faults.model import ATTENTION, norm_in_its_inputs_precision
from parity.pairs.epibert_faults.subject import FINETUNING, PRETRAINING, Subject, set_forward
from parity.pairs.epibert_run import load_case
from parity.reference import LiveReference, read_goldens
from torch_impl import EpiBERTRampage
from weights import transplant

FORWARD_STAGES = (
    "weights, constants and layers",
    "layers in training mode",
    "layers with drawn weights",
)
"""Of float64; roundings are looked at by tests of their own."""

SECOND_NORM = "performer.layers.1.norm"
SEEN_BY_ROUNDING = "LayerNorm in the precision of its input"
WITHOUT_EFFECT = ("rotary table of another library",)
"""What changes no number of a table as short as this, and so cannot be found; ``epibert attack`` measures it."""

FAULTS = [
    fault
    for fault in CATALOGUE.values()
    if fault.kind in (Kind.MODEL, Kind.CONSTANTS, Kind.MAPPING)
    and fault.rung in ("weights", "constants", "layers")
    and fault.name not in (SEEN_BY_ROUNDING, *WITHOUT_EFFECT)
]


QUICK = ("two norms of one shape swapped", "table takes query for key")
"""Beside the specification's traps; the others are run with the slow tests, and by ``epibert attack``."""


def faults(case: str) -> list[Any]:
    return [
        pytest.param(
            fault,
            id=fault.name,
            marks=() if fault.source.startswith("trap") or fault.name in QUICK else pytest.mark.slow,
        )
        for fault in FAULTS
        if fault.case == case
    ]


def assert_located(bench: Bench, fault: Fault) -> None:
    found = bench.judge(fault, stages=FORWARD_STAGES)
    names = ["weights", "constants", "layers"]
    before, after = names[: names.index(fault.rung)], names[names.index(fault.rung) + 1 :]
    assert [found.gates[name].status for name in before] == [GateStatus.PASSED] * len(before)
    assert found.gates[fault.rung].status is GateStatus.FAILED
    assert [found.gates[name].status for name in after] == [GateStatus.BLOCKED] * len(after)
    assert found.named == fault.named
    assert all(culprit.certain for culprit in found.culprits)


@pytest.mark.parametrize("fault", faults(PRETRAINING))
def test_a_fault_turns_its_rung_red_and_is_located(bench, fault):
    assert_located(bench, fault)


@pytest.mark.slow
@pytest.mark.parametrize("fault", faults(FINETUNING))
def test_a_fault_of_the_fine_tuning_model_is_located(rampage_bench, fault):
    assert_located(rampage_bench, fault)


def assert_proven(bench: Bench) -> None:
    found = bench.judge(None, stages=(*FORWARD_STAGES, "blocks and model"))
    gates = ("weights", "constants", "layers", "blocks", "model")
    assert {name: gate.status for name, gate in found.gates.items()} == dict.fromkeys(gates, GateStatus.PASSED)
    assert found.culprits == ()


def test_a_port_without_a_fault_is_proven(bench):
    assert_proven(bench)


@pytest.mark.slow
def test_a_fine_tuning_port_without_a_fault_is_proven(rampage_bench):
    assert_proven(rampage_bench)


@pytest.mark.parametrize("name", ["crop of both heads at one end", "one dropout for both heads"])
def test_recorded_numbers_of_the_fine_tuning_model_name_the_first_layer_that_shows_a_fault(goldens, name):
    fault = CATALOGUE[name]
    config, checkpoint = load_case(goldens / FINETUNING)
    recording = read_goldens(goldens / FINETUNING / "forward.h5", name="recorded")
    port = EpiBERTRampage(config)
    transplant(checkpoint, port, constants=(*epibert.recorded_constants(recording), "recorded"))
    assert {row.status for row in epibert.compare_with_recording(port, recording)} == {Status.PASS}
    with injected(fault, Subject(lambda: port)):
        rows = list(epibert.compare_with_recording(port, recording))
    (culprit,) = find_culprits(rows, epibert.layer_map_of(port), model_name="EpiBERTRampage")
    assert (culprit.port,) == fault.named
    assert not culprit.certain


def test_all_of_several_faults_are_named_in_one_pass(bench):
    traps = ("1", "6", "13", "19", "20", "35", "46", "49")
    chosen = [fault for fault in FAULTS if fault.case == PRETRAINING and fault.source.removeprefix("trap ") in traps]
    assert len(chosen) == len(traps)
    subject = bench.subject()
    for fault in chosen:
        fault.inject(subject)
    rows = list(compare_live(epibert.watch(subject.port), bench.live, bench.layer_map, gates=("layers",)))
    culprits = find_culprits(rows, bench.layer_map, model_name="EpiBERT")
    assert {culprit.port for culprit in culprits} == {name for fault in chosen for name in fault.named}


@pytest.mark.parametrize("broken", [False, True])
def test_a_layer_norm_that_computes_in_bfloat16_is_seen_by_its_rounding(bench, broken):
    """Right in float64, so only the comparison of roundings can tell."""
    fault = CATALOGUE[SEEN_BY_ROUNDING]
    models = {precision: bench.reference(precision) for precision in ("float64", "bfloat16")}
    live = LiveReference(models, bench.inputs, bench.layer_map, "living reference")
    with injected(fault if broken else None, bench.subject()) as subject:
        if broken:
            set_forward(SECOND_NORM, norm_in_its_inputs_precision)(subject.port)
        side = epibert.watch(subject.port)
        rows = list(compare_live(side, live, bench.layer_map, gates=("layers",), modes=("evaluation",)))
    failed = {(row.precision, row.layer) for row in rows if row.status is not Status.PASS}
    assert failed == ({("bfloat16", fault.where), ("bfloat16", SECOND_NORM)} if broken else set())


FIRST_RECORDED_TRACE = {
    "erf GELU in a conv block": "conv_tower.1.block.activation",
    "BatchNorm epsilon 1e-3": "stem_res_conv.block.norm",
    "LayerNorm epsilon 1e-6": "performer.layers.1.ffn.norm",
    "softmax over the wrong axis": "conv_tower.5.pool",
    # Nothing between the values and the output projection was recorded.
    "epsilon in the denominator": f"{ATTENTION}.output",
    "erf GELU in the head": "gelu",
}


@pytest.mark.parametrize("name", FIRST_RECORDED_TRACE)
def test_recorded_numbers_name_the_first_layer_that_shows_a_fault(bench, name):
    with injected(CATALOGUE[name], bench.subject()) as subject:
        rows = list(epibert.compare_with_recording(subject.port, bench.recording))
    (culprit,) = find_culprits(rows, bench.layer_map, model_name="EpiBERT")
    assert culprit.port == FIRST_RECORDED_TRACE[name]
    assert not culprit.certain


def test_a_bench_insists_that_a_fault_changes_something(bench):
    nothing = dataclasses.replace(CATALOGUE["no rotation"], inject=lambda subject: None)
    with pytest.raises(ValueError, match="leaves every part as it was"):
        bench.judge(nothing)

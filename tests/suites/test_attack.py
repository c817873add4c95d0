"""The catalogue of faults, and the harness's answer to it: what ``epibert attack`` claims."""

import functools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from parity.attack.campaign import CONFIGURATIONS, run_campaign
from parity.attack.fault import Kind
from parity.attack.sensitivity import OUTPUT, WEIGHTS, measure
from parity.ladder import FORWARD_GATES, GATES, TRAINING_GATES
from parity.pairs import epibert
from parity.pairs.epibert_faults.catalogue import CATALOGUE
from parity.pairs.epibert_faults.clean import Clean, Models, draw_config, judge
from parity.pairs.epibert_faults.effects import Effects
from parity.pairs.epibert_faults.subject import FINETUNING
from parity.pairs.epibert_faults.target import TARGET
from parity.pairs.epibert_run import GOLDENS, load_case
from parity.records import Status
from parity.tolerances import TABLE
from parity.training import LOSS, METRIC, OPTIMIZER, SCHEDULE

TRAPS = {*map(str, range(1, 63)), "18b", "57b"}
"""Rows of the specification's table of porting traps."""

NO_FAULT = {"55": "the real bfloat16 original, which is no port"}


def test_every_trap_of_the_specification_is_in_the_catalogue():
    found = {fault.source.removeprefix("trap ") for fault in CATALOGUE.values() if fault.source.startswith("trap ")}
    assert found == TRAPS - set(NO_FAULT)


def test_there_are_enough_faults_of_every_kind():
    counts = {kind: sum(fault.kind is kind for fault in CATALOGUE.values()) for kind in Kind}
    assert sum(counts.values()) >= 70
    assert min(counts.values()) >= 10


@functools.cache
def layers_of(case: str) -> set[str]:
    config, _ = load_case(GOLDENS / case)
    return {pair.port for pair in epibert.layer_map(config, rampage=case == FINETUNING)}


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_fault_names_rungs_and_layers_that_there_are(name):
    fault = CATALOGUE[name]
    assert fault.rung in GATES
    assert fault.what
    answers = layers_of(fault.case) | {LOSS, METRIC, OPTIMIZER, SCHEDULE, "EpiBERT", "EpiBERTRampage"}
    if fault.kind is not Kind.DATA:
        assert [named for named in fault.named if "*" not in named and named not in answers] == []


@pytest.mark.slow
def test_a_fault_that_survives_changes_nothing_at_all(bench):
    assert Effects(bench).measure(CATALOGUE["rotary table of another library"]).size == 0.0


def test_effects_are_measured_without_the_ladder(bench, monkeypatch):
    monkeypatch.setattr(bench, "judge", pytest.fail)
    effects = Effects(bench)
    small = effects.measure(CATALOGUE["epsilon in the denominator"]).size
    large = effects.measure(CATALOGUE["normaliser omitted"]).size
    assert TABLE["fault_effect"].limit < small < large
    assert effects.measure(CATALOGUE["a schedule that raises"]).size == float("inf")


def test_every_layer_sees_a_small_perturbation_of_its_own_and_none_sees_rounding(bench):
    rows = list(measure(bench.port(), bench.live, bench.layer_map, epibert.set_precision, exponents=(20, 30, 52)))
    assert [row.layer for row in rows] == [pair.port for pair in bench.layer_map if not pair.alias]
    assert {row.exponent for row in rows} == {30}
    assert all(row.monotone for row in rows)
    assert {row.perturbed for row in rows} == {WEIGHTS, OUTPUT}


def test_clean_runs_are_of_many_shapes():
    drawn = [draw_config(number) for number in range(CONFIGURATIONS)]
    assert len({str(config) for config, _ in drawn}) == CONFIGURATIONS
    for field in ("norm", "use_rot_emb", "predict_atac"):
        assert {getattr(config, field) for config, _ in drawn} == {True, False}
    assert {finetuning for _, finetuning in drawn} == {True, False}
    assert len({config.num_heads for config, _ in drawn}) == 3


def test_a_port_without_a_fault_raises_no_alarm(tensorflow):
    found = judge(Clean(2))
    assert (found.alarms, found.second_looks) == ((), ())
    gates = {"weights", "constants", "layers", "blocks", "model", "losses"}
    assert {name.split()[0] for name in found.comparisons} == gates


def test_a_clean_run_with_a_fault_raises_an_alarm(tensorflow):
    clean = Clean(3)
    clean.port.get_submodule("conv_tower.0.block.activation").cubic_coefficient = 0.044715  # type: ignore[assignment]
    alarms = judge(clean).alarms
    assert any(re.match(r"layers float64 .* conv_tower.0.block.activation ", alarm) for alarm in alarms)


def test_every_clean_run_has_weights_of_its_own_in_every_precision(monkeypatch):
    models, assigned = Models(0), []
    lifted = {"float32": SimpleNamespace(assign=assigned.append), "bfloat16": SimpleNamespace(assign=assigned.append)}
    monkeypatch.setattr(Models, "_rounded", lifted)
    for seed in range(2):
        stored = {"weight": np.full(3, seed)}
        assert models.rounded(stored) is lifted
        assert len(assigned) == 2 * (seed + 1)
        assert assigned[-2] is assigned[-1] is stored


@pytest.mark.slow
def test_a_run_finds_the_same_whatever_its_models_ran_before(tensorflow):
    """Of every kind of comparison, to the last bit; another seed has other weights, inputs and batches."""
    models, found, batches = Models(0), [], []
    for seed in (0, 2 * CONFIGURATIONS, 0):
        clean = Clean(seed, models)
        found.append(list(clean.rows()))
        batches.append(clean.training_pair.batch(0)[0][1])
    first, other, again = found
    assert again == first == list(Clean(0).rows())
    assert {row.gate for row in first} == {*FORWARD_GATES, *TRAINING_GATES}
    assert {row.gate for row in other} == {row.gate for row in first}
    assert {row.precision for row in other if row.gate == "blocks"} == {"float64"}
    assert {row.precision for row in other} == {row.precision for row in first}
    assert all(row.status is Status.PASS for row in other)
    assert np.array_equal(batches[2], batches[0])
    assert not np.array_equal(batches[1], batches[0])


@pytest.mark.slow
def test_a_ratio_that_chance_failed_is_measured_again_and_a_second_rounding_fails_again(tensorflow):
    found = judge(Clean(48))
    assert found.alarms == ()
    assert all("performer.layers.0" in text or "output_2" in text for text in found.second_looks)
    assert found.second_looks
    clean = Clean(48)
    norm: Any = clean.port.get_submodule("performer.layers.0.norm")
    norm.register_forward_hook(lambda module, given, result: _rounded_twice(result))
    alarms = judge(clean).alarms
    assert any(
        re.match(r"layers bfloat16 .* performer.layers.0.norm .*measured on (7|17) inputs", text) for text in alarms
    )
    assert any(re.match(r"model bfloat16 .*measured on (7|17) inputs", text) for text in alarms)


def _rounded_twice(result: Tensor) -> Tensor:
    """What is rounded to bfloat16 once more, to two bits less (Veltkamp's splitting).

    Of a product with three that is divided by three again little would be left: six of seven numbers come back as they
    were.
    """
    if result.dtype is not torch.bfloat16:
        return result
    scaled = result * (2**2 + 1)
    return scaled - (scaled - result)


@pytest.mark.slow
def test_the_whole_catalogue_is_caught_and_nobody_is_accused(tensorflow, tmp_path: Path):
    found = run_campaign(TARGET, names=list(CATALOGUE), clean=24, sensitivity=True, folder=tmp_path, jobs=2)
    assert [outcome.name for outcome in found.missed] == []
    assert [run.alarms for run in found.alarms] == []
    assert [outcome.name for outcome in found.caught if not outcome.right] == []
    assert found.right_rung == 1.0
    assert found.passed
    assert all(row.monotone and row.exponent is not None for row in found.sensitivity)

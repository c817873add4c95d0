"""What the rules of others judge is what both sides computed: all of it, under one name, in both precisions."""

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest

from parity.attack.observation import PRECISIONS, Observation, Pass
from parity.attack.rules import judge
from parity.pairs.epibert_faults.bench import Bench as FaultBench
from parity.pairs.epibert_observation import STEPS, Observer
from parity.pairs.epibert_training.live_pair import LivePair, training_config
from parity.reference import LiveReference
from parity.torch_side import TorchSide
from tests.assertions import assert_same
from torch_impl import EpiBERT
from torch_impl.optim import KerasAdam
from weights import transplant

pytestmark = pytest.mark.slow  # both sides are trained in two precisions

FIELDS = ("outputs", "layers", "isolated", "gradients", "weights")


class Bench:
    """An observer, and ports to be observed."""

    def __init__(self, bench: FaultBench) -> None:
        self.bench = bench
        models = {precision: bench.reference(precision) for precision in PRECISIONS}
        live = LiveReference(dict(reversed(models.items())), bench.inputs, bench.layer_map, "living reference")
        self.pair = LivePair(training_config(bench.config), bench.stored, self.trained())
        self.observer = Observer(live, self.pair)

    def trained(self) -> EpiBERT:
        port = EpiBERT(training_config(self.bench.config))
        transplant(self.bench._checkpoint, port, constants=(*self.bench.constants, "living reference"))
        return port

    @functools.cached_property
    def clean(self) -> Observation:
        return self.observer.observe(self.bench.port(), self.pair.of(self.trained()))


@pytest.fixture(scope="module")
def observing(bench) -> Bench:
    return Bench(bench)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_both_sides_have_the_same_arrays_in_their_own_precision(observing, precision):
    port, reference = observing.clean.port[precision], observing.clean.reference[precision]
    for field in FIELDS:
        found, expected = getattr(port, field), getattr(reference, field)
        assert expected
        if (field, precision) == ("weights", "float64"):
            assert found == {}
            continue
        assert set(found) == set(expected), field
        assert {array.dtype.name for array in (*found.values(), *expected.values())} == {precision}
    assert list(port.gradients) == list(reference.gradients)
    assert len(port.losses) == (STEPS if precision == "float32" else 0)
    assert len(reference.losses) == STEPS
    assert port.error == reference.error == ""


def test_every_layer_of_the_map_and_every_parameter_is_there(observing):
    clean, bench = observing.clean, observing.bench
    layers = {name.partition(":")[0].partition("@")[0] for name in clean.port["float64"].layers}
    assert layers == {pair.port for pair in bench.layer_map if pair.port}
    assert set(clean.port["float64"].layers) == set(clean.port["float64"].isolated)
    zero = {pair.port for pair in observing.pair.tensors if pair.zero_gradient}
    trainable = {pair.port for pair in observing.pair.tensors if pair.trainable}
    assert zero
    assert set(clean.port["float64"].gradients) == trainable - zero
    assert set(clean.port["float32"].weights) == {pair.port for pair in observing.pair.tensors} - zero
    assert set(clean.blocks) <= layers
    assert clean.blocks


def test_in_float64_a_right_port_is_the_reference(observing):
    port, reference = observing.clean.port["float64"], observing.clean.reference["float64"]
    for field, tolerance in (("outputs", "float64"), ("layers", "float64"), ("isolated", "float64")):
        for name, truth in getattr(reference, field).items():
            assert_same(getattr(port, field)[name], truth, tolerance, what=f"{field} {name}")
    for name, truth in reference.gradients.items():
        assert_same(port.gradients[name], truth, "gradient", what=name)
    assert_same(port.loss, reference.loss, what="loss")


def test_every_pass_took_time_on_both_sides(observing):
    for side in (observing.clean.port, observing.clean.reference):
        for precision in PRECISIONS:
            left_out = {Pass.STEPS} if side is observing.clean.port and precision == "float64" else set()
            assert set(side[precision].seconds) == set(Pass) - left_out
            assert min(side[precision].seconds.values()) > 0


def test_a_port_that_is_sound_in_evaluation_is_watched_once(observing, monkeypatch):
    trained = observing.pair.of(observing.trained())
    observing.observer.observe(observing.bench.port(), trained, sound=True)
    monkeypatch.setattr(TorchSide, "trace", pytest.fail)
    again = observing.observer.observe(observing.bench.port(), trained, sound=True)
    for precision in PRECISIONS:
        for field in ("outputs", "layers", "isolated"):
            for name, array in getattr(observing.clean.port[precision], field).items():
                assert np.array_equal(getattr(again.port[precision], field)[name], array)
        assert again.port[precision].seconds[Pass.FORWARD] > 0


def seen(observing: Bench, **changes: Any) -> set[str]:
    """Rules that see a difference in a run whose training has other parts."""
    training = dataclasses.replace(observing.pair.training, **changes)
    return found(observing.observer.observe(observing.bench.port(), observing.pair.of(observing.trained(), training)))


def found(observation: Observation) -> set[str]:
    return {name for name, verdict in judge(observation).items() if verdict.found}


def test_a_fault_of_the_model_reaches_the_rules(observing):
    ports = (observing.bench.port(), observing.trained())
    for port in ports:
        port.stem_conv.weight.data.mul_(2)
    run = observing.observer.observe(ports[0], observing.pair.of(ports[1]))
    verdicts = judge(run)
    assert {"HF", "OF", "GX", "PD", "PT", "RW"} <= found(run)
    assert verdicts["OF"].named == verdicts["RW"].named == "stem_conv"


def test_a_fault_of_the_training_reaches_the_rules_that_look_at_steps_and_no_other(observing):
    def slow(module: Any) -> list[Any]:
        return [KerasAdam(module.parameters(), eps=1.0)]

    wrong, clean = seen(observing, adam=slow), found(observing.clean)
    assert wrong - clean == {"PT"} - clean
    assert "PT" in wrong


def test_a_port_that_raises_is_an_observation_with_an_error(observing):
    ports = (observing.bench.port(), observing.trained())

    def boom(*_: Any) -> Any:
        raise RuntimeError("boom")

    for port in ports:
        port.stem_conv.forward = boom
    run = observing.observer.observe(ports[0], observing.pair.of(ports[1]))
    assert {side.error for side in run.port.values()} == {"RuntimeError: boom"}
    assert {side.error for side in run.reference.values()} == {""}
    assert "PT" not in found(run)

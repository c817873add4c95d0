"""BERT of Hugging Face's transformers, TensorFlow against PyTorch, none of it written for this harness."""

from collections.abc import Iterator
from typing import Any

import pytest
from torch import nn

import parity
from examples import bert, spectrogram
from parity import Inference, Status
from tests.suites.foreign_faults import BERT
from tests.suites.rungs import worst

GATES = ("weights", "layers", "blocks", "model")

pytestmark = pytest.mark.huggingface


@pytest.fixture(scope="module")
def reference(tensorflow) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")  # weights are random: nothing is fetched
        yield spectrogram.randomize(bert.reference())


@pytest.fixture
def port() -> nn.Module:
    return bert.port()


def filled(reference: Any, port: nn.Module) -> Inference:
    found = parity.infer(reference, port, bert.inputs(), weights=bert.WEIGHTS)
    parity.load_weights(port, reference, found.weight_map)
    return found


def verified(reference: Any, port: nn.Module) -> parity.Result:
    return parity.verify(reference, port, bert.inputs(), gates=GATES, weight_map=bert.WEIGHTS)


def test_their_port_is_paired_and_proven(reference, port):
    found = filled(reference, port)
    assert found.unconfirmed == (), str(found)
    assert found.ambiguous == {}
    result = verified(reference, port)
    assert result.passed, "\n".join(worst(gate.failures) for gate in result.gates.values())
    assert {row.precision for row in result.comparisons} == {"exact", "float64"}


@pytest.mark.parametrize("fault", BERT)
def test_a_fault_is_caught_on_its_rung_and_named(reference, port, fault):
    filled(reference, port)
    BERT[fault].inject(port)
    result = verified(reference, port)
    assert not result.passed
    failed = [gate for gate in result.gates.values() if any(row.status is not Status.PASS for row in gate.comparisons)]
    assert failed[0].name == BERT[fault].gate
    assert result.culprits == BERT[fault].culprits, "\n".join(worst(gate.failures) for gate in failed)


def test_there_are_ten_faults():
    assert len(BERT) >= 10

"""Pairs that are not ours: maps are inferred, right ports are proven, and faults are caught and named.

Nothing is told to the harness but the two models and a batch.
"""

import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
from torch import nn

import parity
from examples import bpnet, spectrogram
from parity import GateStatus, Inference, Status
from tests.suites.foreign_faults import BPNET, SPECTROGRAM, Fault
from tests.suites.rungs import worst
from tests.unit.sources import ROOT

GATES = ("weights", "layers", "model")
PAIRS: dict[str, tuple[ModuleType, type[nn.Module], dict[str, Fault]]] = {
    "bpnet": (bpnet, bpnet.BPNet, BPNET),
    "spectrogram": (spectrogram, spectrogram.Spectrogram, SPECTROGRAM),
}
CASES = [(name, fault) for name, (_, _, faults) in PAIRS.items() for fault in faults]
# One of each pair runs with every change, the others beside CI.
QUICK = {("bpnet", "weights of two layers exchanged"), ("spectrogram", "an activation that is much alike")}


@pytest.fixture(scope="module")
def references(tensorflow) -> dict[str, Any]:
    return {name: spectrogram.randomize(module.reference()) for name, (module, _, _) in PAIRS.items()}


def filled(name: str, reference: Any) -> tuple[nn.Module, Inference]:
    """A port with the reference's weights, by the map that is inferred while it has none."""
    module, port_class, _ = PAIRS[name]
    port = port_class()
    found = parity.infer(reference, port, module.inputs())
    parity.load_weights(port, reference, found.weight_map)
    return port, found


@pytest.mark.parametrize("name", PAIRS)
def test_a_right_port_is_paired_filled_and_proven(references, name):
    port, found = filled(name, references[name])
    assert found.unconfirmed == (), str(found)
    assert found.ambiguous == {}
    assert found.untraced == {}
    result = parity.verify(references[name], port, PAIRS[name][0].inputs(), gates=GATES)
    assert result.passed, "\n".join(worst(gate.failures) for gate in result.gates.values())
    assert result.culprits == ()
    assert {row.precision for row in result.comparisons} == {"exact", "float64", "float32"}
    assert len(result.gates["weights"].comparisons) == len(found.weight_map) == len(parity_tensors(port))


def parity_tensors(port: nn.Module) -> list[str]:
    return [name for name in port.state_dict() if not name.endswith("num_batches_tracked")]


@pytest.mark.parametrize(
    ("name", "fault"), [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES]
)
def test_a_fault_is_caught_on_its_rung_and_named(references, name, fault):
    module, _, faults = PAIRS[name]
    port, _ = filled(name, references[name])
    faults[fault].inject(port)
    result = parity.verify(references[name], port, module.inputs(), gates=GATES, precisions=("float64",))
    assert not result.passed
    failed = [gate for gate in result.gates.values() if any(row.status is not Status.PASS for row in gate.comparisons)]
    assert failed[0].name == faults[fault].gate
    assert result.gates[faults[fault].gate].status is GateStatus.FAILED
    assert result.culprits == faults[fault].culprits, "\n".join(worst(gate.failures) for gate in failed)


def test_each_pair_has_ten_faults():
    assert all(len(faults) >= 10 for _, _, faults in PAIRS.values())


STATEMENT = """
import sys
from tests.unit.test_layout import BLOCKED_INTERPRETER
sys.argv[1:] = ["torch_impl,tf_reference,weights,benchmarks", '''
import parity
from examples import bpnet, spectrogram
reference, port = spectrogram.randomize(bpnet.reference()), bpnet.BPNet()
found = parity.infer(reference, port, bpnet.inputs())
parity.load_weights(port, reference, found.weight_map)
assert parity.verify(reference, port, bpnet.inputs(), gates=("weights", "layers", "model")).passed
''']
exec(BLOCKED_INTERPRETER)
"""


@pytest.mark.slow
def test_a_foreign_pair_is_proven_where_none_of_our_models_can_be_imported():
    done = subprocess.run([sys.executable, "-c", STATEMENT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

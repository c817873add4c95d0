"""References that live in an old TensorFlow, recorded there, and ports proven against them with no TensorFlow at all.

``make old-reference`` installs TensorFlow 2.15 and its own Keras 2 in a Python of their own and runs this.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parity
from examples import bpnet
from parity import Recording
from parity.pairs import epibert, epibert_recording
from tests.suites.foreign_faults import BPNET
from tests.suites.test_recorded_epibert import CONFIG
from tests.suites.test_recorded_epibert import MODEL as EPIBERT
from tests.suites.test_recorded_reference import MODEL, PORTS, Recorded, without_tensorflow
from tests.unit.sources import ROOT
from tests.unit.test_layout import TENSORFLOW, run_with_blocked

pytestmark = pytest.mark.old_reference

PYTHON = ROOT / "out" / "old-reference" / "bin" / "python"
# The examples import PyTorch for their ports and tf_keras for their references: the old Python has neither, and its own
# Keras 2 is what tf_keras is a copy of.
OLD = f"""
import sys
import types

import keras

sys.path.insert(0, {str(ROOT)!r})
sys.modules["tf_keras"] = keras
sys.modules["tf_keras.mixed_precision"] = keras.mixed_precision
torch = sys.modules["torch"] = types.ModuleType("torch")
torch.Tensor = object
torch.nn = sys.modules["torch.nn"] = types.ModuleType("torch.nn")
torch.nn.functional = sys.modules["torch.nn.functional"] = types.ModuleType("torch.nn.functional")
torch.nn.Module = torch.nn.BatchNorm2d = object
"""
# The pair imports PyTorch too; the weights that it draws come by a file.
STORED = (
    EPIBERT.replace("from parity.pairs.epibert import draw_weights\n", "")
    .replace("draw_weights(model, 0)", "dict(np.load(weights))")
    .replace("def build(config)", "def build(config, weights)")
)


def record(folder: Path, model: str, arrays: Mapping[Any, np.ndarray], *more: str) -> Recording:
    (folder / "model.py").write_text(OLD + model, encoding="utf-8")
    np.savez(folder / "inputs.npz", allow_pickle=False, **arrays)
    options = ["--inputs", folder / "inputs.npz", "--out", folder / "recording.h5", "--python", PYTHON, *more]
    given = [sys.executable, "-m", "parity.command", "record", "--model", f"{folder / 'model.py'}:build", *options]
    done = subprocess.run([str(part) for part in given], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    recording = Recording(folder / "recording.h5")
    assert recording.environment["tensorflow"].startswith("2.15.")
    assert (recording.environment["keras_package"], recording.environment["keras"]) == ("keras", "2.15.0")
    return recording


def test_the_old_python_is_there():
    assert PYTHON.is_file(), "make old-reference installs it"


@pytest.mark.parametrize("name", PORTS)
def test_a_foreign_port_is_proven_against_an_old_reference(tmp_path, name):
    names = {"bpnet": ("bases", "control")}.get(name, ("arr_0",))
    arrays = dict(zip(names, PORTS[name][0].inputs(), strict=True))
    recording = record(tmp_path, MODEL.format(name=name), arrays)
    found = parity.infer(recording, PORTS[name][1]())
    assert found.unconfirmed == (), str(found)
    done = without_tensorflow(recording.path, f"{name}.{PORTS[name][1].__name__}()")
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_fault_is_named_against_an_old_reference(tmp_path):
    arrays = dict(zip(("bases", "control"), bpnet.inputs(), strict=True))
    recording = record(tmp_path, MODEL.format(name="bpnet"), arrays)
    given = Recorded(recording.path, "bpnet")
    for fault in BPNET.values():
        port = given.port()
        fault.inject(port)
        result = parity.verify(recording, port, gates=("weights", "layers", "model"), precisions=("float64",))
        assert not result.passed
        assert result.culprits == fault.culprits


def test_epibert_is_proven_against_an_old_reference(tmp_path, tensorflow):
    names = ("sequence", "atac", "motif_activity")
    arrays = dict(zip(names, epibert.synthetic_inputs(CONFIG, batch=2, seed=3), strict=True))
    np.savez(tmp_path / "weights.npz", allow_pickle=False, **epibert.draw_weights(new_reference(), 0))
    arguments = {"config": epibert.original_arguments(CONFIG), "weights": str(tmp_path / "weights.npz")}
    (tmp_path / "arguments.json").write_text(json.dumps(arguments), encoding="utf-8")
    more = ("--arguments", str(tmp_path / "arguments.json"), "--precisions", "float64,float32,bfloat16")
    recording = record(tmp_path, STORED, arrays, *more)
    assert recording.precisions == ("float64", "float32", "bfloat16")
    statement = f"""
from parity.pairs.record_command import verify_recorded
result = verify_recorded({str(recording.path)!r})
assert result.passed, [(row.reference, row.detail) for gate in result.gates.values() for row in gate.failures][:9]
assert len(result.requested) == 7
"""
    done = run_with_blocked(TENSORFLOW | {"tf_reference"}, statement)
    assert done.returncode == 0, done.stderr[-3000:]
    port = epibert_recording.make_port(recording)
    norm: Any = port.get_submodule("performer.layers.0.norm")
    norm.eps = 1e-6
    result = parity.verify(recording, port, gates=("layers",), precisions=("float64",))
    assert result.culprits == ("performer.layers.0.norm",)


def new_reference() -> object:
    import tf_reference

    return tf_reference.EpiBERT(**epibert.original_arguments(CONFIG), dtype="float32").build_weights()

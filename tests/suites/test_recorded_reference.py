"""A reference in another Python: recorded there, and the port proven, or its fault named, against the recording.

The recording is made by ``epibert record`` in a process of its own. ``test_old_reference.py`` does the same with an
old TensorFlow.
"""

import functools
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import parity
from examples import bpnet, spectrogram
from parity import GateStatus, Recording, Status, command
from tests.suites.foreign_faults import BPNET, SPECTROGRAM
from tests.suites.rungs import worst
from tests.unit.sources import ROOT
from tests.unit.test_layout import TENSORFLOW, run_with_blocked

GATES = ("weights", "layers", "model", "gradients", "trajectory")
MODEL = (
    f"""
import sys

sys.path.insert(0, {str(ROOT)!r})
"""
    + """
from examples import {name}
from examples.spectrogram import randomize


def build():
    return randomize({name}.reference())
"""
)
PORTS = {"bpnet": (bpnet, bpnet.BPNet, BPNET), "spectrogram": (spectrogram, spectrogram.Spectrogram, SPECTROGRAM)}
CASES = [(name, fault) for name, (_, _, faults) in PORTS.items() for fault in faults]
QUICK = ("bpnet", "another activation in one layer")


def record(folder: Path, name: str) -> Path:
    """A recording, made as a user makes one."""
    (folder / "model.py").write_text(MODEL.format(name=name), encoding="utf-8")
    names = {"bpnet": ("bases", "control")}.get(name, ("arr_0",))
    arrays = dict(zip(names, PORTS[name][0].inputs(), strict=True))
    np.savez(folder / "inputs.npz", allow_pickle=False, **arrays)
    options = ["--inputs", folder / "inputs.npz", "--out", folder / "recording.h5"]
    # The command is called here, since it takes seconds to import; the model's own Python is another one all the same.
    with pytest.raises(SystemExit) as ended:
        command.main(["record", "--model", f"{folder / 'model.py'}:build", *map(str, options)])
    assert ended.value.code == 0
    return folder / "recording.h5"


class Recorded:
    """A recording, and the maps that are inferred from it once."""

    def __init__(self, path: Path, name: str) -> None:
        self.recording, self.name = Recording(path), name
        self.inference = parity.infer(self.recording, PORTS[name][1]())

    def port(self) -> nn.Module:
        """A right port with the recorded weights."""
        port = PORTS[self.name][1]()
        parity.load_weights(port, self.recording, self.inference.weight_map)
        return port

    def verify(self, port: nn.Module, gates: tuple[str, ...] = GATES[:3], **options: Any) -> parity.Result:
        """By the maps of the right port, which those of a faulty one are, too."""
        maps = {"layer_map": self.inference.layer_map, "weight_map": self.inference.weight_map}
        return parity.verify(self.recording, port, gates=gates, **maps, **options)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Callable[[str], Recorded]:
    @functools.cache
    def make(name: str) -> Recorded:
        return Recorded(record(tmp_path_factory.mktemp(name), name), name)

    return make


@pytest.mark.parametrize("name", ["bpnet", pytest.param("spectrogram", marks=pytest.mark.slow)])
def test_a_right_port_is_proven_by_a_recording_alone(recorded, name):
    given = recorded(name)
    recording = given.recording
    assert given.inference.unconfirmed == (), str(given.inference)
    assert given.inference.ambiguous == {}
    result = given.verify(given.port(), GATES)
    assert result.passed, "\n".join(worst(gate.failures) for gate in result.gates.values())
    assert result.culprits == ()
    assert {row.precision for row in result.comparisons} == {"exact", "float64", "float32"}
    assert {row.case for row in result.comparisons} == {"", "other inputs"}
    assert {row.mode for row in result.gates["layers"].comparisons} >= {"evaluation", "training"}
    assert {row.quantity for row in result.gates["layers"].comparisons} >= {"input", "output"}
    assert result.environment["content"] == {"recording": recording.sha256}
    assert result.environment["recorded with"]["tensorflow"] == recording.environment["tensorflow"]
    assert recording.sha256[:12] in result.reference
    assert {row.name for row in result.weights} == set(given.inference.weight_map)
    left_out = {row.name for row in result.not_compared}
    assert left_out >= {"other inputs than the recorded ones", "precision bfloat16"}


@pytest.mark.parametrize(
    ("name", "fault"), [pytest.param(*case, marks=() if case == QUICK else pytest.mark.slow) for case in CASES]
)
def test_a_fault_is_caught_and_named_as_beside_a_living_reference(recorded, name, fault):
    given, (_, _, faults) = recorded(name), PORTS[name]
    port = given.port()
    faults[fault].inject(port)
    # As a user would: the maps are inferred anew, from the port as it is.
    result = parity.verify(given.recording, port, gates=("weights", "layers", "model"), precisions=("float64",))
    assert not result.passed
    failed = [gate for gate in result.gates.values() if any(row.status is not Status.PASS for row in gate.comparisons)]
    assert failed[0].name == faults[fault].gate
    assert result.gates[faults[fault].gate].status is GateStatus.FAILED
    assert result.culprits == faults[fault].culprits, "\n".join(worst(gate.failures) for gate in failed)


@pytest.mark.slow
def test_a_backward_pass_of_its_own_shows_in_the_gradients_alone(recorded):
    given = recorded("bpnet")
    port = given.port()
    port.get_parameter("stem.weight").register_hook(lambda gradient: gradient * (1 + 1e-8))
    result = given.verify(port, GATES, precisions=("float64",))
    assert [gate.name for gate in result.gates.values() if gate.failures] == ["gradients", "trajectory"]
    assert {row.port for row in result.gates["gradients"].failures} == {"stem.weight"}
    assert result.culprits == ("stem",)


def test_what_a_recording_lacks_and_requests_that_mean_nothing(recorded):
    given = recorded("bpnet")
    port = given.port()
    with pytest.raises(ValueError, match="leave inputs out"):
        parity.verify(given.recording, port, bpnet.inputs())
    with pytest.raises(ValueError, match="needs inputs"):
        parity.verify(object(), port)
    with pytest.raises(ValueError, match="unknown precisions"):
        given.verify(port, precisions=("bfloat16",))
    with pytest.raises(ValueError, match="unknown gates"):
        given.verify(port, ("optimizer",))
    result = given.verify(port, ("layers",), modes=("training",), precisions=("float64",))
    left_out = {row.name for row in result.not_compared}
    assert left_out >= {"mode evaluation", "precision float32", "training on the recording's second inputs"}


def status_of(*given: object) -> int:
    with pytest.raises(SystemExit) as ended:
        command.main(["parity", *map(str, given)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.slow
def test_the_command_compares_with_a_recording(recorded, tmp_path):
    given = recorded("bpnet")
    (tmp_path / "port.py").write_text("from examples.bpnet import BPNet as port\n", encoding="utf-8")
    options = ("--reference", given.recording.path, "--port", f"{tmp_path / 'port.py'}:port", "--out", tmp_path / "out")
    assert status_of(*options) == 0
    written = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert written["passed"]
    assert written["environment"]["content"] == {"recording": given.recording.sha256}
    assert given.recording.sha256[:12] in (tmp_path / "out" / "report.html").read_text()
    (tmp_path / "port.py").write_text(
        "from examples.bpnet import BPNet\n\nclass Wrong(BPNet):\n"
        "    def pool(self, x):\n        return x.amax(dim=2)\n",
        encoding="utf-8",
    )
    options = (*options[:3], f"{tmp_path / 'port.py'}:Wrong", *options[4:])
    assert status_of(*options) == 1
    written = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert written["culprits"] == ["amax"]
    assert "living one" in written["culprit_rows"][0]["no_script"]


def test_requests_to_the_command_that_mean_nothing_end_in_one_line(recorded, tmp_path, capsys):
    path = recorded("bpnet").recording.path
    port = tmp_path / "port.py"
    port.write_text("def text():\n    return 'no module'\n", encoding="utf-8")
    capsys.readouterr()
    for given, reason in (
        (("--reference", path), "--port file.py:function"),
        (("--reference", tmp_path / "absent.h5"), "No such file"),
        (("--reference", port), "no recording of epibert record"),
        (("--reference", path, "--port", f"{port}:absent"), "AttributeError"),
        (("--reference", path, "--port", f"{port}:text"), "no PyTorch module"),
        (("--reference", path, "--port", f"{tmp_path / 'absent.py'}:port"), "expected file.py:function"),
        (("--reference", path, "--port", f"{port}:text", "--checkpoint", "c"), "leave --checkpoint out"),
        (("--reference", path, "--port", f"{port}:text", "--gates", "optimizer"), "no such gates"),
        (("--reference", path, "--port", f"{port}:text", "--device", "cuda"), "leave the rest out"),
        (("--port", f"{port}:text"), "belongs to --reference"),
    ):
        assert status_of(*given, "--out", tmp_path / "out") == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("epibert: error: ")
        assert reason in lines[0]
        assert not (tmp_path / "out").exists()


def without_tensorflow(path: Path, port: str = "bpnet.BPNet()") -> subprocess.CompletedProcess[str]:
    """Pairs, fills and proves a port in a fresh interpreter in which no TensorFlow can be imported."""
    statement = f"""
import parity
from examples import bpnet, spectrogram
recording, port = parity.Recording({str(path)!r}), {port}
parity.load_weights(port, recording, parity.infer(recording, port).weight_map)
result = parity.verify(recording, port, gates={GATES!r})
assert result.passed, [gate.reason for gate in result.gates.values()]
assert {{row.precision for row in result.comparisons}} == {{"exact", "float64", "float32"}}
"""
    return run_with_blocked(TENSORFLOW | {"tf_reference"}, statement)


@pytest.mark.slow
def test_a_port_is_proven_where_no_tensorflow_can_be_imported(recorded):
    done = without_tensorflow(recorded("bpnet").recording.path)
    assert done.returncode == 0, done.stderr[-3000:]

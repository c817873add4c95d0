"""The recorder alone: it stands alone, runs on an old Python, and refuses in one line what it cannot record."""

import ast
import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from parity import recorder
from parity.pairs import epibert_original
from tests.unit.parity.recordings import SEQUENTIAL, small_recording, write_inputs, write_model
from tests.unit.sources import imports

ALONE = (Path(recorder.__file__), Path(epibert_original.__file__))


@pytest.mark.parametrize("path", ALONE, ids=lambda path: path.stem)
def test_what_runs_elsewhere_stands_alone_in_the_syntax_of_python_3_8(path):
    source = path.read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 8))
    assert imports(source) - sys.stdlib_module_names <= {"numpy", "h5py", "tensorflow"}
    assert not imports(source, run_at_import=True) & {"tensorflow"}


def test_the_hash_of_an_array_knows_dtype_shape_and_every_bit():
    array = np.arange(6, dtype=np.float32)
    others = [array.astype(np.float64), array.reshape(2, 3), -array, np.nextafter(array, 9, dtype=np.float32)]
    hashes = {recorder.hash_array(other) for other in (array, *others)}
    assert len(hashes) == 5
    assert recorder.hash_array(array.astype(">f4")) == recorder.hash_array(array)
    assert recorder.hash_array(np.arange(12, dtype=np.float32)[::2] / 2) == recorder.hash_array(array)


def test_equal_arrays_are_stored_once_and_come_back(tmp_path):
    with h5py.File(tmp_path / "store.h5", "w") as file:
        store = recorder.Store(file)
        first, second = store.put(np.ones((2, 3))), store.put(np.ones((2, 3)))
        scalar = store.put(np.float32(3.5))
        assert first == second
        assert len(file["arrays"]) == 2
        assert store.get(scalar) == np.float32(3.5)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    status = recorder.main([str(argument) for argument in arguments])
    lines = capsys.readouterr().err.strip().splitlines()
    assert status == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("recorder: error: ")
    return lines[0]


def test_inputs_that_cannot_be_read_are_refused(capsys, tmp_path):
    model, out = f"{write_model(tmp_path)}:build", tmp_path / "out.h5"
    assert "missing.npz" in refused(capsys, model, "--inputs", tmp_path / "missing.npz", "--out", out)
    (tmp_path / "text.npz").write_text("no archive")
    assert "is no .npz file" in refused(capsys, model, "--inputs", tmp_path / "text.npz", "--out", out)
    np.savez(tmp_path / "words.npz", signal=np.asarray(["a", "b"]))
    assert "no batch of numbers" in refused(capsys, model, "--inputs", tmp_path / "words.npz", "--out", out)
    np.savez(tmp_path / "none.npz")
    assert "no arrays" in refused(capsys, model, "--inputs", tmp_path / "none.npz", "--out", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--precisions", "float16", "float64, float32, bfloat16"),
        ("--precisions", ",", "float64, float32, bfloat16"),
        ("--modes", "inference", "evaluation, training"),
        ("--modes", "training", "must have evaluation"),
        ("--steps", "-1", "must not be negative"),
        ("--arguments", "absent.json", "absent.json"),
    ],
)
def test_options_that_mean_nothing_are_refused(capsys, tmp_path, option, value, reason):
    model, inputs = f"{write_model(tmp_path)}:build", write_inputs(tmp_path)
    assert reason in refused(capsys, model, "--inputs", inputs, "--out", tmp_path / "out.h5", option, value)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("small_model.py:text", "no Keras model but a str"),
        ("small_model.py:failing", "OSError: no weights here"),
        ("small_model.py:absent", "has no function absent"),
        ("absent.py:build", "no such file"),
        ("small_model.py", "expected file.py:function"),
    ],
)
def test_what_is_no_model_is_refused(capsys, tmp_path, tensorflow, monkeypatch, place, reason):
    write_model(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert reason in refused(capsys, place, "--inputs", write_inputs(tmp_path), "--out", "out.h5")
    assert not list(tmp_path.glob("*out.h5"))


def test_inputs_of_other_names_or_another_number_are_refused(capsys, tmp_path, tensorflow, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    model, out = f"{write_model(tmp_path)}:build", tmp_path / "out.h5"
    batch = np.zeros((2, 6, 2), np.float32)
    inputs = write_inputs(tmp_path, noise=batch)
    assert "takes the inputs signal; given are noise" in refused(capsys, model, "--inputs", inputs, "--out", out)
    np.savez(inputs, batch, batch)
    assert "takes 1 inputs, 2 are given" in refused(capsys, model, "--inputs", inputs, "--out", out)
    np.savez(inputs, signal=np.zeros((2, 5, 7), np.float32))
    assert "small_model.py" in refused(capsys, model, "--inputs", inputs, "--out", out)
    assert not list(tmp_path.glob("*out.h5"))


def test_a_place_that_cannot_be_written_is_refused(capsys, tmp_path, tensorflow, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    model, inputs = f"{write_model(tmp_path)}:build", write_inputs(tmp_path)
    out = tmp_path / "no" / "such" / "folder.h5"
    assert "cannot write" in refused(capsys, model, "--inputs", inputs, "--out", out)


def test_a_recording_leaves_the_model_as_it_was_and_names_what_it_lacks(tmp_path, tensorflow, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = small_recording(tmp_path, modes=("evaluation",), steps=0, arguments={"units": 4})
    with h5py.File(path) as file:
        index = json.loads(bytes(file["index"][()]))
        values = {row["key"]: file["arrays"][row["array"]][()] for row in index["weights"]}
    assert {row["name"] for row in index["not_recorded"]} == {
        "precision bfloat16",
        "mode training",
        "gradients and steps",
    }
    assert index["training"] is None
    assert index["arguments"] == {"units": 4}
    module = sys.modules["model_to_record"]
    expected = module.build(units=4)
    assert [value.shape for value in values.values()] == [tuple(variable.shape) for variable in expected.weights]
    for variable, value in zip(expected.weights, values.values(), strict=True):
        assert np.array_equal(variable.numpy(), value)


def test_a_sequential_that_was_built_for_a_batch_of_another_size_is_recorded_whole(tmp_path, tensorflow, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = small_recording(tmp_path, SEQUENTIAL, modes=("evaluation",), steps=0)
    with h5py.File(path) as file:
        index = json.loads(bytes(file["index"][()]))
    assert index["hidden"] == {}
    called = [[(call["path"], call["index"]) for call in row["calls"]] for row in index["passes"]]
    assert len(called) == 4
    assert {frozenset(calls) for calls in called} == {
        frozenset({("", 0), *((path, index) for path in ("block", "block/0", "block/1") for index in (0, 1))})
    }

"""Reading recordings: what was changed, cut off or never one is refused; what was not recorded has a name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import parity
from parity import NotARecording, Reading, Recording
from parity.compare import distance
from parity.layer_map import LayerMap
from parity.recorder import LOOKS
from parity.recording import RecordedReference
from parity.tolerances import TABLE
from tests.unit.parity.recordings import SEQUENTIAL, small_recording


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, tensorflow) -> Path:
    return small_recording(tmp_path_factory.mktemp("recording"))


def change_an_array(file: Any) -> None:
    largest = max(file["arrays"].values(), key=lambda array: array.size)
    values = largest[()]
    values.flat[3] = np.nextafter(values.flat[3], 9)
    largest[...] = values


def change_the_index(file: Any) -> None:
    text = bytes(file["index"][()]).replace(b'"trainable": false', b'"trainable": true ', 1)
    del file["index"]
    file.create_dataset("index", data=np.frombuffer(text, dtype=np.uint8))


def drop_an_array(file: Any) -> None:
    del file["arrays"][next(iter(file["arrays"]))]


def drop_the_index(file: Any) -> None:
    del file["index"]


def other_schema(file: Any) -> None:
    file.attrs["schema"] = 2


def other_hash(file: Any) -> None:
    file.attrs["sha256"] = "0" * 64


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (change_an_array, "was changed since it was recorded"),
        (change_the_index, "its hash is another"),
        (other_hash, "its hash is another"),
        (drop_an_array, "1 arrays are missing"),
        (drop_the_index, "no recording of epibert record"),
        (other_schema, "schema 2; this version reads 1"),
    ],
)
def test_a_changed_recording_is_refused(recorded, tmp_path, change: Callable[[Any], None], reason):
    path = Path(shutil.copy(recorded, tmp_path / "changed.h5"))
    Recording(path)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(NotARecording, match=reason):
        Recording(path)


def test_a_truncated_recording_is_refused(recorded, tmp_path):
    content = recorded.read_bytes()
    path = tmp_path / "truncated.h5"
    for size in (0, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(NotARecording):
            Recording(path)


def test_other_files_are_refused(goldens, tmp_path):
    (tmp_path / "text.h5").write_text("no HDF5")
    for path in (tmp_path / "text.h5", goldens / "P1" / "forward.h5", goldens / "environment.json"):
        with pytest.raises(NotARecording, match="no recording"):
            Recording(path)
    with pytest.raises(FileNotFoundError):
        Recording(tmp_path / "absent.h5")


def test_a_recording_says_what_it_is_and_what_it_lacks(recorded):
    recording = Recording(recorded)
    assert recording.precisions == ("float64", "float32")
    assert recording.sha256[:12] in recording.described
    assert f"TensorFlow {recording.environment['tensorflow']}" in recording.described
    assert recording.environment["keras_package"] == "tf_keras"
    assert {row.name for row in recording.not_compared()} == {
        "precision bfloat16",
        "other inputs than the recorded ones",
    }
    assert recording.rates() == {"dropout": 0.25}
    assert np.array_equal(recording.constants["table"], np.arange(3.0))
    assert [key for key in recording.variables if key not in recording.trainable] == [
        "norm/moving_mean",
        "norm/moving_variance",
    ]


def test_an_activation_is_a_layer_of_its_own_where_it_is_asked_for(recorded):
    recording = Recording(recorded)
    whole = recording.trace(precision="float64", training=False)
    split = recording.trace(precision="float64", training=False, split={"conv"}, ignored={"flatten"})
    assert ("conv/activation", 0) not in whole.calls
    assert ("flatten", 0) not in split.calls
    before, after, together = (
        np.asarray(call.outputs[0])
        for call in (split.calls["conv", 0], split.calls["conv/activation", 0], whole.calls["conv", 0])
    )
    assert np.array_equal(after, together)
    assert distance(np.tanh(before), after)[0] <= TABLE["float64"].limit
    assert [call.path for call in split.calls.values()][:3] == ["", "conv", "conv/activation"]
    with pytest.raises(ValueError, match="does not call its activation"):
        recording.trace(precision="float64", training=False, split={"norm"})


def test_a_layer_read_by_itself_rounds_by_itself(recorded):
    recording = Recording(recorded)
    exact = recording.trace(precision="float64", training=False)
    passes = [
        recording.trace(precision="float32", training=False, reading=reading)
        for reading in (Reading.ACCUMULATED, Reading.ISOLATED)
    ]
    whole, alone = (
        {path: np.asarray(found.calls[path, 0].outputs[0]) for path in ("conv", "head")} for found in passes
    )
    assert np.array_equal(whole["conv"], alone["conv"])
    assert not np.array_equal(whole["head"], alone["head"])
    of_head = np.asarray(exact.calls["head", 0].outputs[0])
    assert distance(alone["head"], of_head)[0] <= TABLE["float32_only"].limit


def test_what_was_not_recorded_is_said(recorded):
    recording = Recording(recorded)
    reference = RecordedReference(recording, LayerMap(pairs=()))
    for reading in (Reading.ACCUMULATED, Reading.ISOLATED):
        assert reference.lacks("float32", training=True, reading=reading) == ""
    assert "was not recorded" in reference.lacks("float32", training=False, reading=Reading.BLOCK)
    assert reference.lacks("float64", training=False, reading=Reading.BLOCK) == ""
    others = reference.on_other_inputs()
    assert others.lacks("float64", training=False, reading=Reading.ISOLATED) == ""
    assert "no pass in training" in others.lacks("float64", training=True, reading=Reading.ISOLATED)
    assert not np.array_equal(others.inputs[0], reference.inputs[0])
    with pytest.raises(KeyError, match="no pass"):
        recording.trace(precision="bfloat16", training=False)


def test_passes_on_inputs_in_other_orders_are_there_when_they_were_asked_for(recorded, tmp_path):
    assert {row.looks for row in TABLE.values() if row.looks} == {LOOKS}
    with pytest.raises(LookupError, match="no passes on shuffled 1 inputs were recorded"):
        RecordedReference(Recording(recorded), LayerMap(pairs=())).on_shuffled_inputs(1)
    path = small_recording(tmp_path, modes=("evaluation",), steps=0, looks=1)
    given = RecordedReference(Recording(path), LayerMap(pairs=()))
    other = given.on_shuffled_inputs(1)
    with pytest.raises(LookupError, match="shuffled 2"):
        given.on_shuffled_inputs(2)
    (before,), (after,) = given.inputs, other.inputs
    assert not np.array_equal(before, after)
    np.testing.assert_array_equal(np.sort(before, axis=1), np.sort(after, axis=1))
    exact, of_given = (
        np.asarray(reference.trace("float64", training=False, reading=Reading.ACCUMULATED).calls["", 0].outputs[0])
        for reference in (other, given)
    )
    apart = distance(exact, of_given)[0]
    assert apart > TABLE["float32"].floor
    for reading in (Reading.ACCUMULATED, Reading.ISOLATED):
        assert other.lacks("float32", training=False, reading=reading) == ""
    graph = other.graph_output("float32", training=False)
    assert graph is not None
    assert distance(np.asarray(graph[0]), exact)[0] < TABLE["float32"].largest_own * apart


class SmallPort(nn.Module):
    """The recorded model.

    Args:
        recording: The recording.
        off: In float32 the output is too large by this share of itself, on the given inputs alone: bad luck.
    """

    def __init__(self, recording: Recording, off: float = 0.0) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3, eps=1e-3)
        self.dropout, self.head = nn.Dropout(0.25), nn.Linear(12, 2)
        self.off, self.unlucky = off, torch.from_numpy(recording.inputs[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.norm(torch.tanh(self.conv(x.transpose(1, 2)))).transpose(1, 2).flatten(1)
        found = self.head(self.dropout(found))
        unlucky = x.dtype == torch.float32 and torch.equal(x, self.unlucky.float())
        return found * (1 + self.off) if unlucky else found


@pytest.mark.slow
def test_a_ratio_that_is_too_large_by_chance_is_measured_again_where_other_inputs_were_recorded(tmp_path, tensorflow):
    def verified(looks: int, off: float) -> tuple[bool, Any]:
        path = tmp_path / f"{looks}" / "recording.h5"
        if not path.exists():
            path.parent.mkdir()
            small_recording(path.parent, modes=("evaluation",), steps=0, looks=looks)
        recording = Recording(path)
        port = SmallPort(recording, off)
        parity.load_weights(port, recording, parity.infer(recording, SmallPort(recording)).weight_map)
        result = parity.verify(recording, port, gates=("weights", "layers", "model"), modes=("evaluation",))
        rows = result.gates["model"].comparisons
        (row,) = (r for r in rows if r.precision == "float32" and r.port == "" and r.quantity == "output")
        return result.passed, row

    passed, row = verified(LOOKS, 1e-4)
    assert not passed
    assert len(row.looks) == 1 + LOOKS
    off = 2 * row.limit
    passed, row = verified(LOOKS, off)
    assert passed, row.detail
    assert row.looks[0].error > row.limit
    passed, row = verified(0, off)
    assert not passed
    assert "no passes on shuffled 1 inputs were recorded" in row.detail


def test_a_recording_of_part_of_the_sections_is_refused(recorded, tmp_path):
    import hashlib

    path = Path(shutil.copy(recorded, tmp_path / "partial.h5"))
    with h5py.File(path, "r+") as file:
        index = json.loads(bytes(file["index"][()]))
        del index["passes"]
        text = json.dumps(index).encode()
        del file["index"]
        file.create_dataset("index", data=np.frombuffer(text, dtype=np.uint8))
        file.attrs["sha256"] = hashlib.sha256(text).hexdigest()
    with pytest.raises(NotARecording, match="has no passes"):
        Recording(path)


def test_calls_that_the_port_makes_in_another_order_get_other_numbers_in_every_pass(tmp_path, tensorflow):
    recording = Recording(small_recording(tmp_path, SEQUENTIAL, modes=("evaluation",), steps=0))
    assert recording.execution == ("", "block", "block/0", "block/1")
    mapped = LayerMap.from_names({"block": "block", "first": "block/0"})
    plain = RecordedReference(recording, mapped)
    turned = RecordedReference(recording, mapped, renumbered={"block": (1, 0)})

    def output(side: RecordedReference, precision: str, path: str, index: int) -> np.ndarray:
        call = side.trace(precision, training=False, reading=Reading.ACCUMULATED).calls[path, index]
        assert call.index == index
        return np.asarray(call.outputs[0])

    for one, other in ((plain, turned), (plain.on_other_inputs(), turned.on_other_inputs())):
        for precision in one.precisions:
            assert not np.array_equal(output(one, precision, "block", 0), output(one, precision, "block", 1))
            for index in (0, 1):
                same, swapped = (output(one, precision, path, index) for path in ("block/0", "block"))
                assert np.array_equal(same, output(other, precision, "block/0", index))
                assert np.array_equal(swapped, output(other, precision, "block", 1 - index))

"""What the port is held against: recordings read whole or not at all, and living models run once per pass."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from parity import LayerMap, LayerPair, Reading
from parity.reference import Goldens, LiveReference, read_goldens
from parity.trace import Sample
from tests.unit.parity import keras_models

PRECISIONS = ("float64", "float32", "bfloat16")


@pytest.fixture(scope="module")
def recording(goldens) -> Goldens:
    return read_goldens(goldens / "P1" / "forward.h5", name="recorded")


@pytest.fixture
def copy(goldens, tmp_path) -> Path:
    return Path(shutil.copy(goldens / "P1" / "forward.h5", tmp_path / "forward.h5"))


def read(path: Path) -> Goldens:
    return read_goldens(path, name="recorded")


# --- recordings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_recorded_tap_is_read(recording, goldens, precision):
    short = {"float64": "f64", "float32": "f32", "bfloat16": "bf16"}[precision]
    taps = set()
    with h5py.File(goldens / "P1" / "forward.h5") as file:
        # Links are followed, so a tap that shares its data with another counts as well.
        def visit(group: h5py.Group, prefix: str) -> None:
            for name, item in group.items():
                if isinstance(item, h5py.Group):
                    visit(item, f"{prefix}{name}/")
                else:
                    taps.add((prefix[:-1], name))

        visit(file[f"modes/{short}/taps"], "")
    trace = recording.traces[precision]
    calls = {f"{path}@{index}" if index else path: call for (path, index), call in trace.calls.items()}
    assert set(calls) == {path for path, _ in taps}
    for path, call in calls.items():
        assert len(call.outputs) == len([name for tap, name in taps if tap == path])
    assert len(calls) == 118


def test_all_precisions_record_the_same_layers_in_the_same_shapes(recording):
    def shapes(precision: str) -> dict[tuple[str, int], list[tuple[int, ...]]]:
        calls = recording.traces[precision].calls.items()
        return {key: [a.full_shape if isinstance(a, Sample) else a.shape for a in call.outputs] for key, call in calls}

    assert shapes("float64") == shapes("float32") == shapes("bfloat16")


def test_large_activations_are_samples_with_all_five_summaries(recording):
    arrays = [array for call in recording.traces["float64"].calls.values() for array in call.outputs]
    samples = [array for array in arrays if isinstance(array, Sample)]
    assert samples
    assert len(samples) < len(arrays)
    for sample in samples:
        assert sample.summaries.keys() == {"mean", "std", "min", "max", "axis_mean"}
        assert sample.values.shape[sample.axis] == len(sample.positions) < sample.full_shape[sample.axis]


def test_three_final_outputs_in_each_precision(recording):
    kinds = ("eager", "graph", "training")
    assert set(recording.finals) == {(precision, kind) for precision in PRECISIONS for kind in kinds}
    assert {tuple(output.shape for output in outputs) for outputs in recording.finals.values()} == {((2, 60, 1),)}
    assert all(output.dtype == np.float64 for outputs in recording.finals.values() for output in outputs)


@pytest.mark.parametrize(("case", "heads"), [("R1", 2), ("R2", 1)])
def test_a_recording_of_several_heads_has_them_all(goldens, case, heads):
    path = goldens / case / "forward.h5"
    finals = read_goldens(path, name="recorded").finals
    assert {len(outputs) for outputs in finals.values()} == {heads}
    with h5py.File(path) as file:
        assert np.array_equal(finals["bfloat16", "graph"][-1], file["modes/bf16/final_rna_graph"][()])
    with pytest.raises(KeyError, match="none of final_xyz is recorded"):
        read_goldens(path, name="recorded", outputs=("final_xyz",))


def test_statistics_inputs_and_constants_are_read(recording, goldens):
    assert set(recording.state) == set(PRECISIONS)
    assert {len(state) for state in recording.state.values()} == {len(recording.state["float64"])}
    assert all(key.endswith(("moving_mean", "moving_variance")) for key in recording.state["float64"])
    assert {"sequence", "atac", "motif_activity"} <= recording.inputs.keys()
    assert recording.inputs["sequence"].shape == (2, 8192)
    assert {"projection_matrix_0", "rotary_table_bfloat16"} <= recording.constants.keys()


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "forward.h5")


def test_a_truncated_file_is_an_error(copy):
    copy.write_bytes(copy.read_bytes()[:100_000])
    with pytest.raises(OSError, match="truncated"):
        read(copy)


@pytest.mark.parametrize(
    "path",
    [
        "modes/f64",
        "modes/f32/taps",
        "modes/f64/final_atac",
        "modes/bf16/final_atac_graph",
        "modes/f32/training_true",
        "modes/f64/training_true/bn",
        "inputs",
        "constants",
    ],
)
def test_a_missing_part_is_an_error(copy, path):
    with h5py.File(copy, "a") as file:
        del file[path]
    with pytest.raises(KeyError):
        read(copy)


def test_a_layer_recorded_in_one_precision_alone_is_an_error(copy):
    with h5py.File(copy, "a") as file:
        del file["modes/f32/taps/stem_conv"]
    with pytest.raises(KeyError, match="float64 and float32 do not record the same layers: stem_conv"):
        read(copy)


def test_an_array_of_an_unknown_name_is_an_error(copy):
    with h5py.File(copy, "a") as file:
        file["modes/f64/taps/stem_conv/gradient"] = np.zeros(1)
    with pytest.raises(KeyError, match="not a name of a recorded array"):
        read(copy)


# --- living models ----------------------------------------------------------------------------------------------------

LAYERS = LayerMap(
    pairs=(
        LayerPair(port="", reference="", inputs=0),
        LayerPair(port="conv", reference="conv"),
        LayerPair(port="tail", reference="tail", block=True),
    ),
    ignored={"add": "why"},
)
INPUT = (np.random.default_rng(3).standard_normal((2, 6, 3)).astype(np.float32),)


@pytest.fixture
def live(tensorflow) -> LiveReference:
    return LiveReference({"float32": keras_models.functional()}, INPUT, LAYERS, "living")


def test_it_has_the_paths_of_the_model_without_the_ignored_ones(live):
    assert live.paths == ("", "input", "conv", "norm", "tail", "tail/0", "tail/1", "drop", "head")
    assert live.precisions == ("float32",)
    assert live.blocks == {"tail"}


def test_a_pass_is_run_once_and_remembered(live):
    first = live.trace("float32", training=False, reading=Reading.ACCUMULATED)
    assert live.trace("float32", training=False, reading=Reading.ACCUMULATED) is first
    assert live.trace("float32", training=True, reading=Reading.ACCUMULATED) is not first


def test_every_pass_is_remembered_where_it_is_asked_for(tensorflow):
    models = {"float32": keras_models.functional()}
    for remember in (True, False):
        live = LiveReference(models, INPUT, LAYERS, "living", remember=remember)
        isolated = live.trace("float32", training=False, reading=Reading.ISOLATED)
        assert (live.trace("float32", training=False, reading=Reading.ISOLATED) is isolated) is remember
        assert (live.on_other_inputs() is live.on_other_inputs()) is remember
        other = live.on_other_inputs()
        assert other.trace("float32", training=False, reading=Reading.ISOLATED) is not isolated


def test_shuffled_inputs_hold_the_same_numbers_in_an_order_of_each_draws_own(live):
    (first,), (again,), (other,) = (live.on_shuffled_inputs(draw).inputs for draw in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, INPUT[0])
    assert np.array_equal(np.sort(first, axis=1), np.sort(INPUT[0], axis=1))


def test_arrays_of_one_length_are_shuffled_alike(tensorflow):
    words = np.arange(2 * 6).reshape(2, 6)
    arrays = (INPUT[0], words, np.ones((2, 3)), np.zeros(4))
    live = LiveReference({"float32": keras_models.functional()}, arrays, LAYERS, "living")
    shuffled, order, _, flat = live.on_shuffled_inputs(3).inputs
    assert np.array_equal(shuffled, INPUT[0][:, order[0]])
    assert np.array_equal(flat, np.zeros(4))


@pytest.mark.parametrize("reading", [Reading.ISOLATED, Reading.BLOCK])
def test_the_most_precise_reference_fed_with_itself_gives_itself(live, reading):
    truth = live.trace("float32", training=False, reading=Reading.ACCUMULATED)
    fed = live.trace("float32", training=False, reading=reading)
    for key, call in truth.calls.items():
        assert np.array_equal(fed.calls[key].outputs[0], call.outputs[0])


def test_the_graph_output_is_the_models(live):
    (output,) = live.graph_output("float32", training=False)
    assert output.shape == (2, 6, 2)

"""The reference computes what the original computed: every recorded layer, in evaluation and in training mode."""

import numpy as np
import pytest
import tensorflow as tf

from parity.tolerances import TABLE
from tests.unit.tf_reference.recordings import (
    NATIVE_BFLOAT16,
    RECORDINGS,
    captured,
    relative_distance,
    tapped,
)

FLOAT64_LIMIT = TABLE["float64"].limit
# Distance to float64, ours over the original's. Both round at the same places; what is left is the order of sums, and
# whether the processor rounds within them.
DISTANCE_RATIO = {
    "f32": TABLE["float32"].limit,
    "bf16": TABLE["bfloat16" if NATIVE_BFLOAT16 else "bfloat16_other_processor"].limit,
}

CASES = pytest.mark.parametrize("recording", RECORDINGS.values(), ids=RECORDINGS.keys())


@CASES
@pytest.mark.parametrize("mode", ["f64", "f64_exact_rotary"])
def test_every_layer_in_float64(recording, mode):
    model = recording.model(mode)
    recorded = recording.under(f"modes/{mode}/taps")
    distances = {key: relative_distance(got, recorded[key][0]) for key, got in tapped(model, recording, mode).items()}
    assert distances.keys() == recorded.keys()
    assert {key: value for key, value in distances.items() if not value <= FLOAT64_LIMIT} == {}
    final = model(recording.inputs, training=False).numpy()
    assert relative_distance(final, recording.array(f"modes/{mode}/final_atac")) <= FLOAT64_LIMIT


@CASES
@pytest.mark.parametrize("mode", ["f32", "bf16"])
def test_every_layer_rounds_no_worse_than_the_original(recording, mode):
    recorded, exact = (recording.under(f"modes/{name}/taps") for name in (mode, "f64"))
    taps = tapped(recording.model(mode), recording, mode)
    assert taps.keys() == recorded.keys()
    too_far = {}
    for key, got in taps.items():
        ours, originals = (relative_distance(array, exact[key][0]) for array in (got, recorded[key][0]))
        if not ours <= DISTANCE_RATIO[mode] * originals:
            too_far[key] = (ours, originals)
    assert too_far == {}


@CASES
def test_bfloat16_rounds_where_the_original_does(recording):
    """Up to the first pooling, whose softmax TensorFlow 2.12 rounded one bit coarser than today's."""
    taps = tapped(recording.model("bf16"), recording, "bf16")
    recorded = recording.under("modes/bf16/taps")
    # Convolutions round once on every processor. Matrix products do so where it has bfloat16 arithmetic, as the one of
    # the recording; how far they are off elsewhere is the previous test's business.
    branches = ("stem_conv/", "stem_res_conv/", "performer/layer_pos_emb")
    branches += ("stem_pool/dense/", "motif_") if NATIVE_BFLOAT16 else ()
    different = {key: np.mean(taps[key] != recorded[key][0]) for key in taps if key.startswith(branches)}
    assert len(different) >= (12 if NATIVE_BFLOAT16 else 7)
    assert {key: share for key, share in different.items() if share > TABLE["bfloat16_flips"].limit} == {}


@CASES
def test_graph_mode_is_eager_mode(recording):
    model = recording.model("f64")
    graph = tf.function(lambda *inputs: model(inputs, training=False), autograph=False)(*recording.inputs).numpy()
    assert relative_distance(graph, recording.array("modes/f64/final_atac_graph")) <= FLOAT64_LIMIT


@CASES
@pytest.mark.parametrize("mode", ["f64", "f32", "bf16"])
def test_training_mode_and_the_statistics_after_it(recording, mode):
    model = recording.model(mode)
    # No `training`: its default is True, as in the original.
    output = tf.cast(model(recording.inputs), tf.float64).numpy()
    group = "training_true"
    got = {"final_atac": output}
    variables = model.checkpoint_variables()
    for key in recording.under(f"modes/{mode}/{group}/bn"):
        got[f"bn/{key}"] = variables[key].numpy()
    recorded = recording.under(f"modes/{mode}/{group}")
    assert got.keys() == recorded.keys()
    assert len(got) == 23
    if mode == "f64":
        distances = {key: relative_distance(array, recorded[key][0]) for key, array in got.items()}
        assert {key: value for key, value in distances.items() if not value <= FLOAT64_LIMIT} == {}
    else:
        exact = recording.under(f"modes/f64/{group}")
        too_far = {}
        for key, array in got.items():
            ours, originals = (relative_distance(each, exact[key][0]) for each in (array, recorded[key][0]))
            if not ours <= DISTANCE_RATIO[mode] * originals:
                too_far[key] = (ours, originals)
        assert too_far == {}


def test_features_of_every_layer():
    recording = RECORDINGS["P1"]
    model = recording.model("f64")
    profile, features = model.predict_on_batch(recording.inputs)
    assert relative_distance(profile.numpy(), recording.array("modes/f64/final_atac")) <= FLOAT64_LIMIT
    assert list(features) == ["layer_0", "layer_1"]
    recorded = recording.under("modes/f64/taps")
    for index, pair in enumerate(features.values()):
        for name, array in zip(("k_prime", "q_prime"), pair, strict=True):
            expected, attributes = recorded[f"performer/layers/{index}/{name}"]
            got = array.numpy().take(attributes["positions"], axis=0)
            assert relative_distance(got, expected) <= FLOAT64_LIMIT


def test_features_and_rotation_have_taps_of_their_own():
    """No recording has them: the two steps inside attention without weights, once for queries, once for keys."""
    recording = RECORDINGS["P1"]
    model = recording.model("f64")
    attention = "performer/layers/1/self_attention"
    paths = [f"{attention}/{name}" for name in ("rotary", "feature_map")] + [attention]
    with captured(model, paths) as outputs:
        model(recording.inputs, training=False)
    assert outputs.keys() == {*paths, f"{attention}/rotary@1", f"{attention}/feature_map@1"}
    assert outputs[f"{attention}/rotary"].shape == (2, 64, 2, 16)
    _, k_prime, q_prime = outputs[attention]
    assert np.array_equal(tf.transpose(outputs[f"{attention}/feature_map"], [1, 0, 2, 3]), q_prime)
    assert np.array_equal(tf.transpose(outputs[f"{attention}/feature_map@1"], [1, 0, 2, 3]), k_prime)

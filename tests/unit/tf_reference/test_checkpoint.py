"""Checkpoints of the original restore into the reference, completely, and the reference writes the same keys."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.unit.tf_reference.recordings import GOLDENS, RECORDINGS, SUFFIX
from tf_reference import EpiBERT

P1 = RECORDINGS["P1"]
CHECKPOINTS = [
    ("P1", "ckpt_before"),
    ("P1", "ckpt_after_poisson"),
    ("P1", "ckpt_after_poisson_multinomial"),
    ("P2", "ckpt_before"),
]


def checkpoint_of(model: EpiBERT, *, with_slots: bool) -> tf.train.Checkpoint:
    """All fields that the original's pre-training script saves (spec, section 6.2)."""
    optimizer = tf_keras.optimizers.Adam(learning_rate=1e-7, epsilon=1e-8, global_clipnorm=1.0)
    if with_slots:
        optimizer.build(model.trainable_variables)
    zero, best = tf.constant(0), tf.constant(0.0)
    counters = {name: tf.Variable(zero) for name in ("batch_num", "step_to_start", "optimizer_step_track")}
    return tf.train.Checkpoint(model=model, optimizer=optimizer, best_val_loss=tf.Variable(best), **counters)


@pytest.mark.parametrize(("case", "name"), CHECKPOINTS)
def test_restores_totally_and_is_written_back_bit_for_bit(case, name, tmp_path):
    recording = RECORDINGS[case]
    model = recording.model("f32")
    model.set_weights([np.zeros(variable.shape) for variable in model.variables])
    checkpoint = checkpoint_of(model, with_slots="after" in name)
    # Raises when either side holds a value that the other lacks: model, optimizer slots and counters.
    checkpoint.restore(str(recording.checkpoint(name))).assert_consumed()

    original = tf.train.load_checkpoint(str(recording.checkpoint(name)))
    listing = json.loads((GOLDENS / case / f"{name}.json").read_text())
    assert original.get_variable_to_shape_map() == listing
    for key, variable in model.checkpoint_variables().items():
        assert np.array_equal(variable.numpy(), original.get_tensor(key + SUFFIX)), key

    written = tf.train.load_checkpoint(checkpoint.write(str(tmp_path / "written")))
    assert written.get_variable_to_shape_map() == listing
    for key in listing.keys() - {"_CHECKPOINTABLE_OBJECT_GRAPH", f"save_counter{SUFFIX}"}:
        assert np.array_equal(written.get_tensor(key), original.get_tensor(key)), key


def test_restores_into_a_model_without_variables_yet():
    model = EpiBERT(**P1.config)
    status = tf.train.Checkpoint(model=model).restore(str(P1.checkpoint("ckpt_before")))
    model.build_weights()
    # The other fields of the file have no place to go here; that the model took all of its own is checked by value.
    status.assert_existing_objects_matched().expect_partial()
    for key, variable in model.checkpoint_variables().items():
        assert np.array_equal(variable.numpy(), P1.weights[key]), key


@pytest.mark.parametrize("recording", RECORDINGS.values(), ids=RECORDINGS.keys())
def test_keys_shapes_and_order_of_the_variables(recording):
    model = recording.model("bf16")
    variables = model.checkpoint_variables()
    described = recording.description["variables"]
    assert {key: list(variable.shape) for key, variable in variables.items()} == {
        key: entry["shape"] for key, entry in described.items()
    }
    names = {id(variable): key for key, variable in variables.items()}
    assert [names[id(variable)] for variable in model.trainable_variables] == recording.description["trainable_order"]
    assert {key for key, entry in described.items() if not entry["trainable"]} == {
        names[id(variable)] for variable in model.non_trainable_variables
    }


def test_the_final_norm_is_the_only_optional_part():
    with_norm, without = (
        EpiBERT(**{**P1.config, "num_transformer_layers": 0, "norm": norm})
        .build_weights()
        .checkpoint_variables()
        .keys()
        for norm in (True, False)
    )
    assert with_norm - without == {"model/performer/layer_norm/gamma", "model/performer/layer_norm/beta"}
    assert not without - with_norm


def test_assign_is_total():
    model = P1.model("f64")
    before = [variable.numpy() for variable in model.variables]
    values = dict(P1.weights)
    kernel = values.pop("model/stem_conv/kernel")
    values["model/stem_conv/weight"] = kernel
    values["model/stem_conv/bias"] = np.zeros(3)
    with pytest.raises(ValueError, match="missing model/stem_conv/kernel") as error:
        model.assign(values)
    assert "unknown model/stem_conv/weight" in str(error.value)
    assert "model/stem_conv/bias has shape (3,), expected (16,)" in str(error.value)
    assert all(np.array_equal(old, new) for old, new in zip(before, model.get_weights(), strict=True))

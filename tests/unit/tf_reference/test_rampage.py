"""The fine-tuning model of the reference computes what the original's computed (R1, R2), and what its arguments do."""

import inspect
import json
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from parity.compare import compare, compare_array
from parity.records import Comparison, Reading, Status
from parity.reference import read_array
from parity.tolerances import TABLE
from parity.trace import Sample
from tests.unit.tf_reference.recordings import FINE_TUNING, GOLDENS, SUFFIX, Recording, captured
from tests.unit.tf_reference.test_model import TINY, inputs
from tf_reference import EpiBERT, EpiBERTRampage
from tf_reference.training import finetuning_variables

PRECISIONS = {"f64": "float64", "f32": "float32", "bf16": "bfloat16"}
CASES = pytest.mark.parametrize("recording", FINE_TUNING.values(), ids=FINE_TUNING.keys())
CHECKPOINTS = [("R1", "ckpt_before"), ("R1", "ckpt_after_poisson_multinomial"), ("R2", "ckpt_before")]


def recorded(recording: Recording, place: str) -> dict[str, np.ndarray | Sample]:
    """Every recorded array under a place of forward.h5, by its path from there."""
    with h5py.File(GOLDENS / recording.case / "forward.h5") as file:
        return {path: read_array(file[f"{place}/{path}"]) for path in recording.under(place)}


def where(mode: str, what: str) -> dict[str, Any]:
    precision = PRECISIONS[mode]
    paths = {"reference_path": what, "port_path": what, "layer": what, "quantity": "output"}
    return {"gate": "test", "reading": Reading.ACCUMULATED, "precision": precision, "tolerance": precision, **paths}


def judged(
    mode: str, got: dict[str, np.ndarray], exact: dict[str, np.ndarray | Sample], same: dict[str, np.ndarray | Sample]
) -> Iterator[Comparison]:
    """Every array against the original's float64 one; below float64 the original's own error is the measure."""
    assert got.keys() == exact.keys() == same.keys()
    for name, array in got.items():
        yield from compare_array(array, exact[name], None if mode == "f64" else same[name], **where(mode, name))


def verified(comparisons: Iterator[Comparison]) -> int:
    """Number of comparisons; all of them must have passed."""
    rows = list(comparisons)
    assert [(row.reference, row.quantity, row.error, row.limit, row.detail) for row in rows if not passed(row)] == []
    return len(rows)


def passed(row: Comparison) -> bool:
    return row.status is Status.PASS


def wide(tensor: Any) -> np.ndarray:
    return tf.cast(tensor, tf.float64).numpy()


def finals(recording: Recording, output: Any) -> dict[str, np.ndarray]:
    """The predictions by their names in the recording."""
    predicted = output if recording.config["predict_atac"] else (None, output)
    named = zip(("final_atac", "final_rna"), predicted, strict=True)
    return {name: wide(profile) for name, profile in named if profile is not None}


@CASES
@pytest.mark.parametrize("mode", ["f64", "f32"])
def test_every_layer_and_both_predictions(recording, mode):
    model = recording.model(mode)
    place = f"modes/{mode}/taps"
    paths = {key.rpartition("/")[0].partition("@")[0] for key in recording.under(place)}
    with captured(model, paths) as outputs:
        output = model(recording.inputs, training=False)
    got = {}
    for key in recording.under(place):
        path, _, name = key.rpartition("/")
        tap = outputs[path]
        got[key] = wide(tap[("output", "k_prime", "q_prime").index(name)] if isinstance(tap, tuple) else tap)
    count = verified(judged(mode, got, recorded(recording, "modes/f64/taps"), recorded(recording, place)))
    assert count >= len(got) == {"R1": 134, "R2": 106}[recording.case]
    heads = finals(recording, output)
    for graph in ("", "_graph"):
        exact, same = (
            {name: recording.array(f"modes/{which}/{name}{graph}") for name in heads} for which in ("f64", mode)
        )
        assert verified(judged(mode, heads, exact, same)) == (2 if recording.case == "R1" else 1)


@CASES
@pytest.mark.parametrize("mode", ["f64", "f32"])
def test_training_mode_and_the_statistics_after_it(recording, mode):
    model = recording.model(mode)
    # No `training`: its default is True, as in the original.
    got = finals(recording, model(recording.inputs))
    variables = model.checkpoint_variables()
    got |= {f"bn/{key}": wide(variables[key]) for key in recording.under(f"modes/{mode}/training_true/bn")}
    exact, same = (recorded(recording, f"modes/{name}/training_true") for name in ("f64", mode))
    assert verified(judged(mode, got, exact, same)) == {"R1": 2 + 2 * 12, "R2": 1 + 2 * 11}[recording.case]


def test_bfloat16_returns_bfloat16_near_the_float64_result():
    """Where exactly it rounds depends on the processor; that it decides anything at all is the table's bound."""
    recording = FINE_TUNING["R1"]
    model = recording.model("bf16")
    output = model(recording.inputs, training=False)
    assert {profile.dtype for profile in tf.nest.flatten(output)} == {tf.bfloat16}
    assert {variable.dtype for variable in model.variables} == {tf.float32}
    for name, got in finals(recording, output).items():
        row = compare(got, recording.array(f"modes/f64/{name}"), **{**where("f64", name), "precision": "bfloat16"})
        assert row.error is not None
        assert row.error <= TABLE["bfloat16"].largest_own


@CASES
def test_predict_on_batch_is_the_call_with_the_features_of_every_layer(recording):
    model = recording.model("f64")
    *profiles, features = model.predict_on_batch(recording.inputs)
    expected = tf.nest.flatten(model(recording.inputs, training=False))
    assert len(profiles) == len(expected) == (2 if recording.case == "R1" else 1)
    for profile, called in zip(profiles, expected, strict=True):
        assert np.array_equal(profile, called)
    assert list(features) == [f"layer_{index}" for index in range(recording.config["num_transformer_layers"])]
    taps = recorded(recording, "modes/f64/taps")
    for index, pair in enumerate(features.values()):
        for name, array in zip(("k_prime", "q_prime"), pair, strict=True):
            key = f"performer/layers/{index}/{name}"
            verified(compare_array(wide(array), taps[key], None, **where("f64", key)))


@CASES
def test_graph_mode_is_eager_mode(recording):
    model = recording.model("f64")
    graph = tf.function(lambda *parts: model(parts, training=False), autograph=False)(*recording.inputs)
    got = finals(recording, graph)
    exact = {name: recording.array(f"modes/f64/{name}") for name in got}
    verified(judged("f64", got, exact, exact))


class TestCheckpoints:
    @CASES
    def test_keys_shapes_and_order_of_the_variables(self, recording):
        model = recording.model("f32")
        variables = model.checkpoint_variables()
        described = recording.description["variables"]
        assert {key: list(variable.shape) for key, variable in variables.items()} == {
            key: entry["shape"] for key, entry in described.items()
        }
        names = {id(variable): key for key, variable in variables.items()}
        order = [names[id(variable)] for variable in model.trainable_variables]
        assert order == recording.description["trainable_order"]

    @pytest.mark.parametrize(("case", "name"), CHECKPOINTS)
    def test_restores_totally_and_is_written_back_bit_for_bit(self, case, name, tmp_path):
        recording = FINE_TUNING[case]
        model = recording.model("f32")
        model.set_weights([np.zeros(variable.shape) for variable in model.variables])
        optimizers = {}
        for number, variables in enumerate(finetuning_variables(model), start=1):
            optimizer = tf_keras.optimizers.Adam(learning_rate=1e-7, epsilon=1e-8, global_clipnorm=1.0)
            if "after" in name:
                optimizer.build(variables)
            optimizers[f"optimizer{number}"] = optimizer
        counters = {counter: tf.Variable(tf.constant(0)) for counter in ("batch_num", "optimizer_step_track")}
        best = tf.Variable(tf.constant(0.0))
        checkpoint = tf.train.Checkpoint(model=model, best_val_loss=best, **optimizers, **counters)
        # Raises when either side holds a value that the other lacks: model, slots of both optimizers and counters.
        checkpoint.restore(str(recording.checkpoint(name))).assert_consumed()
        original = tf.train.load_checkpoint(str(recording.checkpoint(name)))
        listing = json.loads((GOLDENS / case / f"{name}.json").read_text())
        assert original.get_variable_to_shape_map() == listing
        written = tf.train.load_checkpoint(checkpoint.write(str(tmp_path / "written")))
        assert written.get_variable_to_shape_map() == listing
        for key in listing.keys() - {"_CHECKPOINTABLE_OBJECT_GRAPH", f"save_counter{SUFFIX}"}:
            assert np.array_equal(written.get_tensor(key), original.get_tensor(key)), key

    def test_a_pre_training_checkpoint_fills_everything_but_the_rna_head(self, tmp_path):
        """How weights really get from pre-training to fine-tuning (spec, section 2.3)."""
        before = EpiBERT(**TINY).build_weights()
        saved = tf.train.Checkpoint(model=before).write(str(tmp_path / "pretrained"))
        model = EpiBERTRampage(**TINY).build_weights()
        tf.train.Checkpoint(model=model).restore(saved).expect_partial()
        after = {key: variable.numpy() for key, variable in model.checkpoint_variables().items()}
        for key, variable in before.checkpoint_variables().items():
            assert np.array_equal(after.pop(key), variable.numpy()), key
        assert len(after) == 8
        assert all(key.split("/")[1].endswith("_rna") for key in after)


class TestArguments:
    def test_defaults_are_the_original_fine_tuning_models(self):
        defaults = {name: p.default for name, p in inspect.signature(EpiBERTRampage).parameters.items()}
        pretraining = {name: p.default for name, p in inspect.signature(EpiBERT).parameters.items()}
        different = {name: value for name, value in defaults.items() if pretraining.get(name, "absent") != value}
        assert different == {
            "pointwise_dropout_rate": 0.2,
            "num_heads": 4,
            "numerical_stabilizer": 1e-3,
            "num_transformer_layers": 7,
            "max_seq_length": 1536,
            "seed": 3,
            "filter_list_seq": (768, 896, 1024, 1024, 1152, 1280),
            "load_init": False,
            "inits": None,
            "predict_atac": True,
        }
        assert pretraining.keys() - defaults.keys() == set()

    def test_without_atac_head_there_is_one_bare_prediction(self):
        model = EpiBERTRampage(**TINY, predict_atac=False)
        assert model(inputs(), training=False).shape == (2, 6, 1)
        heads = {key.split("/")[1] for key in model.checkpoint_variables() if key.startswith("model/final_")}
        assert heads == {"final_pointwise_conv_rna", "final_dense_profile_rna"}

    @pytest.mark.parametrize(
        "arguments", [{"load_init": True}, {"inits": {}}, {"load_init": True, "inits": {}}], ids=str
    )
    def test_initial_arrays_are_refused(self, arguments):
        with pytest.raises(ValueError, match="restore a checkpoint, or assign the weights"):
            EpiBERTRampage(**TINY, **arguments)

    def test_a_configuration_makes_the_same_model(self):
        model = EpiBERTRampage(**TINY, predict_atac=False, dtype="float64")
        config = model.get_config()
        again = EpiBERTRampage.from_config(json.loads(json.dumps(config)))
        assert again.get_config() == config
        assert config["predict_atac"] is False

    def test_the_heads_share_the_dropout_layer_and_not_its_mask(self):
        """With equal weights in both heads, only the masks can tell their predictions apart."""
        rates = {"dropout_rate": 0.0, "motif_dropout_rate": 0.0, "pointwise_dropout_rate": 0.5}
        tf_keras.utils.set_random_seed(7)
        model = EpiBERTRampage(**TINY, **rates, dtype="float64").build_weights()
        variables = model.checkpoint_variables()
        for key, variable in variables.items():
            if key.split("/")[1].endswith("_rna"):
                variable.assign(variables[key.replace("_rna/", "/")])
        for training in (False, True):
            with captured(model, ["dropout", "gelu", "crop_final"]) as outputs:
                atac, rna = model(inputs(), training=training)
            assert outputs.keys() == {"dropout", "dropout@1", "gelu", "gelu@1", "crop_final", "crop_final@1"}
            assert np.array_equal(atac, rna) == (not training)
            first, second = (outputs[name].numpy() == 0 for name in ("dropout", "dropout@1"))
            assert np.array_equal(first, second) == (not training)

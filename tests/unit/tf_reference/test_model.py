"""What the constructor's arguments do, and what they do not (spec, sections 1.1 to 1.11)."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.unit.tf_reference.recordings import captured, layer_at
from tf_reference import EpiBERT
from tf_reference.model import Crop, FeatureMap, Rotary, RotaryTable, Sequential, SoftmaxPool, gelu_erf, gelu_tanh

# 8 bins of 8 base pairs; 8 channels in 2 heads of 4.
TINY = {
    "filter_list_seq": [6, 8],
    "filter_list_atac": [4],
    "output_length": 8,
    "final_output_length": 6,
    "num_heads": 2,
    "num_transformer_layers": 1,
    "max_seq_length": 8,
    "final_point_scale": 2,
    "num_motifs": 5,
    "motif_units_fc": 8,
}
KERNELS = ["relu_kernel_transformation", "relu_kernel_transformation_q", "softmax_kernel_transformation", "anything"]


def tiny(**changes) -> EpiBERT:
    tf_keras.utils.set_random_seed(7)
    return EpiBERT(**{**TINY, **changes}).build_weights()


def inputs(*, batch: int = 2, bins: int = 8, motifs: int = 5) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    generator = np.random.default_rng(11)
    bases = generator.integers(0, 4, (batch, bins * 8))
    atac = generator.gamma(0.5, 4.0, (batch, bins * 8, 1))
    return (
        tf.constant(np.eye(4)[bases], tf.float32),
        tf.constant(atac, tf.float32),
        tf.constant(generator.random((batch, 1, motifs)), tf.float32),
    )


def evaluated(model: EpiBERT, **shape: int) -> np.ndarray:
    return tf.cast(model(inputs(**shape), training=False), tf.float64).numpy()


def with_kernel(model: EpiBERT, kernel: str) -> EpiBERT:
    for layer in model.performer.layers:
        layer.self_attention.feature_map.kernel_transformation = kernel
    return model


@pytest.fixture(scope="module")
def model() -> EpiBERT:
    return tiny(dtype="float64")


class TestArguments:
    def test_defaults_are_the_published_model(self):
        config = EpiBERT().get_config()
        assert config["filter_list_seq"] == [512, 640, 640, 768, 896, 1024]
        assert config["filter_list_atac"] == [32, 64]
        numbers = (config["num_heads"], config["num_transformer_layers"], config["seed"], config["max_seq_length"])
        assert numbers == (8, 8, 19, 4096)
        assert config["final_output_length"] == 4092
        assert config["name"] == "epibert"

    def test_dead_arguments_change_nothing(self, model):
        other = tiny(dtype="float64", input_length=3, numerical_stabilizer=5.0, normalize=False)
        other.set_weights(model.get_weights())
        assert np.array_equal(evaluated(other), evaluated(model))

    def test_the_motif_layer_takes_whatever_width_arrives(self):
        model = EpiBERT(**TINY)
        assert model(inputs(motifs=3), training=False).shape == (2, 6, 1)
        assert model.motif_activity_fc1.kernel.shape == (3, 8)

    def test_motif_widths_and_dropout_rates(self):
        model = tiny(motif_units_fc=10, motif_dropout_rate=0.4)
        assert (model.motif_activity_fc1.units, model.motif_activity_fc2.units) == (10, 2)
        assert (model.motif_dropout1.rate, model.motif_dropout2.rate) == (0.4, 0.1)

    def test_accessibility_stem_is_32_wide_whatever_the_tower(self):
        assert tiny(filter_list_atac=[12]).stem_conv_atac.kernel.shape == (50, 1, 32)

    @pytest.mark.parametrize(("final", "rows"), [(8, 8), (7, 8), (6, 6), (5, 6), (2, 2)])
    def test_an_odd_crop_keeps_one_bin_more(self, final, rows):
        assert Crop(8, final)(tf.zeros([1, 8, 1])).shape == (1, rows, 1)

    def test_crop_takes_the_middle(self):
        assert Crop(8, 4)(tf.range(8.0)[None, :, None])[0, :, 0].numpy().tolist() == [2, 3, 4, 5]

    def test_a_crop_to_more_than_there_is_fails(self):
        with pytest.raises(ValueError, match="cannot crop 8 bins to 9"):
            EpiBERT(**{**TINY, "final_output_length": 9})

    def test_heads_divide_the_hidden_size(self):
        with pytest.raises(ValueError, match="num_heads=3"):
            EpiBERT(**{**TINY, "num_heads": 3})

    def test_rotary_positions_need_an_even_head_size(self):
        with pytest.raises(ValueError, match="even head size"):
            EpiBERT(**{**TINY, "num_heads": 8})
        assert tiny(num_heads=8, use_rot_emb=False).get_constants()[1] is None

    def test_seed_is_truncated_and_shared_by_all_layers(self):
        model = tiny(seed=19.7, num_transformer_layers=2)
        assert np.array_equal(model.get_constants()[0], tiny(seed=19).get_constants()[0])
        matrices = [layer.self_attention.feature_map.projection for layer in model.performer.layers]
        assert np.array_equal(matrices[0], matrices[1])

    def test_position_matters_only_with_rotary_positions(self):
        generator = np.random.default_rng(3)
        hidden = tf.constant(generator.normal(size=(1, 8, 8)))
        for use_rot_emb in (True, False):
            performer = tiny(use_rot_emb=use_rot_emb, dtype="float64").performer
            there, _ = performer(hidden, training=False)
            back, _ = performer(hidden[:, ::-1], training=False)
            assert np.allclose(there, back[:, ::-1], rtol=0, atol=1e-12) == (not use_rot_emb)

    def test_max_seq_length_has_one_row_to_spare(self):
        table = np.zeros([5, 4], np.float32)
        assert RotaryTable(table)(tf.zeros([1, 5, 8])).shape == (1, 5, 4)
        with pytest.raises(ValueError, match="longer than max_seq_length=4"):
            RotaryTable(table)(tf.zeros([1, 6, 8]))
        graph = tf.function(RotaryTable(table), input_signature=[tf.TensorSpec([None, None, 8])])
        with pytest.raises(tf.errors.InvalidArgumentError):
            graph(tf.zeros([1, 6, 8]))

    def test_odd_lengths_do_not_pool(self):
        with pytest.raises(ValueError, match="odd length: 7"):
            SoftmaxPool()(tf.zeros([1, 7, 3]))
        graph = tf.function(SoftmaxPool(), input_signature=[tf.TensorSpec([None, None, 3])])
        with pytest.raises(tf.errors.InvalidArgumentError):
            graph(tf.zeros([6, 7, 3]))

    def test_unknown_arguments_are_refused(self):
        with pytest.raises(TypeError, match="trainable"):
            EpiBERT(**TINY, trainable=False)


class TestPrecision:
    @pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-5), ("mixed_bfloat16", 0.1)])
    def test_every_feature_map_in_every_precision(self, model, dtype, limit):
        rounded = tiny(dtype=dtype)
        rounded.set_weights(model.get_weights())
        outputs = []
        for kernel in KERNELS:
            got, expected = (evaluated(with_kernel(each, kernel)) for each in (rounded, model))
            assert np.isfinite(got).all()
            assert 0 < np.linalg.norm(got - expected) <= limit * np.linalg.norm(expected)
            outputs.append(expected)
        with_kernel(model, KERNELS[0])
        assert np.array_equal(outputs[2], outputs[3])
        assert not any(np.allclose(first, second) for first, second in itertools.combinations(outputs[:3], 2))

    def test_the_feature_map_is_chosen_by_the_constructor(self):
        model = tiny(kernel_transformation=KERNELS[1], dtype="mixed_bfloat16")
        assert model.performer.layers[0].self_attention.feature_map.kernel_transformation == KERNELS[1]
        assert np.isfinite(evaluated(model)).all()

    @pytest.mark.parametrize("policy", ["float64", "mixed_bfloat16"])
    def test_argument_and_global_policy_agree(self, policy):
        before = tf_keras.mixed_precision.global_policy().name
        # Another global policy must not leak into a model that names its own.
        other = "float64" if policy != "float64" else "mixed_bfloat16"
        outputs = []
        for global_policy, dtype in ((policy, None), (other, policy)):
            tf_keras.mixed_precision.set_global_policy(global_policy)
            try:
                model = tiny(dtype=dtype)
                outputs.append(model(inputs(), training=False))
            finally:
                tf_keras.mixed_precision.set_global_policy(before)
            expected = {"float64": "float64"}.get(policy, "float32")
            assert {variable.dtype.name for variable in model.variables} == {expected}
            assert model.get_config()["dtype"] == policy
        assert {output.dtype.name for output in outputs} == {policy.removeprefix("mixed_")}
        assert np.array_equal(outputs[0], outputs[1])

    def test_constants_of_the_gelus_pass_through_float32(self):
        x = np.linspace(-4, 4, 101)
        tanh = x / 2 * (1 + np.tanh(0.7978845608028654 * (x + 0.044714998453855515 * x**3)))
        erf = x / 2 * (1 + tf.math.erf(x / 1.4142135381698608).numpy())
        assert np.abs(gelu_tanh(tf.constant(x)) - tanh).max() < 1e-15
        assert np.abs(gelu_erf(tf.constant(x)) - erf).max() < 1e-15
        assert np.array_equal(
            gelu_tanh(tf.constant(x, tf.bfloat16)), tf.nn.gelu(tf.constant(x, tf.bfloat16), approximate=True)
        )


class TestFormulas:
    def test_rotation_of_interleaved_pairs(self):
        generator = np.random.default_rng(0)
        x, angles = generator.normal(size=(2, 3, 2, 4)), generator.normal(size=(3, 2))
        table = tf.constant(np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)[None])
        pairs = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)[None, :, None, :]
        expected = np.stack([pairs.real, pairs.imag], axis=-1).reshape(x.shape)
        assert np.abs(Rotary(dtype="float64")(tf.constant(x), table=table) - expected).max() < 1e-14

    @pytest.mark.parametrize("kernel", KERNELS)
    @pytest.mark.parametrize("is_query", [True, False])
    def test_feature_maps(self, kernel, is_query):
        generator = np.random.default_rng(1)
        x, projection = generator.normal(size=(2, 5, 3, 4)), generator.normal(size=(16, 4)).astype(np.float32)
        if kernel.startswith("relu"):
            expected = np.maximum(x @ projection.T / 4, 0) ** (4 if kernel.endswith("_q") else 1) + 0.001
        else:
            scaled = x / 4**0.25
            exponents = scaled @ projection.T
            maximum = exponents.max(axis=-1 if is_query else (1, 3), keepdims=True)
            norms = (scaled**2).sum(axis=-1, keepdims=True) / 2
            expected = (np.exp(exponents - norms - maximum) + 1e-6) / 4
        got = FeatureMap(kernel, projection, dtype="float64")(tf.constant(x), is_query=is_query)
        assert np.abs(got - expected).max() < 1e-14

    def test_pooling_weights_are_a_softmax_over_the_pair(self):
        generator = np.random.default_rng(2)
        x = generator.normal(size=(2, 6, 3))
        pool = SoftmaxPool(dtype="float64")
        pool(tf.constant(x))
        logits = np.exp(x @ pool.dense.kernel.numpy()).reshape(2, 3, 2, 1)
        expected = (x.reshape(2, 3, 2, 3) * logits / logits.sum(axis=2, keepdims=True)).sum(axis=2)
        assert np.abs(pool(tf.constant(x)) - expected).max() < 1e-15


class TestInitialization:
    def test_attention_projections_start_equal_in_all_layers(self):
        layers = tiny(num_transformer_layers=2).performer.layers
        kernels = [
            getattr(layer.self_attention, f"{name}_dense_layer").kernel.numpy().ravel()
            for layer in layers
            for name in ("query", "key", "value", "output")
        ]
        assert all(np.array_equal(kernel, kernels[0]) for kernel in kernels)
        limit = (6 / 16) ** 0.5
        assert 0.9 * limit < np.abs(kernels[0]).max() <= limit

    def test_both_feed_forward_biases_start_random_and_the_others_at_zero(self):
        zero = {key for key, value in tiny().checkpoint_variables().items() if not np.any(value.numpy())}
        biases = {key for key in tiny().checkpoint_variables() if key.endswith("/bias")}
        assert {key for key in biases if "/FFN/" in key} == biases - zero
        assert len(biases - zero) == 2

    def test_kernels_are_lecun_normal(self):
        model = tiny(filter_list_seq=[128, 128])
        kernel = model.conv_tower.layers[0].layers[0].layers[2].kernel.numpy()
        scale = (1 / (5 * 128)) ** 0.5
        assert kernel.std() == pytest.approx(scale, rel=0.02)
        assert np.abs(kernel).max() <= 2 * scale / 0.87962566


class TestCalls:
    def test_training_is_the_default_and_moves_the_statistics(self):
        model = tiny(dtype="float64")
        before = model.get_weights()
        model(inputs(), training=False)
        assert all(np.array_equal(old, new) for old, new in zip(before, model.get_weights(), strict=True))
        model(inputs())
        moved = [not np.array_equal(old, new) for old, new in zip(before, model.get_weights(), strict=True)]
        assert sum(moved) == len(model.non_trainable_variables) == 2 * 6

    def test_dropout_acts_in_training_only(self):
        model = tiny(dropout_rate=0.5)
        assert np.array_equal(evaluated(model), evaluated(model))
        assert not np.array_equal(model(inputs(), training=True), model(inputs(), training=True))

    def test_second_motif_dropout_is_left_out_of_predict_on_batch(self, model):
        with captured(model, ["motif_dropout1", "motif_dropout2"]) as outputs:
            model.predict_on_batch(inputs())
        assert outputs.keys() == {"motif_dropout1"}

    def test_predict_on_batch_equals_the_call_and_returns_features(self, model):
        profile, features = model.predict_on_batch(inputs())
        assert np.array_equal(profile, model(inputs(), training=False))
        assert [array.shape for array in features["layer_0"]] == [(8, 2, 2, 256)] * 2

    def test_any_batch_size(self, model):
        single = [model([value[i : i + 1] for value in inputs(batch=3)], training=False) for i in range(3)]
        assert np.allclose(tf.concat(single, axis=0), evaluated(model, batch=3), rtol=1e-13, atol=0)

    def test_lengths_that_do_not_meet_fail(self, model):
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
            model(inputs(bins=4), training=False)

    def test_every_variable_has_a_gradient(self):
        model = tiny()
        data = inputs()
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(data, training=False)))
        gradients = tape.gradient(loss, model.trainable_variables)
        assert all(np.isfinite(gradient).all() and np.any(gradient) for gradient in gradients)


class TestConstants:
    def test_injected_constants_are_used_and_reported(self, model):
        other = tiny(dtype="float64")
        other.set_weights(model.get_weights())
        data = inputs()
        other.predict(data, verbose=0)
        projection, table = model.get_constants()
        assert (projection.shape, table.shape) == ((256, 4), (9, 4))
        assert (projection.dtype, table.dtype) == (np.float32, np.float32)
        other.set_constants(2 * projection, table[::-1])
        assert np.array_equal(other.get_constants()[0], 2 * projection)
        assert np.array_equal(layer_at(other, "performer/layer_pos_emb").table, table[::-1])
        changed = evaluated(other)
        assert not np.allclose(changed, evaluated(model), rtol=1e-6)
        # Keras' own traced function is renewed, too.
        assert np.allclose(other.predict(data, verbose=0), changed, rtol=1e-12)
        other.set_constants(projection, table)
        assert np.array_equal(evaluated(other), evaluated(model))

    def test_constants_of_another_shape_are_refused(self, model):
        projection, table = model.get_constants()
        with pytest.raises(ValueError, match="projection matrix has shape"):
            model.set_constants(projection.T, table)
        with pytest.raises(ValueError, match="rotary table has shape"):
            model.set_constants(projection, table[:-1])
        with pytest.raises(ValueError, match="without rotary positions"):
            tiny(use_rot_emb=False).set_constants(projection, table)
        assert np.array_equal(model.get_constants()[0], projection)


class TestPersistence:
    def test_configuration_round_trip(self, model):
        config = tiny(dtype="mixed_bfloat16", max_seq_length=20).get_config()
        again = EpiBERT.from_config(config)
        assert again.get_config() == config
        assert config["max_seq_length"] == 20
        assert layer_at(again, "performer/layer_pos_emb").table.shape == (21, 4)

    def test_weights_in_hdf5(self, model, tmp_path):
        model.save_weights(tmp_path / "weights.h5")
        other = tiny(dtype="float64", seed=19)
        other.set_weights([np.zeros(variable.shape) for variable in other.variables])
        other.load_weights(tmp_path / "weights.h5")
        assert np.array_equal(evaluated(other), evaluated(model))

    def test_saved_model_read_by_tensorflow_and_by_keras(self, tmp_path):
        # Not float64: Keras' loader rebuilds every Sequential with float32 inputs, whatever it held before.
        model = tiny(dtype="float32")
        data, expected = inputs(), evaluated(model)
        model.save(tmp_path / "saved", save_format="tf")
        loaded = tf.saved_model.load(str(tmp_path / "saved"))
        assert np.allclose(loaded(data, training=False), expected, rtol=1e-5, atol=0)
        # Any batch size: the trace that built the weights fixed none.
        assert loaded(tuple(tf.concat([value] * 2, 0) for value in data), training=False).shape == (4, 6, 1)
        again = tf_keras.models.load_model(tmp_path / "saved")
        assert isinstance(again, EpiBERT)
        assert again.get_config() == model.get_config()
        assert np.allclose(evaluated(again), expected, rtol=1e-5, atol=0)

    def test_building_changes_nothing_in_what_is_computed(self):
        tf_keras.utils.set_random_seed(7)
        unbuilt = EpiBERT(**TINY, dtype="float64")
        first = evaluated(unbuilt)
        built = tiny(dtype="float64")
        built.set_weights(unbuilt.get_weights())
        assert np.array_equal(evaluated(built), first)


def test_layers_in_a_row_are_named_and_computed_as_by_keras_own():
    x = tf.constant(np.random.default_rng(0).standard_normal((4, 3)))

    def run(kind):
        tf_keras.backend.clear_session()
        norm = tf_keras.layers.BatchNormalization(dtype="float64")
        tower = kind([kind([norm, tf_keras.layers.Dense(2, kernel_initializer="ones", dtype="float64")])])
        with tf.name_scope("around"):
            outputs = [tower(x[:, :2] if training else x[:, 1:], training=training) for training in (True, False)]
        variables = {variable.name: variable.numpy().tolist() for variable in tower.variables}
        return [layer.name for layer in tower.layers], variables, [output.numpy().tolist() for output in outputs]

    assert run(Sequential) == run(tf_keras.Sequential)

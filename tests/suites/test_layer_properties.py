"""Every layer type, reference against port in float64, on whatever is legal: shapes, numbers, memory layouts, weights.

What is drawn, and how the layer is made on both sides, stands in one table (parity/pairs/epibert_layers.py), which
``epibert layer`` takes as well; its formulas in NumPy are held against the reference here on every example.

Beside each layer stand seeded faults: mistakes that ports make. Each is put into the port's layer, and the very same
comparison must then fail, so that no property here is one that cannot.
"""

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

import tf_reference.model as reference
import torch_impl.model as port
from parity.pairs import epibert_layers as layers
from parity.pairs.epibert_layers import CONFIG, KERNELS, LAYERS, NO_DROPOUT, Case
from parity.pairs.samples import (
    Memory,
    ModelInputs,
    Sample,
    batches,
    examples,
    lengths,
    model_inputs,
    odd_lengths,
    sample,
    samples,
    seeds,
    widths,
)
from parity.pairs.twins import Twins
from tests.assertions import Disagreement, as_array, assert_same
from torch_impl import EpiBERTConfig

BUILDERS = {name: functools.cache(layer.make) for name, layer in LAYERS.items()}
conv1d, softmax_pool, max_pool, crop = (BUILDERS[name] for name in ("Conv1d", "SoftmaxPool", "MaxPool", "Crop"))
batch_norm, layer_norm, linear = (BUILDERS[name] for name in ("BatchNorm", "LayerNorm", "Linear"))
tanh_gelu, erf_gelu = (BUILDERS[name] for name in ("TanhGELU", "ErfGELU"))
heads_in, heads_out, feature_map = (BUILDERS[name] for name in ("HeadsIn", "HeadsOut", "FeatureMap"))
conv_block, residual, tower_block = (BUILDERS[name] for name in ("ConvBlock", "Residual", "TowerBlock"))
rotary, rotary_table = (BUILDERS[name] for name in ("Rotary", "RotaryTable"))
favor_attention, feed_forward = (BUILDERS[name] for name in ("FavorAttention", "FeedForward"))
transformer_layer, performer = (BUILDERS[name] for name in ("TransformerLayer", "Performer"))


def assert_all_same(found: Any, expected: Any, tolerance: str = "float64", *, of: str = "the port") -> None:
    """Everything that one side returned is what the other did."""
    assert found.keys() == expected.keys()
    for name in expected:
        assert_same(found[name], expected[name], tolerance, what=f"{name} of {of}")


def assert_twins_agree(
    twins: Twins, inputs: Sample | ModelInputs, *, seed: int | None = 1, training: bool = False,
    tolerance: str = "float64",
) -> None:  # fmt: skip
    """With weights drawn from ``seed``, or as they are when it is None, all outputs and moving statistics are the same.

    Raises:
        Disagreement: They are not.
    """
    twins.build(inputs)
    assert not twins.unmatched() or seed is None, f"{twins.unmatched()} are not in the weight table"
    weights = None if seed is None else twins.draw(seed)
    if weights is not None:
        twins.fill(weights, reference=True)
    expected = twins.run_reference(inputs, training=training)
    assert_all_same(twins.run_port(inputs, training=training), expected, tolerance)
    if twins.formula is not None and weights is not None:
        assert_all_same(twins.run_formula(inputs, weights, training=training), expected, tolerance, of="the formula")


@pytest.mark.parametrize("name", LAYERS)
def test_layer_and_formula_are_the_reference(name):
    layer = LAYERS[name]

    @examples(layer.share)
    @given(case=layer.cases)
    def agree(case: Case) -> None:
        twins = BUILDERS[name](**case.geometry)
        assert_twins_agree(twins, case.inputs, seed=case.seed, training=case.training, tolerance=layer.tolerance)

    agree()


@dataclass(frozen=True)
class SeededFault:
    """A mistake to be made in a port's layer, and inputs on which it must show."""

    name: str
    inject: Callable[[Any], None]
    build: functools.partial[Twins]
    inputs: Sample | ModelInputs
    training: bool


SEEDED_FAULTS: list[SeededFault] = []


def seeded_fault(
    twins: Callable[..., Twins], *arguments: Any, inputs: Sample | ModelInputs, training: bool = False
) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Registers a function that puts a mistake into the port's layer of such twins."""

    def register(inject: Callable[[Any], None]) -> Callable[[Any], None]:
        builder = inspect.unwrap(twins)  # past the cache, since the mistake stays in the layer
        case = "-".join([builder.__name__, *map(str, arguments), "training" if training else "evaluation"])
        name = f"{case}: {inject.__name__}"
        SEEDED_FAULTS.append(SeededFault(name, inject, functools.partial(builder, *arguments), inputs, training))
        return inject

    return register


# --- convolution ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel_size", [1, 5, 15, 50])
@pytest.mark.parametrize("length", [1, 2, 49, 64])
def test_conv1d_of_the_models_kernel_sizes(kernel_size, length):
    assert_twins_agree(conv1d(4, 6, kernel_size), sample(2, length, 4))


@seeded_fault(conv1d, 3, 4, 5, inputs=sample(2, 9, 3))
@seeded_fault(conv1d, 3, 4, 50, inputs=sample(2, 9, 3))
def kernel_flipped(conv: Any) -> None:
    plain = conv.forward
    weight = conv.weight

    def forward(x: torch.Tensor) -> torch.Tensor:
        conv.weight = nn.Parameter(weight.flip(-1))
        return plain(x)

    conv.forward = forward


@seeded_fault(conv1d, 3, 4, 50, inputs=sample(2, 9, 3))
@seeded_fault(conv1d, 3, 4, 2, inputs=sample(2, 9, 3))
def even_kernel_reaches_further_left(conv: Any) -> None:
    left, right = conv.kernel_size[0] // 2, (conv.kernel_size[0] - 1) // 2
    conv.forward = lambda x: F.conv1d(F.pad(x.mT, (left, right)), conv.weight, conv.bias).mT


@seeded_fault(conv1d, 3, 4, 1, inputs=sample(2, 9, 3))
@seeded_fault(conv1d, 3, 4, 5, inputs=sample(2, 9, 3))
def convolution_without_bias(conv: Any) -> None:
    conv.forward = lambda x: F.conv1d(x.mT, conv.weight, padding="same").mT


# --- pooling and cropping ---------------------------------------------------------------------------------------------


@given(x=samples(batches, odd_lengths, widths))
@examples(0.3)
def test_softmax_pool_refuses_an_odd_length_on_both_sides(x):
    twins = softmax_pool(x.numbers.shape[-1])
    for layer, inputs in ((twins.reference, tf.constant(x.numbers)), (twins.port, x.tensor)):
        with pytest.raises(ValueError, match=rf"(?s)odd length|even length.*{x.numbers.shape[1]}"):
            layer(inputs)


@seeded_fault(softmax_pool, 3, inputs=sample(2, 8, 3))
def weights_swapped(pool: Any) -> None:
    pool.logits.activation = torch.neg


@seeded_fault(softmax_pool, 3, inputs=sample(2, 8, 3))
def mean_of_the_pair(pool: Any) -> None:
    pool.forward = lambda x: x.unflatten(1, (-1, 2)).mean(dim=2)


@seeded_fault(softmax_pool, 3, inputs=sample(2, 8, 3))
def pairs_half_the_length_apart(pool: Any) -> None:
    plain = pool.forward
    pool.forward = lambda x: plain(x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2))


@seeded_fault(max_pool, 4, inputs=sample(2, 10, 3))
def incomplete_window_kept(pool: Any) -> None:
    pool.forward = lambda x: F.max_pool1d(x.mT, pool.size, ceil_mode=True).mT


@seeded_fault(max_pool, 2, inputs=sample(2, 10, 3))
def overlapping_windows(pool: Any) -> None:
    pool.forward = lambda x: F.max_pool1d(x.mT, pool.size, stride=1).mT


@seeded_fault(crop, 9, 4, inputs=sample(2, 9, 3))
def odd_rest_cut_off(layer: Any) -> None:
    layer.forward = lambda x: x[:, layer.bins : layer.bins + 4]


@seeded_fault(crop, 8, 4, inputs=sample(2, 8, 3))
def one_end_only(layer: Any) -> None:
    layer.forward = lambda x: x[:, 2 * layer.bins :]


# --- normalisation ----------------------------------------------------------------------------------------------------


@seeded_fault(batch_norm, 3, inputs=sample(2, 9, 3))
@seeded_fault(batch_norm, 3, inputs=sample(2, 9, 3), training=True)
def batch_norm_epsilon_of_keras(norm: Any) -> None:
    norm.epsilon = 1e-3


@seeded_fault(batch_norm, 3, inputs=sample(2, 9, 3))
def batch_statistics_in_evaluation(norm: Any) -> None:
    norm.forward = lambda x: F.batch_norm(x.mT, None, None, norm.weight, norm.bias, training=True, eps=norm.epsilon).mT


@seeded_fault(batch_norm, 3, inputs=sample(2, 9, 3), training=True)
def unbiased_moving_variance(norm: Any) -> None:
    norm.forward = lambda x: (
        F.batch_norm(
            x.mT, norm.running_mean, norm.running_var, norm.weight, norm.bias, True, norm.update_rate, norm.epsilon
        ).mT
    )


@seeded_fault(batch_norm, 3, inputs=sample(2, 9, 3), training=True)
def momentum_of_the_new_statistics(norm: Any) -> None:
    norm.update_rate = norm.momentum


@seeded_fault(batch_norm, 3, inputs=sample(2, 9, 3), training=True)
def update_rate_not_rounded_to_float32(norm: Any) -> None:
    norm.update_rate = 1 - norm.momentum


@seeded_fault(layer_norm, 4, inputs=sample(2, 9, 4))
def layer_norm_epsilon(norm: Any) -> None:
    norm.eps = 1e-6


@seeded_fault(layer_norm, 4, inputs=sample(2, 9, 4))
def unbiased_variance(norm: Any) -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        centered = x - x.mean(dim=-1, keepdim=True)
        return centered * (x.var(dim=-1, keepdim=True) + norm.eps).rsqrt() * norm.weight + norm.bias

    norm.forward = forward


@seeded_fault(layer_norm, 4, inputs=sample(2, 9, 4))
def norm_over_positions_too(norm: Any) -> None:
    norm.forward = lambda x: F.layer_norm(x, x.shape[1:], eps=norm.eps) * norm.weight + norm.bias


# --- activations ------------------------------------------------------------------------------------------------------

finite = st.floats(1e-300, 1e300) | st.floats(1e-3, 50)
"""Magnitudes. Smaller ones would leave subnormal results, which TensorFlow flushes."""


def assert_activations_agree(
    ours: Callable[[torch.Tensor], torch.Tensor],
    theirs: Callable[[tf.Tensor], tf.Tensor],
    x: np.ndarray,
    unit: np.ndarray,
) -> None:
    """Each number counts by itself, however small beside its neighbours: in units of ``unit``."""
    assert_same(as_array(ours(torch.from_numpy(x))) / unit, as_array(theirs(tf.constant(x))) / unit)


# Far below zero 1 + tanh and 1 + erf cancel, so that what is left is exact only in units of x, on both sides.
@given(magnitudes=st.lists(finite, min_size=1, max_size=20))
@example(magnitudes=np.linspace(0.01, 12, 200).tolist())
def test_tanh_gelu(magnitudes):
    x = np.array([*magnitudes, *(-m for m in magnitudes)])
    assert_activations_agree(port.TanhGELU(CONFIG.gelu_cubic_coefficient), reference.gelu_tanh, x, np.abs(x))


# TensorFlow's erf squares its argument and is NaN from 1.4e154 on; PyTorch's is 1 there.
@given(magnitudes=st.lists(finite.filter(lambda magnitude: magnitude < 1e154), min_size=1, max_size=20))
@example(magnitudes=np.linspace(0.01, 12, 200).tolist())
def test_erf_gelu(magnitudes):
    x = np.array([*magnitudes, *(-m for m in magnitudes)])
    assert_activations_agree(port.ErfGELU(CONFIG.gelu_erf_scale), reference.gelu_erf, x, np.abs(x))


def test_activations_of_zero():
    zero = np.zeros((1, 2, 3))
    for ours, theirs in (
        (port.TanhGELU(CONFIG.gelu_cubic_coefficient), reference.gelu_tanh),
        (port.ErfGELU(CONFIG.gelu_erf_scale), reference.gelu_erf),
        (port.softplus, tf.nn.softplus),
    ):
        assert_same(ours(torch.from_numpy(zero)), theirs(tf.constant(zero)))


# Below -700 the result is subnormal. PyTorch's own softplus is linear above 20, which shows from 20 to 25.
@given(z=st.lists(st.floats(-700, 1e300) | st.floats(20, 40), min_size=1, max_size=20))
@example(z=np.linspace(-700, 700, 281).tolist())
@example(z=np.linspace(20, 40, 81).tolist())
def test_softplus(z):
    x = np.array(z)
    assert_activations_agree(port.softplus, tf.nn.softplus, x, as_array(tf.nn.softplus(tf.constant(x))))


def test_softplus_with_a_threshold_is_seen():
    x = np.linspace(20, 40, 81)
    with pytest.raises(Disagreement):
        assert_activations_agree(F.softplus, tf.nn.softplus, x, x)


@seeded_fault(tanh_gelu, inputs=sample(2, 9, 3))
def erf_form(gelu: Any) -> None:
    gelu.forward = F.gelu


@seeded_fault(tanh_gelu, inputs=sample(2, 9, 3))
def textbook_coefficient(gelu: Any) -> None:
    gelu.cubic_coefficient = 0.044715


@seeded_fault(erf_gelu, inputs=sample(2, 9, 3))
def tanh_form(gelu: Any) -> None:
    gelu.forward = lambda x: F.gelu(x, approximate="tanh")


@seeded_fault(erf_gelu, inputs=sample(2, 9, 3))
def exact_square_root(gelu: Any) -> None:
    gelu.scale = math.sqrt(2)


# --- dense layers -----------------------------------------------------------------------------------------------------


@seeded_fault(linear, 4, 4, inputs=sample(2, 9, 4))
@seeded_fault(linear, 4, 4, False, inputs=sample(2, 9, 4))
def kernel_not_transposed(layer: Any) -> None:
    layer.forward = lambda x: F.linear(x, layer.weight.T, layer.bias)


@seeded_fault(linear, 4, 3, inputs=sample(2, 9, 4))
def linear_without_its_bias(layer: Any) -> None:
    layer.forward = lambda x: F.linear(x, layer.weight)


@seeded_fault(linear, 4, 3, True, "gelu", inputs=sample(2, 9, 4))
def tanh_form_in_the_motif_layer(layer: Any) -> None:
    layer.activation = nn.GELU(approximate="tanh")


@seeded_fault(linear, 4, 3, True, "softplus", inputs=sample(2, 9, 4))
def exponential_activation(layer: Any) -> None:
    layer.activation = torch.exp


@seeded_fault(heads_in, 2, 3, inputs=sample(2, 9, 6))
def heads_interleaved(layer: Any) -> None:
    layer.forward = lambda x: F.linear(x, layer.weight).unflatten(-1, (-1, layer.heads)).mT


@seeded_fault(heads_out, 2, 3, inputs=sample(2, 9, 2, 3))
def heads_joined_the_other_way(layer: Any) -> None:
    layer.forward = lambda x: F.linear(x.mT.flatten(-2), layer.weight)


# --- blocks of convolutions -------------------------------------------------------------------------------------------


@seeded_fault(conv_block, 3, 4, 5, inputs=sample(2, 9, 3))
def activation_before_norm(block: Any) -> None:
    block.forward = lambda x: block.conv(block.norm(block.activation(x)))


@seeded_fault(conv_block, 3, 3, 5, inputs=sample(2, 9, 3))
def convolution_first(block: Any) -> None:
    block.forward = lambda x: block.activation(block.norm(block.conv(x)))


@seeded_fault(residual, 3, inputs=sample(2, 9, 3))
def no_skip_connection(layer: Any) -> None:
    layer.forward = layer.block.forward


@seeded_fault(residual, 3, inputs=sample(2, 9, 3))
def skip_from_behind_the_norm(layer: Any) -> None:
    layer.forward = lambda x: layer.block.norm(x) + layer.block(x)


@seeded_fault(tower_block, 3, 3, "conv_tower", inputs=sample(2, 8, 3))
@seeded_fault(tower_block, 3, 3, "conv_tower_atac", inputs=sample(2, 8, 3))
def pooling_first(layer: Any) -> None:
    layer.forward = lambda x: layer.block(layer.pool(x))


# --- rotary positions -------------------------------------------------------------------------------------------------


@given(x=samples(batches, lengths, widths), max_seq_length=st.integers(1, 24), head_size=layers.even_head_sizes)
def test_rotary_table_is_cut_to_the_length_or_refuses_it(x, max_seq_length, head_size):
    twins = rotary_table(max_seq_length, head_size)
    if x.numbers.shape[1] <= max_seq_length + 1:
        assert_twins_agree(twins, x, tolerance="exact")
        return
    for layer, inputs in ((twins.reference, tf.constant(x.numbers)), (twins.port, x.tensor)):
        with pytest.raises(ValueError, match=str(x.numbers.shape[1])):
            layer(inputs)


def changed_table(layer: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    plain = layer.forward
    layer.forward = lambda x, table: plain(x, change(table))


@seeded_fault(rotary, 9, 4, inputs=sample(2, 9, 3, 4))
def cosines_first(layer: Any) -> None:
    changed_table(layer, lambda table: table.roll(table.shape[-1] // 2, dims=-1))


@seeded_fault(rotary, 9, 4, inputs=sample(2, 9, 3, 4))
def positions_from_one(layer: Any) -> None:
    changed_table(layer, lambda table: table.roll(-1, dims=1))


@seeded_fault(rotary, 9, 4, inputs=sample(2, 9, 3, 4))
def rotation_backwards(layer: Any) -> None:
    changed_table(layer, lambda table: torch.cat([-table[..., :2], table[..., 2:]], dim=-1))


@seeded_fault(rotary, 9, 4, inputs=sample(2, 9, 3, 4))
def halves_instead_of_neighbours(layer: Any) -> None:
    def forward(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        sine, cosine = table.unsqueeze(2).chunk(2, dim=-1)
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)

    layer.forward = forward


@seeded_fault(rotary_table, 9, 4, inputs=sample(2, 9, 3))
def table_without_bfloat16(layer: Any) -> None:
    layer.table = torch.from_numpy(port.rotary_table(10, 4, bfloat16=False)).double()


# --- attention --------------------------------------------------------------------------------------------------------


@seeded_fault(feature_map, KERNELS[0], True, 8, 4, inputs=sample(2, 9, 3, 4))
@seeded_fault(feature_map, KERNELS[1], True, 8, 4, inputs=sample(2, 9, 3, 4))
def stabilizer_of_the_dead_argument(layer: Any) -> None:
    layer.stabilizer = 1e-7


@seeded_fault(feature_map, KERNELS[1], True, 8, 4, inputs=sample(2, 9, 3, 4))
@seeded_fault(feature_map, KERNELS[2], True, 8, 4, inputs=sample(2, 9, 3, 4))
def relu_kernel_whatever_is_asked(layer: Any) -> None:
    layer.kernel = KERNELS[0]


@seeded_fault(feature_map, KERNELS[0], True, 8, 4, inputs=sample(2, 9, 3, 4))
def no_ratio(layer: Any) -> None:
    layer.forward = lambda x, projection, is_query: F.relu(F.linear(x, projection)) + layer.stabilizer


@seeded_fault(feature_map, KERNELS[2], False, 8, 4, inputs=sample(2, 9, 3, 4))
def keys_shifted_one_by_one(layer: Any) -> None:
    plain = layer.forward
    layer.forward = lambda x, projection, is_query: plain(x, projection, is_query=True)


ATTENTION_INPUTS = sample(2, 9, 12)


@seeded_fault(favor_attention, 12, 3, inputs=ATTENTION_INPUTS)
def queries_scaled(layer: Any) -> None:
    layer.query.register_forward_hook(lambda module, inputs, output: output / math.sqrt(output.shape[-1]))


@seeded_fault(favor_attention, 12, 3, inputs=ATTENTION_INPUTS)
def values_rotated(layer: Any) -> None:
    table = torch.from_numpy(layers.rotary_numbers(9, 4)[None]).double()
    layer.value.register_forward_hook(lambda module, inputs, output: port.Rotary()(output, table))


@seeded_fault(favor_attention, 12, 3, inputs=ATTENTION_INPUTS)
def keys_not_rotated(layer: Any) -> None:
    plain, keys = port.Rotary(), []
    layer.key.register_forward_hook(lambda module, inputs, output: keys.append(output))
    layer.rotary = nn.Module()
    layer.rotary.forward = lambda x, table: x if x is keys[-1] else plain(x, table)


@seeded_fault(favor_attention, 12, 3, inputs=ATTENTION_INPUTS)
def epsilon_in_the_denominator(layer: Any) -> None:
    def forward(x: torch.Tensor, projection: torch.Tensor, table: torch.Tensor) -> Any:
        query, key = (layer.rotary(projected(x), table) for projected in (layer.query, layer.key))
        query, key = layer.features(query, projection, is_query=True), layer.features(key, projection, is_query=False)
        weights = torch.einsum("blhm,bnhm->blnh", query, key)
        weights = weights / (weights.sum(dim=2, keepdim=True) + 1e-6)
        attended = layer.output(torch.einsum("blnh,bnhd->blhd", weights, layer.value(x)))
        return attended, key.transpose(0, 1), query.transpose(0, 1)

    layer.forward = forward


@seeded_fault(favor_attention, 12, 3, inputs=ATTENTION_INPUTS)
def key_and_query_weights_exchanged(layer: Any) -> None:
    layer.query, layer.key = layer.key, layer.query


@seeded_fault(feed_forward, 6, inputs=sample(2, 9, 6))
def another_activation(layer: Any) -> None:
    layer.activation = nn.GELU()


@seeded_fault(feed_forward, 6, inputs=sample(2, 9, 6))
def residual_inside(layer: Any) -> None:
    layer.register_forward_hook(lambda module, inputs, output: inputs[0] + output)


@seeded_fault(transformer_layer, 12, 3, inputs=ATTENTION_INPUTS)
def norm_after_attention(layer: Any) -> None:
    layer.norm, norm = nn.Identity(), layer.norm
    layer.attention.register_forward_hook(lambda module, inputs, output: (norm(output[0]), *output[1:]))


@seeded_fault(transformer_layer, 12, 3, inputs=ATTENTION_INPUTS)
def feed_forward_beside_attention(layer: Any) -> None:
    def forward(x: torch.Tensor, projection: torch.Tensor, table: torch.Tensor) -> Any:
        attended, key_features, query_features = layer.attention(layer.norm(x), projection, table)
        return x + attended + layer.ffn(x), key_features, query_features

    layer.forward = forward


@seeded_fault(transformer_layer, 12, 3, inputs=ATTENTION_INPUTS)
def features_exchanged(layer: Any) -> None:
    layer.register_forward_hook(lambda module, inputs, output: (output[0], output[2], output[1]))


@seeded_fault(performer, 12, 3, inputs=ATTENTION_INPUTS)
def no_last_norm(layer: Any) -> None:
    layer.norm = None


@seeded_fault(performer, 12, 3, inputs=ATTENTION_INPUTS)
def layers_in_another_order(layer: Any) -> None:
    layer.layers = nn.ModuleList(reversed(layer.layers))


@seeded_fault(performer, 12, 3, inputs=ATTENTION_INPUTS)
def projection_of_another_seed(layer: Any) -> None:
    layer.projection_matrix = torch.from_numpy(port.projection_matrix(256, 4, 20)).double()


@seeded_fault(performer, 12, 3, inputs=ATTENTION_INPUTS)
def table_rows_shifted(layer: Any) -> None:
    layer.rotary_table.table = layer.rotary_table.table.roll(1, dims=0)


# --- the whole model --------------------------------------------------------------------------------------------------

SMALLEST: dict[str, Any] = {
    "filter_list_seq": (2,),
    "filter_list_atac": (1,),
    "num_heads": 1,
    "num_transformer_layers": 1,
    "output_length": 1,
    "final_output_length": 1,
    "max_seq_length": 1,
    "final_point_scale": 2,
    "num_motifs": 1,
    "motif_units_fc": 4,
    **NO_DROPOUT,
}
MODELS: dict[str, dict[str, Any]] = {
    "smallest": SMALLEST,
    "no transformer layer": {**SMALLEST, "num_transformer_layers": 0},
    # The others are wide enough for training, too: a LayerNorm of two channels makes 1 and -1 of them, and the variance
    # of a channel of ones is nothing but rounding.
    "odd crop": {
        **SMALLEST,
        "filter_list_seq": (5, 12),
        "filter_list_atac": (3, 4),
        "num_heads": 3,
        "num_transformer_layers": 2,
        "output_length": 9,
        "final_output_length": 4,
        "max_seq_length": 9,
        "num_motifs": 3,
        "motif_units_fc": 9,
    },
}
MODELS["softmax kernel, no rotation, no last norm"] = {
    **MODELS["odd crop"],
    "filter_list_seq": (6, 9),
    "use_rot_emb": False,
    "kernel_transformation": KERNELS[2],
    "norm": False,
}
MODELS["quartic kernel, other momentum"] = {
    **MODELS["odd crop"],
    "kernel_transformation": KERNELS[1],
    "BN_momentum": 0.8,
    "seed": 3,
}
TRAINABLE = tuple(MODELS)[2:]


@functools.cache
def reference_epibert(name: str) -> reference.EpiBERT:
    return reference.EpiBERT(**MODELS[name], dtype="float64")


@functools.cache
def epibert(name: str) -> Twins:
    theirs = reference_epibert(name)  # one for all faults, which are put into the port
    config = EpiBERTConfig(**MODELS[name])
    ours = port.EpiBERT(config).double()
    projection, table = theirs.get_constants()
    tables = None if table is None else torch.from_numpy(table)
    ours.set_constants(torch.from_numpy(projection), tables, origin=f"tensorflow {tf.__version__}")
    return Twins(
        make_reference=lambda: theirs,
        port=ours,
        alike=("model", ""),
        config=config,
        heads=config.num_heads,
        call_port=lambda model, inputs: model(*inputs),
    )


def inputs_of(name: str, batch: int, **recipe: Any) -> ModelInputs:
    config = EpiBERTConfig(**MODELS[name])
    return model_inputs(batch, config.sequence_length, config.atac_length, config.num_motifs, **recipe)


@given(name=st.sampled_from(list(MODELS)), batch=batches, seed=seeds, known=st.sampled_from([0.0, 0.5, 1.0]),
       open_bins=st.sampled_from([0.0, 0.3, 1.0]), memory=st.sampled_from(Memory))  # fmt: skip
@examples(0.6)
def test_whole_model_in_evaluation(name, batch, seed, known, open_bins, memory):
    inputs = inputs_of(name, batch, seed=seed, known=known, open_bins=open_bins, memory=memory)
    assert_twins_agree(epibert(name), inputs, seed=seed)


# Not without any base or open bin: all positions would be alike but for the ends, and the variances of BatchNorm
# nothing but rounding.
@given(name=st.sampled_from(TRAINABLE), batch=batches, seed=seeds, known=st.sampled_from([0.5, 1.0]),
       open_bins=st.sampled_from([0.3, 1.0]), memory=st.sampled_from(Memory))  # fmt: skip
@examples(0.4)
def test_whole_model_in_training(name, batch, seed, known, open_bins, memory):
    inputs = inputs_of(name, batch, seed=seed, known=known, open_bins=open_bins, memory=memory)
    assert_twins_agree(epibert(name), inputs, seed=seed, training=True)


@seeded_fault(epibert, "smallest", inputs=inputs_of("smallest", 2, seed=0))
@seeded_fault(epibert, "odd crop", inputs=inputs_of("odd crop", 2, seed=0))
def accessibility_before_sequence(model: Any) -> None:
    hidden = model.config.hidden_size
    width = hidden + model.config.filter_list_atac[-1]

    def exchanged(module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        (x,) = inputs
        return (torch.cat([x[..., hidden:width], x[..., :hidden], x[..., width:]], dim=-1),)

    model.pre_transformer_projection.register_forward_pre_hook(exchanged)


@seeded_fault(epibert, "odd crop", inputs=inputs_of("odd crop", 2, seed=0))
def head_without_gelu(model: Any) -> None:
    model.gelu = nn.Identity()


@seeded_fault(epibert, "odd crop", inputs=inputs_of("odd crop", 2, seed=0))
def statistics_of_one_block_default(model: Any) -> None:
    nn.init.zeros_(model.conv_tower[1].block.norm.running_mean)


@seeded_fault(epibert, "odd crop", inputs=inputs_of("odd crop", 2, seed=0), training=True)
def one_norm_left_in_evaluation(model: Any) -> None:
    norm = model.final_pointwise_conv.norm.eval()
    norm.train = lambda mode=True: norm


# --- each of these can fail -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", SEEDED_FAULTS, ids=lambda fault: fault.name)
def test_a_seeded_fault_is_seen(fault):
    twins = fault.build()
    assert_twins_agree(twins, fault.inputs, training=fault.training)
    weights = twins.draw(seed=2)
    twins.fill(weights, reference=True)
    fault.inject(twins.port)
    with pytest.raises(Disagreement):
        assert_twins_agree(twins, fault.inputs, seed=None, training=fault.training)
    if twins.formula is not None:
        found = twins.run_port(fault.inputs, training=fault.training)
        stated = twins.run_formula(fault.inputs, weights, training=fault.training)
        with pytest.raises(Disagreement):
            assert_all_same(found, stated)


def test_every_layer_type_of_the_port_has_a_property_and_a_fault():
    types = {
        name.lower()
        for name, value in vars(port).items()
        if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == port.__name__
        # What has no forward of its own is a base of models, not a layer.
        if not name.startswith("_") and value.forward is not nn.Module.forward
    }
    types.remove("dropout")  # it draws by chance; tests/unit/torch_impl/test_kernels.py holds what it draws from
    assert len(types) > 15
    builders = {inspect.unwrap(fault.build.func).__name__ for fault in SEEDED_FAULTS}
    assert {name.replace("_", "") for name in builders} == types
    assert {layer.port.lower() for layer in LAYERS.values()} | {"epibert"} == types
    assert all(name == layer.port for name, layer in LAYERS.items())

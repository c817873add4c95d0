"""Every layer type, reference against port in float64, on whatever is legal: shapes, numbers, memory layouts, weights.

Beside each property stand seeded faults: mistakes that ports make. Each is put into the port's layer, and the very same
comparison must then fail, so that no property here is one that cannot.

Where numbers are kept from a layer, the reason stands at its test. It is always of one kind: the layer's formula
cancels there, so that rounding, in which two correct implementations differ, is all that is left of the result.
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
import tf_keras
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from tf_keras.mixed_precision import Policy
from torch import nn

import tf_reference.model as reference
import torch_impl.model as port
from tests.assertions import Disagreement, as_array, assert_same
from parity.pairs.samples import (
    AFFINE,
    Kind,
    Memory,
    ModelInputs,
    Sample,
    batches,
    even_lengths,
    examples,
    kernel_sizes,
    lengths,
    model_inputs,
    odd_lengths,
    sample,
    samples,
    seeds,
    widths,
)
from parity.pairs.twins import Twins, assert_twins_agree
from torch_impl import EpiBERTConfig

FLOAT64 = Policy("float64")
NO_DROPOUT: dict[str, Any] = {"dropout_rate": 0.0, "pointwise_dropout_rate": 0.0, "motif_dropout_rate": 0.0}
CONFIG = EpiBERTConfig.tiny()
EPSILON, MOMENTUM = CONFIG.batch_norm_epsilon, CONFIG.BN_momentum
KERNELS = ("relu_kernel_transformation", "relu_kernel_transformation_q", "softmax_kernel_transformation")

# Every kind of numbers but those next to which a bias of one is lost altogether.
MODERATE = tuple(kind for kind in AFFINE if kind not in {Kind.HUGE, Kind.MIXED})


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


@functools.cache
def conv1d(channels_in: int, channels_out: int, kernel_size: int) -> Twins:
    return Twins(
        reference=reference._conv(channels_out, kernel_size, FLOAT64),
        port=port.Conv1d(channels_in, channels_out, kernel_size).double(),
        alike=("model/stem_conv", "stem_conv"),
    )


@given(x=samples(batches, lengths, widths, kinds=AFFINE), width=widths, kernel_size=kernel_sizes, seed=seeds)
def test_conv1d(x, width, kernel_size, seed):
    assert_twins_agree(conv1d(x.numbers.shape[-1], width, kernel_size), x, seed=seed)


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


@functools.cache
def softmax_pool(channels: int) -> Twins:
    return Twins(
        reference=reference.SoftmaxPool(dtype=FLOAT64),
        port=port.SoftmaxPool(channels).double(),
        alike=("model/stem_pool", "stem_pool"),
    )


@given(x=samples(batches, even_lengths, widths), seed=seeds)
def test_softmax_pool(x, seed):
    assert_twins_agree(softmax_pool(x.numbers.shape[-1]), x, seed=seed)


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


@functools.cache
def max_pool(size: int) -> Twins:
    return Twins(reference=tf_keras.layers.MaxPool1D(size, dtype=FLOAT64), port=port.MaxPool(size))


# Pooling needs one complete window; the model's lengths are multiples of the size. A maximum is one of the inputs.
@given(size=st.sampled_from([2, 4]), x=samples(batches, st.integers(4, 24), widths))
def test_max_pool(size, x):
    assert_twins_agree(max_pool(size), x, tolerance="exact")


@seeded_fault(max_pool, 4, inputs=sample(2, 10, 3))
def incomplete_window_kept(pool: Any) -> None:
    pool.forward = lambda x: F.max_pool1d(x.mT, pool.size, ceil_mode=True).mT


@seeded_fault(max_pool, 2, inputs=sample(2, 10, 3))
def overlapping_windows(pool: Any) -> None:
    pool.forward = lambda x: F.max_pool1d(x.mT, pool.size, stride=1).mT


@functools.cache
def crop(length: int, target: int) -> Twins:
    bins = (length - target) // 2
    return Twins(reference=reference.Crop(length, target, dtype=FLOAT64), port=port.Crop(bins))


@given(x=samples(batches, lengths, widths), data=st.data())
def test_crop(x, data):
    length = x.numbers.shape[1]
    target = data.draw(st.integers(1, length), label="target")
    assert_twins_agree(crop(length, target), x, tolerance="exact")


@seeded_fault(crop, 9, 4, inputs=sample(2, 9, 3))
def odd_rest_cut_off(layer: Any) -> None:
    layer.forward = lambda x: x[:, layer.bins : layer.bins + 4]


@seeded_fault(crop, 8, 4, inputs=sample(2, 8, 3))
def one_end_only(layer: Any) -> None:
    layer.forward = lambda x: x[:, 2 * layer.bins :]


# --- normalisation ----------------------------------------------------------------------------------------------------


@functools.cache
def batch_norm(channels: int) -> Twins:
    layer = tf_keras.layers.BatchNormalization(
        momentum=MOMENTUM, epsilon=reference.BATCH_NORM_EPSILON, synchronized=True, dtype=FLOAT64
    )
    return Twins(
        reference=layer,
        port=port.BatchNorm(channels, EPSILON, MOMENTUM).double(),
        alike=("model/stem_res_conv/_layer/layer_with_weights-0", "stem_res_conv.block.norm"),
    )


@given(x=samples(batches, lengths, widths, kinds=AFFINE), seed=seeds)
def test_batch_norm_in_evaluation(x, seed):
    assert_twins_agree(batch_norm(x.numbers.shape[-1]), x, seed=seed)


# The reference's variance is E[x²] - E[x]², which loses digits where a channel's mean exceeds its deviation by far: two
# or three numbers may do that by chance, eight do not. Channels of one number throughout stay in, at ordinary size,
# where epsilon outweighs what is lost.
@given(x=samples(batches, st.integers(8, 24), widths, kinds=AFFINE), seed=seeds)
def test_batch_norm_in_training(x, seed):
    assert_twins_agree(batch_norm(x.numbers.shape[-1]), x, seed=seed, training=True)


# The variance of one number is 0, and the reference computes x/√ε + (β - x/√ε): a larger x leaves rounding where β was.
@given(x=samples(1, 1, widths, kinds=MODERATE), seed=seeds)
@examples(0.5)
def test_batch_norm_in_training_on_a_single_position(x, seed):
    assert_twins_agree(batch_norm(x.numbers.shape[-1]), x, seed=seed, training=True)


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


@functools.cache
def layer_norm(channels: int) -> Twins:
    return Twins(
        reference=reference._layer_norm(FLOAT64),
        port=port.LayerNorm(channels, CONFIG.layer_norm_epsilon).double(),
        alike=("model/performer/layer_norm", "performer.norm"),
    )


# A single channel equals its own mean, so that beta is the result, and the reference computes it as x/√ε + (β - x/√ε).
@given(x=st.one_of(samples(batches, lengths, st.integers(2, 9), kinds=AFFINE),
                   samples(batches, lengths, 1, kinds=MODERATE)), seed=seeds)  # fmt: skip
def test_layer_norm(x, seed):
    assert_twins_agree(layer_norm(x.numbers.shape[-1]), x, seed=seed)


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


@functools.cache
def tanh_gelu() -> Twins:
    return Twins(reference=reference.TanhGELU(dtype=FLOAT64), port=port.TanhGELU(CONFIG.gelu_cubic_coefficient))


@functools.cache
def erf_gelu() -> Twins:
    return Twins(reference=reference.gelu_erf, port=port.ErfGELU(CONFIG.gelu_erf_scale))


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

ACTIVATIONS = {
    None: (None, None),
    "softplus": ("softplus", port.softplus),
    "gelu": (reference.gelu_erf, port.ErfGELU(CONFIG.gelu_erf_scale)),
}


@functools.cache
def linear(channels_in: int, channels_out: int, bias: bool = True, activation: str | None = None) -> Twins:
    theirs, ours = ACTIVATIONS[activation]
    place = "motif_activity_fc2" if bias else "pre_transformer_projection"
    return Twins(
        reference=reference._dense(channels_out, FLOAT64, use_bias=bias, activation=theirs),
        port=port.Linear(channels_in, channels_out, bias=bias, activation=ours).double(),
        alike=(f"model/{place}", place),
    )


@given(x=samples(batches, lengths, widths, kinds=AFFINE), width=widths, seed=seeds)
def test_linear(x, width, seed):
    assert_twins_agree(linear(x.numbers.shape[-1], width), x, seed=seed)


@given(x=samples(batches, lengths, widths), width=widths, seed=seeds)
def test_linear_without_bias(x, width, seed):
    assert_twins_agree(linear(x.numbers.shape[-1], width, bias=False), x, seed=seed)


# Deeply negative sums leave rounding (GELU) or nothing (softplus) when all outputs are such; the activations have their
# own tests for that. With numbers of ordinary size they stay near zero, where both are well-conditioned.
@given(x=samples(batches, lengths, widths, kinds=MODERATE), width=widths, seed=seeds,
       activation=st.sampled_from(["softplus", "gelu"]))  # fmt: skip
def test_linear_with_activation(x, width, seed, activation):
    assert_twins_agree(linear(x.numbers.shape[-1], width, activation=activation), x, seed=seed)


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


def heads(side: str, hidden: int, number: int) -> Twins:
    attention = reference.LinearAttention(
        num_heads=number, hidden_size=hidden, kernel_transformation="", projection=np.zeros((1, 1)), dtype=FLOAT64
    )
    layer = port.HeadsIn if side == "query" else port.HeadsOut
    return Twins(
        reference=getattr(attention, f"{side}_dense_layer"),
        port=layer(hidden, number, identical_init=False).double(),
        alike=(f"model/performer/layers/0/self_attention/{side}_dense_layer", f"performer.layers.0.attention.{side}"),
    )


@functools.cache
def heads_in(number: int, head_size: int) -> Twins:
    return heads("query", number * head_size, number)


@functools.cache
def heads_out(number: int, head_size: int) -> Twins:
    return heads("output", number * head_size, number)


head_numbers, head_sizes = st.integers(1, 4), st.integers(1, 5)


@given(number=head_numbers, head_size=head_sizes, seed=seeds, data=st.data())
def test_heads_in(number, head_size, seed, data):
    x = data.draw(samples(batches, lengths, number * head_size))
    assert_twins_agree(heads_in(number, head_size), x, seed=seed)


@given(number=head_numbers, head_size=head_sizes, seed=seeds, data=st.data())
def test_heads_out(number, head_size, seed, data):
    x = data.draw(samples(batches, lengths, number, head_size))
    assert_twins_agree(heads_out(number, head_size), x, seed=seed)


@seeded_fault(heads_in, 2, 3, inputs=sample(2, 9, 6))
def heads_interleaved(layer: Any) -> None:
    layer.forward = lambda x: F.linear(x, layer.weight).unflatten(-1, (-1, layer.heads)).mT


@seeded_fault(heads_out, 2, 3, inputs=sample(2, 9, 2, 3))
def heads_joined_the_other_way(layer: Any) -> None:
    layer.forward = lambda x: F.linear(x.mT.flatten(-2), layer.weight)


# --- blocks of convolutions -------------------------------------------------------------------------------------------


@functools.cache
def conv_block(channels_in: int, channels_out: int, kernel_size: int) -> Twins:
    return Twins(
        reference=reference._conv_block(channels_out, kernel_size, MOMENTUM, FLOAT64),
        port=port.ConvBlock(CONFIG, channels_in, channels_out, kernel_size).double(),
        alike=("model/final_pointwise_conv", "final_pointwise_conv"),
    )


@functools.cache
def residual(channels: int) -> Twins:
    block = reference._conv_block(channels, 1, MOMENTUM, FLOAT64)
    return Twins(
        reference=reference.Residual(block, dtype=FLOAT64),
        port=port.Residual(port.ConvBlock(CONFIG, channels, channels, 1)).double(),
        alike=("model/stem_res_conv", "stem_res_conv"),
    )


@functools.cache
def tower_block(channels_in: int, channels_out: int, tower: str) -> Twins:
    block = reference._conv_block(channels_out, reference.TOWER_KERNEL_SIZE, MOMENTUM, FLOAT64)
    if tower == "conv_tower":
        theirs, ours = reference.SoftmaxPool(dtype=FLOAT64), port.SoftmaxPool(channels_out)
    else:
        theirs, ours = tf_keras.layers.MaxPool1D(4, dtype=FLOAT64), port.MaxPool(4)
    return Twins(
        reference=tf_keras.Sequential([block, theirs]),
        port=port.TowerBlock(port.ConvBlock(CONFIG, channels_in, channels_out, port.TOWER_KERNEL_SIZE), ours).double(),
        alike=(f"model/{tower}/layer_with_weights-0", f"{tower}.0"),
    )


# For training, eight positions: see test_batch_norm_in_training.
long_enough = st.integers(8, 24)
modes = st.booleans()


@given(x=samples(batches, long_enough, widths, kinds=AFFINE), width=widths, kernel_size=kernel_sizes, training=modes,
       seed=seeds)  # fmt: skip
def test_conv_block(x, width, kernel_size, training, seed):
    assert_twins_agree(conv_block(x.numbers.shape[-1], width, kernel_size), x, seed=seed, training=training)


@given(x=samples(batches, long_enough, widths, kinds=AFFINE), training=modes, seed=seeds)
def test_residual(x, training, seed):
    assert_twins_agree(residual(x.numbers.shape[-1]), x, seed=seed, training=training)


@given(x=samples(batches, st.integers(4, 12).map(lambda half: 2 * half), widths, kinds=AFFINE), width=widths,
       tower=st.sampled_from(["conv_tower", "conv_tower_atac"]), training=modes, seed=seeds)  # fmt: skip
def test_tower_block(x, width, tower, training, seed):
    assert_twins_agree(tower_block(x.numbers.shape[-1], width, tower), x, seed=seed, training=training)


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


def rotary_numbers(rows: int, head_size: int) -> np.ndarray:
    return port.rotary_table(rows, head_size)


@functools.cache
def rotary(rows: int, head_size: int) -> Twins:
    table = rotary_numbers(rows, head_size)[None].astype(np.float64)
    ours, theirs = port.Rotary(), reference.Rotary(dtype=FLOAT64)
    return Twins(
        reference=theirs,
        port=ours,
        call_reference=lambda x, training: theirs(x, table=tf.constant(table)),
        call_port=lambda x: ours(x, torch.from_numpy(table)),
    )


@functools.cache
def rotary_table(max_seq_length: int, head_size: int) -> Twins:
    config = EpiBERTConfig(
        filter_list_seq=(head_size,), num_heads=1, max_seq_length=max_seq_length, final_point_scale=1
    )
    theirs = reference.RotaryTable(rotary_numbers(max_seq_length + 1, head_size), dtype=FLOAT64)
    return Twins(reference=theirs, port=port.RotaryTable(config).double())


even_head_sizes = st.integers(1, 4).map(lambda half: 2 * half)


@given(x=samples(batches, lengths, st.integers(1, 3), even_head_sizes))
def test_rotary(x):
    _, length, _, head_size = x.numbers.shape
    assert_twins_agree(rotary(length, head_size), x)


@given(x=samples(batches, lengths, widths), max_seq_length=st.integers(1, 24), head_size=even_head_sizes)
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


def attention_config(hidden: int, number: int, kernel: str = KERNELS[0], **changes: Any) -> EpiBERTConfig:
    arguments = {
        "filter_list_seq": (hidden,),
        "filter_list_atac": (1,),
        "num_heads": number,
        "kernel_transformation": kernel,
        "num_transformer_layers": 1,
        "max_seq_length": 24,
        "final_point_scale": 1,
    }
    return EpiBERTConfig(**{**arguments, **NO_DROPOUT, **changes})


def projection_numbers(features: int, head_size: int) -> np.ndarray:
    return np.random.default_rng(features).standard_normal((features, head_size)).astype(np.float32)


@functools.cache
def feature_map(kernel: str, is_query: bool, features: int, head_size: int) -> Twins:
    projection = projection_numbers(features, head_size)
    ours = port.FeatureMap(attention_config(2 * head_size, 2, kernel, use_rot_emb=False))
    theirs = reference.FeatureMap(kernel, projection, dtype=FLOAT64)
    return Twins(
        reference=theirs,
        port=ours,
        call_reference=lambda x, training: theirs(x, is_query=is_query),
        call_port=lambda x: ours(x, torch.from_numpy(projection).double(), is_query=is_query),
    )


# The fourth power of 1e70 is a float64 number still.
@given(x=samples(batches, lengths, st.integers(1, 3), st.integers(1, 8), huge=1e70), kernel=st.sampled_from(KERNELS),
       is_query=st.booleans(), features=st.sampled_from([1, 8, 256]))  # fmt: skip
def test_feature_map(x, kernel, is_query, features):
    assert_twins_agree(feature_map(kernel, is_query, features, x.numbers.shape[-1]), x)


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


@functools.cache
def favor_attention(hidden: int, number: int, kernel: str = KERNELS[0], rotated: bool = True) -> Twins:
    config = attention_config(hidden, number, kernel, use_rot_emb=rotated)
    projection = projection_numbers(256, config.head_size)
    table = rotary_numbers(config.max_seq_length, config.head_size)[None].astype(np.float64) if rotated else None
    ours = port.FavorAttention(config).double()
    theirs = reference.LinearAttention(
        num_heads=number, hidden_size=hidden, kernel_transformation=kernel, projection=projection, dtype=FLOAT64
    )

    def call_reference(x: tf.Tensor, training: bool) -> Any:
        return theirs(x, table=None if table is None else tf.constant(table[:, : x.shape[1]]))

    def call_port(x: torch.Tensor) -> Any:
        rows = None if table is None else torch.from_numpy(table[:, : x.shape[1]])
        return ours(x, torch.from_numpy(projection).double(), rows)

    return Twins(
        reference=theirs,
        port=ours,
        call_reference=call_reference,
        call_port=call_port,
        alike=("model/performer/layers/0/self_attention", "performer.layers.0.attention"),
    )


attention_sizes = st.sampled_from([(2, 1), (4, 2), (12, 3), (10, 1)])


@st.composite
def attention_cases(draw: st.DrawFn, **keywords: Any) -> tuple[Sample, tuple[int, int, str, bool]]:
    hidden, number = draw(attention_sizes)
    x = draw(samples(batches, lengths, hidden, **keywords))
    return x, (hidden, number, draw(st.sampled_from(KERNELS)), draw(st.booleans()))


# Features grow with the fourth power at most, and two of them are multiplied with a value: 1e30 to the ninth is 1e270.
@given(case=attention_cases(huge=1e30), seed=seeds)
def test_favor_attention(case, seed):
    x, arguments = case
    assert_twins_agree(favor_attention(*arguments), x, seed=seed)


ATTENTION_INPUTS = sample(2, 9, 12)


@seeded_fault(favor_attention, 12, 3, inputs=ATTENTION_INPUTS)
def queries_scaled(layer: Any) -> None:
    layer.query.register_forward_hook(lambda module, inputs, output: output / math.sqrt(output.shape[-1]))


@seeded_fault(favor_attention, 12, 3, inputs=ATTENTION_INPUTS)
def values_rotated(layer: Any) -> None:
    table = torch.from_numpy(rotary_numbers(9, 4)[None]).double()
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


@functools.cache
def feed_forward(hidden: int) -> Twins:
    return Twins(
        reference=reference.FeedForward(hidden, 0.0, dtype=FLOAT64),
        port=port.FeedForward(attention_config(hidden, 1, use_rot_emb=False)).double(),
        alike=("model/performer/layers/0/FFN", "performer.layers.0.ffn"),
    )


# What begins with a LayerNorm takes what a LayerNorm takes: anything, if there is more than one channel.
@given(x=samples(batches, lengths, st.integers(2, 9), kinds=AFFINE), seed=seeds)
def test_feed_forward(x, seed):
    assert_twins_agree(feed_forward(x.numbers.shape[-1]), x, seed=seed)


@seeded_fault(feed_forward, 6, inputs=sample(2, 9, 6))
def another_activation(layer: Any) -> None:
    layer.activation = nn.GELU()


@seeded_fault(feed_forward, 6, inputs=sample(2, 9, 6))
def residual_inside(layer: Any) -> None:
    layer.register_forward_hook(lambda module, inputs, output: inputs[0] + output)


@functools.cache
def transformer_layer(hidden: int, number: int, kernel: str = KERNELS[0], rotated: bool = True) -> Twins:
    config = attention_config(hidden, number, kernel, use_rot_emb=rotated)
    projection = projection_numbers(256, config.head_size)
    table = rotary_numbers(config.max_seq_length, config.head_size)[None].astype(np.float64) if rotated else None
    ours = port.TransformerLayer(config).double()
    theirs = reference.TransformerLayer(
        num_heads=number, hidden_size=hidden, dropout_rate=0.0, kernel_transformation=kernel, projection=projection,
        dtype=FLOAT64,
    )  # fmt: skip

    def call_reference(x: tf.Tensor, training: bool) -> Any:
        return theirs(x, table=None if table is None else tf.constant(table[:, : x.shape[1]]), training=training)

    def call_port(x: torch.Tensor) -> Any:
        rows = None if table is None else torch.from_numpy(table[:, : x.shape[1]])
        return ours(x, torch.from_numpy(projection).double(), rows)

    return Twins(
        reference=theirs,
        port=ours,
        call_reference=call_reference,
        call_port=call_port,
        alike=("model/performer/layers/0", "performer.layers.0"),
    )


@given(case=attention_cases(kinds=AFFINE), training=modes, seed=seeds)
@examples(0.6)
def test_transformer_layer(case, training, seed):
    x, arguments = case
    assert_twins_agree(transformer_layer(*arguments), x, seed=seed, training=training)


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


@functools.cache
def performer(hidden: int, number: int, kernel: str = KERNELS[0], rotated: bool = True, norm: bool = True) -> Twins:
    config = attention_config(hidden, number, kernel, use_rot_emb=rotated, norm=norm, num_transformer_layers=2)
    theirs = reference.Performer(
        num_layers=2, num_heads=number, hidden_size=hidden, dropout_rate=0.0, kernel_transformation=kernel, seed=19,
        norm=norm, use_rot_emb=rotated, max_seq_length=config.max_seq_length, dtype=FLOAT64,
    )  # fmt: skip
    ours = port.Performer(config).double()
    projection, table = theirs.get_constants()
    tables = None if table is None else torch.from_numpy(table)
    ours.set_constants(torch.from_numpy(projection), tables, origin=f"tensorflow {tf.__version__}")
    return Twins(reference=theirs, port=ours, alike=("model/performer", "performer"), config=config)


@given(case=attention_cases(kinds=AFFINE), norm=st.booleans(), training=modes, seed=seeds)
@examples(0.4)
def test_performer(case, norm, training, seed):
    x, arguments = case
    assert_twins_agree(performer(*arguments, norm), x, seed=seed, training=training)


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
        reference=theirs,
        port=ours,
        alike=("model", ""),
        config=config,
        call_port=lambda inputs: ours(*inputs),
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
    twins.draw(seed=2)
    fault.inject(twins.port)
    with pytest.raises(Disagreement):
        assert_twins_agree(twins, fault.inputs, seed=None, training=fault.training)


def test_every_layer_type_of_the_port_has_a_property_and_a_fault():
    layers = {
        name.lower()
        for name, value in vars(port).items()
        if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == port.__name__
        # What has no forward of its own is a base of models, not a layer.
        if not name.startswith("_") and value.forward is not nn.Module.forward
    }
    assert len(layers) > 15
    builders = {inspect.unwrap(fault.build.func).__name__ for fault in SEEDED_FAULTS}
    assert {name.replace("_", "") for name in builders} == layers
    properties = " ".join(name for name in globals() if name.startswith("test_")).replace("whole_model", "epibert")
    assert not [name for name in builders if name not in properties]

"""The layers of EpiBERT one by one: how port, reference and formula of each are made, and on what they must agree.

The suite of layer properties and ``epibert layer`` both take them from here.

Where numbers are kept from a layer, the reason stands at its strategy. It is always of one kind: the layer's formula
cancels there, so that rounding, in which two correct implementations differ, is all that is left of the result.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

import torch_impl.model as port
from parity.pairs import epibert_formulas as formulas
from parity.pairs.samples import (
    AFFINE,
    Kind,
    Sample,
    batches,
    even_lengths,
    kernel_sizes,
    lengths,
    samples,
    seeds,
    widths,
)
from parity.pairs.twins import Twins
from torch_impl import EpiBERTConfig

NO_DROPOUT: dict[str, Any] = {"dropout_rate": 0.0, "pointwise_dropout_rate": 0.0, "motif_dropout_rate": 0.0}
CONFIG = EpiBERTConfig.tiny()
EPSILON, MOMENTUM = CONFIG.batch_norm_epsilon, CONFIG.BN_momentum
KERNELS = ("relu_kernel_transformation", "relu_kernel_transformation_q", "softmax_kernel_transformation")

# Every kind of numbers but those next to which a bias of one is lost altogether.
MODERATE = tuple(kind for kind in AFFINE if kind not in {Kind.HUGE, Kind.MIXED})

# Alone, what TensorFlow flushes to zero is all that there is.
NORMAL = tuple(kind for kind in Kind if kind is not Kind.SUBNORMAL)


@dataclass(frozen=True)
class Case:
    """One example: a geometry, an input, weights by their seed, and a mode."""

    geometry: Mapping[str, Any]
    inputs: Sample
    seed: int
    training: bool = False


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One type of layer.

    Attributes:
        port: Name of its class in ``torch_impl.model``.
        make: From a geometry to the twins.
        cases: What is drawn.
        tolerance: Row of the table of tolerances.
        share: Share of a profile's examples that its tests take.
    """

    port: str
    make: Callable[..., Twins]
    cases: st.SearchStrategy[Case]
    tolerance: str = "float64"
    share: float = 1.0


def _reference() -> Any:
    """The reference's module, and with it TensorFlow."""
    import tf_reference.model

    return tf_reference.model


def _float64() -> Any:
    from tf_keras.mixed_precision import Policy

    return Policy("float64")


def _keras() -> Any:
    import tf_keras

    return tf_keras.layers


@st.composite
def _cases(
    draw: st.DrawFn,
    inputs: st.SearchStrategy[Sample],
    *,
    training: st.SearchStrategy[bool] | bool = False,
    of_channels: Callable[[Sample], Mapping[str, Any]] = lambda x: {},
    **geometry: Any,
) -> Case:
    x = draw(inputs)
    drawn = {name: draw(value) if isinstance(value, st.SearchStrategy) else value for name, value in geometry.items()}
    mode = training if isinstance(training, bool) else draw(training)
    return Case({**of_channels(x), **drawn}, x, draw(seeds), mode)


def _channels(*names: str) -> Callable[[Sample], Mapping[str, Any]]:
    """The last axes of the input as arguments."""
    return lambda x: dict(zip(names, x.numbers.shape[-len(names) :], strict=True))


# --- convolution, pooling, cropping ----------------------------------------------------------------------------------


def conv1d(channels_in: int, channels_out: int, kernel_size: int) -> Twins:
    """'Same' convolution."""
    return Twins(
        make_reference=lambda: _reference()._conv(channels_out, kernel_size, _float64()),
        port=port.Conv1d(channels_in, channels_out, kernel_size).double(),
        formula=lambda weights, x, training: (formulas.conv1d(weights, x), {}),
        alike=("model/stem_conv", "stem_conv"),
    )


def softmax_pool(channels: int) -> Twins:
    """Weighted mean of pairs."""
    return Twins(
        make_reference=lambda: _reference().SoftmaxPool(dtype=_float64()),
        port=port.SoftmaxPool(channels).double(),
        formula=lambda weights, x, training: (formulas.softmax_pool(weights, x), {}),
        alike=("model/stem_pool", "stem_pool"),
    )


def max_pool(size: int) -> Twins:
    """Maximum of windows."""
    return Twins(
        make_reference=lambda: _keras().MaxPool1D(size, dtype=_float64()),
        port=port.MaxPool(size),
        formula=lambda weights, x, training: (formulas.max_pool(x, size), {}),
    )


def crop(length: int, target: int) -> Twins:
    """Both ends cut off."""
    return Twins(
        make_reference=lambda: _reference().Crop(length, target, dtype=_float64()),
        port=port.Crop((length - target) // 2),
        formula=lambda weights, x, training: (formulas.crop(x, length, target), {}),
    )


@st.composite
def _crops(draw: st.DrawFn) -> Case:
    x = draw(samples(batches, lengths, widths))
    length = x.numbers.shape[1]
    return Case({"length": length, "target": draw(st.integers(1, length))}, x, draw(seeds))


# --- normalisation ---------------------------------------------------------------------------------------------------


def batch_norm(channels: int) -> Twins:
    """Keras' BatchNorm."""
    return Twins(
        make_reference=lambda: _keras().BatchNormalization(
            momentum=MOMENTUM, epsilon=_reference().BATCH_NORM_EPSILON, synchronized=True, dtype=_float64()
        ),
        port=port.BatchNorm(channels, EPSILON, MOMENTUM).double(),
        formula=lambda weights, x, training: formulas.batch_norm(weights, x, training=training, momentum=MOMENTUM),
        alike=("model/stem_res_conv/_layer/layer_with_weights-0", "stem_res_conv.block.norm"),
    )


def layer_norm(channels: int) -> Twins:
    """LayerNorm over channels."""
    return Twins(
        make_reference=lambda: _reference()._layer_norm(_float64()),
        port=port.LayerNorm(channels, CONFIG.layer_norm_epsilon).double(),
        formula=lambda weights, x, training: (formulas.layer_norm(weights, x), {}),
        alike=("model/performer/layer_norm", "performer.norm"),
    )


EVALUATED_NORMS = _cases(samples(batches, lengths, widths, kinds=AFFINE), of_channels=_channels("channels"))

# The reference's variance is E[x²] - E[x]², which loses digits where a channel's mean exceeds its deviation by far: two
# or three numbers may do that by chance, eight do not. Channels of one number throughout stay in, at ordinary size,
# where epsilon outweighs what is lost.
TRAINED_NORMS = _cases(
    samples(batches, st.integers(8, 24), widths, kinds=AFFINE), training=True, of_channels=_channels("channels")
)

# The variance of one number is 0, and the reference computes x/√ε + (β - x/√ε): a larger x leaves rounding where β was.
SINGLE_POSITIONS = _cases(samples(1, 1, widths, kinds=MODERATE), training=True, of_channels=_channels("channels"))

# A single channel equals its own mean, so that beta is the result, and the reference computes it as x/√ε + (β - x/√ε).
LAYER_NORMS = _cases(
    st.one_of(samples(batches, lengths, st.integers(2, 9), kinds=AFFINE), samples(batches, lengths, 1, kinds=MODERATE)),
    of_channels=_channels("channels"),
)


# --- activations -----------------------------------------------------------------------------------------------------


def tanh_gelu() -> Twins:
    """GELU in its tanh form."""
    return Twins(
        make_reference=lambda: _reference().TanhGELU(dtype=_float64()),
        port=port.TanhGELU(CONFIG.gelu_cubic_coefficient),
        formula=lambda weights, x, training: (formulas.tanh_gelu(x), {}),
    )


def erf_gelu() -> Twins:
    """GELU in its exact form."""
    return Twins(
        make_reference=lambda: _reference().gelu_erf,
        port=port.ErfGELU(CONFIG.gelu_erf_scale),
        formula=lambda weights, x, training: (formulas.erf_gelu(x), {}),
    )


@st.composite
def _mirrored(draw: st.DrawFn) -> Case:
    """Numbers of both signs: far below zero 1 + tanh and 1 + erf cancel, and what is left is exact in units of x."""
    drawn = draw(samples(batches, lengths, widths, kinds=NORMAL))
    numbers = np.concatenate([np.abs(drawn.numbers), -np.abs(drawn.numbers)], axis=-1)
    return Case({}, Sample(numbers, torch.from_numpy(numbers), f"mirrored {drawn!r}"), draw(seeds))


# --- dense layers ----------------------------------------------------------------------------------------------------


def linear(channels_in: int, channels_out: int, bias: bool = True, activation: str | None = None) -> Twins:
    """Dense layer."""
    ours = {"softplus": port.softplus, "gelu": port.ErfGELU(CONFIG.gelu_erf_scale), None: None}[activation]
    formula = {"softplus": formulas.softplus, "gelu": formulas.erf_gelu, None: None}[activation]
    place = "motif_activity_fc2" if bias else "pre_transformer_projection"

    def make_reference() -> Any:
        theirs = _reference().gelu_erf if activation == "gelu" else activation
        return _reference()._dense(channels_out, _float64(), use_bias=bias, activation=theirs)

    return Twins(
        make_reference=make_reference,
        port=port.Linear(channels_in, channels_out, bias=bias, activation=ours).double(),
        formula=lambda weights, x, training: (formulas.linear(weights, x, formula), {}),
        alike=(f"model/{place}", place),
    )


# Deeply negative sums leave rounding (GELU) or nothing (softplus) when all outputs are such; the activations have their
# own tests for that. With numbers of ordinary size they stay near zero, where both are well-conditioned.
LINEARS = st.one_of(
    _cases(samples(batches, lengths, widths, kinds=AFFINE), of_channels=_channels("channels_in"), channels_out=widths),
    _cases(samples(batches, lengths, widths), of_channels=_channels("channels_in"), channels_out=widths, bias=False),
    _cases(
        samples(batches, lengths, widths, kinds=MODERATE),
        of_channels=_channels("channels_in"),
        channels_out=widths,
        activation=st.sampled_from(["softplus", "gelu"]),
    ),
)


def _heads(side: str, number: int, head_size: int) -> Twins:
    hidden = number * head_size

    def make_reference() -> Any:
        attention = _reference().LinearAttention(
            num_heads=number,
            hidden_size=hidden,
            kernel_transformation="",
            projection=np.zeros((1, 1)),
            dtype=_float64(),
        )
        return getattr(attention, f"{side}_dense_layer")

    cls = port.HeadsIn if side == "query" else port.HeadsOut
    formula = formulas.heads_in if side == "query" else formulas.heads_out
    return Twins(
        make_reference=make_reference,
        port=cls(hidden, number, identical_init=False).double(),
        formula=lambda weights, x, training: (formula(weights, x), {}),
        alike=(f"model/performer/layers/0/self_attention/{side}_dense_layer", f"performer.layers.0.attention.{side}"),
        heads=number,
    )


def heads_in(number: int, head_size: int) -> Twins:
    """Channels to heads."""
    return _heads("query", number, head_size)


def heads_out(number: int, head_size: int) -> Twins:
    """Heads to channels."""
    return _heads("output", number, head_size)


@st.composite
def _heads_in_cases(draw: st.DrawFn) -> Case:
    number, head_size = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    x = draw(samples(batches, lengths, number * head_size))
    return Case({"number": number, "head_size": head_size}, x, draw(seeds))


HEADS_OUT = _cases(
    samples(batches, lengths, st.integers(1, 4), st.integers(1, 5)), of_channels=_channels("number", "head_size")
)


# --- blocks of convolutions ------------------------------------------------------------------------------------------


def conv_block(channels_in: int, channels_out: int, kernel_size: int) -> Twins:
    """BatchNorm, GELU, convolution."""
    return Twins(
        make_reference=lambda: _reference()._conv_block(channels_out, kernel_size, MOMENTUM, _float64()),
        port=port.ConvBlock(CONFIG, channels_in, channels_out, kernel_size).double(),
        formula=lambda weights, x, training: formulas.conv_block(weights, x, training=training, momentum=MOMENTUM),
        alike=("model/final_pointwise_conv", "final_pointwise_conv"),
    )


def residual(channels: int) -> Twins:
    """Input plus block."""

    def make_reference() -> Any:
        block = _reference()._conv_block(channels, 1, MOMENTUM, _float64())
        return _reference().Residual(block, dtype=_float64())

    return Twins(
        make_reference=make_reference,
        port=port.Residual(port.ConvBlock(CONFIG, channels, channels, 1)).double(),
        formula=lambda weights, x, training: formulas.residual(weights, x, training=training, momentum=MOMENTUM),
        alike=("model/stem_res_conv", "stem_res_conv"),
    )


def tower_block(channels_in: int, channels_out: int, tower: str) -> Twins:
    """Block and pooling of one of the towers."""
    softmax = tower == "conv_tower"
    pool = port.SoftmaxPool(channels_out) if softmax else port.MaxPool(4)

    def make_reference() -> Any:
        import tf_keras

        block = _reference()._conv_block(channels_out, _reference().TOWER_KERNEL_SIZE, MOMENTUM, _float64())
        theirs = (
            _reference().SoftmaxPool(dtype=_float64()) if softmax else tf_keras.layers.MaxPool1D(4, dtype=_float64())
        )
        return tf_keras.Sequential([block, theirs])

    return Twins(
        make_reference=make_reference,
        port=port.TowerBlock(port.ConvBlock(CONFIG, channels_in, channels_out, port.TOWER_KERNEL_SIZE), pool).double(),
        formula=lambda weights, x, training: formulas.tower_block(
            weights, x, training=training, momentum=MOMENTUM, pool="softmax" if softmax else "max"
        ),
        alike=(f"model/{tower}/layer_with_weights-0", f"{tower}.0"),
    )


# For training, eight positions: see TRAINED_NORMS.
long_enough = st.integers(8, 24)
modes = st.booleans()


# --- rotary positions ------------------------------------------------------------------------------------------------


def rotary_numbers(rows: int, head_size: int) -> np.ndarray:
    """The rotary table, (rows, D)."""
    return port.rotary_table(rows, head_size)


def rotary(rows: int, head_size: int) -> Twins:
    """Rotation by position."""
    table = rotary_numbers(rows, head_size).astype(np.float64)

    def call_reference(layer: Any, x: Any, training: bool) -> Any:
        import tensorflow as tf

        return layer(x, table=tf.constant(table[None]))

    return Twins(
        make_reference=lambda: _reference().Rotary(dtype=_float64()),
        port=port.Rotary(),
        formula=lambda weights, x, training: (formulas.rotary(x, table), {}),
        call_reference=call_reference,
        call_port=lambda layer, x: layer(x, torch.from_numpy(table[None])),
    )


def rotary_table(max_seq_length: int, head_size: int) -> Twins:
    """The table's rows for an input."""
    config = EpiBERTConfig(
        filter_list_seq=(head_size,), num_heads=1, max_seq_length=max_seq_length, final_point_scale=1
    )
    table = rotary_numbers(max_seq_length + 1, head_size)
    return Twins(
        make_reference=lambda: _reference().RotaryTable(table, dtype=_float64()),
        port=port.RotaryTable(config).double(),
        formula=lambda weights, x, training: (table[None, : x.shape[1]].astype(np.float64), {}),
    )


even_head_sizes = st.integers(1, 4).map(lambda half: 2 * half)


@st.composite
def _rotary_cases(draw: st.DrawFn) -> Case:
    x = draw(samples(batches, lengths, st.integers(1, 3), even_head_sizes))
    return Case({"rows": x.numbers.shape[1], "head_size": x.numbers.shape[3]}, x, draw(seeds))


@st.composite
def _rotary_table_cases(draw: st.DrawFn) -> Case:
    x = draw(samples(batches, lengths, widths))
    rows = draw(st.integers(max(1, x.numbers.shape[1] - 1), 24))
    return Case({"max_seq_length": rows, "head_size": draw(even_head_sizes)}, x, draw(seeds))


# --- attention -------------------------------------------------------------------------------------------------------


def attention_config(hidden: int, number: int, kernel: str = KERNELS[0], **changes: Any) -> EpiBERTConfig:
    """The configuration of a transformer of such a size."""
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
    """A drawn projection matrix, float32."""
    return np.random.default_rng(features).standard_normal((features, head_size)).astype(np.float32)


def feature_map(kernel: str, is_query: bool, features: int, head_size: int) -> Twins:
    """Positive random features."""
    projection = projection_numbers(features, head_size)
    wide = projection.astype(np.float64)
    return Twins(
        make_reference=lambda: _reference().FeatureMap(kernel, projection, dtype=_float64()),
        port=port.FeatureMap(attention_config(2 * head_size, 2, kernel, use_rot_emb=False)),
        formula=lambda weights, x, training: (formulas.feature_map(x, wide, kernel=kernel, is_query=is_query), {}),
        call_reference=lambda layer, x, training: layer(x, is_query=is_query),
        call_port=lambda layer, x: layer(x, torch.from_numpy(wide), is_query=is_query),
    )


# The fourth power of 1e70 is a float64 number still.
FEATURE_MAPS = _cases(
    samples(batches, lengths, st.integers(1, 3), st.integers(1, 8), huge=1e70),
    of_channels=_channels("head_size"),
    kernel=st.sampled_from(KERNELS),
    is_query=st.booleans(),
    features=st.sampled_from([1, 8, 256]),
)


def _attention_constants(config: EpiBERTConfig) -> tuple[np.ndarray, np.ndarray | None]:
    """Projection matrix, and the rows of the rotary table that there are."""
    table = rotary_numbers(config.max_seq_length, config.head_size).astype(np.float64) if config.use_rot_emb else None
    return projection_numbers(256, config.head_size), table


def _call_attention(projection: np.ndarray, table: np.ndarray | None) -> dict[str, Any]:
    """How attention, or what contains it, is called on both sides."""
    wide = projection.astype(np.float64)

    def call_reference(layer: Any, x: Any, training: bool) -> Any:
        import inspect

        import tensorflow as tf

        takes = {"training": training} if "training" in inspect.signature(layer.call).parameters else {}
        return layer(x, table=None if table is None else tf.constant(table[None, : x.shape[1]]), **takes)

    def call_port(layer: Any, x: torch.Tensor) -> Any:
        rows = None if table is None else torch.from_numpy(table[None, : x.shape[1]])
        return layer(x, torch.from_numpy(wide), rows)

    return {"call_reference": call_reference, "call_port": call_port}


def favor_attention(hidden: int, number: int, kernel: str = KERNELS[0], rotated: bool = True) -> Twins:
    """Attention."""
    config = attention_config(hidden, number, kernel, use_rot_emb=rotated)
    projection, table = _attention_constants(config)
    wide = projection.astype(np.float64)
    return Twins(
        make_reference=lambda: _reference().LinearAttention(
            num_heads=number,
            hidden_size=hidden,
            kernel_transformation=kernel,
            projection=projection,
            dtype=_float64(),
        ),
        port=port.FavorAttention(config).double(),
        formula=lambda weights, x, training: (formulas.favor_attention(weights, x, wide, table, kernel=kernel), {}),
        alike=("model/performer/layers/0/self_attention", "performer.layers.0.attention"),
        heads=number,
        **_call_attention(projection, table),
    )


def feed_forward(hidden: int) -> Twins:
    """Feed-forward network."""
    return Twins(
        make_reference=lambda: _reference().FeedForward(hidden, 0.0, dtype=_float64()),
        port=port.FeedForward(attention_config(hidden, 1, use_rot_emb=False)).double(),
        formula=lambda weights, x, training: (formulas.feed_forward(weights, x), {}),
        alike=("model/performer/layers/0/FFN", "performer.layers.0.ffn"),
    )


def transformer_layer(hidden: int, number: int, kernel: str = KERNELS[0], rotated: bool = True) -> Twins:
    """Attention and feed-forward network."""
    config = attention_config(hidden, number, kernel, use_rot_emb=rotated)
    projection, table = _attention_constants(config)
    wide = projection.astype(np.float64)
    return Twins(
        make_reference=lambda: _reference().TransformerLayer(
            num_heads=number,
            hidden_size=hidden,
            dropout_rate=0.0,
            kernel_transformation=kernel,
            projection=projection,
            dtype=_float64(),
        ),
        port=port.TransformerLayer(config).double(),
        formula=lambda weights, x, training: (formulas.transformer_layer(weights, x, wide, table, kernel=kernel), {}),
        alike=("model/performer/layers/0", "performer.layers.0"),
        heads=number,
        **_call_attention(projection, table),
    )


def performer(hidden: int, number: int, kernel: str = KERNELS[0], rotated: bool = True, norm: bool = True) -> Twins:
    """All transformer layers."""
    config = attention_config(hidden, number, kernel, use_rot_emb=rotated, norm=norm, num_transformer_layers=2)
    projection = projection_numbers(256, config.head_size)
    table = rotary_numbers(config.max_seq_length + 1, config.head_size) if rotated else None
    wide = projection.astype(np.float64), None if table is None else table.astype(np.float64)
    ours = port.Performer(config).double()
    ours.set_constants(torch.from_numpy(projection), None if table is None else torch.from_numpy(table), origin="drawn")

    def make_reference() -> Any:
        theirs = _reference().Performer(
            num_layers=2,
            num_heads=number,
            hidden_size=hidden,
            dropout_rate=0.0,
            kernel_transformation=kernel,
            seed=19,
            norm=norm,
            use_rot_emb=rotated,
            max_seq_length=config.max_seq_length,
            dtype=_float64(),
        )
        theirs.set_constants(projection, table)
        return theirs

    return Twins(
        make_reference=make_reference,
        port=ours,
        formula=lambda weights, x, training: (formulas.performer(weights, x, *wide, kernel=kernel, layers=2), {}),
        alike=("model/performer", "performer"),
        config=config,
        heads=number,
    )


@st.composite
def _attention_cases(draw: st.DrawFn, *, with_norm: bool = False, trains: bool = False, **keywords: Any) -> Case:
    hidden, number = draw(st.sampled_from([(2, 1), (4, 2), (12, 3), (10, 1)]))
    x = draw(samples(batches, lengths, hidden, **keywords))
    geometry = {"hidden": hidden, "number": number, "kernel": draw(st.sampled_from(KERNELS)), "rotated": draw(modes)}
    if with_norm:
        geometry["norm"] = draw(st.booleans())
    return Case(geometry, x, draw(seeds), draw(modes) if trains else False)


# --- the table -------------------------------------------------------------------------------------------------------

LAYERS: dict[str, Layer] = {
    "Conv1d": Layer(
        port="Conv1d",
        make=conv1d,
        cases=_cases(
            samples(batches, lengths, widths, kinds=AFFINE),
            of_channels=_channels("channels_in"),
            channels_out=widths,
            kernel_size=kernel_sizes,
        ),
    ),
    "SoftmaxPool": Layer(
        port="SoftmaxPool",
        make=softmax_pool,
        cases=_cases(samples(batches, even_lengths, widths), of_channels=_channels("channels")),
    ),
    # Pooling needs one complete window; the model's lengths are multiples of the size. A maximum is one of the inputs.
    "MaxPool": Layer(
        port="MaxPool",
        make=max_pool,
        cases=_cases(samples(batches, st.integers(4, 24), widths), size=st.sampled_from([2, 4])),
        tolerance="exact",
    ),
    "Crop": Layer(port="Crop", make=crop, cases=_crops(), tolerance="exact"),
    "BatchNorm": Layer(
        port="BatchNorm", make=batch_norm, cases=st.one_of(EVALUATED_NORMS, TRAINED_NORMS, SINGLE_POSITIONS)
    ),
    "LayerNorm": Layer(port="LayerNorm", make=layer_norm, cases=LAYER_NORMS),
    "TanhGELU": Layer(port="TanhGELU", make=tanh_gelu, cases=_mirrored()),
    "ErfGELU": Layer(port="ErfGELU", make=erf_gelu, cases=_mirrored()),
    "Linear": Layer(port="Linear", make=linear, cases=LINEARS),
    "HeadsIn": Layer(port="HeadsIn", make=heads_in, cases=_heads_in_cases()),
    "HeadsOut": Layer(port="HeadsOut", make=heads_out, cases=HEADS_OUT),
    "ConvBlock": Layer(
        port="ConvBlock",
        make=conv_block,
        cases=_cases(
            samples(batches, long_enough, widths, kinds=AFFINE),
            training=modes,
            of_channels=_channels("channels_in"),
            channels_out=widths,
            kernel_size=kernel_sizes,
        ),
    ),
    "Residual": Layer(
        port="Residual",
        make=residual,
        cases=_cases(
            samples(batches, long_enough, widths, kinds=AFFINE), training=modes, of_channels=_channels("channels")
        ),
    ),
    "TowerBlock": Layer(
        port="TowerBlock",
        make=tower_block,
        cases=_cases(
            samples(batches, st.integers(4, 12).map(lambda half: 2 * half), widths, kinds=AFFINE),
            training=modes,
            of_channels=_channels("channels_in"),
            channels_out=widths,
            tower=st.sampled_from(["conv_tower", "conv_tower_atac"]),
        ),
    ),
    "Rotary": Layer(port="Rotary", make=rotary, cases=_rotary_cases()),
    "RotaryTable": Layer(port="RotaryTable", make=rotary_table, cases=_rotary_table_cases(), tolerance="exact"),
    "FeatureMap": Layer(port="FeatureMap", make=feature_map, cases=FEATURE_MAPS),
    # Features grow with the fourth power at most, and two of them are multiplied with a value: 1e30 to the ninth is
    # 1e270.
    "FavorAttention": Layer(port="FavorAttention", make=favor_attention, cases=_attention_cases(huge=1e30)),
    # What begins with a LayerNorm takes what a LayerNorm takes: anything, if there is more than one channel.
    "FeedForward": Layer(
        port="FeedForward",
        make=feed_forward,
        cases=_cases(samples(batches, lengths, st.integers(2, 9), kinds=AFFINE), of_channels=_channels("hidden")),
    ),
    "TransformerLayer": Layer(
        port="TransformerLayer", make=transformer_layer, cases=_attention_cases(kinds=AFFINE, trains=True), share=0.6
    ),
    "Performer": Layer(
        port="Performer",
        make=performer,
        cases=_attention_cases(kinds=AFFINE, with_norm=True, trains=True),
        share=0.4,
    ),
}
"""Every layer of the port by its name."""

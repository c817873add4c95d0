"""The layers of EpiBERT as formulas in NumPy and float64: an oracle that starts at once.

Source of the semantics: the specification of the original TensorFlow implementation, its section 1. Weights go by their
path in the reference's checkpoint, below the layer, and have its layout. That the formulas are the reference's is
proven on every property of every layer (tests/suites/test_layer_properties.py).

Letters: B batch, L length, C channels, H heads, D head size, M random features, K kernel positions.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.special import erf

Weights = Mapping[str, np.ndarray]
Statistics = dict[str, np.ndarray]
"""Moving statistics after a call, by path; empty of what has none or does not train."""

BATCH_NORM_EPSILON = LAYER_NORM_EPSILON = 1e-5
RELU_STABILIZER, SOFTMAX_STABILIZER = 1e-3, 1e-6
CUBIC_COEFFICIENT = float(np.float32(0.044715))
SQUARE_ROOT_OF_TWO = float(np.float32(np.sqrt(2)))


def below(weights: Weights, path: str) -> dict[str, np.ndarray]:
    """The weights of a part."""
    return {key.removeprefix(f"{path}/"): value for key, value in weights.items() if key.startswith(f"{path}/")}


def conv1d(weights: Weights, x: np.ndarray) -> np.ndarray:
    """Σ_k x[t + k - ⌊(K-1)/2⌋] W[k] + b, zeros beyond the ends."""
    kernel = weights["kernel"]
    size, length = len(kernel), x.shape[1]
    padded = np.pad(x, ((0, 0), ((size - 1) // 2, size // 2), (0, 0)))
    return sum(padded[:, k : k + length] @ kernel[k] for k in range(size)) + weights["bias"]


def softmax_pool(weights: Weights, x: np.ndarray) -> np.ndarray:
    """Pairs weighted by the softmax of one logit each."""
    pairs = x.reshape(len(x), -1, 2, x.shape[-1])
    logits = pairs @ weights["dense/kernel"]
    shares = np.exp(logits - logits.max(axis=2, keepdims=True))
    return (shares / shares.sum(axis=2, keepdims=True) * pairs).sum(axis=2)


def max_pool(x: np.ndarray, size: int) -> np.ndarray:
    """Maximum of each whole window."""
    whole = x.shape[1] // size
    return x[:, : whole * size].reshape(len(x), whole, size, x.shape[-1]).max(axis=2)


def crop(x: np.ndarray, length: int, target: int) -> np.ndarray:
    """The same number of positions less at both ends."""
    trim = (length - target) // 2
    return x[:, trim : x.shape[1] - trim]


def batch_norm(weights: Weights, x: np.ndarray, *, training: bool, momentum: float) -> tuple[np.ndarray, Statistics]:
    """(x - mean) / √(variance + ε) γ + β; in training with the batch's biased variance, and new moving statistics."""
    mean, variance, after = weights["moving_mean"], weights["moving_variance"], {}
    if training:
        batch_mean, batch_variance = x.mean(axis=(0, 1)), x.var(axis=(0, 1))
        rate = float(np.float32(1 - momentum))
        after = {"moving_mean": mean - (mean - batch_mean) * rate}
        after["moving_variance"] = variance - (variance - batch_variance) * rate
        mean, variance = batch_mean, batch_variance
    return (x - mean) / np.sqrt(variance + BATCH_NORM_EPSILON) * weights["gamma"] + weights["beta"], after


def layer_norm(weights: Weights, x: np.ndarray) -> np.ndarray:
    """(x - mean) / √(variance + ε) γ + β over the channels, the variance biased."""
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centered).mean(axis=-1, keepdims=True)
    return centered / np.sqrt(variance + LAYER_NORM_EPSILON) * weights["gamma"] + weights["beta"]


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    """x/2 (1 + tanh(√(2/π) (x + c x³)))."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + CUBIC_COEFFICIENT * x**3)))


def erf_gelu(x: np.ndarray) -> np.ndarray:
    """x/2 (1 + erf(x / √2))."""
    return 0.5 * x * (1 + erf(x / SQUARE_ROOT_OF_TWO))


def softplus(x: np.ndarray) -> np.ndarray:
    """ln(1 + eˣ)."""
    return np.logaddexp(0, x)


def linear(weights: Weights, x: np.ndarray, activation: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
    """X W + b, then the activation; b only if there is one."""
    result = x @ weights["kernel"] + weights.get("bias", 0.0)
    return result if activation is None else activation(result)


def heads_in(weights: Weights, x: np.ndarray) -> np.ndarray:
    """(B, L, C) times (C, H, D)."""
    return np.einsum("blc,chd->blhd", x, weights["kernel"])


def heads_out(weights: Weights, x: np.ndarray) -> np.ndarray:
    """(B, L, H, D) times (H, D, C)."""
    return np.einsum("blhd,hdc->blc", x, weights["kernel"])


def conv_block(weights: Weights, x: np.ndarray, *, training: bool, momentum: float) -> tuple[np.ndarray, Statistics]:
    """BatchNorm, GELU, convolution."""
    norm = "layer_with_weights-0"
    x, after = batch_norm(below(weights, norm), x, training=training, momentum=momentum)
    after = {f"{norm}/{name}": value for name, value in after.items()}
    return conv1d(below(weights, "layer_with_weights-1"), tanh_gelu(x)), after


def residual(weights: Weights, x: np.ndarray, *, training: bool, momentum: float) -> tuple[np.ndarray, Statistics]:
    """Input plus block."""
    block, after = conv_block(below(weights, "_layer"), x, training=training, momentum=momentum)
    return x + block, {f"_layer/{name}": value for name, value in after.items()}


def tower_block(
    weights: Weights, x: np.ndarray, *, training: bool, momentum: float, pool: str
) -> tuple[np.ndarray, Statistics]:
    """Block, then pooling: ``softmax`` of pairs or ``max`` of four."""
    block = "layer_with_weights-0"
    x, after = conv_block(below(weights, block), x, training=training, momentum=momentum)
    after = {f"{block}/{name}": value for name, value in after.items()}
    return softmax_pool(below(weights, "layer_with_weights-1"), x) if pool == "softmax" else max_pool(x, 4), after


def rotary(x: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Each pair of channels (2j, 2j+1) turned by the angle of frequency j at its position."""
    sine, cosine = np.split(table[None, : x.shape[1], None, :], 2, axis=-1)
    even, odd = x[..., 0::2], x[..., 1::2]
    return np.stack([even * cosine - odd * sine, odd * cosine + even * sine], axis=-1).reshape(x.shape)


def feature_map(x: np.ndarray, projection: np.ndarray, *, kernel: str, is_query: bool) -> np.ndarray:
    """ReLU(x Pᵀ / √M) + 10⁻³, its fourth power, or the exponential features of the softmax kernel."""
    ratio = len(projection) ** -0.5
    if kernel.startswith("relu_kernel_transformation"):
        features = np.maximum(ratio * (x @ projection.T), 0)
        return (features**4 if kernel.endswith("_q") else features) + RELU_STABILIZER
    x = x * x.shape[-1] ** -0.25
    exponents = x @ projection.T
    half_norm = np.square(x).sum(axis=-1, keepdims=True) / 2
    largest = exponents.max(axis=-1 if is_query else (1, 3), keepdims=True)
    return ratio * (np.exp(exponents - half_norm - largest) + SOFTMAX_STABILIZER)


def favor_attention(
    weights: Weights, x: np.ndarray, projection: np.ndarray, table: np.ndarray | None, *, kernel: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """φ(q)(φ(k)ᵀ v) / φ(q)Σφ(k), then the output projection; also k' and q', length first."""
    query, key, value = (heads_in(below(weights, f"{n}_dense_layer"), x) for n in ("query", "key", "value"))
    if table is not None:
        query, key = rotary(query, table), rotary(key, table)
    query = feature_map(query, projection, kernel=kernel, is_query=True)
    key = feature_map(key, projection, kernel=kernel, is_query=False)
    numerator = np.einsum("blhm,bhmd->blhd", query, np.einsum("blhm,blhd->bhmd", key, value))
    denominator = np.einsum("blhm,bhm->blh", query, key.sum(axis=1))
    attended = heads_out(below(weights, "output_dense_layer"), numerator / denominator[..., None])
    return attended, key.swapaxes(0, 1), query.swapaxes(0, 1)


def feed_forward(weights: Weights, x: np.ndarray) -> np.ndarray:
    """LayerNorm, twice as wide, ReLU, back."""
    wide = linear(below(weights, "FFN_dense_wide"), layer_norm(below(weights, "FFN_layer_norm"), x))
    return linear(below(weights, "FFN_dense_narrow"), np.maximum(wide, 0))


def transformer_layer(
    weights: Weights, x: np.ndarray, projection: np.ndarray, table: np.ndarray | None, *, kernel: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Attention and feed-forward network, each on top of a LayerNorm and added to what came in."""
    normalized = layer_norm(below(weights, "layer_norm"), x)
    attended, key, query = favor_attention(
        below(weights, "self_attention"), normalized, projection, table, kernel=kernel
    )
    x = x + attended
    return x + feed_forward(below(weights, "FFN"), x), key, query


def performer(
    weights: Weights, x: np.ndarray, projection: np.ndarray, table: np.ndarray | None, *, kernel: str, layers: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Layers one after the other, and a LayerNorm if there is one."""
    features = {}
    for index in range(layers):
        x, key, query = transformer_layer(below(weights, f"layers/{index}"), x, projection, table, kernel=kernel)
        features[f"layer_{index}"] = (key, query)
    last = below(weights, "layer_norm")
    return (layer_norm(last, x) if last else x), features

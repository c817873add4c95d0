"""Faults of the forward pass: a layer computes something else than the original's (spec, section 8)."""

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from parity.pairs.epibert_faults.subject import FINETUNING, of_port, set_attribute, set_forward

ATTENTION = "performer.layers.0.attention"
ROTARY = f"{ATTENTION}.rotary"
FEATURES = tuple(f"performer.layers.{i}.attention.features" for i in range(2))
TOWER_NORM = "conv_tower.3.block.norm"


# --- what the broken layers compute ----------------------------------------------------------------------------------


def padded_the_other_way(conv: Any, x: Tensor) -> Tensor:
    padded = F.pad(x.transpose(1, 2), (25, 24))
    return F.conv1d(padded, conv.weight, conv.bias).transpose(1, 2)


def flipped_kernel(conv: Any, x: Tensor) -> Tensor:
    return F.conv1d(x.transpose(1, 2), conv.weight.flip(-1), conv.bias, padding=2).transpose(1, 2)


def activation_first(block: Any, x: Tensor) -> Tensor:
    return block.conv(block.norm(block.activation(x)))


def batch_statistics(norm: Any, x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, dim=(0, 1), correction=0)
    return (x - mean) * torch.rsqrt(variance + norm.epsilon) * norm.weight + norm.bias


def unbiased_statistics(norm: Any, x: Tensor) -> Tensor:
    if norm.training:
        norm.running_mean.lerp_(x.mean(dim=(0, 1)), norm.update_rate)
        norm.running_var.lerp_(x.var(dim=(0, 1), correction=1), norm.update_rate)
        return batch_statistics(norm, x)
    return (x - norm.running_mean) * torch.rsqrt(norm.running_var + norm.epsilon) * norm.weight + norm.bias


def unbiased_layer_norm(norm: Any, x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, dim=-1, keepdim=True, correction=1)
    return (x - mean) * torch.rsqrt(variance + norm.eps) * norm.weight + norm.bias


def post_norm(layer: Any, x: Tensor, projection: Tensor, table: Tensor):
    attended, key, query = layer.attention(x, projection, table)
    x = layer.norm(x + layer.dropout(attended))
    return x + layer.ffn(x), key, query


def identity(_: Any, x: Tensor, *others: object) -> Tensor:
    return x


def pooled(reduce: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def forward(pool: Any, x: Tensor) -> Tensor:
        pairs = x.unflatten(1, (-1, 2))
        pool.logits(pairs)
        return reduce(pairs)

    return forward


def sum_pool(pool: Any, x: Tensor) -> Tensor:
    pairs = x.unflatten(1, (-1, 2))
    return (pool.logits(pairs).softmax(dim=-1) * pairs).sum(dim=2)


def average_pool(pool: Any, x: Tensor) -> Tensor:
    return F.avg_pool1d(x.transpose(1, 2), pool.size).transpose(1, 2)


def without_residual(residual: Any, x: Tensor) -> Tensor:
    return residual.block(x)


def other_order_of_concatenation(port: Any) -> None:
    forward, concatenate = port.forward, torch.cat

    def reordered(tensors: list[Tensor], dim: int) -> Tensor:
        sequence, accessibility, motifs = tensors
        return concatenate([sequence, motifs, accessibility], dim=dim)

    def patched(*inputs: Tensor) -> object:
        with mock.patch.object(torch, "cat", reordered):
            return forward(*inputs)

    port.forward = patched


def rotated(turn: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def forward(_: Any, x: Tensor, table: Tensor) -> Tensor:
        sine, cosine = table.unsqueeze(2).chunk(2, dim=-1)
        return turn(x, sine, cosine)

    return forward


def interleaved(x: Tensor, sine: Tensor, cosine: Tensor) -> Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], dim=-1).flatten(-2)


def rotate_half(x: Tensor, sine: Tensor, cosine: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def tiled_frequencies(x: Tensor, sine: Tensor, cosine: Tensor) -> Tensor:
    turned = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
    return x * torch.cat([cosine, cosine], dim=-1) + turned * torch.cat([sine, sine], dim=-1)


def attention(
    *, rotate_value: bool = False, epsilon: float = 0.0, normalize: bool = True
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    def forward(layer: Any, x: Tensor, projection: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = layer.query(x), layer.key(x), layer.value(x)
        query, key = layer.rotary(query, table), layer.rotary(key, table)
        if rotate_value:
            sine, cosine = table.unsqueeze(2).chunk(2, dim=-1)
            value = interleaved(value, sine, cosine)
        query = layer.features(query, projection, is_query=True)
        key = layer.features(key, projection, is_query=False)
        numerator = torch.einsum("blhm,bhmd->blhd", query, torch.einsum("blhm,blhd->bhmd", key, value))
        denominator = torch.einsum("blhm,bhm->blh", query, key.sum(dim=1)).unsqueeze(-1) + epsilon
        attended = layer.output(numerator / denominator if normalize else numerator)
        return attended, key.transpose(0, 1), query.transpose(0, 1)

    return forward


def relu_features(ratio: Callable[[Tensor], float]) -> Callable[..., Tensor]:
    def forward(features: Any, x: Tensor, projection: Tensor, *, is_query: bool) -> Tensor:
        return F.relu(ratio(projection) * F.linear(x, projection.to(x.dtype))) + features.stabilizer

    return forward


def scaled_query(heads: Any, x: Tensor) -> Tensor:
    query = F.linear(x, heads.weight).unflatten(-1, (heads.heads, -1))
    return query / math.sqrt(query.shape[-1])


def one_sided_crop(crop: Any, x: Tensor) -> Tensor:
    return x[:, : x.shape[1] - 2 * crop.bins]


def other_base_order(conv: Any, x: Tensor) -> Tensor:
    return F.conv1d(x[..., [0, 2, 1, 3]].transpose(1, 2), conv.weight, conv.bias, padding=7).transpose(1, 2)


def erf_gelu(_: Any, x: Tensor) -> Tensor:
    return F.gelu(x)


def tanh_gelu_dense(dense: Any, x: Tensor) -> Tensor:
    return F.gelu(F.linear(x, dense.weight, dense.bias), approximate="tanh")


def causal_padding(conv: Any, x: Tensor) -> Tensor:
    padded = F.pad(x.transpose(1, 2), (conv.kernel_size[0] - 1, 0))
    return F.conv1d(padded, conv.weight, conv.bias).transpose(1, 2)


def without_bias(conv: Any, x: Tensor) -> Tensor:
    return F.conv1d(x.transpose(1, 2), conv.weight, padding="same").transpose(1, 2)


def layer_without_residual(layer: Any, x: Tensor, projection: Tensor, table: Tensor):
    attended, key, query = layer.attention(layer.norm(x), projection, table)
    return layer.ffn(x + layer.dropout(attended)), key, query


def parallel_layer(layer: Any, x: Tensor, projection: Tensor, table: Tensor):
    attended, key, query = layer.attention(layer.norm(x), projection, table)
    return x + layer.dropout(attended) + layer.ffn(x), key, query


def heads_joined_in_the_wrong_order(heads: Any, x: Tensor) -> Tensor:
    return F.linear(x.transpose(-1, -2).flatten(-2), heads.weight)


def overlapping_windows(pool: Any, x: Tensor) -> Tensor:
    length = x.shape[1] // pool.size
    wider = F.max_pool1d(x.transpose(1, 2), pool.size + 1, stride=pool.size, ceil_mode=True)
    return wider.transpose(1, 2)[:, :length]


def exchanged_weights_of_positions(pool: Any, x: Tensor) -> Tensor:
    pairs = x.unflatten(1, (-1, 2))
    return (pool.logits(pairs).softmax(dim=2).flip(2) * pairs).sum(dim=2)


def crop_moved_by_one(crop: Any, x: Tensor) -> Tensor:
    return x[:, crop.bins - 1 : x.shape[1] - crop.bins - 1]


def in_float32(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda module, x, *others: forward(module, x.float(), *others).to(x.dtype)


def norm_in_its_inputs_precision(norm: Any, x: Tensor) -> Tensor:
    """Right in float64, so only the comparison of roundings can tell."""
    mean = x.mean(dim=-1, keepdim=True)
    variance = (x - mean).square().mean(dim=-1, keepdim=True)
    scaled = (x - mean) * torch.rsqrt(variance + norm.eps)
    return scaled * norm.weight.to(x.dtype) + norm.bias.to(x.dtype)


def positions_from_one(table: Any, x: Tensor) -> Tensor:
    return table.table.roll(-1, dims=0)[None, : x.shape[1]].to(x.dtype)


def unknown_bases_as_quarters(conv: Any, x: Tensor) -> Tensor:
    known = x.sum(dim=-1, keepdim=True)
    filled = x + (1 - known) / 4
    return F.conv1d(filled.transpose(1, 2), conv.weight, conv.bias, padding=7).transpose(1, 2)


def motifs_on_another_scale(dense: Any, x: Tensor) -> Tensor:
    return dense.activation(F.linear(100 * x, dense.weight, dense.bias))


def first_mask_again(port: Any) -> None:
    """What the second head is given is what the first was: one call for both."""
    dropout, forward, kept = port.dropout, port.dropout.forward, []

    def once(x: Tensor) -> Tensor:
        kept.append(forward(x))
        return kept[-2] if len(kept) % 2 == 0 else kept[-1]

    dropout.forward = once


# --- the faults ------------------------------------------------------------------------------------------------------


def block(index: int, part: str) -> str:
    """Path of a part of the sequence tower."""
    return f"conv_tower.{index}.{part}"


NORMS = [
    of_port(
        "trap 6",
        "BatchNorm epsilon 1e-3",
        "stem_res_conv.block.norm",
        "Keras' default where the original has 1e-5",
        set_attribute("stem_res_conv.block.norm", "epsilon", 1e-3),
    ),
    of_port(
        "trap 7",
        "GELU before BatchNorm",
        block(2, "block"),
        "activation, norm, convolution where the norm comes first",
        set_forward(block(2, "block"), activation_first),
    ),
    of_port(
        "trap 8",
        "batch statistics in evaluation",
        "final_pointwise_conv.norm",
        "statistics of the batch where the running ones belong",
        set_forward("final_pointwise_conv.norm", batch_statistics),
    ),
    of_port(
        "trap 9",
        "unbiased running variance",
        TOWER_NORM,
        "PyTorch's factor n / (n - 1) in the statistics",
        set_forward(TOWER_NORM, unbiased_statistics),
    ),
    of_port(
        "trap 10",
        "momentum 0.9",
        TOWER_NORM,
        "Keras' momentum handed to PyTorch, where it weighs the new statistics",
        set_attribute(TOWER_NORM, "update_rate", 0.9),
    ),
    of_port(
        "trap 11",
        "update rate of exactly 0.1",
        TOWER_NORM,
        "TensorFlow holds this factor in float32",
        set_attribute(TOWER_NORM, "update_rate", 0.1),
    ),
    of_port(
        "trap 12",
        "LayerNorm epsilon 1e-3",
        "performer.layers.1.norm",
        "Keras' default where the original has 1e-5",
        set_attribute("performer.layers.1.norm", "eps", 1e-3),
    ),
    of_port(
        "trap 13",
        "LayerNorm epsilon 1e-6",
        "performer.layers.1.ffn.norm",
        "a usual epsilon where the original has 1e-5",
        set_attribute("performer.layers.1.ffn.norm", "eps", 1e-6),
    ),
    of_port(
        "trap 14",
        "unbiased LayerNorm",
        "performer.norm",
        "variance divided by n - 1",
        set_forward("performer.norm", unbiased_layer_norm),
    ),
    of_port(
        "trap 15",
        "post-norm layer",
        "performer.layers.0",
        "the norm after the residual sum",
        set_forward("performer.layers.0", post_norm),
    ),
    of_port(
        "trap 16",
        "no final LayerNorm",
        "performer.norm",
        "the encoder ends without its norm",
        set_forward("performer.norm", identity),
    ),
    of_port(
        "precision",
        "LayerNorm in the precision of its input",
        "performer.layers.0.norm",
        "computes in bfloat16 where Keras computes in float32; right in float64",
        set_forward("performer.layers.0.norm", norm_in_its_inputs_precision),
    ),
    of_port(
        "precision",
        "BatchNorm in float32",
        block(1, "block.norm"),
        "a cast to float32 inside a layer that should follow its input",
        set_forward(
            block(1, "block.norm"),
            in_float32(
                lambda norm, x: F.batch_norm(
                    x.transpose(1, 2),
                    norm.running_mean.float(),
                    norm.running_var.float(),
                    norm.weight.float(),
                    norm.bias.float(),
                    eps=norm.epsilon,
                ).transpose(1, 2)
            ),
        ),
    ),
]

CONVOLUTIONS = [
    of_port(
        "trap 1",
        "erf GELU in a conv block",
        block(1, "block.activation"),
        "the exact GELU where the original has its tanh form",
        set_forward(block(1, "block.activation"), erf_gelu),
    ),
    of_port(
        "trap 4",
        "even kernel padded 25/24",
        "stem_conv_atac",
        "the odd position of padding on the left",
        set_forward("stem_conv_atac", padded_the_other_way),
    ),
    of_port(
        "trap 5",
        "flipped kernel",
        block(0, "block.conv"),
        "true convolution where frameworks correlate",
        set_forward(block(0, "block.conv"), flipped_kernel),
    ),
    of_port(
        "convolution",
        "causal padding",
        block(3, "block.conv"),
        "all padding on the left",
        set_forward(block(3, "block.conv"), causal_padding),
    ),
    of_port(
        "convolution",
        "convolution without its bias",
        "conv_tower_atac.0.block.conv",
        "the bias forgotten, as before a BatchNorm it often is on purpose",
        set_forward("conv_tower_atac.0.block.conv", without_bias),
    ),
    of_port(
        "trap 17",
        "maximum pooling of the sequence",
        "stem_pool",
        "the maximum where the original has a softmax of trained logits",
        set_forward("stem_pool", pooled(lambda pairs: pairs.amax(dim=2))),
    ),
    of_port(
        "trap 18",
        "mean pooling of the sequence",
        block(4, "pool"),
        "the mean where the original has a softmax of trained logits",
        set_forward(block(4, "pool"), pooled(lambda pairs: pairs.mean(dim=2))),
    ),
    of_port(
        "trap 18b",
        "softmax over the wrong axis",
        block(5, "pool"),
        "softmax over the one logit of a position, which leaves the sum",
        set_forward(block(5, "pool"), sum_pool),
    ),
    of_port(
        "pooling",
        "pooling weights exchanged",
        block(0, "pool"),
        "each position weighed by the other's logit",
        set_forward(block(0, "pool"), exchanged_weights_of_positions),
    ),
    of_port(
        "trap 19",
        "average pooling of accessibility",
        "stem_pool_atac",
        "the mean where the original has the maximum",
        set_forward("stem_pool_atac", average_pool),
    ),
    of_port(
        "pooling",
        "overlapping pooling windows",
        "conv_tower_atac.1.pool",
        "windows one wider than their stride",
        set_forward("conv_tower_atac.1.pool", overlapping_windows),
    ),
    of_port(
        "trap 20",
        "stem residual forgotten",
        "stem_res_conv",
        "the block without its input added",
        set_forward("stem_res_conv", without_residual),
    ),
    of_port(
        "trap 21",
        "motifs before accessibility",
        "EpiBERT",
        "the three parts of a bin joined in another order",
        other_order_of_concatenation,
    ),
    of_port(
        "trap 50",
        "bases A G C T",
        "stem_conv",
        "the sequence's channels in another order",
        set_forward("stem_conv", other_base_order),
    ),
    of_port(
        "trap 51",
        "unknown bases as quarters",
        "stem_conv",
        "N encoded as 0.25 of every base, not as zeros",
        set_forward("stem_conv", unknown_bases_as_quarters),
    ),
]

ATTENTIONS = [
    of_port(
        "trap 22",
        "no rotation",
        ROTARY,
        "queries and keys without their positions",
        set_forward(ROTARY, identity),
    ),
    of_port(
        "trap 23",
        "rotate-half",
        ROTARY,
        "pairs of distant channels where the original turns neighbours",
        set_forward(ROTARY, rotated(rotate_half)),
    ),
    of_port(
        "trap 24",
        "tiled frequencies",
        ROTARY,
        "frequencies one after the other twice, with pairs of neighbours",
        set_forward(ROTARY, rotated(tiled_frequencies)),
    ),
    of_port(
        "trap 25",
        "sine and cosine swapped",
        ROTARY,
        "the halves of the table taken for each other",
        set_forward(ROTARY, rotated(lambda x, sine, cosine: interleaved(x, cosine, sine))),
    ),
    of_port(
        "trap 26",
        "opposite rotation",
        ROTARY,
        "the sign of the sine",
        set_forward(ROTARY, rotated(lambda x, sine, cosine: interleaved(x, -sine, cosine))),
    ),
    of_port(
        "trap 27",
        "values rotated as well",
        ATTENTION,
        "positions in the values",
        set_forward(ATTENTION, attention(rotate_value=True)),
    ),
    of_port(
        "rotary",
        "positions counted from one",
        "performer.rotary_table",
        "the table begins at its second row",
        set_forward("performer.rotary_table", positions_from_one),
    ),
    of_port(
        "trap 30",
        "stabiliser 1e-7",
        FEATURES[1],
        "the constructor's value, which the original never uses",
        set_attribute(FEATURES[1], "stabilizer", 1e-7),
    ),
    of_port(
        "trap 31",
        "stabiliser rounded to bfloat16",
        FEATURES[0],
        "0.00099945 for 0.001",
        set_attribute(FEATURES[0], "stabilizer", torch.tensor(1e-3).bfloat16().item()),
    ),
    of_port(
        "trap 32",
        "ratio omitted",
        FEATURES[0],
        "features without 1 / √m",
        set_forward(FEATURES[0], relu_features(lambda projection: 1.0)),
    ),
    of_port(
        "trap 33",
        "ratio of the head size",
        FEATURES[0],
        "1 / √d for 1 / √m",
        set_forward(FEATURES[0], relu_features(lambda projection: projection.shape[1] ** -0.5)),
    ),
    of_port(
        "trap 34",
        "query scaled",
        f"{ATTENTION}.query",
        "1 / √d of softmax attention",
        set_forward(f"{ATTENTION}.query", scaled_query),
    ),
    of_port(
        "trap 35",
        "epsilon in the denominator",
        ATTENTION,
        "1e-6 added to the normaliser",
        set_forward(ATTENTION, attention(epsilon=1e-6)),
    ),
    of_port(
        "trap 36",
        "normaliser omitted",
        ATTENTION,
        "attention without its denominator",
        set_forward(ATTENTION, attention(normalize=False)),
    ),
    of_port(
        "attention",
        "heads joined in the wrong order",
        f"{ATTENTION}.output",
        "(D, H) flattened where the kernel has (H, D)",
        set_forward(f"{ATTENTION}.output", heads_joined_in_the_wrong_order),
    ),
    of_port(
        "attention",
        "layer without its residual",
        "performer.layers.1",
        "what the feed-forward network makes is not added to anything",
        set_forward("performer.layers.1", layer_without_residual),
    ),
    of_port(
        "attention",
        "parallel layer",
        "performer.layers.1",
        "attention and feed-forward network side by side",
        set_forward("performer.layers.1", parallel_layer),
    ),
    of_port(
        "trap 44",
        "GELU in the feed-forward network",
        "performer.layers.1.ffn.activation",
        "GELU where the original has ReLU",
        set_forward("performer.layers.1.ffn.activation", erf_gelu),
    ),
]

HEAD = [
    of_port(
        "trap 2",
        "tanh GELU in the motif layer",
        "motif_activity_fc1",
        "the tanh form where Keras' dense layer has the exact one",
        set_forward("motif_activity_fc1", tanh_gelu_dense),
    ),
    of_port(
        "trap 3",
        "exact cubic coefficient",
        "gelu",
        "0.044715 in double precision; TensorFlow rounds it to float32",
        set_attribute("gelu", "cubic_coefficient", 0.044715),
    ),
    of_port(
        "trap 3",
        "exact square root of two",
        "motif_activity_fc1",
        "√2 in double precision; TensorFlow rounds it to float32",
        set_attribute("motif_activity_fc1.activation", "scale", 2**0.5),
    ),
    of_port(
        "trap 45",
        "no GELU in the head",
        "gelu",
        "the head's own activation forgotten",
        set_forward("gelu", identity),
    ),
    of_port(
        "trap 46",
        "erf GELU in the head",
        "gelu",
        "the exact GELU where the original has its tanh form",
        set_forward("gelu", erf_gelu),
    ),
    of_port(
        "trap 47",
        "ReLU for softplus",
        "final_dense_profile",
        "another function that is never negative",
        set_attribute("final_dense_profile", "activation", F.relu),
    ),
    of_port(
        "trap 48",
        "softplus with a threshold",
        "final_dense_profile",
        "PyTorch's softplus is the identity above 20",
        set_attribute("final_dense_profile", "activation", F.softplus),
    ),
    of_port(
        "trap 49",
        "crop at one end",
        "crop_final",
        "all bins cut from the right",
        set_forward("crop_final", one_sided_crop),
    ),
    of_port(
        "head",
        "crop moved by one bin",
        "crop_final",
        "the window of bins begins one early",
        set_forward("crop_final", crop_moved_by_one),
    ),
    of_port(
        "trap 52",
        "motifs on another scale",
        "motif_activity_fc1",
        "motif activity a hundred times as large",
        set_forward("motif_activity_fc1", motifs_on_another_scale),
    ),
]

TWO_HEADS = [
    of_port(
        "trap 49",
        "crop of both heads at one end",
        "crop_final",
        "all bins cut from the right; the published model cuts 896",
        set_forward("crop_final", one_sided_crop),
        case=FINETUNING,
    ),
    of_port(
        "heads",
        "one dropout for both heads",
        "dropout",
        "one call where each head makes its own",
        first_mask_again,
        case=FINETUNING,
    ),
]
"""Mistakes that only a model with two heads shows."""

FAULTS = [*CONVOLUTIONS, *NORMS, *ATTENTIONS, *HEAD, *TWO_HEADS]

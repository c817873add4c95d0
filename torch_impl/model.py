"""EpiBERT, the pre-training model, as a plain PyTorch module.

Its trunk, everything before the head, is that of the fine-tuning model in `rampage.py` as well.

Source of the semantics: the specification of the original TensorFlow implementation (naumanjaved/EpiBERT, MIT), its
section 1; sections are cited where a choice is not obvious. Published: Javed et al., "A multi-modal transformer for
cell type-agnostic regulatory predictions" (Cell Genomics, 2025). FAVOR+ is from Choromanski et al., "Rethinking
attention with Performers" (2021); rotary positions from Su et al., "RoFormer" (2021).

Letters in shapes: B batch, L length (base pairs or bins), C channels, H heads, D head size, M random features,
N motifs, O output bins. Activations are channels-last, (B, L, C), everywhere.

Precision: every layer computes in the dtype of its input and casts its parameters on use; BatchNorm and LayerNorm
compute in float32 at least. So float32 parameters with ``compute_dtype=torch.bfloat16`` round where Keras'
``mixed_bfloat16`` does.
"""

import functools
import math
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks as _EVERYONES_HOOKS
from torch.nn.modules.module import _global_forward_pre_hooks as _EVERYONES_PRE_HOOKS

from torch_impl.config import RELU_KERNEL, RELU_QUARTIC_KERNEL, EpiBERTConfig
from torch_impl.kernels import (
    Convolution,
    DroppedOut,
    Normalization,
    NormalizedBatch,
    TanhGELUByPieces,
    WeightedMean,
    channel_mean,
    tanh_gelu,
    worthwhile,
)
from torch_impl.random import projection_matrix, rotary_table, stateless_uniform

STEM_KERNEL_SIZE = 15
TOWER_KERNEL_SIZE = 5
ATAC_STEM_KERNEL_SIZE = 50
ATAC_STEM_WIDTH = 32
SHORT_PRODUCT = 64
WIDENED_ROWS = 1 << 16
PIECE_SIZE, SHORTEST_PIECE = 1 << 21, 1024
"""Numbers in an activation, and positions, that a processor computes at a time in evaluation."""
OWN_CONSTANTS = "philox"
_OWN_DROPOUT = F.dropout


class Trunk(nn.Module):
    """What the two models share: everything before the heads, and what their heads have in common.

    A base class and not a module of its own, so that the names of the trunk's parameters are those of the original.

    Args:
        config: Shape and behaviour.
        compute_dtype: Dtype of the activations; that of the parameters when None.
    """

    def __init__(self, config: EpiBERTConfig, *, compute_dtype: torch.dtype | None) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        hidden = config.hidden_size
        widths = config.filter_list_seq
        atac_widths = config.filter_list_atac
        motif_units = config.motif_units_fc

        self.stem_conv = Conv1d(4, widths[0], STEM_KERNEL_SIZE)
        self.stem_res_conv = Residual(ConvBlock(config, widths[0], widths[0], 1))
        self.stem_pool = SoftmaxPool(widths[0])
        self.conv_tower = nn.ModuleList(
            TowerBlock(ConvBlock(config, before, after, TOWER_KERNEL_SIZE), SoftmaxPool(after))
            for before, after in zip((widths[0], *widths[:-1]), widths, strict=True)
        )

        self.stem_conv_atac = Conv1d(1, ATAC_STEM_WIDTH, ATAC_STEM_KERNEL_SIZE)
        self.stem_res_conv_atac = Residual(ConvBlock(config, ATAC_STEM_WIDTH, ATAC_STEM_WIDTH, 1))
        self.stem_pool_atac = MaxPool(2)
        self.conv_tower_atac = nn.ModuleList(
            TowerBlock(ConvBlock(config, before, after, TOWER_KERNEL_SIZE), MaxPool(4))
            for before, after in zip((ATAC_STEM_WIDTH, *atac_widths[:-1]), atac_widths, strict=True)
        )

        self.motif_activity_fc1 = Linear(config.num_motifs, motif_units, activation=ErfGELU(config.gelu_erf_scale))
        self.motif_dropout1 = Dropout(config.motif_dropout_rate)
        self.motif_activity_fc2 = Linear(motif_units, motif_units // 4)
        self.motif_dropout2 = Dropout(config.motif_dropout_rate / 4)

        joined = hidden + atac_widths[-1] + motif_units // 4
        self.pre_transformer_projection = Linear(joined, hidden, bias=False)
        self.performer = Performer(config)

        # Of one head or of two: the fine-tuning model calls each of these twice.
        self.dropout = Dropout(config.pointwise_dropout_rate)
        self.gelu = TanhGELU(config.gelu_cubic_coefficient)
        self.crop_final = Crop(config.crop)

    def encode(
        self, sequence: Float[Tensor, "B L 4"], atac: Float[Tensor, "B A 1"], motif_activity: Float[Tensor, "B 1 N"]
    ) -> tuple[Float[Tensor, "B l C"], dict[str, tuple[Tensor, Tensor]]]:
        """All of the model before the heads, and the attention features; arguments and errors as for ``EpiBERT``."""
        dtype = self.compute_dtype or self.stem_conv.weight.dtype
        run = _by_pieces if self._may_run_by_pieces(sequence.device) else _as_a_whole

        x = run(self._stem, sequence.to(dtype), width=self.stem_conv.out_channels, reach=STEM_KERNEL_SIZE // 2, pool=2)
        for block in self.conv_tower:
            x = run(block, x, width=x.shape[-1], reach=TOWER_KERNEL_SIZE // 2, pool=2)

        accessibility = run(
            self._stem_atac, atac.to(dtype), width=ATAC_STEM_WIDTH, reach=ATAC_STEM_KERNEL_SIZE // 2, pool=2
        )
        for block in self.conv_tower_atac:
            accessibility = run(block, accessibility, width=ATAC_STEM_WIDTH, reach=TOWER_KERNEL_SIZE // 2, pool=4)

        motifs = self.motif_dropout1(self.motif_activity_fc1(motif_activity.to(dtype)))
        motifs = self.motif_dropout2(self.motif_activity_fc2(motifs))

        bins = self.config.output_length
        if x.shape[1] != bins or accessibility.shape[1] != bins:
            raise ValueError(
                f"sequence of {sequence.shape[1]} and atac of {atac.shape[1]} positions pool to {x.shape[1]} and "
                f"{accessibility.shape[1]} bins, not to output_length={bins}; the configuration expects "
                f"{self.config.sequence_length} and {self.config.atac_length}"
            )
        x = torch.cat([x, accessibility, motifs.expand(-1, bins, -1)], dim=-1)
        return self.performer(self.pre_transformer_projection(x))

    def _stem(self, x: Float[Tensor, "B L 4"]) -> Float[Tensor, "B l C"]:
        return self.stem_pool(self.stem_res_conv(self.stem_conv(x)))

    def _stem_atac(self, x: Float[Tensor, "B A 1"]) -> Float[Tensor, "B a C"]:
        return self.stem_pool_atac(self.stem_res_conv_atac(self.stem_conv_atac(x)))

    def _may_run_by_pieces(self, device: torch.device) -> bool:
        """Whether nobody sees the difference: no gradients, statistics of no batch, no hooks that count the calls."""
        if torch.is_grad_enabled() or device.type != "cpu" or torch.compiler.is_compiling():
            return False
        if _EVERYONES_HOOKS or _EVERYONES_PRE_HOOKS:
            return False
        return not any(part.training or part._forward_hooks or part._forward_pre_hooks for part in self.modules())

    def predict(self, x: Float[Tensor, "B l C"], pointwise: "ConvBlock", profile: "Linear") -> Float[Tensor, "B O 1"]:
        """One head: its own convolution block and profile layer, the common Dropout, GELU and crop."""
        return self.crop_final(profile(self.gelu(self.dropout(pointwise(x)))))

    def new_head(self) -> tuple["ConvBlock", "Linear"]:
        """The two layers that a head has to itself."""
        hidden, width = self.config.hidden_size, self.config.hidden_size // self.config.final_point_scale
        return ConvBlock(self.config, hidden, width, 1), Linear(width, 1, activation=softplus)

    @property
    def constants_origin(self) -> str:
        """Where the constants come from: ``philox`` (our own) or what ``set_constants`` was told."""
        return self.performer.constants_origin

    def set_constants(self, projection: Tensor, table: Tensor | None, *, origin: str) -> None:
        """Replace the constants of attention, which no checkpoint of the original holds.

        Args:
            projection: (M, D) projection matrix.
            table: (max_seq_length + 1, D) rotary table; None for a model without rotary positions.
            origin: Where they come from; travels in the state.

        Raises:
            ValueError: A shape differs from the model's, or a table is given or missing against the configuration.
        """
        self.performer.set_constants(projection, table, origin=origin)


class EpiBERT(Trunk):
    """Accessibility from sequence, masked accessibility and motif activity.

    Args:
        config: Shape and behaviour; the published model by default.
        compute_dtype: Dtype of the activations; that of the parameters when None. ``torch.bfloat16`` with float32
            parameters rounds like the original under ``mixed_bfloat16``.

    Raises:
        ValueError: The configuration is one without ATAC head.
    """

    def __init__(self, config: EpiBERTConfig | None = None, *, compute_dtype: torch.dtype | None = None) -> None:
        config = EpiBERTConfig() if config is None else config
        if not config.predict_atac:
            raise ValueError("predict_atac=False leaves EpiBERT nothing to predict; it is for EpiBERTRampage")
        super().__init__(config, compute_dtype=compute_dtype)
        self.final_pointwise_conv, self.final_dense_profile = self.new_head()

    def forward(
        self,
        sequence: Float[Tensor, "B L 4"],
        atac: Float[Tensor, "B A 1"],
        motif_activity: Float[Tensor, "B 1 N"],
        *,
        return_features: bool = False,
    ) -> Float[Tensor, "B O 1"] | tuple[Float[Tensor, "B O 1"], dict[str, tuple[Tensor, Tensor]]]:
        """Predict accessibility per 128-bp bin.

        Args:
            sequence: One-hot A, C, G, T; an unknown base is a zero row. L = ``config.sequence_length``.
            atac: Masked accessibility in 4-bp bins; masked bins are 0. A = ``config.atac_length``.
            motif_activity: Motif enrichment of the cell type, scaled to [0, 1].
            return_features: Also return the attention features of every layer, as ``predict_on_batch`` of the
                original does in evaluation mode (in training mode that leaves out the second motif dropout).

        Returns:
            Predicted accessibility, cropped, non-negative. With ``return_features`` also a dictionary
            ``{"layer_0": (k', q'), ...}``, each (O, B, H, M).

        Raises:
            ValueError: The lengths do not pool down to ``config.output_length`` bins.
        """
        x, features = self.encode(sequence, atac, motif_activity)
        profile = self.predict(x, self.final_pointwise_conv, self.final_dense_profile)
        return (profile, features) if return_features else profile


class Performer(nn.Module):
    """Transformer layers with linear attention, and the constants they share.

    Attributes:
        projection_matrix: (M, D) buffer, the same for all layers because the original seeds all alike.
        constants_origin: Where the constants come from; saved as extra state.
    """

    projection_matrix: Tensor

    def __init__(self, config: EpiBERTConfig) -> None:
        super().__init__()
        self.constants_origin = OWN_CONSTANTS
        matrix = projection_matrix(config.num_random_features, config.head_size, int(config.seed))
        self.register_buffer("projection_matrix", torch.from_numpy(matrix))
        self.rotary_table = RotaryTable(config) if config.use_rot_emb else None
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_transformer_layers))
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_epsilon) if config.norm else None

    def forward(self, x: Float[Tensor, "B L C"]) -> tuple[Float[Tensor, "B L C"], dict[str, tuple[Tensor, Tensor]]]:
        """Returns the encoded sequence and {layer_i: (k', q')}, each (L, B, H, M)."""
        features = {}
        for index, layer in enumerate(self.layers):
            table = None if self.rotary_table is None else self.rotary_table(x)
            x, key_features, query_features = layer(x, self.projection_matrix, table)
            features[f"layer_{index}"] = (key_features, query_features)
        return (x if self.norm is None else self.norm(x)), features

    def set_constants(self, projection: Tensor, table: Tensor | None, *, origin: str) -> None:
        """See ``Trunk.set_constants``."""
        pairs = [("projection matrix", self.projection_matrix, projection)]
        if (table is None) != (self.rotary_table is None):
            raise ValueError("a rotary table belongs to a model with use_rot_emb, and only to such a model")
        if table is not None and self.rotary_table is not None:
            pairs.append(("rotary table", self.rotary_table.table, table))
        for name, current, new in pairs:
            if current.shape != new.shape:
                raise ValueError(f"{name} has shape {tuple(new.shape)}, the model's is {tuple(current.shape)}")
        for _, current, new in pairs:
            current.copy_(new)
        self.constants_origin = origin

    def get_extra_state(self) -> Tensor:
        """The origin of the constants as UTF-8 bytes, so that any tensor format can hold it."""
        return torch.tensor(list(self.constants_origin.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Inverse of ``get_extra_state``."""
        self.constants_origin = bytes(state.tolist()).decode()


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer (spec, section 1.6)."""

    def __init__(self, config: EpiBERTConfig) -> None:
        super().__init__()
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.attention = FavorAttention(config)
        self.dropout = Dropout(config.dropout_rate)
        self.ffn = FeedForward(config)

    def forward(
        self, x: Float[Tensor, "B L C"], projection: Float[Tensor, "M D"], table: Float[Tensor, "1 L D"] | None
    ) -> tuple[Float[Tensor, "B L C"], Float[Tensor, "L B H M"], Float[Tensor, "L B H M"]]:
        attended, key_features, query_features = self.attention(self.norm(x), projection, table)
        x = x + self.dropout(attended)
        return x + self.ffn(x), key_features, query_features


class FavorAttention(nn.Module):
    """Bidirectional FAVOR+ attention, linear in length (spec, section 1.8).

    Queries are not scaled by 1/sqrt(D) and the denominator has no epsilon, as in the original.
    """

    def __init__(self, config: EpiBERTConfig) -> None:
        super().__init__()
        heads, hidden = config.num_heads, config.hidden_size
        self.query = HeadsIn(hidden, heads, identical_init=config.identical_attention_init)
        self.key = HeadsIn(hidden, heads, identical_init=config.identical_attention_init)
        self.value = HeadsIn(hidden, heads, identical_init=config.identical_attention_init)
        self.output = HeadsOut(hidden, heads, identical_init=config.identical_attention_init)
        self.rotary = Rotary() if config.use_rot_emb else None
        self.features = FeatureMap(config)

    def forward(
        self, x: Float[Tensor, "B L C"], projection: Float[Tensor, "M D"], table: Float[Tensor, "1 L D"] | None
    ) -> tuple[Float[Tensor, "B L C"], Float[Tensor, "L B H M"], Float[Tensor, "L B H M"]]:
        """Returns the attended sequence, k' and q'; the features with length first, as in the original."""
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.rotary is not None:
            query, key = self.rotary(query, table), self.rotary(key, table)
        query = self.features(query, projection, is_query=True)
        key = self.features(key, projection, is_query=False)
        # Head by head in memory, as the features are already: of any other layout a matrix product makes its own copy,
        # ten times slower in bfloat16.
        query, key, value = (projected.transpose(1, 2).contiguous() for projected in (query, key, value))
        state = _einsum("bhlm,bhld->bhmd", key, value)
        numerator, denominator = _over_features(query, state, key.sum(dim=2))
        attended = (numerator / denominator.unsqueeze(-1)).transpose(1, 2)
        return self.output(attended), key.permute(2, 0, 1, 3), query.permute(2, 0, 1, 3)


class FeatureMap(nn.Module):
    """Positive random features of queries and keys (spec, sections 1.8 and 1.9)."""

    def __init__(self, config: EpiBERTConfig) -> None:
        super().__init__()
        self.kernel = config.kernel_transformation
        self.stabilizer = config.kernel_stabilizer

    def forward(
        self, x: Float[Tensor, "B L H D"], projection: Float[Tensor, "M D"], *, is_query: bool
    ) -> Float[Tensor, "B L H M"]:
        ratio = 1 / math.sqrt(projection.shape[0])
        if self.kernel == RELU_KERNEL:
            positive = _by_heads(x, projection * ratio, activation=torch.relu_)
            # The backward pass of the ReLU needs its result.
            return positive + self.stabilizer if torch.is_grad_enabled() else positive.add_(self.stabilizer)
        if self.kernel == RELU_QUARTIC_KERNEL:
            return _by_heads(x, projection * ratio, activation=torch.relu_) ** 4 + self.stabilizer
        x = x * x.shape[-1] ** -0.25
        projected = _by_heads(x, projection)
        half_norm = x.square().sum(dim=-1, keepdim=True) / 2
        # Queries may be shifted one by one, keys only by what all positions share, or attention would change.
        largest = projected.amax(dim=-1 if is_query else (1, 3), keepdim=True)
        return ratio * (torch.exp(projected - half_norm - largest) + 1e-6)


class Rotary(nn.Module):
    """Rotation of neighbouring channel pairs by position, the interleaved form (spec, section 1.7)."""

    def forward(self, x: Float[Tensor, "B L H D"], table: Float[Tensor, "1 L D"]) -> Float[Tensor, "B L H D"]:
        sine, cosine = table.unsqueeze(2).chunk(2, dim=-1)
        if x.dtype in (torch.float32, torch.float64) and worthwhile(x):
            # (even, odd) becomes (even cos - odd sin, odd cos + even sin), which is a product of complex numbers.
            turned = torch.view_as_complex(x.contiguous().unflatten(-1, (-1, 2))) * torch.complex(cosine, sine)
            return torch.view_as_real(turned).flatten(-2)
        # There are no complex numbers in bfloat16, and compilers know none: whole rows and a swap beat strided halves.
        sine, cosine = torch.stack([-sine, sine], dim=-1).flatten(-2), cosine.repeat_interleave(2, dim=-1)
        swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        return (x * cosine).add_(swapped * sine)


class RotaryTable(nn.Module):
    """Sines and cosines by position, cut to the length at hand.

    Attributes:
        table: (max_seq_length + 1, D) float32 buffer, half sines, half cosines.
    """

    table: Tensor

    def __init__(self, config: EpiBERTConfig) -> None:
        super().__init__()
        table = rotary_table(config.max_seq_length + 1, config.head_size, bfloat16=config.rotary_bfloat16)
        self.register_buffer("table", torch.from_numpy(table))

    def forward(self, x: Float[Tensor, "B L C"]) -> Float[Tensor, "1 L D"]:
        length = x.shape[1]
        if length > self.table.shape[0]:
            raise ValueError(f"{length} positions, but the rotary table ends at {self.table.shape[0]}")
        return self.table[None, :length].to(x.dtype)


class FeedForward(nn.Module):
    """Position-wise feed-forward network, twice as wide inside; its dropout precedes the ReLU (spec, section 1.6)."""

    def __init__(self, config: EpiBERTConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.norm = LayerNorm(hidden, config.layer_norm_epsilon)
        self.wide = Linear(hidden, 2 * hidden, random_bias=True)
        self.dropout = Dropout(config.dropout_rate)
        self.activation = nn.ReLU()
        self.narrow = Linear(2 * hidden, hidden, random_bias=True)

    def forward(self, x: Float[Tensor, "B L C"]) -> Float[Tensor, "B L C"]:
        x = self.activation(self.dropout(self.wide(self.norm(x))))
        return self.dropout(self.narrow(x))


class TowerBlock(nn.Module):
    """Convolution block, then pooling."""

    def __init__(self, block: "ConvBlock", pool: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.pool = pool

    def forward(self, x: Float[Tensor, "B L C"]) -> Float[Tensor, "B l c"]:
        return self.pool(self.block(x))


class Residual(nn.Module):
    """Input plus block."""

    def __init__(self, block: "ConvBlock") -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Float[Tensor, "B L C"]) -> Float[Tensor, "B L C"]:
        added = self.block(x)
        return x + added if torch.is_grad_enabled() else added.add_(x)


class ConvBlock(nn.Module):
    """BatchNorm, tanh GELU, 'same' convolution, in this order (spec, section 1.4)."""

    def __init__(self, config: EpiBERTConfig, channels_in: int, channels_out: int, kernel_size: int) -> None:
        super().__init__()
        self.norm = BatchNorm(channels_in, config.batch_norm_epsilon, config.BN_momentum)
        self.activation = TanhGELU(config.gelu_cubic_coefficient)
        self.conv = Conv1d(channels_in, channels_out, kernel_size)

    def forward(self, x: Float[Tensor, "B L C"]) -> Float[Tensor, "B L c"]:
        return self.conv(self.activation(self.norm(x)))


class SoftmaxPool(nn.Module):
    """Weighted mean of neighbouring positions, the weights a softmax over one learned logit each (spec, section 1.4).

    A softmax over two logits is a sigmoid of their difference, so the weighted mean is one interpolation.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.logits = Linear(channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "B L C"]) -> Float[Tensor, "B l C"]:
        if x.shape[1] % 2:
            raise ValueError(f"softmax pooling needs an even length, not {x.shape[1]}")
        x = x.unflatten(1, (-1, 2))
        logits = self.logits(x)
        if torch.is_grad_enabled() and worthwhile(x):
            return WeightedMean.apply(x, logits)
        first = torch.sigmoid(logits[:, :, 0] - logits[:, :, 1])
        return torch.lerp(x[:, :, 1], x[:, :, 0], first)


class MaxPool(nn.Module):
    """Maximum over non-overlapping windows; an incomplete window at the end is dropped."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Float[Tensor, "B L C"]) -> Float[Tensor, "B l C"]:
        return _positions(F.max_pool2d(_image(x), (1, self.size)))


class Crop(nn.Module):
    """Trims the same number of bins from both ends."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Float[Tensor, "B L C"]) -> Float[Tensor, "B l C"]:
        return x[:, self.bins : x.shape[1] - self.bins]


class Conv1d(nn.Conv1d):
    """'Same' convolution of (B, L, C); an even kernel reaches one further to the right (spec, section 1.4)."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int) -> None:
        super().__init__(channels_in, channels_out, kernel_size, padding="same")

    def reset_parameters(self) -> None:
        lecun_normal_(self.weight, fan_in=self.in_channels * self.kernel_size[0])
        nn.init.zeros_(cast(Tensor, self.bias))

    def forward(self, x: Float[Tensor, "B L C"]) -> Float[Tensor, "B L c"]:
        if self.kernel_size[0] == 1 and not worthwhile(x):
            return _linear(x, self.weight.squeeze(-1), self.bias)
        left, right = (self.kernel_size[0] - 1) // 2, self.kernel_size[0] // 2
        image, weight, bias = _image(x), self.weight.to(x.dtype), cast(Tensor, self.bias).to(x.dtype)
        if left == right and torch.is_grad_enabled() and worthwhile(x) and not torch.is_autocast_enabled("cpu"):
            return Convolution.apply(x, weight, bias, _widens(x))
        if left != right:
            image, left = F.pad(image, (left, right)), 0
        image, weight, bias = _for_product(image, weight, bias)
        return _positions(F.conv2d(image, weight.unsqueeze(2), bias, padding=(0, left)).to(x.dtype))


class Linear(nn.Linear):
    """Dense layer in the dtype of its input, with Keras' initialisation and an optional activation.

    Args:
        features_in: Channels in.
        features_out: Channels out.
        bias: Whether there is a bias.
        random_bias: Draw the bias like a kernel, as the original's feed-forward networks do, instead of zeros.
        activation: Applied to the result.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        *,
        bias: bool = True,
        random_bias: bool = False,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.random_bias = random_bias
        super().__init__(features_in, features_out, bias=bias)
        self.activation = activation

    def reset_parameters(self) -> None:
        lecun_normal_(self.weight, fan_in=self.in_features)
        if self.bias is not None:
            if self.random_bias:
                lecun_normal_(self.bias, fan_in=self.out_features)
            else:
                nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "... C"]) -> Float[Tensor, "... c"]:
        x = _linear(x, self.weight, self.bias)
        return x if self.activation is None else self.activation(x)


class _Heads(nn.Linear):
    """A projection between channels and heads: no bias, and the original's attention initialisation."""

    def __init__(self, hidden: int, heads: int, *, identical_init: bool) -> None:
        self.heads = heads
        self.identical_init = identical_init
        super().__init__(hidden, hidden, bias=False)

    def reset_parameters(self) -> None:
        kernel = self._draw((self.in_features, self.out_features))
        with torch.no_grad():
            self.weight.copy_(kernel.T)

    def _draw(self, kernel_shape: tuple[int, ...]) -> Tensor:
        """Uniform within sqrt(6 / (fan_in + fan_out)), in the shape of the Keras kernel."""
        limit = math.sqrt(6 / (self.in_features + self.out_features))
        if self.identical_init:
            return torch.from_numpy(stateless_uniform(kernel_shape, (5, 0), -limit, limit))
        return torch.empty(kernel_shape).uniform_(-limit, limit)


class HeadsIn(_Heads):
    """Query, key or value projection. The Keras kernel (C, H, D) is the transposed weight."""

    def forward(self, x: Float[Tensor, "B L C"]) -> Float[Tensor, "B L H D"]:
        return _linear(x, self.weight).unflatten(-1, (self.heads, -1))


class HeadsOut(_Heads):
    """Output projection of attention. The Keras kernel (H, D, C) is the transposed weight."""

    def forward(self, x: Float[Tensor, "B L H D"]) -> Float[Tensor, "B L C"]:
        return _linear(x.flatten(-2), self.weight)


class BatchNorm(nn.Module):
    """Keras BatchNorm over batch and length (spec, section 1.3).

    Unlike ``nn.BatchNorm1d`` it takes channels last, keeps the *biased* variance, weighs the old statistics with
    ``momentum`` and the new ones with float32(1 - momentum), and computes in float32 at least. In training, statistics
    span the batches of all processes of the default group, as those of the original span its replicas; the batches
    may differ in size.

    Attributes:
        weight, bias: (C,) parameters.
        running_mean, running_var: (C,) buffers, updated in training mode.
        synchronized: Whether statistics span all processes; True unless set otherwise.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, epsilon: float, momentum: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        # TensorFlow holds this factor in float32 whatever the precision of the statistics.
        self.update_rate = float(np.float32(1 - momentum))
        self.synchronized = True

    def forward(self, x: Float[Tensor, "B L C"]) -> Float[Tensor, "B L C"]:
        dtype = torch.promote_types(torch.promote_types(x.dtype, self.weight.dtype), torch.float32)
        if self.training:
            return self._normalize_batch(x, dtype)
        statistics = (self.running_mean.to(dtype), self.running_var.to(dtype))
        # The fused kernel widens bfloat16 to float32 by itself, without a copy.
        wide = x if dtype == torch.float32 else x.to(dtype)
        normalized = F.batch_norm(
            _image(wide), *statistics, self.weight.to(dtype), self.bias.to(dtype), training=False, eps=self.epsilon
        )
        return _positions(normalized).to(x.dtype)

    def _normalize_batch(self, x: Float[Tensor, "B L C"], dtype: torch.dtype) -> Float[Tensor, "B L C"]:
        # PyTorch's fused training kernel sums half a million positions one after the other: in float32 and channels
        # last, its standard deviation is off by 3e-5, a thousand times the reference's error.
        across = self.synchronized and _several_processes()
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        if worthwhile(x):
            normalized, mean, variance = NormalizedBatch.apply(x, weight, bias, self.epsilon, across)
            if torch.is_grad_enabled():
                with torch.no_grad():
                    scale = weight * torch.rsqrt(variance + self.epsilon)
                Normalization(x.detach().contiguous().flatten(0, 1), mean, scale, bias.detach()).mark(normalized)
        else:
            wide = x.to(dtype)
            mean = channel_mean(wide, across_processes=across)
            centered = wide - mean
            variance = channel_mean(centered.square(), across_processes=across)
            normalized = torch.addcmul(bias, centered, weight * torch.rsqrt(variance + self.epsilon)).to(x.dtype)
        with torch.no_grad():
            self.running_mean.sub_((self.running_mean - mean) * self.update_rate)
            self.running_var.sub_((self.running_var - variance) * self.update_rate)
        return normalized

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, epsilon={self.epsilon}, momentum={self.momentum}"


class LayerNorm(nn.LayerNorm):
    """LayerNorm over channels in float32 at least, cast back to the dtype of the input (spec, section 1.4)."""

    def __init__(self, channels: int, epsilon: float) -> None:
        super().__init__(channels, eps=epsilon)

    def forward(self, x: Float[Tensor, "B L C"]) -> Float[Tensor, "B L C"]:
        dtype = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        return F.layer_norm(x.to(dtype), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class Dropout(nn.Dropout):
    """PyTorch's, with masks that processors draw ten times as fast."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        # Whoever has put another function in the place of PyTorch's wants to be asked for the masks.
        if not self.training or self.p in (0, 1) or not worthwhile(x) or F.dropout is not _OWN_DROPOUT:
            return super().forward(x)
        return DroppedOut.apply(x, self.p)


class TanhGELU(nn.Module):
    """GELU in its tanh form, with the coefficient that TensorFlow rounds to float32 (spec, section 1.2)."""

    def __init__(self, cubic_coefficient: float) -> None:
        super().__init__()
        self.cubic_coefficient = cubic_coefficient

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        if worthwhile(x):
            return (
                TanhGELUByPieces.apply(x, self.cubic_coefficient, Normalization.of(x))
                if torch.is_grad_enabled()
                else tanh_gelu(x, self.cubic_coefficient)
            )
        if x.dtype != torch.float64:
            # The fused kernel computes in float32, where 0.044715 and the rounded coefficient are one number.
            return F.gelu(x, approximate="tanh")
        inner = math.sqrt(2 / math.pi) * (x + self.cubic_coefficient * x**3)
        return 0.5 * x * (1 + torch.tanh(inner))


class ErfGELU(nn.Module):
    """GELU in its exact form, with the scale that TensorFlow rounds to float32 (spec, section 1.2)."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return 0.5 * x * (1 + torch.erf(x / self.scale))


def softplus(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log(1 + exp(x)) without the linear branch above a threshold that ``F.softplus`` has."""
    return torch.logaddexp(x, x.new_zeros(()))


def lecun_normal_(tensor: Tensor, *, fan_in: int) -> None:
    """Normal truncated at two standard deviations, of variance 1 / fan_in after truncation (spec, notation)."""
    deviation = math.sqrt(1 / fan_in) / 0.87962566103423978
    nn.init.trunc_normal_(tensor, std=deviation, a=-2 * deviation, b=2 * deviation)


def _by_pieces(
    stage: Callable[[Tensor], Tensor], x: Float[Tensor, "B L C"], *, width: int, reach: int, pool: int
) -> Float[Tensor, "B l c"]:
    """Convolutions and a pooling, a piece of the sequence after the other.

    What lies between the layers of a stage is many times as large as what goes in and comes out. In pieces it stays in
    the processor's cache, and memory is neither filled with it nor asked for again for each layer.

    Args:
        stage: Layers to run.
        x: Their input.
        width: Channels between them.
        reach: Positions to each side on which one depends.
        pool: Positions that become one.
    """
    batch, length = x.shape[:2]
    positions = max(SHORTEST_PIECE, PIECE_SIZE // max(1, batch * width)) // pool * pool
    margin = -(-reach // pool) * pool
    result = None
    for start in range(0, length, positions):
        end = min(start + positions, length)
        before, after = min(margin, start), min(margin, length - end)
        # At the ends of the sequence the layers pad as always; elsewhere what they pad reaches the margin alone.
        found = stage(x[:, start - before : end + after])[:, before // pool : (before + end - start) // pool]
        if result is None:
            result = found.new_empty(batch, length // pool, found.shape[-1])
        result[:, start // pool : end // pool] = found
    return stage(x) if result is None else result  # of no positions at all


def _as_a_whole(stage: Callable[[Tensor], Tensor], x: Float[Tensor, "B L C"], **_: int) -> Float[Tensor, "B l c"]:
    return stage(x)


def _linear(
    x: Float[Tensor, "... C"], weight: Float[Tensor, "c C"], bias: Float[Tensor, " c"] | None = None
) -> Float[Tensor, "... c"]:
    """Input times transposed weight, in the dtype of the input."""
    bias = None if bias is None else bias.to(x.dtype)
    weight = weight.to(x.dtype)
    if not _widens(x) or torch.is_grad_enabled():
        return F.linear(*_for_product(x, weight, bias)).to(x.dtype)
    # A part at a time, so that the widened copies stay small beside the activations.
    rows = x.flatten(0, -2)
    result = x.new_empty(rows.shape[0], weight.shape[0])
    for given, found in zip(rows.split(WIDENED_ROWS), result.split(WIDENED_ROWS), strict=True):
        found.copy_(F.linear(*_for_product(given, weight, bias)))
    return result.unflatten(0, x.shape[:-1])


def _by_heads(
    x: Float[Tensor, "B L H D"], weight: Float[Tensor, "M D"], activation: Callable[[Tensor], Tensor] | None = None
) -> Float[Tensor, "B L H M"]:
    """``_linear`` with a result that lies head by head in memory; to bring the input there moves fewer numbers."""
    projected = _linear(x.transpose(1, 2).contiguous(), weight)
    # Before it is seen the other way round: what changes a view in place is passed back by copies of the whole.
    return (projected if activation is None else activation(projected)).transpose(1, 2)


def _einsum(equation: str, left: Tensor, right: Tensor) -> Tensor:
    """``torch.einsum`` of two tensors of one dtype."""
    return torch.einsum(equation, *_for_product(left, right)).to(left.dtype)


def _for_product(*tensors: Any) -> tuple[Any, ...]:
    """Factors in the dtype that they are multiplied in, which sums in float32 whatever it is."""
    if not _widens(tensors[0]):
        return tensors
    return tuple(None if tensor is None else tensor.float() for tensor in tensors)


def _widens(factor: Tensor) -> bool:
    """Whether products with this factor are computed in float32 and rounded."""
    return factor.dtype == torch.bfloat16 and factor.device.type == "cpu" and not fast_bfloat16_products()


@torch.compiler.assume_constant_result
@functools.cache
def fast_bfloat16_products() -> bool:
    """Whether this processor multiplies bfloat16 numbers at least as fast as float32 ones.

    Without an instruction for it PyTorch takes ten times as long, and on some processors with one twice as long. It is
    measured once; where there is such an instruction the two differ by a factor of two or more either way.
    """
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        factor, taken = torch.ones(512, 512, dtype=dtype), []
        for _ in range(6):
            started = time.perf_counter()
            with torch.autocast("cpu", enabled=False):
                torch.mm(factor, factor)
            taken.append(time.perf_counter() - started)
        seconds[dtype] = min(taken)
    return seconds[torch.bfloat16] <= seconds[torch.float32]


def _over_features(
    query: Float[Tensor, "B H L M"], state: Float[Tensor, "B H M D"], total: Float[Tensor, "B H M"]
) -> tuple[Float[Tensor, "B H L D"], Float[Tensor, "B H L"]]:
    """Queries times the sums over all keys, with values (numerator) and without (denominator).

    The features are positive, and in small matrices one long float32 sum of them rounds up to five times worse than
    TensorFlow's, so short ones are added up. In bfloat16 every part would be rounded, and the whole sum is not.
    """
    if query.dtype == torch.bfloat16:
        return _einsum("bhlm,bhmd->bhld", query, state), _einsum("bhlm,bhm->bhl", query, total)
    parts = zip(
        query.flatten(0, 1).split(SHORT_PRODUCT, dim=2), state.flatten(0, 1).split(SHORT_PRODUCT, dim=1), strict=True
    )
    # Not baddbmm, which in small matrices adds term by term to what it is given.
    numerator = torch.bmm(*next(parts))
    for left, right in parts:
        numerator = numerator.add_(torch.bmm(left, right))
    return numerator.unflatten(0, query.shape[:2]), (query * total.unsqueeze(2)).sum(dim=-1)


def _several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _image(x: Float[Tensor, "B L C"]) -> Float[Tensor, "B C 1 L"]:
    """(B, L, C) seen as a channels-last image of height one: no copy, and the fastest convolutions and norms."""
    return x.transpose(1, 2).unsqueeze(2)


def _positions(x: Float[Tensor, "B C 1 L"]) -> Float[Tensor, "B L C"]:
    """Inverse of ``_image``."""
    return x.squeeze(2).transpose(1, 2)

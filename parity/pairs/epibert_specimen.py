"""A wild specimen: the mistakes of a published port of EpiBERT, in one model, and what the harness calls them.

Which mistakes, the public port tells; the code is ours, made of the port's parts with wrong ones put in their places.

    python -m parity.pairs.epibert_specimen

runs the harness on it once and prints what was planted beside what was named. Exit status 0: everything was named, and
nothing else.
"""

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from parity.pairs.epibert_run import GOLDENS, run
from parity.pairs.epibert_training import PortTraining
from parity.records import Comparison, Result, Status
from parity.training import LOSS, SCHEDULE
from torch_impl import EpiBERT
from torch_impl.losses import masked_loss
from torch_impl.model import BatchNorm, Conv1d, ConvBlock, FavorAttention, FeedForward, LayerNorm, Linear, Residual

GATES = ("optimizer",)
"""The highest rung that shows one of the faults; those before it are climbed as well."""


# --- the wrong parts -------------------------------------------------------------------------------------------------


class ConvolutionFirst(nn.Module):
    """Convolution, BatchNorm, GELU; the BatchNorm is as wide as what comes out."""

    def __init__(self, right: ConvBlock) -> None:
        super().__init__()
        self.conv = without_bias(right.conv)
        width, given = right.conv.out_channels, right.norm
        same = len(given.weight) == width
        self.norm = given if same else BatchNorm(width, given.epsilon, given.momentum)
        self.activation = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """Convolves, normalises, activates."""
        return self.activation(self.norm(self.conv(x)))


class LayerNormHead(nn.Module):
    """LayerNorm where the original has a BatchNorm, and the exact GELU."""

    def __init__(self, right: ConvBlock) -> None:
        super().__init__()
        self.norm = LayerNorm(len(right.norm.weight), right.norm.epsilon)
        self.norm.load_state_dict({"weight": right.norm.weight, "bias": right.norm.bias})
        self.activation = nn.GELU()
        self.conv = without_bias(right.conv)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises, activates, convolves."""
        return self.conv(self.activation(self.norm(x)))


class NoSkip(nn.Module):
    """A residual block without its residual."""

    def __init__(self, right: Residual) -> None:
        super().__init__()
        self.block = right.block

    def forward(self, x: Tensor) -> Tensor:
        """Only the block."""
        return self.block(x)


class UntrainedPool(nn.Module):
    """Pairs weighted by a softmax over their own values, with no trained weight."""

    def forward(self, x: Tensor) -> Tensor:
        """Pools pairs."""
        pairs = x.unflatten(1, (-1, 2))
        return (pairs.softmax(dim=2) * pairs).sum(dim=2)


class PaddedEvenly(nn.Module):
    """A convolution of 50 positions padded by 25 on both sides: one position more comes out than goes in."""

    def __init__(self, right: Conv1d) -> None:
        super().__init__()
        self.weight, self.bias = right.weight, right.bias
        self.out_channels = right.out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Convolves."""
        weight, bias = self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        return F.conv1d(x.mT, weight, bias, padding=25).mT


class SoftmaxAttention(nn.Module):
    """Scaled dot-product attention in the place of FAVOR+; neither rotation nor random features."""

    def __init__(self, right: FavorAttention) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = right.query, right.key, right.value, right.output

    def forward(self, x: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Attends."""
        query, key, value = (project(x).transpose(1, 2) for project in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        return self.output(attended), key.permute(2, 0, 1, 3), query.permute(2, 0, 1, 3)


class FourfoldFeedForward(nn.Module):
    """A feed-forward network four times as wide inside, with GELU."""

    def __init__(self, right: FeedForward) -> None:
        super().__init__()
        hidden = right.wide.in_features
        self.norm, self.dropout = right.norm, right.dropout
        self.wide = Linear(hidden, 4 * hidden, random_bias=True)
        self.activation = nn.GELU()
        self.narrow = Linear(4 * hidden, hidden, random_bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """Widens, activates, narrows."""
        x = self.activation(self.dropout(self.wide(self.norm(x))))
        return self.dropout(self.narrow(x))


class SpecimenLayer(nn.Module):
    """A transformer layer of these parts."""

    def __init__(self, right: Any) -> None:
        super().__init__()
        self.norm, self.dropout = right.norm, right.dropout
        self.attention = SoftmaxAttention(right.attention)
        self.ffn = FourfoldFeedForward(right.ffn)

    def forward(self, x: Tensor, *others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Attends, then widens, as it should."""
        attended, key, query = self.attention(self.norm(x), *others)
        x = x + self.dropout(attended)
        return x + self.ffn(x), key, query


class Specimen(EpiBERT):
    """The model that throws the motif activity away."""

    def forward(self, sequence: Tensor, atac: Tensor, motif_activity: Tensor, **_: Any) -> Any:
        """Predicts from sequence and accessibility alone."""
        dtype = self.compute_dtype or self.stem_conv.weight.dtype
        x = self._stem(sequence.to(dtype))
        for block in self.conv_tower:
            x = block(x)
        accessibility = self._stem_atac(atac.to(dtype))
        for block in self.conv_tower_atac:
            accessibility = block(accessibility)
        x, _features = self.performer(self.pre_transformer_projection(torch.cat([x, accessibility], dim=-1)))
        return self.predict(x, self.final_pointwise_conv, self.final_dense_profile)


def without_bias(right: Conv1d) -> Conv1d:
    """The same convolution without its bias."""
    conv = Conv1d.__new__(Conv1d)
    nn.Conv1d.__init__(
        conv, right.in_channels, right.out_channels, right.kernel_size[0], padding="same", bias=True
    )
    conv.weight, conv.bias = right.weight, None
    conv.forward = lambda x: F.conv1d(x.mT, conv.weight.to(x.dtype), padding="same").mT
    return conv


def plant(port: Any) -> None:
    """Turns a port with its weights into the specimen; what still fits keeps its weights."""
    for suffix in ("", "_atac"):
        residual = getattr(port, f"stem_res_conv{suffix}")
        residual.block = ConvolutionFirst(residual.block)
        setattr(port, f"stem_res_conv{suffix}", NoSkip(residual))
    port.stem_pool = UntrainedPool()
    port.stem_conv_atac = PaddedEvenly(port.stem_conv_atac)
    for block in port.conv_tower:
        block.block, block.pool = ConvolutionFirst(block.block), UntrainedPool()
    for block in port.conv_tower_atac:
        block.block = ConvolutionFirst(block.block)
    for name in ("motif_activity_fc1", "motif_dropout1", "motif_activity_fc2", "motif_dropout2"):
        delattr(port, name)
    right = port.pre_transformer_projection
    width = right.in_features - port.config.motif_units_fc // 4
    port.pre_transformer_projection = Linear(width, right.out_features, bias=False)
    port.pre_transformer_projection.weight = nn.Parameter(right.weight.detach()[:, :width].clone())
    port.performer.layers = nn.ModuleList(SpecimenLayer(layer) for layer in port.performer.layers)
    port.final_pointwise_conv = LayerNormHead(port.final_pointwise_conv)
    port.gelu = nn.GELU()
    port.final_dense_profile.activation = None
    port.__class__ = Specimen


def inverted_mask(y_true: Tensor, y_pred: Tensor, mask: Tensor, **arguments: Any) -> Tensor:
    """The loss on the bins that the model was shown."""
    return masked_loss(y_true, y_pred, 1 - mask, **arguments)


def climbing_again(step: float, peak: float, warmup: float, decay: float, floor: float) -> float:
    """A cosine that is not stopped when it reaches the floor."""
    if step < warmup:
        return 0.001 * peak + step / warmup * (0.999 * peak)
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / decay))
    return peak * ((1 - floor) * cosine + floor)


TRAINING = PortTraining(masked_loss=inverted_mask, schedule=climbing_again)

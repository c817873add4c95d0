"""A wild specimen: the mistakes of a published port of EpiBERT, in one model, and what the harness calls them.

Which mistakes, the public port tells; the code is ours, made of the port's parts with wrong ones put in their places.

    python -m parity.pairs.epibert_specimen

runs the harness on it once and prints what was planted beside what was named. Exit status 0: everything was named, and
nothing else.
"""

import dataclasses
import fnmatch
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from parity.pairs import epibert
from parity.pairs.epibert_run import CASES, GOLDENS, load_case, run
from parity.pairs.epibert_training.parts import PortTraining
from parity.records import Comparison, Result, Status
from parity.training import LOSS, OPTIMIZER, SCHEDULE
from torch_impl import EpiBERT, EpiBERTConfig
from torch_impl.losses import masked_loss
from torch_impl.model import BatchNorm, Conv1d, ConvBlock, FavorAttention, FeedForward, LayerNorm, Linear, Residual

GATES = ("optimizer",)
"""The highest rung that shows one of the faults; those before it are climbed as well."""


# --- the wrong parts -------------------------------------------------------------------------------------------------


class WithoutBias(nn.Module):
    """A convolution without its bias."""

    def __init__(self, right: Conv1d) -> None:
        super().__init__()
        self.weight = right.weight

    def forward(self, x: Tensor) -> Tensor:
        """Convolves."""
        return F.conv1d(x.mT, self.weight.to(x.dtype), padding="same").mT


class ConvolutionFirst(nn.Module):
    """Convolution, BatchNorm, GELU; the BatchNorm is as wide as what comes out."""

    def __init__(self, right: ConvBlock) -> None:
        super().__init__()
        self.conv = WithoutBias(right.conv)
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
        self.conv = WithoutBias(right.conv)

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


def climbing_again(
    step: float, peak: float, warmup: float, decay: float, floor: float, *, constant: bool = False
) -> float:
    """A cosine that is not stopped when it reaches the floor."""
    if step < warmup:
        return 0.001 * peak + step / warmup * (0.999 * peak)
    if constant:
        return peak
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / decay))
    return peak * ((1 - floor) * cosine + floor)


TRAINING = PortTraining(masked_loss=inverted_mask, schedule=climbing_again)


# --- what was planted, and what it must be called --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planted:
    """One mistake.

    Attributes:
        name: What is wrong.
        named: Rung to the layers that it must name there, all of them; ``*`` and ``[..]`` as in file names.
    """

    name: str
    named: Mapping[str, tuple[str, ...]]


_BLOCKS = ("stem_res_conv.block", "stem_res_conv_atac.block", "conv_tower.*.block", "conv_tower_atac.*.block")
_CONVOLUTIONS = (*(f"{block}.conv" for block in _BLOCKS), "final_pointwise_conv.conv")
_POOLS = ("stem_pool", "conv_tower.*.pool")
_WEIGHTLESS = tuple(f"{pool}.logits" for pool in _POOLS)
_LAYER = "performer.layers.*"
_FFN = (f"{_LAYER}.ffn.wide", f"{_LAYER}.ffn.narrow")
_MOTIFS = ("motif_activity_fc1", "motif_activity_fc2", "pre_transformer_projection")
_WIDENED = ("conv_tower.[1345].block.norm", "conv_tower_atac.1.block.norm")
"""Blocks of the recorded case in which another width comes out than went in."""

PLANTED = (
    Planted(
        name="convolution, BatchNorm, GELU in this order", named={"weights": _WIDENED, "layers": (*_BLOCKS, *_WIDENED)}
    ),
    Planted(name="no residual in the stems", named={"layers": ("stem_res_conv", "stem_res_conv_atac")}),
    Planted(
        name="LayerNorm in the head",
        named={"weights": ("final_pointwise_conv.norm",), "layers": ("final_pointwise_conv.norm",)},
    ),
    Planted(name="no softplus", named={"layers": ("final_dense_profile",)}),
    Planted(
        name="motif activity thrown away",
        named={"weights": _MOTIFS, "layers": (*_MOTIFS, "motif_dropout1", "motif_dropout2", "")},
    ),
    Planted(
        name="softmax attention",
        named={"layers": tuple(f"{_LAYER}.attention{part}" for part in ("", ".rotary", ".features"))},
    ),
    Planted(name="pooling without trained weights", named={"weights": _WEIGHTLESS, "layers": (*_POOLS, *_WEIGHTLESS)}),
    Planted(
        name="feed-forward networks four times as wide, with GELU",
        named={"weights": _FFN, "layers": (*_FFN, f"{_LAYER}.ffn.activation")},
    ),
    Planted(name="50 positions padded by 25 and 25", named={"layers": ("stem_conv_atac",)}),
    Planted(name="convolutions without bias", named={"weights": _CONVOLUTIONS, "layers": _CONVOLUTIONS}),
    Planted(
        name="GELU by erf",
        named={"layers": (*(f"{block}.activation" for block in _BLOCKS), "final_pointwise_conv.activation", "gelu")},
    ),
    Planted(name="mask of the loss inverted", named={"losses": (LOSS,)}),
    Planted(name="schedule that climbs again", named={"optimizer": (SCHEDULE,)}),
)

CONSEQUENCES = {
    OPTIMIZER: "parameters that are missing, or have another shape, do not move as they should",
    "gradients": "a gradient of another shape cannot be exchanged for the reference's, so it reaches the layers around",
}
"""Part or rung -> why it names more than was planted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """What became of one planted mistake.

    Attributes:
        planted: The mistake.
        rows: The worst failed comparison of each rung and layer that named it.
        unnamed: Rungs and layers that should have and did not.
    """

    planted: Planted
    rows: tuple[Comparison, ...]
    unnamed: tuple[tuple[str, str], ...]


def find(result: Result, config: EpiBERTConfig) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """Looks for every planted mistake in what the harness found.

    Args:
        result: The run on the specimen.
        config: Configuration of the case whose layers are looked for.

    Returns:
        One finding for each mistake, and the culprits that neither a mistake nor ``CONSEQUENCES`` explains.
    """
    layers = [pair.port for pair in epibert.layer_map(config) if not pair.alias]
    failed: dict[tuple[str, str], Comparison] = {}
    for row in result.comparisons:
        key = (row.gate, row.layer)
        if row.status is not Status.PASS and (key not in failed or _error(row) > _error(failed[key])):
            failed[key] = row
    findings, explained = [], set()
    for planted in PLANTED:
        wanted = [(gate, layer) for gate, patterns in planted.named.items() for layer in _matching(patterns, layers)]
        explained |= {layer or "EpiBERT" for _, layer in wanted}
        findings.append(
            Finding(
                planted=planted,
                rows=tuple(failed[key] for key in wanted if key in failed),
                unnamed=tuple(key for key in wanted if key not in failed),
            )
        )
    unexplained = (row for row in result.culprit_rows if row.port not in explained)
    return tuple(findings), tuple(
        row.port for row in unexplained if row.port not in CONSEQUENCES and row.gates != ("gradients",)
    )


def _matching(patterns: tuple[str, ...], layers: list[str]) -> list[str]:
    found = []
    for pattern in patterns:
        matching = fnmatch.filter(layers, pattern) if "*" in pattern or "[" in pattern else [pattern]
        found += [name for name in matching if name.count(".") == pattern.count(".")]
    return found


def _error(row: Comparison) -> float:
    return math.inf if row.error is None else row.error


def examine() -> tuple[Result, EpiBERTConfig]:
    """Climbs the ladder once with the specimen, on the checkpoint of the first recorded case."""
    config, checkpoint = load_case(GOLDENS / CASES[0])
    (index,) = (path for path in checkpoint.files if path.suffix == ".index")
    with tempfile.TemporaryDirectory() as folder:
        arguments = Path(folder) / "arguments.json"
        arguments.write_text(json.dumps(epibert.original_arguments(config)), encoding="utf-8")
        result = run(
            checkpoint=str(index.with_suffix("")),
            config=str(arguments),
            gates=GATES,
            reference="live",
            bins=config.output_length,
            prepare_port=plant,
            training=TRAINING,
        )
    return result, config


def main() -> int:
    """Prints what was planted beside what was named.

    Returns:
        0: every mistake was named everywhere, and nothing else; 1: not.
    """
    result, config = examine()
    findings, unexplained = find(result, config)
    table = Table("planted", "rung", "layer", "what the harness says", title="A wild specimen", show_lines=True)
    for found in findings:
        shown: dict[str, list[Comparison]] = {}
        for row in found.rows:
            shown.setdefault(row.gate, []).append(row)
        name = found.planted.name
        for gate, rows in shown.items():
            first = rows[0]
            more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
            said = first.detail if first.error is None else f"relative error {first.error:.2g}, limit {first.limit:.2g}"
            table.add_row(name, gate, f"{first.layer or config.name}{more}", f"{first.quantity}: {said}")
            name = ""
        for gate, layer in found.unnamed:
            table.add_row(name, gate, layer or config.name, "NOT NAMED")
            name = ""
    console = Console(width=160, markup=False, highlight=False)
    console.print(table)
    everywhere = sum(1 for found in findings if not found.unnamed)
    console.print(
        f"{everywhere} of {len(findings)} named, each in every layer that has it; {len(result.culprits)} culprits"
    )
    for name, reason in CONSEQUENCES.items():
        console.print(f"also named, {name}: {reason}")
    if unexplained:
        console.print(f"named without having been planted: {', '.join(unexplained)}")
    return 0 if everywhere == len(findings) and not unexplained else 1


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.exit(main())

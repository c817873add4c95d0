"""Layers with a backward pass of their own, for processors.

A backward pass that is derived operation by operation keeps and passes over every intermediate of an activation, and
memory takes longer for those than the processor for the arithmetic. These functions keep their input alone and work on
pieces that stay in the cache. PyTorch's gradient by the weights of a convolution takes, in channels-last layout, four
to seven times as long as the products that it consists of; here it is those products.

Each computes what the plain layer computes, on any device and in any precision; they have no second derivative.

Letters in shapes: B batch, L length, C and O channels, K kernel size, N = B · L rows.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from torch_impl.random import random_mask

PIECE = 1 << 18
"""Numbers of an activation that are worked on at a time: few enough for a second-level cache to hold several such."""
SHORT_SUM = 256
LONG_PIECE = 1 << 13
"""Positions in one product of a weight gradient."""
FEW_FACTORS = 256
"""Of input channels and positions of a kernel together."""
_MARK = "_normalization"
GELU_SLOPE = 2 * math.sqrt(2 / math.pi)


def worthwhile(x: Tensor) -> bool:
    """Whether to use these functions: on a processor, where no compiler fuses what they fuse by hand."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


class Convolution(torch.autograd.Function):
    """'Same' convolution of (B, L, C) with an odd kernel; bfloat16 is multiplied in float32 if ``widened``."""

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "B L C"], weight: Float[Tensor, "O C K"], bias: Float[Tensor, " O"], widened: bool
    ) -> Float[Tensor, "B L O"]:
        ctx.save_for_backward(x, weight)
        ctx.widened = widened
        return _convolve(x, weight, bias, widened)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "B L O"]) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        by_input = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            by_input = _convolve(gradient, weight.flip(2).transpose(0, 1), None, ctx.widened)
        if ctx.needs_input_grad[1]:
            # In the order of the weight's own numbers, which DDP's buckets and a fused optimizer take for granted.
            found = _weight_gradient(x, gradient, weight, ctx.widened)
            by_weight = torch.empty(weight.shape, dtype=weight.dtype).copy_(found)
        if ctx.needs_input_grad[2]:
            pieces = _pieces(gradient.flatten(0, 1))
            by_bias = _total(_short_sums(piece.float() if ctx.widened else piece) for piece in pieces)
            by_bias = by_bias.to(gradient.dtype)
        return by_input, by_weight, by_bias, None


class Normalization(NamedTuple):
    """What a normalised activation was computed from, in a fraction of the time that memory takes to keep it."""

    rows: Float[Tensor, "N C"]
    mean: Float[Tensor, " C"]
    scale: Float[Tensor, " C"]
    bias: Float[Tensor, " C"]

    def pieces(self) -> Iterator[Tensor]:
        """The normalised rows, a piece at a time."""
        for piece in _pieces(self.rows):
            wide = piece - self.mean
            yield torch.addcmul(self.bias, wide, self.scale, out=wide).to(piece.dtype)

    def mark(self, normalized: Tensor) -> None:
        """Writes on the normalised activation that it is this."""
        setattr(normalized, _MARK, (normalized._version, self))

    @staticmethod
    def of(x: Tensor) -> "Normalization | None":
        """What a tensor was marked with, unless it was changed since."""
        version, found = getattr(x, _MARK, (None, None))
        return found if version == x._version else None


class NormalizedBatch(torch.autograd.Function):
    """(x - mean) / √(variance + ε) · weight + bias by the statistics of the batch, and these statistics.

    Computes in the dtype of the weight; the result has that of the input. No gradient passes through the statistics
    that are returned.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "B L C"],
        weight: Float[Tensor, " C"],
        bias: Float[Tensor, " C"],
        epsilon: float,
        across_processes: bool,
    ) -> tuple[Float[Tensor, "B L C"], Float[Tensor, " C"], Float[Tensor, " C"]]:
        dtype, rows = weight.dtype, x.contiguous().flatten(0, 1)
        pieces = _pieces(rows)
        total = _total(_short_sums(piece.to(dtype)) for piece in pieces)
        total, count = _over_processes(total, len(rows), across_processes)
        mean = (total / count).to(dtype)
        squares = _total(_short_sums((piece - mean).square_()) for piece in pieces)
        variance = (_over_processes(squares, len(rows), across_processes)[0] / count).to(dtype)
        inverse = torch.rsqrt(variance + epsilon)
        scale, result = weight * inverse, torch.empty_like(rows)
        for piece, found in zip(pieces, _pieces(result), strict=True):
            wide = found if found.dtype == dtype else torch.empty_like(found, dtype=dtype)
            torch.addcmul(bias, piece - mean, scale, out=wide)
            if wide is not found:
                found.copy_(wide)
        ctx.save_for_backward(rows, mean, inverse, scale)
        ctx.count, ctx.across_processes = count, across_processes
        ctx.mark_non_differentiable(mean, variance)
        return result.view(x.shape), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "B L C"], *_: Any) -> tuple[Any, ...]:
        rows, mean, inverse, scale = ctx.saved_tensors
        given = gradient.contiguous().flatten(0, 1)
        both = list(zip(_pieces(rows), _pieces(given), strict=True))
        short_sums = []
        for piece, slope in both:
            wide = slope.to(mean.dtype)
            short_sums.append(torch.cat([_short_sums(wide), _short_sums((piece - mean).mul_(wide))], dim=1))
        sums = _total(short_sums)
        by_bias, by_scale = sums.clone().chunk(2)
        if ctx.across_processes:
            dist.all_reduce(sums)
        mean_slope, mean_product = ((part / ctx.count).to(mean.dtype) for part in sums.chunk(2))
        # scale · (slope - mean slope - (x - mean) · mean product / variance), in two products and sums.
        along, offset, result = -mean_product * inverse.square() * scale, -mean_slope * scale, torch.empty_like(rows)
        for (piece, slope), found in zip(both, _pieces(result), strict=True):
            wide = piece - mean
            torch.addcmul(offset, wide, along, out=wide)
            if found.dtype == mean.dtype:
                torch.addcmul(wide, slope, scale, out=found)
            else:
                found.copy_(wide.addcmul_(slope, scale))
        by_weight = (by_scale * inverse).to(mean.dtype)
        return result.view(gradient.shape), by_weight, by_bias.to(mean.dtype), None, None


class WeightedMean(torch.autograd.Function):
    """Mean of two neighbours, weighted by a softmax of their logits."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "B l 2 C"], logits: Float[Tensor, "B l 2 1"]) -> Float[Tensor, "B l C"]:
        first = torch.sigmoid(logits[:, :, 0] - logits[:, :, 1])
        ctx.save_for_backward(x, first)
        return torch.lerp(x[:, :, 1], x[:, :, 0], first)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "B l C"]) -> tuple[Tensor, Tensor]:
        x, first = ctx.saved_tensors
        by_input, by_first = torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(first)
        tensors = (x, gradient, first, by_input, by_first)
        # Whole pairs at a time, so that a piece of the input is as long as of anything else here.
        for pair, slope, share, to_pair, to_share in zip(
            *(tensor.flatten(0, 1).split(max(1, PIECE // (2 * x.shape[-1]))) for tensor in tensors), strict=True
        ):
            torch.mul(slope, share, out=to_pair[:, 0])
            torch.sub(slope, to_pair[:, 0], out=to_pair[:, 1])
            torch.sum((pair[:, 0] - pair[:, 1]).mul_(slope), dim=-1, keepdim=True, out=to_share)
        by_difference = by_first * first * (1 - first)
        return by_input, torch.stack([by_difference, -by_difference], dim=2)


class TanhGELUByPieces(torch.autograd.Function):
    """x / 2 · (1 + tanh(√(2/π) (x + c x³))), computed as x · σ(2 √(2/π) (x + c x³)), in half the time of PyTorch's.

    Keeps its input, or what the input was computed from, to compute it again.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "*shape"], cubic: float, source: Normalization | None = None
    ) -> Float[Tensor, "*shape"]:
        ctx.save_for_backward(*([x] if source is None else source))
        ctx.cubic = cubic
        return tanh_gelu(x, cubic)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "*shape"]) -> tuple[Tensor, None, None]:
        saved, slopes = ctx.saved_tensors, gradient.contiguous()
        result = torch.empty_like(slopes)
        if len(saved) == 1:
            all_pieces = [tensor.contiguous().view(-1).split(PIECE) for tensor in (*saved, slopes, result)]
        else:
            source = Normalization(*saved)
            all_pieces = [source.pieces(), *(_pieces(tensor.flatten(0, -2)) for tensor in (slopes, result))]
        for piece, slope, found in zip(*all_pieces, strict=True):
            wide = _at_least_float32(piece)
            inner = _twice_the_inner(wide, ctx.cubic)
            share = torch.sigmoid(inner)
            # d/dx x σ(u) = σ (1 + x u' (1 - σ)), and of u = k (x + c x³) is x u' = 3 (u - 2/3 k x).
            inner.sub_(wide, alpha=2 / 3 * GELU_SLOPE)
            inner.addcmul_(inner, share, value=-1)
            share.addcmul_(share, inner, value=3)
            torch.mul(share, slope, out=found) if wide is piece else found.copy_(share.mul_(slope))
        return result, None, None


class DroppedOut(torch.autograd.Function):
    """Some numbers zero, chosen at random, the others over the share that is kept.

    PyTorch draws on one core, a number at a time; this takes a seed from PyTorch's generator and draws by one that is
    ten times as fast. The same state of PyTorch's generator gives the same mask.
    """

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "*shape"], rate: float) -> Float[Tensor, "*shape"]:
        seed = int(torch.randint(torch.iinfo(torch.int64).max, ()))
        keep, scale = torch.from_numpy(random_mask(x.numel(), rate, seed)).view(x.shape), x.new_tensor(1 / (1 - rate))
        ctx.save_for_backward(keep, scale)
        return torch.mul(x, keep).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "*shape"]) -> tuple[Tensor, None]:
        keep, scale = ctx.saved_tensors
        return torch.mul(gradient, keep).mul_(scale), None


def tanh_gelu(x: Float[Tensor, "*shape"], cubic: float) -> Float[Tensor, "*shape"]:
    """``TanhGELUByPieces`` without a backward pass; bfloat16 is computed in float32 and rounded once."""
    numbers = x.contiguous().view(-1)
    result = torch.empty_like(numbers)
    for piece, found in zip(numbers.split(PIECE), result.split(PIECE), strict=True):
        wide = _at_least_float32(piece)
        share = _twice_the_inner(wide, cubic).sigmoid_()
        torch.mul(share, wide, out=found) if wide is piece else found.copy_(share.mul_(wide))
    return result.view(x.shape)


def _twice_the_inner(x: Tensor, cubic: float) -> Tensor:
    return torch.addcmul(x.new_tensor(GELU_SLOPE), x, x, value=cubic * GELU_SLOPE).mul_(x)


def channel_mean(x: Float[Tensor, "B L C"], *, across_processes: bool) -> Float[Tensor, " C"]:
    """Mean over batch and length: short sums in the dtype of the input, their total in float64."""
    rows = x.flatten(0, 1)
    total, count = _total([_short_sums(rows)]), len(rows)
    if across_processes:
        total, count = SumOverProcesses.apply(torch.cat([total, total.new_full((1,), count)])).split([len(total), 1])
    return (total / count).to(x.dtype)


class SumOverProcesses(torch.autograd.Function):
    """Sum over all processes. Each of their losses depends on it, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def _over_processes(total: Float[Tensor, " C"], count: int, across: bool) -> tuple[Float[Tensor, " C"], float]:
    """A sum and the number of its terms, of all processes together."""
    if not across:
        return total, count
    both = torch.cat([total, total.new_full((1,), count)])
    dist.all_reduce(both)
    return both[:-1], both[-1].item()


def _short_sums(rows: Float[Tensor, "n C"]) -> Float[Tensor, "m C"]:
    """Sums over so few rows that their dtype is precise enough."""
    whole = len(rows) // SHORT_SUM * SHORT_SUM
    found = rows[:whole].unflatten(0, (-1, SHORT_SUM)).sum(dim=1)
    return found if whole == len(rows) else torch.cat([found, rows[whole:].sum(dim=0, keepdim=True)])


def _total(short_sums: Iterable[Float[Tensor, "_ C"]]) -> Float[Tensor, " C"]:
    """Their sum in float64."""
    return torch.cat(list(short_sums)).sum(dim=0, dtype=torch.float64)


def _pieces(rows: Float[Tensor, "n C"]) -> tuple[Tensor, ...]:
    """Views of so many rows at a time that short sums stay whole."""
    return rows.split(max(1, PIECE // rows.shape[1] // SHORT_SUM) * SHORT_SUM)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _convolve(
    x: Float[Tensor, "B L C"], weight: Float[Tensor, "O C K"], bias: Float[Tensor, " O"] | None, widened: bool
) -> Float[Tensor, "B L O"]:
    image, kernel = x.transpose(1, 2).unsqueeze(2), weight.unsqueeze(2)
    if widened:
        image, kernel, bias = image.float(), kernel.float(), None if bias is None else bias.float()
    found = F.conv2d(image, kernel, bias, padding=(0, weight.shape[2] // 2))
    return found.to(x.dtype).squeeze(2).transpose(1, 2)


def _weight_gradient(
    x: Float[Tensor, "B L C"], gradient: Float[Tensor, "B L O"], weight: Float[Tensor, "O C K"], widened: bool
) -> Float[Tensor, "O C K"]:
    length, (outputs, inputs, size) = x.shape[1], weight.shape
    if inputs * size <= FEW_FACTORS:
        return _weight_gradient_of_few(x, gradient, weight, widened)
    products = gradient.new_zeros((size, outputs, inputs), dtype=torch.float32 if widened else gradient.dtype)
    for example, slopes in zip(x.unbind(), gradient.unbind(), strict=True):
        for start, end, offset in _aligned(length, size):
            left, right = slopes[start:end], example[start + offset : end + offset]
            if widened:
                left, right = left.float(), right.float()
            products[offset + size // 2].addmm_(left.T, right)
    return products.permute(1, 2, 0)


def _weight_gradient_of_few(
    x: Float[Tensor, "B L C"], gradient: Float[Tensor, "B L O"], weight: Float[Tensor, "O C K"], widened: bool
) -> Float[Tensor, "O C K"]:
    """The same where a product for each position of the kernel would pass over the gradient for a column or two."""
    outputs, inputs, size = weight.shape
    dtype = torch.float32 if widened else gradient.dtype
    products = gradient.new_zeros((outputs, size * inputs), dtype=dtype)
    for example, slopes in zip(F.pad(x, (0, 0, size // 2, size // 2)).unbind(), gradient.unbind(), strict=True):
        # Every position with its neighbours is a row of these; the rows overlap in memory.
        windows = example.unfold(0, size, 1).mT
        for left, right in zip(slopes.split(LONG_PIECE), windows.split(LONG_PIECE), strict=True):
            products.addmm_(left.to(dtype).T, right.flatten(1).to(dtype))
    return products.unflatten(1, (size, inputs)).mT


def _aligned(length: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Stretches of positions, and the offset of a kernel's position at which all of them have a neighbour."""
    for first in range(0, length, LONG_PIECE):
        for offset in range(-(size // 2), size // 2 + 1):
            start, end = max(first, -offset), min(first + LONG_PIECE, length, length - offset)
            if start < end:
                yield start, end, offset

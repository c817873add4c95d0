"""Hypothesis strategies for what the layers take: legal shapes, all sorts of numbers, all sorts of memory layouts.

A sample is drawn as shape, kind of numbers, seed and memory layout, not number by number: it is built at once, shrinks
to a small shape with harmless numbers, and its short repr is all that it takes to build it again.

What is left out, for every layer, because it could not show a difference of meaning:

* infinities and NaN: the comparator refuses them on either side;
* subnormal numbers where they, and nothing larger, make the result: TensorFlow flushes them to zero in its kernels,
  PyTorch does not. They are drawn for layers that add something of ordinary size.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.vendor.pretty import RepresentationPrinter

ORDINARY_HUGE = 1e100
"""Far beyond float32, and its cube (GELU) and square (norms), summed up, are still finite in float64."""


class Kind(enum.StrEnum):
    """What sort of numbers an array holds."""

    ORDINARY = "ordinary"  # standard normal
    ZEROS = "zeros"
    CONSTANT = "constant"  # one number of ordinary size throughout
    CONSTANT_ROWS = "constant rows"  # at each position, the same number in all channels
    REPEATED_ROWS = "repeated rows"  # at all positions, the same channels
    SPARSE = "sparse"  # most are zero
    MIXED = "mixed magnitudes"  # from 1e-8 to 1e8 side by side
    HUGE = "huge"
    TINY = "tiny"  # 1e-100: squares and cubes underflow against any epsilon
    SUBNORMAL = "subnormal"


class Memory(enum.StrEnum):
    """How a tensor lies in memory; none of these may matter."""

    CONTIGUOUS = "contiguous"
    TRANSPOSED = "transposed"  # last two axes swapped in memory: channels first
    STRIDED = "strided"  # every other element of a larger tensor, along every axis
    OFFSET = "offset"  # a window of a longer tensor, not starting at its first element
    EXPANDED = "expanded"  # the batch is one example seen several times, with stride 0


LINEAR = tuple(kind for kind in Kind if kind is not Kind.SUBNORMAL)
"""For layers that only add, multiply and compare: any numbers whose products are normal float64 numbers."""

AFFINE = tuple(Kind)
"""For such layers with a bias of ordinary size, next to which a flushed subnormal number is nothing."""


@dataclass(frozen=True)
class Sample:
    """The same numbers for both sides.

    Attributes:
        numbers: For the reference; always contiguous.
        tensor: For the port; float64, in the drawn memory layout.
        recipe: What it takes to make the sample again.
    """

    numbers: np.ndarray
    tensor: torch.Tensor
    recipe: str

    def __repr__(self) -> str:
        return f"sample({self.recipe})"

    def _repr_pretty_(self, printer: RepresentationPrinter, cycle: bool) -> None:
        printer.text(repr(self))


def numbers(kind: Kind, shape: Sequence[int], seed: int, *, huge: float = ORDINARY_HUGE) -> np.ndarray:
    """An array of one kind, float64. The last two axes are positions and channels where the kind asks for them."""
    generator = np.random.default_rng(seed)
    normal = generator.standard_normal(shape)
    match kind:
        case Kind.ORDINARY:
            return normal
        case Kind.ZEROS:
            return np.zeros(shape)
        case Kind.CONSTANT:
            return np.full(shape, normal.flat[0])
        case Kind.CONSTANT_ROWS:
            return np.broadcast_to(normal[..., :1], shape).copy()
        case Kind.REPEATED_ROWS:
            return np.broadcast_to(normal[..., :1, :], shape).copy()
        case Kind.SPARSE:
            return np.where(generator.random(shape) < 0.8, 0.0, normal)
        case Kind.MIXED:
            return normal * 10.0 ** generator.uniform(-8, 8, shape)
        case Kind.HUGE:
            return normal * huge
        case Kind.TINY:
            return normal * 1e-100
        case Kind.SUBNORMAL:
            return normal * 1e-310


def laid_out(array: np.ndarray, memory: Memory) -> torch.Tensor:
    """A tensor of these numbers (of the first example's, when expanded) in a memory layout."""
    tensor = torch.from_numpy(array)
    match memory:
        case Memory.CONTIGUOUS:
            return tensor.clone()
        case Memory.TRANSPOSED:
            return tensor.mT.contiguous().mT
        case Memory.STRIDED:
            every_other = (slice(1, None, 2),) * tensor.ndim
            larger = torch.full([2 * size + 1 for size in tensor.shape], torch.nan, dtype=tensor.dtype)
            larger[every_other] = tensor
            return larger[every_other]
        case Memory.OFFSET:
            padding = torch.full_like(tensor[:, :1], torch.nan)
            return torch.cat([padding, tensor, padding], dim=1)[:, 1:-1]
        case Memory.EXPANDED:
            return tensor[:1].clone().expand(tensor.shape)


def sample(
    *shape: int,
    kind: Kind = Kind.ORDINARY,
    memory: Memory = Memory.CONTIGUOUS,
    seed: int = 0,
    huge: float = ORDINARY_HUGE,
) -> Sample:
    """One sample, by its recipe."""
    tensor = laid_out(numbers(kind, shape, seed, huge=huge), memory)
    parts = [*map(str, shape), f"kind=Kind.{kind.name}", f"memory=Memory.{memory.name}", f"seed={seed}"]
    if kind is Kind.HUGE and huge != ORDINARY_HUGE:
        parts.append(f"huge={huge}")
    return Sample(np.ascontiguousarray(tensor.numpy()), tensor, ", ".join(parts))


seeds = st.integers(0, 2**32 - 1)
"""For weights and for the numbers of a kind."""

batches = st.integers(1, 3)
lengths = st.integers(1, 24)
"""Positions, where any number is legal; kernels may well be longer."""

even_lengths = st.integers(1, 12).map(lambda half: 2 * half)
odd_lengths = st.integers(0, 12).map(lambda half: 2 * half + 1)
widths = st.integers(1, 9)
"""Channels, where any number is legal. Odd and prime ones reach the remainder loops of vectorised kernels."""

kernel_sizes = st.one_of(st.sampled_from([1, 5, 15, 50]), st.integers(1, 24))
"""Those of the model, and any other: even ones are padded unevenly."""


@st.composite
def samples(
    draw: st.DrawFn,
    *shape: st.SearchStrategy[int] | int,
    kinds: Sequence[Kind] = LINEAR,
    huge: float = ORDINARY_HUGE,
) -> Sample:
    """Samples of shape (batch, ..., positions, channels), each size a number or drawn."""
    sizes = [size if isinstance(size, int) else draw(size) for size in shape]
    kind, memory, seed = draw(st.sampled_from(kinds)), draw(st.sampled_from(Memory)), draw(seeds)
    return sample(*sizes, kind=kind, memory=memory, seed=seed, huge=huge)


@dataclass(frozen=True)
class ModelInputs:
    """What the whole model takes: one-hot sequence, accessibility, motif activity."""

    sequence: Sample
    atac: Sample
    motifs: Sample
    recipe: str

    def __repr__(self) -> str:
        return f"model_inputs({self.recipe})"

    def _repr_pretty_(self, printer: RepresentationPrinter, cycle: bool) -> None:
        printer.text(repr(self))


def model_inputs(
    batch: int, sequence_length: int, atac_length: int, motifs: int, *, seed: int, known: float = 0.95,
    open_bins: float = 0.3, memory: Memory = Memory.CONTIGUOUS,
) -> ModelInputs:  # fmt: skip
    """Inputs of the model by their recipe.

    Args:
        batch: Examples.
        sequence_length: Base pairs.
        atac_length: Accessibility bins.
        motifs: Length of the motif vector.
        seed: Of the random numbers.
        known: Share of known bases; the others are rows of zeros.
        open_bins: Share of bins that are not zero.
        memory: Layout of the tensors.
    """
    generator = np.random.default_rng(seed)
    bases = generator.integers(0, 4, (batch, sequence_length))
    one_hot = np.eye(4)[bases] * (generator.random((batch, sequence_length, 1)) < known)
    counts = generator.gamma(0.5, 8.0, (batch, atac_length, 1))
    atac = counts * (generator.random((batch, atac_length, 1)) < open_bins)
    arrays = (one_hot, atac, generator.random((batch, 1, motifs)))
    recipe = f"{batch}, {sequence_length}, {atac_length}, {motifs}, seed={seed}, known={known}, open_bins={open_bins}, "
    recipe += f"memory=Memory.{memory.name}"
    tensors = [laid_out(array, memory) for array in arrays]
    sequence, atac, motif_activity = (Sample(np.ascontiguousarray(tensor.numpy()), tensor, "...") for tensor in tensors)
    return ModelInputs(sequence, atac, motif_activity, recipe)


def examples(share: float = 1.0) -> settings:
    """Settings for a test that costs more than others: a share of the profile's examples, five at least."""
    return settings(max_examples=max(5, round(share * settings().max_examples)))

"""From a record and its draws to a training example: pure functions, nothing is drawn here.

Source of the semantics: the specification of the original TensorFlow implementation (naumanjaved/EpiBERT, MIT), its
sections 4.2 to 4.5. Letters in shapes: L base pairs, A accessibility values, O output bins, N output bins after the
crop, R mask regions of N, M motifs.
"""

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from torch_impl.data.records import DataError, Record
from torch_impl.float32 import row_sums

if TYPE_CHECKING:
    from torch_impl.data.draws import Draws

MotifScaling = Literal["min_max", "z_score"]

UNKNOWN_BASE = 4
ATAC_CLIP, TARGET_CLIP, RNA_CLIP = 150.0, 2000.0, 65500.0
NOISE_BLOCK = 512
BOOST = 3
Z_SCORE_EPSILON = 1e-6
RNA_KERNEL = (0.27406862, 0.45186275, 0.27406862)
"""Gaussian of one bin's width over three bins."""


def check_count(name: str, value: int, *, smallest: int = 1) -> None:
    """Insists that a number of something is one that computers count to.

    Raises:
        ValueError: It is not.
    """
    if value < smallest:
        raise ValueError(f"{name} must be at least {smallest}, not {value}")
    if value >= 2**31:
        raise ValueError(f"{name} must be below 2^31, not {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleConfig:
    """How examples are made. Names are those of the original (spec, sections 3.6 and 4).

    Defaults are those of the published pre-training; presets are ``pretraining``, ``finetuning`` and ``tiny``.

    Attributes:
        input_length: L, base pairs in the window.
        output_length_ATAC: A, accessibility values in the window.
        output_length: O, output bins in the window.
        crop_size: Output bins cut from each end.
        output_res: Base pairs of an output bin.
        max_shift: The sequence is moved by less than this.
        mask_size: Base pairs of a masked region.
        atac_mask_dropout: Share of regions that are masked.
        atac_corrupt_rate: One training example in so many has three times as many regions masked.
        mask_noise: Put shuffled accessibility at masked positions (pre-training only).
        log_atac: Take log(1 + x) of the accessibility before it is clipped. TensorFlow's logarithm is its own: a sixth
            of the values differ by one unit in the last place, and after rounding to bfloat16 two in a million.
        use_atac: False replaces the accessibility by uniform noise.
        use_seq: False replaces the sequence by random bases.
        use_motif_activity: False replaces the motif activity by zeros.
        num_motifs: M.
        training: Draw as the original does in training; else as in its validation.
        finetuning: Records of the fine-tuning model, with RNA.
        motif_scaling: ``min_max`` or ``z_score``; the original scales pre-training's validation by ``z_score`` and
            everything else, inference too, by ``min_max``, which is the right one.

    Raises:
        ValueError: Lengths, sizes or rates that do not fit each other.
    """

    input_length: int = 524_288
    output_length_ATAC: int = 131_072
    output_length: int = 4096
    crop_size: int = 2
    output_res: int = 128
    max_shift: int = 4
    mask_size: int = 1536
    atac_mask_dropout: float = 0.15
    atac_corrupt_rate: int = 15
    mask_noise: bool = False
    log_atac: bool = False
    use_atac: bool = True
    use_seq: bool = True
    use_motif_activity: bool = True
    num_motifs: int = 693
    training: bool = True
    finetuning: bool = False
    motif_scaling: MotifScaling = "min_max"

    def __post_init__(self) -> None:
        sizes = ("input_length", "output_length_ATAC", "output_length", "output_res", "num_motifs")
        for name in (*sizes, "max_shift", "mask_size", "atac_corrupt_rate"):
            check_count(name, getattr(self, name))
        if not 0 <= 2 * self.crop_size < self.output_length:
            raise ValueError(f"crop_size={self.crop_size} leaves nothing of output_length={self.output_length}")
        if self.output_length * self.output_res != self.input_length:
            raise ValueError(
                f"{self.output_length} bins of {self.output_res} bp are not input_length={self.input_length}"
            )
        if self.output_length_ATAC % self.output_length:
            raise ValueError(
                f"output_length_ATAC={self.output_length_ATAC} is no multiple of output_length={self.output_length}"
            )
        if self.region_bins < 1 or self.cropped_length % self.region_bins:
            raise ValueError(
                f"mask_size={self.mask_size} is {self.region_bins} bins, of which the {self.cropped_length} cropped "
                "bins are no multiple"
            )
        if not 0 <= self.atac_mask_dropout <= 1:
            raise ValueError(f"atac_mask_dropout must be from 0 to 1, not {self.atac_mask_dropout}")
        if self.motif_scaling not in ("min_max", "z_score"):
            raise ValueError(f"motif_scaling must be min_max or z_score, not {self.motif_scaling!r}")
        if self.mask_noise and self.finetuning:
            raise ValueError("mask_noise belongs to pre-training")
        if self.mask_noise and self.output_length_ATAC % NOISE_BLOCK:
            raise ValueError(
                f"mask_noise cuts output_length_ATAC={self.output_length_ATAC} into blocks of {NOISE_BLOCK}"
            )

    @classmethod
    def pretraining(cls, **changes: Any) -> "ExampleConfig":
        """As the published pre-training (``execute_pretraining.sh``); fields may be changed by name."""
        return cls(**changes)

    @classmethod
    def finetuning_preset(cls, **changes: Any) -> "ExampleConfig":
        """As the published fine-tuning (``execute_finetuning.sh``); fields may be changed by name."""
        published: dict[str, Any] = {
            "crop_size": 1600,
            "atac_mask_dropout": 0.075,
            "mask_size": 1024,
            "atac_corrupt_rate": 1000,
            "finetuning": True,
        }
        return cls(**published | changes)

    @classmethod
    def tiny(cls, **changes: Any) -> "ExampleConfig":
        """8,192 bp, for trying things out; fields may be changed by name."""
        sizes: dict[str, Any] = {"input_length": 8192, "output_length_ATAC": 2048, "output_length": 64}
        return cls(**sizes | changes)

    @property
    def cropped_length(self) -> int:
        """N."""
        return self.output_length - 2 * self.crop_size

    @property
    def region_bins(self) -> int:
        """Bins of a masked region."""
        return self.mask_size // self.output_res

    @property
    def regions(self) -> int:
        """R."""
        return self.cropped_length // self.region_bins

    @property
    def values_per_bin(self) -> int:
        """Accessibility values of an output bin."""
        return self.output_length_ATAC // self.output_length

    def mask_rate(self, *, boost: bool) -> np.float32:
        """Share of regions that are masked, in float32; at 1 and above all are."""
        return np.float32(BOOST * self.atac_mask_dropout if boost else self.atac_mask_dropout)


class Example(NamedTuple):
    """One example, float32 unless said otherwise; the original rounds the model's inputs to bfloat16 after this.

    Attributes:
        sequence: (L,) uint8 base indices, A 0, C 1, G 2, T 3, anything else 4, whose one-hot row is zero.
        atac: (A, 1) masked accessibility.
        mask: (N, 1) int32, 1 where the target is to be predicted.
        unmask: (N, 1) int32, 1 at as many bins that the model sees.
        target: (N, 1) accessibility in 128-bp bins.
        motif_activity: (1, M).
        rna: (N, 1) smoothed RNA; fine-tuning only.
        tss_tokens: (N, 1); fine-tuning's validation only.
        gene_token: () int32; fine-tuning's validation only.
        cell_type: () int32; fine-tuning's validation only.
    """

    sequence: np.ndarray
    atac: np.ndarray
    mask: np.ndarray
    unmask: np.ndarray
    target: np.ndarray
    motif_activity: np.ndarray
    rna: np.ndarray | None = None
    tss_tokens: np.ndarray | None = None
    gene_token: np.ndarray | None = None
    cell_type: np.ndarray | None = None


def make_example(
    record: Record,
    draws: "Draws",
    config: ExampleConfig,
    *,
    motif_means: np.ndarray | None = None,
    motif_deviations: np.ndarray | None = None,
) -> Example:
    """One example.

    Args:
        record: What was read.
        draws: What chance decided.
        config: How examples are made.
        motif_means: (M,) means for ``z_score``.
        motif_deviations: (M,) standard deviations for ``z_score``.

    Returns:
        The example; its arrays are its own, contiguous and writable.

    Raises:
        DataError: The record does not fit the configuration.
        ValueError: The draws do not, or ``z_score`` has no means and deviations of M motifs.
    """
    check_fit(record, config)
    _check_options(draws, config)
    window = record.sequence[draws.shift : draws.shift + config.input_length]
    sequence = base_indices(window) if isinstance(window, bytes) else window.copy()
    noisy = add_noise(record.atac, draws.atac_noise)
    visible = visible_bins(draws.peak, draws.kept_regions, config)
    mask = 1 - cropped(visible, config).astype(np.int32)
    unmask = np.zeros_like(mask)
    unmask[draws.unmasked] = 1
    atac = mask_atac(noisy, visible, draws.block_order, config)
    atac = soft_clip(np.log1p(atac) if config.log_atac else atac, ATAC_CLIP)
    motifs = scale_motifs(record.motif_activity, draws.motif_noise, config, motif_means, motif_deviations)
    signal = noisy
    rna = tss_tokens = gene_token = cell_type = None
    if config.finetuning:
        rna = cropped(smooth_rna(_present(record, "rna")), config)
        if not config.training:
            tss_tokens = cropped(_present(record, "tss_tokens").astype(np.float32).reshape(-1, 1), config)
            gene_token, cell_type = (
                _present(record, name).astype(np.int32).reshape(())
                for name in ("processed_gene_token", "cell_encoding")
            )
    if draws.reverse_complement:
        sequence = reverse_complement(sequence)
        atac, mask, unmask, signal = atac[::-1], mask[::-1], unmask[::-1], signal[::-1]
        rna = None if rna is None else rna[::-1]
        tss_tokens = None if tss_tokens is None else tss_tokens[::-1]
    if draws.atac_replacement is not None:
        atac = draws.atac_replacement.copy()
    if draws.sequence_replacement is not None:
        sequence = draws.sequence_replacement.astype(np.uint8)
    return Example(
        sequence=np.ascontiguousarray(sequence),
        atac=np.ascontiguousarray(atac.reshape(-1, 1)),
        mask=np.ascontiguousarray(mask.reshape(-1, 1)),
        unmask=np.ascontiguousarray(unmask.reshape(-1, 1)),
        target=bin_target(signal, config),
        motif_activity=motifs,
        rna=None if rna is None else np.ascontiguousarray(rna),
        tss_tokens=None if tss_tokens is None else np.ascontiguousarray(tss_tokens),
        gene_token=gene_token,
        cell_type=cell_type,
    )


def check_fit(record: Record, config: ExampleConfig) -> None:
    """Insists that a record has the lengths of a configuration.

    Raises:
        DataError: It has not.
    """
    needed = config.input_length + config.max_shift - 1
    if len(record.sequence) < needed:
        raise DataError(
            f"a sequence of {len(record.sequence)} letters is too short: {config.input_length} and a shift of up to "
            f"{config.max_shift - 1} need {needed}"
        )
    shapes = {"atac": config.output_length_ATAC, "peaks_center": config.output_length}
    shapes["motif_activity"] = config.num_motifs
    if config.finetuning:
        shapes["rna"] = config.output_length
        if not config.training:
            shapes |= {"tss_tokens": config.output_length, "processed_gene_token": 1, "cell_encoding": 1}
    for name, length in shapes.items():
        array = _present(record, name)
        if array.size != length:
            raise DataError(f"{name} has {array.size} values, {length} are expected")


def _check_options(draws: "Draws", config: ExampleConfig) -> None:
    """Draws of another configuration would otherwise leave an ablation out, or add one."""
    wanted = {
        "block_order": config.mask_noise,
        "atac_replacement": not config.use_atac,
        "sequence_replacement": not config.use_seq,
    }
    for name, expected in wanted.items():
        if (getattr(draws, name) is not None) != expected:
            raise ValueError(f"the draws have {'no' if expected else 'a'} {name}, unlike the configuration")


def _present(record: Record, name: str) -> np.ndarray:
    array = getattr(record, name)
    if array is None:
        raise DataError(f"the record has no {name}, which fine-tuning needs")
    return array


# --- sequence --------------------------------------------------------------------------------------------------------

_INDICES = bytes(b"ACGT".find(bytes([letter]).upper()) % (UNKNOWN_BASE + 1) for letter in range(256))
"""Base index of each byte; what is not found, at -1, becomes 4."""


def base_indices(sequence: bytes) -> np.ndarray:
    """A 0, C 1, G 2, T 3 in either case, anything else 4.

    Args:
        sequence: ASCII letters.

    Returns:
        uint8 array, one index a letter.
    """
    return np.frombuffer(bytearray(sequence.translate(_INDICES)), dtype=np.uint8)


def one_hot(indices: np.ndarray) -> np.ndarray:
    """float32 (L, 4) from base indices (L,); an unknown base is a zero row."""
    return (indices[:, None] == np.arange(4, dtype=np.uint8)).astype(np.float32)


def reverse_complement(indices: np.ndarray) -> np.ndarray:
    """The other strand, read in its own direction: index i becomes 3 - i, and an unknown base stays unknown."""
    complement = indices ^ 3
    if complement.max(initial=0) > UNKNOWN_BASE:  # rare, and slow
        np.minimum(complement, UNKNOWN_BASE, out=complement)
    if len(complement) % 8:
        return complement[::-1]
    # Eight at a time: NumPy turns the order of words round four times as fast as that of bytes.
    return complement.view(np.uint64)[::-1].byteswap().view(np.uint8)


# --- accessibility ---------------------------------------------------------------------------------------------------


def add_noise(atac: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Accessibility (A,) in float32 with the absolute value of the noise added; target and input both come from it."""
    noisy = np.abs(np.ravel(noise))
    noisy += _widened(np.ravel(atac))
    return noisy


def _widened(values: np.ndarray) -> np.ndarray:
    """float32 of float16 or float32 numbers; the former are looked up, in a third of the time of NumPy's conversion."""
    if values.dtype != np.float16:
        return values.astype(np.float32, copy=False)
    # Every number of 16 bits is in the table; without a check of the bounds NumPy is faster.
    return np.take(_all_float16(), values.view(np.uint16), mode="wrap")


@functools.cache
def _all_float16() -> np.ndarray:
    """float32 of every float16 number, by its bits."""
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def soft_clip(values: np.ndarray, limit: float) -> np.ndarray:
    """Values up to the limit, and the limit plus the square root of what exceeds it; negative ones become zero."""
    highest, zero = np.float32(limit), np.float32(0)
    clipped = np.clip(values, zero, highest) + zero
    beyond = np.nonzero(values > highest)  # few, and most often none
    clipped[beyond] += np.sqrt(values[beyond] - highest)
    return clipped


def bin_target(signal: np.ndarray, config: ExampleConfig) -> np.ndarray:
    """(N, 1) sums over the values of each bin, in TensorFlow's order of additions, softly clipped and cropped."""
    sums = row_sums(signal.reshape(-1, config.values_per_bin))
    return cropped(soft_clip(sums, TARGET_CLIP).reshape(-1, 1), config)


def cropped(bins: np.ndarray, config: ExampleConfig) -> np.ndarray:
    """(O, ...) without ``crop_size`` bins at either end."""
    return bins[config.crop_size : config.output_length - config.crop_size]


# --- masks -----------------------------------------------------------------------------------------------------------


def peak_candidates(record: Record, config: ExampleConfig) -> np.ndarray:
    """Cropped bins with the centre of a peak, in ascending order: one of them is masked."""
    return np.flatnonzero(cropped(record.peaks_center, config) > 0)


def visible_bins(peak: int | None, kept_regions: np.ndarray, config: ExampleConfig) -> np.ndarray:
    """(O,) bool, False where the input is masked: the surroundings of a peak and the regions that are not kept.

    A peak's surroundings are one bin wider than a region of an even number of bins, and may reach into the margins,
    which are otherwise always visible.
    """
    visible = np.ones(config.output_length, dtype=bool)
    cropped(visible, config)[:] = np.repeat(kept_regions, config.region_bins)
    if peak is not None:
        center, half = peak + config.crop_size, config.region_bins // 2
        visible[max(center - half, 0) : center + half + 1] = False
    return visible


def unmask_candidates(visible: np.ndarray, config: ExampleConfig) -> tuple[np.ndarray, int]:
    """Cropped bins that the model sees, in ascending order, and how many of them ``unmask`` marks at most."""
    seen = cropped(visible, config)
    return np.flatnonzero(seen), int(np.count_nonzero(~seen))


def mask_atac(
    noisy: np.ndarray, visible: np.ndarray, block_order: np.ndarray | None, config: ExampleConfig
) -> np.ndarray:
    """(A,) accessibility, zero where masked, or shuffled accessibility there when there is an order of blocks."""
    masked = noisy.reshape(config.output_length, -1).copy()
    hidden = np.flatnonzero(~visible)
    if block_order is None:
        masked[hidden] = 0
    else:
        masked[hidden] = noisy.reshape(-1, NOISE_BLOCK)[block_order].reshape(masked.shape)[hidden]
    return masked.reshape(-1)


# --- motifs and RNA --------------------------------------------------------------------------------------------------


def scale_motifs(
    motif_activity: np.ndarray,
    noise: np.ndarray,
    config: ExampleConfig,
    means: np.ndarray | None = None,
    deviations: np.ndarray | None = None,
) -> np.ndarray:
    """(1, M) motif activity as the model takes it.

    Args:
        motif_activity: (M,) as stored.
        noise: (M,) as drawn; ``min_max`` adds its absolute value, ``z_score`` the noise itself.
        config: Says which scaling, and whether there is motif activity at all.
        means: (M,) for ``z_score``.
        deviations: (M,) for ``z_score``.

    Raises:
        DataError: All values are the same, so there is nothing to scale by; the original makes NaN of them.
        ValueError: ``z_score`` has no means and deviations of M motifs.
    """
    x = np.ravel(motif_activity).astype(np.float32)
    if not config.use_motif_activity:
        return np.zeros((1, x.size), dtype=np.float32)
    if config.motif_scaling == "z_score":
        if means is None or deviations is None or not means.size == deviations.size == x.size:
            raise ValueError(f"z_score needs the means and the deviations of {x.size} motifs")
        means, deviations = (np.ravel(table).astype(np.float32) for table in (means, deviations))
        scaled = (x - means) / (deviations + np.float32(Z_SCORE_EPSILON))
        return (scaled + np.ravel(noise))[None]
    lowest, highest = x.min(), x.max()
    if lowest == highest:
        raise DataError(f"motif_activity is {lowest:g} throughout and cannot be scaled")
    return ((x - lowest) / (highest - lowest) + np.abs(np.ravel(noise)))[None]


def read_motif_table(path: str | Path) -> np.ndarray:
    """One row of numbers separated by commas, as the original publishes means and deviations of the motifs.

    Returns:
        float32 (M,).

    Raises:
        DataError: The file holds something else.
    """
    try:
        return np.loadtxt(path, delimiter=",", dtype=np.float32, ndmin=1).reshape(-1)
    except ValueError as error:
        raise DataError(f"{path}: not a row of numbers separated by commas: {error}") from None


def smooth_rna(rna: np.ndarray) -> np.ndarray:
    """(O, 1) square root of the clipped signal, smoothed over three bins; beyond the ends it is zero.

    Rounded as where the recordings were made. Where TensorFlow has no fused multiply-add it rounds the products too,
    which moves results by two units in the last place at most.
    """
    x = np.sqrt(np.clip(np.ravel(rna).astype(np.float32), np.float32(0), np.float32(RNA_CLIP)))
    padded = np.pad(x, 1).astype(np.float64)
    left, middle, right = (np.float64(np.float32(weight)) for weight in RNA_KERNEL)
    # A fused multiply-add rounds once; in float64 the product of two float32 numbers is exact.
    total = (left * padded[:-2]).astype(np.float32)
    total = (middle * padded[1:-1] + total).astype(np.float32)
    return (right * padded[2:] + total).astype(np.float32).reshape(-1, 1)

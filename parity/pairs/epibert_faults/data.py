"""Faults of the data pipeline: draws, masks, augmentation."""

import dataclasses
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np

from parity.attack.fault import Fault
from parity.pairs.epibert_data import AUGMENTATION, DRAWS, MASKS, WHOLE
from parity.pairs.epibert_faults.subject import of_data
from torch_impl.data import draws as draws_module
from torch_impl.data import examples
from torch_impl.data.draws import Draws, TensorFlowDraws
from torch_impl.data.examples import ExampleConfig, make_example

original_visible = examples.visible_bins
original_scaling = examples.scale_motifs
original_smoothing = examples.smooth_rna
original_bases = examples.base_indices
original_clip = examples.soft_clip
original_cropped = examples.cropped
original_uniform = draws_module.stateless_uniform
original_integers = draws_module.stateless_integers
original_permutation = draws_module.stateless_permutation


def changed(**parts: Any) -> Callable[..., Any]:
    """``make_example`` with some of its parts replaced while it runs."""

    def make(*arguments: Any, **options: Any) -> Any:
        with mock.patch.multiple(examples, **parts):
            return make_example(*arguments, **options)

    return make


def drawing(**parts: Any) -> Callable[[int], Any]:
    """``TensorFlowDraws`` with some of what it calls replaced while it draws."""

    class Faulty(TensorFlowDraws):
        def draw(self, *arguments: Any, **options: Any) -> Draws:
            with mock.patch.multiple(draws_module, **parts):
                return super().draw(*arguments, **options)

    return Faulty


class BoostedLess(TensorFlowDraws):
    """Twice the rate where it should be three times."""

    def draw(self, *arguments: Any, **options: Any) -> Draws:
        with mock.patch.object(examples, "BOOST", 2):
            return super().draw(*arguments, **options)


def narrow_mask(peak: int | None, kept_regions: np.ndarray, config: ExampleConfig) -> np.ndarray:
    """As wide as a region."""
    visible = np.ones(config.output_length, dtype=bool)
    original_cropped(visible, config)[:] = np.repeat(kept_regions, config.region_bins)
    if peak is not None:
        start = peak + config.crop_size - config.region_bins // 2
        visible[max(start, 0) : start + config.region_bins] = False
    return visible


def without_margins(peak: int | None, kept_regions: np.ndarray, config: ExampleConfig) -> np.ndarray:
    """The mask of a peak does not reach into the margins."""
    visible = original_visible(peak, kept_regions, config)
    visible[: config.crop_size] = visible[config.output_length - config.crop_size :] = True
    return visible


def log_after_clip(record: Any, draws: Draws, config: ExampleConfig, **tables: Any) -> Any:
    plain = make_example(record, draws, dataclasses.replace(config, log_atac=False), **tables)
    return plain._replace(atac=np.log1p(plain.atac)) if config.log_atac else plain


def noise_after_masking(record: Any, draws: Draws, config: ExampleConfig, **tables: Any) -> Any:
    example = make_example(record, draws, config, **tables)
    noise = np.abs(draws.atac_noise)
    return example._replace(atac=np.where(example.atac == 0, noise, example.atac))


def forward_strand_of(field: str) -> Callable[..., Any]:
    """One part of an example is not reversed with the rest."""

    def make(record: Any, draws: Draws, config: ExampleConfig, **tables: Any) -> Any:
        example = make_example(record, draws, config, **tables)
        forward = make_example(record, dataclasses.replace(draws, reverse_complement=False), config, **tables)
        return example._replace(**{field: getattr(forward, field)})

    return make


def shifted_atac(record: Any, draws: Draws, config: ExampleConfig, **tables: Any) -> Any:
    moved = dataclasses.replace(record, atac=np.roll(record.atac, -draws.shift, axis=0))
    return make_example(moved, draws, config, **tables)


def target_without_noise(record: Any, draws: Draws, config: ExampleConfig, **tables: Any) -> Any:
    quiet = dataclasses.replace(draws, atac_noise=np.zeros_like(draws.atac_noise))
    return make_example(record, draws, config, **tables)._replace(
        target=make_example(record, quiet, config, **tables).target
    )


def signed_motif_noise(activity: np.ndarray, noise: np.ndarray, config: ExampleConfig, *tables: Any) -> np.ndarray:
    """Scaled to the unit interval, and the noise itself added."""
    plain = original_scaling(activity, np.zeros_like(noise), config, *tables)
    return plain + noise if config.use_motif_activity else plain


def unscaled_motifs(activity: np.ndarray, noise: np.ndarray, config: ExampleConfig, *tables: Any) -> np.ndarray:
    """As stored, with the noise added."""
    plain = original_scaling(activity, noise, config, *tables)
    return (
        (np.ravel(activity).astype(np.float32) + np.abs(np.ravel(noise)))[None] if config.use_motif_activity else plain
    )


def of_masked_bins(record: Any, draws: Draws, config: ExampleConfig, **tables: Any) -> Any:
    example = make_example(record, draws, config, **tables)
    return example._replace(unmask=example.mask)


def inverted(record: Any, draws: Draws, config: ExampleConfig, **tables: Any) -> Any:
    example = make_example(record, draws, config, **tables)
    return example._replace(mask=1 - example.mask)


def other_shift(by: int) -> Callable[..., Any]:
    """A window that begins elsewhere; at the end of what there is it stays."""

    def make(record: Any, draws: Draws, config: ExampleConfig, **tables: Any) -> Any:
        last = len(record.sequence) - config.input_length
        return make_example(
            record, dataclasses.replace(draws, shift=min(max(draws.shift + by, 0), last)), config, **tables
        )

    return make


def exchanged_bases(record: Any, draws: Draws, config: ExampleConfig, **tables: Any) -> Any:
    example = make_example(record, draws, config, **tables)
    return example._replace(sequence=np.array([0, 2, 1, 3, 4], dtype=np.uint8)[example.sequence])


def unknown_as_adenine(record: Any, draws: Draws, config: ExampleConfig, **tables: Any) -> Any:
    example = make_example(record, draws, config, **tables)
    return example._replace(sequence=np.where(example.sequence == examples.UNKNOWN_BASE, 0, example.sequence))


def crop_from_the_left(bins: np.ndarray, config: ExampleConfig) -> np.ndarray:
    return bins[2 * config.crop_size :]


def mean_for_sum(rows: np.ndarray) -> np.ndarray:
    return rows.mean(axis=1, dtype=np.float32)


def no_motif_noise(activity: np.ndarray, noise: np.ndarray, config: ExampleConfig, *tables: Any) -> np.ndarray:
    return original_scaling(activity, np.zeros_like(noise), config, *tables)


IN_EXAMPLES = (AUGMENTATION, WHOLE)
IN_MASKS = (MASKS, WHOLE)
IN_BOTH = (MASKS, AUGMENTATION, WHOLE)
IN_DRAWS = (DRAWS, WHOLE)
"""Wrong draws and wrong parts both show in examples from the seed."""


def example(name: str, where: str, what: str, make: Callable[..., Any], *, source: str = "data") -> Fault:
    return of_data(source, name, where, what, named=IN_EXAMPLES, make=make)


FAULTS = [
    of_data(
        "trap 59",
        "a peak's mask as wide as a region",
        "visible_bins",
        "one bin too narrow",
        named=IN_BOTH,
        make=changed(visible_bins=narrow_mask),
    ),
    example(
        "a peak's mask that spares the margins",
        "visible_bins",
        "margins that are always visible",
        changed(visible_bins=without_margins),
    ),
    example(
        "reversal without complement",
        "reverse_complement",
        "the same bases in reverse order",
        changed(reverse_complement=lambda indices: indices[::-1]),
    ),
    example(
        "complement without reversal",
        "reverse_complement",
        "the other strand read backwards",
        changed(reverse_complement=lambda indices: np.minimum(indices ^ 3, 4)),
    ),
    example("bases in another order", "sequence", "C and G taken for each other", exchanged_bases, source="trap 50"),
    example("unknown bases as A", "sequence", "N has the index of A", unknown_as_adenine, source="trap 51"),
    example(
        "lower case unknown",
        "base_indices",
        "soft-masked bases become N",
        changed(base_indices=lambda s: original_bases(bytes(b if b < 97 else 78 for b in s))),
    ),
    example("a window one base to the right", "shift", "the shift plus one", other_shift(1)),
    example("a window without its shift", "shift", "always the first window", other_shift(-(10**6))),
    example("logarithm after the clip", "atac", "log(1 + x) of clipped values", log_after_clip),
    example("noise at masked positions", "atac", "noise added after the masking", noise_after_masking),
    example("a target of the other strand", "target", "the target is not reversed", forward_strand_of("target")),
    example("accessibility of the other strand", "atac", "the input is not reversed", forward_strand_of("atac")),
    of_data(
        "data",
        "a mask of the other strand",
        "mask",
        "the mask is not reversed with what it masks",
        named=IN_MASKS,
        make=forward_strand_of("mask"),
    ),
    of_data(
        "data",
        "an unmask of the other strand",
        "unmask",
        "the unmasked bins are not reversed",
        named=IN_MASKS,
        make=forward_strand_of("unmask"),
    ),
    of_data("data", "an inverted mask", "mask", "1 where a bin is seen", named=IN_MASKS, make=inverted),
    example("accessibility shifted with the sequence", "atac", "the signal moved as the sequence is", shifted_atac),
    example("a target without noise", "target", "noise in the input alone", target_without_noise),
    example(
        "a hard clip",
        "soft_clip",
        "nothing left of what exceeds the limit",
        changed(soft_clip=lambda x, limit: np.minimum(x, np.float32(limit))),
    ),
    example(
        "a clip of twice the height",
        "soft_clip",
        "limits that are never reached",
        changed(soft_clip=lambda x, limit: original_clip(x, 2 * limit)),
    ),
    of_data(
        "data", "unmask on masked bins", "unmask", "the same bins as the mask", named=IN_MASKS, make=of_masked_bins
    ),
    example(
        "sums in another order", "row_sums", "NumPy's pairwise sums", changed(row_sums=lambda rows: rows.sum(axis=1))
    ),
    example("means for sums", "row_sums", "the mean of a bin's values", changed(row_sums=mean_for_sum)),
    of_data(
        "data",
        "a crop from the left alone",
        "cropped",
        "all bins cut from the left",
        named=IN_BOTH,
        make=changed(cropped=crop_from_the_left),
    ),
    example(
        "RNA that is not smoothed",
        "smooth_rna",
        "the root of the clipped signal alone",
        changed(smooth_rna=lambda rna: np.sqrt(np.clip(rna, 0, 65500)).astype(np.float32)),
    ),
    example(
        "RNA without its root",
        "smooth_rna",
        "the clipped signal, smoothed",
        changed(smooth_rna=lambda rna: original_smoothing(np.square(np.clip(rna, 0, 65500)))),
    ),
    example(
        "accessibility with noise of either sign",
        "add_noise",
        "the noise itself, not its absolute value",
        changed(add_noise=lambda atac, noise: np.ravel(atac).astype(np.float32) + np.ravel(noise)),
    ),
    example(
        "motifs with noise of either sign",
        "scale_motifs",
        "the noise itself, not its absolute value",
        changed(scale_motifs=signed_motif_noise),
    ),
    example("motifs without noise", "scale_motifs", "scaled and left alone", changed(scale_motifs=no_motif_noise)),
    example(
        "motifs as stored",
        "scale_motifs",
        "not scaled to the unit interval",
        changed(scale_motifs=unscaled_motifs),
        source="trap 52",
    ),
    of_data(
        "trap 53",
        "inputs that are not rounded",
        "on_after_batch_transfer",
        "accessibility and motifs in float32 where the original hands out bfloat16",
        named=IN_EXAMPLES,
        hand_out=lambda example: example,
    ),
    of_data("data", "a boost of two", "BOOST", "twice the rate of masking", named=IN_DRAWS, source=BoostedLess),
    of_data(
        "data",
        "draws of the next seed",
        "seed",
        "one more than the original's",
        named=IN_DRAWS,
        source=lambda seed: TensorFlowDraws(seed + 1),
    ),
    of_data(
        "data",
        "regions kept at a draw above the rate only",
        "kept_regions",
        "greater where the original has greater or equal",
        named=(DRAWS,),
        source=drawing(stateless_uniform=lambda *a: original_uniform(*a) - np.float32(2**-23)),
    ),
    of_data(
        "data",
        "a shuffle by another seed",
        "stateless_permutation",
        "the second number of a seed plus one",
        named=IN_DRAWS,
        source=drawing(stateless_permutation=lambda n, s: original_permutation(n, (s[0], s[1] + 1))),
    ),
    of_data(
        "data",
        "a port that makes nothing",
        "make_example",
        "no examples at all",
        named=IN_BOTH,
        make=lambda *a, **k: None,
    ),
]

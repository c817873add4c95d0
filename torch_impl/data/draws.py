"""Everything that chance decides about one training example, as one record, and who decides it.

Source of the semantics: the specification of the original TensorFlow implementation (naumanjaved/EpiBERT, MIT), its
sections 4.3 to 4.5 and 4.7. Letters in shapes: A accessibility values, N output bins after the crop, R mask regions of
N, M motifs, L base pairs.
"""

import base64
import dataclasses
import json
from typing import Any, Protocol

import numpy as np

from torch_impl.data.examples import (
    ATAC_CLIP,
    NOISE_BLOCK,
    ExampleConfig,
    add_noise,
    peak_candidates,
    unmask_candidates,
    visible_bins,
)
from torch_impl.data.records import DataError, Record
from torch_impl.float32 import row_sums
from torch_impl.random import Generator, stateless_integers, stateless_permutation, stateless_uniform

ATAC_NOISE_MEAN, ATAC_NOISE_DEVIATION = 1e-4, 1e-4
MOTIF_NOISE_DEVIATION = {"min_max": 1e-4, "z_score": 1e-3}
LARGEST_SEED = 100_000_000


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Draws:
    """What was drawn for one example.

    Attributes:
        shift: Characters by which the sequence window is moved.
        reverse_complement: Whether the example is read from the other strand.
        boost: Whether three times as many regions are masked.
        peak: Cropped bin of the peak that is masked; None where there is none.
        kept_regions: (R,) bool, False where a region is masked.
        unmasked: Cropped bins that ``unmask`` marks, in the order of the draw.
        atac_noise: (A, 1) float32, drawn from N(1e-4, 1e-4); its absolute value is added.
        motif_noise: (M,) float32, as drawn; the absolute value is added where motifs are scaled to [0, 1].
        block_order: Order of the blocks of noise at masked positions; None where none is added.
        atac_replacement: (A, 1) float32 in place of the accessibility; None where that is used.
        sequence_replacement: (L,) uint8 base indices in place of the sequence; None where that is used.
    """

    shift: int
    reverse_complement: bool
    boost: bool
    peak: int | None
    kept_regions: np.ndarray
    unmasked: np.ndarray
    atac_noise: np.ndarray
    motif_noise: np.ndarray
    block_order: np.ndarray | None = None
    atac_replacement: np.ndarray | None = None
    sequence_replacement: np.ndarray | None = None

    def to_json(self) -> str:
        """As text, from which ``from_json`` makes the same draws to the last bit."""
        return json.dumps({field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)})

    @classmethod
    def from_json(cls, text: str) -> "Draws":
        """Inverse of ``to_json``.

        Raises:
            ValueError: The text is something else.
        """
        try:
            return cls(**{name: _restored(value) for name, value in json.loads(text).items()})
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not the text of draws: {error}") from None

    def check(self, config: ExampleConfig) -> None:
        """Insists that an example of a configuration can be made from these draws.

        Raises:
            ValueError: One of them has another shape or type, or lies outside its range.
        """
        floats, accessibility = np.floating, (config.output_length_ATAC, 1)
        blocks = config.output_length_ATAC // NOISE_BLOCK
        expected: dict[str, tuple[tuple[int, ...], type] | None] = {
            "kept_regions": ((config.regions,), np.bool_),
            "atac_noise": (accessibility, floats),
            "motif_noise": ((config.num_motifs,), floats),
            "block_order": ((blocks,), np.integer) if config.mask_noise else None,
            "atac_replacement": None if config.use_atac else (accessibility, floats),
            "sequence_replacement": None if config.use_seq else ((config.input_length,), np.integer),
        }
        for name, form in expected.items():
            _check_array(name, getattr(self, name), form)
        if not 0 <= self.shift < config.max_shift:
            raise ValueError(f"shift must be from 0 to {config.max_shift - 1}, not {self.shift}")
        if self.boost and not config.training:
            raise ValueError("boost is drawn in training only")
        if self.peak is not None and not 0 <= self.peak < config.cropped_length:
            raise ValueError(f"peak must be from 0 to {config.cropped_length - 1}, not {self.peak}")
        if self.block_order is not None and np.any(np.sort(self.block_order) != np.arange(blocks)):
            raise ValueError(f"block_order must hold each number from 0 to {blocks - 1} once")
        if self.sequence_replacement is not None and not np.isin(self.sequence_replacement, range(4)).all():
            raise ValueError("sequence_replacement must hold numbers from 0 to 3")
        allowed, most = unmask_candidates(visible_bins(self.peak, self.kept_regions, config), config)
        count = min(most, len(allowed))
        _check_array("unmasked", self.unmasked, ((count,), np.integer))
        if len(np.unique(self.unmasked)) != count or not np.isin(self.unmasked, allowed).all():
            raise ValueError(f"unmasked must hold {count} different bins that are not masked")


def _check_array(name: str, array: np.ndarray | None, form: tuple[tuple[int, ...], type] | None) -> None:
    if array is None or form is None:
        if (array is None) != (form is None):
            raise ValueError(f"{name} is {'missing' if array is None else 'not part of this configuration'}")
        return
    shape, kind = form
    if array.shape != shape or not np.issubdtype(array.dtype, kind):
        raise ValueError(f"{name} must be {kind.__name__} of shape {shape}, not {array.dtype} of shape {array.shape}")


def same_draws(one: Draws, other: Draws) -> bool:
    """Whether two draws are equal to the last bit."""
    return one.to_json() == other.to_json()


def _plain(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    little = value.astype(value.dtype.newbyteorder("<"))
    data = base64.b64encode(little.tobytes()).decode("ascii")
    return {"dtype": value.dtype.name, "shape": list(value.shape), "base64": data}


def _restored(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    dtype = np.dtype(value["dtype"]).newbyteorder("<")
    array = np.frombuffer(base64.b64decode(value["base64"]), dtype=dtype).reshape(value["shape"])
    return array.astype(np.dtype(value["dtype"]))


class DrawSource(Protocol):
    """Who decides.

    Attributes:
        any_order: Whether the draws for a record are the same in whatever order, and by whichever thread, records are
            asked for.
    """

    @property
    def any_order(self) -> bool: ...

    def draw(self, record: Record, config: ExampleConfig, *, epoch: int = 0, index: int = 0) -> Draws:
        """The draws for one record.

        Args:
            record: What is known about it decides how much there is to draw.
            config: How examples are made.
            epoch: Number of the pass over the data.
            index: Number of the record.
        """
        ...


class OwnDraws:
    """Draws that depend on the seed, the epoch and the number of the record alone.

    Distributions are those of the original; the numbers are NumPy's SFC64, the fastest of its generators, seeded by a
    hash of all three (``SeedSequence``).

    Args:
        seed: Tells one run from another; from 0 to 2^64 - 1.

    Raises:
        ValueError: The seed is out of range.
    """

    any_order = True

    def __init__(self, seed: int) -> None:
        if not 0 <= seed < 2**64:
            raise ValueError(f"the seed of draws must be from 0 to 2^64 - 1, not {seed}")
        self.seed = seed

    def draw(self, record: Record, config: ExampleConfig, *, epoch: int = 0, index: int = 0) -> Draws:
        """As ``DrawSource``."""
        # Two words for each, or a large number would be taken for two small ones.
        words = np.array([self.seed, epoch, index], np.uint64).view(np.uint32)
        generator = np.random.Generator(np.random.SFC64(np.random.SeedSequence(words)))
        boost = bool(generator.integers(config.atac_corrupt_rate) == 0) and config.training
        shift = int(generator.integers(config.max_shift))
        reverse = bool(generator.integers(2))
        kept = generator.random(config.regions, dtype=np.float32) >= config.mask_rate(boost=boost)
        candidates = peak_candidates(record, config)
        peak = int(generator.choice(candidates)) if len(candidates) else None
        seen, most = unmask_candidates(visible_bins(peak, kept, config), config)
        unmasked = generator.permutation(seen)[:most]
        atac_noise = generator.standard_normal((config.output_length_ATAC, 1), dtype=np.float32)
        atac_noise *= np.float32(ATAC_NOISE_DEVIATION)
        atac_noise += np.float32(ATAC_NOISE_MEAN)
        motif_noise = generator.standard_normal(config.num_motifs, dtype=np.float32)
        blocks = config.output_length_ATAC // NOISE_BLOCK
        atac = sequence = None
        if not config.use_atac:
            atac = generator.random((config.output_length_ATAC, 1), dtype=np.float32) * np.float32(ATAC_CLIP)
        if not config.use_seq:
            sequence = generator.integers(4, size=config.input_length, dtype=np.uint8)
        return Draws(
            shift=shift,
            reverse_complement=reverse,
            boost=boost,
            peak=peak,
            kept_regions=kept,
            unmasked=unmasked,
            atac_noise=atac_noise,
            motif_noise=motif_noise * np.float32(MOTIF_NOISE_DEVIATION[config.motif_scaling]),
            block_order=generator.permutation(blocks) if config.mask_noise else None,
            atac_replacement=atac,
            sequence_replacement=sequence,
        )


class InferenceDraws:
    """Draws for predicting: masked regions as in validation, and nothing else left to chance.

    Args:
        seed: Of the masked regions.
        shift: Characters by which every sequence window is moved: the margin that the writer of the records left.
    """

    any_order = True

    def __init__(self, seed: int, shift: int) -> None:
        self._own = OwnDraws(seed)
        self.shift = shift

    def draw(self, record: Record, config: ExampleConfig, *, epoch: int = 0, index: int = 0) -> Draws:
        """As ``DrawSource``."""
        most = len(record.sequence) - config.input_length
        if not 0 <= self.shift <= most:
            raise DataError(f"windows cannot be moved by {self.shift}: the sequence leaves room for {most} at most")
        drawn = self._own.draw(record, config, epoch=epoch, index=index)
        silence = {name: np.zeros_like(getattr(drawn, name)) for name in ("atac_noise", "motif_noise")}
        return dataclasses.replace(drawn, shift=self.shift, reverse_complement=False, **silence)


class TensorFlowDraws:
    """The draws of the original, from its seed: TensorFlow's generator, drawn from in the original's order.

    The original keeps one generator for all records, so the order in which records are asked for decides. All draws are
    the original's to the last bit.

    Args:
        seed: Of the original's generator, a signed 64-bit integer.
    """

    any_order = False

    def __init__(self, seed: int) -> None:
        self.generator = Generator(seed)

    def draw(self, record: Record, config: ExampleConfig, *, epoch: int = 0, index: int = 0) -> Draws:
        """As ``DrawSource``; epoch and index are of no matter."""
        if config.training:
            boost = self.generator.integers(0, config.atac_corrupt_rate) == 0
            seed = self.generator.integers(0, LARGEST_SEED)
            shift_seed, reverse = (seed + 1, seed + 1), bool(stateless_integers((), (seed + 2, seed + 6), 0, 2))
            atac_noise = self._atac_noise(config)
        else:
            boost = False
            atac_noise = self._atac_noise(config)
            # Rounded to the even neighbour: one half becomes 0.
            reverse = bool(self.generator.uniform() > np.float32(0.5))
            seed = validation_seed(record, atac_noise)
            shift_seed = (seed + 1, seed + 7)
        motif_noise = self.generator.normal((config.num_motifs,), 0.0, MOTIF_NOISE_DEVIATION[config.motif_scaling])
        peak, kept, unmasked = tensorflow_mask(seed, peak_candidates(record, config), config, boost=boost)
        blocks = config.output_length_ATAC // NOISE_BLOCK
        atac = sequence = None
        if not config.use_atac:
            atac = stateless_uniform((config.output_length_ATAC, 1), (seed + 1, seed + 3), 0.0, ATAC_CLIP)
        if not config.use_seq:
            sequence = stateless_integers((config.input_length,), (seed + 21, seed + 2), 0, 4).astype(np.uint8)
        return Draws(
            shift=int(stateless_integers((), shift_seed, 0, config.max_shift)),
            reverse_complement=reverse,
            boost=boost,
            peak=peak,
            kept_regions=kept,
            unmasked=unmasked,
            atac_noise=atac_noise,
            motif_noise=motif_noise,
            block_order=stateless_permutation(blocks, (seed + 34, seed + 4)) if config.mask_noise else None,
            atac_replacement=atac,
            sequence_replacement=sequence,
        )

    def _atac_noise(self, config: ExampleConfig) -> np.ndarray:
        return self.generator.normal((config.output_length_ATAC, 1), ATAC_NOISE_MEAN, ATAC_NOISE_DEVIATION)


def tensorflow_mask(
    seed: int, candidates: np.ndarray, config: ExampleConfig, *, boost: bool
) -> tuple[int | None, np.ndarray, np.ndarray]:
    """What the original draws for the mask of one example (spec, section 4.5).

    Args:
        seed: Of the example.
        candidates: Cropped bins with the centre of a peak.
        config: How examples are made.
        boost: Whether three times as many regions are masked.

    Returns:
        ``peak``, ``kept_regions`` and ``unmasked``, as in ``Draws``.
    """
    peak = int(candidates[stateless_permutation(len(candidates), (seed + 4, 5))[0]]) if len(candidates) else None
    kept = stateless_uniform((config.regions,), (0, seed - 5)) >= config.mask_rate(boost=boost)
    seen, most = unmask_candidates(visible_bins(peak, kept, config), config)
    return peak, kept, seen[stateless_permutation(len(seen), (0, seed + 1))[:most]]


def validation_seed(record: Record, atac_noise: np.ndarray) -> int:
    """What the original seeds a validation example with: its peaks and the whole part of its noisy accessibility.

    The sum is TensorFlow's float32 one, since another order of additions may end up beyond the next whole number.
    """
    total = row_sums(add_noise(record.atac, atac_noise).reshape(1, -1))[0]
    return int(record.peaks_center.sum()) + int(total)

"""A small task with something to learn: planted motifs decide where the genome is accessible.

Each example is a random sequence into which short motifs are planted, a cell type in which each motif is more or less
active, and counts of cut sites in bins. The expected count of a bin is a background plus, for every activating motif in
it or beside it, the motif's strength times its activity; a repressing motif nearby takes most of it away. As in the
original's pipeline (spec, sections 4.3 and 4.5), regions of the accessibility are set to zero in the input and asked
for in the output: what lies there can only be told from the sequence, the activities and the neighbourhood. A model
that ignores one of the three inputs, or does not train, stays far below what can be reached.

For fine-tuning there are counts of transcription starts as well: from the second motif alone, with its activity and
under the same repression.

NumPy alone, so both frameworks get the same numbers.
"""

import dataclasses

import numpy as np

MOTIFS = ("GCGCGCG", "GGGGCCC", "TATATAT")
STRENGTHS = (14.0, 10.0)
"""Of the first motifs; the last one represses."""

REPRESSION = 0.15
BACKGROUND = 0.5
PLANTED_PER_BIN = 0.12
"""Of every motif, on average."""

NEIGHBOURHOOD = (0.25, 1.0, 0.25)
"""Share of a motif's effect on the bin before its own, on its own, and on the bin after."""

STARTING = 1
"""Motif at which transcription starts."""

STARTS_STRENGTH = 12.0
STARTS_BACKGROUND = 0.3

MASKED_SHARE = 0.25
MASKED_BINS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
    """Inputs and targets of one set, float32, examples first.

    Attributes:
        sequence: (E, L, 4) one-hot A, C, G, T.
        atac: (E, A, 1) counts spread over the positions, zero where masked.
        mask: (E, N, 1) 1 where a bin is masked.
        unmask: (E, N, 1) 1 where it is not.
        target: (E, N, 1) counts.
        motif_activity: (E, 1, M) in [0, 1].
        expected: (E, N, 1) the means that the counts were drawn from: what a perfect model would predict.
        counts: (E, O) counts of all bins, those of the margins too.
        starts: (E, O) counts of transcription starts, likewise.
        sites: (E, O) 1 where the motif is that they start at.
    """

    sequence: np.ndarray
    atac: np.ndarray
    mask: np.ndarray
    unmask: np.ndarray
    target: np.ndarray
    motif_activity: np.ndarray
    expected: np.ndarray
    counts: np.ndarray
    starts: np.ndarray
    sites: np.ndarray

    @property
    def rna(self) -> np.ndarray:
        """(E, N, 1) target of fine-tuning: starts in the bins that are predicted."""
        crop = (self.starts.shape[1] - self.target.shape[1]) // 2
        return self.starts[:, crop : self.starts.shape[1] - crop, None].astype(np.float32)

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """What a model gets, in the order of the original's pipeline."""
        return self.sequence, self.atac, self.mask, self.unmask, self.target, self.motif_activity

    def take(self, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        """One batch."""
        return tuple(array[indices] for array in self.arrays)

    def __len__(self) -> int:
        return len(self.sequence)


def draw(seed: int, examples: int, *, bins: int, crop: int, bin_length: int, values_per_bin: int) -> Examples:
    """Draws a set of examples.

    Args:
        seed: Of everything.
        examples: E.
        bins: Bins of the model before its crop.
        crop: Bins that it trims from each side.
        bin_length: Base pairs in a bin.
        values_per_bin: Accessibility values in a bin.
    """
    generator = np.random.default_rng(seed)
    length = bins * bin_length
    letters = generator.integers(0, 4, (examples, length))
    activity = generator.uniform(0, 1, (examples, len(MOTIFS)))
    effects = np.zeros((examples, len(MOTIFS), bins))
    for index, motif in enumerate(MOTIFS):
        pattern = np.array(["ACGT".index(letter) for letter in motif])
        for example, bin_ in np.argwhere(generator.random((examples, bins)) < PLANTED_PER_BIN):
            start = bin_ * bin_length + generator.integers(0, bin_length - len(motif) + 1)
            letters[example, start : start + len(motif)] = pattern
            # A later motif overwrites an earlier one in the same bin: the last one planted counts.
            effects[example, :, bin_] = 0
            effects[example, index, bin_] = 1
    spread = np.stack(
        [
            np.apply_along_axis(np.convolve, -1, effects[:, index], NEIGHBOURHOOD, "same")
            for index in range(len(MOTIFS))
        ],
        axis=1,
    )
    strengths = np.array(STRENGTHS)[None, :, None]
    activated = np.sum(strengths * activity[:, :-1, None] * spread[:, :-1], axis=1)
    repressed = np.minimum(1.0, spread[:, -1]) * activity[:, -1:]
    expected = BACKGROUND + activated * (1 - (1 - REPRESSION) * repressed)
    counts = generator.poisson(expected).astype(np.float64)
    started = activity[:, STARTING, None] * spread[:, STARTING] * (1 - (1 - REPRESSION) * repressed)
    # Drawn apart, so that there being starts changes nothing else.
    starts = np.random.default_rng((seed, 1)).poisson(STARTS_BACKGROUND + STARTS_STRENGTH * started)

    regions = generator.random((examples, bins // MASKED_BINS)) < MASKED_SHARE
    masked = np.repeat(regions, MASKED_BINS, axis=1)
    # An example with nothing to predict is none.
    masked[~masked[:, crop : bins - crop].any(axis=1), bins // 2] = True
    atac = np.repeat(counts * ~masked / values_per_bin, values_per_bin, axis=1)

    kept = slice(crop, bins - crop)
    return Examples(
        sequence=np.eye(4, dtype=np.float32)[letters],
        atac=atac[..., None].astype(np.float32),
        mask=masked[:, kept, None].astype(np.float32),
        unmask=(~masked)[:, kept, None].astype(np.float32),
        target=counts[:, kept, None].astype(np.float32),
        motif_activity=activity[:, None, :].astype(np.float32),
        expected=expected[:, kept, None].astype(np.float32),
        counts=counts.astype(np.float32),
        starts=starts.astype(np.float32),
        sites=effects[:, STARTING].astype(np.int32),
    )

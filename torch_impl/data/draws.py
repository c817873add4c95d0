"""Everything that chance decides about one training example, as one record, and who decides it.

Source of the semantics: the specification of the original TensorFlow implementation (naumanjaved/EpiBERT, MIT), its
sections 4.3 to 4.5 and 4.7. Letters in shapes: A accessibility values, N output bins after the crop, R mask regions of
N, M motifs, L base pairs.
"""

import dataclasses

import numpy as np


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
        sequence_replacement: (L,) base indices in place of the sequence; None where that is used.
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

"""From a record and its draws to a training example: pure functions, nothing is drawn here.

Source of the semantics: the specification of the original TensorFlow implementation (naumanjaved/EpiBERT, MIT), its
sections 4.2 to 4.5. Letters in shapes: L base pairs, A accessibility values, O output bins, N output bins after the
crop, M motifs.
"""

import dataclasses
from typing import Literal, NamedTuple

import numpy as np

MotifScaling = Literal["min_max", "z_score"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleConfig:
    """How examples are made. Names and defaults are those of the original (spec, sections 3.6 and 4).

    Attributes:
        input_length: L, base pairs in the window.
        output_length_ATAC: A, accessibility values in the window.
        output_length: O, output bins in the window.
        crop_size: Output bins cut from each end.
        output_res: Base pairs of an output bin.
        max_shift: The sequence is moved by less than this.
        mask_size: Base pairs of a masked region.
        atac_mask_dropout: Share of regions that are masked.
        atac_corrupt_rate: One example in so many has three times as many regions masked.
        mask_noise: Put shuffled accessibility at masked positions (pre-training only).
        log_atac: Take log(1 + x) of the accessibility before it is clipped.
        use_atac: False replaces the accessibility by uniform noise.
        use_seq: False replaces the sequence by random bases.
        use_motif_activity: False replaces the motif activity by zeros.
        num_motifs: M.
        training: Draw as the original does in training; else as in its validation.
        finetuning: Records of the fine-tuning model, with RNA.
        motif_scaling: ``min_max`` or ``z_score``; the original scales pre-training's validation by ``z_score`` and
            everything else, inference too, by ``min_max``, which is the right one.
    """

    input_length: int = 524_288
    output_length_ATAC: int = 131_072
    output_length: int = 4096
    crop_size: int = 2
    output_res: int = 128
    max_shift: int = 4
    mask_size: int = 1536
    atac_mask_dropout: float = 0.15
    atac_corrupt_rate: int = 20
    mask_noise: bool = False
    log_atac: bool = False
    use_atac: bool = True
    use_seq: bool = True
    use_motif_activity: bool = True
    num_motifs: int = 693
    training: bool = True
    finetuning: bool = False
    motif_scaling: MotifScaling = "min_max"


class Example(NamedTuple):
    """One example, float32 unless said otherwise; the model rounds to bfloat16 where the original's pipeline did.

    Attributes:
        sequence: (L,) uint8 base indices, A 0, C 1, G 2, T 3, anything else 4; ``one_hot`` widens it.
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

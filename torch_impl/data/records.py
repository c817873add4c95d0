"""A training record: one cell type at one interval of the genome, as the original's writers left it.

Source of the semantics: the specification of the original TensorFlow implementation (naumanjaved/EpiBERT, MIT), its
section 4.1. Letters in shapes: A accessibility values (4-bp bins), O output bins (128 bp), M motifs.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np


class DataError(ValueError):
    """Data that cannot be used. The message names the file and the record, and says what is wrong in one line."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """One record. Field names are those of the features in a TFRecord; dtypes are what the file says, never converted.

    Attributes:
        sequence: ASCII letters, longer than the model's window by the largest shift.
        atac: (A, 1) accessibility, float16 or float32.
        peaks_center: (O,) int32, 1 where the centre of a peak lies.
        motif_activity: (M,) float16 or float32.
        rna: (O, 1) float32 RAMPAGE signal; fine-tuning only.
        tss_tokens: (O,) int32, 1 around a transcription start site; fine-tuning only.
        processed_gene_token: () int32 code of the gene; fine-tuning only.
        cell_encoding: () int32 code of the cell type; fine-tuning only.
        others: Features of other names, which nothing here reads, as their bytes: some writers add ``peaks``,
            ``interval`` and ``cell_type``.
    """

    sequence: bytes
    atac: np.ndarray
    peaks_center: np.ndarray
    motif_activity: np.ndarray
    rna: np.ndarray | None = None
    tss_tokens: np.ndarray | None = None
    processed_gene_token: np.ndarray | None = None
    cell_encoding: np.ndarray | None = None
    others: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


FEATURES = tuple(field.name for field in dataclasses.fields(Record) if field.name != "others")
"""Names of the features that are read, in order."""

ARRAYS = FEATURES[1:]
"""Those of them that hold arrays."""

REQUIRED = ("sequence", "atac", "peaks_center", "motif_activity")
"""Features that every record has."""

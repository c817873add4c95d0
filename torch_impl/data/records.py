"""A training record: one cell type at one interval of the genome, as the original's writers left it.

Source of the semantics: the specification of the original TensorFlow implementation (naumanjaved/EpiBERT, MIT), its
section 4.1. Letters in shapes: A accessibility values (4-bp bins), O output bins (128 bp), M motifs.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np


class DataError(ValueError):
    """Data that cannot be used. The message names the file and the record, and says what is wrong in one line."""


class DifferenceError(DataError):
    """Converted records that are not those of their source."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """One record. Field names are those of the features in a TFRecord; dtypes are what the file says, never converted.

    Attributes:
        sequence: ASCII letters, longer than the model's window by the largest shift; or, in what is read from converted
            files for training, (letters,) uint8 base indices.
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

    sequence: bytes | np.ndarray
    atac: np.ndarray
    peaks_center: np.ndarray
    motif_activity: np.ndarray
    rna: np.ndarray | None = None
    tss_tokens: np.ndarray | None = None
    processed_gene_token: np.ndarray | None = None
    cell_encoding: np.ndarray | None = None
    others: Mapping[str, bytes] = dataclasses.field(default_factory=dict)

    @property
    def letters(self) -> bytes:
        """The sequence as letters.

        Raises:
            ValueError: It was read as base indices.
        """
        if not isinstance(self.sequence, bytes):
            raise ValueError("the record was read for training, without the letters of its sequence")
        return self.sequence


FEATURES = tuple(field.name for field in dataclasses.fields(Record) if field.name != "others")
"""Names of the features that are read, in order."""

ARRAYS = FEATURES[1:]
"""Those of them that hold arrays."""

BASES_PER_VALUE = 4
"""Base pairs of an accessibility value."""

REQUIRED = ("sequence", "atac", "peaks_center", "motif_activity")
"""Features that every record has."""


def check_record(record: Record) -> None:
    """Insists that a record can be trained on.

    Letters other than A, C, G and T are no fault: they stand for unknown bases.

    Raises:
        DataError: It has a number that is not finite, motif activity without any variation, lengths that do not
            belong together, or a sequence that is not made of letters.
    """
    for name in ARRAYS:
        array = getattr(record, name)
        if array is not None and array.dtype.kind == "f" and not _finite(array):
            wrong = int(np.count_nonzero(~np.isfinite(array)))
            raise DataError(f"{name} has {wrong} values that are not finite")
    if record.motif_activity.size and np.ptp(record.motif_activity) == 0:
        raise DataError(f"motif_activity is {record.motif_activity.flat[0]:g} throughout and cannot be scaled")
    letters = np.frombuffer(record.letters, np.uint8) | 0x20
    letters -= ord("a")  # wraps around below a
    if not letters.size or letters.max() >= 26:
        raise DataError("the sequence is not made of letters")
    bins = record.peaks_center.size
    if not bins or record.atac.size % bins:
        raise DataError(f"atac has {record.atac.size} values, which are no multiple of the {bins} of peaks_center")
    for name in ("rna", "tss_tokens"):
        array = getattr(record, name)
        if array is not None and array.size != bins:
            raise DataError(f"{name} has {array.size} values, peaks_center {bins}")
    if len(record.sequence) < BASES_PER_VALUE * record.atac.size:
        raise DataError(
            f"a sequence of {len(record.sequence)} letters is shorter than the {record.atac.size} values of atac, "
            f"{BASES_PER_VALUE} bp each"
        )


def _finite(array: np.ndarray) -> bool:
    """Whether all numbers are finite; of the shorter ones from their bits, in a sixth of NumPy's own time."""
    if array.dtype != np.float16:
        return bool(np.isfinite(array).all())
    exponents = array.view(np.uint16) & np.uint16(0x7C00)
    return not exponents.size or bool(exponents.max() < 0x7C00)

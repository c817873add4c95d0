"""The task of ``planted_motifs`` as training records, for a run through the whole of the port's data pipeline.

    python -m parity.pairs.planted_records --out DIR
    epibert train fit --config configs/planted.yaml --data.init_args.folder DIR

Motif activities of an example are scaled to [0, 1] by the pipeline, which would lose how large they are; two more
motifs, one never and one fully active, keep the scale.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from parity.pairs import planted_motifs
from parity.pairs.planted_motifs import MOTIFS
from torch_impl.data.convert import convert_tfrecord_to_hdf5
from torch_impl.data.records import DataError, Record
from torch_impl.data.tfrecord import write_records

ANCHORS = (0.0, 1.0)
NUM_MOTIFS = len(MOTIFS) + len(ANCHORS)
BINS, BIN_LENGTH, VALUES_PER_BIN = 64, 128, 32
SPARE = 8
"""Letters beyond the window, for the pipeline's shift."""

SEEDS = {"train": 1, "valid": 2, "test": 3}


def draw_records(seed: int, count: int) -> Iterator[Record]:
    """Records of 8,192 bp with planted motifs.

    Args:
        seed: Of everything.
        count: How many.
    """
    examples = planted_motifs.draw(seed, count, bins=BINS, crop=0, bin_length=BIN_LENGTH, values_per_bin=VALUES_PER_BIN)
    letters = np.frombuffer(b"ACGT", np.uint8)[examples.sequence.argmax(axis=-1)]
    for sequence, counts, activity in zip(letters, examples.target, examples.motif_activity, strict=True):
        peaks = np.zeros(BINS, np.int32)
        peaks[np.argsort(counts[:, 0])[-4:]] = 1
        yield Record(
            sequence=sequence.tobytes() + b"N" * SPARE,
            atac=np.repeat(counts / VALUES_PER_BIN, VALUES_PER_BIN, axis=0).astype(np.float16),
            peaks_center=peaks,
            motif_activity=np.array([*activity[0], *ANCHORS], np.float16),
        )


def write(out: str, train: int = 1024, valid: int = 128, test: int = 128) -> int:
    """Write a folder of converted records.

    Args:
        out: Folder for train/, valid/ and test/.
        train: Number of training records.
        valid: Number of validation records.
        test: Number of test records.

    Raises:
        DataError: The folder cannot be written.
    """
    counts = {"train": train, "valid": valid, "test": test}
    with tempfile.TemporaryDirectory() as scratch:
        for subset, count in counts.items():
            folder = Path(scratch) / subset
            folder.mkdir()
            write_records(folder / "planted.tfr", draw_records(SEEDS[subset], count))
        convert_tfrecord_to_hdf5(scratch, out)
    return 0


if __name__ == "__main__":
    import sys

    from jsonargparse import auto_cli

    try:
        sys.exit(auto_cli(write, as_positional=False))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

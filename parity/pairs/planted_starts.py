"""The planted task of fine-tuning as training records, for runs that read their data as real ones do.

    python -m parity.pairs.planted_starts FOLDER

writes FOLDER/train and FOLDER/valid as `epibert data convert` leaves them, with the features of fine-tuning, which
pretraining does not read. `configs/finetune_tiny.yaml` trains on them.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from parity.pairs.planted_motifs import Examples, draw
from torch_impl.data.convert import convert_tfrecord_to_hdf5
from torch_impl.data.records import Record
from torch_impl.data.tfrecord import write_records
from torch_impl.data_module import TRAIN, VALID

SHAPE = {"bins": 64, "crop": 2, "bin_length": 128, "values_per_bin": 32}
CELL_TYPES = 8
SCALE = (0.0, 1.0)
"""Two more activities, so that scaling by smallest and largest changes none of the others."""


def planted_starts(examples: Examples) -> Iterator[Record]:
    """A record for each example; its number says which gene and cell type it is."""
    values = SHAPE["values_per_bin"]
    for number in range(len(examples)):
        counts = examples.counts[number]
        letters = np.frombuffer(b"ACGT", dtype=np.uint8)[examples.sequence[number].argmax(axis=-1)]
        activity = [*examples.motif_activity[number, 0], *SCALE]
        gene, cell = divmod(number, CELL_TYPES)
        yield Record(
            sequence=letters.tobytes(),
            atac=np.repeat(counts / values, values)[:, None].astype(np.float32),
            # The highest bins, as peaks are called.
            peaks_center=(counts >= np.sort(counts)[-3]).astype(np.int32),
            motif_activity=np.array(activity, dtype=np.float32),
            rna=examples.starts[number][:, None].astype(np.float32),
            tss_tokens=examples.sites[number].astype(np.int32),
            processed_gene_token=np.array(gene, dtype=np.int32),
            cell_encoding=np.array(cell, dtype=np.int32),
        )


def write(folder: str, training: int = 512, validation: int = 128) -> None:
    """Write planted records for training and validation.

    Args:
        folder: gets the subfolders train and valid.
        training: number of records for training.
        validation: number of records for validation.

    Raises:
        DataError: the folder cannot be written, or holds other records.
    """
    with tempfile.TemporaryDirectory(prefix="planted-") as scratch:
        for seed, (subset, count) in enumerate(((TRAIN, training), (VALID, validation)), start=1):
            source = Path(scratch) / subset / "planted.tfr"
            source.parent.mkdir()
            write_records(source, planted_starts(draw(seed, count, **SHAPE)))
            convert_tfrecord_to_hdf5(source, Path(folder) / subset)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(write)

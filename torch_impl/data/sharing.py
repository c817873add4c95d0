"""Sequences that a converted file stores and others store as well are taken out of it.

Several processes that convert at the same time do not know of each other's sequences. Chunks are moved as they are,
compressed, so this takes a small part of the time that the conversion took.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from torch_impl.data.store import (
    CONTENTS,
    FILE_CONTENTS,
    FILES,
    HAS_OTHER_LETTERS,
    OTHER_LETTERS,
    SEQUENCE_FILE,
    SEQUENCE_ROW,
    SEQUENCES,
    Part,
    Place,
    Sink,
    sequences_hash,
)


def share_sequences(path: Path, target: Path, part: Part, known: Mapping[bytes, Place]) -> Part:
    """Writes a converted file again, without the sequences that lie elsewhere.

    Args:
        path: The file.
        target: File to write, in the same folder.
        part: What is in it.
        known: Where sequences lie already, by their sha256; not in this file.

    Returns:
        What is in the file that was written.

    Raises:
        OSError: One of the two cannot be read or written.
    """
    keys = [bytes.fromhex(key) for key in part.sequences]
    kept = [row for row, key in enumerate(keys) if key not in known]
    with Sink(target) as sink, h5py.File(path, "r") as old, h5py.File(sink, "w", libver="latest") as new:
        new.attrs.update(old.attrs)
        files = list(zip(old.attrs[FILES], old.attrs[FILE_CONTENTS], strict=True))
        # For each row of the sequences: the file in which it lies from now on, and the row there.
        moved = np.zeros((len(keys), 2), np.int64)
        moved[kept, 1] = np.arange(len(kept))
        for row, key in enumerate(keys):
            if key in known:
                shared = (os.path.relpath(known[key].path, path.parent), known[key].contents)
                if shared not in files:
                    files.append(shared)
                moved[row] = files.index(shared), known[key].row
        numbers, rows = old[SEQUENCE_FILE][:], old[SEQUENCE_ROW][:]
        own = numbers == 0
        numbers[own], rows[own] = moved[rows[own]].T
        present = old[HAS_OTHER_LETTERS][:].astype(bool)
        for name in old:
            if name == SEQUENCES:
                _copy_rows(old[name], new, kept, np.ones_like(present))
            elif name == OTHER_LETTERS:
                _copy_rows(old[name], new, kept, present)
            elif name == HAS_OTHER_LETTERS:
                _create_like(old[name], new, len(kept))[:] = old[name][:][kept]
            else:
                old.copy(name, new)
        new[SEQUENCE_FILE][:], new[SEQUENCE_ROW][:] = numbers, rows
        new.attrs[CONTENTS] = sequences_hash(keys[row] for row in kept)
        new.attrs[FILES], new.attrs[FILE_CONTENTS] = ([file[which] for file in files] for which in (0, 1))
        new.close()
        sink.check()
    return dataclasses.replace(part, sequences=tuple(part.sequences[row] for row in kept))


def _create_like(table: Any, target: Any, rows: int) -> Any:
    """A table of another number of rows, which is stored as one is stored."""
    made = target.create_dataset(
        table.name,
        shape=(rows, *table.shape[1:]),
        maxshape=table.maxshape,
        chunks=table.chunks,
        dtype=table.dtype,
        compression=table.compression,
        compression_opts=table.compression_opts,
        fletcher32=table.fletcher32,
    )
    made.attrs.update(table.attrs)
    return made


def _copy_rows(table: Any, target: Any, kept: Sequence[int], present: np.ndarray) -> None:
    """Some of the rows of a table, each of which is one chunk, if it was written at all."""
    made, rest = _create_like(table, target, len(kept)), (0,) * (table.ndim - 1)
    for number, row in enumerate(kept):
        if present[row]:
            mask, data = table.id.read_direct_chunk((row, *rest))
            made.id.write_direct_chunk((number, *rest), data, filter_mask=mask)

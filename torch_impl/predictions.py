"""Predicted profiles on disk: HDF5 with their intervals, and bigWig to look at in a genome browser.

The file has one row for each record, in the order of the records::

    record              number of the record in its folder
    atac, rna           (n, N) predicted values in output bins, float32; rna for the fine-tuning model
    target, mask        (n, N) measured accessibility, and 1 where the model did not see it
    chromosome, start, end   of the N bins together, 0-based and half-open, where intervals are given

Letters in shapes: B batch, N bins after the crop.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from torch_impl.checkpointing import TrainingError
from torch_impl.data.examples import ExampleConfig
from torch_impl.data.store import Store
from torch_impl.data.tfrecord import interval_number

HEADS = ("atac", "rna")
Interval = tuple[str, int, int]
"""Chromosome, start and end."""


class PredictionWriter(BasePredictionWriter):
    """Writes what a module predicts for the records of a data module. The file appears when it is complete.

    Args:
        output: The HDF5 file; one that is there is replaced.
        intervals: Intervals of the records, sorted as the writers of the records had them: a BED file whose line of
            the number that a record calls its interval gives chromosome, start and end of its window.
        bigwig: Also write ``<output>.<head>.bw`` for each head. Needs intervals and the extra ``tracks``. Where windows
            overlap, the first one counts. Predictions for several cell types belong into files of their own.
        chromosome_sizes: Two columns, chromosome and length; for bigWig. By default a chromosome ends with its last
            interval.

    Raises:
        TrainingError: The options do not go together, or a file cannot be read.
    """

    def __init__(
        self,
        output: str,
        intervals: str | None = None,
        bigwig: bool = False,
        chromosome_sizes: str | None = None,
    ) -> None:
        super().__init__(write_interval="batch")
        if Path(output).is_dir():
            raise TrainingError(f"{output} is a folder; predictions are written to a file")
        if bigwig and intervals is None:
            raise TrainingError("bigWig needs --intervals: records do not say where in the genome they lie")
        if bigwig:
            _pybigwig()
        self.output = Path(output)
        self.intervals = None if intervals is None else read_intervals(intervals)
        self.bigwig = bigwig
        self.sizes = None if chromosome_sizes is None else read_sizes(chromosome_sizes)
        if self.sizes is not None:
            for chromosome, _, end in self.intervals or ():
                if end > self.sizes.get(chromosome, 0):
                    raise TrainingError(f"{chromosome_sizes}: {chromosome} ends before {end}, where an interval ends")
        self._part: Any = None
        self._places: list[Interval] | None = None

    def on_predict_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Opens the file of this process, once it is known where every record lies.

        Raises:
            TrainingError: The records are none of a data module of ours, or not of these intervals.
        """
        store = getattr(getattr(trainer.predict_dataloaders, "dataset", None), "store", None)
        if store is None:
            raise TrainingError("the predictions that are written are those for records of an EpiBERTDataModule")
        self._places = self._places_of(store, trainer.datamodule.config)  # type: ignore[attr-defined]
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self._part = h5py.File(self._part_path(trainer.global_rank), "w")

    def write_on_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        prediction: Any,
        batch_indices: Sequence[Any] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Adds a batch; its indices are what the sampler gave out, epoch and number of each record."""
        if batch_indices is None:
            raise TrainingError("the loader does not say which records a batch is of; a batch sampler hides it")
        heads = _heads(prediction)
        _, _, mask, _, target, *_ = batch
        rows = {"record": np.array([number for _, number in batch_indices], np.int64)}
        rows |= {name: _rows(values, np.float32) for name, values in heads.items()}
        rows |= {"target": _rows(target, np.float32), "mask": _rows(mask, np.uint8)}
        for name, values in rows.items():
            _append(self._part, name, values)

    def on_predict_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Puts the files of all processes together."""
        self._part.close()
        trainer.strategy.barrier("predictions are written")
        if not trainer.is_global_zero:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        loader: Any = trainer.predict_dataloaders
        parts = [self._part_path(rank) for rank in range(trainer.world_size)]
        scratch = self.output.with_name(f".{self.output.name}.whole")
        with _removed(*parts, scratch):
            rows = _joined(parts)
            places = self._located(rows["record"])
            with h5py.File(scratch, "w") as file:
                for name, values in (rows | places).items():
                    file[name] = values
                file.attrs["bin_length"] = data.config.output_res
                file.attrs["records"] = str(loader.dataset.store.folder)
            scratch.replace(self.output)
        if self.bigwig:
            self._write_tracks(rows, places, data.config.output_res)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Leaves nothing behind."""
        if self._part is not None:
            self._part.close()
            self._part_path(trainer.global_rank).unlink(missing_ok=True)

    def _part_path(self, rank: int) -> Path:
        return self.output.with_name(f".{self.output.name}.{rank}")

    def _places_of(self, store: Store, config: ExampleConfig) -> list[Interval] | None:
        """Where the bins of each record lie."""
        if self.intervals is None:
            return None
        crop = config.crop_size * config.output_res
        places = []
        for record in range(len(store)):
            number = interval_number(store.others(record))
            if not 0 <= number < len(self.intervals):
                raise TrainingError(
                    f"record {record} is of interval {number}, of which there are {len(self.intervals)}"
                )
            chromosome, start, end = self.intervals[number]
            if end - start != config.input_length:
                raise TrainingError(f"interval {number} is {end - start} bp long, the window {config.input_length}")
            places.append((chromosome, start + crop, end - crop))
        return places

    def _located(self, records: np.ndarray) -> dict[str, np.ndarray]:
        """The places of the predicted records, as columns of the file."""
        if self._places is None:
            return {}
        chromosomes, starts, ends = zip(*(self._places[record] for record in records), strict=True)
        return {
            "chromosome": np.array(chromosomes, dtype=h5py.string_dtype()),
            "start": np.array(starts, np.int64),
            "end": np.array(ends, np.int64),
        }

    def _write_tracks(self, rows: Mapping[str, np.ndarray], places: Mapping[str, np.ndarray], bin_length: int) -> None:
        sizes = dict(self.sizes or {})
        if self.sizes is None:
            for chromosome, end in zip(places["chromosome"], places["end"], strict=True):
                sizes[chromosome] = max(int(end), sizes.get(chromosome, 0))
        order = sorted(range(len(rows["record"])), key=lambda row: (places["chromosome"][row], places["start"][row]))
        for head in (name for name in HEADS if name in rows):
            path = self.output.with_name(f"{self.output.name}.{head}.bw")
            scratch = path.with_name(f".{path.name}")
            with _removed(scratch):
                track = _pybigwig().open(str(scratch), "w")
                track.addHeader(sorted(sizes.items()))
                covered: dict[str, int] = {}
                for row in order:
                    chromosome = places["chromosome"][row]
                    edges = places["start"][row] + bin_length * np.arange(rows[head].shape[1] + 1)
                    new = edges[:-1] >= covered.get(chromosome, 0)
                    if new.any():
                        starts, ends = edges[:-1][new], edges[1:][new]
                        names = [chromosome] * len(starts)
                        values = rows[head][row][new].astype(np.float64).tolist()
                        track.addEntries(names, starts.tolist(), ends=ends.tolist(), values=values)
                        covered[chromosome] = int(ends[-1])
                track.close()
                scratch.replace(path)


def read_intervals(path: str) -> list[Interval]:
    """Chromosome, start and end of every line of a BED file.

    Raises:
        TrainingError: It cannot be read.
    """
    return [(chromosome, int(start), int(end)) for chromosome, start, end, *_ in _columns(path, 3)]


def read_sizes(path: str) -> dict[str, int]:
    """Chromosome -> length.

    Raises:
        TrainingError: The file cannot be read.
    """
    return {chromosome: int(length) for chromosome, length, *_ in _columns(path, 2)}


def _columns(path: str, numbers: int) -> Iterator[list[str]]:
    """The columns of every line, of which the first is a name and the following are numbers."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise TrainingError(f"cannot read {path}: {error.strerror}") from None
    for place, line in enumerate(lines, 1):
        columns = line.split("\t")
        if len(columns) < numbers or not all(value.isdigit() for value in columns[1:numbers]):
            raise TrainingError(f"{path}, line {place}: {line!r} does not begin with a name and {numbers - 1} numbers")
        yield columns


def _pybigwig() -> Any:
    try:
        import pyBigWig
    except ImportError:
        raise TrainingError("bigWig needs pyBigWig: install the extra 'tracks'") from None
    return pyBigWig


def _heads(prediction: Any) -> dict[str, Tensor]:
    """What a module predicts, by head: accessibility alone, or accessibility (or None) and RNA."""
    values = prediction if isinstance(prediction, tuple | list) else (prediction,)
    return {name: value for name, value in zip(HEADS[: len(values)], values, strict=True) if value is not None}


def _rows(values: Tensor, dtype: type[np.generic]) -> np.ndarray:
    return values.detach().to("cpu", torch.float64).squeeze(-1).numpy().astype(dtype)


def _append(file: Any, name: str, values: np.ndarray) -> None:
    if name not in file:
        file.create_dataset(name, data=values, maxshape=(None, *values.shape[1:]), chunks=True)
        return
    table = file[name]
    table.resize(len(table) + len(values), axis=0)
    table[-len(values) :] = values


def _joined(parts: Sequence[Path]) -> dict[str, np.ndarray]:
    """Rows of all parts, in the order of the records, each once.

    Processes that share one sharded model predict some records twice where their number does not divide.
    """
    tables: dict[str, list[np.ndarray]] = {}
    for part in parts:
        with h5py.File(part) as file:
            for name, table in file.items():
                tables.setdefault(name, []).append(table[()])
    if not tables:
        raise TrainingError("there are no records to predict")
    whole = {name: np.concatenate(values) for name, values in tables.items()}
    _, first = np.unique(whole["record"], return_index=True)
    return {name: values[first] for name, values in whole.items()}


@contextlib.contextmanager
def _removed(*paths: Path) -> Iterator[None]:
    """Removes what is left of these files in the end."""
    try:
        yield
    finally:
        for path in paths:
            path.unlink(missing_ok=True)

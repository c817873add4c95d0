"""What ``epibert data`` does: convert, verify, export, inspect."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from torch_impl.data.convert import (
    SUFFIX,
    Conversion,
    convert_tfrecord_to_hdf5,
    export_hdf5_to_tfrecord,
    verify_hdf5,
)
from torch_impl.data.convert import Progress as State
from torch_impl.data.draws import Draws, OwnDraws
from torch_impl.data.examples import Example, ExampleConfig, make_example
from torch_impl.data.records import ARRAYS, DataError, DifferenceError, Record
from torch_impl.data.store import Store
from torch_impl.data.tfrecord import Compression, read_records

DONE, DIFFERENT = 0, 1
SHOWN = 10


def convert(
    src: str,
    dst: str,
    workers: int = 1,
    on_error: Literal["raise", "skip"] = "raise",
    scheduler: str | None = None,
    compression: Compression | None = None,
) -> int:
    """Convert TFRecords to HDF5; what was converted before is not done again.

    Exit status 0: all is converted; 1: some records were skipped, as asked for; 2: bad input.

    Args:
        src: A .tfr file, a folder of such files, whose subfolders are kept, or a pattern with wildcards, in quotes.
        dst: Folder to write; `epibert data verify` proves it equal to the source.
        workers: Processes that convert, each a file at a time.
        on_error: End with the first record that cannot be used, or skip it and report it.
        scheduler: Address of a Dask scheduler whose workers convert instead, such as tcp://host:8786.
        compression: Of the sources; found out if not given.
    """
    if workers < 1:
        raise DataError(f"workers must be at least 1, not {workers}")
    console = _console()
    with _bar(console, "converting") as show:
        found = convert_tfrecord_to_hdf5(
            src,
            dst,
            workers=workers,
            on_error=on_error,
            compression=compression,
            scheduler=scheduler,
            progress=show,
        )
    _report(console, "converted", found)
    return DIFFERENT if found.skipped else DONE


def verify(src: str, dst: str) -> int:
    """Read the TFRecords again and compare every record with its converted form.

    Exit status 0: equal; 1: not, with the first file and record that differ; 2: one of them cannot be read.

    Args:
        src: What was converted.
        dst: What it was converted to.
    """
    console = _console()
    try:
        with _bar(console, "comparing") as show:
            found = verify_hdf5(src, dst, progress=show)
    except DifferenceError as error:
        console.print(f"not equal: {error}", markup=False)
        return DIFFERENT
    _report(console, "equal to their source", found)
    return DONE


def export(src: str, dst: str) -> int:
    """Write converted records as TFRecords again, for the TensorFlow side.

    Args:
        src: Folder of converted records.
        dst: Folder to write.
    """
    _report(_console(), "exported", export_hdf5_to_tfrecord(src, dst))
    return DONE


def inspect(
    path: str,
    record: int = 0,
    out: str | None = None,
    config: ExampleConfig | None = None,
    seed: int = 0,
    epoch: int = 0,
) -> int:
    """Show a record and the example that is made of it.

    Args:
        path: A .tfr file, or a folder of converted records.
        record: Number of the record, from 0.
        out: HTML file for a picture of accessibility, peaks, mask and target.
        config: How examples are made; by default the published one with the lengths of the record.
        seed: Of the draws.
        epoch: Of the draws.
    """
    found = _record(path, record)
    config = fitting_config(found) if config is None else config
    draws = OwnDraws(seed).draw(found, config, epoch=epoch, index=record)
    example = make_example(found, draws, config)
    console = _console()
    console.print(_described(found))
    console.print(
        f"example of seed {seed}, epoch {epoch}: sequence shifted by {draws.shift}, "
        f"{'reverse' if draws.reverse_complement else 'forward'} strand, {int(example.mask.sum())} of "
        f"{example.mask.size} bins masked, peak {'none' if draws.peak is None else draws.peak}"
    )
    if out is not None:
        draw(found, draws, example, config, Path(out))
        console.print(f"written to {out}")
    return DONE


def fitting_config(record: Record) -> ExampleConfig:
    """The published configuration with the lengths of a record.

    Raises:
        DataError: No whole number of masked regions fits it.
    """
    bins, values = record.peaks_center.size, record.atac.size
    try:
        return ExampleConfig(
            input_length=bins * 128,
            output_length_ATAC=values,
            output_length=bins,
            num_motifs=record.motif_activity.size,
            max_shift=max(1, min(4, len(record.sequence) - bins * 128 + 1)),
            mask_size=1536 if (bins - 4) % 12 == 0 else 128,
        )
    except ValueError as error:
        raise DataError(f"the record fits no published configuration, name one by --config: {error}") from None


def draw(record: Record, draws: Draws, example: Example, config: ExampleConfig, path: Path) -> None:
    """Writes a picture of a record and its example as an HTML file.

    Raises:
        DataError: The file cannot be written, or plotly is not installed.
    """
    try:
        import plotly.graph_objects as graph
        from plotly.subplots import make_subplots
    except ImportError:
        raise DataError("a picture needs plotly: install the extra 'report'") from None
    titles = (
        "accessibility as stored, 4-bp bins",
        "as the model sees it",
        "mask and unmask",
        "target",
        "unknown bases",
    )
    figure = make_subplots(rows=len(titles), cols=1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.04)
    values = np.arange(config.output_length_ATAC) * (config.input_length // config.output_length_ATAC)
    bins = (np.arange(config.cropped_length) + config.crop_size) * config.output_res
    stored = np.ravel(record.atac).astype(np.float32)
    stored = stored[::-1] if draws.reverse_complement else stored
    unknown = (example.sequence >= 4).reshape(config.output_length, -1).mean(axis=1)
    rows: tuple[tuple[Any, Any, str], ...] = (
        (values, stored, "accessibility"),
        (values, example.atac[:, 0], "input"),
        (bins, example.mask[:, 0], "masked"),
        (bins, -example.unmask[:, 0], "unmask, downwards"),
        (bins, example.target[:, 0], "target"),
        (np.arange(config.output_length) * config.output_res, unknown, "share of unknown bases"),
    )
    for number, (x, y, name) in zip((1, 2, 3, 3, 4, 5), rows, strict=True):
        figure.add_trace(graph.Scatter(x=x, y=y, name=name, line_shape="hv"), row=number, col=1)
    peaks = np.flatnonzero(record.peaks_center)
    peaks = config.output_length - 1 - peaks if draws.reverse_complement else peaks
    figure.add_trace(
        graph.Scatter(
            x=(peaks + 0.5) * config.output_res,
            y=np.zeros(len(peaks)),
            mode="markers",
            marker_symbol="triangle-up",
            name="peak centres",
        ),
        row=1,
        col=1,
    )
    figure.update_xaxes(title_text="position in the window (bp)", row=len(titles), col=1)
    figure.update_layout(height=190 * len(titles), template="plotly_white")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(figure.to_html(include_plotlyjs=True), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None


def _record(path: str, number: int) -> Record:
    if number < 0:
        raise DataError(f"{path}: there is no record {number}")
    if not path.endswith(SUFFIX):
        store = Store(path)
        if number >= len(store):
            raise DataError(f"{path}: there is no record {number}, the last is {len(store) - 1}")
        return store[number]
    count = 0
    for found in read_records(path):
        if count == number:
            return found
        count += 1
    raise DataError(f"{path}: there is no record {number}, the last is {count - 1}")


def _described(record: Record) -> Table:
    table = Table("Feature", "Type", "Shape", "Content", box=None, pad_edge=False)
    letters = record.letters.decode("latin-1")
    known = sum(letters.upper().count(base) for base in "ACGT")
    shown = f"{letters[:32]}..., {len(letters) - known:,} of {len(letters):,} letters are none of A, C, G, T"
    table.add_row("sequence", "letters", str(len(letters)), Text(shown))
    for name in ARRAYS:
        array = getattr(record, name)
        if array is not None:
            wide = array.astype(np.float64)
            content = f"{wide.min():g} to {wide.max():g}, sum {wide.sum():g}" if array.ndim else f"{array}"
            table.add_row(name, array.dtype.name, " x ".join(map(str, array.shape)) or "scalar", content)
    for name, data in record.others.items():
        table.add_row(Text(name), "not read", f"{len(data)} bytes", Text(repr(data[:24])))
    return table


@contextlib.contextmanager
def _bar(console: Console, what: str) -> Iterator[Callable[[State], None]]:
    """A bar with rate and time left, for as long as there is something to show; what moves it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)

        def show(state: State) -> None:
            text = f"{what}: {state.files} of {state.of_files} files, {state.records:,} records"
            bar.update(task, total=state.of_bytes, completed=state.source_bytes, description=text)

        yield show


def _report(console: Console, what: str, found: Conversion) -> None:
    console.print(
        f"{found.records:,} records in {found.files:,} files {what} in {found.seconds:.1f} s"
        + (f"; {len(found.skipped):,} records skipped:" if found.skipped else "")
    )
    for name, number, reason in found.skipped[:SHOWN]:
        console.print(f"  {name}: record {number}: {reason}", markup=False)
    if len(found.skipped) > SHOWN:
        console.print(f"  and {len(found.skipped) - SHOWN:,} more, all of them in the manifest")


def _console() -> Console:
    return Console(soft_wrap=True, highlight=False)

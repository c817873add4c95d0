"""Training data: the port's loader over converted records against tf.data over TFRecords, and the conversion itself.

Both sides make whole training examples (drawn, masked, augmented, batched) of the same records, with as many threads or
processes as there are cores: tf.data by threads, the port by threads of its process or by processes beside it. Each is
measured in a fresh process, after one pass that warms up; the two take turns. Report the ratios.

Converted are more records than loaded, enough for several seconds: what a process takes to start, which is told beside
it, is paid once and is next to nothing in a conversion that is worth a second process.

    python -m benchmarks.data [--config tiny] [--records 32] [--converted 1536] [--rounds 3] [--made FOLDER]
        [--out data.json]
"""

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.forward import ENVIRONMENT, environment
from torch_impl.data.convert import convert_tfrecord_to_hdf5
from torch_impl.data.examples import ExampleConfig
from torch_impl.data.records import Record
from torch_impl.data.store import Store
from torch_impl.data.tfrecord import write_records

ConfigName = Literal["full", "tiny"]
FASTER = 3.0
"""Examples a second, port over tf.data, that the port is to reach."""
LINEAR = 0.55
"""Seconds of two processes that convert, over those of one on one core, that are near enough to a half."""
FILES, MORE_FILES = 8, 24
"""Files of the records that are loaded, and of those that are converted beside them."""
LOADED = "loaded"
"""Folder of the former."""
BATCH = 2
WORKERS = {"port": 0, "port_workers": os.cpu_count() or 1}
"""Processes that load beside the one that trains: none, as tf.data loads, or one for each core."""
SPARE = 16
STORES = (100, 100_000)
"""Numbers of small records whose reading is compared: one is to take as long in a large file as in a small one."""
READS, FIRST_READS = 100_000, 500
"""Records that are read of each: every one of the larger store once, as in an epoch. HDF5 reads the places of about a
thousand records when the first of them is needed, so that the first reads take longer; they are told apart."""


def data_benchmark(
    config: ConfigName = "full",
    records: int = 32,
    rounds: int = 3,
    progress: Callable[[str], None] | None = None,
    *,
    converted: int = 1536,
    made: Path | None = None,
) -> dict[str, Any]:
    """Measures loading, conversion and size.

    Args:
        config: Lengths of the records: the published ones, or tiny ones.
        records: How many are loaded; two cell types share each sequence.
        rounds: Processes of each kind.
        progress: Called with a line of text now and then.
        converted: How many are converted, if more than are loaded.
        made: Folder for the TFRecords, which are made where it does not exist; it is kept.

    Returns:
        ``loading``: examples a second and memory (all processes of a side together) of tf.data and of the port, with
        and without processes that load beside it, and ratios to tf.data.
        ``conversion``: number of records, seconds of one process, whose second thread reads ahead, of one that has to
        do with one core, and of two, TensorFlow's seconds for reading and parsing the same files, and medians of their
        ratios; ``start``: seconds of two processes that have next to nothing to convert. ``reading``: CPU seconds for a
        record in stores of few and of many records, over an epoch of the latter, and their ratio; and those of the
        first records. ``size``: bytes on disk of both forms, and their ratio. ``settings`` and ``environment``.
    """
    say = progress or (lambda text: None)
    with tempfile.TemporaryDirectory(prefix="epibert-benchmark-") as name:
        folder = Path(name)
        source = folder / "source" if made is None else made
        if not source.is_dir():
            _write_sources(source, config, records, converted - records)
        (folder / "few").mkdir()
        for number in range(2):
            write_records(folder / "few" / f"{number}.tfr", _small_records(1))
        conversion = _conversion(folder, source, rounds, say)
        loading = _loading(folder, source / LOADED, config, rounds, say)
        reading = _reading(folder / "stores")
        say(f"reading {reading}")
        size = {
            "tfrecord": sum(path.stat().st_size for path in source.rglob("*.tfr")),
            "hdf5": sum(path.stat().st_size for path in (folder / "one").rglob("*.h5")),
        }
    return {
        "benchmark": "data",
        "environment": environment(),
        "settings": {
            "config": config,
            "records": records,
            "files": FILES,
            "batch": BATCH,
            "rounds": rounds,
            "workers": WORKERS,
        },
        "loading": loading,
        "conversion": conversion,
        "reading": reading,
        "size": size | {"ratio": size["hdf5"] / size["tfrecord"]},
    }


def describe(result: dict[str, Any]) -> str:
    """The result in a few lines of text."""
    loading, conversion, reading = result["loading"], result["conversion"], result["reading"]
    return "\n".join(
        (
            *(
                f"loading, port {how} / tf.data: {loading[side]['speed_ratio']:.2f} in examples a second "
                f"({loading[side]['per_second']:.1f} and {loading['reference']['per_second']:.1f}), "
                f"{loading[side]['memory_ratio']:.2f} in memory"
                for side, how in (("port", "in one process"), ("port_workers", "with workers"))
            ),
            f"conversion of {conversion['records']:,.0f} records by one process: {conversion['ratio']:.2f} of the "
            "time that TensorFlow takes to read and parse the same files; by two: "
            f"{conversion['two_ratio']:.2f} of the time of one, which uses more than one core, and "
            f"{conversion['two_ratio_of_one_core']:.2f} of its time on one, {conversion['one_core']:.1f} s; a second "
            f"process takes {conversion['start']:.2f} s to start",
            f"reading one of {STORES[1]:,} small records: {reading['ratio']:.2f} of the time of one of "
            f"{STORES[0]:,}, {1e6 * (reading['many'] - reading['few']):.0f} µs more over an epoch, "
            f"{1e6 * (reading['first_many'] - reading['first_few']):.0f} µs more for the first {FIRST_READS}",
            f"size on disk: HDF5 / TFRecord {result['size']['ratio']:.2f}",
        )
    )


def _write_sources(folder: Path, config: ConfigName, count: int, more: int) -> None:
    """Files of the records that are loaded, and of more that are converted, in folders of their own."""
    jobs = [(folder / LOADED / "train" / f"{number}.tfr", -(-count // FILES), number) for number in range(FILES)]
    if more > 0:
        numbers = range(FILES, FILES + MORE_FILES)
        jobs += [(folder / "more" / f"{number}.tfr", -(-more // MORE_FILES), number) for number in numbers]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for written in [pool.submit(_write_source, *job, config) for job in jobs]:
            written.result()


def _write_source(path: Path, count: int, number: int, config: ConfigName) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_records(path, _records(_example_config(config), count, number))


def _example_config(name: ConfigName) -> ExampleConfig:
    return ExampleConfig.tiny() if name == "tiny" else ExampleConfig.pretraining()


def _records(config: ExampleConfig, count: int, number: int) -> Iterator[Record]:
    """Sparse accessibility and random bases; files come in pairs that share their sequences."""
    for index in range(count):
        letters = np.random.default_rng((number // 2, index))
        generator = np.random.default_rng((1, number, index))
        sequence = letters.choice(np.frombuffer(b"ACGT", np.uint8), size=config.input_length + SPARE).tobytes()
        atac = np.zeros((config.output_length_ATAC, 1), np.float16)
        hit = generator.random(atac.shape) < 0.1
        atac[hit] = generator.gamma(0.7, 4.0, size=int(hit.sum())).astype(np.float16)
        yield Record(
            sequence=sequence,
            atac=atac,
            peaks_center=(generator.random(config.output_length) < 0.02).astype(np.int32),
            motif_activity=generator.normal(2.0, 5.0, size=config.num_motifs).astype(np.float16),
        )


def _small_records(count: int) -> Iterator[Record]:
    """Records of 2,048 bp, quickly made: a hundred, over and over, the letters of each time moved on by one."""
    config = ExampleConfig.tiny(input_length=2048, output_length_ATAC=512, output_length=16, num_motifs=8)
    made = list(_records(config, 100, number=0))
    for index in range(count):
        record, moved = made[index % 100], index // 100 % config.input_length
        yield dataclasses.replace(record, sequence=record.letters[moved:] + record.letters[:moved])


def _conversion(folder: Path, source: Path, rounds: int, say: Callable[[str], None]) -> dict[str, float]:
    jobs: dict[str, dict[str, Any]] = {
        "one_core": {"task": "convert", "workers": 1, "one_core": True},
        "two": {"task": "convert", "workers": 2},
        "one": {"task": "convert", "workers": 1},
        "tensorflow_parse": {"task": "parse"},
        "start": {"task": "convert", "workers": 2, "source": str(folder / "few")},
    }
    found: list[dict[str, float]] = []
    for _ in range(rounds):
        seconds, records = {}, {}
        for name, job in jobs.items():
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(folder / name)
            result = _run({"source": str(source), "target": str(folder / name)} | job)
            seconds[name], records[name] = result["seconds"], result.get("records")
        ratios = {
            "ratio": seconds["one"] / seconds["tensorflow_parse"],
            "two_ratio": seconds["two"] / seconds["one"],
            "two_ratio_of_one_core": seconds["two"] / seconds["one_core"],
        }
        found.append(seconds | ratios | {"records": records["one"]})
        say(f"conversion {found[-1]}")
    return {name: statistics.median(each[name] for each in found) for name in found[0]}


def _reading(folder: Path) -> dict[str, float]:
    """Mean CPU seconds for one record of a store, in any order, and those of the first ones; the stores take turns."""
    stores = []
    for count in STORES:
        source = folder / f"{count}.tfr"
        source.parent.mkdir(exist_ok=True)
        write_records(source, _small_records(count), "NONE")
        convert_tfrecord_to_hdf5(source, folder / f"{count}")
        stores.append(Store(folder / f"{count}"))
    generator = np.random.default_rng(0)
    orders = [np.resize(generator.permutation(len(store)), READS).tolist() for store in stores]
    seconds = np.empty((READS, len(stores)))
    for number, indices in enumerate(zip(*orders, strict=True)):
        for side, (store, index) in enumerate(zip(stores, indices, strict=True)):
            started = time.thread_time()
            store[index]
            seconds[number, side] = time.thread_time() - started
    few, many = seconds.mean(axis=0).tolist()
    # Without the reads that open the files.
    first_few, first_many = seconds[1:FIRST_READS].mean(axis=0).tolist()
    return {"few": few, "many": many, "ratio": many / few, "first_few": first_few, "first_many": first_many}


def _loading(folder: Path, source: Path, config: ConfigName, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {"reference": [], "port": [], "port_workers": []}
    for _ in range(rounds):
        for side, results in found.items():
            read = source if side == "reference" else folder / "one" / LOADED
            results.append(_run({"task": side, "folder": str(read), "config": config}))
            say(f"{side}: {results[-1]}")
    return {
        side: {
            "per_second": statistics.median(result["per_second"] for result in results),
            "bytes": min(result["bytes"] for result in results),
            "speed_ratio": statistics.median(
                one["per_second"] / other["per_second"] for one, other in zip(results, found["reference"], strict=True)
            ),
            "memory_ratio": min(r["bytes"] for r in results) / min(r["bytes"] for r in found["reference"]),
        }
        for side, results in found.items()
    }


def _run(job: dict[str, Any]) -> dict[str, Any]:
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.data", "--job", json.dumps(job)],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        raise RuntimeError(f"{job} failed with status {found.returncode}:\n{found.stderr[-4000:]}")
    return json.loads(found.stdout.splitlines()[-1])


# --- one process ------------------------------------------------------------------------------------------------------


def _work(job: dict[str, Any]) -> dict[str, float]:
    if job["task"] == "parse":
        return _parse(Path(job["source"]))
    if job["task"] == "convert":
        if job.get("one_core"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        made = convert_tfrecord_to_hdf5(job["source"], job["target"], workers=job["workers"])
        return {"seconds": made.seconds, "records": made.records}
    folder, config = Path(job["folder"]), _example_config(job["config"])
    passes = _reference(folder, config) if job["task"] == "reference" else _port(folder, config, WORKERS[job["task"]])
    next(passes)
    started, count = time.perf_counter(), 0
    for _ in range(2):
        count += next(passes)
    seconds = time.perf_counter() - started
    return {"per_second": count / seconds, "bytes": _memory()}


def _port(folder: Path, config: ExampleConfig, workers: int) -> Iterator[int]:
    """Passes of the port's loader: number of examples in each."""
    from torch_impl.data_module import EpiBERTDataModule

    module = EpiBERTDataModule(folder, config, batch_size=BATCH, workers=workers)
    loader = module.train_dataloader()
    for epoch in range(1_000_000):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        yield sum(len(batch[0]) for batch in loader)


def _reference(folder: Path, config: ExampleConfig) -> Iterator[int]:
    """Passes of tf.data."""
    from tf_reference.data import Reader, training_dataset

    names = {field.name for field in dataclasses.fields(Reader)}
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name in names}
    dataset = training_dataset(folder, Reader(**settings), seed=0, batch_size=BATCH, repeat=1)
    while True:
        yield sum(int(batch[0].shape[0]) for batch in dataset)


def _parse(folder: Path) -> dict[str, float]:
    """TensorFlow reads and parses every record once, one after the other."""
    import tensorflow as tf

    from tf_reference.data import find_dtypes

    files = sorted(map(str, folder.rglob("*.tfr")))
    dtypes = find_dtypes(files[0])
    described = {name: tf.io.FixedLenFeature([], tf.string) for name in ("sequence", *dtypes)}

    def parse(serialized: Any) -> Any:
        found = tf.io.parse_single_example(serialized, described)
        return found["sequence"], *(tf.io.parse_tensor(found[name], dtype) for name, dtype in dtypes.items())

    records = tf.data.TFRecordDataset(files, compression_type="ZLIB").map(parse, num_parallel_calls=1)
    for _ in records:
        pass
    started = time.perf_counter()
    for record in records:
        for tensor in record:
            tensor.numpy()
    return {"seconds": time.perf_counter() - started}


def _memory() -> int:
    """Memory of this process and of those it started, in bytes; pages that they share count once.

    Read while the loaders' processes are alive, at the end of the last pass: all that is kept is there by then.
    """
    import psutil

    process = psutil.Process()
    return sum(each.memory_full_info().pss for each in (process, *process.children(recursive=True)))


def main() -> int:
    """Command line; exit status 1 when the port is not as fast as it is to be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=("full", "tiny"), default="full", help="lengths of the records")
    parser.add_argument("--records", type=int, default=32, help="number of records that are loaded")
    parser.add_argument("--converted", type=int, default=1536, help="number of records that are converted")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind")
    parser.add_argument("--made", type=Path, help="folder for the TFRecords; kept, and used again if it exists")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(_work(arguments.job)))
        return 0
    result = data_benchmark(
        arguments.config,
        arguments.records,
        arguments.rounds,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
        converted=arguments.converted,
        made=arguments.made,
    )
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(describe(result))
    port, conversion = result["loading"]["port"], result["conversion"]
    good = port["speed_ratio"] >= FASTER and port["memory_ratio"] <= 1
    return 0 if good and conversion["ratio"] <= 1 and conversion["two_ratio_of_one_core"] <= LINEAR else 1


if __name__ == "__main__":
    sys.exit(main())

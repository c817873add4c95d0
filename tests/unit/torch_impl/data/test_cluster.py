"""Conversion on a Dask cluster: a lost worker costs time and nothing else."""

import subprocess
import sys
import textwrap

import pytest

from tests.records import synthetic_record, synthetic_records
from torch_impl.data import convert as module
from torch_impl.data.convert import convert_tfrecord_to_hdf5, verify_hdf5
from torch_impl.data.examples import ExampleConfig
from torch_impl.data.records import DataError
from torch_impl.data.store import parts
from torch_impl.data.tfrecord import write_records

# In a process of its own, with a main module that its workers can import.
SCRIPT = textwrap.dedent(
    """
    import os, signal, sys, threading, time
    from pathlib import Path

    from distributed import LocalCluster
    from torch_impl.data.convert import convert_tfrecord_to_hdf5

    def main():
        folder, source, target = sys.argv[1:]
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
            first = next(iter(cluster.workers.values()))

            def kill_midway():
                # As soon as something is finished, and long before everything is.
                while not list(Path(target).rglob("*.json")):
                    time.sleep(0.01)
                os.kill(first.process.pid, signal.SIGKILL)
                print("killed", flush=True)

            # The workers stay where they were started.
            os.chdir(folder)
            killer = threading.Thread(target=kill_midway)
            killer.start()
            found = convert_tfrecord_to_hdf5(source, target, scheduler=cluster.scheduler_address)
            killer.join()
            print(found.files, found.records, flush=True)

    if __name__ == "__main__":
        main()
    """
)


@pytest.mark.slow
def test_a_worker_killed_midway_costs_nothing_but_time(tmp_path):
    config = ExampleConfig.tiny(num_motifs=8)
    for number in range(24):
        path = tmp_path / "source" / f"{number:02d}.tfr"
        path.parent.mkdir(exist_ok=True)
        # Four cell types each.
        shared = 40 * (number // 4)
        write_records(path, [synthetic_record(config, 100 * number + i, sequence_seed=shared + i) for i in range(40)])
    script = tmp_path / "cluster.py"
    script.write_text(SCRIPT)
    target = tmp_path / "target"
    found = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "source", "target"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["killed", "24", "960"]
    assert verify_hdf5(tmp_path / "source", target).records == 960
    assert sum(len(part.sequences) for _, part in parts(target)) == 240


FAILED = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path

    from distributed import LocalCluster
    from torch_impl.data.convert import convert_tfrecord_to_hdf5
    from torch_impl.data.records import DataError

    def main():
        source, target = map(Path, sys.argv[1:])
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
            try:
                convert_tfrecord_to_hdf5(source, target, scheduler=cluster.scheduler_address)
            except DataError as error:
                print(error)
            # What its worker had begun it finishes, although nobody asks for it any more.
            while not (waiting := list(target.rglob("*.converted"))):
                time.sleep(0.01)
            made = waiting[0].with_suffix(".h5").stat()
            print(len(list(target.rglob("*.json"))), made.st_mtime_ns, made.st_ino)
            (source.parent / "mended.tfr").replace(source / "a.tfr")
            convert_tfrecord_to_hdf5(source, target, scheduler=cluster.scheduler_address)
            made = (target / "b.h5").stat()
            print(made.st_mtime_ns, made.st_ino)

    if __name__ == "__main__":
        main()
    """
)


@pytest.mark.slow
def test_what_a_worker_finishes_after_the_call_has_failed_is_taken_as_it_is(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "a.tfr").write_bytes(b"no record")
    config = ExampleConfig.tiny(num_motifs=8)
    write_records(tmp_path / "mended.tfr", synthetic_records(config, 3))
    write_records(source / "b.tfr", synthetic_records(config, 500, seed=1000))
    (tmp_path / "cluster.py").write_text(FAILED)
    command = [sys.executable, str(tmp_path / "cluster.py"), str(source), str(target)]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert found.returncode == 0, found.stderr
    error, first, second = found.stdout.splitlines()
    assert "a.tfr: not a TFRecord file" in error
    assert first == f"0 {second}"
    assert verify_hdf5(source, target).records == 503


LOST = textwrap.dedent(
    """
    import json, os, subprocess, sys, threading, time
    from pathlib import Path

    from torch_impl.data.convert import convert_tfrecord_to_hdf5
    from torch_impl.data.records import DataError

    folder, victim = Path(sys.argv[1]), sys.argv[2]
    environment = os.environ | {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}

    def start(name, *arguments):
        command = [sys.executable, "-m", f"distributed.cli.dask_{name}", *arguments, "--no-dashboard"]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    address = folder / "address.json"
    started = {
        "scheduler": start("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(address)),
        "worker": start("worker", "--scheduler-file", str(address), "--nthreads", "1", "--no-nanny"),
    }
    while not address.exists() or not address.read_text().strip():
        time.sleep(0.05)

    def kill_midway():
        while not list((folder / "target").rglob(".partial-*.h5")):
            time.sleep(0.01)
        started[victim].kill()

    threading.Thread(target=kill_midway, daemon=True).start()
    try:
        convert_tfrecord_to_hdf5(
            folder / "some.tfr", folder / "target", scheduler=json.loads(address.read_text())["address"]
        )
    except DataError as error:
        print(error)
    finally:
        for process in started.values():
            process.kill()
            process.wait()
    """
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "message"),
    [
        ("worker", "some.tfr: every worker that converted it was killed; call again to go on"),
        ("scheduler", "the scheduler was lost; call again to go on"),
    ],
)
def test_a_cluster_that_is_lost_is_named_and_the_next_call_goes_on(tmp_path, victim, message):
    write_records(tmp_path / "some.tfr", synthetic_records(ExampleConfig.tiny(num_motifs=8), 1000))
    found = subprocess.run(
        [sys.executable, "-c", LOST, str(tmp_path), victim], capture_output=True, text=True, check=False, timeout=300
    )
    assert found.returncode == 0, found.stderr
    assert message in found.stdout
    assert len(found.stdout.splitlines()) == 1
    convert_tfrecord_to_hdf5(tmp_path / "some.tfr", tmp_path / "target")
    assert verify_hdf5(tmp_path / "some.tfr", tmp_path / "target").records == 1000


def test_a_scheduler_that_does_not_answer_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.5)
    write_records(tmp_path / "some.tfr", synthetic_records(ExampleConfig.tiny(num_motifs=8), 1))
    with pytest.raises(DataError, match=r"127\.0\.0\.1:1: no scheduler answers"):
        convert_tfrecord_to_hdf5(tmp_path / "some.tfr", tmp_path / "target", scheduler="tcp://127.0.0.1:1")

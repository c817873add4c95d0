"""Conversion on a Dask cluster: a lost worker costs time and nothing else."""

import subprocess
import sys
import textwrap

import pytest

from tests.records import synthetic_records
from torch_impl.data import convert as module
from torch_impl.data.convert import convert_tfrecord_to_hdf5, verify_hdf5
from torch_impl.data.examples import ExampleConfig
from torch_impl.data.records import DataError
from torch_impl.data.tfrecord import write_records

# In a process of its own, with a main module that its workers can import.
SCRIPT = textwrap.dedent(
    """
    import os, signal, sys, threading, time
    from pathlib import Path

    from distributed import LocalCluster
    from torch_impl.data.convert import convert_tfrecord_to_hdf5

    def main():
        source, target = sys.argv[1:]
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
            first = next(iter(cluster.workers.values()))

            def kill_midway():
                # As soon as something is finished, and long before everything is.
                while not list(Path(target).rglob("*.json")):
                    time.sleep(0.01)
                os.kill(first.process.pid, signal.SIGKILL)
                print("killed", flush=True)

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
        write_records(path, synthetic_records(config, 40, seed=100 * number))
    script = tmp_path / "cluster.py"
    script.write_text(SCRIPT)
    target = tmp_path / "target"
    found = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "source"), str(target)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["killed", "24", "960"]
    assert verify_hdf5(tmp_path / "source", target).records == 960


def test_a_scheduler_that_does_not_answer_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.5)
    write_records(tmp_path / "some.tfr", synthetic_records(ExampleConfig.tiny(num_motifs=8), 1))
    with pytest.raises(DataError, match=r"127\.0\.0\.1:1: no scheduler answers"):
        convert_tfrecord_to_hdf5(tmp_path / "some.tfr", tmp_path / "target", scheduler="tcp://127.0.0.1:1")

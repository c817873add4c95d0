import os
import sys

import pytest
import torch

from parity import workers


def test_threads_share_the_processors(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert (workers.jobs(), workers.threads_of(2)) == (2, 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert (workers.jobs(), workers.threads_of(1), workers.threads_of(2)) == (1, 1, 1)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert workers.jobs() == 1


@pytest.mark.parametrize(("device", "method"), [("cpu", "forkserver"), ("cuda", "spawn")])
def test_what_has_loaded_tensorflow_is_not_forked_for_a_gpu(monkeypatch, device, method):
    started, made = [], []
    monkeypatch.setattr(workers, "prepare", lambda *given, **more: started.append((given, more)))
    monkeypatch.setattr(workers, "ProcessPoolExecutor", lambda jobs, context, **more: made.append((context, more)))
    monkeypatch.setattr(sys, "platform", "linux")
    workers.pool(2, 3, reference=True, device=device)
    ((context, more),) = made
    assert context.get_start_method() == method
    assert more["initargs"] == (3, True)
    assert started == ([((3,), {"reference": True})] if method == "forkserver" else [])


def test_other_systems_spawn(monkeypatch):
    made = []
    monkeypatch.setattr(workers, "ProcessPoolExecutor", lambda jobs, context, **more: made.append(context))
    monkeypatch.setattr(sys, "platform", "darwin")
    workers.pool(2, 1, reference=True)
    assert [context.get_start_method() for context in made] == ["spawn"]


def test_the_caller_keeps_its_environment(monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    with workers._environment(3):
        assert os.environ["OPENBLAS_NUM_THREADS"] == os.environ["TF_NUM_INTRAOP_THREADS"] == "3"
    assert os.environ["OPENBLAS_NUM_THREADS"] == "7"
    assert "TF_NUM_INTRAOP_THREADS" not in os.environ


def test_a_worker_has_its_threads():
    names = ["OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"]
    with workers.pool(1, 1, reference=False) as pool:
        assert list(pool.map(os.getenv, names)) == ["1", "1"]
        assert pool.submit(torch.get_num_threads).result() == 1


def test_only_what_is_installed_is_imported_beforehand(monkeypatch):
    chosen = []
    monkeypatch.setattr(workers.multiprocessing.forkserver, "set_forkserver_preload", chosen.append)
    monkeypatch.setattr(workers.multiprocessing.forkserver, "ensure_running", lambda: None)
    monkeypatch.setattr(workers, "_installed", lambda name: name != "tf_keras")
    monkeypatch.setattr(sys, "platform", "linux")
    workers.prepare(1, reference=True)
    workers.prepare(1, reference=False)
    assert chosen == [[*workers.PORT, "tensorflow"], [*workers.PORT]]

"""Processes that share a run, forked from one that has imported what takes seconds to import.

That one is a server that does nothing but import and fork (``multiprocessing``'s forkserver): it has one thread and has
computed nothing, so that its children start as if new.
"""

import contextlib
import importlib.util
import logging
import multiprocessing
import multiprocessing.forkserver
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

PORT = ("torch._dynamo", "torchmetrics", "scipy.stats", "h5py")
REFERENCE = ("tensorflow", "tf_keras")
"""What takes seconds to import. Nothing of our own: a test session may find that elsewhere than the server does."""


def jobs() -> int:
    """How many processes do the units of a run: while the longest is done, a second finishes all others."""
    return min(2, os.cpu_count() or 1)


def threads_of(jobs: int) -> int:
    """How many threads each of so many processes has."""
    return max(1, (os.cpu_count() or 1) // jobs)


def prepare(threads: int, *, reference: bool) -> None:
    """Starts the server, which imports while the caller goes on; does nothing where there is one already.

    Args:
        threads: Of each process.
        reference: Whether TensorFlow is needed.
    """
    if sys.platform != "linux":
        return
    names = PORT + (REFERENCE if reference else ())
    multiprocessing.forkserver.set_forkserver_preload([name for name in names if _installed(name)])
    with _environment(threads):
        multiprocessing.forkserver.ensure_running()


def pool(jobs: int, threads: int, *, reference: bool, device: str = "cpu") -> ProcessPoolExecutor:
    """Processes for ``jobs`` units at a time, of so many threads each.

    Args:
        jobs: Number of processes.
        threads: Of each of them.
        reference: Whether TensorFlow is needed.
        device: Where they compute: what has loaded TensorFlow is not forked for a GPU, which it may have touched.
    """
    forked = sys.platform == "linux" and device == "cpu"
    if forked:
        prepare(threads, reference=reference)
    context = multiprocessing.get_context("forkserver" if forked else "spawn")
    return ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=(threads, reference))


def _begin(threads: int, reference: bool) -> None:
    os.environ.update(_variables(threads))
    # Every shape is traced anew on purpose; TensorFlow would advise against that in the middle of the progress line.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    if reference:
        # Before anybody asks for TensorFlow's constants, which else come from a process that imports it as well.
        import tensorflow  # noqa: F401
    import torch

    torch.set_num_threads(threads)


def _variables(threads: int) -> dict[str, str]:
    count = str(threads)
    return {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_NUM_INTRAOP_THREADS": count, "OPENBLAS_NUM_THREADS": count}


@contextlib.contextmanager
def _environment(threads: int) -> Iterator[None]:
    """NumPy and TensorFlow read it when they are imported; the server hands it to its children."""
    kept = {name: os.environ.get(name) for name in _variables(threads)}
    os.environ.update(_variables(threads))
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name.partition(".")[0]) is not None

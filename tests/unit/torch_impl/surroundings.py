"""What a run of training says and sets and no test is about; imports little, for machines that have little."""

import contextlib
import os
from collections.abc import Iterator

import pytest

# What Lightning says of small runs on a CPU, and its own use of PyTorch.
QUIET = [
    "ignore:.*does not have many workers.*",
    "ignore:.*LeafSpec.*deprecated.*",
    "ignore:Be aware that when using `ckpt_path`.*",
    "ignore:The dirpath has changed.*",
    "ignore:.*GPU available but not used.*",
    "ignore:Checkpoint directory .* exists and is not empty",
    "ignore:Experiment logs directory .* exists and is not empty",
    "ignore:.*is smaller than the logging interval.*",
    "ignore:.*is supported for historical reasons but its usage is discouraged.*",
]
quiet = pytest.mark.filterwarnings(*QUIET)


@contextlib.contextmanager
def environment_kept() -> Iterator[None]:
    """Takes back what a run says to the environment, such as its seed."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)

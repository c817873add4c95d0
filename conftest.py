"""Test session: determinism, Hypothesis profiles, shape checking, and the rule that no test is skipped.

Nothing here imports TensorFlow or PyTorch, so a test file that needs neither starts at once.

A test that is skipped looks green and proves nothing, so a skip is a failure here, whether it comes from a mark, from
``pytest.skip`` or from ``pytest.importorskip``. That includes a missing TensorFlow: a suite that compares with the
live reference fails with the command that installs it. There is deliberately no option that leaves the reference out:
whoever wants the tests that need no TensorFlow names their folders on the command line, and sees what ran.

Tests marked ``slow``, ``convergence`` and ``browser`` are the one thing a plain run leaves out; pytest counts them as
deselected, and the targets of ``make`` of the same names run them.
"""

import gc
import importlib.metadata
import os
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

# Both frameworks read these when they are first imported, hence before anything else. The suite is sized for two cores;
# with several workers each gets its share, since more threads than cores only wait for each other.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_THREADS = str(max(1, 2 // _WORKERS))
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
    if _WORKERS > 1:
        os.environ[_name] = _THREADS  # a worker inherits what stands here of the process that started it
    else:
        os.environ.setdefault(_name, _THREADS)
for _name, _value in {
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TF_DETERMINISTIC_OPS": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}.items():
    os.environ.setdefault(_name, _value)

import numpy as np  # noqa: E402  the thread counts above must be set first
import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

ROOT = Path(__file__).resolve().parent
CLIMBING = "the ladder"
RUNGS = {
    f"tests/suites/test_{rung}.py"
    for rung in (
        "weights",
        "constants",
        "layers",
        "blocks",
        "model",
        "data",
        "losses",
        "gradients",
        "optimizer",
        "state",
        "trajectory",
    )
}
"""Files whose tests ask about the ladder."""
INSTALL_REFERENCE = "python -m pip install -c constraints.txt -e '.[reference]'"

# Shapes and types that signatures promise are checked on every call of the port, in tests only. jaxtyping wants the
# checker as an expression; this one accepts an int for a float, as Python's typing rules have it.
install_import_hook("torch_impl", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

# `ci` draws the same examples every time, so a red build is red again at home. `thorough` is for hunting.
_slow_is_fine = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=25, database=None, print_blob=True,
                          suppress_health_check=_slow_is_fine)  # fmt: skip
settings.register_profile("dev", deadline=None, max_examples=25, print_blob=True, suppress_health_check=_slow_is_fine)
settings.register_profile("thorough", deadline=None, max_examples=1000, print_blob=True,
                          suppress_health_check=_slow_is_fine)  # fmt: skip
# pytest's own option --hypothesis-profile wins over this default.
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def pytest_report_header() -> list[str]:
    lines = [f"{name}: {_version(name) or 'NOT INSTALLED'}" for name in ("torch", "numpy", "h5py")]
    tensorflow = _version("tensorflow")
    if tensorflow is None:
        lines.append(f"tensorflow: NOT INSTALLED, tests that need it fail; install it with {INSTALL_REFERENCE}")
    else:
        lines.append(f"tensorflow: {tensorflow}, tf_keras: {_version('tf_keras') or 'NOT INSTALLED'}")
    return [", ".join(lines[:3]), lines[3], f"threads per process: {os.environ['OMP_NUM_THREADS']}"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "ladder" in getattr(item, "fixturenames", ()) and _unit_of_work(item.nodeid) != CLIMBING:
            raise pytest.UsageError(f"{item.nodeid} asks about the ladder: add its file to RUNGS in conftest.py")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Modules and tests are there to stay: the garbage collector need not look at them again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several processes one does a whole file, and one all that asks about the ladder: it is climbed once.

    The mark of pytest-xdist for this, ``xdist_group``, has no effect with pytest 9.
    """
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _unit_of_work(nodeid)

    return Scheduling(config, log)


def _unit_of_work(nodeid: str) -> str:
    """What one process does as a whole: a file, or all of those that ask about the ladder."""
    file = nodeid.partition("::")[0]
    return CLIMBING if file in RUNGS else file


def _fail_instead_of_skipping(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid}: {reason}\nA skipped test proves nothing, so skipping fails here (conftest.py)."


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    _fail_instead_of_skipping(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    _fail_instead_of_skipping(report)
    return report


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Starts every test from the same random state, in whichever frameworks are loaded."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  the state that libraries fall back on
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    if "tensorflow" in sys.modules:
        sys.modules["tensorflow"].random.set_seed(0)


@pytest.fixture(scope="session")
def goldens() -> Path:
    """Folder of the numbers recorded from the original implementation."""
    folder = ROOT / "goldens"
    assert (folder / "environment.json").is_file(), f"{folder} does not hold the recorded numbers"
    return folder


@pytest.fixture(scope="session")
def tensorflow() -> ModuleType:
    """TensorFlow, imported on first use; without it the test fails and says how to install it."""
    try:
        import tensorflow as module
        import tf_keras  # noqa: F401  the reference needs both
    except ImportError as error:
        pytest.fail(f"the live reference needs TensorFlow ({error}): {INSTALL_REFERENCE}")
    return module

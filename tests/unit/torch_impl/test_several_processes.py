"""Training that is killed, and training by two processes: the whole command, in processes of its own."""

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.assertions import Disagreement, assert_same
from tests.unit.torch_impl.training import (
    WITHOUT_DROPOUT,
    finish,
    load,
    losses,
    start,
    steps_of,
    tensors,
    write_config,
)

pytestmark = pytest.mark.slow
EPOCHS = 5
DDP = {"devices": 2, "strategy": "ddp"}
MODULE = {"peak": 1e-3}
GRACE_SECONDS = 15
CORRELATION = "correlation"


def config(folder: Path, records: Path, processes: int, workers: int = 0) -> Path:
    """Dropout, shuffled records and fresh draws in every epoch; as many steps for one process as for two."""
    trainer = {"max_epochs": EPOCHS * processes, **(DDP if processes == 2 else {})}
    return write_config(folder, records, trainer=trainer, loader={"workers": workers})


def run(folder: Path, records: Path, processes: int, *options: object, workers: int = 0) -> None:
    status, said = finish(start("fit", "--config", config(folder, records, processes, workers), *options))
    assert status == 0, said


@pytest.fixture(scope="module", params=[1, 2])
def whole(request, records, tmp_path_factory) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp(f"whole{request.param}")
    run(folder, records, request.param)
    return folder, request.param


def interrupt(folder: Path, records: Path, processes: int, sent: signal.Signals, seed: int, workers: int) -> None:
    """Starts a run and sends it a signal at some time after a step that chance decides."""
    chance = random.Random(f"{seed} {sent} {processes}")
    after = chance.randrange(2, 14)
    process = start("fit", "--config", config(folder, records, processes, workers))
    try:
        deadline = time.monotonic() + 200
        while max(steps_of(folder), default=0) < after:
            assert process.poll() is None, finish(process)[1]
            assert time.monotonic() < deadline, "no such step"
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.2))
        end(process, processes, sent)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def end(process: subprocess.Popen[str], processes: int, sent: signal.Signals) -> None:
    """Sends a signal to a run, and insists on its exit status."""
    if sent == signal.SIGTERM and processes == 1:
        process.send_signal(sent)
        assert finish(process)[0] == 143
        return
    os.killpg(process.pid, sent)
    # Several processes are ended as schedulers do it, who send SIGKILL when SIGTERM has had its time: Lightning
    # answers the latter by a collective operation in the handler, which need not end.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    status, _ = finish(process)
    assert status == -9 if sent == signal.SIGKILL else status != 0


@pytest.mark.parametrize(
    ("sent", "seed", "workers"),
    [
        (signal.SIGTERM, 1, 0),
        (signal.SIGKILL, 2, 0),
        (signal.SIGKILL, 3, 0),
        (signal.SIGTERM, 4, 2),
        (signal.SIGKILL, 5, 2),
    ],
    ids=lambda value: str(value),
)
def test_a_run_that_is_killed_goes_on_to_the_bit(whole, records, tmp_path, sent, seed, workers):
    """With and without processes that load; the run that it is compared with has none."""
    folder, processes = whole
    interrupt(tmp_path / "killed", records, processes, sent, seed, workers)
    last = tmp_path / "killed" / "run" / "checkpoints" / "last.ckpt"
    step = load(last)["global_step"]
    assert 2 <= step < max(steps_of(folder))
    (last.parent / ".last.ckpt-abcdefgh").touch()  # as a process leaves it that is killed while it writes
    run(tmp_path / "resumed", records, processes, "--ckpt_path", last, workers=workers)
    assert list(last.parent.glob(".*")) == []
    assert_goes_on(folder, tmp_path, step)


def assert_goes_on(folder: Path, tmp_path: Path, step: int) -> None:
    """What the killed run computed, and the resumed one from a step on, is what the whole one did, to the bit."""
    last = max(steps_of(folder))
    expected, found = losses(folder), losses(tmp_path / "resumed")
    assert found
    # A checkpoint of an epoch's last step comes before that epoch's validation, which the resumed run makes up for.
    assert {at for at in expected if abs(at) >= step} <= found.keys()
    assert found == {at: expected[at] for at in found}
    before = losses(tmp_path / "killed")
    assert before == {at: expected[at] for at in before}
    one, other = (tensors(load(steps_of(each)[last])) for each in (folder, tmp_path / "resumed"))
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_killed_within_a_validation_goes_on_to_the_bit(whole, records, tmp_path, sent):
    """At the first of its batches, where a callback waits for the signal that it has asked for."""
    folder, processes = whole
    killed = tmp_path / "killed"
    path = config(killed, records, processes, workers=2)
    content = yaml.safe_load(path.read_text())
    waiting = {"class_path": "tests.unit.torch_impl.training.WaitsInValidation", "init_args": {"folder": str(killed)}}
    content["trainer"]["callbacks"].append(waiting)
    path.write_text(yaml.safe_dump(content))
    process = start("fit", "--config", path)
    try:
        deadline = time.monotonic() + 200
        while not (killed / "validating").exists():
            assert process.poll() is None, finish(process)[1]
            assert time.monotonic() < deadline, "no validation"
            time.sleep(0.001)
        end(process, processes, sent)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    last = killed / "run" / "checkpoints" / "last.ckpt"
    run(tmp_path / "resumed", records, processes, "--ckpt_path", last, workers=2)
    assert_goes_on(folder, tmp_path, load(last)["global_step"])


@pytest.fixture(scope="module")
def joint(records, tmp_path_factory) -> Path:
    """One process with the joint batch, at a rate at which rounding does not grow from step to step."""
    folder = tmp_path_factory.mktemp("joint")
    path = write_config(
        folder,
        records,
        model=WITHOUT_DROPOUT,
        module=MODULE,
        loader={"batch_size": 2},
        trainer={"max_epochs": 1},
        class_path="tests.unit.torch_impl.training.MeanOfHalves",
    )
    status, said = finish(start("fit", "--config", path))
    assert status == 0, said
    return folder


def assert_trained_alike(joint: Path, two: Path) -> None:
    """Weights, moments, step counters and BatchNorm statistics after every step."""
    assert steps_of(joint).keys() == steps_of(two).keys()
    for step, path in steps_of(joint).items():
        reference, port = tensors(load(path)), tensors(load(steps_of(two)[step]))
        assert reference.keys() == port.keys()
        largest = max(float(value.abs().max()) for value in reference.values() if value.is_floating_point())
        for name, value in reference.items():
            # What is zero in theory, or what is left of much larger terms, is related to all others.
            small = bool(value.abs().max() < 1e-5 * largest)
            scale = largest if small else 1.0
            assert_same(port[name] / scale + small, value / scale + small, what=f"{name} {step}")


def number(text: str) -> torch.Tensor:
    return torch.tensor(float(text), dtype=torch.float64)


def test_two_processes_train_as_one_with_the_joint_batch(joint, records, tmp_path):
    """Losses and correlations of the validation as well."""
    path = write_config(
        tmp_path, records, model=WITHOUT_DROPOUT, module=MODULE, loader={"batch_size": 1},
        trainer={"max_epochs": 1, **DDP},
    )  # fmt: skip
    status, said = finish(start("fit", "--config", path))
    assert status == 0, said
    assert_same_losses(joint, tmp_path)
    assert_trained_alike(joint, tmp_path)


def assert_same_losses(joint: Path, two: Path) -> None:
    """Of every step, and loss and correlations of the validation of three records, which two cannot halve."""
    expected, found = losses(joint), losses(two)
    assert found.keys() == expected.keys()
    assert len(found) == 5
    for at, values in expected.items():
        names = ("loss",) if at >= 0 else ("validation loss", CORRELATION, "r2")
        for name, value, port in zip(names, values.split(), found[at].split(), strict=True):
            row = "correlation" if name == CORRELATION else "float64"
            assert_same(number(port), number(value), row, what=f"{name} {at}")


SHARDED: dict[str, Any] = {
    "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
    "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": False},
}


def train_sharded(folder: Path, records: Path, model: dict[str, Any] | None = None) -> None:
    """FSDP2: each of two processes holds half of every parameter and moment."""
    path = write_config(
        folder,
        records,
        model={**WITHOUT_DROPOUT, **(model or {})},
        module=MODULE,
        loader={"batch_size": 1},
        trainer={"max_epochs": 1, "devices": 2, "strategy": SHARDED, "precision": "32-true"},
        class_path="tests.unit.torch_impl.training.ShardedDouble",
    )
    status, said = finish(start("fit", "--config", path))
    assert status == 0, said


def test_two_processes_train_one_sharded_model(joint, records, tmp_path):
    train_sharded(tmp_path, records)
    assert_same_losses(joint, tmp_path)
    assert_trained_alike(joint, tmp_path)


def test_a_fault_of_a_sharded_run_shows_in_its_correlation(joint, records, tmp_path):
    """Whose size is taken to be one, so that the row is wider for a small one: statistics move at twice the rate."""
    train_sharded(tmp_path, records, {"BN_momentum": 0.8})
    (expected,), (found,) = (
        [number(values.split()[1]) for at, values in losses(run).items() if at < 0] for run in (joint, tmp_path)
    )
    with pytest.raises(Disagreement, match=CORRELATION):
        assert_same(found, expected, "correlation", what=CORRELATION)

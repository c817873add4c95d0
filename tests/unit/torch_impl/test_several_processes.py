"""Training that is killed, and training by two processes: the whole command, in processes of its own."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.assertions import assert_same
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


def config(folder: Path, records: Path, processes: int) -> Path:
    """Dropout, shuffled records and fresh draws in every epoch; as many steps for one process as for two."""
    trainer = {"max_epochs": EPOCHS * processes, **(DDP if processes == 2 else {})}
    return write_config(folder, records, trainer=trainer)


def run(folder: Path, records: Path, processes: int, *options: object) -> None:
    status, said = finish(start("fit", "--config", config(folder, records, processes), *options))
    assert status == 0, said


@pytest.fixture(scope="module", params=[1, 2])
def whole(request, records, tmp_path_factory) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp(f"whole{request.param}")
    run(folder, records, request.param)
    return folder, request.param


def interrupt(folder: Path, records: Path, processes: int, sent: signal.Signals, seed: int) -> int:
    """Starts a run and sends it a signal at some time after a step that chance decides; the exit status."""
    chance = random.Random(f"{seed} {sent} {processes}")
    after = chance.randrange(2, 14)
    process = start("fit", "--config", config(folder, records, processes))
    try:
        deadline = time.monotonic() + 200
        while max(steps_of(folder), default=0) < after:
            assert process.poll() is None, finish(process)[1]
            assert time.monotonic() < deadline, "no such step"
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.2))
        if sent == signal.SIGKILL:
            os.killpg(process.pid, sent)
        else:
            process.send_signal(sent)
        return finish(process)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("sent", "seed"), [(signal.SIGTERM, 1), (signal.SIGKILL, 2), (signal.SIGKILL, 3)], ids=lambda value: str(value)
)
def test_a_run_that_is_killed_goes_on_to_the_bit(whole, records, tmp_path, sent, seed):
    folder, processes = whole
    if processes == 2 and seed != 2:
        sent = signal.SIGKILL  # Lightning answers SIGTERM by a collective operation in the handler, which may not end
    status = interrupt(tmp_path / "killed", records, processes, sent, seed)
    assert status == (143 if sent == signal.SIGTERM else -9)
    last = tmp_path / "killed" / "run" / "checkpoints" / "last.ckpt"
    step, end = load(last)["global_step"], max(steps_of(folder))
    assert 2 <= step < end
    run(tmp_path / "resumed", records, processes, "--ckpt_path", last)
    expected, found = losses(folder), losses(tmp_path / "resumed")
    assert found
    # A checkpoint of an epoch's last step comes before that epoch's validation, which the resumed run makes up for.
    assert {at for at in expected if abs(at) >= step} <= found.keys()
    assert found == {at: expected[at] for at in found}
    before = losses(tmp_path / "killed")
    assert before == {at: expected[at] for at in before}
    one, other = (tensors(load(steps_of(each)[end])) for each in (folder, tmp_path / "resumed"))
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_two_processes_train_as_one_with_the_joint_batch(records, tmp_path):
    """Losses, correlations of the validation, weights, moments and BatchNorm statistics, at every step.

    At a rate at which rounding does not grow from step to step.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    module = {"peak": 1e-3}
    alone = write_config(
        one,
        records,
        model=WITHOUT_DROPOUT,
        module=module,
        loader={"batch_size": 2},
        trainer={"max_epochs": 1},
        class_path="tests.unit.torch_impl.training.MeanOfHalves",
    )
    together = write_config(
        two, records, model=WITHOUT_DROPOUT, module=module, loader={"batch_size": 1}, trainer={"max_epochs": 1, **DDP}
    )
    for path in (alone, together):
        status, said = finish(start("fit", "--config", path))
        assert status == 0, said
    expected, found = losses(one), losses(two)
    assert found.keys() == expected.keys()
    assert len(found) == 5
    for at, values in expected.items():
        for name, value, port in zip(("loss", "pearson", "r2"), values.split(), found[at].split(), strict=False):
            if at < 0 and name == "loss":
                continue  # that of validation is a mean over batches, which are others
            assert_same(torch.tensor(float(port)).double(), torch.tensor(float(value)).double(), what=f"{name} {at}")
    for step, path in steps_of(one).items():
        reference, port = tensors(load(path)), tensors(load(steps_of(two)[step]))
        assert reference.keys() == port.keys()
        largest = max(float(value.abs().max()) for value in reference.values() if value.is_floating_point())
        for name, value in reference.items():
            scale = 1.0 if value.abs().max() > 1e-5 * largest else largest
            assert_same(port[name] / scale + (scale != 1), value / scale + (scale != 1), what=f"{name} {step}")

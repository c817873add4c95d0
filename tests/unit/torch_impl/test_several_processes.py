"""Training that is killed, and training by two processes: the whole command, in processes of its own."""

import contextlib
import dataclasses
import os
import pickle
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml

from tests.assertions import Disagreement, assert_same
from tests.records import synthetic_record
from tests.unit.torch_impl.training import (
    WITHOUT_DROPOUT,
    Evil,
    as_folder,
    example_config,
    finish,
    load,
    losses,
    start,
    steps_of,
    tensors,
    write_config,
)
from torch_impl.checkpointing import read_checkpoint_file
from torch_impl.data.convert import convert_tfrecord_to_hdf5
from torch_impl.data.tfrecord import _tensor, write_records
from torch_impl.distributed import ORIGIN

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
        reference, port = tensors(load(path)), tensors(read_checkpoint_file(steps_of(two)[step]))
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


def sharded(*, folders: bool = False) -> dict[str, Any]:
    """Settings of a Trainer for FSDP2: each of two processes holds half of every parameter and moment.

    Args:
        folders: Write checkpoints as Lightning does by default, each process its part, and not in one file.
    """
    strategy = {
        "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
        "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": folders},
    }
    # The module is in float64 by itself.
    return {"devices": 2, "strategy": strategy, "precision": "32-true"}


SHARDED_CLASS = "tests.unit.torch_impl.training.ShardedDouble"


def train_sharded(
    folder: Path,
    records: Path,
    model: dict[str, Any] | None = None,
    *,
    folders: bool = False,
    epochs: int = 1,
    options: tuple[Any, ...] = (),
) -> None:
    path = write_config(
        folder,
        records,
        model={**WITHOUT_DROPOUT, **(model or {})},
        module=MODULE,
        loader={"batch_size": 1},
        trainer={"max_epochs": epochs, **sharded(folders=folders)},
        class_path=SHARDED_CLASS,
    )
    status, said = finish(start("fit", "--config", path, *options))
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


@pytest.fixture(scope="module")
def folders(records, tmp_path_factory) -> Path:
    """A run of two epochs that leaves a folder after every step, as Lightning does by default."""
    folder = tmp_path_factory.mktemp("folders")
    train_sharded(folder, records, folders=True, epochs=2)
    return folder


def test_folders_of_a_sharded_run_hold_what_its_files_do(folders, joint, records, tmp_path):
    """To the bit and all of it but the names of the files; and what a run of one process holds, to rounding."""
    train_sharded(tmp_path, records)
    for step, path in steps_of(tmp_path).items():
        folder = steps_of(folders)[step]
        assert folder.is_dir()
        expected, found = load(path), read_checkpoint_file(folder)
        for content in (expected, found):
            content["callbacks"] = {name: state for name, state in content["callbacks"].items() if "seed" in state}
        assert described(found) == described(expected)


def described(content: Any) -> Any:
    """Plain values, with tensors as their type and bytes."""
    if isinstance(content, dict):
        return {name: described(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [described(value) for value in content]
    if isinstance(content, torch.Tensor):
        return content.dtype, content.shape, content.numpy().tobytes()
    return content


def test_a_sharded_run_goes_on_from_its_folder_to_the_bit(folders, records, tmp_path):
    step = 6
    options = ("--ckpt_path", steps_of(folders)[step])
    train_sharded(tmp_path / "resumed", records, folders=True, epochs=2, options=options)
    expected, found = losses(folders), losses(tmp_path / "resumed")
    assert {at for at in expected if abs(at) >= step} == found.keys()
    assert found == {at: expected[at] for at in found}
    last = max(steps_of(folders))
    one, other = (tensors(read_checkpoint_file(steps_of(run)[last])) for run in (folders, tmp_path / "resumed"))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_sharded_run_keeps_where_its_constants_come_from(folders, records, tmp_path, form):
    """Text of another length than the new model's own, which PyTorch loads by itself from neither."""
    origin = torch.tensor(list(b"somewhere else"), dtype=torch.uint8)
    content = read_checkpoint_file(steps_of(folders)[4])
    assert content["state_dict"][ORIGIN].shape != origin.shape
    content["state_dict"][ORIGIN] = origin
    source = tmp_path / "from.ckpt"
    if form == "file":
        torch.save(content, source)
    else:
        as_folder(content, source)
    train_sharded(tmp_path, records, epochs=2, options=("--ckpt_path", source))
    expected, found = losses(folders), losses(tmp_path)
    assert found == {at: expected[at] for at in found}
    last = load(steps_of(tmp_path)[max(steps_of(folders))])
    assert torch.equal(last["state_dict"][ORIGIN], origin)


@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_sharded_model_refuses_a_checkpoint_of_another_configuration_by_name(folders, records, tmp_path, form):
    source = steps_of(folders)[4]
    if form == "file":
        torch.save(read_checkpoint_file(source), source := tmp_path / "from.ckpt")
    with pytest.raises(AssertionError, match="checkpoint is of another configuration: num_transformer_layers"):
        train_sharded(tmp_path, records, {"num_transformer_layers": 2}, options=("--ckpt_path", source))


def test_a_folder_with_code_is_refused_before_it_is_read_whoever_names_it(folders, records, tmp_path):
    """By Lightning as well, for whom `last` is a name."""
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    shutil.copytree(steps_of(folders)[2], last)
    (last / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "sign")))
    path = write_config(
        tmp_path, records, model=WITHOUT_DROPOUT, module=MODULE, loader={"batch_size": 1},
        trainer={"max_epochs": 2, **sharded(folders=True)}, class_path=SHARDED_CLASS,
    )  # fmt: skip
    for name in ("last", last):
        status, said = finish(start("fit", "--config", path, "--ckpt_path", name))
        assert status == 2, said
        assert "holds more than tensors and plain values" in said
    assert not (tmp_path / "sign").exists()


RUNS: dict[str, dict[str, Any]] = {
    "one process": {},
    "DDP": {"trainer": DDP},
    "sharded": {"trainer": sharded(), "class_path": SHARDED_CLASS},
}
"""Of the same weights. Five records are shared by two processes as three and two, or as three and three."""


@pytest.fixture(scope="module")
def located(tmp_path_factory) -> Path:
    """Five records to validate, test and predict, whose intervals are in another order."""
    base = tmp_path_factory.mktemp("located")
    order = (3, 0, 4, 1, 2)
    for subset in ("valid", "test"):
        (base / "source" / subset).mkdir(parents=True)
        write_records(
            base / "source" / subset / "0.tfr",
            [
                dataclasses.replace(
                    synthetic_record(example_config(), seed), others={"interval": _tensor(np.array(number, np.int32))}
                )
                for seed, number in enumerate(order)
            ],
        )
    convert_tfrecord_to_hdf5(base / "source", base / "converted")
    (base / "intervals.bed").write_text("".join(f"chr{n}\t{100 * n}\t{100 * n + 512}\n" for n in range(len(order))))
    return base


def evaluate(folder: Path, located: Path, run: str, checkpoint: Path, command: str) -> Path:
    """Starts a command in a folder of its own, which it returns."""
    settings = RUNS[run]
    output = str(folder / "predicted.h5")
    writer = {"output": output, "intervals": str(located / "intervals.bed")}
    callbacks = [{"class_path": "torch_impl.predictions.PredictionWriter", "init_args": writer}]
    path = write_config(
        folder,
        located / "converted",
        model=WITHOUT_DROPOUT,
        module=MODULE,
        # A loss is the mean over the masked bins of a batch, of which two processes have others than one.
        loader={"batch_size": 2 if command == "predict" else 1},
        trainer={**settings.get("trainer", {}), **({"callbacks": callbacks} if command == "predict" else {})},
        class_path=settings.get("class_path", "torch_impl.epibert_lightning.EpiBERTLightning"),
    )
    status, said = finish(start(command, "--config", path, "--ckpt_path", checkpoint))
    assert status == 0, said
    return folder


def predicted(folder: Path) -> dict[str, np.ndarray]:
    assert sorted(path.name for path in folder.iterdir() if path.name != "run") == ["config.yaml", "predicted.h5"]
    with h5py.File(folder / "predicted.h5") as file:
        return {name: file[name][()] for name in file}


@pytest.fixture(scope="module")
def one(joint, located, tmp_path_factory) -> Path:
    """Where one process has predicted, and validated and tested, with the weights of the joint run."""
    folder = tmp_path_factory.mktemp("one")
    for command in ("predict", "validate", "test"):
        evaluate(folder / command, located, "one process", steps_of(joint)[4], command)
    return folder


@pytest.mark.parametrize("run", ["DDP", "sharded"])
def test_two_processes_predict_as_one(one, joint, located, tmp_path, run):
    """Each record once, in the order of the records, with its own interval."""
    expected = predicted(one / "predict")
    found = predicted(evaluate(tmp_path, located, run, steps_of(joint)[4], "predict"))
    assert found["record"].tolist() == [0, 1, 2, 3, 4]
    assert [name.decode() for name in found["chromosome"]] == ["chr3", "chr0", "chr4", "chr1", "chr2"]
    assert len(np.unique(found["atac"].mean(axis=1))) == 5  # no two are alike
    assert found.keys() == expected.keys()
    assert_same(found["atac"], expected["atac"], "copy_float32")
    for name in expected.keys() - {"atac"}:
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("command", ["validate", "test"])
@pytest.mark.parametrize("run", ["DDP", "sharded"])
def test_two_processes_evaluate_as_one(one, joint, located, tmp_path, run, command):
    evaluate(tmp_path, located, run, steps_of(joint)[4], command)
    ((names, expected), (same, found)) = (
        [line.split(",") for line in (folder / "run" / "metrics.csv").read_text().splitlines()]
        for folder in (one / command, tmp_path)
    )
    assert same == names
    stage = {"validate": "val"}.get(command, command)
    assert {f"{stage}_{what}" for what in ("loss", "pearson", "r2")} <= set(names)
    for name, value, port in zip(names, expected, found, strict=True):
        row = "correlation" if name.endswith("pearson") else "float64"
        assert_same(number(port), number(value), row, what=name)


def test_one_process_predicts_from_the_folder_of_a_sharded_run(folders, located, tmp_path):
    last = steps_of(folders)[max(steps_of(folders))]
    one, two = (
        predicted(evaluate(tmp_path / run, located, run, last, "predict")) for run in ("one process", "sharded")
    )
    assert_same(two["atac"], one["atac"], "copy_float32")
    assert one["record"].tolist() == two["record"].tolist() == [0, 1, 2, 3, 4]

"""Streams of records as the original's fine-tuning takes them, two validation sets, and records without targets."""

import csv
import dataclasses
from pathlib import Path
from typing import Any

import h5py
import lightning
import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from tests.assertions import assert_same
from tests.records import synthetic_records
from tests.unit.torch_impl.training import DATA, MODEL, finish, quiet, start, write_config
from torch_impl import EpiBERTConfig
from torch_impl.data.convert import convert_tfrecord_to_hdf5
from torch_impl.data.examples import ExampleConfig
from torch_impl.data.records import DataError
from torch_impl.data.tfrecord import write_records
from torch_impl.early_stopping import EpiBERTEarlyStopping
from torch_impl.finetuning_data import FinetuningDataModule, Stream, StreamSampler
from torch_impl.predictions import PredictionWriter
from torch_impl.rampage_lightning import EpiBERTRampageLightning

pytestmark = quiet
CONFIG = ExampleConfig(**DATA, finetuning=True)
SIZES = (3, 1, 4)
RECORDS = {"train": (4, 3), "valid": (5,), "test": (3,)}


def positions(sampler: StreamSampler, *epochs: int) -> list[list[tuple[int, int]]]:
    found = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        found.append(list(sampler))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Records for training and validation, others of held-out cell types, and records to predict without targets."""
    base = tmp_path_factory.mktemp("finetuning")
    for part, subsets in (("data", RECORDS), ("holdout", {"valid": (4,)})):
        for subset, sizes in subsets.items():
            (base / part / subset).mkdir(parents=True)
            for number, size in enumerate(sizes):
                records = synthetic_records(CONFIG, size, seed=100 * number + len(subset) + len(part))
                if subset == "test":
                    bare = dict.fromkeys(("rna", "tss_tokens", "processed_gene_token", "cell_encoding"))
                    records = [dataclasses.replace(record, **bare) for record in records]
                write_records(base / part / subset / f"{number}.tfr", records)
        convert_tfrecord_to_hdf5(base / part, base / f"{part}_converted")
    return base


def data(folder: Path, **options: Any) -> FinetuningDataModule:
    return FinetuningDataModule(folder / "data_converted", CONFIG, **options)


# --- streams ---------------------------------------------------------------------------------------------------------


def test_an_epoch_goes_on_where_the_last_one_ended():
    sampler = StreamSampler(SIZES, order="stored", stream=Stream(length=6))
    assert len(sampler) == 6
    first, second, third = positions(sampler, 0, 1, 2)
    assert first == [(0, number) for number in range(6)]
    assert second == [(0, 6), (0, 7), (1, 0), (1, 1), (1, 2), (1, 3)]
    assert third == [(1, 4), (1, 5), (1, 6), (1, 7), (2, 0), (2, 1)]


@pytest.mark.parametrize("order", ["records", "files"])
@pytest.mark.parametrize("processes", [1, 2])
def test_every_pass_has_every_record_once_in_an_order_of_its_own(order, processes):
    whole: list[tuple[int, int]] = []
    for rank in range(processes):
        options: dict[str, Any] = {"order": order, "seed": 3, "rank": rank, "processes": processes}
        share = len(StreamSampler(SIZES, stream=Stream(length=1), **options).share(rank, 0))
        sampler = StreamSampler(SIZES, stream=Stream(length=share), **options)
        whole += [position for epoch in positions(sampler, 0, 1, 2) for position in epoch]
    for number in range(3):
        assert sorted(record for pass_, record in whole if pass_ == number) == list(range(8))
    if processes == 1 and order == "records":
        orders = [[record for pass_, record in whole if pass_ == number] for number in range(3)]
        assert orders[0] != orders[1] != orders[2]


def test_records_that_have_come_as_often_as_they_may_are_an_error():
    sampler = StreamSampler(SIZES, order="stored", stream=Stream(length=10, passes=3))
    assert [len(found) for found in positions(sampler, 0, 1)] == [10, 10]
    sampler.set_epoch(2)
    found = []
    with pytest.raises(DataError, match="have come 3 times"):
        found.extend(sampler)
    iterator = iter(sampler)
    assert [next(iterator) for _ in range(4)] == [(2, 4), (2, 5), (2, 6), (2, 7)]


def test_only_the_first_records_and_only_in_every_second_epoch():
    sampler = StreamSampler(SIZES, order="stored", stream=Stream(length=4, take=3, every=2))
    found = positions(sampler, 0, 1, 2, 3, 4)
    assert [len(epoch) for epoch in found] == [4, 0, 4, 0, 4]
    assert found[0] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert found[2] == [(1, 1), (1, 2), (2, 0), (2, 1)]
    # Without new draws the stream goes on as well, and a record that comes again is drawn as the first time.
    same = StreamSampler(SIZES, order="stored", changing=False, stream=Stream(length=4, take=3, every=2))
    expected = [[(0, record) for _, record in epoch] for epoch in found]
    assert positions(same, 0, 1, 2, 3, 4) == expected


def test_without_a_length_an_epoch_is_every_record_once():
    sampler = StreamSampler(SIZES, order="stored", stream=Stream(take=5, every=2))
    assert len(sampler) == 5
    assert positions(sampler, 0, 1, 2) == [[(0, n) for n in range(5)], [], [(2, n) for n in range(5)]]


def test_what_cannot_be_a_stream_is_refused(folder):
    with pytest.raises(ValueError, match="needs a record for every process"):
        StreamSampler(SIZES, order="stored", rank=1, processes=2, stream=Stream(length=2, take=1))
    with pytest.raises(ValueError, match="valid_every must be at least 1, not 0"):
        data(folder, valid_every=0)
    with pytest.raises(ValueError, match=r"train_examples must be below 2\^31"):
        data(folder, train_examples=2**64)
    with pytest.raises(ValueError, match="train_passes counts what train_examples takes"):
        data(folder, train_passes=3)
    with pytest.raises(DataError, match="3 examples do not fill a step of 4"):
        data(folder, valid_examples=3, batch_size=4).val_dataloader()
    with pytest.raises(DataError, match="valid_take: 3 records do not fill a step of 4"):
        data(folder, valid_take=3, batch_size=4).val_dataloader()


@pytest.mark.parametrize("given", [0, 1, 2])
def test_a_loader_goes_on_within_an_epoch_of_a_stream(folder, given):
    def loader() -> Any:
        made: Any = data(folder, train_examples=8, batch_size=4).train_dataloader()
        made.sampler.set_epoch(2)
        return made

    whole, interrupted, resumed = list(loader()), loader(), data(folder, train_examples=8, batch_size=4)
    assert len(whole) == 3  # one step more than the examples fill
    iterator = iter(interrupted)
    for _ in range(given):
        next(iterator)
    state = interrupted.state_dict()
    rest: Any = resumed.train_dataloader()
    rest.load_state_dict(state)
    for one, other in zip(list(rest), whole[given:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    if given:
        shorter: Any = data(folder, train_examples=4, batch_size=4).train_dataloader()
        with pytest.raises(DataError, match="cannot go on within an epoch with other data"):
            shorter.load_state_dict(state)


# --- in a Trainer ----------------------------------------------------------------------------------------------------


class Watched(EpiBERTRampageLightning):
    """Notes what is validated and what is logged."""

    def __init__(self) -> None:
        super().__init__(EpiBERTConfig(**MODEL), peak=1e-3, peak_rna=1e-3)
        self.validated: list[tuple[int, int]] = []
        self.logged: list[tuple[int, str]] = []

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self.validated.append((self.current_epoch, dataloader_idx))
        return super().validation_step(batch, batch_idx, dataloader_idx)

    def log(self, name: str, value: Any, **options: Any) -> None:
        self.logged.append((self.current_epoch, name))
        super().log(name, value, **options)


def trainer(*callbacks: Any, **options: Any) -> lightning.Trainer:
    quietly: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(
        accelerator="cpu", devices=1, callbacks=list(callbacks), enable_checkpointing=False, num_sanity_val_steps=0,
        **quietly, **options,
    )  # fmt: skip


def test_the_first_set_is_validated_in_even_epochs_and_the_second_in_all(folder):
    module = Watched()
    stopping = EpiBERTEarlyStopping(patience=50, every=2)
    made = data(
        folder, holdout_folder=folder / "holdout_converted", batch_size=2, train_examples=4, valid_examples=7,
        valid_every=2, holdout_examples=4, valid_take=4,
    )  # fmt: skip
    trainer(stopping, max_epochs=4).fit(module, datamodule=made)
    steps = {epoch: [which for at, which in module.validated if at == epoch] for epoch in range(4)}
    assert steps == {0: [0, 0, 0, 1, 1], 1: [1, 1], 2: [0, 0, 0, 1, 1], 3: [1, 1]}
    for epoch in range(4):
        names = {name for at, name in module.logged if at == epoch and name.startswith("val_")}
        assert {name for name in names if name.endswith("_ho")} == {
            f"val_{name}_ho" for name in ("loss", "loss_rna", "loss_atac", "rna_pearson", "rna_r2", "atac_pearson",
                                          "atac_r2", "cell_pearson", "gene_pearson")
        }  # fmt: skip
        assert ("val_loss" in names) == (epoch % 2 == 0)
    assert stopping.counting.epochs == 2
    # Three steps an epoch: one more than four examples fill.
    assert sum(name == "train_loss" for _, name in module.logged) == 4 * 3


def test_the_second_set_is_that_of_the_other_folder(folder):
    loaders: Any = data(folder, holdout_folder=folder / "holdout_converted").val_dataloader()
    parts = [loader.dataset.store.folder.relative_to(folder) for loader in loaders]
    assert parts == [Path("data_converted/valid"), Path("holdout_converted/valid")]
    assert [len(loader) for loader in loaders] == [5, 4]
    cut: Any = data(folder, valid_take=5, batch_size=2).val_dataloader()
    assert cut.sampler.share(0, 0).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("holdout", "records"), [(False, 5), (True, 4)])
def test_too_few_records_of_either_set_are_named_by_every_process(folder, monkeypatch, holdout, records):
    """A process without any would leave the others waiting for its share of their losses."""
    processes = 6 if not holdout else 5
    made = data(folder, holdout_folder=folder / "holdout_converted" if holdout else None)
    made.trainer = lightning.Trainer(accelerator="cpu", logger=False)
    monkeypatch.setattr(lightning.Trainer, "world_size", processes)
    for rank in (0, processes - 1):
        monkeypatch.setattr(lightning.Trainer, "global_rank", rank)
        with pytest.raises(DataError, match=f"{records} records cannot be shared by {processes} processes"):
            made.val_dataloader()


def test_validating_by_itself_validates_both_sets_whatever_the_epoch(folder):
    module = Watched()
    made = data(folder, holdout_folder=folder / "holdout_converted", batch_size=2, valid_every=2)
    (first, second) = trainer().validate(module, datamodule=made, verbose=False)
    assert {which for _, which in module.validated} == {0, 1}
    assert {"val_loss", "val_loss_ho"} <= first.keys() | second.keys()


def test_records_to_predict_need_no_targets(folder, tmp_path):
    torch.manual_seed(0)
    module = EpiBERTRampageLightning(EpiBERTConfig(**MODEL))
    out = tmp_path / "predicted.h5"
    made = data(folder, batch_size=2)
    trainer(PredictionWriter(str(out))).predict(module, datamodule=made, return_predictions=False)
    with h5py.File(out) as file:
        rows: dict[str, np.ndarray] = {name: file[name][()] for name in file}
    assert rows["record"].tolist() == [0, 1, 2]
    assert rows["rna"].shape == rows["atac"].shape == rows["target"].shape == (3, CONFIG.cropped_length)
    assert np.isfinite(rows["rna"]).all()
    batch: list[Tensor] = next(iter(made.predict_dataloader()))
    assert len(batch) == 6
    # To train or to validate on them they lack what is to be learned.
    for loader in (data(folder).test_dataloader(),):
        with pytest.raises(DataError, match="the record has no rna, which fine-tuning needs"):
            next(iter(loader))


# --- by the command --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_take_the_scripts_steps_and_report_as_one(folder, tmp_path):
    """A step of both is one of the epoch's; every number is that of both; early stopping counts all epochs."""
    path = write_config(
        tmp_path, folder / "data_converted", class_path="torch_impl.rampage_lightning.EpiBERTRampageLightning",
        loader={"config": {**DATA, "finetuning": True}},
        trainer={"max_epochs": 3, "devices": 2, "strategy": "ddp", "precision": "32-true"},
    )  # fmt: skip
    content = yaml.safe_load(path.read_text())
    del content["model"]["init_args"]["float64_metrics"]
    content["data"]["class_path"] = "torch_impl.finetuning_data.FinetuningDataModule"
    content["data"]["init_args"] |= {
        "holdout_folder": str(folder / "holdout_converted"), "train_examples": 9, "valid_examples": 5,
        "valid_every": 2, "holdout_examples": 4,
    }  # fmt: skip
    content["trainer"]["callbacks"].append(
        {
            "class_path": "torch_impl.early_stopping.EpiBERTEarlyStopping",
            "init_args": {"patience": 50, "every": 2},
        }
    )
    path.write_text(yaml.safe_dump(content))
    status, said = finish(start("fit", "--config", path))
    assert status == 0, said
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))

    def epochs(name: str) -> list[int]:
        return [int(row["epoch"]) for row in rows if row[name]]

    # Two examples in each of two processes: 1 + 9 // 4 steps.
    assert epochs("train_loss") == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert epochs("val_loss") == epochs("val_gene_pearson") == [0, 2]
    assert epochs("val_loss_ho") == epochs("val_rna_pearson_ho") == [0, 1, 2]
    assert epochs("train_rna_pearson") == epochs("train_loss_atac_epoch") == [0, 1, 2]
    steps = [float(row["train_loss"]) for row in rows if row["train_loss"]]
    means = [float(row["train_loss_epoch"]) for row in rows if row["train_loss_epoch"]]
    for epoch, mean in enumerate(means):
        assert_same(np.float32(mean), np.float32(np.mean(steps[3 * epoch : 3 * epoch + 3])), "float32_only")
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    (state,) = [value for name, value in saved["callbacks"].items() if name.startswith("EpiBERTEarlyStopping")]
    # Of the last step of epoch 2: the validation of epoch 0 was counted then, and again in epoch 1.
    assert (state["counting"]["epochs"], state["counting"]["counter"]) == (1, 2)

"""The data module: which examples, in which order, for which process, and again after an interruption."""

import dataclasses
import json
import math
import multiprocessing
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any

import jsonargparse
import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from tests.records import synthetic_records
from torch_impl.data.convert import convert_tfrecord_to_hdf5 as original
from torch_impl.data.draws import OwnDraws, TensorFlowDraws
from torch_impl.data.examples import ExampleConfig, make_example
from torch_impl.data.examples import one_hot as one_hot_array
from torch_impl.data.records import DataError
from torch_impl.data.tfrecord import write_records
from torch_impl.data_module import (
    EpiBERTDataModule,
    ExampleDataset,
    ExampleSampler,
    ResumableLoader,
    bundle,
    collate,
    convert_tfrecord_to_hdf5,
    one_hot,
)

CONFIG = ExampleConfig.tiny(num_motifs=8)
SIZES = (3, 1, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("records")
    for subset in ("train", "valid", "test"):
        (base / "source" / subset).mkdir(parents=True)
        for number, size in enumerate(SIZES):
            records = synthetic_records(CONFIG, size, seed=100 * number + len(subset))
            write_records(base / "source" / subset / f"{number}.tfr", records)
    convert_tfrecord_to_hdf5(base / "source", base / "target")
    return base / "target"


def dataset(folder, **changes) -> ExampleDataset:
    return ExampleDataset(folder / "train", dataclasses.replace(CONFIG, **changes), seed=7)


def assert_equal(one, other) -> None:
    for a, b in zip(one, other, strict=True):
        if a is None or b is None:
            assert a is b
        else:
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def numbers(sampler: ExampleSampler) -> list[int]:
    return [number for _, number in sampler]


# --- examples --------------------------------------------------------------------------------------------------------


def test_an_example_depends_on_seed_epoch_and_record_alone(folder):
    data = dataset(folder)
    assert_equal(data[(1, 5)], dataset(folder)[(1, 5)])
    data[(0, 2)]
    assert_equal(data[(1, 5)], dataset(folder)[(1, 5)])
    assert not np.array_equal(data[(1, 5)].atac, data[(2, 5)].atac)
    other = ExampleDataset(folder / "train", CONFIG, seed=8)
    assert not np.array_equal(data[(1, 5)].atac, other[(1, 5)].atac)
    assert_equal(data[5], data[(0, 5)])


def test_an_example_is_that_of_its_record_and_draws(folder):
    data = dataset(folder)
    record = data.store[4]
    drawn = data.draws.draw(record, CONFIG, epoch=3, index=4)
    assert_equal(data[(3, 4)], make_example(record, drawn, CONFIG))


def test_threads_make_the_examples_of_a_batch_at_the_same_time_and_one_reads(folder, monkeypatch):
    data, positions = dataset(folder), [(1, number) for number in (5, 0, 7, 5)]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = data.__getitems__(positions)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    together, reading = threading.Barrier(2, timeout=20), threading.Lock()
    draw, read = data.draws.draw, data.store.for_training

    def drawn(*arguments, **options):
        together.wait()
        return draw(*arguments, **options)

    def alone_read(number):
        assert reading.acquire(blocking=False)
        time.sleep(0.01)
        found = read(number)
        reading.release()
        return found

    monkeypatch.setattr(data.draws, "draw", drawn)
    monkeypatch.setattr(data.store, "for_training", alone_read)
    for one, other in zip(alone, data.__getitems__(positions), strict=True):
        assert_equal(one, other)


def test_draws_that_depend_on_the_order_are_made_in_it(folder, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    positions = [(0, number) for number in range(8)]
    data, names = dataset(folder), set()
    data.draws = TensorFlowDraws(5)
    draw = data.draws.draw
    monkeypatch.setattr(data.draws, "draw", lambda *a, **k: names.add(threading.get_ident()) or draw(*a, **k))
    found = data.__getitems__(positions)
    assert names == {threading.get_ident()}
    data.draws = TensorFlowDraws(5)
    for one, position in zip(found, positions, strict=True):
        assert_equal(one, data[position])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_load_what_the_process_itself_loads(folder, method):
    def batches(**options) -> list[list[Tensor]]:
        sampler = ExampleSampler(SIZES, order="records", seed=1)
        return list(ResumableLoader(dataset(folder), sampler, batch_size=3, **options))

    alone = batches(collate_fn=collate)
    context = multiprocessing.get_context(method)
    together = batches(num_workers=2, multiprocessing_context=context, collate_fn=bundle)
    for one, other in zip(alone, together, strict=True):
        assert_equal(one, other)


def test_a_batch_has_the_fields_of_its_examples_in_the_original_order(folder):
    examples = [dataset(folder)[index] for index in range(3)]
    batch = collate(examples)
    assert [tuple(tensor.shape[1:]) for tensor in batch] == [
        (8192,),
        (2048, 1),
        (60, 1),
        (60, 1),
        (60, 1),
        (1, 8),
    ]
    with pytest.raises(DataError, match="1 of 3 examples of a batch have no rna"):
        collate([*(each._replace(rna=each.target) for each in examples[:2]), examples[2]])


@pytest.mark.parametrize("finetuning", [False, True])
def test_a_bundle_is_one_piece_of_memory_with_the_fields_of_the_batch(finetuning):
    config = ExampleConfig.tiny(num_motifs=7, finetuning=finetuning, training=False)
    records = list(synthetic_records(config, 3))
    examples = [make_example(record, OwnDraws(0).draw(record, config), config) for record in records]
    found, expected = bundle(examples), collate(examples)
    assert len(expected) == (10 if finetuning else 6)
    assert [field.dtype for field in found.fields()] == [field.dtype for field in expected]
    assert_equal(found.fields(), expected)
    assert len({field.untyped_storage().data_ptr() for field in found.fields()}) == 1
    with pytest.raises(DataError, match="1 of 3 examples of a batch have no rna"):
        bundle([*(each._replace(rna=each.target) for each in examples[:2]), examples[2]._replace(rna=None)])


def test_one_hot_on_the_device_is_that_of_the_pipeline(folder):
    sequence = dataset(folder)[0].sequence
    np.testing.assert_array_equal(one_hot(torch.from_numpy(sequence[None]))[0].numpy(), one_hot_array(sequence))
    assert (sequence == 4).any()


def test_conversion_has_the_name_that_scripts_call():
    assert convert_tfrecord_to_hdf5 is original


# --- order -----------------------------------------------------------------------------------------------------------


def test_every_record_comes_once_in_an_epoch_and_epochs_differ():
    for order in ("records", "files", "stored"):
        sampler = ExampleSampler(SIZES, order=order, seed=3)
        assert sorted(numbers(sampler)) == list(range(8))
        first = numbers(sampler)
        assert numbers(sampler) == first
        sampler.set_epoch(1)
        assert [epoch for epoch, _ in sampler] == [1] * 8
        assert (numbers(sampler) == first) == (order == "stored")


def test_shuffled_files_keep_the_order_within_each():
    sampler = ExampleSampler(SIZES, order="files", seed=0)
    seen = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        found = numbers(sampler)
        for start, size in ((0, 3), (3, 1), (4, 4)):
            place = found.index(start)
            assert found[place : place + size] == list(range(start, start + size))
        seen.add(tuple(found))
    assert len(seen) == 6


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("order", ["records", "stored"])
def test_processes_share_the_records(order, processes):
    shares = [ExampleSampler(SIZES, order=order, rank=rank, processes=processes) for rank in range(processes)]
    assert sorted(number for share in shares for number in numbers(share)) == list(range(8))
    assert [len(share) for share in shares] == [len(numbers(share)) for share in shares]
    even = [ExampleSampler(SIZES, order=order, rank=r, processes=processes, even=True) for r in range(processes)]
    assert {len(numbers(share)) for share in even} == {-(-8 // processes)} == {len(share) for share in even}
    assert {number for share in even for number in numbers(share)} == set(range(8))
    # Without those that are repeated, each record is given out once.
    counted = [number for share in even for number in numbers(share)[: len(share) - share.repeated]]
    assert sorted(counted) == list(range(8))


def test_processes_share_the_files_when_files_are_shuffled():
    shares = [ExampleSampler(SIZES, order="files", rank=rank, processes=2) for rank in range(2)]
    assert [sorted(numbers(share)) for share in shares] == [[0, 1, 2, 4, 5, 6, 7], [3]]
    even = [ExampleSampler(SIZES, order="files", rank=rank, processes=2, even=True) for rank in range(2)]
    assert [len(numbers(share)) for share in even] == [7, 7] == [len(share) for share in even]
    assert numbers(even[1]) == [3] * 7
    with pytest.raises(ValueError, match="4 processes cannot share 3 files"):
        ExampleSampler(SIZES, order="files", processes=4)


def test_two_processes_of_a_trainer_see_every_record_of_every_epoch_once(folder, tmp_path):
    """A Trainer puts a sampler of its own in the place of any that is not one for several processes."""
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    found = subprocess.run(
        [sys.executable, str(script), str(folder), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for epoch in range(2):
        seen = [number for rank in ranks for number in rank[epoch]]
        assert sorted(seen) == list(range(8))
    assert ranks[0][0] != ranks[0][1]


TWO_PROCESSES = textwrap.dedent(
    """
    import json, sys
    from pathlib import Path

    import lightning
    import torch
    from torch_impl.data.examples import ExampleConfig
    from torch_impl.data_module import EpiBERTDataModule, ExampleDataset

    class Numbers(ExampleDataset):
        def __getitem__(self, position):
            example = super().__getitem__(position)
            # Where a batch can carry it.
            return example._replace(gene_token=torch.tensor(position[1]).numpy())

    class Data(EpiBERTDataModule):
        def _loader(self, *arguments, **options):
            loader = super()._loader(*arguments, **options)
            loader.dataset.__class__ = Numbers
            return loader

    class Seen(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.seen = [[], []]

        def training_step(self, batch, batch_idx):
            self.seen[self.current_epoch] += batch[-1].tolist()
            return self.weight.sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

        def on_train_end(self):
            Path(sys.argv[2], f"{self.global_rank}.json").write_text(json.dumps(self.seen))

    if __name__ == "__main__":
        trainer = lightning.Trainer(
            accelerator="cpu", devices=2, strategy="ddp_spawn", max_epochs=2, logger=False, limit_val_batches=0,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        )
        trainer.fit(Seen(), datamodule=Data(sys.argv[1], ExampleConfig.tiny(num_motifs=8), batch_size=2))
    """
)


def test_a_rank_beyond_the_processes_is_an_error():
    with pytest.raises(ValueError, match="rank must be from 0 to 1"):
        ExampleSampler(SIZES, order="stored", rank=2, processes=2)


@pytest.mark.parametrize("given", [0, 1, 2])
def test_a_loader_goes_on_where_another_was_interrupted(folder, given):
    def loader() -> ResumableLoader:
        sampler = ExampleSampler(SIZES, order="records", seed=1)
        sampler.set_epoch(4)
        return ResumableLoader(dataset(folder), sampler, batch_size=3, collate_fn=collate)

    whole = list(loader())
    assert len(whole) == 3
    interrupted = loader()
    iterator = iter(interrupted)
    for _ in range(given):
        next(iterator)
    state = interrupted.state_dict()
    resumed = ResumableLoader(
        dataset(folder), ExampleSampler(SIZES, order="records", seed=1), batch_size=3, collate_fn=collate
    )
    resumed.load_state_dict(state)
    rest = list(resumed)
    for one, other in zip(rest, whole[given:], strict=True):
        assert_equal(one, other)
    # The next epoch is whole again.
    assert len(list(resumed)) == 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 2}, "seed was 1, is 2$"),
        ({"order": "stored"}, "order was records, is stored$"),
        ({"processes": 2}, "processes was 1, is 2$"),
        ({"shard_sizes": (4, 1, 3)}, r"shard_sizes was \[3, 1, 4\], is \[4, 1, 3\]$"),
        ({"batch_size": 2}, "batch_size was 3, is 2$"),
        ({"drop_last": True}, "drop_last was False, is True$"),
        ({"max_shift": 3}, "config.max_shift was 4, is 3$"),
    ],
    ids=str,
)
def test_a_run_does_not_go_on_within_an_epoch_of_other_data(folder, change, named):
    def loader(shard_sizes=SIZES, batch_size=3, drop_last=False, max_shift=4, **options: Any) -> ResumableLoader:
        sampler = ExampleSampler(shard_sizes, **{"order": "records", "seed": 1, **options})
        return ResumableLoader(
            dataset(folder, max_shift=max_shift),
            sampler,
            batch_size=batch_size,
            drop_last=drop_last,
            collate_fn=collate,
        )

    begun = loader()
    between = begun.state_dict()
    next(iter(begun))
    other = loader(**change)
    with pytest.raises(DataError, match=f"cannot go on within an epoch with other data: {named}"):
        other.load_state_dict(begun.state_dict())
    other.load_state_dict(between)


# --- in Lightning ----------------------------------------------------------------------------------------------------


class Seen(lightning.LightningModule):
    """Notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.training_batches: list[list[Tensor]] = []
        self.validation_batches: list[list[Tensor]] = []
        self.stop_after = 0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.training_batches.append(batch)
        if self.stop_after and len(self.training_batches) == self.stop_after:
            self.trainer.should_stop = True
        return self.weight.sum()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.validation_batches.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(tmp_path, *, enable_checkpointing: bool = False, **options: Any) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
        enable_checkpointing=enable_checkpointing,
        **options,
    )


quiet = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*LeafSpec.*deprecated.*",
    "ignore:.*isinstance.treespec, LeafSpec.*",
)


@quiet
def test_a_trainer_gets_one_hot_sequences_rounded_inputs_and_new_draws_in_every_epoch(folder, tmp_path):
    module = Seen()
    trainer(tmp_path, max_epochs=2).fit(module, datamodule=EpiBERTDataModule(folder, CONFIG, batch_size=3))
    assert len(module.training_batches) == len(module.validation_batches) == 6
    sequence, atac, mask, *_, motifs = module.training_batches[0]
    assert sequence.shape == (3, 8192, 4)
    assert torch.equal(atac, atac.bfloat16().float())
    assert torch.equal(motifs, motifs.bfloat16().float())
    assert mask.dtype == torch.int32
    first, second = ([batch[1] for batch in module.training_batches[part]] for part in (slice(3), slice(3, 6)))
    assert not any(torch.equal(a, b) for a in first for b in second if a.shape == b.shape)
    # Validation is the same every time, unless asked to draw anew as the original does.
    for one, other in zip(module.validation_batches[:3], module.validation_batches[3:], strict=True):
        assert_equal(one, other)


@quiet
def test_validation_draws_anew_when_asked(folder, tmp_path):
    module = Seen()
    data = EpiBERTDataModule(folder, CONFIG, batch_size=8, fresh_validation_draws=True)
    trainer(tmp_path, max_epochs=2).fit(module, datamodule=data)
    assert not torch.equal(module.validation_batches[0][1], module.validation_batches[1][1])


@quiet
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_training_that_is_interrupted_within_an_epoch_sees_the_rest_of_it(folder, tmp_path):
    whole = Seen()
    trainer(tmp_path, max_epochs=2).fit(whole, datamodule=EpiBERTDataModule(folder, CONFIG, batch_size=2))
    saved = ModelCheckpoint(dirpath=tmp_path / "saved", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    interrupted = trainer(tmp_path, max_steps=6, enable_checkpointing=True, callbacks=[saved])
    interrupted.fit(Seen(), datamodule=EpiBERTDataModule(folder, CONFIG, batch_size=2))
    for step in (3, 5):
        resumed = Seen()
        goes_on = ModelCheckpoint(dirpath=tmp_path / "saved", every_n_train_steps=1, save_top_k=-1)
        trainer(tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=[goes_on]).fit(
            resumed,
            datamodule=EpiBERTDataModule(folder, CONFIG, batch_size=2),
            ckpt_path=tmp_path / "saved" / f"step={step}.ckpt",
        )
        for one, other in zip(resumed.training_batches, whole.training_batches[step:], strict=True):
            assert_equal(one, other)


def test_test_records_are_those_of_their_folder(folder):
    data = EpiBERTDataModule(folder, CONFIG)
    assert isinstance(data.test_dataloader(), DataLoader)
    assert data.test_dataloader().dataset.store.folder == folder / "test"  # type: ignore[attr-defined]


def test_means_and_deviations_belong_together(folder):
    with pytest.raises(ValueError, match="belong together"):
        EpiBERTDataModule(folder, CONFIG, motif_means=np.zeros(8))
    data = EpiBERTDataModule(
        folder, CONFIG, motif_means=np.zeros(8, np.float32), motif_deviations=np.ones(8, np.float32)
    )
    (batch, *_) = list(data.val_dataloader())
    assert batch[5].abs().max() > 1.1
    (batch, *_) = list(data.train_dataloader())
    assert batch[5].max() <= 1.1


def test_means_and_deviations_are_given_on_the_command_line(folder):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(EpiBERTDataModule, "data")
    means, deviations = [0.5 * number for number in range(8)], [2.0] * 8
    given = parser.parse_args(
        [f"--data.folder={folder}", "--data.config.num_motifs=8", f"--data.motif_means={means}",
         f"--data.motif_deviations={deviations}"]
    )  # fmt: skip
    made: Any = parser.instantiate(given)["data"]
    for table, expected in ((made.motif_means, means), (made.motif_deviations, deviations)):
        assert table.dtype == np.float32
        assert table.tolist() == expected
    listed, arrays = (
        EpiBERTDataModule(folder, CONFIG, motif_means=kind(means), motif_deviations=kind(deviations))
        for kind in (list, np.array)
    )
    for one, other in zip(listed.val_dataloader(), arrays.val_dataloader(), strict=True):
        assert_equal(one, other)
    with pytest.raises(ValueError, match=r"motif_deviations must be 8 numbers, not of shape \(7,\)"):
        EpiBERTDataModule(folder, CONFIG, motif_means=means, motif_deviations=deviations[1:])


def test_too_few_records_to_validate_are_named_by_every_process(folder, monkeypatch):
    """A process without any would leave the others waiting for its share of their losses."""
    data = EpiBERTDataModule(folder, CONFIG)
    data.trainer = lightning.Trainer(accelerator="cpu", logger=False)
    monkeypatch.setattr(lightning.Trainer, "world_size", 9)
    for rank in (0, 8):
        monkeypatch.setattr(lightning.Trainer, "global_rank", rank)
        for loader in (data.val_dataloader, data.test_dataloader):
            with pytest.raises(DataError, match="8 records cannot be shared by 9 processes"):
                loader()
    monkeypatch.setattr(lightning.Trainer, "world_size", 8)
    monkeypatch.setattr(lightning.Trainer, "global_rank", 7)
    assert len(data.val_dataloader()) == 1


def test_a_training_without_a_batch_is_refused(folder):
    with pytest.raises(DataError, match="drop_last leaves no batch of 9: a process has 8 records"):
        EpiBERTDataModule(folder, CONFIG, batch_size=9, drop_last=True).train_dataloader()
    with pytest.raises(ValueError, match=r"seed must be below 2\^64"):
        EpiBERTDataModule(folder, CONFIG, seed=2**64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 2**31}, "batch_size must be below 2.31"),
        ({"workers": 10**9}, "workers must be at most 1024, not 1000000000"),
        ({"predict_shift": -1}, "predict_shift must be at least 0"),
        ({"motif_means": [math.nan] * 8, "motif_deviations": [1] * 8}, "motif_means must be finite numbers$"),
        ({"motif_means": [1e39] * 8, "motif_deviations": [1] * 8}, "motif_means must be finite numbers$"),
        ({"motif_means": [1] * 8, "motif_deviations": [-1] * 8}, "motif_deviations must be finite numbers from 0 up"),
    ],
    ids=["batch", "workers", "shift", "not a number", "infinite in float32", "negative"],
)
def test_a_number_that_nobody_means_is_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        EpiBERTDataModule(folder, CONFIG, **options)

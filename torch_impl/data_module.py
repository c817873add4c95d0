"""Batches for training in PyTorch: converted records, drawn and augmented as the original does, in Lightning's form.

Source of the semantics: the specification of the original TensorFlow implementation (naumanjaved/EpiBERT, MIT), its
section 4.6. What is drawn for an example depends on the seed, the epoch and the number of its record alone: not on the
worker, the process, the batch it falls into, or on what was loaded before. A run that resumes sees what it would have
seen.

Letters in shapes: B batch, L base pairs, A accessibility values, N bins after the crop, M motifs.
"""

import dataclasses
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import lightning
import numpy as np
import torch
from jaxtyping import Float, UInt8
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, get_worker_info

from torch_impl.data.convert import convert_tfrecord_to_hdf5
from torch_impl.data.draws import DrawSource, InferenceDraws, OwnDraws
from torch_impl.data.examples import Example, ExampleConfig, check_count, make_example
from torch_impl.data.records import DataError
from torch_impl.data.store import Store

__all__ = [
    "Bundle",
    "EpiBERTDataModule",
    "ExampleDataset",
    "ExampleSampler",
    "ResumableLoader",
    "bundle",
    "collate",
    "convert_tfrecord_to_hdf5",
    "one_hot",
]

Order = Literal["records", "files", "stored"]
Position = tuple[int, int]
"""(epoch, number of the record)."""

TRAIN, VALID, TEST = "train", "valid", "test"
"""Subfolders of a dataset, named as the original's."""

MOST_WORKERS = 1024
"""Of one process: a slip of the keyboard is not to fill the machine with processes."""

_READING = threading.Lock()
"""Of the threads of a process one at a time reads: HDF5 is not for several."""


class ExampleDataset(Dataset[Example]):
    """Training examples of a folder of converted records; safe to fork and to spawn.

    Args:
        folder: Folder that ``convert_tfrecord_to_hdf5`` wrote.
        config: How examples are made.
        seed: Of the draws.
        motif_means: (M,) means for ``z_score``; None otherwise.
        motif_deviations: (M,) standard deviations for ``z_score``; None otherwise.

    Raises:
        DataError: The folder holds no converted records.
    """

    def __init__(
        self,
        folder: str | Path,
        config: ExampleConfig,
        *,
        seed: int,
        motif_means: np.ndarray | None = None,
        motif_deviations: np.ndarray | None = None,
    ) -> None:
        self.store = Store(folder)
        self.config = config
        self.draws: DrawSource = OwnDraws(seed)
        self._table = {"motif_means": motif_means, "motif_deviations": motif_deviations}

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, position: Position | int) -> Example:
        """The example of a record in an epoch; a bare number means epoch 0."""
        epoch, number = (0, position) if isinstance(position, int) else position
        with _READING:
            record = self.store.for_training(number)
        drawn = self.draws.draw(record, self.config, epoch=epoch, index=number)
        return make_example(record, drawn, self.config, **self._table)

    def __getitems__(self, positions: Sequence[Position]) -> list[Example]:
        """The examples of a batch, made by as many threads as PyTorch may use: one in a process that only loads."""
        threads = min(len(positions), torch.get_num_threads())
        if threads == 1 or not self.draws.any_order:
            return [self[position] for position in positions]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self.__getitem__, positions))


class ExampleSampler(DistributedSampler[Position]):
    """Which records one process sees, in which order.

    It is a ``DistributedSampler`` because a Trainer would put one of its own in the place of any other, and share out a
    share again.

    Args:
        shard_sizes: Number of records in each file.
        order: ``records`` shuffles all records of all files anew in every epoch, and processes share them. ``files``
            is the original's: processes share the files, their order changes, and the order within each is kept.
            ``stored`` shuffles nothing.
        seed: Of the order.
        rank: Number of this process.
        processes: How many share the records.
        even: Give every process as many positions, some twice where they do not divide: processes that train together
            must take as many steps. Otherwise each record is given out once.
        changing: Whether epochs differ; otherwise it is always epoch 0.

    Raises:
        ValueError: There is no such rank.
        DataError: There are fewer files than processes that are to share them.
    """

    def __init__(
        self,
        shard_sizes: Sequence[int],
        *,
        order: Order,
        seed: int = 0,
        rank: int = 0,
        processes: int = 1,
        even: bool = False,
        changing: bool = True,
    ) -> None:
        if not 0 <= rank < processes:
            raise ValueError(f"rank must be from 0 to {processes - 1}, not {rank}")
        if order == "files" and len(shard_sizes) < processes:
            raise DataError(f"{processes} processes cannot share {len(shard_sizes)} files (order: files)")
        self.shard_sizes = tuple(shard_sizes)
        super().__init__(range(sum(shard_sizes)), num_replicas=processes, rank=rank, seed=seed)  # type: ignore[arg-type]
        self.order: Order = order
        self.even = even
        self.changing = changing
        self.given = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, from its beginning unless it is the present one; a Trainer calls this before each."""
        if self.changing and epoch != self.epoch:
            self.epoch, self.given = epoch, 0

    def __len__(self) -> int:
        """Positions of a whole epoch."""
        shares = [len(self.share(rank, self.epoch)) for rank in range(self.num_replicas)]
        return max(shares) if self.even else shares[self.rank]

    @property
    def repeated(self) -> int:
        """How many of the last positions of a whole epoch are other processes' or given out before."""
        return len(self) - len(self._numbers(self.rank, self.epoch, even=False))

    def __iter__(self) -> Iterator[Position]:
        """The positions of the epoch after those that were given out."""
        numbers = self.share(self.rank, self.epoch)
        if self.even and len(numbers):
            numbers = np.resize(numbers, len(self))
        return iter([(self.epoch, int(number)) for number in numbers[self.given :]])

    def described(self) -> dict[str, Any]:
        """What else decides which positions an epoch has."""
        return {}

    def share(self, rank: int, epoch: int) -> np.ndarray:
        """Records of one process in an epoch, in their order."""
        return self._numbers(rank, epoch, even=self.even)

    def _numbers(self, rank: int, epoch: int, *, even: bool) -> np.ndarray:
        total, processes = sum(self.shard_sizes), self.num_replicas
        generator = np.random.default_rng((self.seed, epoch))
        if self.order == "files":
            starts = np.cumsum((0, *self.shard_sizes[:-1]))
            files = [np.arange(start, start + size) for start, size in zip(starts, self.shard_sizes, strict=True)]
            own = files[rank::processes]
            return np.concatenate([own[index] for index in generator.permutation(len(own))])
        numbers = np.arange(total) if self.order == "stored" else generator.permutation(total)
        # Who comes to the end begins again, so that all shares are of one length where they have to be.
        numbers = np.resize(numbers, -(-total // processes) * processes) if even and total else numbers
        return numbers[rank::processes]


class ResumableLoader(DataLoader[Example]):
    """A DataLoader that goes on within an epoch: Lightning keeps and restores its state with a checkpoint."""

    def __init__(self, dataset: ExampleDataset, sampler: ExampleSampler, **options: Any) -> None:
        super().__init__(dataset, sampler=sampler, **options)
        self._positions = sampler
        self._given = 0

    def __iter__(self) -> Iterator[Any]:
        self._given = self._positions.given
        for found in super().__iter__():
            batch = found.fields() if isinstance(found, Bundle) else found
            self._given += len(batch[0])
            yield batch
        self._positions.given = self._given = 0

    def _described(self) -> dict[str, Any]:
        """What a number of positions means something with."""
        positions, data = self._positions, cast(ExampleDataset, self.dataset)
        return {
            "shard_sizes": list(positions.shard_sizes),
            "order": positions.order,
            "seed": positions.seed,
            "processes": positions.num_replicas,
            # A Trainer counts batches, so that other batches would end the epoch elsewhere.
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
            **positions.described(),
            **{f"config.{name}": value for name, value in dataclasses.asdict(data.config).items()},
        }

    def state_dict(self) -> dict[str, Any]:
        """Epoch, how many of its positions were given out, and what they were positions of."""
        return {"epoch": self._positions.epoch, "given": self._given, "of": self._described()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state.

        Raises:
            DataError: The state is of the middle of an epoch of other records or batches, of another order or sharing
                of them, or of examples that are made otherwise.
        """
        began, now = state["of"], self._described()
        if state["given"] and began != now:
            different = [
                f"{name} was {began.get(name)}, is {now.get(name)}"
                for name in (began | now)
                if began.get(name) != now.get(name)
            ]
            raise DataError(f"a run cannot go on within an epoch with other data: {'; '.join(different)}")
        self._positions.epoch = state["epoch"]
        self._positions.given = state["given"] if state["given"] < len(self._positions) else 0


def collate(examples: Sequence[Example]) -> list[Tensor]:
    """Examples as one batch, in the order of the original's; fields that no example has are left out.

    Returns:
        Sequence (B, L) of base indices, which ``one_hot`` widens on the device; masked accessibility (B, A, 1); mask,
        unmask, target (B, N, 1 each); motif activity (B, 1, M); of fine-tuning also what ``Example`` lists.

    Raises:
        DataError: The examples do not have the same fields.
    """
    return [torch.from_numpy(np.stack(values)) for values in _columns(examples)]


class Bundle(NamedTuple):
    """A batch as one piece of memory: processes that load hand over one, which takes a fraction of the time of six.

    Attributes:
        data: uint8, all fields one after the other.
        forms: Type and shape of each.
    """

    data: Tensor
    forms: tuple[tuple[str, tuple[int, ...]], ...]

    def fields(self) -> list[Tensor]:
        """What ``collate`` makes of the same examples; views of the memory."""
        found, start = [], 0
        for name, shape in self.forms:
            dtype = getattr(torch, name)
            size = math.prod(shape) * dtype.itemsize
            found.append(self.data[start : start + size].view(dtype).view(tuple(shape)))
            start += _aligned(size)
        return found


def bundle(examples: Sequence[Example]) -> Bundle:
    """As ``collate``, in one piece, which is shared memory in a process that loads.

    Raises:
        DataError: As ``collate``.
    """
    columns = _columns(examples)
    forms = tuple((values[0].dtype.name, (len(values), *values[0].shape)) for values in columns)
    sizes = [_aligned(sum(value.nbytes for value in values)) for values in columns]
    # What would be copied to shared memory is written there, as PyTorch's own collation does.
    allocate = torch.UntypedStorage if get_worker_info() is None else torch.UntypedStorage._new_shared
    made = Bundle(torch.tensor([], dtype=torch.uint8).set_(allocate(sum(sizes))), forms)
    for values, field in zip(columns, made.fields(), strict=True):
        np.stack(values, out=field.numpy())
    return made


def _aligned(size: int) -> int:
    """Bytes that a field fills, so that the next one begins where numbers of its type may."""
    return -(-size // 64) * 64


def _columns(examples: Sequence[Example]) -> list[list[np.ndarray]]:
    """The values of each field that examples have."""
    columns = []
    for name, *values in zip(Example._fields, *examples, strict=True):
        missing = sum(value is None for value in values)
        if missing not in (0, len(values)):
            raise DataError(f"{missing} of {len(values)} examples of a batch have no {name}")
        if not missing:
            columns.append(values)
    return columns


def one_hot(sequence: UInt8[Tensor, "B L"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "B L 4"]:
    """A, C, G, T from base indices; an index of 4 or more is a zero row."""
    return (sequence.unsqueeze(-1) == torch.arange(4, dtype=torch.uint8, device=sequence.device)).to(dtype)


class EpiBERTDataModule(lightning.LightningDataModule):
    """Converted records for a Trainer: subfolders ``train``, ``valid`` and ``test`` of one folder.

    Each record is validated once, whatever the number of processes; but where they share one sharded model and have to
    take as many steps, some are validated twice if their number does not divide.

    Batches are as ``collate`` makes them, with the sequence widened to one-hot on the device. Accessibility and motif
    activity are rounded to bfloat16, as in the original, whatever the model computes in.

    Args:
        folder: Folder with the subfolders.
        config: How training examples are made; validation and test differ from it as the original's do.
        batch_size: Examples a process has in a batch.
        workers: Processes that load, for each that trains.
        seed: Of draws and order in training.
        validation_seed: Of draws in validation and test.
        order: Of the training records, as for ``ExampleSampler``.
        fresh_validation_draws: Draw anew in every validation, as the original does; otherwise every validation sees the
            same examples.
        bfloat16_inputs: Round accessibility and motif activity to bfloat16.
        drop_last: Leave out a last training batch that is not full; the original keeps it.
        motif_means: (M,) means, which make validation scale motif activity by ``z_score``, as the original's
            pre-training does. None: by ``min_max`` as in training, the right scaling for inference.
        motif_deviations: (M,) standard deviations that go with them.
        predict_subset: Subfolder whose records ``predict`` predicts, without noise and on the strand as stored.
        predict_shift: Characters by which their sequence windows are moved; the margin that their writer left.

    Raises:
        ValueError: Only one of means and deviations is given, they are not M numbers, or a number is out of range.
    """

    def __init__(
        self,
        folder: str | Path,
        config: ExampleConfig | None = None,
        *,
        batch_size: int = 1,
        workers: int = 0,
        seed: int = 42,
        validation_seed: int = 25,
        order: Order = "records",
        fresh_validation_draws: bool = False,
        bfloat16_inputs: bool = True,
        drop_last: bool = False,
        motif_means: Sequence[float] | np.ndarray | None = None,
        motif_deviations: Sequence[float] | np.ndarray | None = None,
        predict_subset: str = TEST,
        predict_shift: int = 2,
    ) -> None:
        super().__init__()
        if (motif_means is None) != (motif_deviations is None):
            raise ValueError("means and deviations of motif activity belong together")
        check_count("batch_size", batch_size)
        check_count("workers", workers, smallest=0)
        if workers > MOST_WORKERS:
            raise ValueError(f"workers must be at most {MOST_WORKERS}, not {workers}")
        check_count("predict_shift", predict_shift, smallest=0)
        for name, value in (("seed", seed), ("validation_seed", validation_seed)):
            if value < 0:
                raise ValueError(f"{name} must be at least 0, not {value}")
            if value >= 2**64:
                raise ValueError(f"{name} must be below 2^64, not {value}")
        self.folder = Path(folder)
        self.config = ExampleConfig.pretraining() if config is None else config
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed
        self.validation_seed = validation_seed
        self.order: Order = order
        self.fresh_validation_draws = fresh_validation_draws
        self.bfloat16_inputs = bfloat16_inputs
        self.drop_last = drop_last
        self.motif_means = self._motif_table("motif_means", motif_means)
        self.motif_deviations = self._motif_table("motif_deviations", motif_deviations)
        self.predict_subset = predict_subset
        self.predict_shift = predict_shift

    def _motif_table(self, name: str, values: Sequence[float] | np.ndarray | None) -> np.ndarray | None:
        """A list, as a command line or a file of settings gives it, or an array."""
        if values is None:
            return None
        with np.errstate(over="ignore"):
            table = np.asarray(values, np.float32)
        if table.shape != (self.config.num_motifs,):
            raise ValueError(f"{name} must be {self.config.num_motifs} numbers, not of shape {table.shape}")
        if not np.isfinite(table).all() or (name == "motif_deviations" and (table < 0).any()):
            raise ValueError(f"{name} must be finite numbers{' from 0 up' * (name == 'motif_deviations')}")
        return table

    def train_dataloader(self) -> ResumableLoader:
        return self._loader(TRAIN, dataclasses.replace(self.config, training=True), order=self.order)

    def val_dataloader(self) -> ResumableLoader:
        return self._evaluation_loader(VALID)

    def test_dataloader(self) -> ResumableLoader:
        return self._evaluation_loader(TEST)

    def predict_dataloader(self) -> DataLoader[Example]:
        # RNA and start sites are what a model for fine-tuning predicts: records to predict need not have them.
        config = dataclasses.replace(self._evaluation(), motif_scaling="min_max", finetuning=False)
        loader = self._loader(self.predict_subset, config, order="stored")
        loader.dataset.draws = InferenceDraws(self.validation_seed, self.predict_shift)  # type: ignore[attr-defined]
        # One that Lightning can make again, as it does to keep track of indices; there is nothing to resume.
        return DataLoader(
            loader.dataset,
            batch_size=self.batch_size,
            sampler=loader.sampler,
            num_workers=self.workers,
            collate_fn=collate,
            pin_memory=loader.pin_memory,
        )

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> list[Tensor]:
        """One-hot sequence, and inputs rounded as in the original."""
        sequence, atac, mask, unmask, target, motif_activity, *others = batch
        if self.bfloat16_inputs:
            atac, motif_activity = atac.bfloat16().float(), motif_activity.bfloat16().float()
        return [one_hot(sequence), atac, mask, unmask, target, motif_activity, *others]

    def _evaluation(self) -> ExampleConfig:
        scaling = "min_max" if self.motif_means is None else "z_score"
        return dataclasses.replace(self.config, training=False, motif_scaling=scaling)

    def _evaluation_loader(self, subset: str) -> ResumableLoader:
        return self._shared_by_all(self._loader(subset, self._evaluation(), order="stored"))

    @staticmethod
    def _shared_by_all(loader: ResumableLoader) -> ResumableLoader:
        """Insists that every process has a record of what is evaluated.

        Raises:
            DataError: There are fewer than processes.
        """
        sampler, data = cast(ExampleSampler, loader.sampler), cast(ExampleDataset, loader.dataset)
        records = sum(sampler.shard_sizes)
        if not sampler.even and records < sampler.num_replicas:
            # A process without any would not take part when the others add up their losses, and these would wait.
            raise DataError(
                f"{data.store.folder}: {records} records cannot be shared by {sampler.num_replicas} processes"
            )
        return loader

    def _loader(
        self,
        subset: str,
        config: ExampleConfig,
        *,
        order: Order,
        folder: Path | None = None,
        make_sampler: Callable[..., ExampleSampler] = ExampleSampler,
    ) -> ResumableLoader:
        """The records of a subfolder, of the data's own folder when None is given."""
        training = config.training
        table: dict[str, np.ndarray | None] = {}
        if config.motif_scaling == "z_score":
            table = {"motif_means": self.motif_means, "motif_deviations": self.motif_deviations}
        dataset = ExampleDataset(
            (folder or self.folder) / subset, config, seed=self.seed if training else self.validation_seed, **table
        )
        trainer = self.trainer
        sampler = make_sampler(
            dataset.store.shard_sizes,
            order=order,
            seed=self.seed,
            rank=0 if trainer is None else trainer.global_rank,
            processes=1 if trainer is None else trainer.world_size,
            even=training or _together(trainer),
            changing=training or self.fresh_validation_draws,
        )
        if training and self.drop_last and len(sampler) < self.batch_size:
            raise DataError(
                f"{dataset.store.folder}: drop_last leaves no batch of {self.batch_size}: a process has {len(sampler)} "
                "records"
            )
        return ResumableLoader(
            dataset,
            sampler,
            batch_size=self.batch_size,
            num_workers=self.workers,
            collate_fn=bundle if self.workers else collate,
            drop_last=training and self.drop_last,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def _together(trainer: lightning.Trainer | None) -> bool:
    """Whether all processes must make every forward pass together, because each holds a part of the model."""
    return trainer is not None and isinstance(trainer.strategy, ModelParallelStrategy | FSDPStrategy)

"""Data of fine-tuning as the original's script takes them: epochs of a fixed length, and two sets for validation.

Source of the semantics: the specification of the original TensorFlow implementation (naumanjaved/EpiBERT, MIT), its
sections 3.5, 4.6 and 7. There an epoch is a number of steps, and records come again and again: the next epoch begins
with the record after the last. Both validations read a stream of that kind.
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from torch_impl.data.examples import ExampleConfig, check_count
from torch_impl.data.records import DataError
from torch_impl.data_module import (
    TRAIN,
    VALID,
    EpiBERTDataModule,
    ExampleSampler,
    Order,
    Position,
    ResumableLoader,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """How much of a stream of records one process takes.

    Attributes:
        length: Positions in an epoch; None: each record once, so that nothing streams.
        take: The first so many records alone, over all processes; None: all.
        passes: How often the records come before there are no more; None: without end.
        every: Positions are taken in every so many epochs, the first among them, and none in the others.
    """

    length: int | None = None
    take: int | None = None
    passes: int | None = None
    every: int = 1


class StreamSampler(ExampleSampler):
    """Which records one process sees, where an epoch is a part of a stream and not a pass over all records.

    A position is (pass, number of the record): a record that comes again is drawn anew. Where epochs are not to differ,
    it is (0, number of the record), and drawn as before.

    Args:
        shard_sizes: As for ``ExampleSampler``, as are all other options.
        stream: What is taken.

    Raises:
        ValueError: As for ``ExampleSampler``; or an epoch of a fixed length has no record to take.
    """

    def __init__(self, shard_sizes: Any, *, stream: Stream, **options: Any) -> None:
        super().__init__(shard_sizes, **options)
        self.stream = stream
        self.due = True
        if stream.length is not None and not len(self.share(self.rank, 0)):
            raise ValueError("an epoch of a fixed length needs a record for every process")

    def set_epoch(self, epoch: int) -> None:
        """As ``ExampleSampler``; also settles whether this epoch has positions. A stream goes on in any case."""
        self.due = epoch % self.stream.every == 0
        if self.stream.length is None:
            super().set_epoch(epoch)
        elif epoch != self.epoch:
            self.epoch, self.given = epoch, 0

    def described(self) -> dict[str, Any]:
        """The stream."""
        return dataclasses.asdict(self.stream)

    def _numbers(self, rank: int, epoch: int, *, even: bool) -> np.ndarray:
        numbers = super()._numbers(rank, epoch, even=even)
        return numbers if self.stream.take is None else numbers[numbers < self.stream.take]

    @property
    def repeated(self) -> int:
        """As ``ExampleSampler``; in an epoch of a fixed length none comes for want of others."""
        return super().repeated if self.stream.length is None else 0

    def __len__(self) -> int:
        """Positions of an epoch that has some."""
        return super().__len__() if self.stream.length is None else self.stream.length

    def __iter__(self) -> Iterator[Position]:
        """The positions of the epoch after those that were given out.

        Raises:
            DataError: The records have come as often as they may.
        """
        if not self.due:
            return iter(())
        if self.stream.length is None:
            return super().__iter__()
        return self._streamed(self.stream.length)

    def _streamed(self, length: int) -> Iterator[Position]:
        start = self.epoch // self.stream.every * length
        records = self.share(self.rank, 0)
        current = -1
        for place in range(start + self.given, start + length):
            number, index = divmod(place, len(records))
            if number != current:
                if self.stream.passes is not None and number >= self.stream.passes:
                    raise DataError(
                        f"the records have come {self.stream.passes} times, and the settings say that they come no "
                        f"more: step {place - start} of the epoch has none"
                    )
                current, records = number, self.share(self.rank, number)
            yield number if self.changing else 0, int(records[index])


class FinetuningDataModule(EpiBERTDataModule):
    """As ``EpiBERTDataModule``, with a second set for validation and, if asked for, the script's streams.

    The first set is ``valid`` of the folder, examples at transcription start sites of the cell types that are trained
    on; the second is ``valid`` of another folder, of cell types that are held out.

    Args:
        folder: As for ``EpiBERTDataModule``, as are all options of its.
        config: As for ``EpiBERTDataModule``.
        holdout_folder: Folder whose subfolder ``valid`` is the second set; None: there is none.
        train_examples: Examples by which an epoch is measured: it takes one step more than they fill, over all
            processes, and the next goes on after it. None: an epoch is every record once.
        train_passes: How often the training records come before the run ends with an error; None: without end.
        valid_examples: Examples of a validation on the first set; those that do not fill a step are left out. The next
            goes on after them, whether or not there are fresh draws. None: every record once.
        valid_every: The first set is validated in every so many epochs, the first among them.
        holdout_examples: As ``valid_examples``, of the second set.
        valid_take: The first so many records of either set alone, less those that do not fill a step; None: all.
        valid_passes: As ``train_passes``, of either set.

    Raises:
        ValueError: As for ``EpiBERTDataModule``.
    """

    def __init__(
        self,
        folder: str | Path,
        config: ExampleConfig | None = None,
        *,
        holdout_folder: str | Path | None = None,
        train_examples: int | None = None,
        train_passes: int | None = None,
        valid_examples: int | None = None,
        valid_every: int = 1,
        holdout_examples: int | None = None,
        valid_take: int | None = None,
        valid_passes: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(folder, ExampleConfig.finetuning_preset() if config is None else config, **options)
        numbers = {
            "train_examples": train_examples,
            "train_passes": train_passes,
            "valid_examples": valid_examples,
            "valid_every": valid_every,
            "holdout_examples": holdout_examples,
            "valid_take": valid_take,
            "valid_passes": valid_passes,
        }
        for name, value in numbers.items():
            if value is not None:
                check_count(name, value)
        for passes, examples in (("train_passes", "train_examples"), ("valid_passes", "valid_examples")):
            if numbers[passes] is not None and numbers[examples] is None:
                raise ValueError(f"{passes} counts what {examples} takes, which is not given")
        self.holdout_folder = None if holdout_folder is None else Path(holdout_folder)
        self.train_examples = train_examples
        self.train_passes = train_passes
        self.valid_examples = valid_examples
        self.valid_every = valid_every
        self.holdout_examples = holdout_examples
        self.valid_take = valid_take
        self.valid_passes = valid_passes

    def train_dataloader(self) -> ResumableLoader:
        length = None
        if self.train_examples is not None:
            length = (1 + self.train_examples // self._global_batch) * self.batch_size
        stream = Stream(length=length, passes=self.train_passes)
        return self._streamed(TRAIN, dataclasses.replace(self.config, training=True), self.order, stream)

    def val_dataloader(self) -> ResumableLoader | list[ResumableLoader]:
        first = self._validation(self.valid_examples, every=self.valid_every)
        if self.holdout_folder is None:
            return first
        return [first, self._validation(self.holdout_examples, folder=self.holdout_folder)]

    def _validation(self, examples: int | None, *, folder: Path | None = None, every: int = 1) -> ResumableLoader:
        length = None if examples is None else examples // self._global_batch * self.batch_size
        if length == 0:
            raise DataError(f"{examples} examples do not fill a step of {self._global_batch}")
        take = None if self.valid_take is None else self.valid_take // self._global_batch * self._global_batch
        if take == 0:
            raise DataError(f"valid_take: {self.valid_take} records do not fill a step of {self._global_batch}")
        stream = Stream(length=length, take=take, passes=self.valid_passes, every=every)
        return self._shared_by_all(self._streamed(VALID, self._evaluation(), "stored", stream, folder))

    def _streamed(
        self, subset: str, config: ExampleConfig, order: Order, stream: Stream, folder: Path | None = None
    ) -> ResumableLoader:
        make_sampler = functools.partial(StreamSampler, stream=stream)
        return self._loader(subset, config, order=order, folder=folder, make_sampler=make_sampler)

    @property
    def _global_batch(self) -> int:
        """Examples in a step of all processes."""
        return self.batch_size * (1 if self.trainer is None else self.trainer.world_size)

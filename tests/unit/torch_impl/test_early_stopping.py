"""Early stopping as the original counts, alone and as a callback beside optimizer and schedule in a Trainer."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor, nn

from tests.assertions import assert_same
from torch_impl.checkpointing import TrainingError
from torch_impl.early_stopping import EarlyStoppingCounter, EpiBERTEarlyStopping
from torch_impl.losses import poisson
from torch_impl.optim import CosineWarmup, KerasAdam, cosine_warmup


@pytest.mark.parametrize(
    ("losses", "min_delta", "counters", "best_epochs"),
    [
        ([3.0, 2.0, 1.0], 0.0, [1, 0, 0], [None, 1, 2]),  # the first is compared with itself
        ([3.0, 3.0, 4.0, 2.0], 0.0, [1, 2, 3, 0], [None, None, None, 3]),
        ([3.0, 2.95, 2.85, 2.7], 0.1, [1, 2, 3, 0], [None, None, None, 3]),  # the best moves without an improvement
        ([3.0, 1.0, 2.0, 0.875, 0.5], 0.125, [1, 0, 1, 2, 0], [None, 1, 1, 1, 4]),  # exactly min_delta better is none
        ([3.0, math.nan, 2.0], 0.0, [1, 2, 0], [None, None, 2]),
        ([math.nan, 2.0, 3.0], 0.0, [1, 0, 1], [None, 1, 1]),
    ],
)
def test_counts(losses, min_delta, counters, best_epochs):
    counter = EarlyStoppingCounter(patience=3, min_delta=min_delta)
    for epoch, loss in enumerate(losses):
        stop = counter.update(loss)
        assert (counter.counter, counter.best_epoch) == (counters[epoch], best_epochs[epoch])
        assert stop == (counters[epoch] >= 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [((0,), "patience must be at least 1"), ((3, -1.0), "min_delta must be"), ((3, math.nan), "min_delta must be")],
    ids=str,
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(TrainingError, match=message):
        EarlyStoppingCounter(*options)


def test_a_patience_of_one_stops_after_the_first_epoch():
    assert EarlyStoppingCounter(patience=1).update(1.0)


def test_a_restored_counter_goes_on():
    losses = [3.0, 2.0, 2.0, 1.0, 1.5, 1.2]
    whole, first, second = (EarlyStoppingCounter(patience=5, min_delta=0.1) for _ in range(3))
    for loss in losses:
        whole.update(loss)
    for loss in losses[:3]:
        first.update(loss)
    second.load_state_dict(first.state_dict())
    for loss in losses[3:]:
        second.update(loss)
    expected = {"counter": 2, "best": 1.0, "best_epoch": 3, "epochs": 6, "improved": False, "last": 1.2}
    assert second.state_dict() == whole.state_dict() == expected


def test_an_epoch_without_validation_counts_the_last_one_again():
    """As the reference, which compares the last loss of an unchanged list with those before it."""
    losses, every = [3.0, 2.0, 2.5, 1.5, 1.75, 1.875], 2
    counter = EarlyStoppingCounter(patience=4)
    seen: list[float] = []
    expected, best_epoch = 0, None
    counters = []
    for epoch in range(every * len(losses)):
        if epoch % every == 0:
            seen.append(losses[epoch // every])
            stop = counter.update(seen[-1])
        else:
            stop = counter.repeat()
        wanted, expected, best_epoch = reference(seen, expected, best_epoch, patience=4)
        assert (stop, counter.counter, counter.best_epoch) == (wanted, expected, best_epoch)
        counters.append(counter.counter)
    # Twice for each that brings nothing, and never for an improvement.
    assert counters == [1, 2, 0, 0, 1, 2, 0, 0, 1, 2, 3, 4]


def reference(
    losses: list[float], counter: int, best_epoch: int | None, *, patience: int
) -> tuple[bool, int, int | None]:
    """What the original decides from the list of its losses (spec, section 3.5)."""
    best = min(losses[:-1]) if len(losses) > 1 else losses[-1]
    if losses[-1] >= best:
        return counter + 1 >= patience, counter + 1, best_epoch
    return False, 0, losses.index(min(losses))


class Scripted(lightning.LightningModule):
    """One weight with our optimizer, schedule and loss; its validation losses are given, None for no validation."""

    def __init__(self, losses: Sequence[float | None]) -> None:
        super().__init__()
        self.losses = losses
        self.weight = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.rates: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return poisson(batch, self.weight.expand_as(batch))

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        loss = self.losses[self.current_epoch]
        if loss is not None:
            self.log("val_loss", loss)

    def configure_optimizers(self) -> Any:
        optimizer = KerasAdam([self.weight], eps=1e-8, global_clipnorm=0.1)
        schedule = CosineWarmup(optimizer, 1e-2, 3, 10, 0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Batches(torch.utils.data.IterableDataset):
    """Two batches of counts an epoch."""

    def __iter__(self):
        return iter([torch.full((1, 4, 1), float(value), dtype=torch.float64) for value in (1, 3)])


def fit(
    folder: Path,
    losses: Sequence[float | None],
    stopping: EpiBERTEarlyStopping,
    epochs: int = 9,
    resume: Path | None = None,
) -> tuple[lightning.Trainer, Scripted]:
    module = Scripted(losses)
    data = torch.utils.data.DataLoader(Batches(), batch_size=None)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[stopping],
        enable_checkpointing=False,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, data, data, ckpt_path=resume)
    return trainer, module


# Lightning advises workers for its data loaders, which would be slower here, and calls what is deprecated elsewhere.
WARNINGS = [
    "ignore:The '.*_dataloader' does not have many workers:UserWarning",
    "ignore:.*GPU available but not used:UserWarning",
    "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",
]
in_lightning = pytest.mark.filterwarnings(*WARNINGS)


@in_lightning
def test_the_callback_stops_where_the_original_would(tmp_path):
    stopping = EpiBERTEarlyStopping(patience=3, min_delta=0.125)
    trainer, _ = fit(tmp_path, [3.0, 2.5, 2.4375, 2.40625, 2.375, 1.0], stopping)
    assert trainer.current_epoch == 5
    assert stopping.stopped_epoch == 4
    assert stopping.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED
    assert stopping.stopping_reason_message == "val_loss has not improved in 3 validations; the best was 2.375"
    assert (stopping.wait_count, float(stopping.best_score)) == (3, 2.375)


@in_lightning
def test_a_loss_that_is_not_finite_stops_at_once_unless_told_otherwise(tmp_path):
    losses = [3.0, math.nan, 2.0, 1.0]
    stopping = EpiBERTEarlyStopping(patience=3)
    assert fit(tmp_path, losses, stopping, epochs=4)[0].current_epoch == 2
    assert stopping.stopping_reason is EarlyStoppingReason.NON_FINITE_METRIC
    stopping = EpiBERTEarlyStopping(patience=3, check_finite=False)
    assert fit(tmp_path, losses, stopping, epochs=4)[0].current_epoch == 4
    assert stopping.counting.best_epoch == 3


@in_lightning
def test_optimizer_schedule_and_counter_train_and_resume_in_lightning(tmp_path):
    losses = [3.0, 2.0, 2.5, 2.625, 2.75]
    expected = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    optimizer = KerasAdam([expected], eps=1e-8, global_clipnorm=0.1)
    rates = [cosine_warmup(step, 1e-2, 3, 10, 0.1) for step in range(10)]
    for step, rate in enumerate(rates):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        poisson(torch.full((4,), 1.0 + 2 * (step % 2), dtype=torch.float64), expected.expand(4)).backward()
        optimizer.step()

    trainer, first = fit(tmp_path, losses, EpiBERTEarlyStopping(patience=4), epochs=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    stopping = EpiBERTEarlyStopping(patience=4)
    _, second = fit(tmp_path, losses, stopping, epochs=5, resume=tmp_path / "last.ckpt")
    assert first.rates + second.rates == rates
    assert_same(second.weight, expected, "exact")
    state = stopping.counting.state_dict()
    assert state == {"counter": 3, "best": 2.0, "best_epoch": 1, "epochs": 5, "improved": False, "last": 2.75}


@in_lightning
def test_the_callback_counts_epochs_without_the_monitored_loss_and_resumes_in_one(tmp_path):
    losses = [3.0, None, 2.0, None, 2.5, None, 2.5]
    whole = EpiBERTEarlyStopping(patience=4, every=2)
    trainer, _ = fit(tmp_path, losses, whole, epochs=7)
    assert (trainer.current_epoch, whole.counting.counter, whole.counting.best) == (7, 3, 2.0)
    interrupted, _ = fit(tmp_path, losses, EpiBERTEarlyStopping(patience=4, every=2), epochs=3)
    interrupted.save_checkpoint(tmp_path / "third.ckpt")
    resumed = EpiBERTEarlyStopping(patience=4, every=2)
    fit(tmp_path, losses, resumed, epochs=7, resume=tmp_path / "third.ckpt")
    assert resumed.counting.state_dict() == whole.counting.state_dict()
    impatient = EpiBERTEarlyStopping(patience=2, every=2)
    assert fit(tmp_path, losses, impatient)[0].current_epoch == 2
    with pytest.raises(ValueError, match="every must be at least 1"):
        EpiBERTEarlyStopping(every=0)

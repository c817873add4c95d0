"""The Trainer's precisions by name, each held against the original's recorded numbers: predictions, then training."""

from typing import Any

import h5py
import lightning
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from parity import Reading, Status
from parity.compare import compare
from parity.pairs.epibert import recorded_inputs
from parity.pairs.epibert_training.recorded_training import RECORDED_SCHEDULE, recorded_targets
from parity.pairs.epibert_training.tensors import tensor_pairs, zero_gradients
from parity.reference import read_goldens
from tests.unit.weights.samples import GOLDENS, arguments, prefix
from torch_impl import EpiBERTConfig
from torch_impl.epibert_lightning import EpiBERTLightning
from torch_impl.model import TanhGELU
from weights import transplant

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*deprecated.*", "ignore:.*have no `val_dataloader`.*"
)
CHECKPOINT = "P1/ckpt_before"
CHOICES = {
    "32-true": ("float32", {}),
    "bf16-mixed": ("bfloat16", {}),
    "faithful-bf16": ("bfloat16", {"faithful_bf16": True}),
}


def predicted(choice: str, inputs: list[Tensor]) -> Tensor:
    """What a Trainer predicts with the recorded checkpoint."""
    _, options = CHOICES[choice]
    module = EpiBERTLightning(EpiBERTConfig(**arguments(CHECKPOINT)), **options)
    transplant(prefix(CHECKPOINT), module.model, constants="tensorflow")
    trainer = lightning.Trainer(
        accelerator="cpu",
        precision="32-true" if options else choice,  # type: ignore[arg-type]
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    sequence, atac, motif_activity = inputs
    batch = [sequence, atac, *[atac] * 3, motif_activity]
    (found,) = trainer.predict(module, DataLoader([batch], batch_size=None)) or ()  # type: ignore[arg-type]
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("choice", CHOICES)
def test_no_precision_is_farther_from_float64_than_the_originals_may_be(tensorflow, monkeypatch, choice):
    recording = read_goldens(GOLDENS / "P1" / "forward.h5", name="recorded")
    inputs = [torch.from_numpy(array).float() for array in recorded_inputs(recording)]
    precision, _ = CHOICES[choice]

    def judge(found: Tensor) -> Status:
        return compare(
            found.detach().double().numpy(),
            recording.finals["float64", "eager"][0],
            reference_same_precision=recording.finals[precision, "eager"][0],
            gate="model",
            reading=Reading.ACCUMULATED,
            precision=precision,
            tolerance=precision,
            reference_path="",
            port_path="",
            layer="EpiBERT",
        ).status

    found = predicted(choice, inputs)
    assert judge(found) is Status.PASS
    # What a mistake in the model does is far outside.
    monkeypatch.setattr(TanhGELU, "forward", lambda _, x: nn.functional.silu(x))
    assert judge(predicted(choice, inputs)) is Status.FAIL


class Recorder(lightning.Callback):
    """Losses of all steps, and the gradients of the first before they are clipped."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradients: dict[str, np.ndarray] = {}

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if not self.gradients:
            self.gradients = {name: p.grad.double().numpy().copy() for name, p in pl_module.model.named_parameters()}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))


def trained(choice: str, *, other_bins: bool = False) -> Recorder:
    """Five steps of the recorded run by a Trainer; dropout is off in it."""
    _, options = CHOICES[choice]
    module = EpiBERTLightning(EpiBERTConfig(**arguments(CHECKPOINT)), **RECORDED_SCHEDULE, **options)
    transplant(prefix(CHECKPOINT), module.model, constants="philox")
    recorder = Recorder()
    trainer = lightning.Trainer(
        accelerator="cpu",
        precision="32-true" if options else choice,  # type: ignore[arg-type]
        max_steps=5,
        callbacks=[recorder],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    recording = read_goldens(GOLDENS / "P1" / "forward.h5", name="recorded")
    sequence, atac, motif_activity = (torch.from_numpy(array).float() for array in recorded_inputs(recording))
    targets = {name: torch.from_numpy(np.asarray(array)) for name, array in recorded_targets(recording).items()}
    masks = [targets["mask"], targets["unmask"]]
    batch = [sequence, atac, *masks[:: -1 if other_bins else 1], targets["target"].float(), motif_activity]
    trainer.fit(module, DataLoader([batch], batch_size=None))  # type: ignore[arg-type]
    return recorder


def recorded_run(mode: str) -> Any:
    """Gradients by name, where bfloat16's were recorded, and losses, of the original's own run."""
    with h5py.File(GOLDENS / "P1" / "train.h5") as file:
        run: Any = file[f"{mode}/poisson"]
        kept: Any = file["bf16/poisson/grad0"]
        gradients = {}
        for pair in pairs():
            gradient, place = run["grad0"][pair.reference], kept[pair.reference].attrs
            values = gradient[()].astype(np.float64)
            if "axis" in place and "axis" not in gradient.attrs:
                values = np.take(values, place["positions"], axis=int(place["axis"]))
            gradients[pair.port] = values
        return gradients, run["train_loss"][()]


def at_recorded_places(gradients: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The port's gradients in the original's layout, where the original's were recorded."""
    found = {}
    with h5py.File(GOLDENS / "P1" / "train.h5") as file:
        kept: Any = file["bf16/poisson/grad0"]
        for pair in pairs():
            place = kept[pair.reference].attrs
            shape = tuple(place["full_shape"]) if "axis" in place else kept[pair.reference].shape
            values = pair.to_reference(gradients[pair.port], shape)
            found[pair.port] = (
                np.take(values, place["positions"], axis=int(place["axis"])) if "axis" in place else values
            )
    return found


def pairs() -> list[Any]:
    """All parameters but those whose gradient is zero in exact arithmetic, which is noise in bfloat16."""
    config = EpiBERTConfig(**arguments(CHECKPOINT))
    zero = zero_gradients(config)
    return [pair for pair in tensor_pairs(config) if pair.trainable and pair.port not in zero]


def together(gradients: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([gradients[pair.port].ravel() for pair in pairs()])


@pytest.mark.parametrize("choice", CHOICES)
def test_no_precision_trains_farther_from_float64_than_the_original_does(choice):
    """Gradients of the first step as one array, and the losses of five steps.

    bfloat16 by its distance to the original's float64, in units of the original's own bfloat16 run. Of a run in float32
    there is no recording: it has a distance of its own.
    """
    precision, _ = CHOICES[choice]
    exact, exact_losses = recorded_run("f64")
    own, own_losses = recorded_run("bf16")

    def judge(found: np.ndarray, reference: np.ndarray, same: np.ndarray, row: str) -> Status:
        ratio = precision == "bfloat16"
        return compare(
            found,
            reference,
            reference_same_precision=same if ratio else None,
            gate="gradients",
            reading=Reading.ACCUMULATED,
            precision=precision,
            tolerance=row if ratio else "float32_only_accumulated",
            reference_path="",
            port_path="",
            layer="EpiBERT",
        ).status

    def judged(run: Recorder) -> tuple[Status, Status]:
        gradients = together(at_recorded_places(run.gradients))
        return (
            judge(gradients, together(exact), together(own), "gradient_bfloat16"),
            judge(np.array(run.losses), exact_losses, own_losses, "bfloat16"),
        )

    assert judged(trained(choice)) == (Status.PASS, Status.PASS)
    # A loss on other bins is another gradient.
    assert judged(trained(choice, other_bins=True)) == (Status.FAIL, Status.FAIL)

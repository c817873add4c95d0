"""The Trainer's precisions by name, each held against the original's recorded numbers."""

import lightning
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from parity import Reading, Status
from parity.compare import compare
from parity.pairs.epibert import recorded_inputs
from parity.reference import read_recording
from tests.unit.weights.samples import GOLDENS, arguments, prefix
from torch_impl import EpiBERTConfig
from torch_impl.epibert_lightning import EpiBERTLightning
from weights import transplant

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*LeafSpec.*deprecated.*")
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
    recording = read_recording(GOLDENS / "P1" / "forward.h5", name="recorded")
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
    monkeypatch.setattr(nn.functional, "gelu", lambda x, approximate: nn.functional.silu(x))
    assert judge(predicted(choice, inputs)) is Status.FAIL

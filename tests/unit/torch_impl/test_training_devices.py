"""Training by the Lightning module on every device: a GPU trains as the processor does, in each of the precisions."""

import functools
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.utils.data import DataLoader

from parity import Reading, Status
from parity.compare import compare
from tests.assertions import assert_all_same, assert_same
from tests.unit.torch_impl.surroundings import quiet
from torch_impl import EpiBERTConfig
from torch_impl.callbacks import FiniteTraining, ResumableTraining
from torch_impl.checkpointing import SafeCheckpointIO, read_checkpoint_file
from torch_impl.distributed import ShardedEpiBERTLightning
from torch_impl.epibert_lightning import EpiBERTLightning

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
ACCELERATORS = {"cpu": "cpu", "cuda": "gpu"}
STEPS = 4
# No dropout, because devices draw different numbers. Widths that tensor cores take, so that TF32 shows if it is used.
CONFIG = EpiBERTConfig(
    output_length=16,
    final_output_length=12,
    max_seq_length=16,
    num_heads=2,
    num_transformer_layers=2,
    filter_list_seq=(32, 64),
    filter_list_atac=(16,),
    num_motifs=8,
    motif_units_fc=16,
    dropout_rate=0.0,
    pointwise_dropout_rate=0.0,
    motif_dropout_rate=0.0,
)
CHOICES: dict[str, tuple[str, dict[str, Any]]] = {
    "float64": ("64-true", {"float64_metrics": True}),
    "float32": ("32-true", {}),
    "bf16-mixed": ("bf16-mixed", {}),
    "faithful-bf16": ("32-true", {"faithful_bf16": True}),
}
JUDGED = {
    "float32": ("float32", "float32", "gradient_float32"),
    "bf16-mixed": ("bfloat16", "bfloat16", "gradient_bfloat16"),
    "faithful-bf16": ("bfloat16", "bfloat16", "gradient_bfloat16"),
}
"""Choice -> precision, row for the prediction, row for all gradients together."""

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:FSDP2-wrapped module .* returned a view tensor.*",  # no activation is changed in place
        "ignore:.*using the device under current context.*",  # Lightning's barriers name no device
    ),
    quiet,
    pytest.mark.usefixtures("environment", "settings_of_float32"),
]


@pytest.fixture
def settings_of_float32():
    """Takes back what a module chooses for the whole process."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def batches() -> list[list[Tensor]]:
    """Two batches of two examples, in the order of the original's pipeline."""
    generator = torch.Generator().manual_seed(5)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(2, *shape, generator=generator)

    found = []
    for _ in range(2):
        letters = torch.randint(0, 4, (2, CONFIG.sequence_length), generator=generator)
        mask = (uniform(12, 1) < 0.5).int()
        found.append(
            [
                torch.nn.functional.one_hot(letters, 4).float(),
                5 * uniform(CONFIG.atac_length, 1),
                mask,
                1 - mask,
                5 * uniform(12, 1),
                uniform(1, CONFIG.num_motifs),
            ]
        )
    return found


class Recorder(Callback):
    """What a run computed, on the processor: the first step's gradients, before they are clipped, and all losses."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.gradients: dict[str, Tensor] = {}
        self.prediction: Tensor | None = None

    def on_after_backward(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not self.gradients:
            self.gradients = {
                name: _whole(p.grad).double() for name, p in pl_module.named_parameters() if p.grad is not None
            }

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].detach().cpu().double())

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.prediction is None:
            self.prediction = outputs.detach().cpu().double()


def _whole(tensor: Any) -> Tensor:
    """A copy on the processor, of all parts if it is sharded."""
    tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return tensor.detach().cpu().clone()


def fit(
    choice: str,
    device: str,
    folder: Path,
    *,
    strategy: Any = "auto",
    kind: type[EpiBERTLightning] = EpiBERTLightning,
    steps: int = STEPS,
    resumed: Path | None = None,
    **options: Any,
) -> Recorder:
    """A run from the same weights; the first prediction is made before the first step."""
    precision, changes = CHOICES[choice]
    torch.manual_seed(0)
    module = kind(CONFIG, peak=1e-2, warmup=2, decay=20, **changes, **options)
    if kind is not EpiBERTLightning:
        # Lightning's strategy for sharded models refuses the Trainer's "64-true".
        module, precision = module.double(), "32-true"
    recorder = Recorder()
    trainer = lightning.Trainer(
        accelerator=ACCELERATORS[device],
        devices=1,
        strategy=strategy,
        precision=precision,  # type: ignore[arg-type]
        max_steps=steps,
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            ResumableTraining(seed=0),
            FiniteTraining(),
            recorder,
            ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=1, save_top_k=-1, save_last=True),
        ],
        plugins=[SafeCheckpointIO()],
    )
    loader: Any = DataLoader(batches(), batch_size=None)  # type: ignore[arg-type]
    assert trainer.strategy.root_device.type == device
    trainer.fit(module, loader, loader, ckpt_path=resumed)
    return recorder


def weights(folder: Path, step: int = STEPS) -> dict[str, Tensor]:
    content = read_checkpoint_file(folder / f"step={step}.ckpt")
    assert content["global_step"] == step
    return {name: value for name, value in content["state_dict"].items() if torch.is_tensor(value)}


@pytest.fixture(scope="module")
def processor(tmp_path_factory) -> Any:
    """choice -> the run on the processor, and its folder."""

    @functools.cache
    def run(choice: str) -> tuple[Recorder, Path]:
        folder = tmp_path_factory.mktemp(choice)
        return fit(choice, "cpu", folder), folder

    return run


def together(gradients: dict[str, Tensor]) -> np.ndarray:
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)]).numpy()


def judge(port: Any, reference: Any, same_precision: Any, *, precision: str, row: str) -> Status:
    return compare(
        np.asarray(port), np.asarray(reference), reference_same_precision=np.asarray(same_precision), gate="test",
        reading=Reading.ACCUMULATED, precision=precision, tolerance=row, reference_path="", port_path="",
        layer="EpiBERT",
    ).status  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_in_float64_is_that_of_the_processor(processor, tmp_path, device):
    """Prediction, gradients, losses; then weights and statistics, as a checkpoint holds them."""
    expected, folder = processor("float64")
    found = fit("float64", device, tmp_path)
    assert_same(found.prediction, expected.prediction)
    assert_all_same(found.gradients, expected.gradients, "gradient_live")
    assert len(found.losses) == STEPS
    assert_same(torch.stack(found.losses), torch.stack(expected.losses), "state")
    assert_all_same(weights(tmp_path), weights(folder), "state")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("choice", JUDGED)
def test_no_precision_is_farther_from_float64_than_on_the_processor(processor, tmp_path, choice, device):
    exact, same = processor("float64")[0], processor(choice)[0]
    found = fit(choice, device, tmp_path)
    precision, row, row_of_gradients = JUDGED[choice]
    assert judge(found.prediction, exact.prediction, same.prediction, precision=precision, row=row) is Status.PASS
    gradients = (together(run.gradients) for run in (found, exact, same))
    assert judge(*gradients, precision=precision, row=row_of_gradients) is Status.PASS


@pytest.mark.parametrize("device", DEVICES)
def test_float32_is_float32_unless_tf32_is_asked_for(processor, tmp_path, device):
    torch.backends.cudnn.allow_tf32 = True  # PyTorch's default
    fit("float32", device, tmp_path, steps=1)
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (False, False)
    found = fit("float32", device, tmp_path / "tf32", steps=1, tf32=True)
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (True, True)
    exact, same = processor("float64")[0].prediction, processor("float32")[0].prediction
    # What TF32 does is far outside; a processor knows nothing of it.
    expected = Status.FAIL if device == "cuda" else Status.PASS
    assert judge(found.prediction, exact, same, precision="float32", row="float32") is expected


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_goes_on_on_the_processor(processor, tmp_path, device):
    """From a checkpoint of the middle of a run on any device."""
    fit("float64", device, tmp_path, steps=2)
    fit("float64", "cpu", tmp_path / "resumed", resumed=tmp_path / "step=2.ckpt")
    assert_all_same(weights(tmp_path / "resumed"), weights(processor("float64")[1]), "state")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_distributed_training_on_one_device_is_plain_training(processor, tmp_path, name, device):
    """NCCL on a GPU, gloo on a processor."""
    strategy: Any = DDPStrategy() if name == "ddp" else ModelParallelStrategy(1, 1, save_distributed_checkpoint=False)
    kind = EpiBERTLightning if name == "ddp" else ShardedEpiBERTLightning
    try:
        found = fit("float64", device, tmp_path, strategy=strategy, kind=kind)
        assert torch.distributed.get_backend() == ("nccl" if device == "cuda" else "gloo")
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    expected, folder = processor("float64")
    assert_same(torch.stack(found.losses), torch.stack(expected.losses), "state")
    assert_all_same(found.gradients, expected.gradients, "gradient_live")
    assert_all_same(weights(tmp_path), weights(folder), "state")


@pytest.mark.parametrize("device", DEVICES)
def test_blocks_that_are_computed_again_train_alike(processor, tmp_path, device):
    found = fit("float64", device, tmp_path, checkpoint_blocks=True)
    assert_all_same(found.gradients, processor("float64")[0].gradients, "gradient_live")
    assert_all_same(weights(tmp_path), weights(processor("float64")[1]), "state")

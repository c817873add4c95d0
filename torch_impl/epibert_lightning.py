"""Pre-training of EpiBERT in Lightning: model, loss, optimizer, learning rate and metrics wired together.

Source of the semantics: the specification of the original TensorFlow implementation (naumanjaved/EpiBERT, MIT), its
section 3. Nothing is computed here: each part stands in its own module.

Letters in shapes: B batch, L base pairs, A accessibility values, N bins after the crop, M motifs.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import lightning
import torch
from jaxtyping import Float
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from torch_impl.checkpointing import TrainingError, checkpoint_activations, differences
from torch_impl.config import EpiBERTConfig
from torch_impl.losses import POISSON, masked_loss
from torch_impl.metrics import R2, PearsonR
from torch_impl.model import EpiBERT
from torch_impl.optim import CosineWarmup, KerasAdam, KerasAdamW, decay_groups
from torch_impl.training_settings import (
    check_rounding,
    check_settings,
    choose_tf32,
    free_gradients,
    repeated_examples,
    save_memory,
)

Batch = Sequence[Tensor]
"""Sequence (B, L, 4), masked accessibility (B, A, 1), mask, unmask and target (B, N, 1 each), motif activity (B, 1, M):
the order of the original's pipeline. A loader makes it a tuple or a list."""


class EpiBERTLightning(lightning.LightningModule):
    """Pre-training step, validation step and optimizer of the original.

    Clipping is part of the optimizer, so the Trainer's own is to stay off. Defaults are those of the original's
    pre-training script (spec, section 3.6).

    Logged, over all processes: ``train_loss``; ``val_loss``, ``val_pearson`` and ``val_r2`` on the masked bins; in
    ``Trainer.test`` the same with ``test_``.

    Args:
        config: Of the model, or its fields as a mapping, which is what a checkpoint holds.
        loss_type: ``poisson`` or ``poisson_multinomial``.
        total_weight: Weight of the total count in ``poisson_multinomial``.
        unmask_loss: Add the loss on the bins that ``unmask`` selects.
        peak: Highest learning rate.
        warmup: Steps up to it.
        decay: Steps down from it.
        floor: Share of it that remains.
        constant_rate: Keep the highest learning rate after the warm-up.
        epsilon: Keras' epsilon of Adam.
        weight_decay: Of kernels alone, by AdamW; the original pre-trains without.
        global_clipnorm: Largest norm of all gradients together.
        faithful_bf16: Compute in bfloat16 with the rounding points of the original (Keras' ``mixed_bfloat16``), the
            Trainer's precision being 32. The Trainer's own ``bf16-mixed`` rounds elsewhere.
        checkpoint_blocks: Keep only the inputs of each block for the backward pass, for windows that do not fit.
        checkpoint_keeps_products: With ``checkpoint_blocks``, keep the results of convolutions and of most products as
            well: faster, for more memory. On a processor it saves little.
        float64_metrics: Sum up correlations in float64; the original does in float32.
        tf32: Let a GPU round the factors of float32 products and convolutions to 11 bits; holds for the whole process.

    Attributes:
        logged_names: What is logged in ``Trainer.fit``.
        model: The model that is trained.

    Raises:
        TrainingError: An option is out of range.
    """

    logged_names = ("train_loss", "val_loss", "val_pearson", "val_r2")

    def __init__(
        self,
        config: EpiBERTConfig | dict[str, Any],
        *,
        loss_type: Literal["poisson", "poisson_multinomial"] = POISSON,
        total_weight: float = 0.15,
        unmask_loss: bool = False,
        peak: float = 1e-4,
        warmup: int = 5000,
        decay: int = 500_000,
        floor: float = 0.1,
        constant_rate: bool = False,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        global_clipnorm: float | None = 1.0,
        faithful_bf16: bool = False,
        checkpoint_blocks: bool = False,
        checkpoint_keeps_products: bool = False,
        float64_metrics: bool = False,
        tf32: bool = False,
    ) -> None:
        super().__init__()
        # Plain values, because a checkpoint with anything else cannot be read without running code.
        self.save_hyperparameters(ignore=["config"])
        check_settings(self.hparams)
        config = EpiBERTConfig(**config) if isinstance(config, dict) else config
        self.save_hyperparameters({"config": dataclasses.asdict(config)})
        self.model = EpiBERT(config, compute_dtype=torch.bfloat16 if faithful_bf16 else None)
        if checkpoint_blocks:
            checkpoint_activations(self.model, keep_products=checkpoint_keeps_products)
        self.loss_type = loss_type
        self.total_weight = total_weight
        self.unmask_loss = unmask_loss
        self.peak = peak
        self.warmup = warmup
        self.decay = decay
        self.floor = floor
        self.constant_rate = constant_rate
        self.epsilon = epsilon
        self.weight_decay = weight_decay
        self.global_clipnorm = global_clipnorm
        self.faithful_bf16 = faithful_bf16
        self.tf32 = tf32
        state_dtype = torch.float64 if float64_metrics else torch.float32
        self.pearson = PearsonR(state_dtype=state_dtype)
        self.r2 = R2(state_dtype=state_dtype)

    def forward(
        self, sequence: Float[Tensor, "B L 4"], atac: Float[Tensor, "B A 1"], motif_activity: Float[Tensor, "B 1 M"]
    ) -> Float[Tensor, "B N 1"]:
        return self.model(sequence, atac, motif_activity)

    def setup(self, stage: str) -> None:
        """Chooses how float32 is computed, and insists that the data are of the model's lengths.

        Raises:
            TrainingError: They are not, or the Trainer would round as well where the model does.
        """
        check_rounding(self.faithful_bf16, self.trainer.precision)
        choose_tf32(self.tf32)
        save_memory(self.trainer)
        data = getattr(getattr(self.trainer, "datamodule", None), "config", None)
        check_lengths(self.model.config, data, finetuning=None if stage == "predict" else False)

    def loss(self, prediction: Float[Tensor, "B N 1"], batch: Batch) -> Float[Tensor, ""]:
        """The loss that is minimised: on the masked bins of the batch, pooled."""
        _, _, mask, unmask, target, _ = batch
        return masked_loss(
            target,
            prediction,
            mask,
            loss_type=self.loss_type,
            total_weight=self.total_weight,
            unmask=unmask if self.unmask_loss else None,
        )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        free_gradients(self)

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        sequence, atac, _, _, _, motif_activity = batch
        loss = self.loss(self(sequence, atac, motif_activity), batch)
        self.log("train_loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, "B N 1"]:
        return self._evaluate(batch, batch_idx, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, "B N 1"]:
        return self._evaluate(batch, batch_idx, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, "B N 1"]:
        sequence, atac, _, _, _, motif_activity, *_ = batch
        return self(sequence, atac, motif_activity)

    def on_validation_epoch_end(self) -> None:
        self._log_correlations("val")

    def on_test_epoch_end(self) -> None:
        self._log_correlations("test")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Insists that a checkpoint is one of this configuration.

        Raises:
            TrainingError: It is not; the message names what differs.
        """
        check_same_model(self.model.config, checkpoint)
        check_same_training(self, checkpoint)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        rates = {"lr": self.peak, "eps": self.epsilon, "global_clipnorm": self.global_clipnorm}
        if self.weight_decay:
            optimizer = KerasAdamW(decay_groups(self.model, self.weight_decay), **rates)
        else:
            optimizer = KerasAdam(self.model.parameters(), **rates)
        schedule = CosineWarmup(optimizer, self.peak, self.warmup, self.decay, self.floor, constant=self.constant_rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _evaluate(self, batch: Batch, batch_idx: int, stage: str) -> Float[Tensor, "B N 1"]:
        sequence, atac, _, _, _, motif_activity = batch
        prediction = self(sequence, atac, motif_activity)
        # Processes that share one sharded model see an example again where they must make as many steps as the others.
        loader = self._trainer and (self.trainer.test_dataloaders if stage == "test" else self.trainer.val_dataloaders)
        count = len(prediction) - repeated_examples(loader, batch_idx)
        _, _, mask, _, target, _ = kept = [values[:count] for values in batch]
        masked = mask == 1
        for metric in (self.pearson, self.r2):
            metric.update(prediction[:count][masked].reshape(1, -1, 1), target[masked].reshape(1, -1, 1))
        loss = self.loss(prediction[:count], kept) if count else prediction.new_zeros(())
        # Lightning averages the number of examples over the processes as a whole number, rounded down: of three, two
        # processes had one each. Of a multiple of their number nothing is rounded.
        weight = count * (self.trainer.world_size if self._trainer else 1)
        self.log(f"{stage}_loss", loss, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=weight)
        return prediction

    def _log_correlations(self, stage: str) -> None:
        # Each metric adds up the sums of all processes by itself; the largest of equal numbers is that number.
        for name, metric in ((f"{stage}_pearson", self.pearson), (f"{stage}_r2", self.r2)):
            self.log(name, metric.compute().squeeze(), prog_bar=True, sync_dist=True, reduce_fx="max")
            metric.reset()


SAVED_WITH_STATE = ("peak", "peak_rna", "warmup", "decay", "floor", "constant_rate", "epsilon", "weight_decay")
"""Settings that live on in the states of optimizer and schedule, where those of the checkpoint would count."""
OF_THE_STEP = ("loss_type", "total_weight", "unmask_loss", "atac_scale", "global_clipnorm")
"""Settings of loss and clipping, where those of the configuration would count from the step of the checkpoint on."""


def check_same_training(module: lightning.LightningModule, checkpoint: Mapping[str, Any]) -> None:
    """Insists that a run which goes on has the settings that it began with: others would be ignored, or change it.

    Raises:
        TrainingError: It has not; the message names what differs.
    """
    if module._trainer is None or module.trainer.state.fn != TrainerFn.FITTING:
        return
    saved = checkpoint.get("hyper_parameters", {})
    both = [name for name in (*SAVED_WITH_STATE, *OF_THE_STEP) if name in module.hparams and name in saved]
    found = differences({name: module.hparams[name] for name in both}, {name: saved[name] for name in both})
    if found:
        raise TrainingError("a run goes on with the settings that it began with: " + "; ".join(found))


def check_lengths(model: EpiBERTConfig, data: Any, *, finetuning: bool | None) -> None:
    """Insists that examples have the lengths of a model, and what it is trained on.

    Args:
        model: The model's configuration.
        data: The ``ExampleConfig`` of a data module; anything else is not looked at.
        finetuning: Whether they must have what fine-tuning needs, or must not; None where only inputs are needed.

    Raises:
        TrainingError: They have not.
    """
    if not hasattr(data, "output_length_ATAC"):
        return
    wanted = {
        "input_length": (model.sequence_length, data.input_length),
        "output_length_ATAC": (model.atac_length, data.output_length_ATAC),
        "output_length": (model.output_length, data.output_length),
        "crop_size": (model.crop, data.crop_size),
        "num_motifs": (model.num_motifs, data.num_motifs),
    }
    if finetuning is not None:
        wanted["finetuning"] = (finetuning, data.finetuning)
    wrong = [f"{name} is {of_data}, the model needs {of_model}" for name, (of_model, of_data) in wanted.items()
             if of_model != of_data]  # fmt: skip
    if wrong:
        raise TrainingError("the examples are not those of the model: " + "; ".join(wrong))


def check_same_model(config: EpiBERTConfig, checkpoint: Mapping[str, Any]) -> None:
    """Insists that a Lightning checkpoint is one of a model of this configuration.

    Raises:
        TrainingError: It is not; the message names what differs.
    """
    saved = checkpoint.get("hyper_parameters", {}).get("config")
    if saved is None:
        raise TrainingError("the checkpoint does not say of which configuration it is")
    found = differences(dataclasses.asdict(config), saved)
    if found:
        raise TrainingError("the checkpoint is of another configuration: " + "; ".join(found))

"""Pre-training of EpiBERT in Lightning: model, loss, optimizer, learning rate and metrics wired together.

Source of the semantics: the specification of the original TensorFlow implementation (naumanjaved/EpiBERT, MIT), its
section 3. Nothing is computed here: each part stands in its own module.

Letters in shapes: B batch, L base pairs, A accessibility values, N bins after the crop, M motifs.
"""

from collections.abc import Sequence

import lightning
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from torch_impl.config import EpiBERTConfig
from torch_impl.losses import POISSON, masked_loss
from torch_impl.metrics import R2, PearsonR
from torch_impl.model import EpiBERT
from torch_impl.optim import CosineWarmup, KerasAdam, KerasAdamW, decay_groups

Batch = Sequence[Tensor]
"""Sequence (B, L, 4), masked accessibility (B, A, 1), mask, unmask and target (B, N, 1 each), motif activity (B, 1, M):
the order of the original's pipeline. A loader makes it a tuple or a list."""


class EpiBERTLightning(lightning.LightningModule):
    """Pre-training step, validation step and optimizer of the original.

    Clipping is part of the optimizer, so the Trainer's own is to stay off. Defaults are those of the original's
    pre-training script (spec, section 3.6).

    Args:
        config: Of the model.
        loss_type: ``poisson`` or ``poisson_multinomial``.
        total_weight: Weight of the total count in ``poisson_multinomial``.
        unmask_loss: Add the loss on the bins that ``unmask`` selects.
        peak: Highest learning rate.
        warmup: Steps up to it.
        decay: Steps down from it.
        floor: Share of it that remains.
        epsilon: Keras' epsilon of Adam.
        weight_decay: Of kernels alone, by AdamW; the original pre-trains without.
        global_clipnorm: Largest norm of all gradients together.

    Attributes:
        model: The model that is trained.
    """

    def __init__(
        self,
        config: EpiBERTConfig,
        *,
        loss_type: str = POISSON,
        total_weight: float = 0.15,
        unmask_loss: bool = False,
        peak: float = 1e-4,
        warmup: int = 5000,
        decay: int = 500_000,
        floor: float = 0.1,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        global_clipnorm: float | None = 1.0,
    ) -> None:
        super().__init__()
        self.model = EpiBERT(config)
        self.loss_type = loss_type
        self.total_weight = total_weight
        self.unmask_loss = unmask_loss
        self.peak = peak
        self.warmup = warmup
        self.decay = decay
        self.floor = floor
        self.epsilon = epsilon
        self.weight_decay = weight_decay
        self.global_clipnorm = global_clipnorm
        self.pearson = PearsonR()
        self.r2 = R2()

    def forward(
        self, sequence: Float[Tensor, "B L 4"], atac: Float[Tensor, "B A 1"], motif_activity: Float[Tensor, "B 1 M"]
    ) -> Float[Tensor, "B N 1"]:
        return self.model(sequence, atac, motif_activity)

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

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        sequence, atac, _, _, _, motif_activity = batch
        loss = self.loss(self(sequence, atac, motif_activity), batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, "B N 1"]:
        sequence, atac, mask, _, target, motif_activity = batch
        prediction = self(sequence, atac, motif_activity)
        masked = mask == 1
        for metric in (self.pearson, self.r2):
            metric.update(prediction[masked].reshape(1, -1, 1), target[masked].reshape(1, -1, 1))
        self.log("val_loss", self.loss(prediction, batch), on_epoch=True)
        return prediction

    def on_validation_epoch_end(self) -> None:
        for name, metric in (("val_pearson", self.pearson), ("val_r2", self.r2)):
            self.log(name, metric.compute().squeeze())
            metric.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        rates = {"lr": self.peak, "eps": self.epsilon, "global_clipnorm": self.global_clipnorm}
        if self.weight_decay:
            optimizer = KerasAdamW(decay_groups(self.model, self.weight_decay), **rates)
        else:
            optimizer = KerasAdam(self.model.parameters(), **rates)
        schedule = CosineWarmup(optimizer, self.peak, self.warmup, self.decay, self.floor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

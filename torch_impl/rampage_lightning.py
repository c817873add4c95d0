"""Fine-tuning of EpiBERT in Lightning: model, losses, both optimizers, their schedules and the metrics wired together.

Source of the semantics: the specification of the original TensorFlow implementation (naumanjaved/EpiBERT, MIT), its
section 3. Nothing is computed here: each part stands in its own module.

Letters in shapes: B batch, L base pairs, A accessibility values, N bins after the crop, M motifs.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import lightning
import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from torch_impl.checkpointing import checkpoint_activations
from torch_impl.config import EpiBERTConfig
from torch_impl.epibert_lightning import check_lengths, check_same_model, check_same_training
from torch_impl.finetuning_metrics import FinetuningMetrics
from torch_impl.losses import POISSON, FinetuningLoss, finetuning_loss
from torch_impl.optim import CosineWarmup, JointOptimizer, KerasAdamW, decay_groups
from torch_impl.rampage import EpiBERTRampage, optimizer_parts
from torch_impl.training_settings import (
    check_counted_once,
    check_rounding,
    check_settings,
    choose_tf32,
    free_gradients,
    save_memory,
)

Batch = Sequence[Tensor]
"""Sequence (B, L, 4), masked accessibility (B, A, 1), mask, unmask and target (B, N, 1 each), motif activity (B, 1, M),
RNA (B, N, 1), and in validation also start sites (B, N, 1), gene and cell type (B,): the order of the original's
pipeline."""

TRAINING, VALIDATION, TEST = "train", "val", "test"
HOLDOUT = "_ho"
"""End of the names of what is logged of the second validation set, of cell types that were held out."""

Profile = Float[Tensor, "B N 1"]


class EpiBERTRampageLightning(lightning.LightningModule):
    """Fine-tuning step, validation step and the two optimizers of the original.

    Both optimizers are one to the Trainer. Clipping is part of them, so the Trainer's own is to stay off. Defaults are
    those of the original's fine-tuning script (spec, section 3.6).

    Logged, over all processes: ``train_loss``, ``train_loss_rna`` and ``train_loss_atac`` of each step, and after each
    epoch their means, ``train_loss_epoch`` and so on, with ``train_rna_pearson``, ``train_rna_r2`` and those of
    ``atac``; not of an epoch that was resumed in its middle, because checkpoints do not hold what came before. Of each
    validation ``val_loss``, ``val_rna_pearson`` and so on, with ``val_cell_pearson`` and ``val_gene_pearson`` where
    examples have start sites; of a second validation set the same with ``_ho``; in ``Trainer.test`` the same with
    ``test_``.

    Args:
        config: Of the model, or its fields as a mapping, which is what a checkpoint holds.
        loss_type: ``poisson`` or ``poisson_multinomial``, for both heads.
        total_weight: Weight of the total count in ``poisson_multinomial``.
        atac_scale: Weight of the ATAC loss.
        peak: Highest learning rate of trunk and ATAC head.
        peak_rna: Highest learning rate of the RNA head.
        warmup: Steps up to both.
        decay: Steps down from them.
        floor: Share of them that remains.
        constant_rate: Keep the highest learning rates after the warm-up.
        epsilon: Keras' epsilon of AdamW.
        weight_decay: Of kernels alone.
        global_clipnorm: Largest norm of the gradients of each optimizer.
        faithful_bf16: As for ``EpiBERTLightning``.
        checkpoint_blocks: As for ``EpiBERTLightning``.
        checkpoint_keeps_products: As for ``EpiBERTLightning``.
        tf32: As for ``EpiBERTLightning``.

    Attributes:
        model: The model that is trained.

    Raises:
        TrainingError: An option is out of range.
    """

    def __init__(
        self,
        config: EpiBERTConfig | dict[str, Any],
        *,
        loss_type: Literal["poisson", "poisson_multinomial"] = POISSON,
        total_weight: float = 0.15,
        atac_scale: float = 1e-3,
        peak: float = 5e-4,
        peak_rna: float = 5e-4,
        warmup: int = 5000,
        decay: int = 500_000,
        floor: float = 0.05,
        constant_rate: bool = False,
        epsilon: float = 1e-8,
        weight_decay: float = 1e-4,
        global_clipnorm: float | None = 0.05,
        faithful_bf16: bool = False,
        checkpoint_blocks: bool = False,
        checkpoint_keeps_products: bool = False,
        tf32: bool = False,
    ) -> None:
        super().__init__()
        # Plain values, because a checkpoint with anything else cannot be read without running code.
        self.save_hyperparameters(ignore=["config"])
        check_settings(self.hparams)
        config = EpiBERTConfig(**config) if isinstance(config, dict) else config
        self.save_hyperparameters({"config": dataclasses.asdict(config)})
        self.model = EpiBERTRampage(config, compute_dtype=torch.bfloat16 if faithful_bf16 else None)
        if checkpoint_blocks:
            checkpoint_activations(self.model, keep_products=checkpoint_keeps_products)
        self.loss_type = loss_type
        self.total_weight = total_weight
        self.atac_scale = atac_scale
        self.peak = peak
        self.peak_rna = peak_rna
        self.warmup = warmup
        self.decay = decay
        self.floor = floor
        self.constant_rate = constant_rate
        self.epsilon = epsilon
        self.weight_decay = weight_decay
        self.global_clipnorm = global_clipnorm
        self.faithful_bf16 = faithful_bf16
        self.tf32 = tf32
        self._first_step_seen = False
        stages = (TRAINING, VALIDATION, VALIDATION + HOLDOUT, TEST)
        # A module has an attribute `train` already.
        self.metrics: Any = nn.ModuleDict(
            {f"{s}_set": FinetuningMetrics(predict_atac=config.predict_atac, genes=s != TRAINING) for s in stages}
        )

    def forward(
        self, sequence: Float[Tensor, "B L 4"], atac: Float[Tensor, "B A 1"], motif_activity: Float[Tensor, "B 1 M"]
    ) -> tuple[Profile | None, Profile]:
        return self.model(sequence, atac, motif_activity)

    @property
    def logged_names(self) -> tuple[str, ...]:
        """What is logged in ``Trainer.fit``, those of a second validation set and of start sites among it."""
        heads = ("rna", "atac") if self.model.config.predict_atac else ("rna",)
        losses = ("loss", *(f"loss_{head}" for head in heads))
        correlations = tuple(f"{head}_{score}" for head in heads for score in ("pearson", "r2"))
        validated = (*losses, *correlations, "cell_pearson", "gene_pearson")
        return (
            *(f"{TRAINING}_{name}" for name in (*losses, *(f"{loss}_epoch" for loss in losses), *correlations)),
            *(f"{VALIDATION}_{name}{end}" for name in validated for end in ("", HOLDOUT)),
        )

    def setup(self, stage: str) -> None:
        """As ``EpiBERTLightning.setup``."""
        check_rounding(self.faithful_bf16, self.trainer.precision)
        choose_tf32(self.tf32)
        save_memory(self.trainer)
        data = getattr(getattr(self.trainer, "datamodule", None), "config", None)
        check_lengths(self.model.config, data, finetuning=None if stage == "predict" else True)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Insists that a checkpoint is one of this configuration.

        Raises:
            TrainingError: It is not; the message names what differs.
        """
        check_same_model(self.model.config, checkpoint)
        check_same_training(self, checkpoint)

    def loss(self, prediction: tuple[Profile | None, Profile], batch: Batch) -> FinetuningLoss:
        """The loss that is minimised, and those of the heads: RNA on all bins, ATAC on the masked ones, pooled."""
        atac, rna = prediction
        _, _, mask, _, target, _, rna_target, *_ = batch
        return finetuning_loss(
            rna_target,
            rna,
            target,
            atac,
            mask,
            loss_type=self.loss_type,
            total_weight=self.total_weight,
            atac_scale=self.atac_scale,
        )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        free_gradients(self)

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        self._first_step_seen |= batch_idx == 0
        prediction = self._predict(batch)
        loss = self.loss(prediction, batch)
        self.metrics[f"{TRAINING}_set"].update(loss, prediction, batch)
        self.log("train_loss", loss.total, prog_bar=True, sync_dist=True)
        self.log("train_loss_rna", loss.rna, sync_dist=True)
        if loss.atac is not None:
            self.log("train_loss_atac", loss.atac, sync_dist=True)
        return loss.total

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> tuple[Profile | None, Profile]:
        return self._evaluate(batch, VALIDATION if dataloader_idx == 0 else VALIDATION + HOLDOUT)

    def test_step(self, batch: Batch, batch_idx: int) -> tuple[Profile | None, Profile]:
        return self._evaluate(batch, TEST)

    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[Profile | None, Profile]:
        return self._predict(batch)

    def on_validation_start(self) -> None:
        check_counted_once(self.trainer.val_dataloaders)

    def on_test_start(self) -> None:
        check_counted_once(self.trainer.test_dataloaders)

    def on_train_epoch_end(self) -> None:
        if self._first_step_seen:
            self._report(TRAINING)
        else:
            self.metrics[f"{TRAINING}_set"].forget()
        self._first_step_seen = False

    def on_validation_epoch_end(self) -> None:
        self._report(VALIDATION)
        self._report(VALIDATION, HOLDOUT)

    def on_test_epoch_end(self) -> None:
        self._report(TEST)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = JointOptimizer(
            [
                KerasAdamW(
                    decay_groups(part, self.weight_decay),
                    lr=peak,
                    eps=self.epsilon,
                    weight_decay=self.weight_decay,
                    global_clipnorm=self.global_clipnorm,
                )
                for part, peak in zip(optimizer_parts(self.model), (self.peak, self.peak_rna), strict=True)
            ]
        )
        peaks = [group["lr"] for group in optimizer.param_groups]
        schedule = CosineWarmup(optimizer, peaks, self.warmup, self.decay, self.floor, constant=self.constant_rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _predict(self, batch: Batch) -> tuple[Profile | None, Profile]:
        sequence, atac, _, _, _, motif_activity, *_ = batch
        return self(sequence, atac, motif_activity)

    def _evaluate(self, batch: Batch, name: str) -> tuple[Profile | None, Profile]:
        """Predicts a batch and takes it into the metrics."""
        prediction = self._predict(batch)
        self.metrics[f"{name}_set"].update(self.loss(prediction, batch), prediction, batch)
        return prediction

    def _report(self, stage: str, end: str = "") -> None:
        """Logs what the metrics of a set say, if any process saw some of it."""
        metrics = self.metrics[f"{stage}{end}_set"]
        if not self._anywhere(metrics.seen):
            return
        for name, value in metrics.result(genes=self._anywhere(metrics.genes_seen)).items():
            # Losses of training have their name from its steps.
            suffix = "_epoch" if stage == TRAINING and name.startswith("loss") else end
            shown = "pearson" in name or "r2" in name or name == "loss"
            self.log(f"{stage}_{name}{suffix}", value, prog_bar=shown and stage != TRAINING and not end)

    def _anywhere(self, here: bool) -> bool:
        """Whether it is so in any process; all of them must ask."""
        return here if self._trainer is None else self.trainer.strategy.reduce_boolean_decision(here, all=False)

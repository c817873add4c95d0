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
from torch_impl.losses import POISSON, FinetuningLoss, finetuning_loss
from torch_impl.metrics import R2, GeneCellCorrelation, Mean, PearsonR
from torch_impl.optim import CosineWarmup, JointOptimizer, KerasAdamW, decay_groups
from torch_impl.rampage import EpiBERTRampage, optimizer_parts

Batch = Sequence[Tensor]
"""Sequence (B, L, 4), masked accessibility (B, A, 1), mask, unmask and target (B, N, 1 each), motif activity (B, 1, M),
RNA (B, N, 1), and in validation also start sites (B, N, 1), gene and cell type (B,): the order of the original's
pipeline."""

VALIDATION, TEST = "val", "test"
Profile = Float[Tensor, "B N 1"]


class EpiBERTRampageLightning(lightning.LightningModule):
    """Fine-tuning step, validation step and the two optimizers of the original.

    Both optimizers are one to the Trainer. Clipping is part of them, so the Trainer's own is to stay off. Defaults are
    those of the original's fine-tuning script (spec, section 3.6).

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
        epsilon: Keras' epsilon of AdamW.
        weight_decay: Of kernels alone.
        global_clipnorm: Largest norm of the gradients of each optimizer.
        faithful_bf16: As for ``EpiBERTLightning``.
        checkpoint_blocks: As for ``EpiBERTLightning``.

    Attributes:
        model: The model that is trained.
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
        epsilon: float = 1e-8,
        weight_decay: float = 1e-4,
        global_clipnorm: float | None = 0.05,
        faithful_bf16: bool = False,
        checkpoint_blocks: bool = False,
    ) -> None:
        super().__init__()
        # Plain values, because a checkpoint with anything else cannot be read without running code.
        self.save_hyperparameters(ignore=["config"])
        config = EpiBERTConfig(**config) if isinstance(config, dict) else config
        self.save_hyperparameters({"config": dataclasses.asdict(config)})
        self.model = EpiBERTRampage(config, compute_dtype=torch.bfloat16 if faithful_bf16 else None)
        if checkpoint_blocks:
            checkpoint_activations(self.model)
        self.loss_type = loss_type
        self.total_weight = total_weight
        self.atac_scale = atac_scale
        self.peak = peak
        self.peak_rna = peak_rna
        self.warmup = warmup
        self.decay = decay
        self.floor = floor
        self.epsilon = epsilon
        self.weight_decay = weight_decay
        self.global_clipnorm = global_clipnorm
        heads = ("rna", "atac") if config.predict_atac else ("rna",)
        self.mean_losses: Any = nn.ModuleDict({name: Mean() for name in ("total", *heads)})
        self.correlations: Any = nn.ModuleDict(
            {f"{head}_{name}": kind() for head in heads for name, kind in (("pearson", PearsonR), ("r2", R2))}
        )
        self.genes = GeneCellCorrelation()

    def forward(
        self, sequence: Float[Tensor, "B L 4"], atac: Float[Tensor, "B A 1"], motif_activity: Float[Tensor, "B 1 M"]
    ) -> tuple[Profile | None, Profile]:
        return self.model(sequence, atac, motif_activity)

    def setup(self, stage: str) -> None:
        """Insists that the data are of the model's lengths.

        Raises:
            TrainingError: They are not.
        """
        check_lengths(self.model.config, getattr(getattr(self.trainer, "datamodule", None), "config", None))

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

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        loss = self.loss(self._predict(batch), batch)
        self.log("train_loss", loss.total, prog_bar=True, sync_dist=True)
        self.log("train_loss_rna", loss.rna, sync_dist=True)
        if loss.atac is not None:
            self.log("train_loss_atac", loss.atac, sync_dist=True)
        return loss.total

    def validation_step(self, batch: Batch, batch_idx: int) -> tuple[Profile | None, Profile]:
        return self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> tuple[Profile | None, Profile]:
        return self._evaluate(batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[Profile | None, Profile]:
        return self._predict(batch)

    def on_validation_epoch_end(self) -> None:
        self._report(VALIDATION)

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
        schedule = CosineWarmup(optimizer, peaks, self.warmup, self.decay, self.floor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _predict(self, batch: Batch) -> tuple[Profile | None, Profile]:
        sequence, atac, _, _, _, motif_activity, *_ = batch
        return self(sequence, atac, motif_activity)

    def _evaluate(self, batch: Batch) -> tuple[Profile | None, Profile]:
        """Predicts a batch and takes it into the metrics."""
        prediction = atac, rna = self._predict(batch)
        _, _, mask, _, target, _, rna_target, *tokens = batch
        loss = self.loss(prediction, batch)
        for name, metric in self.mean_losses.items():
            metric.update(getattr(loss, name))
        masked = mask == 1
        for name, metric in self.correlations.items():
            if name.startswith("rna_"):
                metric.update(rna, rna_target)
            elif atac is not None:
                metric.update(atac[masked].reshape(1, -1, 1), target[masked].reshape(1, -1, 1))
        if tokens:
            self.genes.update(rna, rna_target, *tokens)
        return prediction

    def _report(self, stage: str) -> None:
        """Logs what the metrics say; every process asks all of them, because they synchronise."""
        for name, metric in self.mean_losses.items():
            whole = name == "total"
            self.log(f"{stage}_loss" if whole else f"{stage}_loss_{name}", metric.compute(), prog_bar=whole)
            metric.reset()
        for name, metric in self.correlations.items():
            self.log(f"{stage}_{name}", metric.compute().squeeze(), prog_bar=True)
            metric.reset()
        seen = self.genes.update_called
        if self._trainer is not None:
            seen = self.trainer.strategy.reduce_boolean_decision(seen, all=False)
        if seen:
            if not self.genes.update_called:
                self.genes.update(*_nothing(self.device))
            found = self.genes.compute()
            for name in ("cell_pearson", "gene_pearson"):
                self.log(f"{stage}_{name}", found[name])
            self.genes.reset()


def _nothing(device: torch.device) -> tuple[Any, ...]:
    """An update by no example, for a process that saw no start site where another did."""
    bins = torch.zeros(0, 1, 1, device=device)
    tokens = torch.zeros(0, dtype=torch.int64, device=device)
    return bins, bins, bins, tokens, tokens

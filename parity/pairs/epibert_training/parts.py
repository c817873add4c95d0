"""The losses, optimizers, schedule and metrics that train the port, with the original's settings."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from torch_impl import losses as port_losses
from torch_impl.metrics import R2, GeneCellCorrelation, PearsonR
from torch_impl.optim import KerasAdam, KerasAdamW, cosine_warmup, decay_groups
from torch_impl.rampage import optimizer_parts

ADAM_EPSILON = 1e-8
CLIP = 1.0
WEIGHT_DECAY = 1e-4
TOTAL_WEIGHT = 0.15
ATAC_SCALE = 0.10


@dataclasses.dataclass(frozen=True, kw_only=True)
class PortTraining:
    """The parts that train the port. Tests put faulty ones in their place.

    Attributes:
        poisson: Loss of a batch.
        poisson_multinomial: Loss of a batch.
        masked_loss: Loss on masked bins.
        finetuning_loss: Loss of the fine-tuning model's two heads.
        adam: From a module to its optimizers.
        adamw: The same with weight decay.
        schedule: Learning rate of a step.
        metrics: Streaming metrics by name.
        finetuning_optimizers: From the fine-tuning model, and ``adam`` or ``adamw``, to its two optimizers.
        gene_metric: Correlation across genes and cell types.
    """

    poisson: Callable[..., Any] = port_losses.poisson
    poisson_multinomial: Callable[..., Any] = port_losses.poisson_multinomial
    masked_loss: Callable[..., Any] = port_losses.masked_loss
    finetuning_loss: Callable[..., Any] = port_losses.finetuning_loss
    adam: Callable[[nn.Module], Sequence[torch.optim.Optimizer]] = lambda module: [
        KerasAdam(module.parameters(), eps=ADAM_EPSILON, global_clipnorm=CLIP)
    ]
    adamw: Callable[[nn.Module], Sequence[torch.optim.Optimizer]] = lambda module: [
        KerasAdamW(decay_groups(module, WEIGHT_DECAY), eps=ADAM_EPSILON, global_clipnorm=CLIP)
    ]
    schedule: Callable[..., float] = cosine_warmup
    metrics: Mapping[str, Callable[..., Any]] = dataclasses.field(
        default_factory=lambda: {"PearsonR": PearsonR, "R2": R2}
    )
    finetuning_optimizers: Callable[..., Sequence[torch.optim.Optimizer]] = lambda model, make: [
        made for part in optimizer_parts(model) for made in make(part)
    ]
    gene_metric: Callable[[], Any] = GeneCellCorrelation


PORT = PortTraining()

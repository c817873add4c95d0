"""Mistakes of training that no forward pass shows, as the convergence rung's hooks take them.

They are sent by name to the process that trains the port, so each is a function of a module, and this module is
imported there.
"""

import os
import types
from typing import Any

import torch
from torch import Tensor, nn

from torch_impl import EpiBERT
from torch_impl.epibert_lightning import EpiBERTLightning
from torch_impl.losses import poisson
from torch_impl.model import BatchNorm
from torch_impl.optim import CosineWarmup, cosine_warmup, decay_groups

# --- of the model ----------------------------------------------------------------------------------------------------


def torch_momentum(model: EpiBERT) -> None:
    """Keras' momentum 0.9 handed to PyTorch, where it is the weight of the new statistics."""
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.update_rate = module.momentum


def unbiased_variance(model: EpiBERT) -> None:
    """PyTorch's running variance: times n / (n - 1)."""

    def correct(module: nn.Module, arguments: tuple[Tensor, ...], _: object) -> None:
        if not module.training:
            return
        x = arguments[0]
        count = x.shape[0] * x.shape[1]
        variance: Any = module.running_var
        rate: Any = module.update_rate
        # What the step added, r · batch variance, lacks r · batch variance / (n - 1).
        with torch.no_grad():
            variance.add_(rate * x.var(dim=(0, 1), correction=0) / (count - 1))

    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.register_forward_hook(correct)


def _replace_dropout(model: EpiBERT, forward: Any) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.forward = types.MethodType(forward, module)


def _unscaled(module: Any, x: Tensor) -> Tensor:
    return x * (torch.rand_like(x) >= module.p) if module.training else x


def dropout_scale_missing(model: EpiBERT) -> None:
    """What is kept is not divided by the share that is kept."""
    _replace_dropout(model, _unscaled)


def _frozen(module: Any, x: Tensor) -> Tensor:
    if not module.training:
        return x
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) >= module.p
    return x * mask / (1 - module.p)


def same_mask_every_step(model: EpiBERT) -> None:
    """A generator that is seeded anew at every call."""
    _replace_dropout(model, _frozen)


def no_dropout(model: EpiBERT) -> None:
    """All rates zero."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def die(model: EpiBERT) -> None:
    """The process ends at once, as one that was killed for memory does."""
    os._exit(1)


# --- of loss, optimizer and schedule ---------------------------------------------------------------------------------


def _set_optimizer(module: EpiBERTLightning, make: Any) -> None:
    def configure(module: EpiBERTLightning) -> Any:
        optimizer = make(module)
        schedule = CosineWarmup(optimizer, module.peak, module.warmup, module.decay, module.floor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    module.configure_optimizers = types.MethodType(configure, module)


class _TorchAdamW(torch.optim.AdamW):
    """PyTorch's AdamW after PyTorch's clipping to a norm of one."""

    def __init__(self, groups: Any, *, clip_epsilon: float, epsilon: float) -> None:
        super().__init__(groups, eps=epsilon)
        self.clip_epsilon = clip_epsilon

    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        for gradient in gradients:
            gradient.mul_(torch.clamp(1 / (norm + self.clip_epsilon), max=1.0))
        super().step()
        return loss


def torch_adam_epsilon(module: EpiBERTLightning) -> None:
    """Epsilon added after the bias correction."""
    _set_optimizer(
        module, lambda m: _TorchAdamW(decay_groups(m.model, m.weight_decay), clip_epsilon=0.0, epsilon=m.epsilon)
    )


def clip_epsilon(module: EpiBERTLightning) -> None:
    """1e-6 added to the norm that gradients are divided by; Adam's epsilon is PyTorch's too."""
    _set_optimizer(
        module, lambda m: _TorchAdamW(decay_groups(m.model, m.weight_decay), clip_epsilon=1e-6, epsilon=m.epsilon)
    )


def _before_every_step(module: EpiBERTLightning, change: Any) -> None:
    original = module.configure_optimizers

    def configure(module: EpiBERTLightning) -> Any:
        configured: Any = original()
        configured["optimizer"].register_step_pre_hook(lambda optimizer, *_: change(module, optimizer))
        return configured

    module.configure_optimizers = types.MethodType(configure, module)


@torch.no_grad()
def _decay_biases(module: EpiBERTLightning, optimizer: Any) -> None:
    for name, parameter in module.model.named_parameters():
        if name.endswith("bias"):
            parameter.mul_(1 - module.weight_decay * optimizer.param_groups[0]["lr"])


def decay_on_biases(module: EpiBERTLightning) -> None:
    """Biases decay."""
    _before_every_step(module, _decay_biases)


@torch.no_grad()
def _decay_unscaled(_: EpiBERTLightning, optimizer: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.mul_(1 - group["weight_decay"] * (1 - group["lr"]))


def decay_without_learning_rate(module: EpiBERTLightning) -> None:
    """Weights decay by their full share, not by the learning rate's part of it."""
    _before_every_step(module, _decay_unscaled)


class _OneAhead(CosineWarmup):
    def get_lr(self) -> list[Any]:
        ahead = self.last_epoch + 1
        return [cosine_warmup(ahead, peak, self.warmup, self.decay, self.floor) for peak in self.peaks]


def schedule_off_by_one(module: EpiBERTLightning) -> None:
    """The learning rate of the next step."""
    original = module.configure_optimizers

    def configure(module: EpiBERTLightning) -> Any:
        configured: Any = original()
        schedule = _OneAhead(configured["optimizer"], module.peak, module.warmup, module.decay, module.floor)
        configured["lr_scheduler"]["scheduler"] = schedule
        return configured

    module.configure_optimizers = types.MethodType(configure, module)


def decay_to_zero(module: EpiBERTLightning) -> None:
    """The learning rate goes to zero, not to its floor."""
    module.floor = 0.0


def mean_of_examples(module: EpiBERTLightning) -> None:
    """The mean of the losses of the examples, not the loss of all their bins."""

    def loss(_: EpiBERTLightning, prediction: Tensor, batch: Any) -> Tensor:
        mask, target = batch[2] == 1, batch[4]
        return torch.stack(
            [poisson(t[m], p[m]) for t, p, m in zip(target, prediction, mask, strict=True) if bool(m.any())]
        ).mean()

    module.loss = types.MethodType(loss, module)


OF_THE_MODEL = (torch_momentum, unbiased_variance, dropout_scale_missing, same_mask_every_step, no_dropout)
OF_THE_TRAINING = (
    torch_adam_epsilon,
    clip_epsilon,
    decay_on_biases,
    decay_without_learning_rate,
    schedule_off_by_one,
    decay_to_zero,
    mean_of_examples,
)

"""Optimizers that are wrong in one thing each."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from parity.pairs.epibert_training.parts import ADAM_EPSILON, CLIP, WEIGHT_DECAY
from parity.training import MOMENTS
from torch_impl.optim import KerasAdam, KerasAdamW, decay_groups


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """Keras' Adam, with what may be wrong about it; the defaults are right.

    Attributes:
        betas: Decay of the two moments.
        epsilon: Added to the root of the second moment.
        clip: Largest norm, of what, or ``value``; None does not clip.
        largest: That bound.
        bias_correction: Whether the first steps are enlarged.
        rounded_betas: Whether the powers are those of β rounded to float32.
        first_step: Number of the first step.
        largest_second_moment: Divide by the largest second moment so far (AMSGrad).
        decay: Weight decay before the step, ``after`` it, or added to the gradient (``coupled``).
    """

    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = ADAM_EPSILON
    clip: Literal["global", "each", "value"] | None = "global"
    largest: float = CLIP
    bias_correction: bool = True
    rounded_betas: bool = True
    first_step: int = 1
    largest_second_moment: bool = False
    decay: Literal["before", "after", "coupled"] = "before"


class PlainAdam(torch.optim.Optimizer):
    """Keras' Adam line by line, for float64; with the default rule it is right.

    Args:
        groups: Parameters or groups of them.
        rule: What is done.
        weight_decay: Of groups that do not say.
    """

    def __init__(self, groups: Any, rule: Rule, weight_decay: float = 0.0) -> None:
        self.rule = rule
        super().__init__(groups, {"lr": 1e-3, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Clip, decay and update."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._clip([p.grad for group in self.param_groups for p in group["params"] if p.grad is not None])
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group["lr"], float(np.float32(group["weight_decay"])))
        return loss

    def _clip(self, gradients: Sequence[Tensor]) -> None:
        rule = self.rule
        if rule.clip == "global":
            scale = min(1.0, rule.largest / float(torch.nn.utils.get_total_norm(gradients)))
            for gradient in gradients:
                gradient.mul_(scale)
        elif rule.clip == "each":
            for gradient in gradients:
                gradient.mul_(min(1.0, rule.largest / max(float(gradient.norm()), 1e-300)))
        elif rule.clip == "value":
            for gradient in gradients:
                gradient.clamp_(-rule.largest, rule.largest)

    def _update(self, parameter: Tensor, gradient: Tensor, lr: float, decay: float) -> None:
        rule, state = self.rule, self.state[parameter]
        if not state:
            state["step"] = torch.tensor(float(rule.first_step - 1))
            state |= {moment: torch.zeros_like(parameter) for moment in MOMENTS}
        state["step"] += 1
        mean, square = (state[moment] for moment in MOMENTS)
        if rule.decay == "before":
            parameter.sub_(parameter * decay * lr)
        elif rule.decay == "coupled":
            gradient = gradient + decay * parameter
        mean.add_((gradient - mean) * (1 - rule.betas[0]))
        square.add_((gradient.square() - square) * (1 - rule.betas[1]))
        if rule.largest_second_moment:
            square = state.setdefault("largest", torch.zeros_like(square)).copy_(
                torch.maximum(state.get("largest", square), square)
            )
        powers = [
            (float(np.float32(beta)) if rule.rounded_betas else beta) ** int(state["step"]) for beta in rule.betas
        ]
        rate = lr * (1 - powers[1]) ** 0.5 / (1 - powers[0]) if rule.bias_correction else lr
        parameter.sub_(rate * mean / (square.sqrt() + rule.epsilon))
        if rule.decay == "after":
            parameter.sub_(parameter * decay * lr)


def by(**changes: Any) -> dict[str, Any]:
    """Adam and AdamW by a wrong rule, as parts of the training."""
    rule = Rule(**changes)
    return {
        "adam": lambda module: [PlainAdam(module.parameters(), rule)],
        "adamw": lambda module: [PlainAdam(decay_groups(module, WEIGHT_DECAY), rule)],
    }


def adam(kind: Callable[..., torch.optim.Optimizer], **options: Any) -> dict[str, Any]:
    """Another Adam."""
    return {"adam": lambda module: [kind(module.parameters(), eps=ADAM_EPSILON, **options)]}


class TorchEpsilon(torch.optim.Adam):
    """PyTorch's own epsilon, added after the bias correction; clipping as it should be."""

    def step(self, closure: Any = None) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norm = torch.nn.utils.get_total_norm(gradients)
        for gradient in gradients:
            gradient.mul_(torch.clamp(CLIP / norm, max=1.0))
        return super().step(closure)


class ClipEpsilon(KerasAdam):
    """``clip_grad_norm_`` adds 1e-6 to the norm."""

    def step(self, closure: Any = None) -> Any:
        nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], CLIP)
        return super().step(closure)


class DecayWithoutRate(KerasAdamW):
    """The weight decay of each step is not scaled by the learning rate."""

    def step(self, closure: Any = None) -> Any:
        kept = [group["weight_decay"] for group in self.param_groups]
        with torch.no_grad():
            for group, decay in zip(self.param_groups, kept, strict=True):
                for parameter in group["params"]:
                    parameter.mul_(1 - decay)
                group["weight_decay"] = 0.0
        try:
            return super().step(closure)
        finally:
            for group, decay in zip(self.param_groups, kept, strict=True):
                group["weight_decay"] = decay


class NarrowMoments(KerasAdam):
    """Moments of float32 parameters rounded to bfloat16."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        for parameter, slots in self.state.items():
            if parameter.dtype == torch.float32:
                for moment in MOMENTS:
                    slots[moment].copy_(slots[moment].bfloat16())
        return result


class NeighboursSlot(KerasAdam):
    """First moments of two parameters of one shape, each kept in the other's slot after the first step."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        parameters = [p for group in self.param_groups for p in group["params"]]
        for index, first in enumerate(parameters):
            second = next((p for p in parameters[index + 1 :] if p.shape == first.shape and p.numel() > 1), None)
            if second is not None:
                one, other = self.state[first], self.state[second]
                if int(one["step"]) == 1:
                    one["exp_avg"], other["exp_avg"] = other["exp_avg"], one["exp_avg"]
                return result
        return result


class ExchangedMoments(KerasAdam):
    """First and second moment stored in each other's slot after the first step."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        for slots in self.state.values():
            if int(slots["step"]) == 1:
                slots["exp_avg"], slots["exp_avg_sq"] = slots["exp_avg_sq"].abs(), slots["exp_avg"].abs()
        return result


class JointClip(KerasAdam):
    """Clips what others train together with what it trains itself."""

    others: Sequence[nn.Parameter] = ()

    def step(self, closure: Any = None) -> Any:
        own = [p for group in self.param_groups for p in group["params"]]
        gradients = [p.grad for p in (*own, *self.others) if p.grad is not None]
        scale = torch.clamp(CLIP / torch.nn.utils.get_total_norm(gradients), max=1.0)
        for gradient in gradients:
            gradient.mul_(scale)
        return super().step(closure)

"""Optimizers and learning rate of the original: Adam and AdamW as Keras 2 computes them, cosine decay with a warm-up.

Source of the semantics: the specification of the original TensorFlow implementation (naumanjaved/EpiBERT, MIT), its
sections 3.3 and 3.4. Keras' update of weights w by gradients g in step t = 1, 2, ...:

    g ← g · min(1, clip / ‖g‖), the norm over all parameters of the optimizer
    w ← w - w · weight decay · lr
    m ← m + (g - m)(1 - β1)
    v ← v + (g² - v)(1 - β2)
    w ← w - lr · √(1 - β2ᵗ) / (1 - β1ᵗ) · m / (√v + ε)

Against ``torch.optim``: ε is added to the root of v before the bias correction instead of after it, the powers are
those of β rounded to float32, clipping is part of the step and adds no epsilon to the norm, and one counter serves all
parameters.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import ParamsT

from torch_impl.model import BatchNorm, LayerNorm


class KerasAdam(torch.optim.Adam):
    """Adam as Keras 2 computes it, on torch's own foreach, fused and plain kernels.

    State and groups are those of ``torch.optim.Adam`` (``exp_avg``, ``exp_avg_sq``, ``step``), so states of either load
    into the other; ``lr``, ``eps`` and ``weight_decay`` of a group are Keras' own. ``step`` counts the steps of the
    optimizer, also for a parameter that had no gradient in some of them.

    Rates are rounded as Keras rounds them: weight decay to float32, the learning rate to the precision of the
    parameters (Keras: ``floatx``).

    Args:
        params: Parameters or groups of them.
        lr: Learning rate.
        betas: Decay of the two moments.
        eps: Keras' epsilon: added to √v, not to its bias-corrected value.
        weight_decay: Decoupled from the gradient, scaled by the learning rate, applied before the gradient step.
        global_clipnorm: Largest norm of the gradient over all groups together; None does not clip. As with
            ``clip_grad_norm_``, clipped gradients stay in ``.grad``. A norm that is not finite makes all gradients NaN.
        foreach: As in ``torch.optim.Adam``.
        fused: As in ``torch.optim.Adam``; on processors it is what is taken unless another is asked for.

    Raises:
        ValueError: ``global_clipnorm`` is not positive, or torch refuses another argument.
    """

    # Steps made so far; None until the state has been looked at, after loading as well.
    _iterations: int | None = None

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-7,
        weight_decay: float = 0.0,
        *,
        global_clipnorm: float | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        if global_clipnorm is not None and not global_clipnorm > 0:
            raise ValueError(f"global_clipnorm must be positive or None, not {global_clipnorm}")
        super().__init__(params, lr, betas, eps, weight_decay, foreach=foreach, fused=fused)
        self.global_clipnorm = global_clipnorm
        # A gradient scaler must unscale before the norm is taken, not inside the fused kernel.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Clip, decay and update.

        Args:
            closure: Computes the gradients first; its value is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if gradients:
            if self.global_clipnorm is not None:
                _clip(gradients, self.global_clipnorm)
            iteration = self._count()
            for group in self.param_groups:
                self._update(group, iteration)
        return loss

    def _count(self) -> int:
        # The counter is kept here because a step tensor may live on a GPU, which reading it would wait for.
        if self._iterations is None:
            own = [self.state.get(p) for group in self.param_groups for p in group["params"]]
            self._iterations = max((int(state["step"]) for state in own if state), default=0)
        self._iterations += 1
        return self._iterations

    def _update(self, group: dict[str, Any], iteration: int) -> None:
        new = [p for p in group["params"] if p.grad is not None and not self.state.get(p)]
        resting = [p for p in group["params"] if p.grad is None and self.state.get(p)]
        lists: list[list[Tensor]] = [[] for _ in range(6)]
        self._init_group(group, *lists)
        for parameter in new:
            self.state[parameter]["step"].fill_(iteration - 1)
        for parameter in resting:
            self.state[parameter]["step"].fill_(iteration)

        weight_decay = float(np.float32(group["weight_decay"]))
        beta1, beta2 = group["betas"]
        for dtype in dict.fromkeys(parameter.dtype for parameter in lists[0]):
            chosen = [index for index, parameter in enumerate(lists[0]) if parameter.dtype == dtype]
            parameters, gradients, means, squares, largest, steps = (
                [values[index] for index in chosen] if values else [] for values in lists
            )
            precision = np.float64 if dtype == torch.float64 else np.float32
            lr = float(precision(group["lr"]))
            if weight_decay:
                # Not by torch's factor 1 - lr · decay, which float32 rounds: at the original's highest rates, a product
                # of 5e-8, it takes 6e-8 off every weight, Keras' order of operations something off three in four.
                decayed = torch._foreach_mul(parameters, weight_decay)  # pyright: ignore[reportPrivateImportUsage]
                torch._foreach_sub_(parameters, decayed, alpha=lr)  # pyright: ignore[reportPrivateImportUsage]
            fused = group["fused"]
            if fused is None and group["foreach"] is None and all(p.device.type == "cpu" for p in parameters):
                # A pass over memory instead of nine. It takes no notice of strides: not of a gradient's, nor of those
                # of moments that came from a checkpoint.
                fused = True
            if fused:
                gradients = [_laid_out_like(p, gradient) for p, gradient in zip(parameters, gradients, strict=True)]
                means, squares = (self._moments(parameters, name) for name in ("exp_avg", "exp_avg_sq"))
            step_size, eps = _torch_rates(lr, group["eps"], beta1, beta2, iteration, precision)
            adam(
                parameters,
                gradients,
                means,
                squares,
                largest,
                steps,
                foreach=group["foreach"],
                fused=fused,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=step_size,
                weight_decay=0.0,
                eps=eps,
                maximize=False,
            )

    def _moments(self, parameters: list[Tensor], name: str) -> list[Tensor]:
        """Those of parameters, from now on with the strides of these."""
        for parameter in parameters:
            state = self.state[parameter]
            state[name] = _laid_out_like(parameter, state[name])
        return [self.state[parameter][name] for parameter in parameters]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "global_clipnorm": self.global_clipnorm}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Also called by load_state_dict: the counter is read from the new state.
        super().__setstate__(state)
        self._iterations = None
        self._step_supports_amp_scaling = False


class KerasAdamW(KerasAdam):
    """``KerasAdam`` with weight decay by default; ``decay_groups`` says which parameters the original exempts.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate.
        betas: Decay of the two moments.
        eps: Keras' epsilon.
        weight_decay: Keras' default; the original uses 1e-4.
        global_clipnorm: As for ``KerasAdam``.
        foreach: As in ``torch.optim.Adam``.
        fused: As in ``torch.optim.Adam``.

    Raises:
        ValueError: As for ``KerasAdam``.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-7,
        weight_decay: float = 4e-3,
        *,
        global_clipnorm: float | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params, lr, betas, eps, weight_decay, global_clipnorm=global_clipnorm, foreach=foreach, fused=fused
        )


class JointOptimizer(torch.optim.Optimizer):
    """Several optimizers that are stepped together and each clip, decay and count by themselves.

    To a Trainer, a schedule, a gradient scaler or a checkpoint it is one optimizer with the groups of all, in their
    order. Its state is what one optimizer with these groups has, so it is saved and loaded in PyTorch's own form.

    Args:
        members: The optimizers. No parameter may belong to two of them.

    Attributes:
        members: The same.

    Raises:
        ValueError: There are none, or a parameter belongs to two.
    """

    def __init__(self, members: Sequence[torch.optim.Optimizer]) -> None:
        self.members = tuple(members)
        # The groups are the members' own dictionaries, so that a rate set here is set there.
        super().__init__([group for member in self.members for group in member.param_groups], {})
        for member in self.members:
            self.state.update(member.state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Every member's step.

        Args:
            closure: Computes the gradients of all first; its value is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for member in self.members:
            member.step()
        return loss

    def _share(self) -> None:
        """Lets the members work on the groups and the state of this optimizer."""
        taken = 0
        for member in self.members:
            count = len(member.param_groups)
            member.__setstate__({"state": self.state, "param_groups": self.param_groups[taken : taken + count]})
            taken += count

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "members": self.members}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Also called by load_state_dict, which makes new groups and a new state.
        super().__setstate__(state)
        self._share()


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups for ``KerasAdamW``: kernels, which decay, and what the original exempts.

    Exempt are all biases and all parameters of BatchNorm and LayerNorm (spec, section 3.4). Parameters that need no
    gradient are left out.

    Args:
        model: The model, or an ``nn.ModuleList`` of the parts that one optimizer is to train.
        weight_decay: For the first group; that of the second is 0.

    Returns:
        ``[{"params": [...], "weight_decay": weight_decay}, {"params": [...], "weight_decay": 0.0}]``, each in the order
        of ``model.parameters()``.
    """
    norms = (BatchNorm, LayerNorm, nn.LayerNorm, nn.modules.batchnorm._NormBase)
    exempt = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name == "bias" or isinstance(module, norms)
    }
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if id(p) not in exempt], "weight_decay": weight_decay},
        {"params": [p for p in trainable if id(p) in exempt], "weight_decay": 0.0},
    ]


def cosine_warmup(
    step: float, peak: float, warmup: float, decay: float, floor: float, *, constant: bool = False
) -> float:
    """Learning rate of a step: linear from a thousandth of the peak to the peak, then half a cosine down to the floor.

    Args:
        step: Number of updates made before this one; the first has 0.
        peak: Highest learning rate.
        warmup: Steps up to the peak.
        decay: Steps from the peak to the floor; later ones keep it.
        floor: Lowest learning rate after the peak, as a share of the peak.
        constant: Keep the peak after the warm-up.

    Returns:
        The learning rate, a Python float.

    Raises:
        ValueError: There are no steps to decay in.
    """
    if step < warmup:
        return 0.001 * peak + step / warmup * (0.999 * peak)
    if constant:
        return peak
    if not decay > 0:
        raise ValueError(f"decay must be a positive number of steps, not {decay}")
    cosine = 0.5 * (1 + math.cos(math.pi * min(step - warmup, decay) / decay))
    return peak * ((1 - floor) * cosine + floor)


class CosineWarmup(LRScheduler):
    """``cosine_warmup`` for every group of an optimizer; step it after every update, not every epoch.

    The learning rate that the optimizer was made with has no influence.

    Args:
        optimizer: Whose learning rate to set.
        peak: Highest learning rate, of all groups or one for each.
        warmup: Steps up to the peak.
        decay: Steps from the peak to the floor.
        floor: Lowest learning rate after the peak, as a share of the peak.
        constant: Keep the peak after the warm-up.
        last_epoch: Number of the last step; -1 starts anew.

    Raises:
        ValueError: There are not as many peaks as groups.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        peak: float | Sequence[float],
        warmup: float,
        decay: float,
        floor: float,
        *,
        constant: bool = False,
        last_epoch: int = -1,
    ) -> None:
        self.peaks = list(peak) if isinstance(peak, Sequence) else [peak] * len(optimizer.param_groups)
        if len(self.peaks) != len(optimizer.param_groups):
            raise ValueError(f"{len(self.peaks)} peaks for {len(optimizer.param_groups)} groups of parameters")
        self.warmup = warmup
        self.decay = decay
        self.floor = floor
        self.constant = constant
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of the next step, once for each group."""
        shape = (self.warmup, self.decay, self.floor)
        return [cosine_warmup(self.last_epoch, peak, *shape, constant=self.constant) for peak in self.peaks]


def _torch_rates(
    lr: float, eps: float, beta1: float, beta2: float, iteration: int, precision: type[np.floating]
) -> tuple[float, float]:
    """The learning rate and epsilon with which torch's Adam makes Keras' step.

    torch divides by √v / √(1 - β2ᵗ) + ε, which is Keras' divisor over √(1 - β2ᵗ) when ε is larger by the same factor.
    """
    # Keras casts β through float32, and takes the power in the precision of the parameter: in float32 that moves the
    # early steps by up to 3e-6 of themselves, fifty times the rounding of the rest.
    power1, power2 = (float(precision(float(np.float32(beta)) ** iteration)) for beta in (beta1, beta2))
    correction1, correction2 = 1 - beta1**iteration, math.sqrt(1 - beta2**iteration)
    step_size = lr * math.sqrt(1 - power2) / (1 - power1)
    return step_size * correction1 / correction2, eps / correction2


def _laid_out_like(parameter: Tensor, values: Tensor) -> Tensor:
    """Gradient or moments with the strides of their parameter, copied where they have others."""
    if values.stride() == parameter.stride():
        return values
    return torch.empty_like(parameter).copy_(values)


def _clip(gradients: list[Tensor], largest: float) -> None:
    """Scale to a norm of at most ``largest``, without waiting for the device."""
    norm = torch.nn.utils.get_total_norm(gradients)
    scale = largest * torch.minimum(1 / norm, torch.full_like(norm, 1 / largest))
    if norm.device.type == "cpu" and scale == 1:
        return
    # Like TensorFlow: of an infinite norm this makes NaN, not gradients of zero.
    torch._foreach_mul_(gradients, scale + (norm - norm))  # pyright: ignore[reportPrivateImportUsage]

"""Faults of training that no forward pass shows: losses, metrics, gradients, optimizer, schedule, dropout."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from parity.attack.fault import Fault, Kind
from parity.pairs.epibert_faults import optimizers
from parity.pairs.epibert_faults.subject import PRETRAINING, Break, of_port, of_training, set_forward
from parity.pairs.epibert_faults.trained import torch_momentum, unbiased_variance
from parity.pairs.epibert_training.parts import ADAM_EPSILON, CLIP, WEIGHT_DECAY
from parity.training import LOSS, METRIC, OPTIMIZER, SCHEDULE
from torch_impl.losses import masked_loss, poisson, poisson_multinomial
from torch_impl.metrics import R2, PearsonR
from torch_impl.optim import KerasAdam, KerasAdamW, cosine_warmup, decay_groups

# --- losses and metrics ----------------------------------------------------------------------------------------------


def mean_of_examples(true: Tensor, predicted: Tensor, mask: Tensor, *, unmask: Any = None, **arguments: Any) -> Tensor:
    """The mean of the losses of the examples, not the loss of all their bins."""
    losses = [
        masked_loss(
            true[i : i + 1],
            predicted[i : i + 1],
            mask[i : i + 1],
            unmask=None if unmask is None else unmask[i : i + 1],
            **arguments,
        )
        for i in range(len(true))
    ]
    return torch.stack(losses).mean()


def poisson_of(epsilon: float) -> Callable[..., Tensor]:
    """Keras' Poisson loss with another number in its logarithm."""
    return lambda true, predicted: (predicted - true * torch.log(predicted + epsilon)).mean()


def inverted_mask(true: Tensor, predicted: Tensor, mask: Tensor, **arguments: Any) -> Tensor:
    return masked_loss(true, predicted, 1 - mask, **arguments)


def without_unmask(true: Tensor, predicted: Tensor, mask: Tensor, *, unmask: Any = None, **arguments: Any) -> Tensor:
    return masked_loss(true, predicted, mask, **arguments)


def all_bins(true: Tensor, predicted: Tensor, mask: Tensor, **arguments: Any) -> Tensor:
    return masked_loss(true, predicted, torch.ones_like(mask), **arguments)


def narrow_in_float32(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Predictions rounded to bfloat16, but not those in float64."""

    def rounded(true: Tensor, predicted: Tensor, *masks: Tensor, **arguments: Any) -> Tensor:
        if predicted.dtype == torch.float32:
            predicted = predicted.bfloat16().float()
        return loss(true, predicted, *masks, **arguments)

    return rounded


def with_arguments(loss: Callable[..., Tensor], **changes: Any) -> Callable[..., Tensor]:
    """A loss that takes no notice of what it is told."""
    return lambda *given, **arguments: loss(*given, **{**arguments, **changes})


def raises(*_: Any, **__: Any) -> Any:
    """A part that cannot be called."""
    raise RuntimeError("no such thing")


class SquaredCorrelation(PearsonR):
    """Equal to the coefficient of determination of a linear fit, which predictions are not."""

    def compute(self) -> Tensor:
        return super().compute().square()


class LastBatch(PearsonR):
    """Forgets all batches but the last."""

    def update(self, pred: Tensor, target: Tensor) -> None:
        for name, start in self._defaults.items():
            setattr(self, name, torch.as_tensor(start).clone())
        super().update(pred, target)


def narrow_sums(kind: type[Metric]) -> Callable[..., Metric]:
    """A metric whose sums are kept in bfloat16 where they should be in float32."""

    def make(state_dtype: torch.dtype = torch.float32, **arguments: Any) -> Metric:
        return kind(state_dtype=torch.bfloat16 if state_dtype == torch.float32 else state_dtype, **arguments)

    return make


def metrics(**changes: Any) -> Mapping[str, Any]:
    """The metrics, some of them others."""
    return {"PearsonR": PearsonR, "R2": R2, **changes}


LOSSES = [
    of_training(
        "trap 56",
        "Poisson without its epsilon",
        LOSS,
        "log(p) where Keras has log(p + 1e-7)",
        rung="losses",
        poisson=poisson_of(0.0),
    ),
    of_training(
        "trap 56",
        "Poisson with epsilon 1e-8",
        LOSS,
        "PyTorch's default where Keras has 1e-7",
        rung="losses",
        poisson=poisson_of(1e-8),
    ),
    of_training(
        "loss",
        "epsilon twice in Poisson's logarithm",
        LOSS,
        "2e-7 where Keras has 1e-7",
        rung="losses",
        poisson=lambda true, predicted: poisson(true, predicted + 1e-7),
    ),
    of_training(
        "loss",
        "sum for the mean",
        LOSS,
        "a loss that grows with the number of bins",
        rung="losses",
        poisson=lambda true, predicted: poisson(true, predicted) * predicted.numel(),
    ),
    of_training(
        "loss",
        "full Poisson likelihood",
        LOSS,
        "the term of the target's factorial added",
        rung="losses",
        poisson=lambda true, predicted: poisson(true, predicted) + torch.lgamma(true + 1).mean(),
    ),
    of_training(
        "loss",
        "multinomial without its epsilon",
        LOSS,
        "counts that are not raised by 1e-6",
        rung="losses",
        poisson_multinomial=with_arguments(poisson_multinomial, epsilon=1e-12),
    ),
    of_training(
        "loss",
        "multinomial that never rescales",
        LOSS,
        "without the factor 2 / (1 + w)",
        rung="losses",
        poisson_multinomial=with_arguments(poisson_multinomial, rescale=False),
    ),
    of_training(
        "loss",
        "weight of the total ignored",
        LOSS,
        "always the default weight",
        rung="losses",
        masked_loss=with_arguments(masked_loss, total_weight=0.15),
    ),
    of_training(
        "trap 60",
        "mean of per-example losses",
        LOSS,
        "examples weigh alike, whatever their number of masked bins",
        rung="losses",
        masked_loss=mean_of_examples,
    ),
    of_training(
        "loss",
        "inverted mask in the loss",
        LOSS,
        "the loss on the bins that are not masked",
        rung="losses",
        masked_loss=inverted_mask,
    ),
    of_training("loss", "loss on all bins", LOSS, "the mask forgotten", rung="losses", masked_loss=all_bins),
    of_training(
        "loss",
        "unmasked term forgotten",
        LOSS,
        "only the masked bins count",
        rung="losses",
        masked_loss=without_unmask,
    ),
    of_training(
        "precision",
        "loss of narrow predictions",
        LOSS,
        "predictions rounded to bfloat16 where they are float32; right in float64",
        rung="losses",
        poisson=narrow_in_float32(poisson),
    ),
    of_training(
        "precision",
        "multinomial loss of narrow predictions",
        LOSS,
        "predictions rounded to bfloat16 where they are float32; right in float64",
        rung="losses",
        poisson_multinomial=narrow_in_float32(poisson_multinomial),
    ),
    of_training(
        "metric",
        "squared correlation for the coefficient of determination",
        METRIC,
        "equal for a linear fit alone",
        rung="losses",
        metrics=metrics(R2=SquaredCorrelation),
    ),
    of_training(
        "metric",
        "correlation of the last batch",
        METRIC,
        "sums that start anew with every batch",
        rung="losses",
        metrics=metrics(PearsonR=LastBatch),
    ),
    of_training(
        "precision",
        "narrow sums in the metrics",
        METRIC,
        "sums kept in bfloat16 where they should be in float32; right in float64",
        rung="losses",
        metrics=metrics(PearsonR=narrow_sums(PearsonR), R2=narrow_sums(R2)),
    ),
    of_training("failure", "a loss that raises", LOSS, "no loss at all", rung="losses", poisson=raises),
    of_training(
        "failure",
        "a metric that cannot be made",
        METRIC,
        "no metric at all",
        rung="losses",
        metrics=metrics(PearsonR=raises),
    ),
]

# --- gradients and dropout -------------------------------------------------------------------------------------------


def dropouts(forward: Callable[[nn.Dropout, Tensor], Tensor], only: str = "") -> Break:
    """Another forward for every dropout, or for one."""

    def inject(port: nn.Module) -> None:
        for name, module in port.named_modules():
            if isinstance(module, nn.Dropout) and only in ("", name):
                module.forward = functools.partial(forward, module)  # type: ignore[method-assign]  a fault is a patch

    return inject


def without_scale(module: nn.Dropout, x: Tensor) -> Tensor:
    """What is kept is not divided by the share that is kept."""
    return F.dropout(x, module.p, module.training) * (1 - module.p if module.training else 1)


def same_masks(module: nn.Dropout, x: Tensor, *, period: int) -> Tensor:
    """Masks that come again after so many steps; their shapes tell the two calls of a feed-forward network apart."""
    if not module.training:
        return x
    masks, calls = vars(module).setdefault("masks", {}).setdefault(x.shape, []), vars(module).setdefault("calls", {})
    call = calls[x.shape] = calls.get(x.shape, -1) + 1
    if len(masks) < period:
        masks.append(F.dropout(torch.ones_like(x), module.p))
    return x * masks[call % period]


def rates(change: Callable[[str, float], float]) -> Break:
    """Other rates."""

    def inject(port: nn.Module) -> None:
        for name, module in port.named_modules():
            if isinstance(module, nn.Dropout):
                module.p = change(name, module.p)

    return inject


def mask_for_all_positions(module: nn.Dropout, x: Tensor) -> Tensor:
    """Whole channels are dropped."""
    return F.dropout(torch.ones_like(x), module.p, module.training)[:, :1] * x


def detached_weights(pool: Any, x: Tensor) -> Tensor:
    pairs = x.unflatten(1, (-1, 2))
    logits = pool.logits(pairs)
    first = torch.sigmoid(logits[:, :, 0] - logits[:, :, 1]).detach()
    return torch.lerp(pairs[:, :, 1], pairs[:, :, 0], first)


def straight_through(module: Any, x: Tensor) -> Tensor:
    """ReLU on the way forward, nothing on the way back."""
    return x + (F.relu(x) - x).detach()


def reversed_residual(residual: Any, x: Tensor) -> Tensor:
    """The right sum, of which the input gets no gradient."""
    return x.detach() + residual.block(x)


def frozen(name: str) -> Break:
    """A parameter that is not trained."""

    def inject(port: nn.Module) -> None:
        port.get_parameter(name).requires_grad_(False)

    return inject


def trained(
    source: str, name: str, where: str, what: str, change: Break, *, rung: str, named: tuple[str, ...] | None = None
) -> Fault:
    """A fault of the port that only training shows."""
    return of_port(source, name, where, what, change, rung=rung, kind=Kind.TRAINING, named=named)


EPIBERT = ("EpiBERT",)
DROPOUTS = (
    "motif_dropout1",
    "motif_dropout2",
    *(f"performer.layers.{index}.{part}dropout" for index in (0, 1) for part in ("", "ffn.")),
    "dropout",
)
BATCH_NORMS = (
    "stem_res_conv.block.norm",
    *(f"conv_tower.{index}.block.norm" for index in range(6)),
    "stem_res_conv_atac.block.norm",
    *(f"conv_tower_atac.{index}.block.norm" for index in (0, 1)),
    "final_pointwise_conv.norm",
)
GRADIENTS = [
    trained(
        "dropout",
        "dropout scale missing",
        "all dropouts",
        "what is kept is not divided by the share that is kept",
        dropouts(without_scale),
        rung="gradients",
        named=DROPOUTS,
    ),
    trained(
        "dropout",
        "no dropout",
        "all dropouts",
        "all rates are zero",
        rates(lambda name, rate: 0.0),
        rung="gradients",
        named=DROPOUTS,
    ),
    trained(
        "dropout",
        "second motif dropout with the first one's rate",
        "motif_dropout2",
        "the original divides the rate by four",
        rates(lambda name, rate: 4 * rate if name == "motif_dropout2" else rate),
        rung="gradients",
    ),
    trained(
        "dropout",
        "rate of what is kept",
        "performer.layers.0.dropout",
        "the rate taken for its complement",
        rates(lambda name, rate: 1 - rate if name == "performer.layers.0.dropout" else rate),
        rung="gradients",
    ),
    trained(
        "dropout",
        "whole channels dropped",
        "performer.layers.1.dropout",
        "one mask for all positions",
        dropouts(mask_for_all_positions, "performer.layers.1.dropout"),
        rung="gradients",
    ),
    trained(
        "gradient",
        "pooling without gradient of its logits",
        "conv_tower.2.pool",
        "pooling weights that are computed and never trained",
        set_forward("conv_tower.2.pool", detached_weights),
        rung="gradients",
    ),
    trained(
        "gradient",
        "straight-through ReLU",
        "performer.layers.0.ffn.activation",
        "the right values, and the gradient of the identity",
        set_forward("performer.layers.0.ffn.activation", straight_through),
        rung="gradients",
    ),
    trained(
        "gradient",
        "residual without gradient",
        "stem_res_conv",
        "the right sum, of which the input gets no gradient",
        set_forward("stem_res_conv", reversed_residual),
        rung="gradients",
    ),
    trained(
        "gradient",
        "kernel that is not trained",
        "conv_tower.1.block.conv",
        "a parameter without gradient",
        frozen("conv_tower.1.block.conv.weight"),
        rung="gradients",
    ),
    of_training(
        "precision",
        "masked loss of narrow predictions",
        LOSS,
        "predictions rounded to bfloat16 where they are float32; right in float64",
        rung="gradients",
        masked_loss=narrow_in_float32(masked_loss),
    ),
    trained(
        "dropout",
        "the same mask at every step",
        "all dropouts",
        "a generator that is seeded anew at every step",
        dropouts(functools.partial(same_masks, period=1)),
        rung="state",
        named=EPIBERT,
    ),
    trained(
        "dropout",
        "masks that come again after six steps",
        "all dropouts",
        "a generator that repeats itself",
        dropouts(functools.partial(same_masks, period=6)),
        rung="trajectory",
        named=EPIBERT,
    ),
    trained(
        "trap 9",
        "unbiased running variance of all norms",
        "all BatchNorms",
        "PyTorch's factor n / (n - 1) in the statistics",
        unbiased_variance,
        rung="layers",
        named=BATCH_NORMS,
    ),
    trained(
        "trap 10",
        "momentum 0.9 of all norms",
        "all BatchNorms",
        "Keras' momentum handed to PyTorch, where it weighs the new statistics",
        torch_momentum,
        rung="layers",
        named=BATCH_NORMS,
    ),
]

# --- optimizer and schedule ------------------------------------------------------------------------------------------


def optimizer(source: str, name: str, what: str, **parts: Any) -> Fault:
    return of_training(source, name, OPTIMIZER, what, rung="optimizer", **parts)


def schedule(name: str, what: str, rate: Callable[..., float]) -> Fault:
    return of_training("schedule", name, SCHEDULE, what, rung="optimizer", schedule=rate)


def climbing_again(step: float, peak: float, warmup: float, decay: float, floor: float, **_: Any) -> float:
    """A cosine that is not stopped at its end."""
    if step < warmup:
        return cosine_warmup(step, peak, warmup, decay, floor)
    return peak * ((1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / decay)) + floor)


def linear(step: float, peak: float, warmup: float, decay: float, floor: float, **_: Any) -> float:
    if step < warmup:
        return cosine_warmup(step, peak, warmup, decay, floor)
    return peak * (1 - (1 - floor) * min(step - warmup, decay) / decay)


OPTIMIZERS = [
    optimizer(
        "trap 57",
        "PyTorch's Adam epsilon",
        "epsilon added after the bias correction",
        **optimizers.adam(optimizers.TorchEpsilon),
    ),
    optimizer(
        "trap 57b",
        "exact powers of β",
        "the bias correction in double precision, which Keras rounds to float32",
        **optimizers.by(rounded_betas=False),
    ),
    optimizer(
        "trap 58",
        "clipping by norm + 1e-6",
        "what PyTorch's clip_grad_norm_ divides by",
        **optimizers.adam(optimizers.ClipEpsilon, global_clipnorm=CLIP),
    ),
    optimizer("optimizer", "no clipping", "gradients of any size", **optimizers.by(clip=None)),
    optimizer(
        "optimizer", "each gradient clipped by itself", "one norm for every parameter", **optimizers.by(clip="each")
    ),
    optimizer("optimizer", "clipping by value", "numbers clipped, not the norm", **optimizers.by(clip="value")),
    optimizer(
        "optimizer", "no bias correction", "first steps that are too small", **optimizers.by(bias_correction=False)
    ),
    optimizer("optimizer", "betas exchanged", "the decay of the two moments", **optimizers.by(betas=(0.999, 0.9))),
    optimizer("optimizer", "β2 of 0.99", "a second moment that forgets sooner", **optimizers.by(betas=(0.9, 0.99))),
    optimizer("optimizer", "epsilon of Keras' default", "1e-7 for 1e-8", **optimizers.by(epsilon=1e-7)),
    optimizer(
        "optimizer", "steps counted from two", "the bias correction is one step ahead", **optimizers.by(first_step=2)
    ),
    optimizer("optimizer", "AMSGrad", "the largest second moment so far", **optimizers.by(largest_second_moment=True)),
    optimizer(
        "optimizer", "decay in the gradient", "L2 regularisation for decoupled decay", **optimizers.by(decay="coupled")
    ),
    optimizer(
        "optimizer", "decay after the step", "weights decayed after they were moved", **optimizers.by(decay="after")
    ),
    optimizer(
        "optimizer",
        "decay on biases and norms",
        "nothing is exempt",
        adamw=lambda module: [
            KerasAdamW(module.parameters(), eps=ADAM_EPSILON, global_clipnorm=CLIP, weight_decay=WEIGHT_DECAY)
        ],
    ),
    optimizer(
        "optimizer",
        "no decay",
        "weight decay that is accepted and ignored",
        adamw=lambda module: [KerasAdam(module.parameters(), eps=ADAM_EPSILON, global_clipnorm=CLIP)],
    ),
    optimizer(
        "optimizer",
        "decay not scaled by the learning rate",
        "weights decay by their full share",
        adamw=lambda module: [
            optimizers.DecayWithoutRate(decay_groups(module, WEIGHT_DECAY), eps=ADAM_EPSILON, global_clipnorm=CLIP)
        ],
    ),
    Fault(
        name="moment in the neighbour's slot",
        source="mapping",
        kind=Kind.MAPPING,
        where=OPTIMIZER,
        what="first moments of two parameters of one shape exchanged",
        rung="optimizer",
        named=(OPTIMIZER,),
        inject=optimizer("", "", "", **optimizers.adam(optimizers.NeighboursSlot, global_clipnorm=CLIP)).inject,
        case=PRETRAINING,
    ),
    Fault(
        name="moments in each other's slot",
        source="mapping",
        kind=Kind.MAPPING,
        where=OPTIMIZER,
        what="first and second moments exchanged",
        rung="optimizer",
        named=(OPTIMIZER,),
        inject=optimizer("", "", "", **optimizers.adam(optimizers.ExchangedMoments, global_clipnorm=CLIP)).inject,
        case=PRETRAINING,
    ),
    of_training(
        "precision",
        "narrow moments",
        OPTIMIZER,
        "moments of float32 parameters rounded to bfloat16; right in float64",
        rung="trajectory",
        named=EPIBERT,
        **optimizers.adam(optimizers.NarrowMoments, global_clipnorm=CLIP),
    ),
    schedule("a schedule that raises", "no rates at all", raises),
    schedule("schedule off by one", "the rate of the next step", lambda step, **a: cosine_warmup(step + 1, **a)),
    schedule("decay to zero", "no floor", lambda step, **a: cosine_warmup(step, **{**a, "floor": 0.0})),
    schedule("cosine that climbs again", "nothing stops it at its end", climbing_again),
    schedule("linear decay", "a straight line for half a cosine", linear),
    schedule(
        "no decay after the warm-up", "the peak is kept", lambda step, **a: cosine_warmup(step, **a, constant=True)
    ),
    schedule(
        "warm-up from zero",
        "it begins at zero, not at a thousandth of the peak",
        lambda step, peak, warmup, **a: (
            peak * step / warmup if step < warmup else cosine_warmup(step, peak, warmup, **a)
        ),
    ),
    schedule("no warm-up", "it begins at the peak", lambda step, **a: cosine_warmup(max(step, a["warmup"]), **a)),
]

FAULTS = [*LOSSES, *GRADIENTS, *OPTIMIZERS]

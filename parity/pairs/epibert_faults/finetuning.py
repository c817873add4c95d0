"""Faults that only the fine-tuning model shows: two heads, two optimizers, two losses."""

from typing import Any

import torch
from torch import Tensor, nn

from parity.attack.fault import Fault, Kind
from parity.pairs.epibert_faults import optimizers
from parity.pairs.epibert_faults.subject import FINETUNING, of_port, of_training
from parity.pairs.epibert_faults.training import raises
from parity.pairs.epibert_training.parts import ADAM_EPSILON, PORT, WEIGHT_DECAY
from parity.training import LOSS, METRIC, OPTIMIZER
from torch_impl import EpiBERTRampage
from torch_impl.losses import finetuning_loss
from torch_impl.metrics import GeneCellCorrelation
from torch_impl.optim import KerasAdam, decay_groups
from torch_impl.rampage import optimizer_parts


def one_clip(model: EpiBERTRampage, make: Any) -> list[torch.optim.Optimizer]:
    """One clip over the parameters of both optimizers."""
    decay = WEIGHT_DECAY if make is PORT.adamw else 0.0
    trunk, head = optimizer_parts(model)
    first = optimizers.JointClip(decay_groups(trunk, decay), eps=ADAM_EPSILON)
    first.others = list(head.parameters())
    # What the first has clipped is within the bound when the second takes it.
    return [first, KerasAdam(decay_groups(head, decay), eps=ADAM_EPSILON)]


def atac_head_in_the_second(model: EpiBERTRampage, make: Any) -> list[torch.optim.Optimizer]:
    """Both heads trained by the optimizer of the RNA head."""
    trunk, head = optimizer_parts(model)
    atac = [model.final_pointwise_conv, model.final_dense_profile]
    rest = nn.ModuleList(child for child in trunk if all(child is not part for part in atac))
    return [made for part in (rest, nn.ModuleList([*atac, *head])) for made in make(part)]


def one_mask_for_both_heads(port: EpiBERTRampage) -> None:
    """The mask of the first head once more."""
    dropout, forward = port.dropout, port.dropout.forward
    masks: list[Tensor] = []

    def shared(x: Tensor) -> Tensor:
        if not dropout.training:
            return x
        if not masks:
            masks.append(forward(torch.ones_like(x)))
            return x * masks[0]
        return x * masks.pop()

    dropout.forward = shared


def per_head_mean(*arguments: Any, **options: Any) -> Any:
    """The mean of both losses, where the original adds them."""
    found = finetuning_loss(*arguments, **options)
    return found if found.atac is None else found._replace(total=found.total / 2)


def without_scale_of_atac(*arguments: Any, **options: Any) -> Any:
    """Both losses weigh alike."""
    return finetuning_loss(*arguments, **{**options, "atac_scale": 1.0})


class SumOfLogarithms(GeneCellCorrelation):
    """Takes the logarithm of each example before those of one gene and cell type are summed."""

    def update(self, pred: Tensor, target: Tensor, tss_tokens: Tensor, gene: Tensor, cell: Tensor) -> None:
        super().update(torch.log2(1 + pred), torch.log2(1 + target), tss_tokens, gene, cell)


def of_both(source: str, name: str, where: str, what: str, *, rung: str, **part: Any) -> Fault:
    return of_training(source, name, where, what, rung=rung, case=FINETUNING, **part)


FAULTS = [
    of_both(
        "trap 62",
        "one clip over both optimizers",
        OPTIMIZER,
        "one norm over all parameters where each optimizer has its own",
        rung="optimizer",
        finetuning_optimizers=one_clip,
    ),
    of_both(
        "heads",
        "the ATAC head trained by the RNA head's optimizer",
        OPTIMIZER,
        "the heads share an optimizer",
        rung="optimizer",
        finetuning_optimizers=atac_head_in_the_second,
    ),
    of_port(
        "heads",
        "one dropout mask for both heads",
        "dropout",
        "the mask of the first head once more",
        one_mask_for_both_heads,
        rung="gradients",
        kind=Kind.TRAINING,
        case=FINETUNING,
    ),
    of_both(
        "heads",
        "the mean of both heads' losses",
        LOSS,
        "half of the sum",
        rung="losses",
        finetuning_loss=per_head_mean,
    ),
    of_both(
        "heads",
        "losses of both heads weigh alike",
        LOSS,
        "the scale of the ATAC loss ignored",
        rung="losses",
        finetuning_loss=without_scale_of_atac,
    ),
    of_both(
        "failure",
        "a loss of both heads that raises",
        LOSS,
        "no loss at all",
        rung="losses",
        finetuning_loss=raises,
    ),
    of_both(
        "metric",
        "logarithms summed over examples",
        METRIC,
        "a gene's correlation of sums of logarithms",
        rung="losses",
        gene_metric=SumOfLogarithms,
    ),
]

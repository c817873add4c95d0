"""What ``test_distributed`` computes, in one process with everything or in two with a part each.

Run as a script with rank, file of the rendezvous and file of the results, it is one of the two.
"""

import dataclasses
import sys
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from torch_impl import EpiBERT, EpiBERTConfig
from torch_impl.losses import masked_loss
from torch_impl.metrics import R2, GeneCellCorrelation, PearsonR
from torch_impl.model import BatchNorm
from torch_impl.optim import KerasAdamW, decay_groups

PARTS = ((0, 1), (1, 3))
"""Examples of each process: the first has one, the second two."""

STEPS = 2
CONFIG = dataclasses.replace(
    EpiBERTConfig.tiny(), dropout_rate=0.0, pointwise_dropout_rate=0.0, motif_dropout_rate=0.0, num_transformer_layers=1
)
RATE, CLIP, DECAY = 1e-3, 1.0, 1e-2


def batch() -> tuple[Tensor, ...]:
    """Sequence, accessibility, motifs, target, and masks that select a quarter to three quarters of an example."""
    generator = torch.Generator().manual_seed(13)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(3, *shape, generator=generator, dtype=torch.float64)

    bases = torch.randint(4, (3, CONFIG.sequence_length), generator=generator)
    sequence = nn.functional.one_hot(bases, 4).double()
    atac, motifs, target = uniform(CONFIG.atac_length, 1), uniform(1, CONFIG.num_motifs), 5 * uniform(60, 1)
    mask = (uniform(60, 1) < torch.tensor([0.25, 0.5, 0.75]).reshape(3, 1, 1)).double()
    return sequence, atac, motifs, target, mask


def train(parts: tuple[tuple[int, int], ...], rank: int | None) -> dict[str, Any]:
    """Train steps of the whole model: the part of one process, or all parts in this one."""
    torch.manual_seed(0)
    model = EpiBERT(CONFIG).double()
    optimizer = KerasAdamW(decay_groups(model, DECAY), lr=RATE, eps=1e-8, global_clipnorm=CLIP)
    call = model if rank is None else DistributedDataParallel(model)
    first, last = parts[0][0], parts[-1][1]
    sequence, atac, motifs, target, mask = (values[first:last] for values in batch())
    metric = PearsonR(state_dtype=torch.float64)
    found: dict[str, Any] = {"losses": []}
    for _ in range(STEPS):
        optimizer.zero_grad()
        output = call(sequence, atac, motifs)
        slices = [slice(begin - first, end - first) for begin, end in parts]
        losses = [masked_loss(target[s], output[s], mask[s], loss_type="poisson_multinomial") for s in slices]
        loss = torch.stack(losses).mean()
        loss.backward()
        if "gradients" not in found:
            # Cloned, because clipping changes them in place.
            found["gradients"] = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        metric.update(output.detach(), target)
        found["losses"].append(loss.detach())
    found["state"] = {key: value.clone() for key, value in model.state_dict().items() if value.is_floating_point()}
    found["slots"] = {
        f"{index} {name}": value
        for index, slots in optimizer.state_dict()["state"].items()
        for name, value in slots.items()
    }
    found["metric"] = metric.compute()
    return found


def normalize(begin: int, end: int, dtype: torch.dtype, *, synchronized: bool = True) -> dict[str, Tensor]:
    """One BatchNorm forward and backward on examples ``begin`` to ``end`` of five."""
    generator = torch.Generator().manual_seed(17)
    x, weights = torch.randn(2, 5, 37, 3, generator=generator, dtype=torch.float64) + 3
    norm = BatchNorm(3, 1e-5, 0.9).to(dtype if dtype == torch.float64 else torch.float32)
    norm.synchronized = synchronized
    x = x[begin:end].to(dtype).requires_grad_()
    y = norm(x)
    y.backward(weights[begin:end].to(dtype))
    assert x.grad is not None
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    return {
        "output": y.detach(),
        "mean": norm.running_mean,
        "variance": norm.running_var,
        "gradient": x.grad,
        "weight gradient": norm.weight.grad,
        "bias gradient": norm.bias.grad,
    }


def correlate(begin: int, end: int) -> dict[str, Tensor]:
    """Both metrics on examples ``begin`` to ``end`` of five, in two updates."""
    generator = torch.Generator().manual_seed(19)
    pred, target = torch.rand(2, 5, 21, 1, generator=generator, dtype=torch.float64)
    found = {}
    for kind in (PearsonR, R2):
        metric = kind(state_dtype=torch.float64)
        for rows in (slice(begin, begin + 1), slice(begin + 1, end)):
            metric.update(pred[rows], target[rows])
        found[kind.__name__] = metric.compute()
    return found


def genes(begin: int, end: int, *, only_first: bool = False) -> dict[str, Tensor]:
    """Correlations across genes and cell types on examples ``begin`` to ``end`` of twelve.

    Args:
        begin: The first.
        end: Behind the last.
        only_first: Only a process that begins with the first example sees any.
    """
    generator = torch.Generator().manual_seed(23)
    pred, target, tokens = torch.rand(3, 12, 6, 1, generator=generator, dtype=torch.float64)
    gene, cell = torch.arange(12) % 4, torch.arange(12) // 4
    metric = GeneCellCorrelation()
    if begin == 0 or not only_first:
        rows = slice(begin, end)
        metric.update(pred[rows], target[rows], tokens[rows], gene[rows], cell[rows])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
        return metric.compute()


def main(rank: int, rendezvous: str, results: str) -> None:
    """Be one of two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    begin, end = ((0, 2), (2, 5))[rank]
    found: dict[str, Any] = {
        "train": train((PARTS[rank],), rank),
        "correlate": correlate(begin, end),
        "genes": genes(*((0, 5), (5, 12))[rank]),
        "genes of one": genes(*((0, 12), (5, 12))[rank], only_first=True),
        "alone": normalize(begin, end, torch.float64, synchronized=False),
    }
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        found[f"normalize {dtype}"] = normalize(begin, end, dtype)
    torch.save(found, results)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])

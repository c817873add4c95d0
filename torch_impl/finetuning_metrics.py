"""What the original's fine-tuning reports of an epoch: losses, and correlations of both heads, of genes and cell types.

Source of the semantics: the specification of the original TensorFlow implementation (naumanjaved/EpiBERT, MIT), its
section 3.2. What is computed stands in ``metrics``; this says of what. There are none on the bins that ``unmask``
selects: the original's fine-tuning does not look at them.

Letters in shapes: B batch, N bins after the crop.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torch_impl.losses import FinetuningLoss
from torch_impl.metrics import R2, GeneCellCorrelation, Mean, PearsonR

Profile = Float[Tensor, "B N 1"]


class FinetuningMetrics(nn.Module):
    """Metrics of one set of examples: RNA on all bins, accessibility on the masked ones.

    Args:
        predict_atac: Whether the model has an ATAC head.
        genes: Also correlate over genes and over cell types, where examples have start sites.
    """

    def __init__(self, *, predict_atac: bool, genes: bool) -> None:
        super().__init__()
        heads = ("rna", "atac") if predict_atac else ("rna",)
        self.losses: Any = nn.ModuleDict({name: Mean() for name in ("total", *heads)})
        self.correlations: Any = nn.ModuleDict(
            {f"{head}_{name}": kind() for head in heads for name, kind in (("pearson", PearsonR), ("r2", R2))}
        )
        self.genes = GeneCellCorrelation() if genes else None

    def update(self, loss: FinetuningLoss, prediction: tuple[Profile | None, Profile], batch: Sequence[Tensor]) -> None:
        """Takes in a batch.

        Args:
            loss: Its losses.
            prediction: Accessibility, or None, and RNA.
            batch: As the data module makes it, with start sites, genes and cell types if it has them.
        """
        atac, rna = prediction
        _, _, mask, _, target, _, rna_target, *tokens = batch
        for name, metric in self.losses.items():
            metric.update(getattr(loss, name))
        rna = rna.detach()
        observed = {"rna": (rna, rna_target)}
        if atac is not None:
            masked = mask == 1
            observed["atac"] = (_pooled(atac.detach(), masked), _pooled(target, masked))
        for name, metric in self.correlations.items():
            metric.update(*observed[name.partition("_")[0]])
        if tokens and self.genes is not None:
            self.genes.update(rna, rna_target, *tokens)

    @property
    def seen(self) -> bool:
        """Whether there was a batch since the last result."""
        return self.losses["total"].update_called

    @property
    def genes_seen(self) -> bool:
        """Whether one of them had start sites."""
        return self.genes is not None and self.genes.update_called

    def result(self, *, genes: bool) -> dict[str, Tensor]:
        """What was found since the last result, over all processes, which must ask together; then begins anew.

        Args:
            genes: Also the correlations over genes and cell types; a process that saw none takes part in them.

        Returns:
            ``loss``, ``loss_rna``, ``loss_atac``; ``rna_pearson``, ``rna_r2`` and the same of ``atac``;
            ``cell_pearson`` and ``gene_pearson``.
        """
        found = {
            "loss" if name == "total" else f"loss_{name}": metric.compute() for name, metric in self.losses.items()
        }
        found |= {name: metric.compute().squeeze() for name, metric in self.correlations.items()}
        if genes and self.genes is not None:
            if not self.genes.update_called:
                self.genes.update(*_nothing(self.genes))
            correlations = self.genes.compute()
            found |= {name: correlations[name] for name in ("cell_pearson", "gene_pearson")}
        self.forget()
        return found

    def forget(self) -> None:
        """Begins anew."""
        for metric in (*self.losses.values(), *self.correlations.values(), *([self.genes] if self.genes else [])):
            metric.reset()


def _pooled(bins: Profile, chosen: Tensor) -> Float[Tensor, "1 n 1"]:
    return bins[chosen].reshape(1, -1, 1)


def _nothing(metric: GeneCellCorrelation) -> tuple[Any, ...]:
    """An update by no example, for a process that saw no start site where another did."""
    bins = torch.zeros(0, 1, 1, device=metric.device)
    tokens = torch.zeros(0, dtype=torch.int64, device=metric.device)
    return bins, bins, bins, tokens, tokens

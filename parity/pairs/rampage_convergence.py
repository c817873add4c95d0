"""The convergence rung of the fine-tuning model: as `epibert_convergence`, with two heads and two optimizers.

Task, seeds, initial weights, order of the batches, recipe and the way in which margin and number of pairs are found are
those of pre-training. What is trained is the fine-tuning model, by its own step on either side, and both heads are
scored by Poisson loss and Pearson correlation on the validation examples: RNA on all bins, accessibility on the masked
ones.

    python -m parity.pairs.rampage_convergence                       one rung; exit status 0 when it passes
    python -m parity.pairs.rampage_convergence --measure_pairs 30    measures the reference's spread anew
    python -m parity.pairs.rampage_convergence --repeat 20 --out FILE   repetitions with fresh seeds, one line each
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from parity.convergence import Run
from parity.pairs import epibert_convergence
from parity.pairs.epibert_convergence import (
    ARGUMENTS,
    FIRST_SEED,
    PAIRS,
    Constants,
    Experiment,
    ReferenceStack,
    Weights,
    examples,
    repeated,
    train_module,
)
from parity.pairs.planted_motifs import Examples

if TYPE_CHECKING:
    from torch_impl import EpiBERTRampage
    from torch_impl.rampage_lightning import EpiBERTRampageLightning

CASE = "planted motifs, fine-tuning"
COMMAND = "python -m parity.pairs.rampage_convergence --measure_pairs 30"
ATAC_SCALE = 0.1
"""Weight of the ATAC loss: small beside that of RNA, as in the original, and large enough to be felt in a short run."""

QUANTITIES = (*epibert_convergence.QUANTITIES, "ATAC losses", "ATAC pearsons")
"""Of RNA, which the model is for, and of accessibility."""

POINTWISE_DROPOUT = 0.20
"""Default of the original's fine-tuning constructor; that of pre-training, which a configuration has, is half of it."""


def score(prediction: np.ndarray) -> tuple[float, float]:
    """Poisson loss (spec, section 3.1) and Pearson correlation of RNA on all bins of the validation examples."""
    y = examples()[1].rna.astype(np.float64).reshape(-1)
    p = prediction.astype(np.float64).reshape(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.mean(p - y * np.log(p + 1e-7))), float(np.corrcoef(p, y)[0, 1])


def score_heads(atac: np.ndarray, rna: np.ndarray) -> tuple[float, ...]:
    """``QUANTITIES`` of a prediction; those of accessibility are as in pre-training."""
    return *score(rna), *epibert_convergence.score(atac)


class FinetuningStack(ReferenceStack):
    """The reference's fine-tuning model and its compiled step."""

    quantities = QUANTITIES

    def _model(self) -> Any:
        import tf_reference

        arguments = {**ARGUMENTS, "pointwise_dropout_rate": POINTWISE_DROPOUT}
        return tf_reference.EpiBERTRampage(**arguments, dtype="float32").build_weights()

    def _trained(self) -> Sequence[Sequence[Any]]:
        from tf_reference.training import finetuning_variables

        return finetuning_variables(self.model)

    def _step(self) -> Callable[..., Any]:
        from tf_reference.training import finetuning_step

        first, second = self.optimizers
        step = finetuning_step(self.model, (first, second), loss_type="poisson", atac_scale=ATAC_SCALE)

        def take(sequence: Any, atac: Any, mask: Any, _: Any, target: Any, motif_activity: Any, rna: Any) -> None:
            step((sequence, atac, motif_activity), rna, target, mask)

        return take

    def _batch(self, training: Examples, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        return *training.take(indices), training.rna[indices]

    def _scored(self, outputs: Any) -> Sequence[float]:
        return score_heads(*(output.numpy() for output in outputs))


def train_port(
    seed: int,
    initial: Weights,
    constants: Constants,
    prepare_port: "Callable[[EpiBERTRampage], None] | None" = None,
    port_training: "Callable[[EpiBERTRampageLightning], None] | None" = None,
) -> Run:
    """In the port's process: one run by a Lightning Trainer; arguments as for that of pre-training."""
    from torch_impl import EpiBERTConfig
    from torch_impl.rampage_lightning import EpiBERTRampageLightning

    def make() -> EpiBERTRampageLightning:
        config = EpiBERTConfig(**{**ARGUMENTS, "pointwise_dropout_rate": POINTWISE_DROPOUT})
        rates = epibert_convergence.RECIPE.module
        return EpiBERTRampageLightning(config, atac_scale=ATAC_SCALE, peak_rna=rates["peak"], **rates)

    training, validation = ((*chosen.arrays, chosen.rna) for chosen in examples())
    return train_module(
        make,
        seed,
        initial,
        constants,
        training=training,
        validation=validation,
        scored=lambda outputs: score_heads(*(output.numpy() for output in outputs)),
        quantities=QUANTITIES,
        prepare_port=prepare_port,
        port_training=port_training,
    )


@functools.cache
def finetuning() -> Experiment:
    """The experiment; its conditions need the examples, which are drawn when they are asked for."""
    return Experiment(
        case=CASE,
        measured=Path(__file__).with_suffix(".json"),
        command=COMMAND,
        stack=FinetuningStack,
        train_port=train_port,
        conditions={
            "model": "fine-tuning",
            "atac scale": ATAC_SCALE,
            "pointwise dropout": POINTWISE_DROPOUT,
            "starts": [float(chosen.rna.sum()) for chosen in examples()],
        },
    )


def converge(
    repeat: int = 1, first_seed: int = FIRST_SEED, pairs: int = PAIRS, out: str | None = None, measure_pairs: int = 0
) -> int:
    """Fine-tune reference and port on planted motifs and test whether they arrive at the same place.

    For measuring by hand, as that of pre-training: it asks for no proof of the rungs before and so claims nothing.
    Exit status 0: every repetition passed; 1: not.

    Args:
        repeat: As for pre-training.
        first_seed: As for pre-training.
        pairs: As for pre-training.
        out: As for pre-training.
        measure_pairs: As for pre-training.

    Raises:
        ValueError: As for pre-training.
    """
    return repeated(finetuning(), repeat, first_seed, pairs, out, measure_pairs)


if __name__ == "__main__":
    import sys

    from jsonargparse import auto_cli

    # By its own name, so that what is sent to the processes is found there.
    from parity.pairs.rampage_convergence import converge as command

    try:
        sys.exit(auto_cli(command, as_positional=False))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

"""The convergence rung of the fine-tuning model: as `epibert_convergence`, with two heads and two optimizers.

Task, seeds, initial weights, order of the batches, recipe and the way in which margin and number of pairs are found are
those of pre-training. What is trained is the fine-tuning model, by its own step on either side, and what is scored is
the RNA head: Poisson loss and Pearson correlation on all bins of the validation examples.

    python -m parity.pairs.rampage_convergence                       one rung; exit status 0 when it passes
    python -m parity.pairs.rampage_convergence --measure_pairs 30    measures the reference's spread anew
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from parity.convergence import Run, equivalence_power, find_equivalences
from parity.pairs import epibert_convergence
from parity.pairs.epibert_convergence import (
    ARGUMENTS,
    FIRST_SEED,
    PAIRS,
    REFERENCE_DROPOUT,
    Constants,
    Experiment,
    ReferenceStack,
    Weights,
    describe,
    examples,
    margins,
    measure,
    run_convergence,
    train_module,
)
from parity.pairs.planted_motifs import Examples
from parity.records import Status

if TYPE_CHECKING:
    from torch_impl import EpiBERTRampage
    from torch_impl.rampage_lightning import EpiBERTRampageLightning

CASE = "planted motifs, fine-tuning"
COMMAND = "python -m parity.pairs.rampage_convergence --measure_pairs 30"
ATAC_SCALE = 0.1
"""Weight of the ATAC loss: small beside that of RNA, as in the original, and large enough to be felt in a short run."""

POINTWISE_DROPOUT = 0.20
"""Default of the original's fine-tuning constructor; that of pre-training, which a configuration has, is half of it."""


def score(prediction: np.ndarray) -> tuple[float, float]:
    """Poisson loss (spec, section 3.1) and Pearson correlation of RNA on all bins of the validation examples."""
    y = examples()[1].rna.astype(np.float64).reshape(-1)
    p = prediction.astype(np.float64).reshape(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.mean(p - y * np.log(p + 1e-7))), float(np.corrcoef(p, y)[0, 1])


class FinetuningStack(ReferenceStack):
    """The reference's fine-tuning model and its compiled step."""

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

    def _scored(self, outputs: Any) -> tuple[float, float]:
        return score(outputs[1].numpy())


_reference_stack = functools.cache(FinetuningStack)


def initial_weights(seed: int) -> dict[str, np.ndarray]:
    """In the reference's process: see ``ReferenceStack.initial``."""
    return _reference_stack().initial(seed)


def constants() -> Constants:
    """In the reference's process: projection matrix and rotary table, which no checkpoint holds."""
    return _reference_stack().model.get_constants()


def train_reference(seed: int, dropout: int = REFERENCE_DROPOUT) -> Run:
    """In the reference's process: one run."""
    return _reference_stack().train(seed, dropout)


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

    recipe = epibert_convergence.RECIPE

    def make() -> EpiBERTRampageLightning:
        return EpiBERTRampageLightning(
            EpiBERTConfig(**{**ARGUMENTS, "pointwise_dropout_rate": POINTWISE_DROPOUT}),
            atac_scale=ATAC_SCALE,
            peak=recipe.peak,
            peak_rna=recipe.peak,
            warmup=recipe.warmup,
            decay=recipe.decay,
            floor=recipe.floor,
            epsilon=recipe.epsilon,
            weight_decay=recipe.weight_decay,
            global_clipnorm=recipe.global_clipnorm,
        )

    training, validation = ((*chosen.arrays, chosen.rna) for chosen in examples())
    return train_module(
        make,
        seed,
        initial,
        constants,
        training=training,
        validation=validation,
        scored=lambda outputs: score(outputs[1].numpy()),
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
        initial_weights=initial_weights,
        constants=constants,
        train_reference=train_reference,
        train_port=train_port,
        conditions={
            "model": "fine-tuning",
            "atac scale": ATAC_SCALE,
            "pointwise dropout": POINTWISE_DROPOUT,
            "starts": [float(chosen.rna.sum()) for chosen in examples()],
        },
    )


def converge(first_seed: int = FIRST_SEED, pairs: int = PAIRS, measure_pairs: int = 0) -> int:
    """Fine-tune reference and port on planted motifs and test whether they arrive at the same place.

    For measuring by hand, as that of pre-training: it asks for no proof of the rungs before and so claims nothing.
    Exit status 0: passed; 1: not.

    Args:
        first_seed: The first seed.
        pairs: Pairs of runs.
        measure_pairs: Measure the reference's own spread with this many seeds instead.
    """
    if measure_pairs:
        measure(measure_pairs, experiment=finetuning())
        return 0
    for line in describe(finetuning()):
        print(line)
    runs, rows = run_convergence(first_seed, pairs, experiment=finetuning())
    seeds = range(first_seed, first_seed + pairs)
    for decision in find_equivalences(runs, margins(experiment=finetuning()), seeds=seeds).values():
        power = equivalence_power(pairs, decision.margin, decision.standard_deviation)
        print(
            f"{decision.quantity}: mean difference {decision.mean:+.5f}, 90 % interval {decision.low:+.5f} to "
            f"{decision.high:+.5f}, margin ±{decision.margin:.5f}, power {power:.4f}"
        )
    failures = [row for row in rows if row.status is not Status.PASS]
    for row in failures:
        print(f"  {row.reference}{row.port} {row.quantity}: {row.status}, {row.detail}")
    print("FAILED" if failures else "passed")
    return 1 if failures else 0


if __name__ == "__main__":
    import sys

    from jsonargparse import auto_cli

    # By its own name, so that what is sent to the processes is found there.
    from parity.pairs.rampage_convergence import converge as command

    sys.exit(auto_cli(command, as_positional=False))

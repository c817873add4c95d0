"""Reference and port side by side, ready to be trained: the same weights, batches, dropout masks and noise.

It judges nothing; ``live_training`` does.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from parity.draws import Draws
from parity.keras_training import KerasTraining
from parity.layer_map import LayerMap
from parity.pairs import epibert
from parity.pairs.epibert_training.parts import PORT, PortTraining
from parity.pairs.epibert_training.recipes import (
    SEED,
    finetuning_recipe,
    finetuning_reference_recipe,
    port_recipe,
    reference_recipe,
)
from parity.pairs.epibert_training.tensors import tensor_pairs
from parity.torch_training import TorchTraining
from parity.training import Backward, Inputs, Snapshot, Targets
from torch_impl import EpiBERTConfig, EpiBERTRampage
from torch_impl.model import Trunk
from weights.table import kind_of

DROPOUT = {"dropout_rate": 0.20, "pointwise_dropout_rate": 0.10, "motif_dropout_rate": 0.25}
"""Rates of the published model, for cases that were recorded without dropout."""
TRAINING_BINS = 16
"""Window of the training rungs: no weight depends on the length, so a short one exercises all."""
STATE_STEPS = (1, 5)
RUN_APART = 1000
"""Training runs that are measured again are of batches of other steps: so many later than those of the run before."""
GRADIENT_RECIPE = {"loss_type": "poisson_multinomial", "unmasked": True}


class LivePair:
    """Reference and port with the same weights, constants and draws, and recipes to train them by.

    What the reference computes is remembered: several ports can be held against it.

    Args:
        config: What is trained, as ``training_config`` makes it.
        stored: The model's tensors by canonical path.
        port: The port with these weights.
        training: What trains the port.
        seed: From which batches and dropouts are drawn.
    """

    def __init__(
        self,
        config: EpiBERTConfig,
        stored: Mapping[str, np.ndarray],
        port: Trunk,
        training: PortTraining = PORT,
        *,
        seed: int = SEED,
    ) -> None:
        self.config = config
        self.stored = stored
        self.port = port
        self.training = training
        self.finetuning = isinstance(port, EpiBERTRampage)
        self.layer_map: LayerMap = epibert.layer_map_of(port)
        self.tensors = tensor_pairs(config, kind_of(port).table)
        self.draws = Draws(seed)
        self._remembered: dict[tuple[Any, ...], Any] = {}

    def of(self, port: Trunk, training: PortTraining = PORT) -> "LivePair":
        """Another port beside the same reference."""
        other = copy.copy(self)
        other.port, other.training = port, training
        return other

    def anew(self, stored: Mapping[str, np.ndarray], port: Trunk, *, seed: int) -> "LivePair":
        """The same models with other weights and other draws; what this pair remembers of them is no longer so.

        Args:
            stored: As for the pair, and so is the next.
            port: The port with these weights.
            seed: From which batches and dropouts are drawn.
        """
        other = self.of(port, self.training)
        other.stored = stored
        # The models' graphs hold on to these draws.
        other.draws.seed = seed
        other._remembered = {key: made for key, made in self._remembered.items() if key[0] in ("model", "side")}
        for key, made in other._remembered.items():
            if key[0] == "model":
                made.assign(stored)
        return other

    def side(self, **recipe: Any) -> TorchTraining:
        """The port, to be trained by a recipe."""
        own = (finetuning_recipe if self.finetuning else port_recipe)(self.training, **self._understood(recipe))
        return TorchTraining(self.port, self.layer_map, own, self.draws, epibert.set_precision)

    def reference(self, precision: str, **recipe: Any) -> KerasTraining:
        """The reference in a precision, to be trained by a recipe."""

        def build() -> Any:
            inputs, _ = self.batch(0)
            return epibert.build_reference(
                self.config, self.stored, precision, dropout=True, rampage=self.finetuning, inputs=inputs
            )

        model = self._remember(("model", precision), build)
        make = finetuning_reference_recipe if self.finetuning else reference_recipe
        return self._remember(
            ("side", precision, *sorted(recipe.items())),
            lambda: KerasTraining(model, model.checkpoint_variables(), make(**self._understood(recipe)), self.draws),
        )

    def _understood(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """A recipe's arguments without that for unmasked bins, which fine-tuning ignores (spec, section 3.1)."""
        return {name: value for name, value in recipe.items() if name != "unmasked" or not self.finetuning}

    def batch(self, step: int) -> tuple[Inputs, Targets]:
        """Inputs and targets of a step."""
        self.draws.step = step
        return drawn_batch(self.config, self.draws, finetuning=self.finetuning)

    def weights(self) -> dict[str, np.ndarray]:
        """The parameters by the port's names and in its layout."""
        return {
            pair.port: np.asarray(pair.to_port(self.stored[pair.reference]), dtype=np.float64)
            for pair in self.tensors
            if pair.trainable
        }

    def gradients(self, precision: str, step: int = 0, *, perturbed: int | None = None) -> Backward:
        """The reference's pass on the batch of a step, as it is or perturbed; the former on the first is remembered."""
        reference = self.reference(precision, **GRADIENT_RECIPE)
        if perturbed is not None:
            return reference.gradients(
                *self.batch(step), disturb=lambda key, value: perturb(key, step, value, draw=perturbed)
            )
        if step:
            return reference.gradients(*self.batch(step))
        return self._remember(("gradients", precision), lambda: reference.gradients(*self.batch(0)))

    def given_gradients(self, scale: float) -> list[dict[str, np.ndarray]]:
        """Drawn gradients of a size for a few steps, by the reference's keys and in its layout."""
        steps = []
        for step in range(max(STATE_STEPS)):
            self.draws.step = step
            steps.append(
                {
                    pair.reference: scale
                    * self.draws.generator(f"gradient|{pair.reference}").standard_normal(
                        self.stored[pair.reference].shape
                    )
                    for pair in self.tensors
                    if pair.trainable
                }
            )
        return steps

    def steps(self, optimizer: str, scale: float) -> list[Snapshot]:
        """The reference's steps along drawn gradients."""
        reference = self.reference("float64", optimizer=optimizer)
        return self._remember(
            ("steps", optimizer, scale), lambda: reference.steps(self.given_gradients(scale), self.tensors)
        )

    def batches(self, number: int) -> Callable[[int], tuple[Inputs, Targets]]:
        """Those of a training run of a number; dropouts go by the batch as well."""
        return lambda step: self.batch(number * RUN_APART + step)

    def run(
        self, precision: str, steps: int, *, perturbed: int | None = None, number: int = 0, remember: bool = True
    ) -> list[Snapshot]:
        """The reference's training run of a number, as it is or perturbed in every step, kept if it is the first."""
        reference = self.reference(precision)
        disturb = None if perturbed is None else functools.partial(perturb, draw=perturbed)

        def run() -> list[Snapshot]:
            return reference.run(self.batches(number), steps, self.tensors, disturb=disturb)

        return run() if number or not remember else self._remember(("run", precision, steps, perturbed), run)

    def _remember(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._remembered:
            self._remembered[key] = make()
        return self._remembered[key]


def training_config(config: EpiBERTConfig, bins: int = TRAINING_BINS) -> EpiBERTConfig:
    """A configuration as it is trained: with the published model's dropout where it has none, and a short window."""
    rates = {name: rate for name, rate in DROPOUT.items() if getattr(config, name) == 0.0}
    trimmed = config.output_length - config.final_output_length
    bins = max(bins, trimmed + 4)
    return dataclasses.replace(config, **rates, output_length=bins, final_output_length=bins - trimmed)


def drawn_batch(
    config: EpiBERTConfig, draws: Draws, *, batch: int = 2, finetuning: bool = False
) -> tuple[Inputs, Targets]:
    """Inputs and targets of the present step, with the data noise of the original (spec, section 4.2).

    Returns:
        (sequence, atac, motif_activity) and {target, mask, unmask}; the masks differ in size between examples. For
        fine-tuning also target_rna, roots of counts as its readers make them.
    """
    bases = draws.generator("sequence").choice(
        5, size=(batch, config.sequence_length), p=[0.249, 0.249, 0.249, 0.249, 0.004]
    )
    signal = draws.generator("atac").gamma(0.3, 4.0, size=(batch, config.atac_length, 1))
    noise = np.abs(draws.generator("atac noise").normal(1e-4, 1e-4, size=signal.shape))
    motifs = draws.generator("motifs").random((batch, 1, config.num_motifs))
    motifs += np.abs(draws.generator("motif noise").normal(0.0, 1e-4, size=motifs.shape))
    bins = config.output_length - 2 * config.crop
    target = draws.generator("target").gamma(0.5, 8.0, size=(batch, bins, 1))
    rates = np.linspace(0.2, 0.5, batch)[:, None, None]
    mask = (draws.generator("mask").random(target.shape) < rates).astype(np.int32)
    mask[:, 0] = 1  # an empty mask has no loss
    mask[:, 1] = 0
    kept = draws.generator("kept").random(signal.shape) >= 0.3
    inputs = (epibert.one_hot(bases), ((signal + noise) * kept).astype(np.float32), motifs.astype(np.float32))
    targets = {"target": target.astype(np.float32), "mask": mask, "unmask": 1 - mask}
    if finetuning:
        targets["target_rna"] = np.sqrt(draws.generator("target rna").gamma(0.3, 20.0, size=target.shape)).astype(
            np.float32
        )
    return inputs, targets


def perturb(key: str, step: int, value: np.ndarray, *, draw: int) -> np.ndarray:
    """Every number moved to a neighbour in its precision, up or down at random."""
    draws = Draws(draw)
    draws.step = step
    up = draws.generator(f"perturb|{key}").random(value.shape) < 0.5
    return np.nextafter(value, np.where(up, np.inf, -np.inf).astype(value.dtype))

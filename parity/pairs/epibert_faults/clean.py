"""Ports without a fault, of drawn shapes, weights and inputs: whatever does not pass here is a false alarm."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from parity.ladder import compare_live
from parity.pairs import epibert
from parity.pairs.epibert_training import live_functions, live_training
from parity.pairs.epibert_training.live_pair import LivePair
from parity.records import Comparison, Status
from parity.reference import LiveReference
from torch_impl import EpiBERT, EpiBERTConfig, EpiBERTRampage
from torch_impl.model import Trunk
from weights import transplant

EVERY_ROUNDING, EVERY_ROUNDING_OF_MODELS = 4, 16
"""All runs are compared in float64; every so many also in float32 and bfloat16 layer by layer, and as whole models."""

EVERY_LOSS, EVERY_TRAINING, EVERY_TRAJECTORY = 2, 10, 20
"""Every so many are also compared in losses and metrics, in gradients, optimizer steps and state, and as a whole run
of training."""

ROUNDED = ("float32", "bfloat16")
STEPS = 8
"""Of a run of training."""
BOTH_MODES = ("evaluation", "training")
TRAINING_RUNS = (("adam", 1e-2), ("adamw", 1.0))


def draw_config(seed: int) -> tuple[EpiBERTConfig, bool]:
    """A small configuration, and whether it is one of the fine-tuning model."""
    generator = np.random.default_rng([seed, 0])

    def one_of(*values: int) -> int:
        return int(generator.choice(values))

    heads, size = one_of(1, 2, 4), 2 * int(generator.integers(2, 6))
    depth, atac_depth = int(generator.integers(1, 5)), int(generator.integers(1, 3))
    widths = [int(width) for width in generator.integers(5, 25, size=depth - 1)] + [heads * size]
    bins = int(generator.integers(6, 25))
    finetuning = bool(generator.random() < 0.25)
    config = EpiBERTConfig(
        dropout_rate=0.2,
        pointwise_dropout_rate=0.1,
        motif_dropout_rate=0.25,
        input_length=bins * 128,
        output_length=bins,
        final_output_length=bins - int(generator.integers(0, 5)),
        num_heads=heads,
        num_transformer_layers=int(generator.integers(1, 4)),
        norm=bool(generator.integers(2)),
        max_seq_length=bins + int(generator.integers(0, 9)),
        BN_momentum=float(generator.choice([0.5, 0.9, 0.99])),
        use_rot_emb=bool(generator.integers(2)),
        seed=int(generator.integers(1000)),
        filter_list_seq=widths,
        filter_list_atac=[int(width) for width in generator.integers(6, 33, size=atac_depth)],
        final_point_scale=one_of(1, 2, 4),
        num_motifs=int(generator.integers(3, 30)),
        motif_units_fc=one_of(8, 16, 32),
        predict_atac=not finetuning or bool(generator.integers(2)),
    )
    return config, finetuning


class Models:
    """One drawn configuration and its models, which take longer to make than to run.

    Runs of one configuration share them, each with weights of its own in every variable.

    Args:
        number: From which the configuration is drawn.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.config, self.finetuning = draw_config(number)
        self._training: LivePair | None = None

    @functools.cached_property
    def float64(self) -> Any:
        """The reference in float64."""
        inputs = epibert.synthetic_inputs(self.config, batch=1, seed=self.number)
        return epibert.new_reference(self.config, "float64", rampage=self.finetuning, inputs=inputs)

    @functools.cached_property
    def _rounded(self) -> Mapping[str, Any]:
        inputs = epibert.synthetic_inputs(self.config, batch=1, seed=self.number)
        return epibert.lift(self.float64, epibert.draw_weights(self.float64, self.number), ROUNDED, inputs)

    def rounded(self, stored: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        """The reference in the other precisions, with these weights."""
        for model in self._rounded.values():
            model.assign(stored)
        return self._rounded

    def training(self, stored: Mapping[str, np.ndarray], port: Trunk, *, seed: int) -> LivePair:
        """Reference and port in training, with these weights, dropout on."""
        if self._training is None:
            self._training = LivePair(self.config, stored, port, seed=seed)
        else:
            self._training = self._training.anew(stored, port, seed=seed)
        return self._training


class Clean:
    """One port without a fault, and its reference.

    Args:
        seed: From which weights and inputs are drawn.
        models: A configuration and its models; those of the number ``seed`` by default.
    """

    def __init__(self, seed: int, models: Models | None = None) -> None:
        self.seed = seed
        self.models = Models(seed) if models is None else models
        self.config, self.finetuning = self.models.config, self.models.finetuning
        batch = 1 + seed % 3
        self.inputs = epibert.synthetic_inputs(self.config, batch=batch, seed=seed)
        self._model = self.models.float64
        self.stored = epibert.draw_weights(self._model, seed)
        self._model.assign(self.stored)
        self.described = (
            f"{'fine-tuning' if self.finetuning else 'pre-training'}, batch {batch}, {self.config.output_length} bins, "
            f"widths {list(self.config.filter_list_seq)} and {list(self.config.filter_list_atac)}, "
            f"{self.config.num_transformer_layers} layers of {self.config.num_heads} heads, "
            f"{'rotary' if self.config.use_rot_emb else 'no rotary'}, {'norm' if self.config.norm else 'no norm'}"
        )

    @functools.cached_property
    def live(self) -> LiveReference:
        """The reference in all precisions."""
        return self._reference({"float64": self._model, **self.models.rounded(self.stored)})

    def _reference(self, models: Mapping[str, Any]) -> LiveReference:
        return LiveReference(models, self.inputs, epibert.layer_map_of(self.port), self.described, remember=True)

    @functools.cached_property
    def port(self) -> Trunk:
        """The port, filled as from a checkpoint."""
        return self._make_port(self.config)

    @functools.cached_property
    def training_pair(self) -> LivePair:
        """Both in training, dropout on."""
        return self.models.training(self.stored, self._make_port(self.config), seed=self.seed)

    def _make_port(self, config: EpiBERTConfig) -> Trunk:
        port = (EpiBERTRampage if self.finetuning else EpiBERT)(config)
        projection, table = self._model.get_constants()
        constants = (projection, table if config.use_rot_emb else None, "living reference")
        transplant(self.stored, port, constants=constants)
        return port

    def rows(self) -> Iterator[Comparison]:
        """Everything that is compared."""
        projection, table = self._model.get_constants()
        yield from epibert.compare_weights(self.port, self.stored)
        yield from epibert.compare_constants(self.port, projection, table if self.config.use_rot_emb else None)
        side, layer_map = epibert.watch(self.port), epibert.layer_map_of(self.port)
        rounded = self.seed % EVERY_ROUNDING == 0
        live = self.live if rounded else self._reference({"float64": self._model})
        yield from compare_live(side, live, layer_map, modes=BOTH_MODES, precisions=("float64",))
        if rounded:
            whole = self.seed % EVERY_ROUNDING_OF_MODELS == 0
            gates = ("layers", "blocks", "model") if whole else ("layers",)
            yield from compare_live(side, live, layer_map, gates=gates, modes=BOTH_MODES, precisions=ROUNDED)
        if self.seed % EVERY_LOSS == 0:
            yield from self._losses()
        if self.seed % EVERY_TRAINING == 0:
            yield from live_training.live_gradients(self.training_pair)
            yield from live_training.live_steps(self.training_pair, runs=TRAINING_RUNS)
            whole = self.seed % EVERY_TRAJECTORY == 0
            yield from live_training.live_runs(self.training_pair, "float64", STEPS, draws=1, with_trajectory=whole)
            if whole:
                yield from live_training.live_runs(self.training_pair, "float32", STEPS)

    def _losses(self) -> Iterator[Comparison]:
        yield from live_functions.compare_losses(seed=self.seed)
        yield from live_functions.compare_metrics(seed=self.seed)
        if self.finetuning:
            yield from live_functions.compare_finetuning_losses(seed=self.seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """What came of a clean run, in the words of ``CleanRun``."""

    comparisons: Mapping[str, int]
    alarms: tuple[str, ...]
    second_looks: tuple[str, ...]


def judge(clean: Clean) -> Judged:
    """How much was compared of what, what did not pass, and what was measured again."""
    counts: Counter[str] = Counter()
    alarms, again = [], []
    for row in clean.rows():
        counts[" ".join(filter(None, (row.gate, row.precision, row.mode)))] += 1
        where = f"{row.gate} {row.precision} {row.mode} {row.reading} {row.port or '(model)'} [{row.quantity}]"
        if row.status is not Status.PASS:
            alarms.append(f"{where}: {row.status}, error {row.error}, limit {row.limit} {row.detail}")
        if row.looks:
            first = row.looks[0]
            again.append(
                f"{where}: {first.error:.2g} against {first.reference_error:.2g} on the first input, "
                f"{row.error:.2g} against {row.reference_error:.2g} on {len(row.looks)}"
            )
    return Judged(comparisons=dict(sorted(counts.items())), alarms=tuple(alarms), second_looks=tuple(again))

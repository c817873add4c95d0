"""Ports without a fault, of drawn shapes, weights and inputs: whatever does not pass here is a false alarm."""

import functools
from collections import Counter
from collections.abc import Iterator

import numpy as np

from parity.ladder import compare_live
from parity.pairs import epibert, epibert_training
from parity.pairs.epibert_training import LivePair
from parity.records import Comparison, Status
from parity.reference import LiveReference
from torch_impl import EpiBERT, EpiBERTConfig, EpiBERTRampage
from torch_impl.model import Trunk
from weights import transplant

EVERY_ROUNDING, EVERY_ROUNDING_OF_MODELS, EVERY_TRAINING = 4, 16, 10
"""All runs are compared in float64; every so many also in float32 and bfloat16 layer by layer, as whole models, and in
training."""

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


class Clean:
    """One port without a fault, and its reference.

    Args:
        seed: From which everything is drawn.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.config, self.finetuning = draw_config(seed)
        model = epibert.new_reference(self.config, "float64", rampage=self.finetuning)
        self.stored = epibert.draw_weights(model, seed)
        model.assign(self.stored)
        self._model = model
        batch = 1 + seed % 3
        self.inputs = epibert.synthetic_inputs(self.config, batch=batch, seed=seed)
        self.described = (
            f"{'fine-tuning' if self.finetuning else 'pre-training'}, batch {batch}, {self.config.output_length} bins, "
            f"widths {list(self.config.filter_list_seq)} and {list(self.config.filter_list_atac)}, "
            f"{self.config.num_transformer_layers} layers of {self.config.num_heads} heads, "
            f"{'rotary' if self.config.use_rot_emb else 'no rotary'}, {'norm' if self.config.norm else 'no norm'}"
        )

    @functools.cached_property
    def live(self) -> LiveReference:
        """The reference in all precisions."""
        models = epibert.lift(self._model, self.stored, ("float64", "float32", "bfloat16"))
        return LiveReference(models, self.inputs, epibert.layer_map_of(self.port), "living reference")

    @functools.cached_property
    def port(self) -> Trunk:
        """The port, filled as from a checkpoint."""
        return self._make_port(self.config)

    @functools.cached_property
    def training_pair(self) -> LivePair:
        """Both in training, dropout on."""
        return LivePair(self.config, self.stored, self._make_port(self.config))

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
        exact = LiveReference({"float64": self._model}, self.inputs, layer_map, self.described)
        yield from compare_live(side, exact, layer_map, modes=BOTH_MODES)
        if self.seed % EVERY_ROUNDING == 0:
            whole = self.seed % EVERY_ROUNDING_OF_MODELS == 0
            gates = ("layers", "blocks", "model") if whole else ("layers",)
            rounded = compare_live(side, self.live, layer_map, gates=gates, modes=BOTH_MODES)
            yield from (row for row in rounded if row.precision != "float64")
        if self.seed % EVERY_TRAINING == 0:
            yield from epibert_training.live_gradients(self.training_pair)
            yield from epibert_training.live_steps(self.training_pair, runs=TRAINING_RUNS)
            yield from epibert_training.live_runs(self.training_pair, "float64", 5, with_trajectory=False)


def judge(clean: Clean) -> tuple[dict[str, int], tuple[str, ...]]:
    """How much was compared of what, and what did not pass."""
    counts: Counter[str] = Counter()
    alarms = []
    for row in clean.rows():
        counts[" ".join(filter(None, (row.gate, row.precision, row.mode)))] += 1
        if row.status is not Status.PASS:
            alarms.append(
                f"{row.gate} {row.precision} {row.mode} {row.reading} {row.port or '(model)'} [{row.quantity}]: "
                f"{row.status}, error {row.error}, limit {row.limit} {row.detail}"
            )
    return dict(sorted(counts.items())), tuple(alarms)

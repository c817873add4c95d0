"""Scripts for the culprits of a run: port and reference of its cases, made again."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from parity.pairs import epibert
from parity.pairs.epibert_run import (
    GOLDENS,
    INPUT_SEED,
    SHORT_WINDOW,
    PreparePort,
    load_case,
    model_tensors,
    open_checkpoint,
)
from parity.records import Result
from parity.reference import LiveReference, read_goldens
from parity.repro import Bench, write_repros
from torch_impl import EpiBERT, EpiBERTConfig, EpiBERTRampage
from weights import transplant
from weights.checkpoint import Checkpoint
from weights.mapping import is_fine_tuning

PRECISIONS = ("float64", "float32", "bfloat16")


def write_scripts(
    result: Result,
    folder: Path,
    *,
    checkpoint: str | None = None,
    config: str | None = None,
    bins: int = SHORT_WINDOW,
    batch: int = 2,
    goldens: str | Path = GOLDENS,
    prepare_port: PreparePort | None = None,
) -> Result:
    """Writes a script for each culprit of a run.

    Args:
        result: What ``parity.pairs.epibert_run.run`` returned.
        folder: Where to write.
        checkpoint: As ``run`` was given, like all that follow.
        config: See there; a name of recorded cases is ignored.
        bins: See there.
        batch: See there.
        goldens: See there.
        prepare_port: See there.

    Returns:
        The result, whose culprits name their scripts or say why there is none.
    """
    made: dict[str, _Live] = {}

    @contextlib.contextmanager
    def benches(case: str) -> Iterator[Bench]:
        name, _, variant = case.partition(", ")
        if name not in made:
            if checkpoint is not None:
                made[name] = _own(checkpoint, config, bins, batch, prepare_port)
            elif name.endswith(" live"):
                made[name] = _recorded(Path(goldens) / name.removesuffix(" live"), prepare_port)
            else:
                raise LookupError(f"nothing can be fed from {case}")
        with made[name].bench(variant) as bench:
            yield bench

    return write_repros(result, benches, folder)


class _Live:
    """A port and a living reference."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: EpiBERTConfig,
        inputs: tuple[np.ndarray, ...],
        prepare_port: PreparePort | None,
    ) -> None:
        finetuning = is_fine_tuning(checkpoint, config)
        stored = model_tensors(checkpoint, config)
        self.port: Any = (EpiBERTRampage if finetuning else EpiBERT)(config)
        transplant(checkpoint, self.port, constants="tensorflow")
        if prepare_port is not None:
            prepare_port(self.port)
        self.models = {
            precision: epibert.build_reference(config, stored, precision, rampage=finetuning)
            for precision in PRECISIONS
        }
        self.layer_map = epibert.layer_map(config, rampage=finetuning)
        self.live = LiveReference(self.models, inputs, self.layer_map, "living reference")

    @contextlib.contextmanager
    def bench(self, variant: str) -> Iterator[Bench]:
        side = epibert.watch(self.port)
        if variant == "drawn weights":
            model = self.models["float64"]
            with epibert.drawn_weights(self.port, model):
                live = LiveReference({"float64": model}, self.live.inputs, self.layer_map, self.live.name)
                yield Bench(port=side, live=live, layer_map=self.layer_map)
            return
        live = self.live.on_other_inputs() if variant == "other inputs" else self.live
        yield Bench(port=side, live=live, layer_map=self.layer_map)


def _recorded(folder: Path, prepare_port: PreparePort | None) -> _Live:
    config, checkpoint = load_case(folder)
    recording = read_goldens(folder / "forward.h5", name="recorded")
    return _Live(checkpoint, config, epibert.recorded_inputs(recording), prepare_port)


def _own(path: str, config: str | None, bins: int, batch: int, prepare_port: PreparePort | None) -> _Live:
    checkpoint, _, window = open_checkpoint(path, config, bins, batch)
    inputs = epibert.synthetic_inputs(window, batch=batch, seed=INPUT_SEED)
    return _Live(checkpoint, window, inputs, prepare_port)

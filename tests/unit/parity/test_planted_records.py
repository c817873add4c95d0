"""Planted motifs as records: what the pipeline makes of them, and that the command learns them."""

import json
from pathlib import Path

import numpy as np
import pytest

from parity.pairs import planted_motifs
from parity.pairs.planted_records import BINS, NUM_MOTIFS, SEEDS, draw_records, write
from tests.unit.sources import ROOT
from tests.unit.torch_impl.training import finish, start
from torch_impl.data.draws import InferenceDraws
from torch_impl.data.examples import ExampleConfig, make_example
from torch_impl.data.store import Store

CONFIG = ExampleConfig.tiny(num_motifs=NUM_MOTIFS, mask_size=256, training=False)


def test_the_pipeline_gives_the_task_back():
    examples = planted_motifs.draw(7, 2, bins=BINS, crop=0, bin_length=128, values_per_bin=32)
    for index, record in enumerate(draw_records(7, 2)):
        drawn = InferenceDraws(0, 0).draw(record, CONFIG)
        example = make_example(record, drawn, CONFIG)
        assert example.sequence.tolist() == examples.sequence[index].argmax(axis=-1).tolist()
        # Activities keep their scale, to the rounding of float16.
        np.testing.assert_allclose(example.motif_activity[0, :3], examples.motif_activity[index, 0], atol=1e-3)
        assert example.motif_activity[0, 3:].tolist() == [0, 1]
        np.testing.assert_allclose(example.target, examples.target[index, 2:-2], atol=0.05)


def test_a_folder_has_three_sets_of_different_records(tmp_path):
    assert write(str(tmp_path / "out"), train=3, valid=2, test=1) == 0
    stores = {subset: Store(tmp_path / "out" / subset) for subset in SEEDS}
    assert {subset: len(store) for subset, store in stores.items()} == {"train": 3, "valid": 2, "test": 1}
    assert len({store[0].letters for store in stores.values()}) == 3


def pearson(folder: Path) -> float:
    lines = (folder / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    return [float(row["val_pearson"]) for row in rows if row["val_pearson"]][-1]


@pytest.mark.slow
def test_the_command_learns_the_task(tmp_path):
    """Half of the run that the README reports."""
    write(str(tmp_path / "data"))
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger"}
    found = {}
    for subcommand, options in (
        ("validate", []),
        ("fit", ["--trainer.max_epochs", 4, "--model.init_args.decay", 462]),
    ):
        arguments = {"save_dir": str(tmp_path), "name": subcommand, "version": ""}
        status, said = finish(
            start(
                subcommand,
                "--config",
                ROOT / "configs" / "planted.yaml",
                "--data.init_args.folder",
                tmp_path / "data",
                "--trainer.logger",
                json.dumps([{**logger, "init_args": arguments}]),
                *options,
            )
        )
        assert status == 0, said
        found[subcommand] = pearson(tmp_path / subcommand)
    assert abs(found["validate"]) < 0.2
    assert found["fit"] > 0.7

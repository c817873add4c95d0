"""The configuration files: each makes the model and the data that it describes, and differs where it says so."""

import dataclasses
import warnings
from typing import Any

import lightning
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from parity.pairs import planted_starts
from tests.records import synthetic_records
from tests.unit.sources import ROOT
from torch_impl.data.convert import convert_tfrecord_to_hdf5
from torch_impl.data.examples import ExampleConfig
from torch_impl.data.tfrecord import write_records
from torch_impl.data_module import EpiBERTDataModule
from torch_impl.finetuning_data import FinetuningDataModule
from torch_impl.rampage_lightning import EpiBERTRampageLightning

CONFIGS = ("finetune", "finetune_corrected", "finetune_tiny")


def text(name: str) -> str:
    return (ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8")


def built(name: str, *arguments: str) -> tuple[Any, Any, lightning.Trainer]:
    """Model (its tensors without memory), data and Trainer of a file, made as LightningCLI makes them."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--seed_everything", type=int)
    parser.add_subclass_arguments(lightning.LightningModule, "model")
    parser.add_subclass_arguments(lightning.LightningDataModule, "data")
    parser.add_class_arguments(lightning.Trainer, "trainer")
    parser.add_argument("--config", action="config")
    found = parser.parse_args([f"--config={ROOT / 'configs' / f'{name}.yaml'}", *arguments])
    with torch.device("meta" if name != "finetune_tiny" else "cpu"):
        made = parser.instantiate(found)
    return made.model, made.data, made.trainer


@pytest.mark.parametrize("name", CONFIGS)
def test_every_file_makes_a_model_and_data_that_fit_each_other(name):
    model, data, trainer = built(name)
    assert type(model) is EpiBERTRampageLightning
    assert type(data) is (EpiBERTDataModule if name == "finetune_tiny" else FinetuningDataModule)
    config, examples = model.model.config, data.config
    assert (config.sequence_length, config.atac_length) == (examples.input_length, examples.output_length_ATAC)
    assert config.sequence_length == config.input_length
    assert (config.output_length, config.crop) == (examples.output_length, examples.crop_size)
    assert config.num_motifs == examples.num_motifs
    assert examples.finetuning
    assert trainer.gradient_clip_val is None


MODEL, DATA, EXAMPLES = "model/init_args", "data/init_args", "data/init_args/config"
STOPPING, CHECKPOINTS = (f"trainer/callbacks/{number}/init_args" for number in (0, 1))
PUBLISHED: dict[str, Any] = {
    # Spec, section 3.6, column `execute_finetuning.sh`; what the script leaves at its own or the constructor's default
    # likewise. 34021 * 8 examples make an epoch but for one step (3.5).
    "seed_everything": 1,
    f"{MODEL}/config/input_length": 524288,
    f"{MODEL}/config/output_length": 4096,
    f"{MODEL}/config/final_output_length": 896,
    f"{MODEL}/config/num_heads": 8,
    f"{MODEL}/config/num_transformer_layers": 8,
    f"{MODEL}/config/max_seq_length": 4096,
    f"{MODEL}/config/seed": 19,
    f"{MODEL}/config/filter_list_seq": [512, 640, 640, 768, 896, 1024],
    f"{MODEL}/config/filter_list_atac": [32, 64],
    f"{MODEL}/config/final_point_scale": 6,
    f"{MODEL}/config/dropout_rate": 0.20,
    f"{MODEL}/config/pointwise_dropout_rate": 0.10,
    f"{MODEL}/config/motif_dropout_rate": 0.25,
    f"{MODEL}/config/motif_units_fc": 32,
    f"{MODEL}/config/num_motifs": 693,
    f"{MODEL}/config/BN_momentum": 0.90,
    f"{MODEL}/config/predict_atac": True,
    f"{MODEL}/loss_type": "poisson",
    f"{MODEL}/total_weight": 0.15,
    f"{MODEL}/atac_scale": 0.001,
    f"{MODEL}/peak": 5e-4,
    f"{MODEL}/peak_rna": 5e-4,
    f"{MODEL}/warmup": 5000,
    f"{MODEL}/decay": 500_000,
    f"{MODEL}/floor": 0.05,
    f"{MODEL}/constant_rate": False,
    f"{MODEL}/epsilon": 1e-8,
    f"{MODEL}/weight_decay": 1e-4,
    f"{MODEL}/global_clipnorm": 0.05,
    f"{EXAMPLES}/input_length": 524288,
    f"{EXAMPLES}/output_length_ATAC": 131072,
    f"{EXAMPLES}/output_length": 4096,
    f"{EXAMPLES}/crop_size": (4096 - 896) // 2,
    f"{EXAMPLES}/output_res": 128,
    f"{EXAMPLES}/max_shift": 4,
    f"{EXAMPLES}/mask_size": 8 * 128,
    f"{EXAMPLES}/atac_mask_dropout": 0.075,
    f"{EXAMPLES}/atac_corrupt_rate": 1000,
    f"{EXAMPLES}/log_atac": False,
    f"{EXAMPLES}/use_atac": True,
    f"{EXAMPLES}/use_seq": True,
    f"{EXAMPLES}/use_motif_activity": True,
    f"{EXAMPLES}/num_motifs": 693,
    f"{EXAMPLES}/finetuning": True,
    f"{DATA}/batch_size": 1,
    f"{DATA}/seed": 1,
    f"{DATA}/train_examples": 34021 * 8,
    f"{DATA}/valid_examples": 86550,
    f"{DATA}/holdout_examples": 13848,
    f"{STOPPING}/patience": 50,
    f"{STOPPING}/min_delta": 5e-7,
    "trainer/max_epochs": 100,
    f"{CHECKPOINTS}/every_n_epochs": 1,
    f"{CHECKPOINTS}/save_top_k": 50,
    # Sections 1.6, 1.10, 3.4, 3.5, 4.6 and 7, by the number of the quirk where it has one.
    f"{MODEL}/config/identical_attention_init": True,  # 6
    f"{MODEL}/faithful_bf16": True,  # 4
    f"{DATA}/validation_seed": 19,  # 21
    f"{DATA}/order": "files",  # 42
    f"{DATA}/fresh_validation_draws": True,  # 35
    f"{DATA}/bfloat16_inputs": True,
    f"{DATA}/train_passes": 3,  # 31
    f"{DATA}/valid_every": 2,
    f"{DATA}/valid_take": 13848,  # 23
    f"{DATA}/valid_passes": 48,
    f"{STOPPING}/monitor": "val_loss",
    f"{STOPPING}/every": 2,  # 24
    f"{STOPPING}/check_finite": False,  # 29
    f"{CHECKPOINTS}/save_on_train_epoch_end": True,
    f"{CHECKPOINTS}/monitor": "step",
    f"{CHECKPOINTS}/mode": "max",
    "trainer/check_val_every_n_epoch": 1,
    "trainer/limit_train_batches": 1.0,
    "trainer/limit_val_batches": 1.0,
    "trainer/num_sanity_val_steps": 0,
    "trainer/gradient_clip_val": None,
}
CORRECTED: dict[str, Any] = {
    f"{MODEL}/config/identical_attention_init": False,
    f"{MODEL}/faithful_bf16": False,
    f"{DATA}/validation_seed": 25,
    f"{DATA}/order": "records",
    f"{DATA}/fresh_validation_draws": False,
    f"{DATA}/train_examples": None,
    f"{DATA}/train_passes": None,
    f"{DATA}/valid_examples": None,
    f"{DATA}/holdout_examples": None,
    f"{DATA}/valid_take": None,
    f"{DATA}/valid_passes": None,
    f"{DATA}/valid_every": 1,
    f"{STOPPING}/every": 1,
    f"{STOPPING}/check_finite": True,
    f"{CHECKPOINTS}/save_on_train_epoch_end": False,
    f"{CHECKPOINTS}/monitor": "val_loss",
    f"{CHECKPOINTS}/mode": "min",
    f"{CHECKPOINTS}/save_top_k": 1,
    "trainer/num_sanity_val_steps": 2,
}
OURS = {
    "model/class_path",
    "data/class_path",
    f"{DATA}/folder",
    f"{DATA}/holdout_folder",
    f"{DATA}/workers",
    f"{CHECKPOINTS}/save_last",
    "trainer/logger/0/class_path",
    "trainer/logger/0/init_args/save_dir",
    *(f"trainer/callbacks/{number}/class_path" for number in range(3)),
    *(f"trainer/callbacks/2/init_args/{name}" for name in ("every_n_train_steps", "save_top_k", "filename")),
}
"""Settings of which the script says nothing: classes, places, and checkpoints to resume from."""


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """Every setting of a file by its path."""
    if isinstance(tree, dict):
        parts = tree.items()
    elif isinstance(tree, list) and tree and isinstance(tree[0], dict):
        parts = enumerate(tree)
    else:
        return {path: tree}
    return {k: v for name, part in parts for k, v in leaves(part, f"{path}/{name}" if path else str(name)).items()}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("finetune", PUBLISHED), ("finetune_corrected", {**PUBLISHED, **CORRECTED})],
    ids=["published", "corrected"],
)
def test_every_setting_is_that_of_the_specification(name, expected):
    found = leaves(yaml.safe_load(text(name)))
    assert found.keys() == expected.keys() | OURS
    assert {path: value for path, value in found.items() if path not in OURS} == expected


def test_the_files_differ_where_the_second_one_says_so_and_nowhere_else():
    published, corrected = (leaves(yaml.safe_load(text(name))) for name in CONFIGS[:2])
    changed = {path for path in published if published[path] != corrected[path]}
    assert changed == CORRECTED.keys()
    assert {path for path in OURS if published[path] != corrected[path]} == set()
    lines = [line.strip() for line in text("finetune_corrected").splitlines()]
    written = {path: f"{path.rpartition('/')[2]}: {_written(corrected[path])}" for path in changed}
    # One comment stands above all the lines that it is about; between them are only such lines.
    about = {*written.values(), f"every_n_epochs: {published[f'{CHECKPOINTS}/every_n_epochs']}"}
    for path, line in written.items():
        last = len(lines) - 1 - lines[::-1].index(line)
        above = next(other for other in reversed(lines[:last]) if other not in about)
        assert above.startswith("#"), path


def _written(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def test_what_the_published_file_makes_takes_the_scripts_steps(tmp_path, monkeypatch):
    model, data, trainer = built("finetune")
    assert data.config == ExampleConfig.finetuning_preset()
    assert model.model.compute_dtype == torch.bfloat16
    stopping: Any = trainer.early_stopping_callback
    assert (stopping.counting.patience, stopping.every) == (50, data.valid_every)
    # 8 processes, one example each: 1 + 34021 * 8 // 8 steps, 86550 // 8 and 13848 // 8 (spec, section 3.5).
    small = ExampleConfig.tiny(num_motifs=3, finetuning=True)
    for subset in ("train", "valid"):
        (tmp_path / "source" / subset).mkdir(parents=True)
        for number in range(8):
            write_records(tmp_path / "source" / subset / f"{number}.tfr", synthetic_records(small, 1, seed=number))
    convert_tfrecord_to_hdf5(tmp_path / "source", tmp_path / "records")
    data.config, data.workers = small, 0
    data.folder = data.holdout_folder = tmp_path / "records"
    data.trainer = trainer
    monkeypatch.setattr(lightning.Trainer, "world_size", 8)
    monkeypatch.setattr(lightning.Trainer, "global_rank", 3)
    assert len(data.train_dataloader()) == 1 + 34021
    assert [len(loader) for loader in data.val_dataloader()] == [86550 // 8, 13848 // 8]


def test_a_misspelt_setting_is_refused():
    with pytest.raises(Exception, match="atac_scales"):
        built("finetune_tiny", "--model.init_args.atac_scales=1")


@pytest.mark.slow
def test_the_tiny_file_learns_the_planted_task(tmp_path):
    planted_starts.write(str(tmp_path / "planted"))
    torch.manual_seed(1)
    model, data, _ = built("finetune_tiny", f"--data.init_args.folder={tmp_path / 'planted'}")
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=4, enable_checkpointing=False, **quiet)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*deprecated.*")  # Lightning's own use of PyTorch
        (before,) = trainer.validate(model, data, verbose=False)
        trainer.fit(model, data)
        (after,) = trainer.validate(model, data, verbose=False)
    assert abs(before["val_rna_pearson"]) < 0.4
    for name in ("val_rna_pearson", "val_atac_pearson", "val_cell_pearson", "val_gene_pearson"):
        assert after[name] > 0.6, after
    assert after["val_loss"] < before["val_loss"]


def test_planted_starts_say_what_the_examples_do(tmp_path):
    planted_starts.write(str(tmp_path), training=6, validation=4)
    config = dataclasses.replace(built("finetune_tiny")[1].config, training=False)
    data = EpiBERTDataModule(tmp_path, config, batch_size=4)
    (batch,) = data.val_dataloader()
    drawn = planted_starts.draw(2, 4, **planted_starts.SHAPE)
    sequence, atac, mask, _, target, motifs, rna, tokens, gene, cell = batch
    assert rna.shape == (4, 60, 1)
    assert motifs.shape == (4, 1, 5)
    assert gene.tolist() == [0, 0, 0, 0]
    assert cell.tolist() == [0, 1, 2, 3]
    for index in range(4):
        kept = drawn.counts[index, 2:-2]
        # One strand or the other; the noise of the pipeline is small.
        assert any(torch.allclose(target[index, :, 0], torch.from_numpy(side.copy()), atol=0.1)
                   for side in (kept, kept[::-1]))  # fmt: skip
    assert tokens.sum() == drawn.sites[:, 2:-2].sum()
    assert bool((atac.reshape(4, 64, 32).sum(-1)[:, 2:-2][mask[..., 0] == 1] == 0).all())
    assert sequence.shape == (4, 8192)

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
from tests.unit.sources import ROOT
from torch_impl.data.examples import ExampleConfig
from torch_impl.data_module import EpiBERTDataModule
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
    assert type(data) is EpiBERTDataModule
    config, examples = model.model.config, data.config
    assert (config.sequence_length, config.atac_length) == (examples.input_length, examples.output_length_ATAC)
    assert config.sequence_length == config.input_length
    assert (config.output_length, config.crop) == (examples.output_length, examples.crop_size)
    assert config.num_motifs == examples.num_motifs
    assert examples.finetuning
    assert trainer.gradient_clip_val is None


def test_the_published_settings_are_the_scripts():
    """The column of `execute_finetuning.sh` in the specification's table, section 3.6."""
    model, data, trainer = built("finetune")
    config = model.model.config
    assert (config.num_heads, config.num_transformer_layers, config.seed) == (8, 8, 19)
    assert (config.final_output_length, config.crop, config.max_seq_length) == (896, 1600, 4096)
    assert config.filter_list_seq == (512, 640, 640, 768, 896, 1024)
    assert (config.dropout_rate, config.pointwise_dropout_rate, config.BN_momentum) == (0.2, 0.1, 0.9)
    assert (model.loss_type, model.total_weight, model.atac_scale) == ("poisson", 0.15, 0.001)
    assert (model.peak, model.peak_rna, model.warmup, model.decay, model.floor) == (5e-4, 5e-4, 5000, 500_000, 0.05)
    assert (model.epsilon, model.weight_decay, model.global_clipnorm) == (1e-8, 1e-4, 0.05)
    assert data.config == ExampleConfig.finetuning_preset()
    assert (data.seed, data.validation_seed, data.batch_size) == (1, 19, 1)
    assert trainer.limit_train_batches == 1 + 34021 * 8
    stopping: Any = trainer.early_stopping_callback
    # Every loss counts in two epochs there.
    assert (stopping.counting.patience * trainer.check_val_every_n_epoch, stopping.counting.min_delta) == (50, 5e-7)
    assert trainer.max_epochs == 100


def test_what_the_corrected_file_changes_has_its_reason_on_the_line_before():
    published, corrected = (yaml.safe_load(text(name)) for name in CONFIGS[:2])

    def leaves(tree: Any, path: str = "") -> dict[str, Any]:
        if isinstance(tree, dict):
            return {k: v for name, value in tree.items() for k, v in leaves(value, f"{path}/{name}").items()}
        if isinstance(tree, list) and tree and isinstance(tree[0], dict):
            return {k: v for index, value in enumerate(tree) for k, v in leaves(value, f"{path}/{index}").items()}
        return {path: tree}

    before, after = leaves(published), leaves(corrected)
    changed = {path.rpartition("/")[2] for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed == {
        *("identical_attention_init", "validation_seed", "order", "fresh_validation_draws", "limit_train_batches"),
        *("check_val_every_n_epoch", "patience", "check_finite"),
        *("every_n_epochs", "save_on_train_epoch_end", "monitor", "mode", "save_top_k"),
    }
    lines = text("finetune_corrected").splitlines()
    for name in changed - {"every_n_epochs", "save_on_train_epoch_end", "mode", "save_top_k", "monitor"}:
        numbers = [number for number, line in enumerate(lines) if line.strip().startswith(f"{name}:")]
        assert all("#" in lines[number - 1] for number in numbers), name


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

"""Fine-tuning in Lightning: five steps of the original's own, what is logged, and what a Trainer makes of it."""

import copy
import dataclasses
import functools
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import lightning
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from parity.pairs import epibert
from parity.pairs.epibert_training import recorded_training
from parity.pairs.epibert_training.parts import ADAM_EPSILON, ATAC_SCALE, CLIP, TOTAL_WEIGHT, WEIGHT_DECAY
from parity.reference import read_goldens
from tests.assertions import assert_same
from tests.unit.sources import ROOT
from torch_impl import EpiBERTConfig, rampage_lightning
from torch_impl.checkpointing import TrainingError
from torch_impl.data.examples import ExampleConfig
from torch_impl.early_stopping import EpiBERTEarlyStopping
from torch_impl.epibert_lightning import EpiBERTLightning
from torch_impl.metrics import R2, GeneCellCorrelation, PearsonR
from torch_impl.optim import CosineWarmup, JointOptimizer, cosine_warmup
from torch_impl.rampage_lightning import EpiBERTRampageLightning
from weights import transplant
from weights.table import RAMPAGE_TABLE, rows

ON_CPU = SimpleNamespace(root_device=torch.device("cpu"))
"""A Trainer's strategy, as far as modules ask it."""
CONFIG = EpiBERTConfig(
    output_length=8,
    final_output_length=6,
    max_seq_length=8,
    num_heads=2,
    num_transformer_layers=1,
    filter_list_seq=(8, 12),
    filter_list_atac=(8,),
    final_point_scale=2,
    num_motifs=3,
)
SETTINGS: dict[str, Any] = {"peak": 0.01, "peak_rna": 0.03, "warmup": 4, "decay": 10, "floor": 0.2, "epsilon": 1e-6}


@functools.cache
def example(number: int, *, validation: bool = False) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(number)
    letters = torch.randint(0, 4, (CONFIG.sequence_length,), generator=generator)
    mask = (torch.rand(6, 1, generator=generator) < 0.5).int()
    mask[0] = 1
    fields = (
        torch.nn.functional.one_hot(letters, 4).float(),
        torch.rand(CONFIG.atac_length, 1, generator=generator),
        mask,
        1 - mask,
        torch.rand(6, 1, generator=generator) * 5,
        torch.rand(1, 3, generator=generator),
        torch.rand(6, 1, generator=generator) * 3,
    )
    tokens = (torch.rand(6, 1, generator=generator) < 0.7).float()
    return (*fields, tokens, torch.tensor(number % 4), torch.tensor(number // 4)) if validation else fields


def batch(numbers: range, *, validation: bool = False) -> list[Tensor]:
    examples = [example(number, validation=validation) for number in numbers]
    return [torch.stack(values) for values in zip(*examples, strict=True)]


@pytest.fixture
def module(monkeypatch) -> Any:
    torch.manual_seed(0)
    built: Any = EpiBERTRampageLightning(CONFIG, **SETTINGS)
    logged: dict[str, Tensor] = {}
    monkeypatch.setattr(built, "log", lambda name, value, **_: logged.__setitem__(name, value))
    built.logged = logged
    return built


# --- against the original


def recorded(folder: Path) -> tuple[EpiBERTRampageLightning, list[Tensor]]:
    """The module with the recorded weights, constants and settings, in float64, and the recorded batch."""
    config = EpiBERTConfig(**json.loads((folder / "config.json").read_text())["config"])
    recording = read_goldens(folder / "forward.h5", name="recorded")
    built = EpiBERTRampageLightning(
        config,
        loss_type="poisson_multinomial",
        total_weight=TOTAL_WEIGHT,
        atac_scale=ATAC_SCALE,
        peak_rna=recorded_training.RECORDED_SCHEDULE["peak"],
        epsilon=ADAM_EPSILON,
        weight_decay=WEIGHT_DECAY,
        global_clipnorm=CLIP,
        **recorded_training.RECORDED_SCHEDULE,
    ).double()
    transplant(folder / "ckpt_before", built.model, constants=(*epibert.recorded_constants(recording), "recorded"))
    sequence, atac, motifs = (torch.from_numpy(array).double() for array in epibert.recorded_inputs(recording))
    targets = {name: torch.from_numpy(array) for name, array in recorded_training.recorded_targets(recording).items()}
    rna, atac_target = targets["target_rna"].double(), targets["target"].double()
    return built, [sequence, atac, targets["mask"], targets["unmask"], atac_target, motifs, rna]


def test_five_steps_are_those_of_the_original(monkeypatch):
    """Both optimizers with weight decay, as a Trainer would drive them, and the metrics of training after them."""
    module, given = recorded(ROOT / "goldens" / "R1")
    logged: dict[str, Tensor] = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.__setitem__(name, value))
    configured: Any = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    with h5py.File(ROOT / "goldens" / "R1" / "train.h5") as file:
        expected = file["f64/poisson_multinomial_adamw"]
        losses = []
        for step in range(1, 6):
            optimizer.zero_grad()
            loss = module.training_step(given, 0)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
            if step in (1, 5):
                state = module.model.state_dict()
                for row in rows(module.model.config, RAMPAGE_TABLE):
                    value = expected[f"weights_after_{step}/{row.path}"]
                    if "axis" not in value.attrs:
                        assert_same(state[row.name], row.layout.to_port(value[()]), "optimizer", what=row.name)
        assert_same(torch.stack(losses), expected["train_loss"][()], "state")
        module.on_train_epoch_end()
        metrics = {name: value[()] for name, value in expected["metrics"].items()}
        steps = {name: expected[name][()] for name in ("train_loss", "train_loss_rna", "train_loss_atac")}
    assert metrics.keys() == {f"{head}_{kind}_tr" for head in ("RNA", "ATAC") for kind in ("PearsonR", "R2")}
    for name, value in metrics.items():
        head, kind, _ = name.lower().split("_")
        assert_same(logged[f"train_{head}_{kind.removesuffix('r')}"], value.squeeze(), "float32_metric", what=name)
    for name, values in steps.items():
        assert_same(logged[f"{name}_epoch"], values.mean(), "float32_only", what=name)


# --- by itself


def test_both_optimizers_are_one_with_rates_of_their_own(module):
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    assert type(optimizer) is JointOptimizer
    assert type(schedule) is CosineWarmup
    assert configured["lr_scheduler"]["interval"] == "step"
    members: Any = optimizer.members
    assert [member.global_clipnorm for member in members] == [0.05, 0.05]
    trunk, head = members
    names = {id(parameter): name for name, parameter in module.model.named_parameters()}
    trained = [{names[id(p)] for group in member.param_groups for p in group["params"]} for member in (trunk, head)]
    assert trained[1] == {name for name in names.values() if "_rna." in name}
    assert trained[0] == set(names.values()) - trained[1]
    for member, peak in ((trunk, 0.01), (head, 0.03)):
        assert {group["lr"] for group in member.param_groups} == {cosine_warmup(0, peak, 4, 10, 0.2)}
        assert [group["weight_decay"] for group in member.param_groups] == [1e-4, 0.0]


def test_all_that_learns_is_the_model(module):
    assert {name.partition(".")[0] for name, _ in module.named_parameters()} == {"model"}


@pytest.mark.parametrize("predict_atac", [True, False])
def test_a_validation_logs_losses_and_correlations(monkeypatch, predict_atac):
    torch.manual_seed(0)
    module: Any = EpiBERTRampageLightning(dataclasses.replace(CONFIG, predict_atac=predict_atac), **SETTINGS).eval()
    logged: dict[str, Tensor] = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.__setitem__(name, value))
    parts = [batch(range(0, 5), validation=True), batch(range(5, 12), validation=True)]
    for _ in range(2):  # each validation begins anew
        logged.clear()
        predictions = [module.validation_step(part, 0) for part in parts]
        module.on_validation_epoch_end()
        heads = {"rna", "atac"} if predict_atac else {"rna"}
        names = {f"val_{head}_{name}" for head in heads for name in ("pearson", "r2")}
        names |= {"val_loss", "val_cell_pearson", "val_gene_pearson"} | {f"val_loss_{head}" for head in heads}
        assert logged.keys() == names
    losses = [module.loss(prediction, part) for prediction, part in zip(predictions, parts, strict=True)]
    assert_same(logged["val_loss"], torch.stack([loss.total for loss in losses]).mean(), "float32_only")
    assert_same(logged["val_loss_rna"], torch.stack([loss.rna for loss in losses]).mean(), "float32_only")
    metrics = {"pearson": PearsonR(), "r2": R2()}
    genes = GeneCellCorrelation()
    for (atac, rna), part in zip(predictions, parts, strict=True):
        assert (atac is not None) == predict_atac
        for metric in metrics.values():
            metric.update(rna, part[6])
        genes.update(rna, part[6], *part[7:])
    for name, metric in metrics.items():
        assert_same(logged[f"val_rna_{name}"], metric.compute().squeeze(), "exact")
    for name in ("cell_pearson", "gene_pearson"):
        assert_same(logged[f"val_{name}"], genes.compute()[name], "exact")


def test_correlations_of_accessibility_are_those_of_masked_bins(module):
    module.eval()
    part = batch(range(6))
    atac, _ = module.validation_step(part, 0)
    module.on_validation_epoch_end()
    masked = part[2] == 1
    metric = PearsonR()
    metric.update(atac[masked].reshape(1, -1, 1), part[4][masked].reshape(1, -1, 1))
    assert_same(module.logged["val_atac_pearson"], metric.compute().squeeze(), "exact")
    # Without start sites in the batches there is nothing to say about genes.
    assert not {name for name in module.logged if "gene" in name or "cell" in name}


def test_the_second_validation_set_has_names_and_sums_of_its_own(module):
    module.eval()
    first, second = batch(range(8), validation=True), batch(range(4, 12), validation=True)
    module.validation_step(first, 0, 0)
    module.on_validation_epoch_end()
    alone = dict(module.logged)
    assert not {name for name in alone if name.endswith("_ho")}
    module.logged.clear()
    module.validation_step(second, 0, 1)
    module.on_validation_epoch_end()
    # An epoch in which the first set is not validated says nothing of it.
    assert module.logged.keys() == {f"{name}_ho" for name in alone}
    held_out = dict(module.logged)
    module.logged.clear()
    for number, part in enumerate((first, second)):
        module.validation_step(part, 0, number)
    module.on_validation_epoch_end()
    assert module.logged.keys() == alone.keys() | held_out.keys()
    for name, value in (alone | held_out).items():
        assert_same(module.logged[name], value, "exact", what=name)


def test_training_is_reported_by_epoch_and_apart_from_validation(module):
    parts = [batch(range(4)), batch(range(4, 8))]
    module.training_step(parts[0], 0)
    module.validation_step(batch(range(8, 12), validation=True), 0)
    module.on_validation_epoch_end()
    assert not {name for name in module.logged if name.startswith("train_") and name.endswith(("pearson", "r2"))}
    module.training_step(parts[1], 1)
    module.on_train_epoch_end()
    heads = ("rna", "atac")
    names = {f"train_{head}_{name}" for head in heads for name in ("pearson", "r2")}
    names |= {"train_loss", "train_loss_epoch"} | {
        f"train_loss_{head}{end}" for head in heads for end in ("", "_epoch")
    }
    assert {name for name in module.logged if name.startswith("train_")} == names
    assert not module.logged["train_rna_pearson"].requires_grad
    first = module.logged["train_loss_epoch"]
    module.training_step(parts[1], 0)  # each epoch begins anew
    module.on_train_epoch_end()
    assert_same(module.logged["train_loss_epoch"], module.logged["train_loss"].detach(), "float32_only")
    assert module.logged["train_loss_epoch"] != first


def test_nothing_is_reported_of_an_epoch_that_was_resumed_in_its_middle(module):
    parts = [batch(range(4)), batch(range(4, 8))]
    module.training_step(parts[0], 1)
    module.on_train_epoch_end()
    assert module.logged.keys() == {"train_loss", "train_loss_rna", "train_loss_atac"}
    module.training_step(parts[1], 0)  # nor does the next one hold any of it
    module.on_train_epoch_end()
    assert_same(module.logged["train_loss_epoch"], module.logged["train_loss"].detach(), "float32_only")
    assert "train_rna_pearson" in module.logged


def test_the_rates_stay_after_the_warm_up_if_told_to():
    module = EpiBERTRampageLightning(CONFIG, **SETTINGS, constant_rate=True)
    configured: Any = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    for step in range(20):
        rates = {group["lr"] for group in optimizer.param_groups}
        assert rates == {cosine_warmup(step, peak, 4, 10, 0.2, constant=True) for peak in (0.01, 0.03)}
        optimizer.step()
        schedule.step()
    assert rates == {0.01, 0.03}


@pytest.mark.parametrize("stage", ["validation", "test"])
def test_no_example_is_counted_twice(stage):
    module: Any = EpiBERTRampageLightning(CONFIG)
    loaders = [SimpleNamespace(sampler=SimpleNamespace(repeated=number)) for number in (0, 1)]
    start = getattr(module, f"on_{stage}_start")
    for given in (loaders[0], loaders[:1], DataLoader(Numbered(range(2), validation=True))):
        module._trainer = SimpleNamespace(val_dataloaders=given, test_dataloaders=given)
        start()
    for given in (loaders[1], loaders):
        module._trainer = SimpleNamespace(val_dataloaders=given, test_dataloaders=given)
        with pytest.raises(TrainingError, match="1 examples would be counted twice"):
            start()


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (EpiBERTRampageLightning, "loss_type", "poisson_multinomial"),
        (EpiBERTRampageLightning, "total_weight", 0.5),
        (EpiBERTRampageLightning, "atac_scale", 0.5),
        (EpiBERTRampageLightning, "global_clipnorm", None),
        (EpiBERTRampageLightning, "peak_rna", 0.5),
        (EpiBERTLightning, "unmask_loss", True),
        (EpiBERTLightning, "global_clipnorm", 0.5),
    ],
)
def test_a_run_goes_on_with_its_loss_and_its_rates(kind, name, value):
    module: Any = kind(CONFIG)
    module._trainer = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.FITTING))
    saved = dict(module.hparams)
    module.on_load_checkpoint({"hyper_parameters": saved})
    with pytest.raises(TrainingError, match=f"the settings that it began with: {name}: the checkpoint has {value}"):
        module.on_load_checkpoint({"hyper_parameters": saved | {name: value}})


class Numbered(Dataset[tuple[Tensor, ...]]):
    def __init__(self, numbers: range, *, validation: bool) -> None:
        self.numbers, self.validation = numbers, validation

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return example(self.numbers[index], validation=self.validation)


def test_a_trainer_trains_validates_tests_predicts_and_goes_on(tmp_path):
    def trainer(epochs: int) -> lightning.Trainer:
        return lightning.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            callbacks=[EpiBERTEarlyStopping(patience=3)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def fitted(epochs: int, resumed: Path | None = None) -> tuple[lightning.Trainer, EpiBERTRampageLightning]:
        torch.manual_seed(0)
        rates = {"dropout_rate": 0.0, "pointwise_dropout_rate": 0.0, "motif_dropout_rate": 0.0}
        module = EpiBERTRampageLightning(dataclasses.replace(CONFIG, **rates), **SETTINGS)
        made = trainer(epochs)
        made.fit(module, *loaders, ckpt_path=None if resumed is None else str(resumed))
        return made, module

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*deprecated.*")  # Lightning's own use of PyTorch
        loaders = (
            DataLoader(Numbered(range(8), validation=False), batch_size=4),
            DataLoader(Numbered(range(8, 20), validation=True), batch_size=5),
        )
        made, module = fitted(2)
        assert "train_loss" in made.callback_metrics
        # States of metrics that a validation without training has left behind do for one with training.
        made.validate(module, loaders[1], verbose=False)
        trainer(1).fit(copy.deepcopy(module), *loaders)
        assert made.global_step == 4  # one step a batch, though there are two optimizers
        assert {"val_loss", "val_loss_atac", "val_gene_pearson", "val_cell_pearson"} <= set(made.callback_metrics)
        rates = [group["lr"] for group in made.optimizers[0].param_groups]
        assert rates == [cosine_warmup(4, peak, 4, 10, 0.2) for peak in (0.01, 0.01, 0.03, 0.03)]
        first, _ = fitted(1)
        first.save_checkpoint(tmp_path / "first.ckpt")
        _, again = fitted(2, tmp_path / "first.ckpt")
        for name, value in module.model.state_dict().items():
            assert_same(again.model.state_dict()[name], value, "exact", what=name)
        assert set(made.test(module, loaders[1], verbose=False)[0]) >= {"test_loss", "test_gene_pearson"}
        predictions: Any = made.predict(module, loaders[0])
    assert [(atac.shape, rna.shape) for atac, rna in predictions] == [((4, 6, 1), (4, 6, 1))] * 2


@pytest.mark.parametrize("predict_atac", [True, False])
def test_what_may_be_watched_is_what_is_logged(monkeypatch, predict_atac):
    torch.manual_seed(0)
    module: Any = EpiBERTRampageLightning(dataclasses.replace(CONFIG, predict_atac=predict_atac), **SETTINGS)
    logged: dict[str, Tensor] = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.__setitem__(name, value))
    part = batch(range(0, 5), validation=True)
    module.training_step(part[:7], 0)
    module.on_train_epoch_end()
    module.eval()
    for number in (0, 1):
        module.validation_step(part, 0, number)
    module.on_validation_epoch_end()
    assert logged.keys() == set(module.logged_names)


@pytest.mark.parametrize(("name", "value"), [("peak_rna", -1.0), ("atac_scale", float("nan")), ("epsilon", 0.0)])
def test_an_option_out_of_range_is_named(name, value):
    with pytest.raises(TrainingError, match=f"^{name} must be "):
        EpiBERTRampageLightning(CONFIG, **{**SETTINGS, name: value})


@pytest.mark.parametrize("allowed", [True, False])
def test_a_run_chooses_tf32(monkeypatch, allowed):
    chosen = []
    monkeypatch.setattr(rampage_lightning, "choose_tf32", chosen.append)
    module: Any = EpiBERTRampageLightning(CONFIG, **SETTINGS, tf32=allowed)
    module._trainer = SimpleNamespace(precision="32-true", datamodule=None, strategy=ON_CPU)
    module.setup("fit")
    assert chosen == [allowed]


@pytest.mark.parametrize("kind", [EpiBERTLightning, EpiBERTRampageLightning])
def test_each_module_is_trained_on_examples_of_its_own_kind(kind):
    module: Any = kind(CONFIG)
    own = kind is EpiBERTRampageLightning
    for finetuning in (False, True):
        lengths = ExampleConfig(
            input_length=CONFIG.sequence_length,
            output_length_ATAC=CONFIG.atac_length,
            output_length=CONFIG.output_length,
            crop_size=CONFIG.crop,
            output_res=CONFIG.sequence_length // CONFIG.output_length,
            num_motifs=CONFIG.num_motifs,
            mask_size=2 * CONFIG.sequence_length // CONFIG.output_length,
            finetuning=finetuning,
        )
        module._trainer = SimpleNamespace(
            precision="32-true", datamodule=SimpleNamespace(config=lengths), strategy=ON_CPU
        )
        module.setup("predict")  # targets are not looked at
        for stage in ("fit", "validate", "test"):
            if finetuning is own:
                module.setup(stage)
                continue
            with pytest.raises(TrainingError, match=f"finetuning is {finetuning}, the model needs {own}"):
                module.setup(stage)


def test_the_model_and_the_trainer_do_not_both_round():
    module: Any = EpiBERTRampageLightning(CONFIG, **SETTINGS, faithful_bf16=True)
    module._trainer = SimpleNamespace(precision="bf16-mixed", datamodule=None)
    with pytest.raises(TrainingError, match="faithful_bf16 rounds by itself"):
        module.setup("fit")

"""Training that starts from somewhere: TensorFlow, a transplanted folder, another run; and goes back."""

import dataclasses
import json
import types
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.assertions import assert_same
from tests.unit.torch_impl.training import as_folder, load
from tests.unit.weights.samples import SMALL, arguments, build, fingerprint, prefix
from torch_impl import EpiBERT, EpiBERTConfig
from torch_impl.callbacks import ResumableTraining
from torch_impl.checkpointing import SafeCheckpointIO
from torch_impl.epibert_lightning import EpiBERTLightning
from torch_impl.optim import cosine_warmup
from weights import CheckpointError, export, read_checkpoint, transplant
from weights.command import diff, export_command, inspect, transplant_command
from weights.errors import MappingError
from weights.initialize import InitializeFrom, fill
from weights.lightning_checkpoint import load_lightning
from weights.object_graph import SUFFIX

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*LeafSpec.*deprecated.*",
    "ignore:You defined a `validation_step` but have no `val_dataloader`.*",
    "ignore:.*is supported for historical reasons but its usage is discouraged.*",
)
WITHOUT_DROPOUT = {"dropout_rate": 0.0, "pointwise_dropout_rate": 0.0, "motif_dropout_rate": 0.0}
CONFIG = EpiBERTConfig(**{**SMALL, **WITHOUT_DROPOUT})
RATES = {"peak": 1e-2, "warmup": 4, "decay": 20, "floor": 0.1}
STEPS = 10
AFTER = "P1/ckpt_after_poisson"


def batches(count: int) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(11)
    found = []
    for _ in range(count):
        letters = torch.randint(4, (2, CONFIG.sequence_length), generator=generator)
        sizes = ((CONFIG.atac_length, 1), (CONFIG.final_output_length, 1), (1, CONFIG.num_motifs))
        atac, target, motifs = (torch.rand(2, *size, generator=generator, dtype=torch.float64) for size in sizes)
        mask = torch.ones_like(target)
        mask[0, 0] = 0
        found.append([nn.functional.one_hot(letters, 4).double(), atac, mask, 1 - mask, 5 * target, motifs])
    return found


def fit(
    folder: Path,
    data: list[list[Tensor]],
    *callbacks: Any,
    max_steps: int,
    config: EpiBERTConfig = CONFIG,
    precision: Any = "64-true",
) -> tuple[EpiBERTLightning, lightning.Trainer, list[float], list[float]]:
    """The module after some steps, losses and rates of them."""
    found: list[float] = []
    rates: list[float] = []

    class Losses(lightning.Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            found.append(float(outputs["loss"]))

    module = EpiBERTLightning(config, **RATES)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        precision=precision,
        max_steps=max_steps,
        callbacks=[ResumableTraining(0), *callbacks, Losses()],
        plugins=[SafeCheckpointIO()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, DataLoader(data, batch_size=None))  # type: ignore[arg-type]
    return module, trainer, found, rates


class Reference:
    """The reference in training, and its checkpoints."""

    def __init__(self, tensorflow: Any) -> None:
        import tf_reference
        from tf_reference import optim
        from tf_reference.training import pretraining_step

        self.tf = tensorflow
        names = {field.name for field in dataclasses.fields(EpiBERTConfig)}
        given = {**SMALL, **WITHOUT_DROPOUT}
        assert given.keys() <= names
        self.model = tf_reference.EpiBERT(**given, dtype="float64").build_weights()
        self.optimizer = optim.adam(epsilon=1e-8, global_clipnorm=1.0)
        self.optimizer.build(self.model.trainable_variables)
        self.step = pretraining_step(self.model, self.optimizer, loss_type="poisson")
        self.checkpoint = tensorflow.train.Checkpoint(model=self.model, optimizer=self.optimizer)

    def train(self, data: list[list[Tensor]], first: int) -> list[float]:
        found = []
        for number, batch in enumerate(data, start=first):
            sequence, atac, mask, _, target, motifs = (self.tf.constant(tensor.numpy()) for tensor in batch)
            self.optimizer.learning_rate = cosine_warmup(number, *RATES.values())
            found.append(float(self.step((sequence, atac, motifs), target, mask, None)))
        return found

    def restore(self, path: Path) -> None:
        """An exported checkpoint, whose learning rate is in float32 as in the original's, by an optimizer like that."""
        from tf_reference import optim

        other = optim.adam(epsilon=1e-8, global_clipnorm=1.0, dtype="float32")
        other.build(self.model.trainable_variables)
        status = self.tf.train.Checkpoint(model=self.model, optimizer=other).restore(str(path))
        status.assert_existing_objects_matched()
        for mine, restored in zip(self.optimizer.variables, other.variables, strict=True):
            mine.assign(self.tf.cast(restored, mine.dtype))

    def tensors(self) -> dict[str, np.ndarray]:
        return {key: variable.numpy() for key, variable in self.model.checkpoint_variables().items()}


def assert_close(found: Any, expected: Any, name: str) -> None:
    """What a gradient of zero has moved, which is rounding noise, is related to one."""
    small = float(abs(expected).max()) < 1e-8
    assert_same(found + small, expected + small, "optimizer", what=name)


def test_five_steps_in_tensorflow_and_five_in_lightning_are_ten_in_tensorflow(tensorflow, tmp_path):
    """And the other way: five in Lightning, exported, and five in TensorFlow."""
    data = batches(STEPS)
    reference = Reference(tensorflow)
    constants = reference.model.get_constants()
    start = reference.checkpoint.save(str(tmp_path / "start"))
    losses = reference.train(data[:5], 0)
    middle = reference.checkpoint.save(str(tmp_path / "middle"))
    losses += reference.train(data[5:], 5)
    expected = reference.tensors()

    given: Any = (*constants, "reference")
    begin = InitializeFrom(middle, training_state=True, constants=given)
    module, trainer, found, rates = fit(tmp_path, data[5:], begin, max_steps=STEPS)
    assert trainer.global_step == STEPS
    assert rates == [cosine_warmup(step, *RATES.values()) for step in range(5, STEPS)]
    assert_same(np.array(found), np.array(losses[5:]), "optimizer", what="losses")
    port = EpiBERT(CONFIG).double()
    transplant(expected, port, constants=given)
    for name, value in port.state_dict().items():
        if isinstance(value, Tensor):
            assert_close(module.model.state_dict()[name], value, name)

    first = InitializeFrom(start, constants=given)
    _, trainer, found, _ = fit(tmp_path, data[:5], first, max_steps=5)
    assert_same(np.array(found), np.array(losses[:5]), "optimizer", what="first losses")
    trainer.save_checkpoint(tmp_path / "port.ckpt")
    assert export_command(str(tmp_path / "port.ckpt"), str(tmp_path / "back"), dtype="float64") == 0
    reference.restore(tmp_path / "back" / "ckpt-1")
    assert_same(
        np.array(reference.train(data[5:], 5)), np.array(losses[5:]), "optimizer", what="losses of the way back"
    )
    for key, value in reference.tensors().items():
        assert_close(value, expected[key], key)


def test_without_the_training_state_training_begins_anew(tmp_path):
    config = EpiBERTConfig(**arguments("P1"))
    model = EpiBERT(config)
    fill(prefix(AFTER), model, constants="philox")
    begin = InitializeFrom(str(prefix(AFTER)), constants="philox")
    module, trainer, _, rates = fit(tmp_path, batches(1), begin, max_steps=0, config=config, precision="32-true")
    assert (trainer.global_step, rates) == (0, [])
    assert fingerprint(module.model) == fingerprint(model)


def test_every_source_fills_the_same_model(tmp_path):
    config = EpiBERTConfig(**arguments("P1"))
    expected = build("P1")
    record = transplant(prefix(AFTER), expected, constants="philox")
    record.save(tmp_path / "folder", expected)
    module, trainer, _, _ = fit(
        tmp_path, batches(1), InitializeFrom(str(prefix(AFTER)), constants="philox"), max_steps=0, config=config,
        precision="32-true",
    )  # fmt: skip
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    for source in (prefix(AFTER), tmp_path / "folder", tmp_path / "run.ckpt"):
        model = build("P1")
        fill(source, model, constants="philox")
        assert fingerprint(model) == fingerprint(expected), source
    assert fingerprint(module.model) == fingerprint(expected)


def test_a_run_and_its_export_hold_the_same(tmp_path, capsys):
    data = batches(3)
    _, trainer, _, _ = fit(tmp_path, data, max_steps=3, precision="32-true")
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    assert export_command(str(tmp_path / "run.ckpt"), str(tmp_path / "out")) == 0
    written = read_checkpoint(tmp_path / "out" / "ckpt-1")
    assert int(written["optimizer/_iterations" + SUFFIX]) == 3
    rate = np.float32(cosine_warmup(3, *RATES.values()))
    assert written["optimizer/_learning_rate" + SUFFIX] == rate
    model, training_state = load_lightning(tmp_path / "run.ckpt")
    back = EpiBERT(CONFIG)
    record = transplant(tmp_path / "out" / "ckpt-1", back, constants="keep")
    for name, value in model.named_parameters():
        assert torch.equal(back.state_dict()[name], value), name
        for moment in ("exp_avg", "exp_avg_sq"):
            np.testing.assert_array_equal(record.training_state[f"{moment}/{name}"], training_state[f"{moment}/{name}"])
    assert diff(str(tmp_path / "run.ckpt"), str(tmp_path / "out" / "ckpt-1")) == 1
    assert "1 of" in capsys.readouterr().out  # the save counter, which a run does not have


@pytest.mark.parametrize("precision", [pytest.param("32-true", marks=pytest.mark.slow), "64-true"])
def test_the_folder_of_a_sharded_model_is_as_good_as_a_file(tmp_path, capsys, precision):
    _, trainer, _, _ = fit(tmp_path, batches(2), max_steps=2, precision=precision)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    file, folder = tmp_path / "run.ckpt", as_folder(load(tmp_path / "run.ckpt"), tmp_path / "folder.ckpt")
    for name, source in (("of file", file), ("of folder", folder)):
        assert transplant_command(str(source), str(tmp_path / name)) == 0
        dtype = "float64" if precision == "64-true" else None
        assert export_command(str(source), str(tmp_path / f"tensorflow {name}"), dtype=dtype) == 0
    expected = load_lightning(file)[0]
    for source in (folder, tmp_path / "of file", tmp_path / "of folder"):
        model = EpiBERT(CONFIG).to(next(expected.parameters()).dtype)
        training_state = fill(source, model)
        assert fingerprint(model) == fingerprint(expected), source
        assert training_state["optimizer/iterations"] == 2
        assert diff(str(source), str(file)) == 0, capsys.readouterr().out
    assert diff(str(tmp_path / "tensorflow of folder"), str(tmp_path / "tensorflow of file")) == 0
    assert inspect(str(folder)) == 0
    shown = capsys.readouterr().out
    assert "Lightning checkpoint, " in shown
    assert "configuration of a pre-training model" in shown
    record = json.loads((tmp_path / "of folder" / "transplant.json").read_text())
    assert record["kind"] == "Lightning checkpoint"
    assert {each["name"] for each in record["files"]} == {path.name for path in folder.iterdir()}
    with pytest.raises(CheckpointError, match="tells its configuration"):
        transplant_command(str(folder), str(tmp_path / "again"), seed=3)
    (folder / ".metadata").unlink()
    with pytest.raises(CheckpointError, match=r"it has no \.metadata"):
        fill(folder, EpiBERT(CONFIG))


@pytest.mark.parametrize("source", ["absent", "other model", "other kind", "rounded", "no training state"])
def test_what_cannot_be_taken_is_named_and_the_model_stays(tmp_path, source):
    config, path, state = EpiBERTConfig(**arguments("P1")), str(prefix(AFTER)), False
    if source == "absent":
        path = str(tmp_path / "absent")
    elif source == "other model":
        config = CONFIG
    elif source == "other kind":
        path = str(prefix("R1/ckpt_before"))
    elif source == "rounded":
        config = CONFIG
        _, trainer, _, _ = fit(tmp_path, batches(1), max_steps=0)
        trainer.save_checkpoint(tmp_path / "run.ckpt")
        path = str(tmp_path / "run.ckpt")
    else:
        path, state = str(prefix("P1/ckpt_before")), True
    module = EpiBERTLightning(config, **RATES)
    before = fingerprint(module.model)
    callback = InitializeFrom(path, training_state=state, constants="philox")
    expected = {"rounded": "would be rounded", "no training state": "the training state has no"}
    if state:
        with pytest.raises(CheckpointError, match=expected[source]):
            fit(tmp_path, batches(1), callback, max_steps=1, config=config, precision="32-true")
        return
    with pytest.raises(CheckpointError, match=expected.get(source, ".")):
        callback.fill(module.model)
    assert fingerprint(module.model) == before


def test_a_resumed_run_takes_nothing(tmp_path):
    data = batches(2)
    _, trainer, _, _ = fit(tmp_path, data, max_steps=2)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    begin = InitializeFrom(str(tmp_path / "absent"))
    module = EpiBERTLightning(CONFIG, **RATES)
    resumed = lightning.Trainer(
        accelerator="cpu", devices=1, precision="64-true", max_steps=3, callbacks=[ResumableTraining(0), begin],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    resumed.fit(module, DataLoader(data, batch_size=None), ckpt_path=tmp_path / "run.ckpt", weights_only=True)  # type: ignore[arg-type]
    assert resumed.global_step == 3


def test_a_run_without_names_of_parameters_says_so(tmp_path):
    _, trainer, _, _ = fit(tmp_path, batches(1), max_steps=1)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    content = torch.load(tmp_path / "run.ckpt", weights_only=True)
    del content["optimizer_parameters"]
    torch.save(content, tmp_path / "run.ckpt")
    with pytest.raises(MappingError, match="does not say which parameters"):
        load_lightning(tmp_path / "run.ckpt")


def test_export_of_a_model_alone(tmp_path):
    assert export(EpiBERT(CONFIG), tmp_path / "out").name == "ckpt-1"


@pytest.mark.parametrize("change", [{"seed": 7}, {"layer_norm_epsilon": 1e-3}], ids=str)
def test_a_model_that_computes_something_else_with_the_same_tensors_is_no_source(tmp_path, change):
    source = build("P1")
    transplant(prefix(AFTER), source, constants="philox").save(tmp_path / "source", source)
    model = EpiBERT(dataclasses.replace(source.config, **change))
    before = fingerprint(model)
    with pytest.raises(MappingError, match=next(iter(change))):
        fill(tmp_path / "source", model)
    assert fingerprint(model) == before


@pytest.mark.parametrize("hook", ["on_validation_start", "on_test_start", "on_predict_start"])
@pytest.mark.parametrize("why", ["trained", "a checkpoint of the Trainer's", "nothing else"])
def test_weights_that_were_trained_or_loaded_are_not_replaced(monkeypatch, hook, why):
    filled: list[str] = []
    monkeypatch.setattr(InitializeFrom, "fill", lambda self, model: filled.append(self.path) or {})
    callback, module = InitializeFrom("somewhere"), EpiBERTLightning(CONFIG)
    state = types.SimpleNamespace(fn=TrainerFn.VALIDATING)
    path = "some.ckpt" if why == "a checkpoint of the Trainer's" else None
    trainer: Any = types.SimpleNamespace(ckpt_path=path, print=lambda text: None, state=state)
    if why == "trained":
        callback.on_fit_start(trainer, module)
        filled.clear()
    getattr(callback, hook)(trainer, module)
    assert filled == (["somewhere"] if why == "nothing else" else [])


def test_there_is_nothing_to_allow_where_nothing_is_transferred():
    callback = InitializeFrom(str(prefix(AFTER)), constants="philox", allow=["layers"])
    with pytest.raises(CheckpointError, match="so there is nothing to allow: layers"):
        callback.fill(EpiBERT(EpiBERTConfig(**arguments(AFTER))))

import hashlib
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.weights.samples import AFTER, CHECKPOINTS, arguments, build, fingerprint, prefix
from weights import CheckpointError, export, read_checkpoint, transplant
from weights.errors import MappingError, OutputError
from weights.object_graph import GRAPH_KEY, SUFFIX, ObjectGraph
from weights.table import RAMPAGE_TABLE, rows

CHECKPOINT = "P1/ckpt_after_poisson"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_the_round_trip_is_bit_identical(tmp_path, checkpoint, dtype):
    """Every tensor but one: the object graph is structure; the next test compares what it says."""
    model = build(checkpoint, dtype)
    record = transplant(prefix(checkpoint), model, constants="philox")
    written = export(model, tmp_path / "out", training_state=record.training_state)
    before, after = read_checkpoint(prefix(checkpoint)), read_checkpoint(written)
    assert list(after) == list(before)
    if checkpoint in AFTER:
        assert len(after) == {"P1": 294, "R1": 315}[checkpoint.partition("/")[0]]
    for key in before:
        assert (after.shape(key), after.dtype(key)) == (before.shape(key), before.dtype(key))
        if key != GRAPH_KEY:
            assert after[key].tobytes() == before[key].tobytes(), key


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_the_graph_reaches_every_variable_by_the_paths_of_the_original(tmp_path, checkpoint):
    model = build(checkpoint)
    record = transplant(prefix(checkpoint), model, constants="philox")
    export(model, tmp_path, training_state=record.training_state)
    original, ours = (
        ObjectGraph(read_checkpoint(path)[GRAPH_KEY].item()).all_paths() for path in (prefix(checkpoint), tmp_path)
    )
    assert ours == original


def restorable(tensorflow: Any, case: str, *, built: bool) -> tuple[Any, Any, Any]:
    """A `tf.train.Checkpoint` with the fields of the original's training script, the model and the optimizer."""
    import tf_keras

    import tf_reference

    model = tf_reference.EpiBERT(**arguments(case))
    optimizer = tf_keras.optimizers.Adam(1e-4)
    if built:
        model.build_weights()
        optimizer.build(model.trainable_variables)
    counters = {
        "batch_num": tensorflow.int32,
        "best_val_loss": tensorflow.float32,
        "step_to_start": tensorflow.int32,
        "optimizer_step_track": tensorflow.int32,
    }
    variables = {name: tensorflow.Variable(7, dtype=dtype) for name, dtype in counters.items()}
    return tensorflow.train.Checkpoint(model=model, optimizer=optimizer, **variables), model, optimizer


def test_tensorflow_restores_a_fine_tuning_model_with_the_slots_of_both_optimizers(tensorflow, tmp_path):
    """Into variables in the order of the original's training script, which is not that of the model."""
    import tf_keras

    import tf_reference
    from tf_reference.training import finetuning_variables

    name = "R1/ckpt_after_poisson_multinomial"
    model = build(name)
    record = transplant(prefix(name), model, constants="philox")
    written = export(model, tmp_path, training_state=record.training_state)
    restored = tf_reference.EpiBERTRampage(**arguments(name)).build_weights()
    optimizers, updated = {}, {}
    for number, variables in enumerate(finetuning_variables(restored), start=1):
        optimizers[f"optimizer{number}"] = tf_keras.optimizers.Adam(1e-4)
        optimizers[f"optimizer{number}"].build(variables)
        updated |= {id(variable): (optimizers[f"optimizer{number}"], order) for order, variable in enumerate(variables)}
    counters = {"batch_num": "int32", "best_val_loss": "float32", "optimizer_step_track": "int32"}
    numbers = {counter: tensorflow.Variable(7, dtype=dtype) for counter, dtype in counters.items()}
    checkpoint = tensorflow.train.Checkpoint(model=restored, **optimizers, **numbers)
    checkpoint.restore(str(written)).assert_consumed()
    original = read_checkpoint(prefix(name))
    by_path = restored.checkpoint_variables()
    for path, variable in by_path.items():
        assert variable.numpy().tobytes() == original[path + SUFFIX].tobytes(), path
    for row in (row for row in rows(model.config, RAMPAGE_TABLE) if row.trainable):
        optimizer, order = updated[id(by_path[row.path])]
        for moment, slot in (("exp_avg", "_momentums"), ("exp_avg_sq", "_velocities")):
            expected = row.layout.to_port(getattr(optimizer, slot)[order].numpy())
            assert np.array_equal(record.training_state[f"{moment}/{row.name}"], expected), row.path
    for counter, variable in numbers.items():
        assert variable.numpy() == original[counter + SUFFIX]


@pytest.mark.parametrize("built", [True, False], ids=["built", "deferred"])
def test_tensorflow_restores_every_value(tensorflow, tmp_path, built):
    model = build(CHECKPOINT)
    record = transplant(prefix(CHECKPOINT), model, constants="philox")
    written = export(model, tmp_path, training_state=record.training_state)
    checkpoint, restored, optimizer = restorable(tensorflow, CHECKPOINT, built=built)
    status = checkpoint.restore(str(written))
    if not built:
        restored.build_weights()
        optimizer.build(restored.trainable_variables)
    status.assert_consumed()
    original = read_checkpoint(prefix(CHECKPOINT))
    for key, variable in restored.checkpoint_variables().items():
        assert variable.numpy().tobytes() == original[key + SUFFIX].tobytes(), key
    for number, variable in enumerate(optimizer._variables):
        key = "optimizer/_iterations" if number == 0 else f"optimizer/_variables/{number}"
        assert np.asarray(variable).tobytes() == original[key + SUFFIX].tobytes(), key
    for name in ("batch_num", "best_val_loss", "step_to_start", "optimizer_step_track", "save_counter"):
        assert getattr(checkpoint, name).numpy() == original[name + SUFFIX]


def test_tensorflow_continues_the_count_of_checkpoints(tensorflow, tmp_path):
    export(build(CHECKPOINT), tmp_path)
    assert tensorflow.train.latest_checkpoint(str(tmp_path)) == str(tmp_path / "ckpt-1")


def test_a_model_without_training_state_restores(tensorflow, tmp_path):
    import tf_reference

    model = build(CHECKPOINT)
    written = export(model, tmp_path)
    restored = tf_reference.EpiBERT(**arguments(CHECKPOINT)).build_weights()
    tensorflow.train.Checkpoint(model=restored).restore(str(written)).assert_consumed()
    back = build(CHECKPOINT)
    transplant({key: variable.numpy() for key, variable in restored.checkpoint_variables().items()}, back,
               constants="philox")  # fmt: skip
    assert fingerprint(back) == fingerprint(model)


def snapshot(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_numbers_that_float32_cannot_hold_are_refused_unless_asked_for(tmp_path):
    model = build(CHECKPOINT, torch.float64)
    with torch.no_grad():
        model.final_dense_profile.weight += 1e-12
    with pytest.raises(CheckpointError, match=r"final_dense_profile\.weight is float64 and not exact"):
        export(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    wide = read_checkpoint(export(model, tmp_path / "wide", dtype="float64"))
    back = build(CHECKPOINT, torch.float64)
    transplant(wide, back, constants="philox")
    assert fingerprint(back) == fingerprint(model)
    narrow = read_checkpoint(export(model, tmp_path / "narrow", dtype="float32"))
    assert {narrow.dtype(key).name for key in narrow if key.startswith("model/")} == {"float32"}


def test_bfloat16_parameters_export_exactly(tmp_path):
    model = build(CHECKPOINT, torch.bfloat16)
    stored = read_checkpoint(export(model, tmp_path))
    got = stored[f"model/final_dense_profile/kernel{SUFFIX}"].T
    assert np.array_equal(got, model.state_dict()["final_dense_profile.weight"].float().numpy())


def test_a_model_with_nan_is_not_exported(tmp_path):
    model = build(CHECKPOINT)
    with torch.no_grad():
        model.final_dense_profile.weight[0, 0] = torch.nan
    with pytest.raises(MappingError, match=r"final_dense_profile\.weight has NaN"):
        export(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_training_state_that_does_not_fit_lists_why(tmp_path):
    model = build(CHECKPOINT)
    state = dict(transplant(prefix(CHECKPOINT), model, constants="philox").training_state)
    lacking = {name: array for name, array in state.items() if name != "exp_avg/stem_conv.bias"}
    with pytest.raises(MappingError, match=r"(?s)\(2\).*exp_avg/stem_conv\.bias is missing.*odd is unknown"):
        export(model, tmp_path / "out", training_state={**lacking, "odd": np.zeros(1)})
    with pytest.raises(MappingError, match=r"\(16, 5\)"):
        export(model, tmp_path / "out", training_state={**state, "exp_avg/stem_conv.bias": np.zeros((16, 5))})
    for wrong in (np.zeros(1, np.int32), np.zeros((), np.int64)):
        with pytest.raises(MappingError, match="batch_num"):
            export(model, tmp_path / "out", training_state={**state, "batch_num": wrong})
    assert list(tmp_path.iterdir()) == []


def test_the_slots_of_one_optimizer_may_be_alone_and_must_be_complete(tmp_path):
    name = "R1/ckpt_after_poisson_multinomial"
    model = build(name)
    state = dict(transplant(prefix(name), model, constants="philox").training_state)
    trunk = [key for key in state if key.startswith("exp_avg") and "_rna." not in key]
    alone = {key: array for key, array in state.items() if key not in trunk}
    written = read_checkpoint(export(model, tmp_path / "out", training_state=alone))
    assert {key.split("/")[0] for key in written if "/_variables/" in key} == {"optimizer2"}
    back = transplant(written, build(name), constants="philox")
    assert set(back.training_state) == set(alone)
    del alone["exp_avg_sq/final_dense_profile_rna.bias"]
    with pytest.raises(MappingError, match=r"exp_avg_sq/final_dense_profile_rna\.bias is missing"):
        export(model, tmp_path / "incomplete", training_state=alone)


def test_a_checkpoint_that_is_there_is_not_overwritten_unasked(tmp_path):
    model = build(CHECKPOINT)
    export(model, tmp_path)
    before = snapshot(tmp_path)
    with torch.no_grad():
        model.final_dense_profile.weight += 1
    with pytest.raises(OutputError, match="already holds"):
        export(model, tmp_path)
    assert snapshot(tmp_path) == before
    export(model, tmp_path, overwrite=True)
    assert set(snapshot(tmp_path)) == set(before)
    assert snapshot(tmp_path) != before
    read_checkpoint(tmp_path)


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path, monkeypatch):
    module = importlib.import_module("weights.export")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("write_bundle",):
        monkeypatch.setattr(module, name, fail)
        with pytest.raises(OutputError, match="No space left"):
            export(build(CHECKPOINT), tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_the_model_is_not_changed_by_exporting_it(tmp_path):
    model = build(CHECKPOINT).train()
    before = fingerprint(model)
    export(model, tmp_path)
    assert fingerprint(model) == before
    assert model.training

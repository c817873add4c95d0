"""SavedModel, `.h5` and TensorFlow-format weights, written by Keras itself from the reference."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from tests.unit.weights.samples import SMALL
from torch_impl import EpiBERT, EpiBERTConfig
from weights import CheckpointError, export, load_transplanted, read_checkpoint, transplant
from weights.command import transplant_command
from weights.errors import CorruptCheckpointError, MappingError, NotACheckpointError
from weights.object_graph import SUFFIX
from weights.table import RAMPAGE_TABLE, rows


@pytest.fixture(scope="module")
def reference(tensorflow) -> Any:
    """A small reference model whose variables, statistics included, are all random."""
    import tf_reference

    tensorflow.random.set_seed(0)  # this runs before the fixture that does so for each test
    model = tf_reference.EpiBERT(**SMALL).build_weights()
    generator = np.random.default_rng(3)
    model.assign(
        {key: generator.random(value.numpy().shape) + 0.5 for key, value in model.checkpoint_variables().items()}
    )
    return model


@pytest.fixture(scope="module")
def written(reference, tmp_path_factory) -> Path:
    import tensorflow

    folder = tmp_path_factory.mktemp("keras")
    reference.save_weights(folder / "weights.h5")
    reference.save_weights(folder / "weights")
    tensorflow.train.Checkpoint(model=reference).save(folder / "ckpt")
    reference.save(folder / "keras_saved_model")
    tensorflow.saved_model.save(reference, folder / "saved_model")
    return folder


FORMATS = ("weights.h5", "weights", "ckpt-1", "keras_saved_model", "saved_model")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_numbers_of_the_reference(reference, written, name):
    model = EpiBERT(EpiBERTConfig(**SMALL))
    record = transplant(written / name, model, constants="philox")
    variables = reference.checkpoint_variables()
    listed = rows(model.config)
    assert {row.path for row in listed} == set(variables)
    state = model.state_dict()
    for row in listed:
        expected = torch.from_numpy(row.layout.to_port(variables[row.path].numpy()).copy())
        assert torch.equal(state[row.name], expected), row.path
    assert len([tensor for tensor in record.tensors if tensor.role in ("parameter", "statistic")]) == len(listed)


@pytest.mark.parametrize("predict_atac", [True, False])
def test_a_keras_file_of_a_fine_tuning_model_is_told_by_its_layers(tensorflow, tmp_path, predict_atac):
    import tf_reference

    reference = tf_reference.EpiBERTRampage(**SMALL, predict_atac=predict_atac).build_weights()
    reference.save_weights(tmp_path / "weights.h5")
    given = {**SMALL, "predict_atac": predict_atac}
    (tmp_path / "config.json").write_text(json.dumps(given))
    file, out = str(tmp_path / "weights.h5"), tmp_path / "out"
    assert transplant_command(file, str(out), config=str(tmp_path / "config.json"), constants="philox") == 0
    model = load_transplanted(out)
    state, variables = model.state_dict(), reference.checkpoint_variables()
    listed = rows(model.config, RAMPAGE_TABLE)
    assert {row.path for row in listed} == set(variables)
    for row in listed:
        assert np.array_equal(state[row.name], row.layout.to_port(variables[row.path].numpy())), row.path


@pytest.mark.parametrize("name", ["keras_saved_model", "saved_model"])
def test_a_saved_models_keys_are_canonical(reference, written, name):
    keys = {key.removesuffix(SUFFIX) for key in read_checkpoint(written / name)}
    assert set(reference.checkpoint_variables()) == {key for key in keys if key.startswith("model/")}


def test_an_h5_files_keys_are_layer_and_weight(written):
    keys = list(read_checkpoint(written / "weights.h5"))
    assert len(keys) == len(rows(EpiBERTConfig(**SMALL)))
    assert all(key.endswith(":0") and "/" in key for key in keys)


def test_an_h5_file_of_another_model_is_refused(written):
    other = EpiBERT(EpiBERTConfig(**{**SMALL, "num_transformer_layers": 2}))
    with pytest.raises(MappingError, match="14 weights, the model has 26"):
        transplant(written / "weights.h5", other, constants="philox")
    other = EpiBERT(EpiBERTConfig(**{**SMALL, "num_heads": 1}))
    with pytest.raises(MappingError, match="num_heads"):
        transplant(written / "weights.h5", other, constants="philox")


def test_the_slots_of_keras_legacy_adam_are_read(tensorflow, tmp_path):
    """Checkpoints of the original may have been written by an older Keras (spec, appendix B)."""
    import tf_keras

    import tf_reference

    tensorflow.random.set_seed(0)
    reference = tf_reference.EpiBERT(**SMALL).build_weights()
    optimizer = tf_keras.optimizers.legacy.Adam(1e-4)
    generator = np.random.default_rng(4)
    variables = reference.trainable_variables
    gradients = [generator.random(value.numpy().shape, np.float32) for value in variables]
    optimizer.apply_gradients(zip(gradients, variables, strict=True))
    tensorflow.train.Checkpoint(model=reference, optimizer=optimizer).save(tmp_path / "ckpt")
    model = EpiBERT(EpiBERTConfig(**SMALL))
    record = transplant(tmp_path / "ckpt-1", model, constants="philox")
    for row, variable in zip([row for row in rows(model.config) if row.trainable], variables, strict=True):
        for moment, slot in (("exp_avg", "m"), ("exp_avg_sq", "v")):
            expected = row.layout.to_port(optimizer.get_slot(variable, slot).numpy())
            assert np.array_equal(record.training_state[f"{moment}/{row.name}"], expected)
    assert record.training_state["optimizer/iterations"] == 1
    assert {key.removesuffix(SUFFIX) for key, _ in record.ignored} == {
        "_CHECKPOINTABLE_OBJECT_GRAPH",
        *(f"optimizer/{name}" for name in ("beta_1", "beta_2", "decay")),
    }
    exported = read_checkpoint(export(model, tmp_path / "new", training_state=record.training_state))
    assert f"optimizer/_variables/1{SUFFIX}" in exported


@pytest.fixture
def damaged(written, tmp_path) -> Path:
    path = tmp_path / "weights.h5"
    path.write_bytes((written / "weights.h5").read_bytes())
    return path


def reorder(path: Path, layer: str, first: int, second: int) -> None:
    """Exchange two weights of a layer in the order that Keras' attribute states."""
    with h5py.File(path, "r+") as file:
        group = next(file[name] for name in file if name.startswith(layer))
        names = list(group.attrs["weight_names"])
        names[first], names[second] = names[second], names[first]
        group.attrs["weight_names"] = names


@pytest.mark.parametrize(("first", "second"), [(0, 1), (2, 3), (3, 4), (4, 5), (8, 9)])
def test_weights_of_one_shape_in_another_order_are_refused(damaged, first, second):
    reorder(damaged, "shared_transformer", first, second)
    with pytest.raises(MappingError, match="stands where"):
        transplant(damaged, EpiBERT(EpiBERTConfig(**SMALL)), constants="philox")


def test_a_weight_that_is_listed_and_missing_is_named(damaged):
    with h5py.File(damaged, "r+") as file:
        group = next(file[name] for name in file if name.startswith("residual"))
        name = group.attrs["weight_names"][0]
        del group[name]
    with pytest.raises(CorruptCheckpointError, match="gamma"):
        read_checkpoint(damaged)


def test_a_truncated_h5_file_is_refused(damaged):
    data = damaged.read_bytes()
    for length in (0, 100, len(data) // 2, len(data) - 1):
        damaged.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"weights\.h5"):
            read_checkpoint(damaged)


def test_hdf5_of_another_kind_is_refused(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = np.zeros(3)
    with pytest.raises(NotACheckpointError, match="layer_names"):
        read_checkpoint(tmp_path / "other.h5")


def test_nan_in_an_h5_weight_is_named(damaged):
    with h5py.File(damaged, "r+") as file:
        group = next(file[name] for name in file if name.startswith("residual"))
        group[group.attrs["weight_names"][0]][0] = np.nan
    with pytest.raises(MappingError, match="gamma:0: 1 of 6"):
        transplant(damaged, EpiBERT(EpiBERTConfig(**SMALL)), constants="philox")

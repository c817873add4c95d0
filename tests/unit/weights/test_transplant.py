import hashlib
import json

import ml_dtypes
import numpy as np
import pytest
import torch

from tests.unit.weights.samples import (
    CHECKPOINTS,
    arguments,
    build,
    copied,
    fingerprint,
    prefix,
    without_suffix,
)
from torch_impl import EpiBERTRampage
from torch_impl.random import projection_matrix, rotary_table
from weights import CheckpointError, load_saved_training_state, load_transplanted, read_checkpoint, transplant
from weights.errors import MappingError, NotACheckpointError, OutputError
from weights.object_graph import SUFFIX

CHECKPOINT = "P1/ckpt_after_poisson"
TABLE_NAME = "performer.rotary_table.table"
QUERY = "model/performer/layers/0/self_attention/query_dense_layer/kernel"


def arrays(checkpoint: str = CHECKPOINT) -> dict[str, np.ndarray]:
    return dict(read_checkpoint(prefix(checkpoint)))


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_stored_number_arrives_exactly(checkpoint, dtype):
    model = build(checkpoint, dtype)
    stored = arrays(checkpoint)
    record = transplant(prefix(checkpoint), model, constants="philox")
    state = model.state_dict()
    filled = set()
    for tensor in record.tensors:
        assert tensor.sha256 == hashlib.sha256(stored[tensor.key].tobytes()).hexdigest()
        array = stored[tensor.key]
        if tensor.role in ("parameter", "statistic"):
            got = state[tensor.name]
            assert got.dtype == dtype
            filled.add(tensor.name)
        else:
            got = torch.from_numpy(np.array(record.training_state[tensor.name]))
        # Layouts move numbers and change none: as multisets the two are equal, whatever the layout.
        assert np.array_equal(np.sort(got.double().numpy(), axis=None), np.sort(array.astype(np.float64), axis=None))
        assert tuple(got.shape) == tensor.shape
    constants = {"performer.projection_matrix", "performer.rotary_table.table", "performer._extra_state"}
    assert filled == set(state) - constants
    assert {tensor.key for tensor in record.tensors} | {key for key, _ in record.ignored} == set(stored)


def test_all_sources_of_the_same_weights_agree():
    expected = build(CHECKPOINT)
    transplant(prefix(CHECKPOINT), expected, constants="philox")
    stored = arrays()
    for source in (
        prefix(CHECKPOINT).parent,
        str(prefix(CHECKPOINT)) + ".index",
        read_checkpoint(prefix(CHECKPOINT)),
        stored,
        without_suffix(stored),
        {key: np.asarray(array, order="F") for key, array in stored.items()},
        {key.replace("_dense_layer/kernel", "_dense_layer/_kernel"): array for key, array in stored.items()},
    ):
        model = build(CHECKPOINT)
        transplant(source, model, constants="philox")
        assert fingerprint(model) == fingerprint(expected)


def test_mode_device_dtype_and_identity_of_the_parameters_stay():
    model = build(CHECKPOINT).train()
    parameters = {name: id(parameter) for name, parameter in model.named_parameters()}
    transplant(prefix(CHECKPOINT), model, constants="philox")
    assert model.training
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == parameters
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def refused(source, model=None, **options) -> str:
    """The message with which a transplant is refused; the model must be as before."""
    model = build(CHECKPOINT) if model is None else model
    before = fingerprint(model)
    with pytest.raises(CheckpointError) as caught:
        transplant(source, model, **{"constants": "philox", **options})
    assert fingerprint(model) == before
    return str(caught.value)


def test_every_missing_and_unexpected_key_is_listed():
    stored = arrays()
    gone = [QUERY + SUFFIX, f"model/stem_conv/bias{SUFFIX}", f"model/final_dense_profile/kernel{SUFFIX}"]
    for key in gone:
        del stored[key]
    stored["model/extra/kernel"] = np.zeros((2, 3), np.float32)
    stored["stray"] = np.zeros(1, np.float32)
    message = refused(stored)
    assert "missing keys (3)" in message
    assert "unexpected keys (2)" in message
    for key in gone:
        assert key.removesuffix(SUFFIX) in message
    assert "model/extra/kernel (2, 3)" in message
    assert "stray (1,)" in message


@pytest.mark.parametrize("shape", [(32, 32), (2, 16, 32), (32, 4, 8), (32, 16, 2), (33, 2, 16), (1, 32, 2, 16)])
def test_a_wrong_shape_names_key_and_both_shapes(shape):
    message = refused({**arrays(), QUERY + SUFFIX: np.zeros(shape, np.float32)})
    assert QUERY in message
    assert str(shape) in message
    assert "(32, 2, 16)" in message


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "path", [QUERY, "model/final_pointwise_conv/layer_with_weights-0/moving_variance", "optimizer/_variables/4"]
)
def test_a_number_that_is_not_finite_names_its_tensor(path, bad):
    stored = {key: array.copy() for key, array in arrays().items()}
    stored[path + SUFFIX].flat[-1] = bad
    message = refused(stored)
    assert "NaN" in message
    assert f"{path}{SUFFIX}: 1 of" in message


def test_an_infinite_best_loss_is_kept():
    stored = {**arrays(), f"best_val_loss{SUFFIX}": np.float32(np.inf)}
    assert transplant(stored, build(CHECKPOINT), constants="philox").training_state["best_val_loss"] == np.inf


def test_a_wrong_number_of_heads_is_a_contradiction_though_the_matrices_have_the_same_shape():
    message = refused(prefix(CHECKPOINT), build(CHECKPOINT, num_heads=4))
    assert "num_heads: the checkpoint has 2, the configuration 4" in message
    assert "(32, 4, 8)" in message


def test_the_checkpoint_of_another_model_lists_what_differs():
    message = refused(prefix("P2/ckpt_before"))
    for name in ("filter_list_seq", "num_motifs", "num_transformer_layers", "num_heads"):
        assert name in message
    assert "missing keys (12)" in message
    foreign = refused({"encoder/kernel": np.zeros((2, 2), np.float32)})
    assert "missing keys (110)" in foreign
    assert "encoder/kernel" in foreign


def test_a_fine_tuning_checkpoint_is_refused_by_its_extra_head():
    stored = {**arrays("P1/ckpt_before"), "model/final_dense_profile_rna/bias": np.zeros(1, np.float32)}
    assert "final_dense_profile_rna" in refused(stored)


def test_slots_are_all_there_or_none():
    stored = arrays()
    del stored[f"optimizer/_variables/9{SUFFIX}"]
    message = refused(stored)
    assert "optimizer/_variables/9 (exp_avg of stem_res_conv.block.conv.weight)" in message
    none = {key: array for key, array in arrays().items() if "_variables/" not in key}
    record = transplant(none, build(CHECKPOINT), constants="philox")
    assert not [name for name in record.training_state if name.startswith("exp_avg")]


def test_the_model_alone_is_enough():
    stored = {key: array for key, array in arrays().items() if key.startswith("model/")}
    assert len(transplant(stored, build(CHECKPOINT), constants="philox").training_state) == 0


def test_a_type_that_would_round_is_refused():
    assert "float32 into bfloat16" in refused(prefix(CHECKPOINT), build(CHECKPOINT, torch.bfloat16))
    assert "float32 into float16" in refused(prefix(CHECKPOINT), build(CHECKPOINT, torch.float16))
    wide = {key: array.astype(np.float64) for key, array in arrays("P1/ckpt_before").items() if "model/" in key}
    assert "float64 into float32" in refused(wide)
    integers = {**arrays(), f"model/stem_conv/bias{SUFFIX}": np.zeros(16, np.int32)}
    assert "int32 into float32" in refused(integers)


def test_bfloat16_goes_where_it_is_exact():
    stored = {
        key: array.astype(ml_dtypes.bfloat16) for key, array in arrays("P1/ckpt_before").items() if "model/" in key
    }
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        model = build(CHECKPOINT, dtype)
        transplant(stored, model, constants="philox")
        got = model.state_dict()["stem_conv.bias"].double().numpy()
        assert np.array_equal(got, stored[f"model/stem_conv/bias{SUFFIX}"].astype(np.float64))


def test_our_own_constants_are_the_ports():
    model = build(CHECKPOINT)
    record = transplant(prefix(CHECKPOINT), model, constants="philox")
    assert record.constants["origin"] == model.constants_origin == "philox"
    assert np.array_equal(model.performer.projection_matrix.numpy(), projection_matrix(256, 16, 21))
    assert np.array_equal(model.state_dict()[TABLE_NAME].numpy(), rotary_table(65, 16))


def test_tensorflows_constants_are_taken_when_it_is_there(tensorflow):
    from tf_reference import constants

    for choice in ("auto", "tensorflow"):
        model = build(CHECKPOINT)
        record = transplant(prefix(CHECKPOINT), model, constants=choice)
        assert record.constants["origin"] == model.constants_origin == f"tensorflow {tensorflow.__version__}"
        assert np.array_equal(model.performer.projection_matrix.numpy(), constants.projection_matrix(256, 16, 21))
        assert np.array_equal(model.state_dict()[TABLE_NAME].numpy(), constants.rotary_table(65, 16))


def test_given_constants_are_recorded_with_their_origin():
    model = build(CHECKPOINT)
    matrix, table = np.full((256, 16), 0.5, np.float32), np.full((65, 16), 0.25, np.float32)
    record = transplant(prefix(CHECKPOINT), model, constants=(matrix, table, "recorded tensorflow 2.12.0"))
    assert record.constants["origin"] == "recorded tensorflow 2.12.0"
    assert record.constants["projection_matrix_sha256"] == hashlib.sha256(matrix.tobytes()).hexdigest()
    assert model.performer.projection_matrix.eq(0.5).all()
    kept = transplant(prefix(CHECKPOINT), model, constants="keep")
    assert kept.constants == record.constants


def test_constants_that_do_not_fit_are_refused():
    matrix, table = np.zeros((256, 16), np.float32), np.zeros((65, 16), np.float32)
    assert "projection matrix" in refused(prefix(CHECKPOINT), constants=(matrix[:, 1:], table, "x"))
    assert "rotary table" in refused(prefix(CHECKPOINT), constants=(matrix, table[1:], "x"))
    assert "rotary table" in refused(prefix(CHECKPOINT), constants=(matrix, None, "x"))
    assert "NaN" in refused(prefix(CHECKPOINT), constants=(matrix * np.nan, table, "x"))
    assert "choose auto" in refused(prefix(CHECKPOINT), constants="guess")


def test_a_model_without_rotary_positions_or_last_norm_is_filled():
    stored = {key: array for key, array in arrays("P1/ckpt_before").items() if "performer/layer_norm/" not in key}
    model = build(CHECKPOINT, use_rot_emb=False, norm=False)
    record = transplant(stored, model, constants="philox")
    assert "rotary_table_sha256" not in record.constants


def test_the_record_tells_everything(tmp_path):
    path = copied(CHECKPOINT, tmp_path)
    record = transplant(path, build(CHECKPOINT), constants="philox")
    told = json.loads(record.to_json())
    for file in told["files"]:
        data = (path.parent / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert len(told["files"]) == 2
    assert len(told["tensors"]) + len(told["ignored"]) == 294
    assert told["configuration"]["inferred"]["num_heads"] == 2
    assert told["configuration"]["assumed"]["seed"] == 21
    by_key = {tensor["key"]: tensor for tensor in told["tensors"]}
    query = by_key[QUERY + SUFFIX]
    assert (query["name"], query["layout"]) == ("performer.layers.0.attention.query.weight", "heads_in")
    assert (query["stored_shape"], query["shape"]) == ([32, 2, 16], [32, 32])
    assert str(tmp_path) not in record.to_json()


def test_a_source_that_changed_since_is_not_vouched_for(tmp_path):
    path = copied(CHECKPOINT, tmp_path)
    record = transplant(path, build(CHECKPOINT), constants="philox")
    index = path.with_name("ckpt-1.index")
    index.write_bytes(index.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="has changed"):
        record.to_json()
    index.unlink()
    with pytest.raises(NotACheckpointError, match="cannot read"):
        record.save(tmp_path / "out", build(CHECKPOINT))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_saved_loads_back(tmp_path, dtype):
    model = build(CHECKPOINT, dtype)
    record = transplant(prefix(CHECKPOINT), model, constants="philox")
    record.save(tmp_path / "deep" / "model", model)
    folder = tmp_path / "deep" / "model"
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "config.json",
        "transplant.json",
        "training_state-00000.safetensors",
    }
    loaded = load_transplanted(folder)
    assert loaded.config == model.config
    assert loaded.constants_origin == "philox"
    assert not loaded.training
    assert fingerprint(loaded) == fingerprint(model)
    assert loaded.stem_conv.weight.requires_grad
    state = load_saved_training_state(folder)
    assert set(state) == set(record.training_state)
    for name, array in record.training_state.items():
        assert state[name].dtype == array.dtype
        assert state[name].shape == array.shape
        assert state[name].tobytes() == array.tobytes()


def test_the_training_state_is_cut_into_files(tmp_path, monkeypatch):
    import weights.training_state

    monkeypatch.setattr(weights.training_state, "FILE_BYTES", 50_000)
    model = build(CHECKPOINT)
    record = transplant(prefix(CHECKPOINT), model, constants="philox")
    record.save(tmp_path / "out", model)
    assert len(list((tmp_path / "out").glob("training_state-*.safetensors"))) > 3
    assert set(load_saved_training_state(tmp_path / "out")) == set(record.training_state)
    (tmp_path / "out" / "training_state-00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match="training_state-00001"):
        load_saved_training_state(tmp_path / "out")


def test_an_earlier_result_is_not_overwritten_unasked(tmp_path):
    model = build(CHECKPOINT)
    record = transplant(prefix(CHECKPOINT), model, constants="philox")
    record.save(tmp_path, model)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OutputError, match="already holds"):
        record.save(tmp_path, model)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    record.save(tmp_path, model, overwrite=True)
    assert set(before) == {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("model.safetensors", b"garbage"),
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", b'{"num_heads": 3}'),
        ("config.json", b'{"unknown": 3}'),
        ("config.json", b'{"filter_list_seq": [8], "num_transformer_layers": 0}'),
    ],
)
def test_a_damaged_model_folder_is_refused(tmp_path, file, damage):
    model = build(CHECKPOINT)
    transplant(prefix(CHECKPOINT), model, constants="philox").save(tmp_path / "out", model)
    (tmp_path / "out" / file).write_bytes(damage)
    with pytest.raises(CheckpointError, match=file):
        load_transplanted(tmp_path / "out")
    (tmp_path / "out" / file).unlink()
    with pytest.raises(CheckpointError, match=file):
        load_transplanted(tmp_path / "out")


@pytest.mark.parametrize(("checkpoint", "into"), [("R1/ckpt_before", "P1"), ("P1/ckpt_before", "R1")])
def test_the_other_kind_of_model_is_refused_by_name(checkpoint, into):
    message = refused(prefix(checkpoint), build(into))
    assert "the checkpoint holds a " in message
    assert "(EpiBERTRampage)" in message
    assert "(EpiBERT)" in message


def test_a_head_that_the_model_lacks_is_refused():
    message = refused(prefix("R1/ckpt_before"), build("R1", predict_atac=False))
    assert "predict_atac: the checkpoint has True, the configuration False" in message


def test_a_saved_fine_tuning_model_comes_back_as_one(tmp_path):
    name = "R1/ckpt_after_poisson_multinomial"
    model = build(name)
    record = transplant(prefix(name), model, constants="philox")
    record.save(tmp_path, model)
    loaded = load_transplanted(tmp_path)
    assert isinstance(loaded, EpiBERTRampage)
    assert fingerprint(loaded) == fingerprint(model)
    assert set(load_saved_training_state(tmp_path)) == set(record.training_state)
    assert {"optimizer1/iterations", "optimizer2/learning_rate"} <= set(record.training_state)
    arguments_of_another = {**json.loads((tmp_path / "config.json").read_text()), "predict_atac": False}
    (tmp_path / "config.json").write_text(json.dumps(arguments_of_another))
    with pytest.raises(CheckpointError, match=r"config\.json do not match"):
        load_transplanted(tmp_path)


def test_the_arguments_of_the_recording_are_those_of_the_model():
    assert build(CHECKPOINT).config.seed == arguments(CHECKPOINT)["seed"] == 21


def test_two_keys_for_one_tensor_are_refused():
    stored = arrays()
    stored[QUERY] = stored[QUERY + SUFFIX]
    with pytest.raises(MappingError, match="unexpected"):
        transplant(stored, build(CHECKPOINT), constants="philox")

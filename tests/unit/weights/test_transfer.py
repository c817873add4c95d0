"""From pretraining to fine-tuning: what the original's restore moves, and nothing dropped without being asked for."""

import hashlib
import json
import types
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from tests.unit.weights.samples import GOLDENS, arguments, build, fingerprint, prefix, without_suffix
from torch_impl import EpiBERTConfig, EpiBERTRampage
from torch_impl.epibert_lightning import EpiBERTLightning
from torch_impl.rampage_lightning import EpiBERTRampageLightning
from weights import CheckpointError, load_saved_training_state, load_transplanted, read_checkpoint, transfer, transplant
from weights.command import transfer_command
from weights.errors import MappingError, OutputError
from weights.initialize import InitializeFrom
from weights.inits import inits_paths, read_inits
from weights.table import CONSTANTS, RAMPAGE_TABLE, TABLE, rows
from weights.transfer import ALLOWED, is_fine_tuned

CHECKPOINT = "P1/ckpt_after_poisson"
SEED = 21


def to_fill(**changes: Any) -> EpiBERTRampage:
    """A fine-tuning model of the pretrained one's sizes."""
    torch.manual_seed(1)
    return EpiBERTRampage(EpiBERTConfig(**{**arguments(CHECKPOINT), **changes}))


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.state_dict().items() if name not in CONSTANTS}


def stored() -> dict[str, np.ndarray]:
    """The model's tensors of the checkpoint by path."""
    return {k: v for k, v in without_suffix(read_checkpoint(prefix(CHECKPOINT))).items() if k.startswith("model/")}


def inits() -> dict[str, np.ndarray]:
    """The same as the dictionary of the original's constructor."""
    arrays = stored()
    return {key: arrays[path] for key, path in inits_paths(tower=6, atac_tower=2, layers=2).items()}


def refused(source: Any, model: EpiBERTRampage, **options: Any) -> str:
    """The message of a refusal, which leaves the model as it was."""
    before = fingerprint(model)
    with pytest.raises(CheckpointError) as error:
        transfer(source, model, constants="philox", **options)
    assert fingerprint(model) == before
    return str(error.value)


# --- what is moved


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Any:
    """The pretrained model as a folder of ours."""
    path = tmp_path_factory.mktemp("pretrained")
    model = build(CHECKPOINT)
    transplant(prefix(CHECKPOINT), model, constants="philox").save(path, model)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Any:
    """The pretrained model as a Lightning checkpoint."""
    module = EpiBERTLightning(EpiBERTConfig(**arguments(CHECKPOINT)))
    transplant(prefix(CHECKPOINT), module.model, constants="philox")
    path = tmp_path_factory.mktemp("run") / "last.ckpt"
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}, path)
    return path


@pytest.mark.parametrize("kind", ["checkpoint", "folder", "run", "arrays", "inits"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_trunk_and_atac_head_are_moved_and_the_rna_head_is_fresh(folder, run, kind, dtype):
    paths = {"checkpoint": prefix(CHECKPOINT), "folder": folder, "run": run}
    source = paths[kind] if kind in paths else stored() if kind == "arrays" else inits()
    model = to_fill().to(dtype)
    before = {name: value.clone() for name, value in state(model).items()}
    record = transfer(source, model, seed=SEED, constants="philox")
    pretrained = build(CHECKPOINT)
    transplant(prefix(CHECKPOINT), pretrained, constants="philox")
    expected = state(pretrained)
    after = state(model)
    for name, value in after.items():
        assert value.dtype == dtype
        assert torch.equal(value, expected.get(name, before[name]).to(dtype)), name
    assert {tensor.name for tensor in record.moved} == set(expected)
    assert {tensor.name for tensor in record.fresh} == set(after) - set(expected)
    assert len(record.fresh) == 8
    assert all("_rna." in tensor.name for tensor in record.fresh)
    assert torch.equal(model.performer.projection_matrix, pretrained.performer.projection_matrix)
    assert record.asked == ()


def test_every_tensor_equals_that_of_the_originals_restore(tensorflow, tmp_path):
    """TensorFlow restores the pretraining checkpoint into its fine-tuning model, as the original's script does."""
    import tf_reference

    original = tf_reference.EpiBERTRampage(**arguments(CHECKPOINT)).build_weights(11)
    fresh = {key: variable.numpy() for key, variable in original.checkpoint_variables().items()}
    tensorflow.train.Checkpoint(model=original).restore(str(prefix(CHECKPOINT))).expect_partial()
    restored = {key: variable.numpy() for key, variable in original.checkpoint_variables().items()}
    model = to_fill()
    record = transfer(prefix(CHECKPOINT), model, constants="philox")
    moved, after = {tensor.name for tensor in record.moved}, state(model)
    table = rows(model.config, RAMPAGE_TABLE)
    assert {row.path for row in table} == set(restored)
    for row in table:
        if row.name in moved:
            assert np.array_equal(after[row.name].numpy(), row.layout.to_port(restored[row.path])), row.path
            assert not np.array_equal(restored[row.path], fresh[row.path]), row.path
        else:
            assert np.array_equal(restored[row.path], fresh[row.path]), row.path


def test_the_record_accounts_for_every_tensor_of_both(tmp_path):
    model = to_fill()
    record = transfer(prefix(CHECKPOINT), model, constants="philox")
    checkpoint = read_checkpoint(prefix(CHECKPOINT))
    used = {tensor.key for tensor in record.moved}
    assert used | {tensor.name for tensor in record.dropped} == set(checkpoint)
    assert not used & {tensor.name for tensor in record.dropped}
    for tensor in record.moved:
        assert tensor.sha256 == hashlib.sha256(checkpoint[tensor.key].tobytes()).hexdigest()
    for tensor in record.fresh:
        assert tensor.sha256 == hashlib.sha256(state(model)[tensor.name].numpy().tobytes()).hexdigest()
    slots = [tensor for tensor in record.dropped if "/_variables/" in tensor.name]
    assert len(slots) == 2 * sum(row.trainable for row in rows(model.config, TABLE))
    assert {tensor.reason for tensor in slots} == {"training state of the pretraining: both optimizers begin anew"}
    written = json.loads(record.to_json())
    assert written["format"] == "epibert transfer 1"
    assert {"seed", "dropout_rate"} <= set(written["pretraining"]["assumed"])
    assert len(written["files"][0]["sha256"]) == 64
    record.save(tmp_path / "out", model)
    loaded = load_transplanted(tmp_path / "out")
    assert isinstance(loaded, EpiBERTRampage)
    assert fingerprint(loaded) == fingerprint(model)
    assert dict(load_saved_training_state(tmp_path / "out")) == {}
    assert json.loads((tmp_path / "out" / "transplant.json").read_text())["moved"] == written["moved"]
    with pytest.raises(OutputError):
        record.save(tmp_path / "out", model)


def test_constants_of_a_folder_travel_with_the_trunk(folder):
    model = to_fill()
    with torch.no_grad():
        model.performer.projection_matrix.zero_()
    record = transfer(folder, model)
    assert record.constants["origin"] == "philox"
    assert torch.equal(model.performer.projection_matrix, load_transplanted(folder).performer.projection_matrix)
    assert record.assumed == ()


# --- what the original does without a word


def test_another_number_of_layers_is_asked_for_by_name():
    for layers in (1, 3):
        assert "ask for it by the name 'layers'" in refused(prefix(CHECKPOINT), to_fill(num_transformer_layers=layers))
        model = to_fill(num_transformer_layers=layers)
        record = transfer(prefix(CHECKPOINT), model, allow=["layers"], constants="philox")
        assert record.asked == ("layers",)
        dropped = [tensor.name for tensor in record.dropped if "/layers/1/" in tensor.name and "model/" in tensor.name]
        fresh = [tensor.name for tensor in record.fresh if tensor.name.startswith("performer.layers.2.")]
        assert (len(dropped), len(fresh)) == ((12, 0) if layers == 1 else (0, 12))
        moved = {tensor.name for tensor in record.moved}
        assert "performer.layers.0.ffn.wide.weight" in moved
        assert "performer.norm.weight" in moved


def test_another_seed_is_asked_for_by_name(folder):
    for source, options in ((folder, {}), (prefix(CHECKPOINT), {"seed": SEED})):
        assert "(21 against 5); ask for it by the name 'seed'" in refused(source, to_fill(seed=5), **options)
        model = to_fill(seed=5)
        matrix = model.performer.projection_matrix.clone()
        record = transfer(source, model, allow=["seed"], constants="philox", **options)
        assert record.asked == ("seed",)
        assert torch.equal(model.performer.projection_matrix, matrix)
    assert "config.json says 21" in refused(folder, to_fill(), seed=5)


def test_a_model_without_atac_head_is_asked_for_by_name():
    assert "ask for it by the name 'atac_head'" in refused(prefix(CHECKPOINT), to_fill(predict_atac=False))
    record = transfer(prefix(CHECKPOINT), to_fill(predict_atac=False), allow=["atac_head"], constants="philox")
    heads = {tensor.name for tensor in record.dropped if tensor.reason == "the model to be filled has no ATAC head"}
    assert len(heads) == 8
    assert all("/final_" in name for name in heads)


def test_norms_of_inits_are_moved_unless_the_originals_omission_is_asked_for():
    names = [f"performer.layers.{i}.norm.{part}" for i in (0, 1) for part in ("weight", "bias")]
    model = to_fill()
    record = transfer(inits(), model, allow=["layer_norms"], constants="philox")
    assert record.asked == ("layer_norms",)
    for name in names:
        assert torch.equal(state(model)[name], torch.full_like(state(model)[name], float(name.endswith("weight"))))
    assert {tensor.name for tensor in record.fresh} >= set(names)
    assert len([tensor for tensor in record.dropped if tensor.reason == ALLOWED["layer_norms"]]) == 4
    # Of a checkpoint the original moves them, so there is nothing to ask for.
    other = to_fill()
    assert transfer(prefix(CHECKPOINT), other, allow=["layer_norms"], constants="philox").asked == ()
    assert not torch.equal(state(other)[names[0]], state(model)[names[0]])


def test_inits_have_the_keys_of_the_specification():
    """86 + 12 N of them (spec, section 2.2), each for one variable of the checkpoint."""
    paths = inits_paths(tower=6, atac_tower=2, layers=8)
    assert len(paths) == 86 + 12 * 8
    assert set(paths.values()) == {row.path for row in rows(EpiBERTConfig(), TABLE)}
    assert paths["soft_max_pool_k_3"] == "model/conv_tower/layer_with_weights-3/layer_with_weights-1/dense/kernel"
    assert paths["SA_O7"] == "model/performer/layers/7/self_attention/output_dense_layer/kernel"
    assert paths["BN_at1_v_1"].endswith("conv_tower_atac/layer_with_weights-1/layer_with_weights-0/"
                                        "layer_with_weights-0/moving_variance")  # fmt: skip


def test_initialisers_of_keras_are_read_and_other_keys_refused():
    class Constant:
        def __init__(self, value: np.ndarray) -> None:
            self.value = value

    arrays = inits()
    found = read_inits({key: Constant(array) for key, array in arrays.items()})
    expected = stored()
    assert all(np.array_equal(found[path], expected[path]) for path in found)
    arrays["stem_conv_w"] = arrays.pop("stem_conv_b")
    del arrays["SA_q1"]
    message = refused(arrays, to_fill())
    for text in ("stem_conv_b", "stem_conv_w", "SA_k1"):
        assert text in message


HEAD = {
    *(f"final_point_BN_{letter}" for letter in "bgmv"),
    *("final_point_k", "final_point_b", "final_dense_k", "final_dense_b"),
}


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_inits_of_a_model_without_atac_head_need_not_have_one(dtype):
    whole = {key: array.astype(dtype) for key, array in inits().items()}
    without = {key: array for key, array in whole.items() if key not in HEAD}
    assert len(whole) - len(without) == 8
    model, expected = to_fill(predict_atac=False), to_fill(predict_atac=False)
    record = transfer(without, model, constants="philox")
    transfer(whole, expected, allow=["atac_head"], constants="philox")
    assert fingerprint(model) == fingerprint(expected)
    # Nothing is dropped, so there is nothing to ask for; and nothing that was made up is said to have been read.
    assert record.asked == record.dropped == ()
    assert len(record.moved) == len(without)
    assert {tensor.key for tensor in record.moved} == set(read_inits(without, atac_head=False))
    assert {tensor.name for tensor in record.fresh} == {name for name in state(model) if "_rna." in name}


def test_what_inits_lack_or_have_too_much_is_named():
    without = {key: array for key, array in inits().items() if key not in HEAD}
    message = refused(without, to_fill())
    assert all(key in message for key in HEAD)
    # A head in parts is none, whatever the model needs.
    for predict_atac in (True, False):
        message = refused({**without, "final_dense_b": inits()["final_dense_b"]}, to_fill(predict_atac=predict_atac))
        assert all(key in message for key in HEAD - {"final_dense_b"})
        assert "final_dense_b" not in message
    assert "ask for it by the name 'atac_head'" in refused(inits(), to_fill(predict_atac=False))
    for excess in ("final_dense_rna_k", "SA_q7x", "LN_m0"):
        message = refused({**without, excess: np.zeros(1, np.float32)}, to_fill(predict_atac=False))
        assert excess in message
        assert "unknown keys" in message
    with pytest.raises(MappingError, match="unknown keys"):
        read_inits(inits(), atac_head=False)
    # A layer of which a part is missing.
    del without["FFN_narr_b1"]
    assert "FFN_narr_b1" in refused(without, to_fill(predict_atac=False))


# --- what does not fit


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_heads": 4}, "num_heads: pretrained with 2"),
        ({"norm": False}, "norm: pretrained with True"),
        ({"num_motifs": 12}, "num_motifs"),
        ({"filter_list_seq": [12, 16, 20, 24, 28, 36]}, "filter_list_seq"),
        ({"final_point_scale": 2}, "final_point_scale"),
    ],
    ids=str,
)
def test_sizes_that_differ_are_listed(changes, text):
    assert text in refused(prefix(CHECKPOINT), to_fill(**changes))


def test_what_is_no_pretrained_model_is_refused(folder, tmp_path):
    model = to_fill()
    assert "a fine-tuning model already" in refused(GOLDENS / "R1" / "ckpt_before", model)
    transfer(folder, model).save(tmp_path / "tuned", model)
    assert "is of a fine-tuning model already" in refused(tmp_path / "tuned", to_fill())
    with pytest.raises(MappingError, match="not EpiBERT"):
        transfer(folder, build(CHECKPOINT))
    assert "names ['everything']" in refused(folder, to_fill(), allow=["everything"])


def test_damaged_numbers_are_refused():
    arrays = stored()
    arrays["model/stem_conv/kernel"] = arrays["model/stem_conv/kernel"].copy()
    arrays["model/stem_conv/kernel"][0, 0, 0] = np.nan
    assert "NaN" in refused(arrays, to_fill())
    del arrays["model/stem_conv/kernel"]
    assert "model/stem_conv/kernel" in refused(arrays, to_fill())
    wide = {path: array.astype(np.float64) for path, array in stored().items()}
    assert "rounded" in refused(wide, to_fill())
    narrow = {path: array.astype(ml_dtypes.bfloat16) for path, array in stored().items()}
    transfer(narrow, to_fill(), constants="philox")


def test_a_folder_whose_numbers_are_rounded_or_damaged_is_refused(folder, tmp_path):
    pretrained: Any = load_transplanted(folder)
    record = transplant(prefix(CHECKPOINT), build(CHECKPOINT), constants="philox")
    with torch.no_grad():
        pretrained.stem_conv.bias[0] = torch.nan
    record.save(tmp_path / "damaged", pretrained)
    assert "stem_conv.bias" in refused(tmp_path / "damaged", to_fill())
    record.save(tmp_path / "wide", load_transplanted(folder).double())
    assert "stem_conv.bias: float64 would be rounded to float32" in refused(tmp_path / "wide", to_fill())


# --- as the beginning of a run


def begin(callback: InitializeFrom, model: EpiBERTRampage, folder: Any) -> list[str]:
    """What a run prints that begins so."""
    printed: list[str] = []
    module = EpiBERTRampageLightning(model.config)
    module.model = model
    trainer = types.SimpleNamespace(ckpt_path=None, print=printed.append, log_dir=folder, is_global_zero=True)
    callback.on_fit_start(trainer, module)  # type: ignore[arg-type]
    return printed


@pytest.mark.parametrize("kind", ["checkpoint", "folder", "run"])
def test_a_run_of_fine_tuning_begins_with_what_was_transferred(folder, run, kind, tmp_path):
    path = str({"checkpoint": prefix(CHECKPOINT), "folder": folder, "run": run}[kind])
    expected, model = to_fill(), to_fill()
    record = transfer(path, expected, constants="philox")
    (line,) = begin(InitializeFrom(path, constants="philox"), model, tmp_path)
    assert fingerprint(model) == fingerprint(expected)
    assert f"{len(record.moved)} tensors moved, 8 fresh, {len(record.dropped)} dropped" in line
    written = json.loads((tmp_path / "transfer.json").read_text())
    assert len(written["moved"]) == len(record.moved)


def test_a_run_begins_with_a_model_that_is_fine_tuned_already_as_it_is(folder, tmp_path):
    source = to_fill()
    transfer(folder, source, constants="philox").save(tmp_path / "fine_tuned", source)
    assert is_fine_tuned(tmp_path / "fine_tuned")
    assert not is_fine_tuned(folder)
    model = EpiBERTRampage(source.config)
    assert begin(InitializeFrom(str(tmp_path / "fine_tuned")), model, tmp_path) == [
        f"the model is that of {tmp_path / 'fine_tuned'}"
    ]
    assert fingerprint(model) == fingerprint(source)


def test_a_run_is_told_what_it_must_ask_for_and_cannot_take_over(folder, tmp_path):
    with pytest.raises(MappingError, match=r"2 against 3.*'layers'"):
        begin(InitializeFrom(str(folder)), to_fill(num_transformer_layers=3), tmp_path)
    begin(
        InitializeFrom(str(folder), allow=["layers"], constants="philox"), to_fill(num_transformer_layers=3), tmp_path
    )
    with pytest.raises(CheckpointError, match="its optimizer has no state for those of fine-tuning"):
        begin(InitializeFrom(str(folder), training_state=True), to_fill(), tmp_path)


@pytest.mark.parametrize(
    "change", [{"kernel_transformation": "softmax"}, {"batch_norm_epsilon": 1e-3}, {"use_rot_emb": False}], ids=str
)
def test_a_source_that_tells_its_formulas_must_tell_the_models(folder, run, change):
    (name,) = change
    for source in (folder, run):
        assert name in refused(source, to_fill(**change))


def test_the_command_takes_a_lightning_checkpoint(run, tmp_path):
    assert transfer_command(str(run), str(tmp_path / "out"), constants="philox") == 0
    assert is_fine_tuned(tmp_path / "out")

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.weights.samples import arguments, build, prefix
from torch_impl import EpiBERTRampage
from weights import CheckpointError, export, load_transplanted, read_checkpoint, transplant
from weights.command import diff, export_command, inspect, transfer_command, transplant_command
from weights.errors import ConfigurationError, NotACheckpointError, OutputError
from weights.tensor_bundle_writer import write_bundle

CHECKPOINT = "P1/ckpt_after_poisson"
PATH = str(prefix(CHECKPOINT))


def test_inspect_shows_every_key_and_the_configuration(capsys):
    assert inspect(PATH) == 0
    shown = capsys.readouterr().out
    for key in read_checkpoint(PATH):
        assert key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE") in shown
    assert "(32, 2, 16)" in shown
    assert "every checksum holds" in shown
    for name in arguments(CHECKPOINT):
        assert name in shown
    bias = read_checkpoint(PATH)["model/stem_conv/bias/.ATTRIBUTES/VARIABLE_VALUE"].astype(np.float64)
    assert f"{bias.mean():.6g}" in shown
    assert f"{bias.std():.6g}" in shown


def test_transplant_and_export_and_diff_close_the_circle(tmp_path, capsys):
    model_dir, exported = str(tmp_path / "model [/x]"), str(tmp_path / "[tensorflow]")
    assert transplant_command(PATH, model_dir, seed=21, constants="philox") == 0
    assert export_command(model_dir, exported) == 0
    shown = capsys.readouterr().out
    assert "ignored _CHECKPOINTABLE_OBJECT_GRAPH" in shown
    assert model_dir in shown
    assert exported in shown
    for left, right in ((PATH, exported), (exported, PATH), (model_dir, PATH), (model_dir, exported), (PATH, PATH)):
        assert diff(left, right) == 0
        assert "0 of 293 tensors differ" in capsys.readouterr().out


def test_a_fine_tuning_checkpoint_is_recognised_by_its_rna_head(tmp_path, capsys):
    path = str(prefix("R1/ckpt_after_poisson_multinomial"))
    model_dir, exported = str(tmp_path / "model"), str(tmp_path / "tensorflow")
    assert inspect(path) == 0
    shown = capsys.readouterr().out
    assert "configuration of a fine-tuning model" in shown
    assert "predict_atac" in shown
    assert transplant_command(path, model_dir, seed=3, constants="philox") == 0
    assert export_command(model_dir, exported) == 0
    capsys.readouterr()
    for left, right in ((path, exported), (model_dir, path)):
        assert diff(left, right) == 0
        assert "0 of 314 tensors differ" in capsys.readouterr().out


def test_a_configuration_may_be_given(tmp_path):
    given = {**arguments(CHECKPOINT), "seed": 5}
    (tmp_path / "config.json").write_text(json.dumps(given))
    transplant_command(PATH, str(tmp_path / "a"), config=str(tmp_path / "config.json"), constants="philox")
    transplant_command(PATH, str(tmp_path / "b"), config=str(tmp_path / "config.json"), seed=21, constants="philox")
    seeds = [json.loads((tmp_path / name / "config.json").read_text())["seed"] for name in ("a", "b")]
    assert seeds == [5, 21]


def test_without_configuration_the_sizes_are_inferred_and_the_rest_assumed(tmp_path, capsys):
    transplant_command(PATH, str(tmp_path / "out"), constants="philox")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["num_heads"] == 2
    assert written["seed"] == 19
    assert '"seed": 19' in capsys.readouterr().out


def test_a_configuration_that_contradicts_writes_nothing(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**arguments(CHECKPOINT), "num_heads": 4}))
    with pytest.raises(CheckpointError, match="num_heads"):
        transplant_command(PATH, str(tmp_path / "out"), config=str(tmp_path / "config.json"), constants="philox")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigurationError, match="no JSON"):
        transplant_command(PATH, str(tmp_path / "out"), config=str(tmp_path / "config.json"), constants="philox")
    with pytest.raises(NotACheckpointError, match="absent"):
        transplant_command(PATH, str(tmp_path / "out"), config=str(tmp_path / "absent"), constants="philox")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write to"):
        transplant_command(PATH, str(tmp_path / "file" / "out"), seed=21, constants="philox")
    transplant_command(PATH, str(tmp_path / "model"), seed=21, constants="philox")
    with pytest.raises(OutputError, match="cannot write to"):
        export_command(str(tmp_path / "model"), str(tmp_path / "file" / "out"))
    with pytest.raises(NotACheckpointError, match=r"file is no folder with .*config\.json"):
        export_command(str(tmp_path / "file"), str(tmp_path / "out"))


def changed(folder: Path, **changes: np.ndarray | None) -> str:
    """A copy of the checkpoint with some tensors changed, added or (None) left out."""
    arrays: dict[str, tuple[str, np.ndarray | None]] = {
        key.partition("/.ATTR")[0]: (key, array) for key, array in read_checkpoint(PATH).items()
    }
    for path, array in changes.items():
        arrays[path] = (arrays.get(path, (path, None))[0], array)
    folder.mkdir()
    write_bundle(folder / "ckpt", [(key, array) for key, array in arrays.values() if array is not None])
    return str(folder / "ckpt")


@pytest.mark.parametrize(
    ("path", "array", "told"),
    [
        ("batch_num", None, "only left"),
        ("extra", np.zeros(1), "only right"),
        ("batch_num", np.array(2, np.int32), "values"),
        ("batch_num", np.array(1, np.int64), "int64"),
        ("best_val_loss", np.array(np.nan, np.float32), "values"),
        ("save_counter", np.ones(1, np.int64), "(1,)"),
    ],
)
def test_diff_names_each_difference(tmp_path, capsys, path, array, told):
    assert diff(PATH, changed(tmp_path / "other", **{path: array})) == 1
    shown = capsys.readouterr().out
    assert path in shown
    assert told in shown
    assert "1 of 29" in shown


def test_diff_sees_one_ulp_and_a_negative_zero(tmp_path):
    first, second = build(CHECKPOINT), build(CHECKPOINT)
    for model in (first, second):
        transplant(PATH, model, constants="philox")
    state = second.state_dict()["performer.norm.bias"]
    state[0] = torch.nextafter(state[0], torch.tensor(torch.inf))
    left, right = export(first, tmp_path / "a"), export(second, tmp_path / "b")
    assert diff(str(left), str(left)) == 0
    assert diff(str(left), str(right)) == 1
    first.state_dict()["performer.norm.bias"][0] = 0.0
    second.state_dict()["performer.norm.bias"][0] = -0.0
    left, right = export(first, tmp_path / "c"), export(second, tmp_path / "d")
    assert diff(str(left), str(right)) == 1


def test_bad_input_to_every_command_is_a_checkpoint_error(tmp_path):
    absent = str(tmp_path / "absent")
    for action in (
        lambda: inspect(absent),
        lambda: transplant_command(absent, str(tmp_path / "out")),
        lambda: export_command(absent, str(tmp_path / "out")),
        lambda: diff(absent, PATH),
        lambda: diff(PATH, absent),
    ):
        with pytest.raises(CheckpointError, match="absent"):
            action()


def test_transfer_makes_a_fine_tuning_model_and_says_what_is_fresh(tmp_path, capsys):
    out, other = tmp_path / "tuned", tmp_path / "other"
    assert transfer_command(PATH, str(out), pretraining_seed=21, constants="philox") == 0
    shown = capsys.readouterr().out
    assert "110 moved, 8 fresh" in shown
    assert "fresh final_dense_profile_rna.weight: the RNA head is new in fine-tuning" in shown
    assert "assumed" not in shown
    model = load_transplanted(out)
    assert isinstance(model, EpiBERTRampage)
    assert (model.config.seed, model.config.num_heads) == (21, 2)
    (tmp_path / "config.json").write_text(json.dumps({"predict_atac": False, "seed": 21}))
    given: dict[str, Any] = {"config": str(tmp_path / "config.json"), "constants": "philox"}
    with pytest.raises(CheckpointError, match="atac_head"):
        transfer_command(PATH, str(other), **given)
    assert not other.exists()
    assert transfer_command(PATH, str(other), **given, allow="atac_head,seed", head_seed=1) == 0
    assert "assumed: the seed 21" in capsys.readouterr().out
    heads = [load_transplanted(folder).state_dict()["final_dense_profile_rna.weight"] for folder in (out, other)]
    assert not torch.equal(*heads)
    assert transfer_command(PATH, str(out), pretraining_seed=21, constants="philox", overwrite=True) == 0
    again = load_transplanted(out).state_dict()["final_dense_profile_rna.weight"]
    assert torch.equal(again, heads[0])
    # The result travels back to TensorFlow like any other.
    assert export_command(str(out), str(tmp_path / "tensorflow")) == 0


def test_transfer_from_a_folder_takes_its_configuration(tmp_path):
    transplant_command(PATH, str(tmp_path / "pretrained"), seed=21, constants="philox")
    transfer_command(str(tmp_path / "pretrained"), str(tmp_path / "tuned"))
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("pretrained", "tuned"))
    assert before == after
    (tmp_path / "config.json").write_text(json.dumps({"no_such_argument": 1}))
    with pytest.raises(ConfigurationError, match="impossible"):
        transfer_command(PATH, str(tmp_path / "none"), config=str(tmp_path / "config.json"))

"""``epibert record`` as a user meets it when something is wrong: exit status 2 and one line."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from parity import Recording, command
from parity.pairs import record_command
from parity.pairs.record_command import prepare_original
from parity.recorder import SHUFFLED
from tests.unit.parity.recordings import small_recording, write_inputs, write_model


def refused(capsys: pytest.CaptureFixture[str], *given: object) -> str:
    with pytest.raises(SystemExit) as ended:
        command.main(["record", *map(str, given)])
    lines = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("epibert: error: ")
    return lines[0]


@pytest.fixture
def given(tmp_path) -> tuple[object, ...]:
    model, inputs = f"{write_model(tmp_path)}:build", write_inputs(tmp_path)
    return "--model", model, "--inputs", inputs, "--out", tmp_path / "out.h5"


def script(folder: Path, text: str) -> Path:
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_a_python_that_is_not_there_is_named(capsys, tmp_path, given):
    assert "cannot run" in refused(capsys, *given, "--python", tmp_path / "absent")


def test_a_python_without_tensorflow_says_so(capsys, tmp_path, given):
    text = "import runpy, sys, importlib.util as util\nplain = util.find_spec\n"
    text += "util.find_spec = lambda name, *more: None if name == 'tensorflow' else plain(name, *more)\n"
    text += "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    assert "there is no TensorFlow in" in refused(capsys, *given, "--python", script(tmp_path, text))


def test_a_python_that_dies_is_told_from_one_that_refuses(capsys, tmp_path, given):
    text = "import sys\nprint('going on')\nprint('Illegal instruction', file=sys.stderr)\nsys.exit(132)"
    line = refused(capsys, *given, "--python", script(tmp_path, text))
    assert "status 132: Illegal instruction" in line


def test_the_option_that_a_recording_without_it_names_is_one_that_is_taken(capsys, tmp_path, given, tensorflow):
    recording = Recording(small_recording(tmp_path, modes=("evaluation",), steps=0))
    with pytest.raises(LookupError, match=r"\(epibert record --looks true\)"):
        recording.inputs_of(SHUFFLED.format(draw=1))
    # So it is read, and it is the Python that is missing.
    assert "cannot run" in refused(capsys, *given, "--looks", "true", "--python", tmp_path / "absent")


def test_what_the_recorder_says_comes_through(capsys, tmp_path, given):
    assert "absent.py: no such file" in refused(capsys, "--model", "absent.py:build", *given[2:])


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ((), "what is to be recorded?"),
        (("--model", "a.py:b"), "what is to be recorded?"),
        (("--checkpoint", "c"), "belong to --repo"),
        (("--repo", ".", "--model", "a.py:b"), "leave --model and --arguments out"),
        (("--repo", "."), "needs --checkpoint"),
        (("--repo", "absent"), "no such folder"),
    ],
)
def test_requests_that_mean_nothing_are_refused(capsys, more, reason):
    assert reason in refused(capsys, *more)


def test_the_published_model_is_made_by_a_file_alone_in_its_folder_and_what_nobody_told_has_a_name(goldens, tmp_path):
    checkpoint = str(goldens / "R1" / "ckpt_before")
    place, _, file = prepare_original(str(tmp_path), checkpoint, None, 8, 1, tmp_path)
    # Beside ours lies an epibert.py, which would hide a clone's package of that name.
    assert [path.name for path in Path(place).parent.glob("*.py")] == ["epibert_original.py"]
    arguments = json.loads(Path(file).read_text(encoding="utf-8"))
    assert arguments["kind"] == "finetuning"
    untold, windows = arguments["left_out"].items()
    assert untold[0].startswith("arguments that shapes do not tell: seed, ")
    assert "original's defaults" in untold[1]
    assert windows[0] == "windows longer than 8 bins"
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads((goldens / "R1" / "config.json").read_text())["config"]))
    _, _, file = prepare_original(str(tmp_path), checkpoint, str(config), 64, 1, tmp_path)
    arguments = json.loads(Path(file).read_text(encoding="utf-8"))
    assert arguments["left_out"] == {}
    assert arguments["config"]["seed"] == 3


def test_an_argument_of_someone_elses_function_is_not_taken_for_what_was_left_out(capsys, monkeypatch):
    recording = SimpleNamespace(described="small", not_compared=lambda: (), arguments={"left_out": 0.5})
    monkeypatch.setattr(record_command, "run_recorder", lambda *_: "digest")
    monkeypatch.setattr(record_command, "Recording", lambda _: recording)
    assert record_command.record(model="a.py:build", inputs="inputs.npz", out="out.h5") == 0
    assert capsys.readouterr().out == "written to out.h5: small\nsha256 digest\n"

"""``epibert layer``: a right layer passes, a wrong one is shown by its smallest example, without TensorFlow."""

import runpy

import pytest
import torch

import torch_impl.model as port
from parity.command import main
from parity.pairs.epibert_layers import LAYERS, Case
from parity.pairs.layer_command import examine, find_counterexample, find_layer
from parity.pairs.samples import sample
from parity.records import Status
from tests.unit.test_layout import PYTORCH, TENSORFLOW, run_with_blocked

OWN = """
import torch
import torch.nn.functional as F
from torch import nn


class LayerNorm(nn.Module):
    def __init__(self, channels, epsilon):
        super().__init__()
        self.epsilon = {epsilon}
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.epsilon)


class NoBias(nn.Module):
    def __init__(self, channels, epsilon):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))


class Crashes(LayerNorm):
    def forward(self, x):
        raise RuntimeError("no kernel image")


class Fickle(LayerNorm):
    calls = 0

    def forward(self, x):
        Fickle.calls += 1
        return super().forward(x) + (Fickle.calls == 2)
"""


@pytest.fixture
def own(tmp_path):
    """A user's file, with the epsilon that Keras has by default in the place of the model's."""
    path = tmp_path / "own_layer.py"
    path.write_text(OWN.format(epsilon="1e-3"), encoding="utf-8")
    return path


def epibert(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["layer", *arguments])
    return int(exit_.value.code or 0)


@pytest.mark.parametrize("name", LAYERS)
def test_the_ports_layer_passes(name, capsys):
    assert epibert(name, "--examples", "5") == 0
    assert capsys.readouterr().out == f"{name}: 5 examples, none of which differs from its formula in NumPy\n"


def test_the_counterexample_is_small_and_complete(own, capsys):
    assert epibert("LayerNorm", "--port", str(own)) == 1
    out = capsys.readouterr().out
    for text in (
        "geometry   channels=",
        "input      sample(1, 1, ",
        "shape (1, 1, ",
        "gamma (",
        "beta (",
        "relative error",
        "limit 1e-12 (row float64)",
        "expected (1, 1, ",
        "got      (1, 1, ",
    ):
        assert text in out, out


def test_a_right_layer_of_ones_own_passes(own, capsys):
    own.write_text(OWN.format(epsilon="epsilon"), encoding="utf-8")
    assert epibert("layer_norm", "--port", f"{own}:LayerNorm", "--examples", "20") == 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("NoBias", "tensors that only the port or only the reference has: ['bias']"),
        ("Crashes", "RuntimeError: no kernel image"),
    ],
)
def test_a_layer_that_cannot_be_compared_is_a_counterexample(own, capsys, name, said):
    assert epibert("LayerNorm", "--port", f"{own}:{name}") == 1
    assert f"problem    {said}\n" in capsys.readouterr().out


def test_a_layer_that_differs_from_call_to_call_is_told_in_words(own, capsys):
    own.write_text(OWN.format(epsilon="epsilon"), encoding="utf-8")
    assert epibert("LayerNorm", "--port", f"{own}:Fickle") == 1
    assert "differs from call to call" in capsys.readouterr().out


def test_the_script_of_a_counterexample_fails_alone(own, tmp_path, capsys):
    assert epibert("LayerNorm", "--port", str(own), "--out", str(tmp_path / "out")) == 1
    script = tmp_path / "out" / "repro_LayerNorm.py"
    assert f"written to {script}" in capsys.readouterr().out
    assert runpy.run_path(str(script))["differences"]() == ["output"]
    script.write_text(script.read_text(encoding="utf-8").replace("'epsilon': 0.001", "'epsilon': 1e-05"))
    assert runpy.run_path(str(script))["differences"]() == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("convld",), "no layer 'convld': did you mean Conv1d"),
        (("zzz",), "no layer 'zzz': epibert layer --list names them"),
        ((), "which layer?"),
        (("Conv1d", "--examples", "0"), "--examples must be at least 1"),
        (("Conv1d", "--port", "no_such_module:Conv1d"), "cannot be imported: ModuleNotFoundError"),
        (("Conv1d", "--port", "nowhere.py"), "no file nowhere.py"),
        (("Conv1d", "--port", "json:dumps"), "json has no torch module dumps"),
    ],
)
def test_wrong_use_is_one_line(arguments, said, capsys):
    assert epibert(*arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_list_names_every_layer(capsys):
    assert epibert("--list") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(LAYERS)


def test_the_same_seed_draws_the_same_examples(monkeypatch):
    drawn: list[list[str]] = [[], []]
    plain = examine
    for run in drawn:
        monkeypatch.setattr(
            "parity.pairs.layer_command.examine",
            lambda layer, case, run=run, **arguments: run.append(repr(case)) or plain(layer, case, **arguments),
        )
        assert find_counterexample(LAYERS["Crop"], examples=10, seed_=3) is None
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 5


def test_a_nan_is_a_counterexample(monkeypatch):
    monkeypatch.setattr(port.Crop, "forward", lambda self, x: torch.full_like(x, torch.nan))
    case = Case({"length": 4, "target": 4}, sample(1, 4, 2), 0)
    example = examine(LAYERS["Crop"], case, own=None, side="formula")
    assert example is not None
    assert [row.status for row, _, _ in example.compared] == [Status.NON_FINITE]


def test_names_are_found_whatever_their_spelling():
    assert find_layer("conv_block") is find_layer("ConvBlock") is LAYERS["ConvBlock"]


def test_without_hypothesis_the_extra_is_named():
    result = run_with_blocked({"hypothesis"}, 'from parity.command import main\nmain(["layer", "Conv1d"])')
    assert result.returncode == 2
    assert result.stderr == "epibert: error: testing a layer needs Hypothesis: install the extra 'layer'\n"


def test_neither_tensorflow_nor_lightning_is_needed():
    blocked = (TENSORFLOW | PYTORCH | {"tf_reference"}) - {"torch", "safetensors"}
    statement = 'from parity.command import main\nmain(["layer", "SoftmaxPool", "--examples", "5"])'
    result = run_with_blocked(blocked, statement)
    assert result.returncode == 0, result.stderr
    assert "5 examples" in result.stdout

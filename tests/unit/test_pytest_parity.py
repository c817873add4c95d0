"""The plugin for other people's tests: what a fixture becomes, what fails, and that it costs nothing otherwise."""

import runpy
import tomllib

import pytest

from parity import verify_recording
from parity.ladder import FORWARD_GATES
from tests.unit.sources import ROOT

PAIR = """
import pytest
import torch
from torch import nn
from tests.unit.parity import keras_models
{mark}
@pytest.fixture(scope="module")
def parity_pair():
    model = keras_models.dense()
    port = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    with torch.no_grad():
        port[0].weight.copy_(torch.from_numpy(model.layers[0].kernel.numpy(){transposed}))
        port[0].bias.copy_(torch.from_numpy(model.layers[0].bias.numpy()))
    return model, port, keras_models.input_of(model), dict(precisions=("float64",))
"""
RIGHT = PAIR.format(mark="", transposed=".T")
WRONG = PAIR.format(mark="", transposed="")


@pytest.fixture
def run(pytester: pytest.Pytester, tensorflow):
    def run(source: str, *arguments: str) -> pytest.RunResult:
        pytester.makepyfile(source)
        return pytester.runpytest_inprocess("-p", "pytest_parity", "-p", "no:cacheprovider", "-v", *arguments)

    return run


def test_a_fixture_becomes_a_test_for_each_gate_and_layer(run):
    result = run(RIGHT)
    # Three gates, the layers' test, and its three subtests: the model and both layers.
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(
        ["*test_parity[[]weights] PASSED*", "*test_parity[[]layers] PASSED*", "*test_parity[[]model] PASSED*"]
    )
    result.stdout.fnmatch_lines(["*test_parity_layers*"])


def test_a_wrong_port_fails_on_its_gate_and_layer_and_blocks_the_rest(run):
    result = run(WRONG)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "*the gate 'weights' is failed*",
            "*at fault: 0 = 0: weight of 0.weight*",
            "*the gate 'layers' is blocked: the gate 'weights' did not pass*",
        ]
    )
    result.stdout.fnmatch_lines(["*SUBFAILED[[]0] *test_parity_layers*"])
    assert "SUBFAILED[1]" not in result.stdout.str()


def test_the_marker_chooses_the_gates(run):
    mark = 'pytestmark = pytest.mark.parity(gates=("layers",), modes=("evaluation",))'
    result = run(PAIR.format(mark=mark, transposed=".T"))
    result.assert_outcomes(passed=2)
    assert "test_parity[model]" not in result.stdout.str()


def test_layers_have_no_test_where_their_gate_is_not_asked_for(run):
    mark = 'pytestmark = pytest.mark.parity(gates=("weights",), modes=("evaluation",))'
    result = run(PAIR.format(mark=mark, transposed=".T"))
    result.assert_outcomes(passed=1)
    assert "test_parity_layers" not in result.stdout.str()


def test_a_pair_that_is_no_fixture_is_an_error(run):
    result = run("def parity_pair():\n    return None, None, None\n")
    assert result.ret not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    assert "parity_pair is no fixture" in result.stdout.str() + result.stderr.str()


def test_a_fixture_of_an_older_pytest_is_one(run):
    result = run("def parity_pair():\n    return None, None, None\nparity_pair._pytestfixturefunction = True\n")
    assert "parity_pair is no fixture" not in result.stdout.str() + result.stderr.str()
    assert "test_parity_layers" in result.stdout.str()


def test_the_plugin_can_be_imported_by_a_pytest_without_subtests(monkeypatch):
    monkeypatch.delattr(pytest, "Subtests")
    assert runpy.run_path(str(ROOT / "pytest_parity.py"))["PAIR"] == "parity_pair"


@pytest.mark.parametrize("mark", ["gates=('layer',)", "gates=()", "'layers'", "rungs=('layers',)"])
def test_a_marker_that_means_nothing_is_an_error(run, mark):
    result = run(PAIR.format(mark=f"pytestmark = pytest.mark.parity({mark})", transposed=".T"))
    assert result.ret not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    assert "pytest.mark.parity takes" in result.stdout.str() + result.stderr.str()


def test_the_result_serves_tests_of_ones_own_and_is_made_once(run):
    own = """
seen = []
def test_first(parity_result):
    seen.append(parity_result)
    assert parity_result.passed is True
def test_second(parity_result):
    assert parity_result is seen[0]
"""
    run(RIGHT + own, "-k", "first or second").assert_outcomes(passed=2, deselected=4)


def test_a_pair_of_a_conftest_is_not_collected_twice(run, pytester):
    pytester.makeconftest(RIGHT)
    run("def test_own(parity_result):\n    assert parity_result.passed").assert_outcomes(passed=1)


def test_the_plugin_imports_nothing_where_it_is_not_used(pytester, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(
        "import sys\ndef test_nothing():\n    assert not {'torch', 'tensorflow', 'parity', 'numpy'} & set(sys.modules)"
    )
    pytester.runpytest_subprocess("-p", "pytest_parity").assert_outcomes(passed=1)


def test_the_gates_are_those_of_the_ladder():
    import pytest_parity

    assert pytest_parity.GATES == verify_recording.GATES
    assert pytest_parity.GATES[: len(FORWARD_GATES)] == FORWARD_GATES
    assert set(pytest_parity.DEFAULT_GATES) < set(FORWARD_GATES)


def test_pytest_finds_the_plugin_where_the_package_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["pytest11"] == {"pytest_parity": "pytest_parity"}
    assert project["tool"]["setuptools"]["py-modules"] == ["pytest_parity"]

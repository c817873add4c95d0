"""Who may import whom: read from the source, and tried in an interpreter where the other side cannot be imported."""

import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import pytest

from tests.unit.sources import PACKAGES, ROOT, imports, modules

TENSORFLOW = frozenset({"tensorflow", "tf_keras", "keras"})
PYTORCH = frozenset({"torch", "lightning", "pytorch_lightning", "torchmetrics", "safetensors"})
OUTSIDE = frozenset({"tests", "conftest", "pytest", "hypothesis", "beartype"})


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What the modules of one package must not import: ``never`` at all, ``at_import`` not while being imported."""

    never: frozenset[str]
    at_import: frozenset[str] = frozenset()
    exempt: tuple[str, ...] = ()


RULES = {
    "torch_impl": Rule(never=TENSORFLOW | OUTSIDE | {"tf_reference", "weights", "parity", "benchmarks"}),
    "tf_reference": Rule(never=PYTORCH | OUTSIDE | {"torch_impl", "weights", "parity", "benchmarks"}),
    # The constants may come from TensorFlow where it is there; reading and transplanting never need it.
    "weights": Rule(never=OUTSIDE | {"parity", "benchmarks"}, at_import=TENSORFLOW | {"tf_reference"}),
    # The core knows neither model. parity.pairs binds the two, and the command line chooses a pair.
    "parity": Rule(
        never=OUTSIDE | {"torch_impl", "tf_reference", "weights", "benchmarks"},
        at_import=TENSORFLOW,
        exempt=("parity.pairs", "parity.command", "parity.__main__"),
    ),
}


def is_exempt(module: str, rule: Rule) -> bool:
    return any(module == name or module.startswith(name + ".") for name in rule.exempt)


def import_offences(source: str, rule: Rule) -> set[str]:
    return imports(source) & rule.never | imports(source, run_at_import=True) & rule.at_import


@pytest.mark.parametrize(
    "source",
    [
        "import tensorflow as tf",
        "from tensorflow.python import eager",
        "def f():\n    import tensorflow",
        "try:\n    import tensorflow\nexcept ImportError:\n    tensorflow = None",
        "import importlib\nimportlib.import_module('tensorflow.keras')",
        "tf = __import__('tensorflow')",
        "class A:\n    def f(self):\n        from tensorflow import nn",
    ],
)
def test_a_forbidden_import_is_seen_in_every_spelling(source):
    assert import_offences(source, Rule(never=TENSORFLOW)) == {"tensorflow"}


def test_an_import_inside_a_function_is_told_from_one_at_import():
    rule = Rule(never=frozenset(), at_import=TENSORFLOW)
    assert import_offences("if True:\n    import tensorflow", rule) == {"tensorflow"}
    assert import_offences("class A:\n    import tensorflow", rule) == {"tensorflow"}
    assert not import_offences("def f():\n    import tensorflow", rule)
    assert not import_offences("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import tensorflow", rule)


@pytest.mark.parametrize("package", RULES)
def test_no_module_names_a_package_it_must_not_import(package):
    rule, found = RULES[package], modules(package)
    assert found, f"no modules in {package}"
    offences = {
        name: sorted(names)
        for name, path in found.items()
        if not is_exempt(name, rule) and (names := import_offences(path.read_text(), rule))
    }
    assert not offences


def test_every_package_of_ours_has_a_rule():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages == set(RULES) == set(PACKAGES)


BLOCKED_INTERPRETER = """
import importlib, sys
blocked, statement = set(sys.argv[1].split(",")), sys.argv[2]

class Without:
    # Finds nothing blocked, as if it were not installed: PyTorch asks for modules that it can do without.
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
exec(statement)
present = blocked & {name.partition(".")[0] for name, module in sys.modules.items() if module is not None}
assert not present, f"imported although blocked: {sorted(present)}"
"""


def run_with_blocked(blocked: Iterable[str], statement: str) -> subprocess.CompletedProcess[str]:
    """Runs a statement in a fresh interpreter in which the named packages cannot be imported."""
    command = [sys.executable, "-c", BLOCKED_INTERPRETER, ",".join(sorted(blocked)), statement]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_the_blocked_interpreter_blocks():
    assert run_with_blocked({"tensorflow"}, "import json").returncode == 0
    for statement in ("import numpy", "import numpy.linalg", "import json, h5py", "importlib.import_module('numpy')"):
        result = run_with_blocked({"numpy"}, statement)
        assert result.returncode != 0
        assert "No module named" in result.stderr, result.stderr


@pytest.mark.parametrize("package", RULES)
def test_every_module_is_importable_with_the_forbidden_packages_blocked(package):
    rule = RULES[package]
    names = [name for name in modules(package) if not is_exempt(name, rule) and not name.endswith("__main__")]
    result = run_with_blocked(rule.never | rule.at_import, "\n".join(f"importlib.import_module({n!r})" for n in names))
    assert result.returncode == 0, result.stderr


def test_data_are_converted_where_pytorch_cannot_be_imported():
    statement = "import torch_impl.data.command\nassert not hasattr(torch_impl, 'NoSuchModel')"
    result = run_with_blocked({"torch", "lightning"}, statement)
    assert result.returncode == 0, result.stderr


def test_transplant_and_forward_work_where_tensorflow_cannot_be_imported(goldens):
    case = goldens / "P1"
    statement = f"""
import json
from pathlib import Path
import torch
from torch_impl import EpiBERT, EpiBERTConfig
from weights import read_checkpoint, transplant
case = Path({str(case)!r})
model = EpiBERT(EpiBERTConfig(**json.loads((case / "config.json").read_text())["config"])).eval()
transplant(case / "ckpt_before", model)
with torch.no_grad():
    output = model(torch.rand(1, 8192, 4), torch.rand(1, 2048, 1), torch.rand(1, 1, 11))
assert output.shape == (1, 60, 1) and bool(torch.isfinite(output).all()), output.shape
"""
    result = run_with_blocked(TENSORFLOW | {"tf_reference"}, statement)
    assert result.returncode == 0, result.stderr

"""Scripts for culprits: they fail as long as a layer is wrong, in an environment with nothing but NumPy and PyTorch."""

import contextlib
import dataclasses
import runpy
import types
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor

from parity.ladder import compare_live, find_culprits
from parity.pairs import epibert
from parity.pairs.epibert_repro import write_scripts
from parity.records import Gate, GateStatus, Result
from parity.repro import Bench, write_repros
from tests.unit.sources import PACKAGES
from tests.unit.test_layout import OUTSIDE, PYTORCH, TENSORFLOW, run_with_blocked
from torch_impl import EpiBERT

ALONE = (TENSORFLOW | PYTORCH | OUTSIDE | {*PACKAGES, "h5py", "scipy", "jaxtyping", "rich", "google_crc32c"}) - {
    "torch"
}
"""What a script must do without."""


def flipped_kernel(conv: Any, x: Tensor) -> Tensor:
    return F.conv1d(x.transpose(1, 2), conv.weight.flip(-1), conv.bias, padding=2).transpose(1, 2)


def activation_first(block: Any, x: Tensor) -> Tensor:
    return block.conv(block.norm(block.activation(x)))


def without_rotation(rotary: Any) -> None:
    rotary.forward = lambda x, table: x


@dataclasses.dataclass(frozen=True)
class Fault:
    """A layer, what is done to it, what is wrong in its script, and what is right."""

    layer: str
    inject: Callable[[Any], object]
    wrong: str = ""
    right: str = ""


def put(function: Callable[..., Tensor]) -> Callable[[Any], object]:
    return lambda module: setattr(module, "forward", types.MethodType(function, module))


FAULTS = (
    Fault(
        "stem_res_conv.block.norm",
        lambda norm: setattr(norm, "epsilon", 1e-3),
        "'epsilon': 0.001",
        "'epsilon': 1e-05",
    ),
    Fault("conv_tower.0.block.conv", put(flipped_kernel), "conv.weight.flip(-1)", "conv.weight"),
    Fault(
        "conv_tower.2.block",
        put(activation_first),
        "block.conv(block.norm(block.activation(x)))",
        "block.conv(block.activation(block.norm(x)))",
    ),
    Fault(
        "conv_tower.3.block.norm",
        lambda norm: setattr(norm, "update_rate", 0.9),
        "'update_rate': 0.9",
        "'update_rate': 0.10000000149011612",
    ),
)
NOT_WRITTEN = Fault("performer.layers.0.attention.rotary", without_rotation)
"""A function within another, which no script can hold."""


def inject(port: EpiBERT, faults: Iterable[Fault]) -> None:
    for fault in faults:
        fault.inject(port.get_submodule(fault.layer))


def found(bench, *faults: Fault) -> tuple[Result, Bench]:
    """What the harness says of a port with such faults, and both sides."""
    port = bench.port()
    inject(port, faults)
    side = epibert.watch(port)
    rows = tuple(compare_live(side, bench.live, bench.layer_map, gates=("layers",)))
    culprits = find_culprits(rows, bench.layer_map, model_name="EpiBERT")
    gates = {"layers": dataclasses.replace(_GATE, comparisons=rows)}
    result = Result(pair="", reference="", requested=("layers",), gates=gates, culprit_rows=culprits)
    return result, Bench(port=side, live=bench.live, layer_map=bench.layer_map)


_GATE = Gate(name="layers", status=GateStatus.FAILED)


@pytest.fixture(scope="module")
def scripts(bench, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "repro"
    result, both = found(bench, *FAULTS)
    return folder, write_repros(result, lambda case: contextlib.nullcontext(both), folder)


def test_every_culprit_has_its_script(scripts):
    folder, result = scripts
    assert [(row.script, row.no_script) for row in result.culprit_rows] == [
        (f"repro/repro_{row.port}.py", "") for row in result.culprit_rows
    ]
    assert {path.name for path in folder.iterdir()} == {f"repro_{fault.layer}.py" for fault in FAULTS}


def test_scripts_fail_where_only_numpy_and_pytorch_are(scripts):
    folder, _ = scripts
    paths = sorted(map(str, folder.glob("*.py")))
    statement = f"""
import runpy
for path in {paths!r}:
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as status:
        assert status.code == 1, (path, status.code)
    else:
        raise AssertionError(path)
"""
    result = run_with_blocked(ALONE, statement)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("WRONG") >= len(paths)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.layer)
def test_a_script_is_content_once_the_layer_is_right(scripts, fault, tmp_path, capsys):
    folder, _ = scripts
    script = folder / f"repro_{fault.layer}.py"
    text = script.read_text(encoding="utf-8")
    assert text.count(fault.wrong) == 1
    mended = tmp_path / "mended.py"
    mended.write_text(text.replace(fault.wrong, fault.right), encoding="utf-8")
    assert runpy.run_path(str(script))["differences"]()
    assert runpy.run_path(str(mended))["differences"]() == []
    assert "WRONG" in capsys.readouterr().out


def test_the_input_is_shrunk(scripts):
    folder, _ = scripts
    for fault in FAULTS:
        text = (folder / f"repro_{fault.layer}.py").read_text(encoding="utf-8")
        assert "(1 of 2 examples, positions" in text, fault.layer
    small = runpy.run_path(str(folder / "repro_stem_res_conv.block.norm.py"))["NUMBERS"]["input"]
    assert small.shape[:2] == (1, 1)


def test_what_cannot_be_a_script_says_why(bench, tmp_path):
    result, both = found(bench, FAULTS[0], NOT_WRITTEN)

    def benches(case):
        if result.culprits and not seen:
            seen.append(case)
            raise LookupError("nothing can be fed from it")
        return contextlib.nullcontext(both)

    seen = []
    written = write_repros(result, benches, tmp_path / "repro")
    assert [row.script for row in written.culprit_rows] == ["", ""]
    first, second = (row.no_script for row in written.culprit_rows)
    assert first == "nothing can be fed from it"
    assert "stands inside another definition" in second


def test_a_run_on_recorded_cases_makes_its_scripts_from_whatever_case_showed_the_fault(bench, tmp_path):
    cases = ("P1 live", "P1 live, other inputs", "P1 live, drawn weights", "P1 recorded")
    case_of = {fault.layer: case for fault, case in zip(FAULTS, cases, strict=True)}
    result, _ = found(bench, *FAULTS)
    rows = tuple(dataclasses.replace(row, case=case_of.get(row.layer, "")) for row in result.comparisons)
    result = dataclasses.replace(result, gates={"layers": dataclasses.replace(_GATE, comparisons=rows)})

    written = write_scripts(result, tmp_path / "repro", prepare_port=lambda port: inject(port, FAULTS))
    assert {row.port: row.no_script for row in written.culprit_rows} == {
        name: "nothing can be fed from P1 recorded" if case == "P1 recorded" else "" for name, case in case_of.items()
    }
    for row in written.culprit_rows:
        assert row.no_script or runpy.run_path(str(tmp_path / row.script))["differences"]()

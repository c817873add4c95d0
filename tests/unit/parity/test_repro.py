"""Scripts for layers at fault: how their files are named, filled, tried and removed, without a model."""

import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from parity import Reading, Status
from parity.compare import compare
from parity.repro import TEMPLATE, _bounds, _file_name, remove_repros, write_example
from parity.tolerances import TABLE


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Leaving(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise SystemExit(3)


def write(module, path, *, title="a layer", numbers=3):
    x = torch.ones(numbers, dtype=torch.float64)
    write_example(
        module,
        lambda: module(x),
        {"output": np.full(numbers, 5.0)},
        path,
        title=title,
        found="found",
        tolerance="float64",
        training=False,
    )


def test_scripts_of_an_earlier_run_are_removed_and_nothing_else(tmp_path):
    folder = tmp_path / "repro"
    remove_repros(folder)
    folder.mkdir()
    script = TEMPLATE.read_text(encoding="utf-8")
    for name, text in (("a.py", script), ("a.npz", ""), ("own.py", '"""My own."""\n'), ("own.npz", ""), ("n.txt", "")):
        (folder / name).write_text(text, encoding="utf-8")
    remove_repros(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["n.txt", "own.npz", "own.py"]


def test_the_folder_goes_with_its_last_script(tmp_path):
    folder = tmp_path / "repro"
    folder.mkdir()
    (folder / "a.py").write_text(TEMPLATE.read_text(encoding="utf-8"), encoding="utf-8")
    remove_repros(folder)
    assert not folder.exists()


def test_no_script_hides_a_module_of_the_standard_library():
    # Python looks for modules in a script's own folder first.
    names = {_file_name(name, ()).removesuffix(".py") for name in (*sys.stdlib_module_names, "torch", "numpy", "???")}
    assert not names & {*sys.stdlib_module_names, "torch", "numpy"}
    assert _file_name("a.b", {"repro_a.b.py"}) == "repro_a.b_2.py"


@pytest.mark.parametrize("numbers", [3, 100_000])
def test_a_script_that_does_not_run_is_not_kept(tmp_path, monkeypatch, numbers):
    def broken(path):
        raise NameError("a name that only the layer's module has")

    monkeypatch.setattr("parity.repro.EMBEDDED", 10)
    write(Doubled(), tmp_path / "kept.py", numbers=numbers)
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == ({"kept.py"} if numbers == 3 else {"kept.py", "kept.npz"})
    monkeypatch.setattr("parity.repro.runpy.run_path", broken)
    with pytest.raises(NameError):
        write(Doubled(), tmp_path / "lost.py", numbers=numbers)
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_layer_that_ends_the_program_has_no_script(tmp_path):
    with pytest.raises(LookupError, match="ends the program"):
        write(Leaving(), tmp_path / "a.py")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_looks_like_a_place_of_the_template_is_not_filled(tmp_path):
    write(Doubled(), tmp_path / "a.py", title="<<CODE>>")
    lines = (tmp_path / "a.py").read_text(encoding="utf-8").splitlines()
    assert lines[1] == '"""<<CODE>>'


def test_a_module_of_any_name_leaves_the_script_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("parity.repro.Sources.modules", ["a\nraise KeyError"], raising=False)
    write(Doubled(), tmp_path / "a.py")
    assert "from a\\nraise KeyError without" in (tmp_path / "a.py").read_text(encoding="utf-8")


def test_a_ratio_bounds_single_numbers_as_the_ladder_does():
    truth = np.linspace(1.0, 2.0, 5000)
    astray = truth * (1 + 1e-8)
    astray[7] *= 1 + 1e-5
    row = compare(
        astray, truth, gate="layers", reading=Reading.ISOLATED, precision="float32", tolerance="float32",
        reference_path="a", port_path="a", layer="a", reference_same_precision=truth * (1 + 5e-8),
    )  # fmt: skip
    assert row.error is not None
    limit, peak = _bounds([row], "a", "output", "float32")
    assert (row.status, limit, peak) == (Status.FAIL, row.limit, row.peak_limit)
    assert row.error < limit
    assert (row.peak or 0.0) > peak
    floor = TABLE["float32"].floor
    assert _bounds([row], "b", "output", "float32") == (floor, TABLE["float32"].peak_ratio * floor)


def test_one_number_too_far_off_is_wrong_in_a_script_too(tmp_path):
    x = torch.ones(100_000, dtype=torch.float64)
    module, expected = Doubled(), np.full(x.numel(), 2.0)
    expected[3] *= 1 + 2 * TABLE["zero_gradient"].largest_peak
    write_example(
        module, lambda: module(x), {"output": expected}, tmp_path / "a.py", title="", found="",
        tolerance="zero_gradient", training=False,
    )  # fmt: skip
    assert (tmp_path / "a.py").is_file()

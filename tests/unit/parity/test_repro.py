"""Scripts for layers at fault: how their files are named, filled, tried and removed, without a model."""

import sys

from parity.repro import TEMPLATE, _file_name, remove_repros


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

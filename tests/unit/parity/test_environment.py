"""What a result was measured with: the hashes change with the content, and with nothing else."""

import hashlib

import pytest

from parity.environment import describe_environment, hash_file, hash_sources, version


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "package"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.py").write_text("a = 1\n")
    (folder / "inner" / "b.py").write_text("b = 2\n")
    return folder


def edit(folder):
    (folder / "inner" / "b.py").write_text("b = 3\n")


def rename(folder):
    (folder / "a.py").rename(folder / "c.py")


def add(folder):
    (folder / "new.py").write_text("")


def remove(folder):
    (folder / "a.py").unlink()


def move_a_line(folder):
    (folder / "a.py").write_text("")
    (folder / "inner" / "b.py").write_text("a = 1\nb = 2\n")


def edit_the_page(folder):
    (folder / "page.css").write_text("body {}")


@pytest.mark.parametrize("change", [edit, rename, add, remove, move_a_line, edit_the_page], ids=lambda f: f.__name__)
def test_the_hash_of_a_package_changes_with_its_sources(package, change):
    before = hash_sources(package)
    change(package)
    assert hash_sources(package) != before


def test_the_hash_of_a_package_does_not_depend_on_what_python_leaves_behind(package):
    before = hash_sources(package)
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"x")
    assert hash_sources(package) == before


def test_the_hash_of_a_file_is_its_sha256(tmp_path):
    (tmp_path / "weights").write_bytes(b"abc" * 100_000)
    assert hash_file(tmp_path / "weights") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_the_version_of_what_is_not_installed_is_none():
    assert version("no-such-distribution") is None


def test_the_environment_names_versions_and_sources():
    found = describe_environment()
    assert {"torch_impl", "tf_reference", "weights", "parity"} == found["sources"].keys()
    assert found["versions"]["torch"]
    assert found["versions"]["numpy"]

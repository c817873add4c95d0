import pytest

from weights.errors import OutputError
from weights.output import atomic_directory


def write(target, **options):
    with atomic_directory(target, last="last", **options) as folder:
        (folder / "first").write_text("1")
        (folder / "last").write_text("2")


@pytest.mark.parametrize("exists", [True, False])
def test_the_files_appear_together(tmp_path, exists):
    target = tmp_path / "out"
    if exists:
        target.mkdir()
        (target / "other").write_text("kept")
    write(target)
    expected = {"first", "last", *(["other"] if exists else [])}
    assert {path.name for path in target.iterdir()} == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("exists", [True, False])
def test_a_failure_leaves_nothing(tmp_path, error, exists):
    target = tmp_path / "new" / "out"
    if exists:
        target.mkdir(parents=True)

    def fail() -> None:
        with atomic_directory(target, last="last") as folder:
            (folder / "first").write_text("1")
            raise error

    with pytest.raises(OutputError if error is OSError else error):
        fail()
    assert [path.name for path in tmp_path.rglob("*")] == (["new", "out"] if exists else [])


def test_files_that_are_there_are_kept_unless_asked(tmp_path):
    (tmp_path / "first").write_text("old")
    with pytest.raises(OutputError, match="already holds first"):
        write(tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("first", "old")]
    write(tmp_path, overwrite=True)
    assert (tmp_path / "first").read_text() == "1"


def test_a_place_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "file" / "far" / "below"):
        with pytest.raises(OutputError, match="cannot write to"):
            write(target)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_new_folder_is_as_readable_as_any_other(tmp_path):
    write(tmp_path / "out")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode

"""``epibert data`` as a user calls it."""

import pytest

from parity.command import main
from tests.records import synthetic_records
from torch_impl.data.examples import ExampleConfig
from torch_impl.data.tfrecord import write_records

CONFIG = ExampleConfig.tiny(num_motifs=8, finetuning=True)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source" / "train" / "a.tfr"
    path.parent.mkdir(parents=True)
    write_records(path, synthetic_records(CONFIG, 3))
    return tmp_path / "source"


def status(*arguments: object) -> object:
    with pytest.raises(SystemExit) as ended:
        main(["data", *map(str, arguments)])
    return ended.value.code


def test_convert_verify_export(tmp_path, source, capsys):
    target, again = tmp_path / "target", tmp_path / "again"
    assert status("convert", source, target) == 0
    assert "3 records in 1 files converted" in capsys.readouterr().out
    assert status("verify", source, target) == 0
    assert "equal to their source" in capsys.readouterr().out
    assert status("export", target, again) == 0
    assert (again / "train" / "a.tfr").is_file()
    assert status("verify", again, target) == 0


def test_skipped_records_are_named_and_the_exit_status_is_one(tmp_path, source, capsys):
    path = source / "train" / "a.tfr"
    records = list(synthetic_records(CONFIG, 14))
    for record in records[:12]:
        record.motif_activity[:] = 1
    write_records(path, records)
    assert status("convert", source, tmp_path / "target", "--on_error", "skip") == 1
    out = capsys.readouterr().out
    assert "2 records in 1 files converted" in out
    assert "12 records skipped" in out
    assert "train/a: record 0: motif_activity is 1 throughout" in out
    assert "and 2 more" in out


@pytest.mark.parametrize("which", ["converted", "tfrecord"])
def test_inspect_shows_a_record_and_draws_it(tmp_path, source, capsys, which):
    path = source / "train" / "a.tfr"
    if which == "converted":
        status("convert", source, tmp_path / "target")
        path = tmp_path / "target"
    picture = tmp_path / "pictures" / "record.html"
    assert status("inspect", path, "--record", 2, "--out", picture) == 0
    out = capsys.readouterr().out
    for text in ("sequence", "atac", "float32", "2048 x 1", "cell_encoding", "not read", "of 60 bins masked"):
        assert text in out
    text = picture.read_text()
    assert text.count("plotly") > 3
    for name in ("accessibility as stored", "as the model sees it", "mask and unmask", "target", "peak centres"):
        assert name in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("convert", "absent", "target"), "absent: does not exist"),
        (("verify", "absent", "target"), "absent: does not exist"),
        (("export", "absent", "target"), "absent: holds no converted records"),
        (("inspect", "absent"), "absent: holds no converted records"),
        (("inspect", "source/train/a.tfr", "--record", "3"), "there is no record 3, the last is 2"),
        (("inspect", "source/train/a.tfr", "--record", "-1"), "there is no record -1"),
        (("inspect", "absent.tfr"), r"absent.tfr: cannot be read: No such file"),
        (("convert", "source", "source/train/a.tfr"), "cannot be written"),
        (("convert", "source", "target", "--workers", "0"), "workers must be at least 1"),
    ],
)
def test_wrong_use_is_one_line_and_status_two(tmp_path, source, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert status(*arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1


def test_the_compression_can_be_told_when_it_cannot_be_found_out(tmp_path, source, capsys):
    path = source / "train" / "a.tfr"
    write_records(path, synthetic_records(CONFIG, 3), "NONE")
    data = bytearray(path.read_bytes())
    data[9] ^= 1
    path.write_bytes(data)
    assert status("convert", source, tmp_path / "target") == 2
    assert "not a TFRecord file" in capsys.readouterr().err
    assert status("convert", source, tmp_path / "target", "--compression", "NONE") == 2
    assert "record 0: the checksum of the length" in capsys.readouterr().err


def test_a_difference_is_one_line_and_status_one(tmp_path, source, capsys):
    target = tmp_path / "target"
    assert status("convert", source, target) == 0
    write_records(source / "train" / "a.tfr", synthetic_records(CONFIG, 3, seed=5))
    capsys.readouterr()
    assert status("verify", source, target) == 1
    assert "not equal: " in (out := capsys.readouterr().out)
    assert "a.tfr: record 0" in out
    assert len(out.splitlines()) == 1


def test_a_truncated_file_is_named(tmp_path, source, capsys):
    path = source / "train" / "a.tfr"
    path.write_bytes(path.read_bytes()[:-20])
    assert status("convert", source, tmp_path / "target") == 2
    assert "a.tfr: record 2: the compressed data end early: the file is truncated" in capsys.readouterr().err

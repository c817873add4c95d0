"""Predicted profiles: which record, where in the genome, and as tracks."""

import dataclasses
from pathlib import Path
from typing import Any

import h5py
import lightning
import numpy as np
import pytest
import torch

from tests.assertions import assert_same
from tests.records import synthetic_record
from tests.unit.torch_impl.training import DATA, example_config, model_config, quiet
from torch_impl import predictions
from torch_impl.checkpointing import TrainingError
from torch_impl.data.convert import convert_tfrecord_to_hdf5
from torch_impl.data.draws import InferenceDraws, OwnDraws
from torch_impl.data.records import DataError
from torch_impl.data.tfrecord import _tensor, write_records
from torch_impl.data_module import EpiBERTDataModule
from torch_impl.epibert_lightning import EpiBERTLightning
from torch_impl.predictions import PredictionWriter, read_intervals

pytestmark = quiet
INTERVALS = [("chr1", 0, 512), ("chr1", 384, 896), ("chr2", 100, 612)]
NUMBERS = (2, 0, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three records of the test set, with the numbers of their intervals, and the intervals."""
    base = tmp_path_factory.mktemp("predict")
    (base / "source" / "test").mkdir(parents=True)
    records = [
        dataclasses.replace(
            synthetic_record(example_config(), seed), others={"interval": _tensor(np.array(number, np.int32))}
        )
        for seed, number in enumerate(NUMBERS)
    ]
    write_records(base / "source" / "test" / "0.tfr", records)
    convert_tfrecord_to_hdf5(base / "source", base / "converted")
    (base / "intervals.bed").write_text("".join(f"{name}\t{start}\t{end}\ttest\n" for name, start, end in INTERVALS))
    (base / "sizes.txt").write_text("chr1\t2000\nchr2\t1000\n")
    return base


def predict(folder: Path, writer: PredictionWriter, batch_size: int = 2) -> tuple[EpiBERTLightning, EpiBERTDataModule]:
    torch.manual_seed(0)
    module = EpiBERTLightning(model_config())
    data = EpiBERTDataModule(folder / "converted", example_config(), batch_size=batch_size)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, callbacks=[writer], logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.predict(module, data, return_predictions=False)
    return module, data


def test_rows_are_those_of_the_records(folder, tmp_path):
    out = tmp_path / "a.h5"
    module, data = predict(folder, PredictionWriter(str(out), str(folder / "intervals.bed")))
    with h5py.File(out) as file:
        rows: dict[str, Any] = {name: file[name][()] for name in file}
        assert dict(file.attrs)["bin_length"] == 32
    assert rows["record"].tolist() == [0, 1, 2]
    assert [name.decode() for name in rows["chromosome"]] == ["chr2", "chr1", "chr1"]
    # Two bins of 32 bp are cropped from each end.
    assert rows["start"].tolist() == [164, 64, 448]
    assert rows["end"].tolist() == [548, 448, 832]
    assert (rows["end"] - rows["start"] == 32 * rows["atac"].shape[1]).all()
    dataset = data.predict_dataloader().dataset
    module.eval()
    for number in range(3):
        example = dataset[(0, number)]
        (batch,) = [data.on_after_batch_transfer([torch.from_numpy(v[None]) for v in example[:6]], 0)]
        with torch.no_grad():
            expected = module.model(batch[0], batch[1], batch[5])[0, :, 0].numpy()
        assert_same(rows["atac"][number], expected, "copy_float32")
        np.testing.assert_array_equal(rows["target"][number], example.target[:, 0])
        np.testing.assert_array_equal(rows["mask"][number], example.mask[:, 0])
        assert example.mask.any()
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def test_examples_to_predict_are_as_stored(folder):
    config = example_config(training=False)
    data = EpiBERTDataModule(folder / "converted", example_config(), predict_shift=3)
    dataset = data.predict_dataloader().dataset
    record = dataset.store[1]  # type: ignore[attr-defined]
    drawn = InferenceDraws(25, 3).draw(record, config, index=1)
    assert (drawn.shift, drawn.reverse_complement) == (3, False)
    assert not drawn.atac_noise.any()
    assert not drawn.motif_noise.any()
    own = OwnDraws(25).draw(record, config, index=1)
    np.testing.assert_array_equal(drawn.kept_regions, own.kept_regions)
    drawn.check(config)
    example = dataset[(0, 1)]
    letters = np.frombuffer(record.sequence[3:], np.uint8)[: DATA["input_length"]]
    assert [b"ACGT".find(bytes([letter]).upper()) % 5 for letter in letters] == example.sequence.tolist()


def test_a_record_that_two_processes_predicted_has_one_row(tmp_path):
    parts = [tmp_path / "0", tmp_path / "1"]
    for path, records in zip(parts, ([0, 2], [1, 0]), strict=True):
        with h5py.File(path, "w") as file:
            file["record"] = np.array(records)
            file["atac"] = np.array(records)[:, None] * 10 + [[0, 1]]
    rows = predictions._joined(parts)
    assert rows["record"].tolist() == [0, 1, 2]
    assert rows["atac"].tolist() == [[0, 1], [10, 11], [20, 21]]


@pytest.mark.parametrize("shift", [-1, 17])
def test_a_shift_that_the_letters_leave_no_room_for_is_named(shift):
    record = synthetic_record(example_config(), 0)
    with pytest.raises(DataError, match=f"cannot be moved by {shift}: the sequence leaves room for 16"):
        InferenceDraws(0, shift).draw(record, example_config())


def test_a_chromosome_that_is_too_short_is_named_before_anything_is_predicted(folder, tmp_path):
    (tmp_path / "sizes.txt").write_text("chr1\t2000\nchr2\t600\n")
    with pytest.raises(TrainingError, match=r"sizes\.txt: chr2 ends before 612"):
        PredictionWriter(
            str(tmp_path / "a.h5"), str(folder / "intervals.bed"), bigwig=True,
            chromosome_sizes=str(tmp_path / "sizes.txt"),
        )  # fmt: skip


def test_tracks_cover_every_position_once(folder, tmp_path):
    import pyBigWig

    out = tmp_path / "a.h5"
    writer = PredictionWriter(
        str(out), str(folder / "intervals.bed"), bigwig=True, chromosome_sizes=str(folder / "sizes.txt")
    )
    predict(folder, writer)
    with h5py.File(out) as file:
        atac = file["atac"][()]
    track = pyBigWig.open(str(tmp_path / "a.h5.atac.bw"))
    assert track.chroms() == {"chr1": 2000, "chr2": 1000}
    for chromosome, start, row in (("chr2", 164, 0), ("chr1", 64, 1), ("chr1", 448, 2)):
        for index, value in enumerate(atac[row]):
            assert track.values(chromosome, start + 32 * index, start + 32 * index + 1) == [float(value)]
    assert np.isnan(track.values("chr1", 0, 64)).all()
    track.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "a.h5.atac.bw"]


def test_where_windows_overlap_the_first_counts(folder, tmp_path):
    import pyBigWig

    (tmp_path / "overlapping.bed").write_text("chr1\t0\t512\nchr1\t128\t640\nchr2\t0\t512\n")
    out = tmp_path / "a.h5"
    predict(folder, PredictionWriter(str(out), str(tmp_path / "overlapping.bed"), bigwig=True))
    with h5py.File(out) as file:
        first, second = file["atac"][1], file["atac"][2]
    track = pyBigWig.open(str(tmp_path / "a.h5.atac.bw"))
    assert track.values("chr1", 192, 193) == [float(first[4])]
    assert track.values("chr1", 448, 449) == [float(second[8])]
    track.close()


def test_wrong_options_and_files_are_named(folder, tmp_path, monkeypatch):
    with pytest.raises(TrainingError, match="is a folder"):
        PredictionWriter(str(tmp_path))
    with pytest.raises(TrainingError, match="bigWig needs --intervals"):
        PredictionWriter("a.h5", bigwig=True)
    with pytest.raises(TrainingError, match="cannot read"):
        PredictionWriter("a.h5", str(tmp_path / "absent"))
    (tmp_path / "bad.bed").write_text("chr1\t1\t2\nchr1\tx\t2\n")
    with pytest.raises(TrainingError, match="line 2"):
        read_intervals(str(tmp_path / "bad.bed"))
    monkeypatch.setitem(__import__("sys").modules, "pyBigWig", None)
    with pytest.raises(TrainingError, match="extra 'tracks'"):
        predictions._pybigwig()


@pytest.mark.parametrize(
    ("lines", "message"),
    [("chr1\t0\t512\n", "record 0 is of interval 2, of which there are 1"),
     ("chr1\t0\t512\n" * 2 + "chr1\t0\t500\n", "interval 2 is 500 bp long, the window 512")],
    ids=["few", "short"],
)  # fmt: skip
def test_intervals_of_something_else_are_named_before_anything_is_predicted(
    folder, tmp_path, monkeypatch, lines, message
):
    monkeypatch.setattr(EpiBERTLightning, "predict_step", lambda *_: pytest.fail("it predicts"))
    (tmp_path / "a.bed").write_text(lines)
    out = tmp_path / "out"
    with pytest.raises(TrainingError, match=message):
        predict(folder, PredictionWriter(str(out / "a.h5"), str(tmp_path / "a.bed")))
    assert not out.exists()


def test_predictions_that_fail_leave_nothing_behind(folder, tmp_path, monkeypatch):
    def fail(*_: Any) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(EpiBERTLightning, "predict_step", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        predict(folder, PredictionWriter(str(tmp_path / "a.h5")))
    assert list(tmp_path.iterdir()) == []


def test_records_of_another_loader_are_refused(tmp_path):
    writer = PredictionWriter(str(tmp_path / "a.h5"))
    trainer = lightning.Trainer(accelerator="cpu", callbacks=[writer], logger=False, enable_progress_bar=False)
    with pytest.raises(TrainingError, match="records of an EpiBERTDataModule"):
        trainer.predict(EpiBERTLightning(model_config()), torch.utils.data.DataLoader([1]))  # type: ignore[arg-type]

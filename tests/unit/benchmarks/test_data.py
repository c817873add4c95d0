import pytest

from benchmarks import data

pytestmark = pytest.mark.slow


def test_everything_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "STORES", (20, 100))
    monkeypatch.setattr(data, "READS", 20)
    found = data.data_benchmark("tiny", records=8, rounds=1, converted=104, made=tmp_path / "made")
    # 8 files of one record each, and 24 of four.
    assert len(list((tmp_path / "made").rglob("*.tfr"))) == 32
    assert found["loading"].keys() == {"reference", "port", "port_workers"}
    for side in found["loading"].values():
        assert min(side.values()) > 0
    assert found["loading"]["reference"]["speed_ratio"] == 1
    for part in ("conversion", "reading", "size"):
        assert min(found[part].values()) > 0
    text = data.describe(found)
    assert f"{found['reading']['ratio']:.2f} of the time of one of 20" in text
    assert f"conversion of 104 records by one process: {found['conversion']['ratio']:.2f} of the time" in text

import pytest

from benchmarks import data

pytestmark = pytest.mark.slow


def test_everything_is_measured(monkeypatch):
    monkeypatch.setattr(data, "STORES", (20, 100))
    monkeypatch.setattr(data, "READS", 20)
    found = data.data_benchmark("tiny", records=8, rounds=1)
    assert found["loading"].keys() == {"reference", "port", "port_workers"}
    for side in found["loading"].values():
        assert min(side.values()) > 0
    assert found["loading"]["reference"]["speed_ratio"] == 1
    for part in ("conversion", "reading", "size"):
        assert min(found[part].values()) > 0
    text = data.describe(found)
    assert f"{found['reading']['ratio']:.2f} of the time of one of 20" in text
    assert f"{found['conversion']['ratio']:.2f} of the time that TensorFlow takes" in text

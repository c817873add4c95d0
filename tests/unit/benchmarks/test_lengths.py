import pytest

from benchmarks import lengths
from benchmarks.lengths import exponent, lengths_benchmark, picture


def test_every_length_is_measured_and_drawn(monkeypatch):
    monkeypatch.setitem(lengths.BINS, "tiny", (8, 16))
    lines = []
    found = lengths_benchmark("tiny", progress=lines.append)
    assert found["lengths"] == [1024, 2048]
    assert all(seconds > 0 for seconds in found["seconds"])
    assert len(lines) == 2
    assert picture(found).count("<polyline") == 2


@pytest.mark.parametrize("power", [1, 2])
def test_the_exponent_tells_linear_from_quadratic(power):
    assert exponent([1, 2, 4, 8], [3.0 * length**power for length in (1, 2, 4, 8)]) == pytest.approx(power)

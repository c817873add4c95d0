from benchmarks.ratios import SLACK, data_ratios, name_of, picture, ratios, read_committed, regressions

SETTINGS = {"kind": "forward", "model": "pretrain", "config": "full", "batch": 1, "threads": 2}
NAME = "forward pretrain full float32, batch 1, 2 threads"
COMMITTED = {NAME: {"seconds": 1.2, "peak_bytes": 3.0}}


def measured(seconds: float, peak: float = 3.0) -> dict[str, dict[str, float]]:
    summary = {"ratio": {"seconds": seconds, "peak_bytes": peak, "cpu_seconds": 0.0}}
    return ratios([{"settings": SETTINGS, "precisions": {"float32": summary}}])


def test_a_measurement_is_named_after_what_decides_its_ratio():
    assert name_of(SETTINGS, "float32") == NAME
    assert measured(1.1) == {NAME: {"seconds": 1.1, "peak_bytes": 3.0}}


def test_a_port_as_fast_as_committed_passes():
    assert regressions(measured(1.2), COMMITTED) == ([], [])
    assert regressions(measured(1.2 * (1 - SLACK["seconds"]) + 1e-9), COMMITTED) == ([], [])


def test_a_slowed_port_is_a_regression():
    # Half again as slow as when the ratio was committed.
    worse, unknown = regressions(measured(1.2 / 1.5), COMMITTED)
    assert worse == [f"{NAME}: seconds 0.80, committed 1.20"]
    assert not unknown


def test_a_port_that_needs_more_memory_is_a_regression():
    assert regressions(measured(1.3, 2.7), COMMITTED)[0] == [f"{NAME}: peak_bytes 2.70, committed 3.00"]


def test_a_ratio_that_is_no_number_is_a_regression():
    assert len(regressions(measured(float("nan")), COMMITTED)[0]) == 1


def test_loading_and_conversion_are_held_against_committed_ratios():
    sides = {
        "port": {"speed_ratio": 4.0, "memory_ratio": 0.5},
        "port_workers": {"speed_ratio": 5.0, "memory_ratio": 0.8},
    }
    found = data_ratios(
        {
            "settings": {"config": "full", "workers": {"port": 0, "port_workers": 2}},
            "loading": sides,
            "conversion": {"ratio": 0.8},
        }
    )
    assert found == {
        "loading full, 0 workers": {"seconds": 4.0, "peak_bytes": 2.0},
        "loading full, 2 workers": {"seconds": 5.0, "peak_bytes": 1.25},
        "conversion full, one process": {"seconds": 1.25},
    }
    assert found.keys() <= read_committed().keys()
    assert regressions(found, found) == ([], [])
    faster = found | {"conversion full, one process": {"seconds": 1.25 * 1.5}}
    assert regressions(found, faster)[0] == ["conversion full, one process: seconds 1.25, committed 1.88"]


def test_what_was_committed_and_not_measured_fails():
    assert regressions({NAME: {"seconds": 1.2}}, COMMITTED)[0] == [
        f"{NAME}: measured seconds, committed seconds, peak_bytes"
    ]


def test_what_was_never_committed_is_named():
    assert regressions(measured(1.2), {}) == ([], [f"{NAME}: no committed ratio"])


def test_the_committed_file_holds_ratios_of_time_and_memory():
    for name, values in read_committed().items():
        assert values.keys() == ({"seconds"} if name.startswith("conversion") else SLACK.keys()), name
        assert all(value > 0 for value in values.values())


def test_the_picture_shows_every_ratio():
    text = picture(COMMITTED)
    assert text.count("<rect") == 1 + 2
    assert "1.20" in text
    assert NAME in text
    assert picture({NAME: {"seconds": 0.5}}).count("#c0504d") == 1

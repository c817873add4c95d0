"""A pass that is read while it runs: what is kept, what is waited for, and whose an error is."""

import threading
from collections.abc import Callable

import numpy as np
import pytest

from parity.stream import Stream
from parity.trace import Call, Recorder, Trace

SIZE = 1000


def returned(call: Call | None) -> np.ndarray:
    """The one array that a call returned."""
    assert call is not None
    (array,) = call.outputs
    assert isinstance(array, np.ndarray)
    return array


def chain(names: str, seen: list[str] | None = None) -> Callable[[Recorder], Trace]:
    """A model whose layers are called one after the other, each given what the one before returned."""

    def run(recorder: Recorder) -> Trace:
        whole = recorder.begin("")
        x = np.zeros(SIZE)
        recorder.enter(whole, (x,))
        for name in names:
            key = recorder.begin(name)
            recorder.enter(key, (x,))
            if seen is not None:
                seen.append(name)
            y = x + 1
            recorder.end(key, (x,), (y,))
            x = y
        recorder.end(whole, (np.zeros(SIZE),), (x,))
        return recorder.trace({"a": {"mean": np.ones(1)}})

    return run


def test_it_runs_only_as_far_as_somebody_waits_for_it():
    seen: list[str] = []
    with Stream(chain("abc", seen), ({"a", "b", "c"},)) as stream:
        (reader,) = stream.readers
        assert seen == []
        found = reader.entered(("a", 0))
        assert found is not None
        assert found.inputs is not None
        assert seen == []
        assert np.array_equal(returned(reader.left(("b", 0))), np.full(SIZE, 2.0))
        assert seen == ["a", "b"]


def test_what_every_reader_has_released_is_not_kept():
    names = "abcdefgh"
    with Stream(chain(names), (set(names), set(names))) as stream:
        first, second = stream.readers
        held = []
        for name in names:
            assert first.left((name, 0)) is not None
            first.release((name, 0))
            held.append(stream.held)
            assert second.left((name, 0)) is not None
            second.release((name, 0))
            assert stream.held == 0
    # What one layer was given and what it returned, however many layers there are.
    assert held == [2 * SIZE * 8] * len(names)


def test_what_nobody_wants_is_not_kept():
    with Stream(chain("abc"), ({"c"},)) as stream:
        assert stream.readers[0].left(("c", 0)) is not None
        assert stream.held == 2 * SIZE * 8


def test_what_a_closed_reader_did_not_release_is_not_kept():
    with Stream(chain("abc"), ({"a"}, {"c"})) as stream:
        assert stream.readers[1].left(("c", 0)) is not None
        assert stream.held == 4 * SIZE * 8
        stream.readers[0].close()
        assert stream.held == 2 * SIZE * 8


def test_a_call_that_never_comes_is_none():
    with Stream(chain("abc"), ({"a", "d"},)) as stream:
        assert stream.readers[0].left(("d", 0)) is None
        assert stream.readers[0].entered(("a", 1)) is None


def test_finishing_gives_all_calls_and_statistics_and_of_the_arrays_the_final_output():
    with Stream(chain("ab"), ({"a", "b"},)) as stream:
        trace = stream.finish()
        assert stream.held == 0
    assert list(trace.calls) == [("", 0), ("a", 0), ("b", 0)]
    assert trace.calls["a", 0].outputs == ()
    assert np.array_equal(returned(trace.calls["", 0]), np.full(SIZE, 2.0))
    assert trace.state["a"]["mean"] == 1


def test_an_error_of_the_pass_wakes_who_waits_and_is_raised_at_the_end():
    def run(recorder: Recorder) -> Trace:
        recorder.begin("a")
        raise ValueError("broken")

    with Stream(run, ({"a"},)) as stream:
        assert stream.readers[0].left(("a", 0)) is None
        with pytest.raises(ValueError, match="broken"):
            stream.finish()


def test_a_pass_that_nobody_reads_on_is_ended_and_may_clean_up():
    ended = []

    def run(recorder: Recorder) -> Trace:
        try:
            return chain("abc")(recorder)
        finally:
            ended.append(True)

    before = threading.active_count()
    with Stream(run, ({"a"},)) as stream:
        stream.readers[0].left(("a", 0))
    assert ended == [True]
    assert threading.active_count() == before


def test_a_stream_feeds_another():
    def run(recorder: Recorder) -> Trace:
        for name in "abc":
            key = recorder.begin(name)
            found = returned(source.left(key))
            source.release(key)
            recorder.end(key, (), (found * 10,))
        return recorder.trace({})

    with Stream(chain("abc"), (set("abc"),)) as first:
        (source,) = first.readers
        with Stream(run, ({"c"},)) as second:
            assert returned(second.readers[0].left(("c", 0)))[0] == 30
            assert list(second.finish().calls) == [("a", 0), ("b", 0), ("c", 0)]
        assert first.held == 0

"""Traces: nested structures taken apart and put together again, calls counted and ordered."""

import collections
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity.trace import Call, Recorder, Trace, attempt, describe, flatten, replace


class Leaf:
    """Stands for a tensor."""


def is_leaf(value: Any) -> bool:
    return isinstance(value, Leaf)


Pair = collections.namedtuple("Pair", "first second")
STRUCTURES = st.recursive(
    st.builds(Leaf) | st.none() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(STRUCTURES)
def test_replacing_by_the_same_leaves_gives_the_same_structure(structure):
    leaves = flatten(structure, is_leaf)
    assert replace(structure, is_leaf, list(leaves)) == structure


@given(STRUCTURES)
def test_replacing_puts_every_substitute_where_its_leaf_was(structure):
    substitutes = [Leaf() for _ in flatten(structure, is_leaf)]
    replaced = replace(structure, is_leaf, list(substitutes))
    assert [id(leaf) for leaf in flatten(replaced, is_leaf)] == [id(leaf) for leaf in substitutes]
    assert type(replaced) is type(structure)


@given(STRUCTURES)
def test_replacing_uses_up_the_substitutes(structure):
    substitutes = [Leaf() for _ in flatten(structure, is_leaf)]
    replace(structure, is_leaf, substitutes)
    assert substitutes == []


def test_too_few_substitutes_are_an_error():
    with pytest.raises(IndexError):
        replace([Leaf(), Leaf()], is_leaf, [Leaf()])


def test_leaves_come_in_the_order_in_which_they_stand():
    a, b, c, d = (Leaf() for _ in range(4))
    assert flatten((a, {"z": b, "a": [c]}, None, "text", d), is_leaf) == [a, b, c, d]


def test_a_named_tuple_stays_one():
    a, b = Leaf(), Leaf()
    structure = {"out": Pair(Leaf(), [Leaf()])}
    replaced = replace(structure, is_leaf, [a, b])
    assert replaced == {"out": Pair(a, [b])}
    assert isinstance(replaced["out"], Pair)


def record(recorder: Recorder, path: str, *inside: str) -> None:
    key = recorder.begin(path)
    for name in inside:
        record(recorder, name)
    recorder.end(key, (np.ones(1),), (np.ones(1),))


def test_calls_are_counted_per_path_and_ordered_by_their_beginning():
    recorder = Recorder()
    record(recorder, "model", "a", "b", "a")
    trace = recorder.trace({})
    assert list(trace.calls) == [("model", 0), ("a", 0), ("b", 0), ("a", 1)]
    assert [call.order for call in trace.calls.values()] == [0, 1, 2, 3]
    assert [trace.count(path) for path in ("model", "a", "b", "c")] == [1, 2, 1, 0]


def test_a_call_that_began_and_never_ended_is_not_among_the_calls():
    recorder = Recorder()
    recorder.begin("model")
    record(recorder, "a")
    trace = recorder.trace({"a": {"mean": np.zeros(1)}}, "boom")
    assert list(trace.calls) == [("a", 0)]
    assert trace.error == "boom"
    assert list(trace.state) == ["a"]


def test_the_count_of_a_path_does_not_include_longer_paths():
    call = Call(path="a/b", index=0, order=0, inputs=None, outputs=())
    assert Trace(calls={("a/b", 0): call}).count("a") == 0


def test_an_exception_is_described_in_one_line():
    assert describe(ValueError("first\n   second")) == "ValueError: first second"


def test_what_a_call_raises_is_its_answer():
    assert attempt(lambda: 3) == (3, "")
    assert attempt(lambda: [][0]) == (None, "IndexError: list index out of range")

"""Faults as data: who must be named, and that what they patch is undone."""

import contextlib
import dataclasses
from typing import Any

import pytest

from parity.attack.fault import Fault, Kind, catalogue, injected

FAULT = Fault(
    name="some fault",
    source="trap 0",
    kind=Kind.MODEL,
    where="a.b",
    what="something else",
    rung="layers",
    named=("a.b", "c"),
    inject=lambda subject: subject.append("broken"),
)


@pytest.mark.parametrize(
    ("named", "culprits", "right"),
    [
        (("a", "b"), ("a", "b"), True),
        (("a", "b"), ("b", "a"), True),
        (("a", "b"), ("a",), False),
        (("a",), ("a", "b"), False),
        (("a",), (), False),
        (("*.norm",), ("x.norm", "y.norm"), True),
        (("*.norm",), ("x.norm", "y.conv"), False),
        (("*.norm",), (), False),
        (("*.norm", "a"), ("x.norm",), False),
        (("*",), ("anything",), True),
    ],
)
def test_exactly_those_who_are_to_blame_must_be_named(named, culprits, right):
    assert dataclasses.replace(FAULT, named=named).names(culprits) is right


def test_a_path_is_no_pattern_unless_it_says_so():
    assert not FAULT.blames("axb")
    assert FAULT.blames("a.b")
    assert dataclasses.replace(FAULT, named=("*.b",)).blames("x.b")


def test_no_fault_leaves_the_subject_alone():
    subject: list[str] = []
    with injected(None, subject) as sound:
        assert sound == []
    with injected(FAULT, subject) as broken:
        assert broken == ["broken"]


def test_what_was_patched_elsewhere_is_undone_even_if_the_judgement_fails():
    world = {"pi": 3.14}

    @contextlib.contextmanager
    def wrong(_: Any):
        world["pi"] = 3.0
        yield
        world["pi"] = 3.14

    @contextlib.contextmanager
    def patched(_: Any):
        try:
            world["pi"] = 3.0
            yield
        finally:
            world["pi"] = 3.14

    with injected(dataclasses.replace(FAULT, inject=wrong), None):
        assert world["pi"] == 3.0
    with pytest.raises(RuntimeError, match="judge"), injected(dataclasses.replace(FAULT, inject=patched), None):
        raise RuntimeError("the judge failed")
    assert world["pi"] == 3.14


def test_two_faults_of_one_name_are_an_error():
    assert list(catalogue([FAULT], [dataclasses.replace(FAULT, name="another")])) == ["some fault", "another"]
    with pytest.raises(ValueError, match="two faults have one name"):
        catalogue([FAULT], [FAULT])

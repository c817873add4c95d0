"""Every attack on the harness turns its own tests red, and the same tests are green without it."""

import re

import pytest

from tests.attacks.__main__ import short, told
from tests.attacks.attack import ROOT, Attack, AttackError, launch
from tests.attacks.catalogue import ATTACKS, OF_NUMBERS
from tests.attacks.run import Outcome, run_tests

BY_NAME = {attack.name: attack for attack in ATTACKS}
QUICK = ("nothing_asked_is_passed",)
"""Attacked in every run of the tests: one whose tests start at once."""


def test_the_catalogue_has_every_name_once_and_more_than_twenty_holes():
    assert len(BY_NAME) == len(ATTACKS) > 20
    assert len({attack.hole for attack in ATTACKS}) == len(ATTACKS)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_every_attack_fits_the_present_sources(attack):
    source = attack.path.read_text()
    attacked = attack.apply(source)
    assert attacked != source
    compile(attacked, attack.file, "exec")
    assert attack.tests
    assert all((ROOT / file).is_file() for file in attack.tests)


def test_an_attack_on_source_that_has_changed_is_an_error():
    gone = Attack(name="gone", hole="", file="conftest.py", edits=(("no such line", ""),), tests=())
    with pytest.raises(AttackError, match=r"gone: conftest\.py has .no such line. 0 times, expected once"):
        gone.apply("a line")
    with pytest.raises(AttackError, match="2 times"):
        gone.apply("no such line, no such line")


def test_a_module_that_was_imported_can_no_longer_be_attacked():
    import parity.compare

    assert parity.compare
    with pytest.raises(AttackError, match=re.escape("parity.compare was imported before")):
        launch(OF_NUMBERS[0])


def outcome(**changes: object) -> Outcome:
    values = {"status": 1, "red": ("a",), "errors": (), "passed": 3, "skips": 0, "seconds": 1.0, "output": ""}
    return Outcome(**values | changes)  # type: ignore[arg-type]


ATTACK = ATTACKS[0]
BY_SKIP = next(attack for attack in ATTACKS if attack.by_skip)


@pytest.mark.parametrize(
    "changes",
    [{"status": 0}, {"status": 2}, {"status": 3}, {"status": 4}, {"status": 5}, {"red": ()}, {"errors": ("a",)}],
    ids=str,
)
def test_only_tests_that_failed_by_themselves_notice_an_attack(changes):
    assert outcome().noticed(ATTACK)
    assert not outcome(**changes).noticed(ATTACK)
    assert told(outcome(**changes), ATTACK).startswith("NOT NOTICED")


def test_an_error_notices_an_attack_only_where_it_is_a_forbidden_skip():
    assert outcome(red=(), errors=("a", "b"), skips=2).noticed(BY_SKIP)
    for changes in ({"errors": ("a", "b"), "skips": 1}, {"errors": ()}, {"errors": ("a",), "skips": 1, "status": 2}):
        assert not outcome(red=(), **changes).noticed(BY_SKIP)


def test_tests_are_told_by_file_and_name():
    assert short("tests/unit/test_a.py::test_one[x]") == "a: test_one"
    many = outcome(red=tuple(f"tests/test_a.py::test_{number}" for number in range(9)))
    assert told(many, ATTACK).splitlines() == ["a: test_0", "a: test_1", "a: test_2", "and 6 more"]


def assert_noticed(attack: Attack) -> None:
    seen = run_tests(attack.tests, attack)
    assert seen.noticed(attack), f"nobody noticed {attack.name}: {attack.hole}\n{seen.output}"


@pytest.mark.parametrize("name", QUICK)
def test_an_attack_turns_tests_red_and_without_it_they_are_green(name):
    sound = run_tests(BY_NAME[name].tests)
    assert (sound.status, sound.red, sound.errors) == (0, (), ()), sound.output
    assert sound.passed > 0
    assert_noticed(BY_NAME[name])


def test_an_attack_that_does_not_exist_or_does_not_fit_is_no_red_test():
    unknown = Attack(name="unknown", hole="", file="conftest.py", edits=(), tests=("tests/unit/test_assertions.py",))
    seen = run_tests(unknown.tests, unknown)
    assert seen.status == pytest.ExitCode.USAGE_ERROR
    assert not seen.noticed(unknown)
    assert "no attack 'unknown'" in seen.output


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_every_attack_turns_tests_red(attack):
    assert_noticed(attack)


@pytest.mark.slow
def test_without_an_attack_the_same_tests_are_green():
    sound = run_tests(sorted({file for attack in ATTACKS for file in attack.tests}))
    assert (sound.status, sound.red, sound.errors) == (0, (), ()), sound.output

"""A target that needs no model: faults are found by their names. Imported by name in the processes of a campaign."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from parity.attack.fault import Fault, Kind
from parity.attack.records import CleanRun, Outcome, Sensitivity
from parity.attack.rules import Verdict

CALLS = "EPIBERT_TOY_CALLS"
"""Environment variable: a file to which every part that is done adds a line."""


def fault(name: str) -> Fault:
    return Fault(
        name=name,
        source="toy",
        kind=Kind.MODEL,
        where="a",
        what=name,
        rung="layers",
        named=("a",),
        inject=lambda subject: None,
    )


OUTCOME = Outcome(
    name="",
    kind="model",
    source="toy",
    where="a",
    what="",
    expected_rung="layers",
    expected=("a",),
    of_layers=True,
    rung="layers",
    stage="layers",
    named=("a",),
    effect=0.5,
    measured="output",
    comparisons=3,
    seconds=0.1,
    right=True,
    located=True,
)


class Toy:
    """Catches all but what is called missed; ``breaks`` is a fault of the program."""

    faults: Mapping[str, Fault] = {name: fault(name) for name in ("caught", "missed", "infinite", "breaks")}

    def attack(self, fault: Fault, *, rules: bool) -> Outcome:
        """By its name."""
        _note(fault.name)
        if fault.name == "breaks":
            raise RuntimeError("the target broke")
        outcome = dataclasses.replace(OUTCOME, name=fault.name, what=fault.what)
        if fault.name == "missed":
            outcome = dataclasses.replace(outcome, rung="", stage="", named=(), right=False, located=False)
        if fault.name == "infinite":
            outcome = dataclasses.replace(outcome, effect=float("inf"))
        verdicts = {"some rule": Verdict(found=True, named="a", compared=1)} if rules else {}
        return dataclasses.replace(outcome, verdicts=verdicts)

    def spare(self, seed: int, *, configuration: int, rules: bool) -> CleanRun:
        """The seed 1 raises an alarm, the seed 60 a fault of the program."""
        _note(f"seed {seed}")
        if seed == 60:
            raise RuntimeError("the target broke")
        alarms = ("layers: fail",) if seed == 1 else ()
        described = f"configuration {configuration}"
        return CleanRun(seed=seed, configuration=described, comparisons={"layers": 2}, alarms=alarms, seconds=0.1)

    def sensitivity(self) -> list[Sensitivity]:
        """One layer."""
        _note("sensitivity")
        return [Sensitivity(layer="a", perturbed="weights", precision="float64", exponent=40, monotone=True)]


def _note(what: str) -> None:
    if CALLS in os.environ:
        with Path(os.environ[CALLS]).open("a") as file:
            file.write(f"{what}\n")

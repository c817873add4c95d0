"""The frozen records of a campaign: what became of each fault and of each clean run."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from parity.attack.rules import Verdict
from parity.tolerances import TABLE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the ladder said of one fault.

    Attributes:
        name: Of the fault.
        kind: What it breaks.
        source: Where it comes from.
        where: What is broken.
        what: The mistake.
        expected_rung: The rung that must turn red first.
        expected: Who must be named.
        of_layers: Whether these are layers of the port, and no other parts, such as the loss or the optimizer.
        rung: The rung that turned red first; empty when none did.
        stage: The part of the ladder in which it did.
        named: Who was named, in model order.
        effect: Relative size of what the fault changes, measured between a sound port and the broken one without the
            reference; infinite where a shape changes or nothing comes out.
        measured: What that was measured on.
        comparisons: Number of arrays held against each other until the first red rung.
        seconds: Time of the judgement.
        right: Whether all of ``expected`` were named and nobody else.
        located: Whether who was named first is one of ``expected``.
        verdicts: What other rules say of the same run, by the rule's name; empty unless asked for.
        case: What was attacked, by name, for these rules.
        sound: What they say of it without a fault.
    """

    name: str
    kind: str
    source: str
    where: str
    what: str
    expected_rung: str
    expected: tuple[str, ...]
    of_layers: bool
    rung: str
    stage: str
    named: tuple[str, ...]
    effect: float
    measured: str
    comparisons: int
    seconds: float
    right: bool
    located: bool
    verdicts: Mapping[str, Verdict] = dataclasses.field(default_factory=dict)
    case: str = ""
    sound: Mapping[str, Verdict] = dataclasses.field(default_factory=dict)

    @property
    def caught(self) -> bool:
        """A rung turned red."""
        return bool(self.rung)

    @property
    def visible(self) -> bool:
        """The effect exceeds the rounding of float64, so the fault must be caught."""
        return not self.effect <= TABLE["fault_effect"].limit

    @property
    def reason(self) -> str:
        """Why a fault that was not caught was not; empty for one that was."""
        if self.caught:
            return ""
        if self.visible:
            return f"MISSED: it changes {self.measured} by {self.effect:.2g}"
        return f"it changes {self.measured} by {self.effect:.2g}, which is within the rounding of float64"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CleanRun:
    """What the ladder said of a port without a fault.

    Attributes:
        seed: From which configuration, weights and inputs were drawn.
        configuration: What was drawn, in short.
        comparisons: Arrays held against each other by what was compared: ``{"layers float64 evaluation": 80}``.
        alarms: Comparisons that did not pass, in words.
        second_looks: Ratios that exceeded their limit on the first input and were measured on others, in words.
        seconds: Time of the run.
        verdicts: As for ``Outcome``.
    """

    seed: int
    configuration: str
    comparisons: Mapping[str, int]
    alarms: tuple[str, ...]
    seconds: float
    second_looks: tuple[str, ...] = ()
    verdicts: Mapping[str, Verdict] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The smallest perturbation of one layer that its own check sees.

    Attributes:
        layer: Port layer.
        perturbed: ``weights`` or ``output``.
        precision: Precision of the reading.
        exponent: Smallest relative size is 2^-exponent; None when not even the largest is seen.
        monotone: Whether every larger one is seen as well.
    """

    layer: str
    perturbed: str
    precision: str
    exponent: int | None
    monotone: bool

    @property
    def size(self) -> float:
        """The smallest relative size that is seen; infinite when none is."""
        return math.inf if self.exponent is None else 2.0**-self.exponent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Campaign:
    """Everything that was found.

    Attributes:
        outcomes: One for each fault, in the order of the catalogue.
        clean: One for each clean run, by seed.
        sensitivity: One for each layer, in model order.
        environment: Versions, machine, hash of the content.
        seconds: Wall time of the campaign; of one that found everything in its folder, that of reading it.
        reused: How many parts were found there.
    """

    outcomes: tuple[Outcome, ...]
    clean: tuple[CleanRun, ...] = ()
    sensitivity: tuple[Sensitivity, ...] = ()
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    reused: int = 0

    @property
    def visible(self) -> tuple[Outcome, ...]:
        """Outcomes of the faults that must be caught."""
        return tuple(outcome for outcome in self.outcomes if outcome.visible)

    @property
    def caught(self) -> tuple[Outcome, ...]:
        """Outcomes of those that were, whatever their effect."""
        return tuple(outcome for outcome in self.outcomes if outcome.caught)

    @property
    def missed(self) -> tuple[Outcome, ...]:
        """Outcomes of the faults that must be caught and were not."""
        return tuple(outcome for outcome in self.visible if not outcome.caught)

    @property
    def survivors(self) -> tuple[Outcome, ...]:
        """Outcomes of all faults that were not caught."""
        return tuple(outcome for outcome in self.outcomes if not outcome.caught)

    @property
    def judged(self) -> tuple[Outcome, ...]:
        """Outcomes of the faults that must be caught, and of those that were without."""
        return tuple(outcome for outcome in self.outcomes if outcome.visible or outcome.caught)

    @property
    def right_rung(self) -> float:
        """Share of the faults that count whose rung was the one expected; NaN of none."""
        return _share([outcome.rung == outcome.expected_rung for outcome in self.judged])

    @property
    def located(self) -> float:
        """Share of the faults that count of which who was named first is to blame; NaN of none."""
        return _share([outcome.located for outcome in self.judged])

    @property
    def right(self) -> float:
        """Share of the faults that count of which all who are to blame were named, and nobody else."""
        return _share([outcome.right for outcome in self.judged])

    @property
    def alarms(self) -> tuple[CleanRun, ...]:
        """Clean runs in which something did not pass."""
        return tuple(run for run in self.clean if run.alarms)

    @property
    def passed(self) -> bool:
        """Something was judged; every visible fault was caught, nearly all where they should be; no false alarm.

        A clean run that compared nothing raises none, and says nothing.
        """
        least = TABLE["fault_location"].limit
        judged = bool(self.outcomes or self.clean)
        located = not self.outcomes or (bool(self.caught) and self.right_rung >= least and self.located >= least)
        compared = all(sum(run.comparisons.values()) > 0 for run in self.clean)
        return judged and located and compared and not self.missed and not self.alarms


def _share(found: list[bool]) -> float:
    return sum(found) / len(found) if found else math.nan

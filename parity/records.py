"""The frozen records that travel between the stages of the harness: comparisons, gates, results.

A comparison, a gate and a result have no truth value: ``if result:`` raises. Ask for ``status`` or ``passed``.
"""

import dataclasses
import enum
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

SCHEMA = 2
"""Version of the form that ``Result.to_dict`` has; ``parity/report/schema.json`` describes it."""


class Status(enum.StrEnum):
    """Outcome of one comparison. Everything but PASS keeps its gate from passing."""

    PASS = "pass"
    FAIL = "fail"
    MISSING = "missing"
    NON_FINITE = "non-finite"
    NOT_RUN = "not run"


class GateStatus(enum.StrEnum):
    """Outcome of one rung of the ladder.

    BLOCKED: measured or not, it proves nothing, because an earlier rung did not pass.
    """

    PASSED = "passed"
    FAILED = "failed"
    BLOCKED = "blocked"
    NOT_RUN = "not_run"


class Reading(enum.StrEnum):
    """What a comparison was fed with."""

    VALUE = "value"  # a weight or a constant: no computation
    ISOLATED = "isolated"  # the layer's own inputs and its children's outputs are the reference's
    BLOCK = "block"  # the block's own inputs are the reference's, its children are the port's
    ACCUMULATED = "accumulated"  # end to end from the model's inputs
    STATE = "state"  # what a training forward left behind in the buffers
    RUN = "run"  # whole training runs


class _NoTruthValue:
    def __bool__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} has no truth value; read its status")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """A ratio measured on one input.

    Attributes:
        error: Relative L2 distance of the port to the float64 reference.
        reference_error: The reference's own.
        peak: Largest absolute difference over the largest absolute value of the reference.
    """

    error: float
    reference_error: float
    peak: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison(_NoTruthValue):
    """One array of the port held against one of the reference.

    Attributes:
        gate: Rung that it belongs to.
        case: Which model, inputs and reference it comes from, such as ``P1 live``; one result may hold several.
        reading: What the layer was fed with.
        precision: ``float64``, ``float32``, ``bfloat16``, or ``exact`` for values that are copied, not computed.
        mode: ``evaluation`` or ``training``; empty for values.
        order: Position in the reference's order of execution.
        reference: Path on the reference's side.
        port: Path on the port's side.
        quantity: ``output``, ``input``, ``k_prime`` ...; several arrays may belong to one layer.
        layer: Port layer that answers for a failure (an input answers to the layer that computed it).
        shape: Shape of the reference's array, None when there is none.
        status: Outcome.
        error: Relative L2 distance to the float64 reference (``float64``: to the reference itself), None if not
            computable.
        peak: Largest absolute difference over the largest absolute value of the reference.
        reference_error: The reference's own distance to float64, for float32 and bfloat16.
        limit: Largest error that passes.
        peak_limit: Largest peak that passes.
        looks: Of a ratio that failed on its own input and was measured on others: each of these measurements, that on
            its own input first. The numbers above are then those of all inputs together. Empty where one decided.
        tolerance: Name of the row in the table of tolerances that gave the limit.
        detail: What happened, in words, where the numbers do not say it.
    """

    gate: str
    case: str = ""
    reading: Reading
    precision: str
    mode: str = ""
    order: int = 0
    reference: str
    port: str
    quantity: str = "output"
    layer: str
    shape: tuple[int, ...] | None = None
    status: Status
    error: float | None = None
    peak: float | None = None
    reference_error: float | None = None
    limit: float | None = None
    peak_limit: float | None = None
    looks: tuple[Look, ...] = ()
    tolerance: str = ""
    detail: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate(_NoTruthValue):
    """One rung of the ladder.

    Attributes:
        name: One of ``parity.ladder.GATES``.
        status: Outcome; passed only when there is at least one comparison and all of them pass.
        reason: Why it is blocked, failed or not run; empty when passed.
        comparisons: Everything that was compared, in the reference's order of execution.
    """

    name: str
    status: GateStatus
    reason: str = ""
    comparisons: tuple[Comparison, ...] = ()

    @property
    def failures(self) -> tuple[Comparison, ...]:
        """Every comparison that did not pass."""
        return tuple(row for row in self.comparisons if row.status is not Status.PASS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Culprit:
    """A layer whose own computation differs: it fails when fed with the reference's inputs.

    Attributes:
        port: Path in the port.
        reference: Path in the reference.
        gates: Rungs on which it fails.
        worst: Its comparison with the largest excess over the limit.
        certain: False when only end-to-end readings exist (recorded reference) and this is where they first diverge.
        script: Path, relative to the report, of a script that shows the difference alone (``parity.repro``).
        no_script: Why there is none, where scripts were asked for.
    """

    port: str
    reference: str
    gates: tuple[str, ...]
    worst: Comparison
    certain: bool = True
    script: str = ""
    no_script: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NotCompared:
    """Something deliberately left out of the comparison, by name and with its reason."""

    side: str
    name: str
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownDifference:
    """A difference from the reference that is understood and bounded.

    Attributes:
        name: What differs.
        reference: The reference's value or behaviour.
        port: The port's.
        bound: Largest relative effect that it may have.
        measured: Effect seen in this run; None when it was not measured.
        reason: Why it exists.
    """

    name: str
    reference: str
    port: str
    bound: float
    measured: float | None
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightRow:
    """One row of the weight map as it was carried out."""

    key: str
    name: str
    shape: tuple[int, ...]
    layout: str
    sha256: str
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result(_NoTruthValue):
    """Everything a verification found.

    Attributes:
        pair: Name of the pair of models.
        reference: What the reference was (live framework and version, or the recording).
        requested: Gates that were asked for.
        gates: All gates in ladder order, also those not run.
        culprits: Port names of the layers at fault, in model order.
        culprit_rows: The same with both names and the worst comparison.
        not_compared: What was left out, by name.
        known_differences: Understood differences with their bounds.
        weights: The weight map.
        tolerances: Rows of the tolerance table: {name: {"limit": ..., "reason": ...}}.
        runs: Whole training runs of both sides (``parity.convergence.Run``).
        equivalences: What the equivalence test made of them (``parity.convergence.Equivalence``).
        campaign: What a campaign of seeded faults found (``parity.report.campaign``); empty where none was given.
        configuration: Constructor arguments of the model.
        environment: Versions, machine, content hashes.
        seconds: Wall time of each stage.
    """

    pair: str
    reference: str
    requested: tuple[str, ...]
    gates: Mapping[str, Gate]
    culprit_rows: tuple[Culprit, ...] = ()
    not_compared: tuple[NotCompared, ...] = ()
    known_differences: tuple[KnownDifference, ...] = ()
    weights: tuple[WeightRow, ...] = ()
    tolerances: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    runs: tuple[Any, ...] = ()
    equivalences: tuple[Any, ...] = ()
    campaign: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    configuration: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """True when gates were requested and every one of them passed."""
        return bool(self.requested) and all(
            name in self.gates and self.gates[name].status is GateStatus.PASSED for name in self.requested
        )

    @property
    def culprits(self) -> tuple[str, ...]:
        """Port names of the layers at fault, in model order."""
        return tuple(row.port for row in self.culprit_rows)

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """All comparisons of all gates."""
        return tuple(row for gate in self.gates.values() for row in gate.comparisons)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; non-finite numbers as text, because JSON has none."""
        return {"schema": SCHEMA, "passed": self.passed, "culprits": list(self.culprits)} | plain(
            {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        )

    def to_json(self, path: str | Path | None = None) -> str:
        """The result as JSON text, also written to ``path`` when given."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def to_html(self, path: str | Path) -> None:
        """Writes the self-contained report. Needs the ``report`` extra."""
        from parity.report.page import write_html

        write_html(self, path)


def plain(value: Any) -> Any:
    """Records as plain data; non-finite numbers and paths as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Path):
        return str(value)
    return value

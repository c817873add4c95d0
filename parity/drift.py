"""Two results of the same ladder: what changed between them, and what may have changed it.

A result holds hashes of everything that it speaks about. So a number that moved can be traced to the port, the
reference, the weights, the recordings, the harness or the environment, or to nothing that is hashed. Limits only ever
become tighter, unless the table says in words why one grew.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from parity.environment import RECORDED_WITH
from parity.records import SCHEMA, GateStatus, Status
from parity.report.summary import printable

CAUSES = {
    "torch_impl": "the port",
    "tf_reference": "the reference",
    "weights": "the weights' map",
    "parity": "the harness",
}
"""What a package of sources is to a result."""

MOVED = 10.0
"""An error that grew or shrank by this factor is reported although it passes: a tenth of what a limit leaves."""

_LIMITS = ("limit", "peak", "floor", "peak_ratio", "largest_own", "spread")
_KEY = ("gate", "case", "reading", "precision", "mode", "reference", "port", "quantity")


class NotAResult(ValueError):
    """A file that is no result of this harness."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drift:
    """What lies between an earlier result and a later one.

    Attributes:
        causes: {what may be the reason: what of it changed}; empty if nothing that is hashed did.
        worse: Comparisons that passed earlier and do not now.
        better: Those that pass now and did not.
        moved: Comparisons whose error changed by a factor of ten.
        tighter: Limits that leave so much room that a tenth would do.
        gates: Gates that passed earlier and do not now.
        vanished: Comparisons and gates that are not there any more: these make the run fail.
        loosened: Limits that grew or became a factor while their reason stayed the same, rows that left the table, and
            comparisons that moved to a row that lets more pass: these make the run fail.
    """

    causes: Mapping[str, tuple[str, ...]]
    worse: tuple[str, ...] = ()
    better: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    tighter: tuple[str, ...] = ()
    loosened: tuple[str, ...] = ()
    gates: tuple[str, ...] = ()
    vanished: tuple[str, ...] = ()

    @property
    def explanation(self) -> str:
        """What the differences can be laid to, in one sentence."""
        if not (self.worse or self.better or self.moved):
            fewer = ", but this run does not compare all that the earlier one did" if self.vanished else ""
            return f"no number moved{fewer}" + (f"; changed: {', '.join(self.causes)}" if self.causes else "")
        if not self.causes:
            return "numbers moved although nothing that is hashed changed: the run is not deterministic"
        if len(self.causes) == 1:
            return f"the change comes from {next(iter(self.causes))}: nothing else changed"
        return f"changed at once, and not to be told apart by one run: {', '.join(self.causes)}"

    def __str__(self) -> str:
        lines = [self.explanation]
        for cause, parts in self.causes.items():
            lines += [f"  {cause}: {part}" for part in parts]
        for title, rows in (
            ("not compared any more", self.vanished),
            ("passed before", (*self.worse, *self.gates)),
            ("passes now", self.better),
            ("moved", self.moved),
            ("limit could be ten times tighter", self.tighter),
            ("limit grew without a new reason", self.loosened),
        ):
            lines += [f"  {title}: {row}" for row in rows]
        # Names come from the earlier file, which may hold anything.
        return "\n".join(map(printable, lines))


def read_result(path: str | Path) -> dict[str, Any]:
    """Reads a ``parity.json``.

    Raises:
        OSError: It cannot be read.
        NotAResult: It is no result, or one of another version of the schema.
    """
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise NotAResult(f"{path}: no JSON: {error}") from None
    if not isinstance(result, dict) or result.get("schema") != SCHEMA or "gates" not in result:
        raise NotAResult(f"{path}: no result of this harness with schema {SCHEMA}")
    broken = _broken(result)
    if broken:
        raise NotAResult(f"{path}: no result of this harness: {broken}")
    return result


def _broken(result: Mapping[str, Any]) -> str:
    """The first thing without which two results cannot be compared; empty when all is there."""
    for name, kind in {
        "gates": dict,
        "tolerances": dict,
        "environment": dict,
        "configuration": dict,
        "weights": list,
    }.items():
        if not isinstance(result.get(name), kind):
            return f"{name!r} is missing or of another type"
    if not result["gates"]:
        return "it has no gates"
    for name, gate in result["gates"].items():
        if not _has_texts(gate, "status") or not isinstance(gate.get("comparisons"), list):
            return f"the gate {name!r} has no status or no comparisons"
        for position, row in enumerate(gate["comparisons"]):
            if not _has_texts(row, *_KEY, "status", "detail", "tolerance") or not {"error", "limit"} <= set(row):
                return f"comparison {position} of the gate {name!r} is incomplete"
    for name, row in result["tolerances"].items():
        numbers = [row.get(field) for field in _LIMITS] if _has_texts(row, "reason") else []
        numbers = [number for number in numbers if number is not None]
        if not numbers or row.get("limit") is None or not all(map(_is_finite, numbers)):
            return f"the tolerance {name!r} has no reason or no usable numbers"
    if not all(_has_texts(row, "key", "name", "sha256") for row in result["weights"]):
        return "a row of the weights is incomplete"
    for name in ("sources", "versions", "content", RECORDED_WITH):
        if not isinstance(result["environment"].get(name, {}), dict):
            return f"{name!r} of the environment is of another type"
    return ""


def _has_texts(row: Any, *names: str) -> bool:
    return isinstance(row, dict) and all(isinstance(row.get(name), str) for name in names)


def _is_finite(number: Any) -> bool:
    return isinstance(number, float | int) and math.isfinite(number)


def compare_results(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> Drift:
    """What changed between two results, both as plain data (``Result.to_dict``)."""
    before, after = dict(_rows(earlier)), dict(_rows(later))
    worse, better, moved, gates, vanished = [], [], [], [], []
    compared = {row["gate"] for row in after.values()}
    for key, row in before.items():
        other = after.get(key)
        if other is None:
            if row["gate"] in compared:
                vanished.append(_place(row))
        elif row["status"] != other["status"]:
            change = f"{_place(row)}: {row['status']}, now {other['status']} {other['detail']}".rstrip()
            (worse if row["status"] == Status.PASS else better).append(change)
        elif _has_moved(row, other):
            moved.append(f"{_place(row)}: error {_number(row['error'])}, now {_number(other['error'])}")
    for name, gate in earlier["gates"].items():
        now = later["gates"].get(name, {}).get("status", "missing")
        if gate["comparisons"] and name not in compared:
            vanished.append(f"the gate {name}: {len(gate['comparisons'])} comparisons, {gate['status']}, now {now}")
        elif gate["status"] == GateStatus.PASSED and now != GateStatus.PASSED:
            gates.append(f"the gate {name}: passed, now {now}")
    return Drift(
        causes={cause: parts for cause, parts in _causes(earlier, later).items() if parts},
        worse=tuple(worse),
        better=tuple(better),
        moved=tuple(moved),
        tighter=tuple(_tighter(later)),
        loosened=(
            *_loosened(earlier["tolerances"], later["tolerances"]),
            *_moved_to_looser_rows(before, after, earlier["tolerances"], later["tolerances"]),
        ),
        gates=tuple(gates),
        vanished=tuple(vanished),
    )


def _rows(result: Mapping[str, Any]) -> Iterator[tuple[tuple[Any, ...], Mapping[str, Any]]]:
    """Comparisons by what they are of; the same twice is told apart by its number."""
    seen: dict[tuple[Any, ...], int] = {}
    for gate in result["gates"].values():
        for row in gate["comparisons"]:
            key = tuple(row[name] for name in _KEY)
            seen[key] = seen.get(key, 0) + 1
            yield (*key, seen[key]), row


def _place(row: Mapping[str, Any]) -> str:
    words = [row[name] for name in ("gate", "case", "precision", "mode", "reading")]
    return (
        f"{' '.join(word for word in words if word)} {row['port'] or row['reference'] or 'model'} [{row['quantity']}]"
    )


def _has_moved(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    errors = row["error"], other["error"]
    if not all(isinstance(error, float | int) for error in errors):
        return errors[0] != errors[1]
    small, large = sorted(errors)
    # Below a hundredth of its limit an error is the last digits of a sum.
    limit = other["limit"] if isinstance(other["limit"], float | int) else 0.0
    return large > MOVED * small and large > limit / 100


def _causes(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    before, after = earlier["environment"], later["environment"]
    causes: dict[str, list[str]] = {}
    for name in _changed(before.get("sources", {}), after.get("sources", {})):
        causes.setdefault(CAUSES.get(name, "the sources"), []).append(f"sources of {name}")
    causes["the recordings"] = _changed(before.get("content", {}), after.get("content", {}))
    rows = [{(row["key"], row["name"]): row["sha256"] for row in result["weights"]} for result in (earlier, later)]
    changed = _changed(*rows)
    if changed:
        causes["the weights"] = [f"{len(changed)} tensors, the first {changed[0][1] or changed[0][0]}"]
    for name in _changed(earlier["configuration"], later["configuration"]):
        causes.setdefault("the configuration", []).append(str(name))
    for name in _changed(before.get("versions", {}), after.get("versions", {})):
        causes.setdefault("the environment", []).append(
            f"{name} {before.get('versions', {}).get(name)}, now {after.get('versions', {}).get(name)}"
        )
    made = [environment.get(RECORDED_WITH) or {} for environment in (before, after)]
    causes["the reference's environment"] = [
        f"{name} {made[0].get(name)}, now {made[1].get(name)}" for name in _changed(*made)
    ]
    for name in _changed(before, after):
        if name not in ("sources", "versions", "content", RECORDED_WITH):
            causes.setdefault("the environment", []).append(f"{name}: {before.get(name)}, now {after.get(name)}")
    return {cause: tuple(parts) for cause, parts in causes.items()}


def _changed(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> list[Any]:
    return [name for name in dict.fromkeys((*before, *after)) if before.get(name) != after.get(name)]


def _tighter(result: Mapping[str, Any]) -> Iterator[str]:
    """Rows of the table whose every use leaves nine tenths of the limit unused."""
    used: dict[str, float] = {}
    for _, row in _rows(result):
        if isinstance(row["error"], float | int) and isinstance(row["limit"], float | int) and row["limit"] > 0:
            used[row["tolerance"]] = max(used.get(row["tolerance"], 0.0), row["error"] / row["limit"])
    for name, share in sorted(used.items()):
        if share * MOVED <= 1:
            yield f"{name}: at most {share:.1%} of its limit is used"


def _loosened(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> Iterator[str]:
    for name in earlier:
        if name not in later:
            yield f"{name}: no longer in the table; what did it judge, and what judges that now?"
            continue
        before, now = _limits(earlier[name]), _limits(later[name])
        grown = [f"{field} {before[field]:g}, now {now[field]:g}" for field in now if now[field] > before[field]]
        if _is_ratio(earlier[name]) != _is_ratio(later[name]):
            grown.append(f"ratio {_is_ratio(earlier[name])}, now {_is_ratio(later[name])}")
        if grown and later[name]["reason"] == earlier[name]["reason"]:
            yield f"{name}: {'; '.join(grown)}; write down why"


def _moved_to_looser_rows(
    before: Mapping[Any, Mapping[str, Any]],
    after: Mapping[Any, Mapping[str, Any]],
    earlier: Mapping[str, Any],
    later: Mapping[str, Any],
) -> Iterator[str]:
    """Comparisons that another row of the table judges now, one that lets more pass; one line for each two rows."""
    places: dict[tuple[str, str], list[str]] = {}
    for key, row in before.items():
        other = after.get(key)
        if other is None or row["tolerance"] == other["tolerance"]:
            continue
        old, new = earlier.get(row["tolerance"]), later.get(other["tolerance"])
        if old is not None and new is not None and _is_ratio(old) == _is_ratio(new):
            limits, others = _limits(old), _limits(new)
            looser = any(others[field] > limits[field] for field in others)
        else:
            # A factor and a distance are told apart by what they came to; where one is not known, by nothing.
            came_to = [found["limit"] for found in (row, other)]
            looser = not all(isinstance(limit, float | int) for limit in came_to) or came_to[1] > came_to[0]
        if looser:
            places.setdefault((row["tolerance"], other["tolerance"]), []).append(_place(row))
    for (old, new), rows in places.items():
        yield f"{len(rows)} comparisons judged by {old}, now by the looser {new}, the first {rows[0]}"


def _limits(row: Mapping[str, Any]) -> dict[str, float]:
    """Everything that lets more pass as it grows; a peak that is not given is the limit."""
    return {field: float(row["limit"] if row.get(field, 0.0) is None else row.get(field, 0.0)) for field in _LIMITS}


def _is_ratio(row: Mapping[str, Any]) -> bool:
    return bool(row.get("ratio", False))


def _number(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float | int) else str(value)

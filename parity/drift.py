"""Two results of the same ladder: what changed between them, and what may have changed it.

A result holds hashes of everything that it speaks about. So a number that moved can be traced to the port, the
reference, the weights, the recordings, the harness or the environment, or to nothing that is hashed. Limits only ever
become tighter, unless the table says in words why one grew.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from parity.records import SCHEMA, GateStatus, Status

CAUSES = {
    "torch_impl": "the port",
    "tf_reference": "the reference",
    "weights": "the weights' map",
    "parity": "the harness",
}
"""What a package of sources is to a result."""

MOVED = 10.0
"""An error that grew or shrank by this factor is reported although it passes: a tenth of what a limit leaves."""

_LIMITS = ("limit", "peak", "floor", "peak_ratio", "largest_own")
_KEY = ("gate", "case", "reading", "precision", "mode", "reference", "port", "quantity")


class NotAResult(ValueError):
    """A file that is no result of this harness."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drift:
    """What lies between an earlier result and a later one.

    Attributes:
        causes: {what may be the reason: what of it changed}; empty if nothing that is hashed did.
        worse: Comparisons and gates that passed earlier and do not now, or are not there any more.
        better: Those that pass now and did not.
        moved: Comparisons whose error changed by a factor of ten.
        tighter: Limits that leave so much room that a tenth would do.
        loosened: Limits that grew while their reason stayed the same: these make the run fail.
    """

    causes: Mapping[str, tuple[str, ...]]
    worse: tuple[str, ...] = ()
    better: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    tighter: tuple[str, ...] = ()
    loosened: tuple[str, ...] = ()

    @property
    def explanation(self) -> str:
        """What the differences can be laid to, in one sentence."""
        if not (self.worse or self.better or self.moved):
            return "no number moved" if not self.causes else f"no number moved; changed: {', '.join(self.causes)}"
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
            ("passed before", self.worse),
            ("passes now", self.better),
            ("moved", self.moved),
            ("limit could be ten times tighter", self.tighter),
            ("limit grew without a new reason", self.loosened),
        ):
            lines += [f"  {title}: {row}" for row in rows]
        return "\n".join(lines)


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
    return result


def compare_results(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> Drift:
    """What changed between two results, both as plain data (``Result.to_dict``)."""
    before, after = dict(_rows(earlier)), dict(_rows(later))
    worse, better, moved = [], [], []
    for key, row in before.items():
        other = after.get(key)
        if other is None:
            worse.append(f"{_place(row)}: no longer compared")
        elif row["status"] != other["status"]:
            change = f"{_place(row)}: {row['status']}, now {other['status']} {other['detail']}".rstrip()
            (worse if row["status"] == Status.PASS else better).append(change)
        elif _has_moved(row, other):
            moved.append(f"{_place(row)}: error {row['error']:.2g}, now {other['error']:.2g}")
    for name, gate in earlier["gates"].items():
        now = later["gates"].get(name, {}).get("status", "missing")
        if gate["status"] == GateStatus.PASSED and now != GateStatus.PASSED:
            worse.append(f"the gate {name}: passed, now {now}")
    return Drift(
        causes={cause: parts for cause, parts in _causes(earlier, later).items() if parts},
        worse=tuple(worse),
        better=tuple(better),
        moved=tuple(moved),
        tighter=tuple(_tighter(later)),
        loosened=tuple(_loosened(earlier["tolerances"], later["tolerances"])),
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
    for name in _changed(before, after):
        if name not in ("sources", "versions", "content"):
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
    for name in [name for name in later if name in earlier]:
        before, now = _limits(earlier[name]), _limits(later[name])
        grown = [f"{field} {before[field]:g}, now {now[field]:g}" for field in now if now[field] > before[field]]
        if grown and later[name]["reason"] == earlier[name]["reason"]:
            yield f"{name}: {'; '.join(grown)}; write down why"


def _limits(row: Mapping[str, Any]) -> dict[str, float]:
    """Everything that lets more pass as it grows; a peak that is not given is the limit."""
    return {field: float(row["limit"] if row[field] is None else row[field]) for field in _LIMITS}

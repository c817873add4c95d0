"""What the rungs' files have in common: picking comparisons, and insisting that there are some."""

from parity import Comparison, GateStatus, Reading, Result, Status

CASES = ("P1", "P2")
PRECISIONS = ("float64", "float32", "bfloat16")
MODES = ("evaluation", "training")


def assert_gate(result: Result, name: str) -> None:
    """The rung is proven."""
    gate = result.gates[name]
    assert gate.status is GateStatus.PASSED, f"{name}: {gate.status}: {gate.reason}\n{worst(gate.failures)}"


def pick(result: Result, gate: str, **wanted: object) -> list[Comparison]:
    """The comparisons of a rung that have these attributes; never none."""
    rows = [
        row
        for row in result.gates[gate].comparisons
        if all(getattr(row, key) == value for key, value in wanted.items())
    ]
    assert rows, f"nothing was compared on {gate} with {wanted}"
    return rows


def assert_all_pass(rows: list[Comparison]) -> None:
    """Every comparison passes."""
    failures = tuple(row for row in rows if row.status is not Status.PASS)
    assert not failures, worst(failures)


def worst(rows: tuple[Comparison, ...], count: int = 10) -> str:
    """The first failures, one a line: where, got, allowed."""
    lines = [
        f"{row.case} {row.mode} {row.precision} {row.reading} {row.port or '(model)'} <- {row.reference or '(model)'} "
        f"[{row.quantity}]: {row.status}, error {row.error}, limit {row.limit} {row.detail}"
        for row in rows[:count]
    ]
    return "\n".join([*lines, f"and {len(rows) - count} more"] if len(rows) > count else lines)


def layers_read(rows: list[Comparison], reading: Reading) -> set[str]:
    """Reference paths of which the output was read in this way, calls numbered as in recordings."""
    return {row.reference for row in rows if row.reading is reading and row.quantity == "output"}

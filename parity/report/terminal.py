"""Prints a result: ladder, culprits, first failures, known differences, what was not compared, verdict."""

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from parity.records import Comparison, GateStatus, Result, Status
from parity.report.summary import (
    Rung,
    aspect,
    by_reason,
    decision,
    excess,
    expected,
    failures,
    got,
    ladder,
    layer,
    number,
    ordered_precisions,
    place,
    plural,
    printable,
    rules,
    setting,
    subject,
    verdict,
)

SHOWN_FAILURES = 8
SHOWN_CULPRITS = 12
_STYLE = {
    GateStatus.PASSED: "green",
    GateStatus.FAILED: "bold red",
    GateStatus.BLOCKED: "yellow",
    GateStatus.NOT_RUN: "dim",
}


def print_result(result: Result, console: Console | None = None) -> None:
    """Prints the result, the verdict last, where a terminal leaves the eye.

    Args:
        result: What a verification found.
        console: Where to print; standard output by default.
    """
    console = console or Console()
    console.print(Text.assemble((printable(result.pair), "bold"), f" against {printable(result.reference)}"))
    console.print()
    _ladder(result, console)
    _rules(result, console)
    _equivalences(result, console)
    _culprits(result, console)
    _failures(result, console)
    _known_differences(result, console)
    _not_compared(result, console)
    answer = verdict(result)
    style = "bold green" if answer.proven else "bold red"
    console.print(Text.assemble(("Next: ", "bold"), printable(answer.next_step)))
    console.print(Text.assemble((f"{answer.headline}.", style), f" {printable(answer.sentence)}"))


def _heading(console: Console, text: str) -> None:
    console.print(Text(text, style="bold"))


def _table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(Text(printable(column)), justify="right" if column in right else "left", overflow="fold")
    return table


def _worst(row: Comparison | None, slash: str = " / ") -> Text:
    if row is None:
        return Text("")
    if row.status in (Status.PASS, Status.FAIL) and row.error is not None:
        text = f"{number(row.error)}{slash}{number(row.limit)}"
    else:
        text = row.status.value
    return Text(text, style="" if row.status is Status.PASS else "red", no_wrap=True)


def _ladder(result: Result, console: Console) -> None:
    rungs = ladder(result)
    precisions = ordered_precisions({name for rung in rungs for name in rung.worst} - {"exact"})
    head = "Gate", "Status", "Compared", "Failed"
    table = _table(*head, *precisions, right=head[2:])
    slash = " / " if console.width >= 100 else "\n/ "
    for rung in rungs:
        cells = {name: _worst(rung.worst.get(name), slash) for name in precisions}
        if "exact" in rung.worst and precisions:
            # Copied values have one reading only, so they share the first column instead of widening the table.
            cells[precisions[0]] = _exact(rung, cells[precisions[0]])
        table.add_row(
            Text(printable(rung.name), style="" if rung.requested else "dim"),
            Text(rung.label, style=_STYLE[rung.status]),
            f"{rung.compared:,}",
            Text(f"{rung.failed:,}", style="red" if rung.failed else ""),
            *cells.values(),
        )
    console.print(table)
    if precisions:
        note = "Under each precision: error / limit of the comparison that used most of its limit."
        console.print(Text(note, style="dim"))
    for rung in rungs:
        if rung.requested and rung.status is not GateStatus.PASSED:
            console.print(Text.assemble((printable(rung.name), _STYLE[rung.status]), f": {printable(rung.reason)}"))
    console.print()


def _exact(rung: Rung, computed: Text) -> Text:
    row = rung.worst["exact"]
    if row.status is Status.PASS and computed.plain:
        return computed
    if row.status is Status.PASS:
        return Text("bit for bit" if row.limit == 0 else _worst(row).plain)
    return Text(f"values: {row.status.value}", style="red")


def _rules(result: Result, console: Console) -> None:
    found = rules(result)
    if not found:
        return
    _heading(console, "Largest error by rule")
    table = _table("Rule", "Compared", "Largest", "Allowed", "Where", right=("Compared", "Largest", "Allowed"))
    for rule in found:
        row = rule.worst
        if row.status not in (Status.PASS, Status.FAIL) or row.error is None:
            largest = row.status.value
        else:
            largest = number(row.error) if rule.ratio is None else f"{rule.ratio:.2f} x"
        where = ", ".join(printable(part) for part in (row.case, row.mode) if part)
        what = "" if row.quantity == "output" else aspect(row)
        table.add_row(
            Text(printable(rule.name), no_wrap=True),
            f"{rule.compared:,}",
            Text(largest, style="" if row.status is Status.PASS else "red", no_wrap=True),
            Text(rule.allowed, no_wrap=True),
            Text("" if row.error == 0 else f"{subject(row)}{what} ({where})"),
        )
    console.print(table)
    ratios = [rule for rule in found if rule.ratio is not None]
    if ratios:
        note = f"x: times the reference's own error; {plural(sum(rule.by_floor for rule in ratios), 'comparison')} "
        console.print(Text(note + "farther off, but below the floor of the rule.", style="dim"))
    console.print()


def _equivalences(result: Result, console: Console) -> None:
    if not result.equivalences:
        return
    _heading(console, "Convergence")
    for found in result.equivalences:
        name = Text(f"final {printable(found.quantity)}  ", style="" if found.passed else "red")
        console.print(Text.assemble(name, decision(found)))
    console.print()


def _culprits(result: Result, console: Console) -> None:
    if not result.culprit_rows:
        return
    _heading(console, f"Culprits ({len(result.culprit_rows)}, in model order)")
    for culprit in result.culprit_rows[:SHOWN_CULPRITS]:
        row = culprit.worst
        title = Text.assemble((layer(culprit.port), "bold red"), ("  reference ", "dim"), layer(culprit.reference))
        note = "" if culprit.certain else "; end-to-end readings only, so it may be the step before"
        gates = ", ".join(map(printable, culprit.gates))
        body = f"{setting(row)}: {got(row)}, expected {expected(row)}; gates {gates}{note}"
        console.print(title)
        console.print(Padding(Text(body), (0, 0, 0, 2)))
        if culprit.script or culprit.no_script:
            script = culprit.script or f"no script: {culprit.no_script}"
            console.print(Padding(Text(printable(script), style="dim"), (0, 0, 0, 2)))
    _more(console, len(result.culprit_rows) - SHOWN_CULPRITS, "culprit")
    console.print()


def _more(console: Console, count: int, noun: str) -> None:
    if count > 0:
        console.print(Text(f"... and {plural(count, f'more {noun}')}", style="dim"))


def _failures(result: Result, console: Console) -> None:
    rows = failures(result)
    if not rows:
        return
    _heading(console, f"First failures (of {len(rows):,})")
    for row in rows[:SHOWN_FAILURES]:
        console.print(
            Text.assemble(
                (printable(row.gate), "dim"),
                "  ",
                (subject(row), "bold"),
                aspect(row),
                ("  reference ", "dim"),
                place(row, "reference"),
            )
        )
        times = f" ({excess(row):.2g} times the limit)" if 1 < excess(row) < float("inf") else ""
        detail = f"; {printable(row.detail)}" if row.detail else ""
        body = f"{setting(row)}: {got(row)}, expected {expected(row)}{times}{detail}"
        console.print(Padding(Text(body), (0, 0, 0, 2)))
    _more(console, len(rows) - SHOWN_FAILURES, "failure")
    console.print()


def _known_differences(result: Result, console: Console) -> None:
    if not result.known_differences:
        return
    _heading(console, "Known differences")
    table = _table("What", "Bound", "Measured", "Reason", right=("Bound", "Measured"))
    for row in result.known_differences:
        over = row.measured is not None and not row.measured <= row.bound
        measured = Text("not measured" if row.measured is None else number(row.measured), style="red" if over else "")
        table.add_row(Text(printable(row.name)), number(row.bound), measured, Text(printable(row.reason)))
    console.print(table)
    console.print()


def _not_compared(result: Result, console: Console) -> None:
    _heading(console, f"Not compared: {len(result.not_compared):,}")
    for reason, rows in by_reason(result.not_compared).items():
        names = ", ".join(layer(row.name) for row in rows[:3]) + (", ..." if len(rows) > 3 else "")
        line = Text.assemble(f"{len(rows):,}  {printable(reason)} ", (f"({names})", "dim"))
        console.print(Padding(line, (0, 0, 0, 2)))
    console.print()

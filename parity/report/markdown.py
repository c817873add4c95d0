"""A result as a few lines of Markdown, such as a CI server shows beside a run."""

import re
from pathlib import Path

from parity.records import GateStatus, Result
from parity.report.summary import expected, got, ladder, layer, plural, printable, setting, verdict

SHOWN_CULPRITS = 12
_MARKS = {GateStatus.PASSED: "✓", GateStatus.FAILED: "✗", GateStatus.BLOCKED: "⊘", GateStatus.NOT_RUN: "–"}


def write_markdown(result: Result, path: str | Path) -> None:
    """Writes verdict, ladder and culprits.

    Args:
        result: What a verification found.
        path: File to write.
    """
    Path(path).write_text(render(result), encoding="utf-8")


def render(result: Result) -> str:
    """The same as text. Every name is escaped, so that none is read as Markdown or HTML."""
    answer = verdict(result)
    lines = [
        f"## {'✓' if answer.proven else '✗'} {answer.headline}: {_text(result.pair)}",
        "",
        _text(answer.sentence),
        "",
        f"**Next:** {_text(answer.next_step)}",
        "",
        "| rung | | comparisons | failed |",
        "|---|---|---:|---:|",
    ]
    for rung in ladder(result):
        asked = "" if rung.requested else ", not asked for"
        lines.append(
            f"| {_text(rung.name)} | {_MARKS[rung.status]} {rung.label}{asked} | {rung.compared:,} | {rung.failed:,} |"
        )
    if result.culprit_rows:
        lines += ["", "| at fault | reference | worst reading | found | expected |", "|---|---|---|---|---|"]
        for culprit in result.culprit_rows[:SHOWN_CULPRITS]:
            worst = culprit.worst
            cells = (
                layer(culprit.port),
                layer(culprit.reference),
                f"{worst.quantity}, {setting(worst)}",
                got(worst),
                expected(worst),
            )
            lines.append(f"| {' | '.join(map(_text, cells))} |")
        rest = len(result.culprit_rows) - SHOWN_CULPRITS
        if rest > 0:
            lines += ["", f"And {plural(rest, 'other')}."]
    for line in result.campaign.get("summary", ()):
        lines += ["", _text(line)]
    return "\n".join(lines) + "\n"


def _text(value: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>()#|&~!])", r"\\\1", printable(value))

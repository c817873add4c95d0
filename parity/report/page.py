"""The report as one HTML file that needs nothing but a browser: no server, no network, no other file."""

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from parity.ladder import CONVERGENCE, TRAINING_GATES
from parity.records import Comparison, Result, Status
from parity.report.campaign import SURVIVED, kill_matrix
from parity.report.figures import absent, by_case, figures
from parity.report.summary import (
    PARTS,
    beginning,
    by_reason,
    excess,
    expected,
    got,
    ladder,
    layer,
    number,
    plural,
    printable,
    rule_text,
    setting,
    share,
    subject,
    verdict,
)

_HERE = Path(__file__).parent
_INSTALL = "python -m pip install 'epibert-parity[report]'"


def write_html(result: Result, path: str | Path) -> None:
    """Writes the page.

    Args:
        result: What a verification found.
        path: File to write.

    Raises:
        ImportError: jinja2 or plotly is not installed; the message names the extra.
    """
    Path(path).write_text(render(result), encoding="utf-8")


def render(result: Result) -> str:
    """The page as text.

    Args:
        result: What a verification found.

    Returns:
        A whole HTML document, about 5 MB, nearly all of it plotly.js.

    Raises:
        ImportError: jinja2 or plotly is not installed; the message names the extra.
    """
    check_installed()
    import jinja2
    import markupsafe
    from plotly.offline import get_plotlyjs

    plotly = get_plotlyjs().replace("\r\n", "\n")
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        # Every text that reaches the page goes through here, then through autoescape; Markup is our own.
        finalize=lambda value: printable(value, multiline=True) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "layer": layer,
        "setting": setting,
        "got": got,
        "expected": expected,
        "plural": plural,
        "beginning": beginning,
        "subject": subject,
        "used": lambda row: share(excess(row)),
    }
    drawn = figures(result)
    return environment.get_template("page.html.jinja").render(
        result=result,
        verdict=verdict(result),
        ladder=ladder(result),
        parts=PARTS,
        survived=SURVIVED,
        figures=drawn,
        absent=absent(result, drawn),
        by_case=by_case(result),
        kills=kill_matrix(result.campaign) if result.campaign else None,
        not_compared=by_reason(result.not_compared),
        tolerances=list(_tolerances(result)),
        configuration=list(_flat(result.configuration)),
        environment=list(_flat(result.environment)),
        seconds=list(_seconds(result.seconds)),
        total_seconds=_duration(sum(result.seconds.values())),
        data=markupsafe.Markup(embedded(result, drawn)),
        style=markupsafe.Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        plotly=markupsafe.Markup(plotly),
        script=markupsafe.Markup(script),
        # Should an escape ever be forgotten: the browser runs these two scripts and no other.
        hashes=markupsafe.Markup(" ".join(map(_content_hash, (plotly, script)))),
    )


def check_installed() -> None:
    """Finds out before minutes of work whether their result can be written.

    Raises:
        ImportError: jinja2 or plotly is not installed; the message names the extra.
    """
    try:
        import jinja2  # noqa: F401
        import markupsafe  # noqa: F401
        import plotly.offline  # noqa: F401
    except ImportError as error:
        raise ImportError(f"report.html needs the extra `report` ({error}): {_INSTALL}") from error


def embedded(result: Result, drawn: Mapping[str, Any] | None = None) -> str:
    """``result.to_dict()`` as JSON that can stand inside a script element: ASCII, without ``<``, ``>`` and ``&``.

    Args:
        result: What a verification found.
        drawn: What its figures are drawn from, ``parity.report.figures.figures(result)`` when None.

    Returns:
        JSON text. The comparisons of a gate stand column by column, see ``_columns``, because 16,000 of them would take
        10 MB otherwise; ``figures`` and the names of ``training`` are added.
    """
    plain = result.to_dict()
    for gate in plain["gates"].values():
        gate["comparisons"] = _columns(gate["comparisons"])
    plain["figures"] = figures(result) if drawn is None else drawn
    plain["training"] = {"gates": [*TRAINING_GATES, CONVERGENCE], "parts": PARTS}
    text = json.dumps(plain, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows of the same fields as columns.

    Returns:
        ``count``, and for each field its values: ``{"list": [...]}``, or ``{"table": [...], "at": [...]}`` with
        positions in a table where values repeat, or ``{"all": value}``.
    """
    columns: dict[str, dict[str, Any]] = {}
    for field in rows[0] if rows else ():
        values = [row[field] for row in rows]
        table = {repr(value): value for value in values}
        if len(table) == 1:
            columns[field] = {"all": values[0]}
        elif len(table) > len(rows) / 2:
            columns[field] = {"list": values}
        else:
            position = {text: index for index, text in enumerate(table)}
            columns[field] = {"table": list(table.values()), "at": [position[repr(value)] for value in values]}
    return {"count": len(rows), "columns": columns}


def _content_hash(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _tolerances(result: Result) -> Iterator[dict[str, Any]]:
    """Each row of the table, with how much of it this run used; names that are used and not in the table as well."""
    used: dict[str, list[Comparison]] = {}
    for row in result.comparisons:
        used.setdefault(row.tolerance, []).append(row)
    for name in [*result.tolerances, *(name for name in used if name and name not in result.tolerances)]:
        rule = result.tolerances.get(name, {})
        rows = used.get(name, [])
        worst = max(rows, key=excess, default=None)
        yield {
            "name": name,
            "limit": rule_text(rule),
            "count": len(rows),
            "failed": sum(row.status is not Status.PASS for row in rows),
            "share": "" if worst is None else share(excess(worst)),
            "reason": rule.get("reason", "not in the table of tolerances"),
        }


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        elif isinstance(value, list | tuple):
            yield name, ", ".join(map(str, value))
        else:
            yield name, str(value)


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return str(seconds)
    minutes, rest = divmod(seconds, 60)
    return f"{minutes:.0f} min {rest:.0f} s" if minutes else f"{rest:.2g} s" if rest < 1 else f"{rest:.1f} s"


def _seconds(seconds: Mapping[str, float]) -> Iterator[tuple[str, str, float]]:
    """(stage, duration, part of the longest in percent)."""
    longest = max(seconds.values(), default=0.0)
    for stage, value in seconds.items():
        yield stage, _duration(value), round(100 * value / longest, 1) if longest > 0 else 0.0

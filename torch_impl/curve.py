"""The curves of a training run as a picture: from the CSV file of Lightning's logger to SVG, which any browser shows.

python -m torch_impl.curve out/train/planted/version_0/metrics.csv curve.svg
"""

import csv
import math
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

Curve = Sequence[tuple[float, float]]
"""Points (step, value) in the order of the steps."""

WIDTH, HEIGHT, MARGIN, GAP = 640, 240, 48, 40
COLOURS = ("#0b6e99", "#c0504d", "#5b8c3a", "#8064a2")
PANELS = (("loss", ("train_loss", "val_loss")), ("Pearson correlation", ("val_pearson",)))


class CurveError(ValueError):
    """A file of which no picture can be made."""


def read_curves(path: str | Path) -> dict[str, Curve]:
    """Every column that has numbers, by name; a row holds what was logged at one step.

    Raises:
        CurveError: The file cannot be read or is none of Lightning's CSV logger.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise CurveError(f"cannot read {path}: {error}") from None
    if not rows or "step" not in rows[0]:
        raise CurveError(f"{path} is no metrics.csv: it has no rows with a step")
    found: dict[str, list[tuple[float, float]]] = {}
    for number, row in enumerate(rows, start=2):
        for name, text in row.items():
            if name not in (None, "step", "epoch") and text:
                try:
                    found.setdefault(name, []).append((float(row["step"]), float(text)))
                except ValueError:
                    raise CurveError(f"{path}: line {number}: {name} is {text!r}") from None
    return dict(found)


def draw(
    curves: Mapping[str, Curve], panels: Sequence[tuple[str, Sequence[str]]] = PANELS, *, across: str = "step {:.0f}"
) -> str:
    """A picture with one panel above the other.

    Args:
        curves: Points by name. A value that is not finite interrupts its curve.
        panels: Title, and names of the curves, of each.
        across: Label of the first step, in which it takes the place of the braces.

    Raises:
        CurveError: A curve is missing, or has no finite value.
    """
    total = MARGIN + len(panels) * (HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {total}" width="{WIDTH}" height="{total}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{total}" fill="white"/>',
    ]
    for number, (title, names) in enumerate(panels):
        parts += _panel(curves, title, names, MARGIN // 2 + number * (HEIGHT + GAP), across)
    return "\n".join((*parts, "</svg>")) + "\n"


def _panel(curves: Mapping[str, Curve], title: str, names: Sequence[str], top: float, label: str) -> list[str]:
    for name in names:
        if not any(math.isfinite(value) for _, value in curves.get(name, ())):
            raise CurveError(f"there is no {name} to draw")
    points = [point for name in names for point in curves[name] if math.isfinite(point[1])]
    left, right, bottom = MARGIN, WIDTH - MARGIN / 2, top + HEIGHT - MARGIN / 2
    (first, last), (low, high) = ((min(axis), max(axis)) for axis in zip(*points, strict=True))

    def place(step: float, value: float) -> str:
        across = (step - first) / ((last - first) or 1)
        up = (value - low) / ((high - low) or 1)
        return f"{left + across * (right - left):.1f},{bottom - up * (bottom - top - 16):.1f}"

    parts = [
        f'<text x="{left}" y="{top + 4:.0f}" font-weight="bold">{escape(title)}</text>',
        f'<path d="M{left},{top + 12:.0f}V{bottom}H{right}" fill="none" stroke="#888"/>',
        f'<text x="{left - 4}" y="{bottom}" text-anchor="end">{low:.3g}</text>',
        f'<text x="{left - 4}" y="{top + 20:.0f}" text-anchor="end">{high:.3g}</text>',
        f'<text x="{left}" y="{bottom + 16}">{label.format(first)}</text>',
        f'<text x="{right}" y="{bottom + 16}" text-anchor="end">{last:.0f}</text>',
    ]
    for index, name in enumerate(names):
        colour = COLOURS[index % len(COLOURS)]
        for run in _finite_runs(curves[name]):
            line = " ".join(place(*point) for point in run)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(
            f'<text x="{right}" y="{top + 4 + 14 * index:.0f}" text-anchor="end" fill="{colour}">{escape(name)} '
            f"{curves[name][-1][1]:.3f}</text>"
        )
    return parts


def _finite_runs(curve: Curve) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for step, value in curve:
        if math.isfinite(value):
            runs[-1].append((step, value))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def main(metrics: str, out: str) -> int:
    """Draw loss and correlation of a training run.

    Args:
        metrics: metrics.csv of Lightning's CSV logger.
        out: SVG file to write.
    """
    try:
        Path(out).write_text(draw(read_curves(metrics)), encoding="utf-8")
    except CurveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {out} cannot be written: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    from jsonargparse import auto_cli

    sys.exit(auto_cli(main))

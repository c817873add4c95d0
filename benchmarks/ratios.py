"""What a run of the benchmark is held against: ratios of reference and port, never seconds or bytes of a machine."""

import json
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

COMMITTED = Path(__file__).with_name("ratios.json")
"""Ratios of reference and port by name of the measurement; written by hand from a run of ``epibert bench``."""
SLACK = {"seconds": 0.15, "peak_bytes": 0.05}
"""Share of a committed ratio by which a run may fall short of it: times scatter by a tenth (the reference's own forward
pass between 13.4 and 15.4 s), memory by what the allocator leaves between blocks, 2 %."""


def name_of(settings: Mapping[str, Any], precision: str) -> str:
    """The name of a measurement: what decides a ratio, and nothing of the machine but its threads."""
    parts = (settings[part] for part in ("kind", "model", "config"))
    return f"{' '.join(parts)} {precision}, batch {settings['batch']}, {settings['threads']} threads"


def ratios(results: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Ratios of time and peak memory, reference over port, of results of ``forward_benchmark``, by name."""
    return {
        name_of(result["settings"], precision): {quantity: summary["ratio"][quantity] for quantity in SLACK}
        for result in results
        for precision, summary in result["precisions"].items()
    }


def data_ratios(result: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The same of a result of ``data_benchmark``.

    tf.data over the port's loader; TensorFlow's reading and parsing over the conversion, whose memory is not compared.
    """
    size, conversion = result["settings"]["config"], result["conversion"]["ratio"]
    return {
        f"loading {size}, {workers} workers": {
            "seconds": result["loading"][side]["speed_ratio"],
            "peak_bytes": 1 / result["loading"][side]["memory_ratio"],
        }
        for side, workers in result["settings"]["workers"].items()
    } | {f"conversion {size}, one process": {"seconds": 1 / conversion}}


def read_committed(path: Path = COMMITTED) -> dict[str, dict[str, float]]:
    """The committed ratios."""
    return json.loads(path.read_text(encoding="utf-8"))


def regressions(
    measured: Mapping[str, Mapping[str, float]], committed: Mapping[str, Mapping[str, float]]
) -> tuple[list[str], list[str]]:
    """Measurements that fall short of the committed ratios, and those that have none, a line each.

    Args:
        measured: What ``ratios`` and ``data_ratios`` found.
        committed: What it is held against; measurements that were not made are not looked at.
    """
    worse, unknown = [], []
    for name, found in measured.items():
        if name not in committed:
            unknown.append(f"{name}: no committed ratio")
            continue
        if set(found) != set(committed[name]):
            worse.append(f"{name}: measured {', '.join(found)}, committed {', '.join(committed[name])}")
            continue
        for quantity, ratio in found.items():
            limit = committed[name][quantity] * (1 - SLACK[quantity])
            if not ratio >= limit:
                worse.append(f"{name}: {quantity} {ratio:.2f}, committed {committed[name][quantity]:.2f}")
    return worse, unknown


def picture(measured: Mapping[str, Mapping[str, float]]) -> str:
    """SVG with a bar for each ratio; the line is 1, where reference and port are equal."""
    bars = [(f"{name}: {quantity}", value) for name, found in measured.items() for quantity, value in found.items()]
    width, row, left = 900, 22, 420
    scale = (width - left - 60) / max(1.0, *(value for _, value in bars))
    height = row * len(bars) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="16" font-weight="bold">reference / port</text>',
    ]
    for index, (name, value) in enumerate(bars):
        top = 24 + row * index
        colour = "#0b6e99" if value >= 1 else "#c0504d"
        parts += [
            f'<text x="{left - 8}" y="{top + 14}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{left}" y="{top + 3}" width="{value * scale:.1f}" height="{row - 6}" fill="{colour}"/>',
            f'<text x="{left + value * scale + 4:.1f}" y="{top + 14}">{value:.2f}</text>',
        ]
    parts.append(f'<path d="M{left + scale:.1f},24V{height - 4}" stroke="black" stroke-dasharray="3 3"/>')
    return "\n".join((*parts, "</svg>")) + "\n"

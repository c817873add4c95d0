"""A campaign for people: tables on the terminal, JSON, and a picture of what is caught where."""

import collections
import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from rich.console import Console
from rich.markup import escape as literal
from rich.table import Table

from parity.attack import head_to_head
from parity.attack.head_to_head import Trial
from parity.attack.records import Campaign, Outcome
from parity.records import plain

LONGEST = 60
"""Characters of a list of names on the terminal; the file holds all."""


def print_campaign(campaign: Campaign, console: Console) -> None:
    """What was found, the failures in full."""
    if campaign.outcomes:
        console.print(_rungs(campaign.outcomes))
        for outcome in campaign.outcomes:
            if outcome.caught and not (outcome.rung == outcome.expected_rung and outcome.right):
                console.print(
                    f"[yellow]elsewhere[/] {literal(outcome.name)}: {outcome.rung} for {outcome.expected_rung}, "
                    f"{literal(_short(outcome.named))} for {literal(_short(outcome.expected))}"
                )
        for outcome in campaign.survivors:
            style = "bold red" if outcome.visible else "yellow"
            console.print(f"[{style}]survived[/] {literal(outcome.name)}: {literal(outcome.reason)}")
    if campaign.sensitivity:
        console.print(_sensitivity(campaign))
    for run in campaign.alarms:
        console.print(f"[bold red]false alarm[/] seed {run.seed} ({literal(run.configuration)})")
        for alarm in run.alarms[:3]:
            console.print(f"  {literal(alarm)}")
    for run in campaign.clean:
        for text in run.second_looks[:1]:
            more = f" and {len(run.second_looks) - 1} more" if len(run.second_looks) > 1 else ""
            console.print(f"[dim]measured again[/] seed {run.seed}: {literal(text)}{more}")
    for line in summary(campaign):
        console.print(line, highlight=False, soft_wrap=True)
    verdict = "[bold green]PROVEN[/]" if campaign.passed else "[bold red]NOT PROVEN[/]"
    console.print(f"{verdict} in {campaign.seconds:.0f} s, {campaign.reused} parts from an earlier run")


def summary(campaign: Campaign) -> list[str]:
    """The figures, one a line."""
    lines = []
    if campaign.outcomes:
        visible, without = campaign.visible, [o for o in campaign.caught if not o.visible]
        groups = [[o for o in campaign.judged if o.of_layers is wanted] for wanted in (True, False)]
        layers, others = (f"{sum(o.located for o in group)} of {len(group)}" for group in groups)
        lines.append(
            f"faults: {len(campaign.outcomes)}, caught {len(campaign.caught)}; of {len(visible)} whose effect exceeds "
            f"the rounding of float64, {len(visible) - len(campaign.missed)}"
        )
        lines.append(
            f"of these and {len(without)} others that were caught: right rung {_percent(campaign.right_rung)}, right "
            f"name first {_percent(campaign.located)} (where it is a layer's {layers}, where it is another part's "
            f"{others}), exactly the right names {_percent(campaign.right)}"
        )
    if campaign.clean:
        kinds = collections.Counter()
        for run in campaign.clean:
            kinds.update(run.comparisons)
        # Not every run judges everything: no false alarm says only as much as the runs of a kind.
        runs = collections.Counter(name for run in campaign.clean for name, count in run.comparisons.items() if count)
        counted = ", ".join(f"{name}: {n:,} in {runs[name]} runs" for name, n in sorted(kinds.items()))
        lines.append(
            f"clean runs: {len(campaign.clean)}, {_seeds(campaign)}, false alarms {len(campaign.alarms)} in "
            f"{sum(kinds.values()):,} comparisons ({counted})"
        )
        again = sum(len(run.second_looks) for run in campaign.clean)
        lines.append(
            f"ratios of clean runs that exceeded their limit on one input and were measured on others: {again}"
        )
    return lines


def _seeds(campaign: Campaign) -> str:
    seeds = [run.seed for run in campaign.clean]
    return f"seeds {min(seeds)} to {max(seeds)}"


def _percent(share: float) -> str:
    return "of none" if math.isnan(share) else f"{100 * share:.1f} %"


def _short(names: Iterable[str]) -> str:
    text = ", ".join(names) or "nobody"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _rungs(outcomes: Sequence[Outcome]) -> Table:
    """How many faults each rung was to catch, and did."""
    drawn = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for index, column in enumerate(("rung", "faults", "caught", "there", "right layer first", "smallest effect", "")):
        drawn.add_column(column, justify="left" if index in (0, 6) else "right")
    for rung in dict.fromkeys(outcome.expected_rung for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.expected_rung == rung]
        caught = [outcome for outcome in mine if outcome.caught]
        smallest = min((o for o in caught if o.visible), key=lambda o: o.effect, default=None)
        drawn.add_row(
            rung,
            str(len(mine)),
            str(len(caught)),
            str(sum(outcome.rung == rung for outcome in caught)),
            str(sum(outcome.located for outcome in caught)),
            "" if smallest is None else f"{smallest.effect:.1e}",
            "" if smallest is None else smallest.name,
        )
    return drawn


def _sensitivity(campaign: Campaign) -> Table:
    """The smallest visible perturbation, layers of one exponent on one line."""
    drawn = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for column in ("smallest perturbation seen", "of", "layers", ""):
        drawn.add_column(column)
    rows = sorted(campaign.sensitivity, key=lambda row: (row.size, row.perturbed))
    groups: dict[tuple[int | None, str], list[str]] = {}
    for row in rows:
        groups.setdefault((row.exponent, row.perturbed), []).append(row.layer or "(model)")
    for (exponent, perturbed), layers in groups.items():
        size = "none" if exponent is None else f"2^-{exponent} = {2.0**-exponent:.1e}"
        drawn.add_row(size, perturbed, str(len(layers)), _short(layers))
    return drawn


def list_faults(faults: Iterable[object], console: Console) -> None:
    """The catalogue."""
    drawn = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for column in ("name", "source", "kind", "where", "rung", "what"):
        drawn.add_column(column, overflow="fold")
    for fault in faults:
        drawn.add_row(
            *(literal(str(getattr(fault, name))) for name in ("name", "source", "kind", "where", "rung", "what"))
        )
    console.print(drawn)


# --- files -----------------------------------------------------------------------------------------------------------


def write(campaign: Campaign, folder: Path) -> list[str]:
    """Writes ``attack.json`` and ``attack.svg``, and the head to head if other rules have judged.

    Returns:
        Names of the files.
    """
    record = {"passed": campaign.passed, "summary": summary(campaign), "missed": [o.name for o in campaign.missed]}
    record |= {"survivors": {o.name: o.reason for o in campaign.survivors}} | plain(campaign)
    (folder / "attack.json").write_text(json.dumps(record, indent=1, allow_nan=False), encoding="utf-8")
    (folder / "attack.svg").write_text(draw(campaign), encoding="utf-8")
    names = ["attack.json", "attack.svg"]
    trials = judged_by_others(campaign)
    if any(trial.fault for trial in trials) and not all(trial.fault for trial in trials):
        head_to_head.write(trials, folder)
        names += [f"head_to_head.{suffix}" for suffix in ("json", "md", "svg")]
    return names


def judged_by_others(campaign: Campaign) -> list[Trial]:
    """The faults that must be caught, and what has no fault, as other rules have judged them.

    The latter are the clean runs, and the sound ports that the faults were injected into.
    """
    judged = [outcome for outcome in campaign.visible if outcome.verdicts]
    trials = [
        Trial(name=o.name, fault=True, expected=o.expected, verdicts=o.verdicts, sound=o.sound) for o in judged
    ]  # fmt: skip
    sound = {outcome.case: outcome.sound for outcome in judged}
    trials += [Trial(name=f"{case} without a fault", fault=False, verdicts=found) for case, found in sound.items()]
    return trials + [
        Trial(name=f"seed {run.seed}", fault=False, verdicts=run.verdicts) for run in campaign.clean if run.verdicts
    ]


WIDTH, ROW, LEFT, TOP = 720, 22, 120, 60
SMALLEST, LARGEST = -16, 1
COLOURS = {"caught where expected": "#0b6e99", "caught elsewhere": "#e0a030", "not caught": "#c0504d"}


def draw(campaign: Campaign) -> str:
    """Every fault as a dot at the size of its effect, on the rung that is to catch it."""
    rungs = list(dict.fromkeys(outcome.expected_rung for outcome in campaign.outcomes))
    height = TOP + ROW * max(len(rungs), 1) + 46
    scale = (WIDTH - LEFT - 30) / (LARGEST - SMALLEST)

    def across(exponent: float) -> float:
        return LEFT + scale * (min(max(exponent, SMALLEST), LARGEST) - SMALLEST)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="8" y="18" font-weight="bold">{len(campaign.outcomes)} seeded faults by the size of their effect'
        "</text>",
    ]
    for index, (name, colour) in enumerate(COLOURS.items()):
        parts.append(f'<circle cx="{14 + 180 * index}" cy="36" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{24 + 180 * index}" y="40">{name}</text>')
    bottom = TOP + ROW * len(rungs)
    for exponent in range(SMALLEST, LARGEST + 1, 2):
        x = across(exponent)
        parts.append(f'<path d="M{x:.1f},{TOP - 6}V{bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" font-size="10">1e{exponent}</text>')
    for number, rung in enumerate(rungs):
        middle = TOP + ROW * number + ROW / 2
        parts.append(f'<text x="{LEFT - 10}" y="{middle + 4}" text-anchor="end">{escape(rung)}</text>')
        for outcome in campaign.outcomes:
            if outcome.expected_rung == rung:
                parts.append(_dot(outcome, across(_exponent(outcome.effect)), middle))
    label = "relative change of output, gradient, step or example, in float64"
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{bottom + 34}" text-anchor="middle">{label}</text>')
    return "\n".join((*parts, "</svg>")) + "\n"


def _exponent(effect: float) -> float:
    return SMALLEST if effect == 0.0 else LARGEST if math.isinf(effect) else math.log10(effect)


def _dot(outcome: Outcome, x: float, y: float) -> str:
    where = "caught elsewhere" if outcome.rung != outcome.expected_rung else "caught where expected"
    colour = COLOURS["not caught" if not outcome.caught else where]
    title = escape(f"{outcome.name}: {outcome.effect:.2g}, {outcome.rung or 'not caught'}")
    return f'<circle cx="{x:.1f}" cy="{y}" r="4.5" fill="{colour}" fill-opacity="0.55"><title>{title}</title></circle>'

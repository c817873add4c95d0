"""Whose rule finds what: verdicts on the same faults and the same clean runs, counted, as a table and as a picture.

A rule that says the same of the port without the fault has not found the fault: it accuses that port anyway.
"""

import dataclasses
import fnmatch
import json
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from rich.table import Table

from parity.attack.rules import RULES, Verdict

OURS = "ladder"
"""Name of our own rule among the verdicts: proven is what passes every rung."""

SAYS = {rule.name: (rule.project, rule.says) for rule in RULES} | {
    OURS: ("this repository", "every rung of the ladder, float64 first, each layer on the reference's inputs")
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One run, judged by every rule.

    Attributes:
        name: Of the fault, or of the clean run.
        fault: Whether there is something to find.
        expected: Who must be named, as patterns of ``fnmatch``; empty for a clean run.
        verdicts: By the rule's name.
        sound: The verdicts on the same without the fault; empty for a clean run.
    """

    name: str
    fault: bool
    expected: tuple[str, ...] = ()
    verdicts: Mapping[str, Verdict]
    sound: Mapping[str, Verdict] = dataclasses.field(default_factory=dict)

    def accuses_anyway(self, rule: str) -> bool:
        """Whether a rule finds a difference, and says the very same of the port without the fault."""
        found, sound = self.verdicts[rule], self.sound[rule]
        return found.found and sound.found and (found.named, found.detail) == (sound.named, sound.detail)

    def blames(self, named: str) -> bool:
        """Whether a name is one of those that are right; no name is none of them."""
        return bool(named) and any(fnmatch.fnmatchcase(named, right) for right in self.expected)

    def is_near(self, named: str) -> bool:
        """Whether a name is right, contains what is right, or is a part of it."""
        around = any(f"{right}.".startswith(f"{named}.") or named.startswith(f"{right}.") for right in self.expected)
        return self.blames(named) or around


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """What one rule achieved.

    Attributes:
        rule: Its name.
        faults: Number of faults.
        seen: Of these, how many change something that the rule looks at at all.
        found: Faults found: something was said that is not said of the same port without the fault.
        anyway: Faults of which it says what it says of the port without them.
        located: Faults for which the right layer was named first.
        near: Faults for which that layer, one around it or one inside it was named first.
        clean: Number of clean runs.
        alarms: Clean runs in which it saw a difference.
        seconds: Median time of a judgement with the passes that it needs.
        missed: Faults that it did not find, by name.
    """

    rule: str
    faults: int
    seen: int
    found: int
    anyway: int
    located: int
    near: int
    clean: int
    alarms: int
    seconds: float
    missed: tuple[str, ...]


def scores(trials: Sequence[Trial]) -> tuple[Score, ...]:
    """The score of every rule, in the order of the rules with ours last.

    Raises:
        ValueError: A trial lacks the verdict of a rule, or there is nothing to find, or no clean run: a rule that
            always cries finds everything.
    """
    faults = [trial for trial in trials if trial.fault]
    clean = [trial for trial in trials if not trial.fault]
    if not faults or not clean:
        raise ValueError(f"{len(faults)} faults and {len(clean)} clean runs decide nothing")
    for trial in trials:
        for verdicts in (trial.verdicts, trial.sound) if trial.fault else (trial.verdicts,):
            if set(verdicts) != set(SAYS):
                raise ValueError(f"{trial.name}: not every rule has judged it: {sorted(set(SAYS) ^ set(verdicts))}")
    return tuple(_score(rule, faults, clean) for rule in SAYS)


def _score(rule: str, faults: Sequence[Trial], clean: Sequence[Trial]) -> Score:
    verdicts = [(trial, trial.verdicts[rule]) for trial in faults]
    found = [(trial, verdict) for trial, verdict in verdicts if verdict.found and not trial.accuses_anyway(rule)]
    names = {trial.name for trial, _ in found}
    return Score(
        rule=rule,
        faults=len(faults),
        seen=sum(verdict.compared > 0 or verdict.found for _, verdict in verdicts),
        found=len(found),
        anyway=sum(trial.accuses_anyway(rule) for trial, _ in verdicts),
        located=sum(trial.blames(verdict.named) for trial, verdict in found),
        near=sum(trial.is_near(verdict.named) for trial, verdict in found),
        clean=len(clean),
        alarms=sum(trial.verdicts[rule].found for trial in clean),
        seconds=statistics.median(trial.verdicts[rule].seconds for trial in (*faults, *clean)),
        missed=tuple(trial.name for trial, _ in verdicts if trial.name not in names),
    )


# --- table -----------------------------------------------------------------------------------------------------------

COLUMNS = (
    "rule",
    "passes when",
    "found",
    "accused anyway",
    "right layer first",
    "layer or its block",
    "false alarms",
    "seconds",
)


def cells(score: Score) -> tuple[str, ...]:
    """A score as text, in the order of the columns."""
    project, says = SAYS[score.rule]
    return (
        f"{score.rule} ({project})",
        says,
        f"{score.found} of {score.faults}",
        str(score.anyway),
        str(score.located),
        str(score.near),
        f"{score.alarms} of {score.clean}",
        f"{score.seconds:.2g}",
    )


def markdown(found: Sequence[Score]) -> str:
    """The table of a README."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *map(cells, found)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def table(found: Sequence[Score]) -> Table:
    """The table of a terminal."""
    drawn = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for index, column in enumerate(COLUMNS):
        drawn.add_column(column, justify="left" if index < 2 else "right")
    for score in found:
        drawn.add_row(*cells(score), style="bold" if score.rule == OURS else "")
    return drawn


# --- picture ---------------------------------------------------------------------------------------------------------

WIDTH, LEFT, ROW, TOP = 640, 100, 46, 56
COLOURS = {"faults found": "#0b6e99", "right layer named first": "#5b8c3a", "false alarms": "#c0504d"}


def draw(found: Sequence[Score]) -> str:
    """Three bars for each rule: shares of the faults that it found and located, and of the clean runs it accused."""
    height, room = TOP + len(found) * ROW + 24, WIDTH - LEFT - 70
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="8" y="18" font-weight="bold">{found[0].faults} faults and {found[0].clean} clean runs, judged by '
        "each rule</text>",
    ]
    for index, (name, colour) in enumerate(COLOURS.items()):
        across = 8 + 170 * index
        parts.append(f'<rect x="{across}" y="28" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{across + 14}" y="37">{name}</text>')
    for number, score in enumerate(found):
        top = TOP + number * ROW
        weight = ' font-weight="bold"' if score.rule == OURS else ""
        parts.append(f'<text x="{LEFT - 8}" y="{top + 22}" text-anchor="end"{weight}>{escape(score.rule)}</text>')
        counts = ((score.found, score.faults), (score.located, score.faults), (score.alarms, score.clean))
        for bar, ((count, whole), colour) in enumerate(zip(counts, COLOURS.values(), strict=True)):
            long, down = room * count / whole, top + 12 * bar
            parts.append(f'<rect x="{LEFT}" y="{down}" width="{long:.1f}" height="10" fill="{colour}"/>')
            text = f'<text x="{LEFT + long + 4:.1f}" y="{down + 9}" font-size="10">{count} of {whole}</text>'
            parts.append(text)
    parts.append(f'<path d="M{LEFT},{TOP - 4}V{height - 20}" fill="none" stroke="#888"/>')
    return "\n".join((*parts, "</svg>")) + "\n"


# --- files -----------------------------------------------------------------------------------------------------------


def write(trials: Sequence[Trial], folder: Path) -> tuple[Score, ...]:
    """Writes ``head_to_head.json`` (every verdict and score), ``.md`` and ``.svg``.

    Returns:
        The scores.
    """
    found = scores(trials)
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "scores": [dataclasses.asdict(score) for score in found],
        "trials": [dataclasses.asdict(trial) for trial in trials],
    }
    (folder / "head_to_head.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    (folder / "head_to_head.md").write_text(markdown(found), encoding="utf-8")
    (folder / "head_to_head.svg").write_text(draw(found), encoding="utf-8")
    return found

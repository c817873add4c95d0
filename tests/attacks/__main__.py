"""Attacks the harness: every hole is cut into it, and its own tests must turn red: ``python -m tests.attacks``.

Exit status 0: every attack was noticed. 1: one was not, or the tests are red without any.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.table import Table

from tests.attacks.attack import Attack
from tests.attacks.catalogue import ATTACKS
from tests.attacks.run import Outcome, run_tests


def short(test: str) -> str:
    """Name of a test without its folder and parameters."""
    file, _, name = test.partition("::")
    return f"{file.rpartition('/')[2].removeprefix('test_').removesuffix('.py')}: {name.partition('[')[0]}"


def main(attacks: str = "", workers: int = 2) -> int:
    """Attack the harness.

    Args:
        attacks: Names, separated by commas; all when none is given.
        workers: Processes at a time.
    """
    names = [name for name in attacks.split(",") if name]
    chosen = [attack for attack in ATTACKS if not names or attack.name in names]
    unknown = sorted(set(names) - {attack.name for attack in chosen})
    if unknown:
        print(f"error: no attack {', '.join(unknown)}", file=sys.stderr)
        return 2
    files = sorted({file for attack in chosen for file in attack.tests})
    with ThreadPoolExecutor(workers) as pool:
        sound = pool.submit(run_tests, files)
        outcomes = list(pool.map(lambda attack: run_tests(attack.tests, attack), chosen))
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("Attack", "Hole", "Seconds", "Tests that turned red"):
        table.add_column(column, overflow="fold", no_wrap=column == "Attack")
    for attack, outcome in zip(chosen, outcomes, strict=True):
        table.add_row(attack.name, attack.hole, f"{outcome.seconds:.1f}", told(outcome, attack))
    console = Console()
    console.print(table)
    without, noticed = sound.result(), sum(o.noticed(attack) for attack, o in zip(chosen, outcomes, strict=True))
    console.print(f"without an attack: {'green' if without.status == 0 else without.output}, {without.passed} tests")
    console.print(f"attacks noticed: {noticed} of {len(chosen)}")
    return 0 if noticed == len(chosen) and without.status == 0 else 1


def told(outcome: Outcome, attack: Attack) -> str:
    """What the tests said, in a cell."""
    if not outcome.noticed(attack):
        return f"NOT NOTICED: exit status {outcome.status}, errors {outcome.errors}"
    names = list(dict.fromkeys(map(short, (*outcome.red, *outcome.errors))))
    return "\n".join([*names[:3], f"and {len(names) - 3} more"] if len(names) > 4 else names)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    sys.exit(auto_cli(main))

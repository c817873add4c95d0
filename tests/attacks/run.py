"""Runs pytest under an attack in a process of its own, and says which tests turned red."""

import dataclasses
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence

from tests.attacks.attack import ROOT, Attack

TESTS_FAILED = 1
"""pytest's exit status when tests ran and some failed; an error of pytest itself, of usage or of import has others."""

ENOUGH = 5
"""Red tests after which a run ends."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run of tests said.

    Attributes:
        status: pytest's exit status.
        red: Tests that failed.
        errors: Tests that could not be run, and files that could not be imported.
        passed: Number of tests that passed.
        skips: Number of tests that failed because they were skipped.
        seconds: Wall time.
        output: What pytest printed.
    """

    status: int
    red: tuple[str, ...]
    errors: tuple[str, ...]
    passed: int
    skips: int
    seconds: float
    output: str

    def noticed(self, attack: Attack) -> bool:
        """Tests failed, by themselves and not because something could not be imported or set up."""
        if attack.by_skip:
            return self.status == TESTS_FAILED and 0 < len(self.errors) == self.skips
        return self.status == TESTS_FAILED and bool(self.red) and not self.errors


def run_tests(files: Sequence[str], attack: Attack | None = None) -> Outcome:
    """The same command with and without an attack.

    Args:
        files: Test files.
        attack: None for the sound harness.
    """
    command = [sys.executable, "-m", "pytest", "-p", "tests.attacks.plugin", "-p", "no:cacheprovider"]
    command += ["-p", "no:xdist", "-q", "--tb=short", "-rfE", "--color=no", f"--maxfail={ENOUGH}", *files]
    if attack is not None:
        command += ["--attack", attack.name]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV_"))}
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )  # fmt: skip
    passed = re.search(r"(\d+) passed", done.stdout)
    return Outcome(
        status=done.returncode,
        red=tuple(re.findall(r"^FAILED (\S+)", done.stdout, re.MULTILINE)),
        errors=tuple(re.findall(r"^ERROR (\S+)", done.stdout, re.MULTILINE)),
        passed=int(passed[1]) if passed else 0,
        skips=len(re.findall(r"^A skipped test proves nothing", done.stdout, re.MULTILINE)),
        seconds=time.perf_counter() - started,
        output=done.stdout + done.stderr,
    )

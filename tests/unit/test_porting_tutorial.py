"""The tutorial is executed: its files are written, its commands run, and what it prints is what they print."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.unit.sources import ROOT

TEXT = (ROOT / "docs" / "porting.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
INSTALL = "python -m pip install"


def test_every_block_is_a_file_or_a_command():
    assert {language for language, _ in BLOCKS} == {"python", "console"}
    assert all(re.match(r"# \w+\.py\n", block) for language, block in BLOCKS if language == "python")
    assert all(block.startswith("$ python ") for language, block in BLOCKS if language == "console")
    assert next(block for language, block in BLOCKS if language == "console").startswith(f"$ {INSTALL}")


@pytest.mark.slow
def test_the_tutorial_does_what_it_says(tmp_path):
    executed = 0
    for language, block in BLOCKS:
        if language == "python":
            name = block.partition("\n")[0].removeprefix("# ")
            (tmp_path / name).write_text(block, encoding="utf-8")
            continue
        command, *expected = block.splitlines()
        if command.startswith(f"$ {INSTALL}"):
            continue  # what these tests run in was installed so
        program, *arguments = shlex.split(command.removeprefix("$ "))
        assert program == "python"
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
            capture_output=True,
            text=True,
            check=False,
        )
        printed = [line.rstrip() for line in done.stdout.splitlines()]
        assert expected, command
        for line in expected:
            # Dots stand for what is left out.
            pattern = ".*".join(re.escape(part) for part in line.split("..."))
            assert any(re.fullmatch(pattern, other) for other in printed), f"{line}\n---\n{done.stdout}{done.stderr}"
        executed += 1
    assert executed == 3

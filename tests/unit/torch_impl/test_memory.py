"""What a process frees is used again where the C library can be told so, and no setting is refused in silence."""

import os
import subprocess
import sys

from tests.unit.sources import ROOT
from torch_impl import memory

SCRIPT = """
import resource, sys
import torch
from torch_impl.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
faults = []
# The first blocks leave crumbs between them, of which the C library collects a few of each size.
for _ in range(60):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 21)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(faults[-10:]))
"""


def test_pages_are_touched_for_the_first_time_only_once():
    faults = {}
    for way in ("plain", "kept"):
        command = [sys.executable, "-c", SCRIPT, way]
        # Above this the C library learns by itself to keep blocks that came and went, up to 32 MB each.
        settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
        done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=True)
        faults[way] = int(done.stdout)
    # Ten times 8 MB in pages of 4 kB.
    assert faults["plain"] > 20_000
    assert faults["kept"] < 1000


def test_other_systems_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.keep_freed_memory.__wrapped__() is False


def test_a_c_library_without_the_setting_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    assert memory.keep_freed_memory.__wrapped__() is False

"""An attack on the harness: a hole of somebody else's harness, cut into a file of ours as it is read.

No file is edited: a finder in front of Python's own hands out the changed source of the one module, and ``Path`` reads
the changed text, so that a test which reads sources instead of importing them meets the same hole.
"""

import dataclasses
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CONFTEST = "conftest"
"""pytest imports it before any plugin may do something. Its own tests read it, and run sessions with what they read."""


class AttackError(Exception):
    """An attack that does not fit the present sources."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attack:
    """One hole.

    Attributes:
        name: Short and unique.
        hole: What goes unseen with it, and in whose harness it was found.
        file: The file that it is cut into, relative to the repository.
        edits: Pieces of the source and what stands in their place; each occurs exactly once.
        more: Text appended to the file.
        tests: Test files that must turn red.
        by_skip: What turns them red is that nothing may be skipped, which pytest reports as an error of set-up.
    """

    name: str
    hole: str
    file: str
    edits: tuple[tuple[str, str], ...]
    more: str = ""
    tests: tuple[str, ...]
    by_skip: bool = False

    @property
    def path(self) -> Path:
        """The file."""
        return ROOT / self.file

    @property
    def module(self) -> str:
        """Dotted name of the file."""
        return self.file.removesuffix(".py").replace("/", ".")

    def apply(self, source: str) -> str:
        """The source with the hole in it.

        Raises:
            AttackError: A piece does not occur exactly once: the source has changed, and nothing would be attacked.
        """
        for old, new in self.edits:
            if source.count(old) != 1:
                raise AttackError(f"{self.name}: {self.file} has {old!r} {source.count(old)} times, expected once")
            source = source.replace(old, new)
        return source + self.more


class _Loader(importlib.machinery.SourceFileLoader):
    """Reads one module's source with the hole in it; no byte code is read or written."""

    def __init__(self, attack: Attack, fullname: str) -> None:
        super().__init__(fullname, str(attack.path))
        self.attack = attack

    def get_data(self, path: str) -> bytes:
        data = super().get_data(path)
        return self.attack.apply(data.decode()).encode() if Path(path) == self.attack.path else data

    def path_stats(self, path: Any) -> Any:
        raise OSError(f"{path} is under attack: byte code of it would be of another source")


class _Finder(MetaPathFinder):
    def __init__(self, attack: Attack) -> None:
        self.attack = attack
        self.found = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.attack.module:
            return None
        self.found = True
        loader = _Loader(self.attack, fullname)
        return importlib.util.spec_from_file_location(fullname, self.attack.path, loader=loader)


def launch(attack: Attack) -> None:
    """Cuts the hole for the rest of this process.

    Raises:
        AttackError: The module has been imported already, or the source has changed.
    """
    if attack.module != CONFTEST and attack.module in sys.modules:
        raise AttackError(f"{attack.module} was imported before it could be attacked")
    attack.apply(attack.path.read_text())
    if attack.module != CONFTEST:
        sys.meta_path.insert(0, _Finder(attack))
    plain = Path.read_text

    def read_text(self: Path, *arguments: Any, **options: Any) -> str:
        text = plain(self, *arguments, **options)
        return attack.apply(text) if self.resolve() == attack.path else text

    Path.read_text = read_text

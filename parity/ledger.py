"""What has been proven, and for which content: the gate between the rungs and a claim of convergence.

A run of the ladder leaves one entry here, under a fingerprint of everything that the result speaks about: the sources
of all packages, the recorded numbers, the versions of what computes, and the machine. Change any of it and the entry is
no longer found, so nothing is proven. There is no skipping: whoever asks for a proof that is not there gets an error
that names the command which makes it.

An entry carries a seal over its own text. It tells an edited or truncated entry from a written one; it does not keep
out somebody who forges the seal as well.
"""

import fcntl
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from parity.environment import DISTRIBUTIONS, PACKAGES, ROOT, hash_file, hash_sources, processor, version
from parity.records import GateStatus, Result

SCHEMA = 1
FOLDER_VARIABLE = "EPIBERT_LEDGER"
COMMAND = "epibert parity"


class NotProven(Exception):
    """A rung is asked to stand on others that are not proven for the present content."""


def content(goldens: Path = ROOT / "goldens") -> dict[str, Any]:
    """Everything that a proof depends on."""
    files = sorted(path for path in goldens.rglob("*") if path.is_file())
    return {
        "schema": SCHEMA,
        "sources": {name: hash_sources(ROOT / name) for name in PACKAGES},
        "goldens": {path.relative_to(goldens).as_posix(): hash_file(path) for path in files},
        "versions": {name: version(name) for name in DISTRIBUTIONS},
        "python": platform.python_version(),
        "machine": [platform.machine(), processor()],
    }


def fingerprint(described: dict[str, Any]) -> str:
    """One hash of a description by ``content``."""
    return hashlib.sha256(_canonical(described).encode()).hexdigest()


class Ledger:
    """The entries of a folder.

    Args:
        folder: Where they lie; the one that the environment variable ``EPIBERT_LEDGER`` names, or ``out/ledger``.
        goldens: Recorded numbers that the proofs are about.
        subject: Which of the recorded cases were climbed, as ``--config`` names them; empty for the default. What is
            proven of one subject is proven of no other.
    """

    def __init__(self, folder: Path | None = None, goldens: Path = ROOT / "goldens", *, subject: str = "") -> None:
        self.folder = folder or Path(os.environ.get(FOLDER_VARIABLE) or ROOT / "out" / "ledger")
        self.goldens = goldens
        self.subject = subject
        self.content = self._content()
        self.fingerprint = fingerprint(self.content)

    def about(self, subject: str) -> "Ledger":
        """The ledger of another subject in the same folder."""
        return self if subject == self.subject else Ledger(self.folder, self.goldens, subject=subject)

    @property
    def command(self) -> str:
        """What proves the subject."""
        return f"{COMMAND} --config {self.subject}" if self.subject else COMMAND

    def _content(self) -> dict[str, Any]:
        present = content(self.goldens)
        return {**present, "subject": self.subject} if self.subject else present

    @property
    def path(self) -> Path:
        """The entry of the present content, whether it exists or not."""
        return self.folder / f"{self.fingerprint}.json"

    def open(self) -> None:
        """Makes the folder, so that whether it can be written is known before the work.

        Raises:
            OSError: It cannot.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            pass

    def record(self, result: Result) -> None:
        """Enters every gate that a run judged, passed or not; the latest run counts.

        Args:
            result: Of a run on the recorded cases against both references, with nothing patched.

        Raises:
            NotProven: The content has changed since this ledger was made, so nobody knows what the run was of.
        """
        if self._content() != self.content:
            raise NotProven("sources, recordings or versions changed while the ladder was climbed; climb it again")
        self.open()
        with self._locked():
            try:
                gates = self._gates()
            except NotProven:
                gates = {}  # what cannot be trusted is not added to
            for name, gate in result.gates.items():
                if gate.status is GateStatus.NOT_RUN:
                    continue
                evidence = [
                    [row.case, row.reading, row.precision, row.mode, row.port, row.quantity, row.status, row.error]
                    for row in gate.comparisons
                ]
                gates[name] = {
                    "status": gate.status,
                    "comparisons": len(evidence),
                    "evidence": hashlib.sha256(_canonical(evidence).encode()).hexdigest(),
                }
            entry: dict[str, Any] = {"content": self.content, "gates": gates}
            entry["seal"] = _seal(entry)
            handle, name = tempfile.mkstemp(dir=self.folder, prefix=".writing-")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(entry, file, indent=1)
            Path(name).replace(self.path)

    def require(self, gates: Sequence[str]) -> None:
        """Insists that rungs are proven for the present content.

        Raises:
            NotProven: One of them is not, or the entry cannot be trusted; the message names the command to run.
        """
        entered = self._gates()
        for name in gates:
            status = entered.get(name, {}).get("status", "never run")
            if status != GateStatus.PASSED:
                raise NotProven(
                    f"blocked: the gate {name!r} is not proven for the present sources, recordings, versions and "
                    f"machine ({status}); prove it with: {self.command}"
                )

    def _gates(self) -> dict[str, Any]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        try:
            entry = json.loads(text)
            intact = entry["seal"] == _seal(entry) and fingerprint(entry["content"]) == self.fingerprint
            gates = entry["gates"]
        except (ValueError, KeyError, TypeError):
            intact, gates = False, {}
        if not intact:
            raise NotProven(
                f"blocked: the ledger's entry {self.path.name} was edited or damaged and proves nothing; prove it anew "
                f"with: {self.command}"
            )
        return gates

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time, across processes."""
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _seal(entry: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical({key: entry[key] for key in ("content", "gates")}).encode()).hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))

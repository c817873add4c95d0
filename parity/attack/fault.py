"""A fault as data: what is broken, where, and what the harness should say of it."""

import contextlib
import dataclasses
import enum
import fnmatch
from collections.abc import Callable, Iterator, Sequence
from typing import Any


class Kind(enum.StrEnum):
    """What a fault breaks."""

    MODEL = "model"
    CONSTANTS = "constants"
    MAPPING = "mapping"
    TRAINING = "training"
    DATA = "data"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """One mistake that a port may make.

    Attributes:
        name: Short and unique.
        source: Where it comes from: ``trap 12`` is a row of the specification's table of porting traps; else a word.
        kind: What it breaks.
        where: The layer, tensor or part that is broken.
        what: The mistake, in one line.
        rung: First rung of the ladder that must turn red.
        named: Who must be named there: layers of the port, or what answers for a failure that is no layer's. Patterns
            of ``fnmatch`` stand for any number of layers, at least one.
        inject: Breaks a subject, which the pair of models defines. No file is edited. What it patches outside of the
            subject it undoes: then it returns a context manager, which is left after the subject was judged.
        case: Which of the pair's cases has the layer.
    """

    name: str
    source: str
    kind: Kind
    where: str
    what: str
    rung: str
    named: tuple[str, ...]
    inject: Callable[[Any], contextlib.AbstractContextManager[Any] | None]
    case: str = ""

    def names(self, culprits: Sequence[str]) -> bool:
        """Whether the culprits are those that must be named, no more and no fewer."""
        found = [[name for name in culprits if _matches(name, pattern)] for pattern in self.named]
        exact = all(len(names) == 1 for names, pattern in zip(found, self.named, strict=True) if "*" not in pattern)
        return exact and all(found) and {name for names in found for name in names} == set(culprits)

    def blames(self, culprit: str) -> bool:
        """Whether a culprit is one of those that must be named."""
        return any(_matches(culprit, pattern) for pattern in self.named)


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) if "*" in pattern else name == pattern


@contextlib.contextmanager
def injected(fault: Fault | None, subject: Any) -> Iterator[Any]:
    """A broken subject for a while; a sound one for no fault."""
    with contextlib.ExitStack() as stack:
        context = None if fault is None else fault.inject(subject)
        if context is not None:
            stack.enter_context(context)
        yield subject


def catalogue(*parts: Sequence[Fault]) -> dict[str, Fault]:
    """Faults by name, in their order.

    Raises:
        ValueError: Two have one name.
    """
    faults = [fault for part in parts for fault in part]
    names = [fault.name for fault in faults]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"two faults have one name: {doubled}")
    return dict(zip(names, faults, strict=True))

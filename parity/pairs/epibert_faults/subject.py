"""What a fault of EpiBERT breaks: a port, what trains it, what makes its examples."""

import dataclasses
import types
from collections.abc import Callable
from typing import Any

from torch import nn

from parity.attack.fault import Fault, Kind
from parity.pairs.epibert_data import PORT_DATA, PortData
from parity.pairs.epibert_training.parts import PORT, PortTraining

PRETRAINING, FINETUNING = "P1", "R1"
"""Recorded cases that faults are judged on: the smallest of each model."""

Break = Callable[[Any], Any]
"""Breaks a port; a context manager that it returns undoes what was patched outside of the port."""


class Subject:
    """The parts of the port; a fault puts others in their place, or breaks the port itself.

    Args:
        make_port: Makes the port when somebody asks for it.

    Attributes:
        training: What trains it.
        data: What makes its examples.
    """

    def __init__(self, make_port: Callable[[], Any]) -> None:
        self._make_port = make_port
        self._port: Any = None
        self._broken = False
        self.training: PortTraining = PORT
        self.data: PortData = PORT_DATA

    @property
    def port(self) -> Any:
        """The port, to be compared."""
        if self._port is None:
            self._port = self._make_port()
        return self._port

    def broken_port(self) -> Any:
        """The port, to be broken."""
        self._broken = True
        return self.port

    @property
    def touched(self) -> frozenset[str]:
        """Which parts are not the sound ones: ``port``, ``training``, ``data``."""
        parts = {
            "port": self._broken,
            "training": self.training is not PORT,
            "data": self.data is not PORT_DATA,
        }
        return frozenset(name for name, changed in parts.items() if changed)


# --- faults of one module --------------------------------------------------------------------------------------------


def set_attribute(path: str, attribute: str, value: object) -> Break:
    """Gives one module another attribute."""
    return lambda port: setattr(port.get_submodule(path), attribute, value)


def set_forward(path: str, forward: Callable[..., object]) -> Break:
    """Gives one module another forward, called with the module first."""

    def inject(port: nn.Module) -> None:
        module: Any = port.get_submodule(path)
        module.forward = types.MethodType(forward, module)

    return inject


def of_port(
    source: str,
    name: str,
    where: str,
    what: str,
    change: Break,
    *,
    named: tuple[str, ...] | None = None,
    rung: str = "layers",
    kind: Kind = Kind.MODEL,
    case: str = PRETRAINING,
) -> Fault:
    """A fault of the port itself; unless said otherwise the layer that is broken must be named."""
    return Fault(
        name=name,
        source=source,
        kind=kind,
        where=where,
        what=what,
        rung=rung,
        named=(where,) if named is None else named,
        inject=lambda subject: change(subject.broken_port()),
        case=case,
    )


def of_training(
    source: str,
    name: str,
    where: str,
    what: str,
    *,
    rung: str,
    named: tuple[str, ...] | None = None,
    case: str = PRETRAINING,
    **parts: Any,
) -> Fault:
    """A fault of what trains the port; ``parts`` are those of ``PortTraining`` that are replaced."""

    def inject(subject: Subject) -> None:
        subject.training = dataclasses.replace(subject.training, **parts)

    return Fault(
        name=name,
        source=source,
        kind=Kind.TRAINING,
        where=where,
        what=what,
        rung=rung,
        named=(where,) if named is None else named,
        inject=inject,
        case=case,
    )


def of_data(origin: str, name: str, where: str, what: str, *, named: tuple[str, ...], **parts: Any) -> Fault:
    """A fault of what makes examples; ``parts`` are those of ``PortData`` that are replaced."""

    def inject(subject: Subject) -> None:
        subject.data = dataclasses.replace(subject.data, **parts)

    return Fault(
        name=name,
        source=origin,
        kind=Kind.DATA,
        where=where,
        what=what,
        rung="data",
        named=named,
        inject=inject,
        case=PRETRAINING,
    )

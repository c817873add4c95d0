"""What both sides computed in one run: the record that decision rules judge, and that knows neither model.

An observation is made once for each fault and for each clean run, by whoever can run the models (``parity/pairs/``).
The rules of ``parity.attack.rules`` read nothing else, so all of them judge the same numbers.
"""

import dataclasses
import enum
from collections.abc import Iterable, Mapping

import numpy as np

PRECISIONS = ("float32", "float64")
REFERENCE, PORT = "reference", "port"


class Pass(enum.StrEnum):
    """A run of a model that some rule needs. Each makes the fields of ``Computed`` named after it."""

    FORWARD = "forward"  # outputs and layers
    ISOLATED = "isolated"  # isolated
    BACKWARD = "backward"  # loss and gradients
    STEPS = "steps"  # losses and weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Computed:
    """What one side computed in one precision, as arrays of that precision.

    Layers bear the port's names on both sides (``stem_conv``, and ``stem_conv@1`` for the second call of a pass;
    several arrays of one call are ``name:quantity``); a layer of the reference without a counterpart bears its own
    path. So do parameters, in the port's layout. The order of each mapping is that side's own order of execution (for
    gradients and weights: of its parameters). What a side does not have is absent, never filled in: rules differ in
    what they make of that.

    Attributes:
        outputs: Final outputs in evaluation mode, by name; for a fault of the data pipeline, what the pipeline hands
            on.
        layers: Output of every layer, end to end from the model's inputs, in evaluation mode.
        isolated: Output of every layer that was fed with the reference's own input.
        loss: Loss in training mode, dropout on, both sides with the same masks; None when the pass was not made.
        gradients: Gradient of that loss by every parameter.
        losses: Loss of each of the training steps that were taken, before its update.
        weights: Parameters and BatchNorm statistics after the last of these steps.
        seconds: Wall time of each pass that was made.
        error: What ended a pass early, in one line.
    """

    outputs: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    layers: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    isolated: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    loss: float | None = None
    gradients: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    losses: tuple[float, ...] = ()
    weights: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    seconds: Mapping[Pass, float] = dataclasses.field(default_factory=dict)
    error: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observation:
    """Reference and port in one run.

    Attributes:
        reference: What the reference computed, by precision.
        port: What the port computed, by precision.
        blocks: Layers whose outputs a user sees as hidden states, by the port's names.
    """

    reference: Mapping[str, Computed]
    port: Mapping[str, Computed]
    blocks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError where a side lacks a precision."""
        for side, computed in ((REFERENCE, self.reference), (PORT, self.port)):
            if set(computed) != set(PRECISIONS):
                raise ValueError(f"the {side} was run in {sorted(computed)}: rules read {list(PRECISIONS)}")

    def seconds(self, passes: Iterable[tuple[str, str, Pass]]) -> float:
        """Wall time of these passes, each given as (side, precision, pass)."""
        sides = {REFERENCE: self.reference, PORT: self.port}
        return sum(sides[side][precision].seconds.get(kind, 0.0) for side, precision, kind in passes)

"""The rungs gradients, optimizer, state and trajectory, live: the port against the reference, trained side by side.

What fails in float32, where errors are random, is measured on other batches (``parity.second_look``).
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from parity.pairs.epibert_training.live_pair import GRADIENT_RECIPE, STATE_STEPS, LivePair, training_config
from parity.pairs.epibert_training.parts import PORT, PortTraining
from parity.pairs.epibert_training.recipes import FINETUNING_SCHEDULES, SCHEDULE_ARGUMENTS
from parity.records import Comparison, Reading, Status
from parity.second_look import look_again
from parity.training import (
    Backward,
    Snapshot,
    compare_gradients,
    compare_schedules,
    compare_state,
    compare_steps,
    compare_trajectory,
)
from torch_impl import EpiBERTConfig
from torch_impl.model import Trunk

PRECISIONS = ("float64", "float32")
GRADIENT_SCALES = (1e-8, 1e-6, 1e-4, 1e-2, 1.0, 1e2)
DECAY_SCALES = (1e-4, 1.0)
OPTIMIZER_RUNS = (*(("adam", scale) for scale in GRADIENT_SCALES), *(("adamw", scale) for scale in DECAY_SCALES))
TRAJECTORY_STEPS = 50
TRAJECTORY_DRAWS = 3
MOVED = 16
"""Passes, or runs, of a reference moved by one unit in the last place, where the port failed on few inputs."""


def compare_live_training(
    config: EpiBERTConfig,
    stored: Mapping[str, np.ndarray],
    make_port: Callable[[EpiBERTConfig], Trunk],
    *,
    gates: Sequence[str],
    training: PortTraining = PORT,
    steps: int = TRAJECTORY_STEPS,
    case: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Comparison]:
    """Every training rung against the living reference, dropout on, both sides fed with the same masks and noise.

    Args:
        config: Of the port; ``training_config`` of it is what is trained.
        stored: The model's tensors by canonical path.
        make_port: A port with these weights and TensorFlow's constants for a configuration.
        gates: Rungs wanted.
        training: What trains the port.
        steps: Length of the trajectory.
        case: Name of the case.
        say: Told what is going on.
    """
    config = training_config(config)
    pair, right = LivePair(config, stored, make_port(config), training), True
    if "gradients" in gates:
        say(f"{case}: gradients")
        rows = tuple(live_gradients(pair, case=case))
        right = right and _pass(rows)
        yield from rows
    if "optimizer" in gates:
        say(f"{case}: optimizer steps")
        rows = tuple(live_steps(pair, case=case))
        right = right and _pass(rows)
        yield from rows
    if "state" in gates or "trajectory" in gates:
        say(f"{case}: {steps} training steps")
        runs = live_runs(pair, "float64", steps, case=case, with_trajectory="trajectory" in gates, again=right)
        rows = tuple(row for row in runs if row.gate in gates)
        right = right and _pass(rows)
        yield from rows
    if "trajectory" in gates:
        yield from live_runs(pair, "float32", steps, case=case, again=right)


def live_gradients(pair: LivePair, *, case: str = "", precisions: Sequence[str] = PRECISIONS) -> Iterator[Comparison]:
    """The gradients rung: every layer in isolation and end to end in float64, end to end in float32.

    A ratio of float32 that fails is measured on other batches (``parity.second_look``), unless the port is wrong in
    float64 already.
    """
    inputs, targets = pair.batch(0)
    truth = pair.gradients("float64")
    side, right = pair.side(**GRADIENT_RECIPE), True
    for reading in (Reading.ISOLATED, Reading.ACCUMULATED) if "float64" in precisions else ():
        fed = truth if reading is Reading.ISOLATED else None
        rows = tuple(
            compare_gradients(
                side.gradients(inputs, targets, precision="float64", truth=fed),
                truth,
                pair.tensors,
                pair.layer_map,
                reading=reading,
                precision="float64",
                tolerance="gradient_live",
                case=case,
            )
        )
        right = right and _pass(rows)
        yield from rows
    if "float32" in precisions:

        def compared(found: Backward, expected: Backward, own: Backward) -> tuple[Comparison, ...]:
            return tuple(
                compare_gradients(
                    found,
                    expected,
                    pair.tensors,
                    pair.layer_map,
                    reading=Reading.ACCUMULATED,
                    precision="float32",
                    tolerance="gradient_float32",
                    own=own,
                    case=case,
                )
            )

        def found_on(step: int) -> Backward:
            return side.gradients(*pair.batch(step), precision="float32")

        def measured(step: int) -> tuple[Comparison, ...]:
            return compared(found_on(step), pair.gradients("float64", step), pair.gradients("float32", step))

        def moved(step: int) -> Iterator[tuple[Comparison, ...]]:
            found = found_on(step)
            for draw in range(MOVED):
                other = pair.gradients("float32", step, perturbed=draw)
                yield compared(found, other, other)

        rows = measured(0)
        yield from look_again(rows, measured, moved) if right else rows


def live_steps(
    pair: LivePair, *, case: str = "", runs: Sequence[tuple[str, float]] = OPTIMIZER_RUNS
) -> Iterator[Comparison]:
    """The optimizer rung: steps along gradients of many sizes, and the schedule."""
    before = pair.weights()
    schedule, truth = pair.side().recipe.schedule, pair.reference("float64").recipe.schedule
    for optimizer, scale in runs:
        given = [
            {tensor.port: tensor.to_port(step[tensor.reference]) for tensor in pair.tensors if tensor.trainable}
            for step in pair.given_gradients(scale)
        ]
        side = pair.side(optimizer=optimizer)
        # The optimizer is fed with the reference's rates as well, so that a wrong schedule is not its fault.
        side.recipe = dataclasses.replace(side.recipe, schedule=truth)
        yield from compare_steps(
            side.steps(given, pair.tensors, precision="float64"),
            pair.steps(optimizer, scale),
            before,
            pair.tensors,
            steps=STATE_STEPS,
            label=f"{optimizer}, gradients of size {scale:g}",
            case=case,
        )
    steps = range(2 * int(SCHEDULE_ARGUMENTS["warmup"] + SCHEDULE_ARGUMENTS["decay"]))
    yield from compare_schedules(schedule, truth, steps, label="warm-up, decay, floor", case=case)
    yield from compare_schedules(*_constant_rates(pair), steps, label="constant after the warm-up", case=case)


def _constant_rates(pair: LivePair) -> tuple[Callable[[int], list[float]], Callable[[int], list[float]]]:
    """The schedule that keeps its peak (the original's ``return_constant_lr``), of the port and of the reference."""
    from tf_reference import optim

    peaks = [
        {**each, "constant": True} for each in (FINETUNING_SCHEDULES if pair.finetuning else (SCHEDULE_ARGUMENTS,))
    ]
    return (
        lambda step: [pair.training.schedule(step, **arguments) for arguments in peaks],
        lambda step: [optim.cosine_warmup(step, **arguments) for arguments in peaks],
    )


def live_runs(
    pair: LivePair,
    precision: str,
    steps: int,
    *,
    case: str = "",
    draws: int = TRAJECTORY_DRAWS,
    with_trajectory: bool = True,
    again: bool = True,
) -> Iterator[Comparison]:
    """Whole training runs: the state that they leave behind (float64), and the trajectory.

    A ratio of the trajectory that fails is measured on runs of other batches (``parity.second_look``).

    Args:
        pair: Both sides.
        precision: ``float64`` or ``float32``.
        steps: Length of the trajectory.
        case: Name of the case.
        draws: Runs of the reference that are perturbed.
        with_trajectory: Whether to compare the trajectory; else the run ends with the last state.
        again: Whether what fails is measured again: not where the port was wrong before.
    """
    count = steps if with_trajectory else max(STATE_STEPS)
    side = pair.side()

    def observed(number: int) -> list[Snapshot]:
        return side.run(pair.batches(number), count, pair.tensors, precision=precision)

    def measured(number: int, found: Sequence[Snapshot] | None = None) -> tuple[Comparison, ...]:
        found = observed(number) if found is None else found
        perturbed = [pair.run(precision, count, perturbed=draw, number=number) for draw in range(draws)]
        return compared(found, pair.run(precision, count, number=number), perturbed)

    def compared(
        found: Sequence[Snapshot], truth: Sequence[Snapshot], perturbed: Sequence[Sequence[Snapshot]]
    ) -> tuple[Comparison, ...]:
        return tuple(compare_trajectory(found, truth, perturbed, steps=count, precision=precision, case=case))

    def moved(number: int) -> Iterator[tuple[Comparison, ...]]:
        found = observed(number)
        for draw in range(draws, draws + MOVED):
            other = pair.run(precision, count, perturbed=draw, number=number, remember=False)
            yield compared(found, other, [other])

    first = observed(0)
    if precision == "float64":
        rows = tuple(compare_state(first, pair.run(precision, count), pair.tensors, steps=STATE_STEPS, case=case))
        again = again and _pass(rows)
        yield from rows
    if with_trajectory:
        rows = measured(0, first)
        yield from look_again(rows, measured, moved) if again else rows


def _pass(rows: Iterable[Comparison]) -> bool:
    return all(row.status is Status.PASS for row in rows)

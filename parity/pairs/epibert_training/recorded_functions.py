"""The rung losses, recorded: losses, their gradients, metrics and schedule against numbers of the original."""

import ast
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from parity.compare import compare
from parity.pairs.epibert_training.function_rows import loss_row, streamed, value_and_gradient, with_arguments
from parity.pairs.epibert_training.hdf5 import group_of, groups_in, numbers
from parity.pairs.epibert_training.parts import PORT, PortTraining
from parity.records import Comparison, Reading
from parity.training import LOSS, METRIC, compare_schedules


def compare_recorded_functions(path: Path, port: PortTraining = PORT, *, case: str) -> Iterator[Comparison]:
    """Losses, metrics and schedule of the original, each with drawn arguments, from ``functions.h5``."""
    with h5py.File(path) as file:
        for name, sample in groups_in(file["losses"]):
            true = torch.from_numpy(numbers(sample["y_true"]))
            predicted = torch.from_numpy(numbers(sample["y_pred"]))
            for recorded, call in _recorded_losses(group_of(sample["f64"]), port):
                value, gradient, error = value_and_gradient(functools.partial(call, true), predicted)
                label = f"{recorded.name.partition('/f64/')[2]}, {name}"
                yield loss_row(value, numbers(recorded["value"]).mean(), label, case, detail=error)
                expected = numbers(recorded["grad_of_mean_wrt_y_pred"])
                yield loss_row(gradient, expected, f"{label}, gradient", case, detail=error)
                same = group_of(sample["f32"])[f"{recorded.name.partition('/f64/')[2]}/grad_of_mean_wrt_y_pred"]
                yield _float32_gradient(call, sample, expected, numbers(same), f"{label}, gradient", case)
        for name, sample in groups_in(file["metrics"]):
            if name == "helpers":
                continue
            yield from _recorded_metric(name, sample, port, case)
        settings = numbers(file["cos_w_warmup/settings_target_warmup_decay_alpha_constant"])
        for index, (peak, warmup, decay, floor, constant) in enumerate(settings):
            expected = numbers(file[f"cos_w_warmup/lr_{index}"])
            yield from compare_schedules(
                lambda step, a=(peak, warmup, decay, floor), c=bool(constant): [port.schedule(step, *a, constant=c)],
                lambda step, rates=expected: [rates[step]],
                range(len(expected)),
                label=f"recorded schedule {index}",
                case=case,
            )


def _float32_gradient(
    call: Callable[..., Any], sample: h5py.Group, truth: np.ndarray, own: np.ndarray, quantity: str, case: str
) -> Comparison:
    """The same gradient in float32, against float64, by the original's own distance to it."""
    true, predicted = (torch.from_numpy(sample[key][()]) for key in ("y_true", "y_pred"))
    _, gradient, error = value_and_gradient(lambda p: call(true, p), predicted)
    return compare(
        gradient,
        truth,
        reference_same_precision=own,
        gate="losses",
        case=case,
        reading=Reading.ISOLATED,
        precision="float32",
        mode="training",
        tolerance="float32",
        reference_path="",
        port_path="",
        layer=LOSS,
        quantity=quantity,
        detail=error,
    )


def _recorded_losses(group: h5py.Group, port: PortTraining) -> Iterator[tuple[h5py.Group, Callable[..., Any]]]:
    yield group_of(group["poisson"]), port.poisson
    for name, recorded in groups_in(group["poisson_multinomial"]):
        weight, rescale = name.removeprefix("w").split("_rescale")
        yield recorded, with_arguments(port.poisson_multinomial, total_weight=float(weight), rescale=rescale == "1")


def _recorded_metric(name: str, sample: h5py.Group, port: PortTraining, case: str) -> Iterator[Comparison]:
    axes = ast.literal_eval(str(sample.attrs["reduce_axis"]))
    kind = name.partition("_")[2]
    batches = [group_of(sample[f"batch{index}"]) for index in range(len([key for key in sample if "batch" in key]))]
    shape = tuple(group_of(sample["state"])["count"].shape)
    given = [[torch.from_numpy(batch[key][()]) for key in ("y_pred", "y_true")] for batch in batches]
    found = streamed(lambda: port.metrics[kind](reduce_axis=axes, shape=shape), given)
    for index, (batch, (value, error)) in enumerate(zip(batches, found, strict=True)):
        yield loss_row(
            value,
            numbers(batch["result_so_far"]),
            f"{name} after batch {index + 1}",
            case,
            tolerance="float32_metric",
            layer=METRIC,
            detail=error,
        )

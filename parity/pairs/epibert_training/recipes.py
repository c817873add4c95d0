"""How both sides are trained: the recipes of the port and of the living reference, for both models.

TensorFlow is needed for the reference's recipes only, and imported there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from parity.pairs.epibert_training.parts import (
    ADAM_EPSILON,
    ATAC_SCALE,
    CLIP,
    PORT,
    TOTAL_WEIGHT,
    WEIGHT_DECAY,
    PortTraining,
)
from parity.training import Recipe

SEED = 2026
SCHEDULE_ARGUMENTS: Mapping[str, Any] = {"peak": 1e-3, "warmup": 10, "decay": 30, "floor": 0.1}
"""Warm-up, decay and floor all lie within the trajectory."""
FINETUNING_SCHEDULES = (SCHEDULE_ARGUMENTS, {**SCHEDULE_ARGUMENTS, "peak": 4e-4})
"""Of trunk and ATAC head, and of the RNA head: two peaks, or nothing would show whose parameter it is."""


def port_recipe(
    port: PortTraining = PORT,
    *,
    loss_type: str = "poisson",
    optimizer: str = "adam",
    schedule: Mapping[str, Any] | None = None,
    unmasked: bool = False,
) -> Recipe:
    """How the port is trained."""

    def loss(output: Any, targets: Any) -> Any:
        return port.masked_loss(
            targets["target"],
            output,
            targets["mask"],
            loss_type=loss_type,
            total_weight=TOTAL_WEIGHT,
            unmask=targets["unmask"] if unmasked else None,
        )

    arguments = SCHEDULE_ARGUMENTS if schedule is None else schedule
    return Recipe(
        loss=loss,
        optimizers=getattr(port, optimizer),
        schedule=lambda step: [port.schedule(step, **arguments)],
    )


def reference_recipe(
    *,
    loss_type: str = "poisson",
    optimizer: str = "adam",
    schedule: Mapping[str, Any] | None = None,
    unmasked: bool = False,
) -> Recipe:
    """How the living reference is trained."""
    import tensorflow as tf

    from tf_reference import losses, optim

    def loss(output: Any, targets: Any) -> Any:
        # As the original's train step: in float32, or in float64 where the model computes in that.
        output = output if output.dtype == tf.float64 else tf.cast(output, tf.float32)
        return losses.masked_loss(
            targets["target"],
            output,
            targets["mask"],
            loss_type=loss_type,
            total_weight=TOTAL_WEIGHT,
            unmask=targets["unmask"] if unmasked else None,
        )

    def optimizers(model: Any) -> list[tuple[Any, list[Any]]]:
        if optimizer == "adam":
            made = optim.adam(epsilon=ADAM_EPSILON, global_clipnorm=CLIP, dtype=model.variable_dtype)
        else:
            made = optim.adamw(
                epsilon=ADAM_EPSILON, global_clipnorm=CLIP, weight_decay=WEIGHT_DECAY, dtype=model.variable_dtype
            )
        return [(made, list(model.trainable_variables))]

    arguments = SCHEDULE_ARGUMENTS if schedule is None else schedule
    return Recipe(loss=loss, optimizers=optimizers, schedule=lambda step: [optim.cosine_warmup(step, **arguments)])


def finetuning_recipe(
    port: PortTraining = PORT,
    *,
    loss_type: str = "poisson",
    optimizer: str = "adam",
    schedules: Sequence[Mapping[str, Any]] = FINETUNING_SCHEDULES,
) -> Recipe:
    """How the fine-tuning model is trained: each of two optimizers clips its own parameters (spec, section 3.4)."""

    def loss(output: Any, targets: Any) -> Any:
        atac, rna = output
        return port.finetuning_loss(
            targets["target_rna"],
            rna,
            targets["target"],
            atac,
            targets["mask"],
            loss_type=loss_type,
            total_weight=TOTAL_WEIGHT,
            atac_scale=ATAC_SCALE,
        ).total

    return Recipe(
        loss=loss,
        optimizers=lambda model: port.finetuning_optimizers(model, getattr(port, optimizer)),
        schedule=lambda step: [port.schedule(step, **arguments) for arguments in schedules],
    )


def finetuning_reference_recipe(*, loss_type: str = "poisson", optimizer: str = "adam") -> Recipe:
    """How the living reference of the fine-tuning model is trained."""
    from tf_reference import optim, training

    def loss(output: Any, targets: Any) -> Any:
        return training.finetuning_loss(
            training.heads(output),
            targets["target_rna"],
            targets["target"],
            targets["mask"],
            loss_type=loss_type,
            total_weight=TOTAL_WEIGHT,
            atac_scale=ATAC_SCALE,
        ).total

    def optimizers(model: Any) -> list[tuple[Any, list[Any]]]:
        arguments = {"epsilon": ADAM_EPSILON, "global_clipnorm": CLIP, "dtype": model.variable_dtype}
        if optimizer == "adam":
            return [(optim.adam(**arguments), variables) for variables in training.finetuning_variables(model)]
        arguments["weight_decay"] = WEIGHT_DECAY
        return [(optim.adamw(**arguments), variables) for variables in training.finetuning_variables(model)]

    return Recipe(
        loss=loss,
        optimizers=optimizers,
        schedule=lambda step: [optim.cosine_warmup(step, **arguments) for arguments in FINETUNING_SCHEDULES],
    )

"""Lightning checkpoints of our modules, read without running code: the model, and its training state by our names.

The names are those of `training_state`: moments by parameter, the optimizers' step counters and learning rates. So a
Lightning checkpoint can be exported to TensorFlow like a transplanted one.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torch_impl import EpiBERT, EpiBERTConfig, EpiBERTRampage
from torch_impl.model import Trunk
from weights.checkpoint import ArrayCheckpoint
from weights.errors import ConfigurationError, CorruptCheckpointError, MappingError, listing
from weights.export import CheckpointTensors, wide_enough
from weights.table import MOMENTS, kind_of, rows

PREFIX = "model."
SUFFIX = ".ckpt"
IN_FOLDER = "meta.pt"
"""File by which one knows the folder of a sharded model."""


def is_lightning_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a file as Lightning names them, or the folder that it writes of a sharded model."""
    path = Path(path)
    return (path.suffix == SUFFIX and path.is_file()) or (path / IN_FOLDER).is_file()


def load_lightning(path: str | os.PathLike[str]) -> tuple[Trunk, dict[str, np.ndarray]]:
    """The model of a Lightning checkpoint, in evaluation mode, and its training state.

    It is an `EpiBERTRampage` when the state has an RNA head, else an `EpiBERT`.

    Args:
        path: of the file, or of the folder that a sharded model was written to.

    Returns:
        the model, and slots and counters by the port's names; none when the checkpoint holds weights alone.

    Raises:
        CheckpointError: the file is missing, damaged, holds more than plain values, or is of another module.
    """
    # Lightning takes a second to import, and who needs the weight table alone needs none of it.
    from torch_impl.checkpointing import TrainingError, read_checkpoint_file

    try:
        content = read_checkpoint_file(path)
    except TrainingError as error:
        raise CorruptCheckpointError(str(error)) from None
    state = {name.removeprefix(PREFIX): value for name, value in content["state_dict"].items()}
    arguments = content.get("hyper_parameters", {}).get("config")
    if not isinstance(arguments, Mapping):
        raise ConfigurationError(f"{path} does not say of which configuration it is")
    try:
        config = EpiBERTConfig(**arguments)
        model = EpiBERTRampage(config) if "final_dense_profile_rna.weight" in state else EpiBERT(config)
        model.load_state_dict(state, strict=True, assign=True)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{path}: state and configuration do not match: {error}") from None
    return model.eval(), _training_state(path, content, model)


class LightningCheckpoint(ArrayCheckpoint):
    """A Lightning checkpoint as one of the original would be, for whoever reads those: under the original's keys.

    Args:
        path: as for `load_lightning`.

    Attributes:
        model: what `load_lightning` loads.

    Raises:
        CheckpointError: see `load_lightning`.
    """

    kind = "Lightning checkpoint"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.model, training_state = load_lightning(path)
        self.files = files_of(path)
        super().__init__(CheckpointTensors(self.model, training_state, wide_enough(self.model)))


def files_of(path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """What a Lightning checkpoint consists of."""
    return (Path(path),) if Path(path).is_file() else tuple(sorted(Path(path).iterdir()))


def _training_state(path: str | os.PathLike[str], content: Mapping[str, Any], model: Trunk) -> dict[str, np.ndarray]:
    """Slots and counters of the optimizers, in the order of the table's."""
    states = content.get("optimizer_states", [])
    if not any(each["state"] for each in states):
        return {}
    from torch_impl.checkpointing import OPTIMIZER_PARAMETERS

    names = content.get(OPTIMIZER_PARAMETERS)
    optimizers = kind_of(model).optimizers
    if names is None:
        raise MappingError(
            f"{path} does not say which parameters its optimizers train; train with the callback ResumableTraining"
        )
    if len(states) != len(names):
        raise MappingError(f"{path} has {len(states)} optimizers, and names for {len(names)}")
    # A Trainer may have seen several optimizers as one, so parameters are looked up by name.
    slots, rates = {}, {}
    for saved, own in zip(states, names, strict=True):
        slots |= {own[number]: found for number, found in saved["state"].items()}
        rates |= {own[number]: group["lr"] for group in saved["param_groups"] for number in group["params"]}
    found: dict[str, np.ndarray] = {}
    for optimizer in optimizers:
        trained = [row.name for row in rows(model.config, optimizer.table) if row.trainable]
        missing = [name for name in trained if name not in slots]
        if missing:
            raise MappingError(listing(f"{path} has no state of an optimizer for", missing))
        found |= {f"{moment}/{name}": slots[name][moment].numpy() for name in trained for moment in MOMENTS}
        steps = {int(slots[name]["step"]) for name in trained}
        if len(steps) != 1:
            raise MappingError(f"{path}: the parameters of {optimizer.name} have made {sorted(steps)} steps")
        found[f"{optimizer.name}/iterations"] = np.array(steps.pop(), np.int64)
        found[f"{optimizer.name}/learning_rate"] = np.array(rates[trained[0]], np.float32)
    return found


def load_optimizer_state(
    optimizers: list[torch.optim.Optimizer], model: Trunk, training_state: Mapping[str, np.ndarray]
) -> int:
    """Fills the optimizers of a model that is being trained from a training state.

    Args:
        optimizers: whose state is replaced, parameter by parameter.
        model: whose parameters they train.
        training_state: as `Transplant.training_state`.

    Returns:
        the number of steps that were made, the same for all optimizers.

    Raises:
        MappingError: slots or counters are missing or have wrong shapes, or the optimizers disagree about the steps.
    """
    steps = {}
    for kind in kind_of(model).optimizers:
        counter = f"{kind.name}/iterations"
        if counter not in training_state:
            raise MappingError(f"the training state has no {counter}")
        steps[kind.name] = int(training_state[counter])
    if len(set(steps.values())) != 1:
        raise MappingError(f"the optimizers have made different numbers of steps: {steps}")
    step = next(iter(steps.values()))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    filled = []
    for optimizer in optimizers:
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            name = names[id(parameter)]
            slots: dict[str, torch.Tensor] = {"step": torch.tensor(float(step), dtype=torch.float32)}
            for moment in MOMENTS:
                if f"{moment}/{name}" not in training_state:
                    raise MappingError(f"the training state has no {moment}/{name}")
                array = training_state[f"{moment}/{name}"]
                if array.shape != tuple(parameter.shape):
                    raise MappingError(f"{moment}/{name}: {array.shape}, the parameter has {tuple(parameter.shape)}")
                slots[moment] = torch.tensor(array, dtype=parameter.dtype, device=parameter.device)
            filled.append((optimizer, parameter, slots))
    for optimizer, parameter, slots in filled:
        optimizer.state[parameter] = slots
    for optimizer in optimizers:
        # As after loading a state: what the optimizer has derived from the old one is forgotten.
        optimizer.__setstate__({"state": optimizer.state, "param_groups": optimizer.param_groups})
    return step

"""Which tensor of the port is which variable of the reference, and moving the weights by it, all or none."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from parity.arrangements import Arrangement
from parity.inference.reference_side import reference_variables

WeightMap = Mapping[str, tuple[str, Sequence[int] | Arrangement | None]]


def load_weights(port: nn.Module, reference: Any, weight_map: WeightMap) -> None:
    """Fills a port with the weights of a reference, all of them or none.

    Args:
        port: The module.
        reference: Built tf_keras model, or a recording of a model.
        weight_map: As ``infer`` finds it.

    Raises:
        ValueError: A tensor of the port or a variable of the reference is not in the map, or shapes differ.
    """
    variables, tensors = reference_variables(reference), tensors_by_name(port)
    used = {key for key, _ in weight_map.values()}
    faults = [f"{name}: the weight map does not mention it" for name in tensors if name not in weight_map]
    faults += [f"{key}: the weight map does not mention this variable" for key in variables if key not in used]
    values = {}
    for name, (key, axes) in weight_map.items():
        if name not in tensors or key not in variables:
            faults.append(f"{name} = {key}: there is no such {'variable' if name in tensors else 'tensor'}")
            continue
        values[name] = arranged(variables[key], axes)
        if values[name].shape != tuple(tensors[name].shape):
            faults.append(f"{name}: shape {tuple(tensors[name].shape)}, but {key} gives {values[name].shape}")
    if faults:
        raise ValueError("the weights were not moved: " + "; ".join(faults))
    with torch.no_grad():
        for name, value in values.items():
            tensors[name].copy_(torch.from_numpy(np.ascontiguousarray(value)))


def arranged(variable: np.ndarray, axes: Sequence[int] | Arrangement | None) -> np.ndarray:
    """A variable as the port has it."""
    if axes is None:
        return variable
    return axes(variable) if isinstance(axes, Arrangement) else np.transpose(variable, tuple(axes))


def tensors_by_name(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, and the buffers but for ``helper_buffers``."""
    tensors: dict[str, torch.Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    helpers = helper_buffers(module)
    return {name: tensor for name, tensor in tensors.items() if name not in helpers}


def helper_buffers(module: nn.Module) -> dict[str, str]:
    """Buffers that cannot have come from a Keras model, with the reason."""
    kept, found = module.state_dict(keep_vars=True), {}
    for name, buffer in module.named_buffers():
        if name.rpartition(".")[2] == "num_batches_tracked":
            found[name] = "PyTorch counts batches here; Keras has no such variable"
        elif name not in kept and not buffer.is_floating_point():
            found[name] = "integers that the port makes itself and never saves: positions, masks"
    return found

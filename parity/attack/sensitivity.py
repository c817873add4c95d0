"""How small a perturbation of each layer does its own check still see?

Readings of layers are isolated from each other, so one pass perturbs all layers at once and every layer answers for
itself: no search is needed, all sizes are tried.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from parity.attack.records import Sensitivity
from parity.ladder import compare_live
from parity.layer_map import LayerMap, LayerPair
from parity.records import Status
from parity.reference import LiveReference
from parity.torch_side import PrecisionSetter, TorchSide

EXPONENTS = range(16, 52)
"""Relative sizes 2^-k that are tried."""

WEIGHTS, OUTPUT = "weights", "output"


def measure(
    port: nn.Module,
    reference: LiveReference,
    layer_map: LayerMap,
    set_precision: PrecisionSetter,
    *,
    exponents: Sequence[int] = EXPONENTS,
) -> Iterator[Sensitivity]:
    """The smallest perturbation of each mapped layer that its isolated reading does not pass, in float64.

    A layer with parameters has all of them, and the statistics that the map names, multiplied by 1 ± 2^-k with signs
    drawn once; of one without, the output is.

    Args:
        port: A port that is right.
        reference: The living reference in float64 alone.
        layer_map: Which layer is which.
        set_precision: As for ``TorchSide``.
        exponents: Values of k, ascending.
    """
    names = [pair.port for pair in layer_map if not pair.alias]
    modules = dict(port.named_modules())
    weighted = {pair.port: _tensor_names(modules[pair.port], pair) for pair in layer_map if not pair.alias}
    weighted = {name: tensors for name, tensors in weighted.items() if tensors}
    seen: dict[str, list[bool]] = {name: [] for name in names}
    for exponent in exponents:
        size = 2.0**-exponent
        with contextlib.ExitStack() as stack:
            for name in names:
                if name not in weighted:
                    stack.enter_context(_perturbed_output(modules[name], size))
            perturb = functools.partial(_perturb, [(modules[name], own) for name, own in weighted.items()], size)
            side = TorchSide(port, layer_map, _then(set_precision, perturb))
            red = {
                row.layer
                for row in compare_live(side, reference, layer_map, gates=("layers",), modes=("evaluation",))
                if row.status is not Status.PASS
            }
        for name in names:
            seen[name].append(name in red)
    for name in names:
        found = [exponent for exponent, red in zip(exponents, seen[name], strict=True) if red]
        smallest = max(found, default=None)
        yield Sensitivity(
            layer=name,
            perturbed=WEIGHTS if name in weighted else OUTPUT,
            precision="float64",
            exponent=smallest,
            monotone=smallest is None or found == [k for k in exponents if k <= smallest],
        )


def _tensor_names(module: nn.Module, pair: LayerPair) -> list[str]:
    """A module's own parameters, and the statistics that the layer map names."""
    own = [name for name, parameter in module._parameters.items() if parameter is not None]
    return own + [name for name, _ in pair.state] if own else []


def _signs(shape: Iterable[int], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 2, tuple(shape), generator=generator).to(dtype) * 2 - 1


def _perturb(owners: Sequence[tuple[nn.Module, Sequence[str]]], size: float) -> None:
    # After the cast to float64: of float32 numbers nothing smaller than 2^-24 would be left.
    for module, names in owners:
        for name in names:
            tensor = getattr(module, name)
            tensor.data = tensor.data * (1 + size * _signs(tensor.shape, tensor.dtype))


def _then(set_precision: PrecisionSetter, change: Callable[[], None]) -> PrecisionSetter:
    @contextlib.contextmanager
    def both(module: nn.Module, precision: str) -> Iterator[None]:
        with set_precision(module, precision):
            change()
            yield

    return both


@contextlib.contextmanager
def _perturbed_output(module: Any, size: float) -> Iterator[None]:
    """The module with every tensor that it returns perturbed."""
    forward = module.forward

    def perturbed(*arguments: Any, **options: Any) -> Any:
        return _moved(forward(*arguments, **options))

    def _moved(result: Any) -> Any:
        if isinstance(result, Tensor):
            return result * (1 + size * _signs(result.shape, result.dtype)) if result.is_floating_point() else result
        if isinstance(result, dict):
            return {key: _moved(value) for key, value in result.items()}
        if isinstance(result, list | tuple):
            return type(result)(_moved(value) for value in result)
        return result

    module.forward = perturbed
    try:
        yield
    finally:
        del module.forward

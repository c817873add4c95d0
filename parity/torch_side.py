"""Watching a PyTorch module: its calls as a trace, in a chosen precision, fed freely or layer by layer."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parity.layer_map import LayerMap, LayerPair
from parity.trace import Call, Readable, Recorder, Sample, Trace, describe, flatten, replace

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
_NARROW = (torch.float32, torch.bfloat16, torch.float16)
"""What float32 holds exactly."""

PrecisionSetter = Callable[[nn.Module, str], contextlib.AbstractContextManager[None]]


class TorchSide:
    """The port.

    Args:
        module: The module; it is left as it was found, parameters, buffers, mode and dtype.
        layer_map: Which of its modules to watch.
        set_precision: Context manager that puts the module into a precision; casts everything by default.
        original: The port itself, where the module is its twin with names for operations; it runs unwatched.
    """

    def __init__(
        self,
        module: nn.Module,
        layer_map: LayerMap,
        set_precision: PrecisionSetter | None = None,
        original: nn.Module | None = None,
    ) -> None:
        self.module = module
        self.original = module if original is None else original
        self.layer_map = layer_map
        self.set_precision = set_precision or cast_module
        self.modules = dict(module.named_modules())

    def trace(
        self,
        inputs: tuple[np.ndarray, ...],
        *,
        precision: str,
        training: bool,
        truth: Readable | None = None,
        fed: frozenset[str] | None = None,
        recorder: Recorder | None = None,
    ) -> Trace:
        """One forward pass.

        Args:
            inputs: The model's arguments; floating arrays are cast to the precision.
            precision: ``float64``, ``float32`` or ``bfloat16``.
            training: Training mode, dropout off.
            truth: A reference trace to feed the layers with: each gets the reference's inputs, and what it returns is
                replaced by the reference's outputs after it was recorded. So one pass reads every layer in isolation,
                and of a layer that contains others only its own code.
            fed: Port paths to feed; all when None. Unfed layers run freely inside their fed ancestors.
            recorder: What collects the calls, where not all of their arrays are to be kept.

        Returns:
            The trace, in the reference's activation layout. An exception ends the pass and stands in ``error``.
        """
        recorder = Recorder() if recorder is None else recorder
        with self.prepared(self.module, precision, training) as stack:
            for pair in self.layer_map:
                if not pair.alias and pair.port in self.modules:
                    feed = truth if fed is None or pair.port in fed else None
                    stack.enter_context(_watched(self.modules[pair.port], pair, recorder, feed))
            _, error = self._run(self.module, inputs, precision)
            return recorder.trace(self._state(), error)

    def outputs(
        self, inputs: tuple[np.ndarray, ...], *, precision: str, training: bool
    ) -> tuple[tuple[np.ndarray, ...], str]:
        """The tensors that an unwatched pass returns, and what ended the pass early, if anything did."""
        pair = next(
            (pair for pair in self.layer_map if pair.port == "" and not pair.alias), LayerPair(port="", reference="")
        )
        with self.prepared(self.original, precision, training):
            result, error = self._run(self.original, inputs, precision)
            returned = flatten(result, torch.is_tensor)
            return tuple(pair.to_reference(_array(tensor)) for tensor in returned), error

    @contextlib.contextmanager
    def prepared(self, module: nn.Module, precision: str, training: bool) -> Iterator[contextlib.ExitStack]:
        """The module in a mode and a precision, and afterwards as it was found."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(_kept_state(module))
            stack.enter_context(_mode(module, training))
            stack.enter_context(self.set_precision(module, precision))
            yield stack

    def _run(self, module: nn.Module, inputs: tuple[np.ndarray, ...], precision: str) -> tuple[Any, str]:
        device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), None)
        tensors = [torch.from_numpy(np.array(array)).to(device) for array in inputs]
        tensors = [tensor.to(DTYPES[precision]) if tensor.is_floating_point() else tensor for tensor in tensors]
        try:
            return self._call(module, tensors), ""
        except Exception as exception:  # noqa: BLE001  whatever the port raises is a finding, not our failure
            return None, describe(exception)

    def _call(self, module: nn.Module, tensors: list[Tensor]) -> Any:
        return module(*tensors)

    def _state(self) -> dict[str, dict[str, np.ndarray]]:
        return {
            pair.port: {
                name: _array(getattr(self.modules[pair.port], name))
                for name, _ in pair.state
                if torch.is_tensor(getattr(self.modules[pair.port], name, None))
            }
            for pair in self.layer_map
            if pair.state and pair.port in self.modules
        }


@contextlib.contextmanager
def cast_module(module: nn.Module, precision: str) -> Iterator[None]:
    """Casts every floating parameter and buffer; ``_kept_state`` puts the originals back."""
    module.to(DTYPES[precision])
    yield


@contextlib.contextmanager
def _kept_state(module: nn.Module) -> Iterator[None]:
    """Puts the very tensors back that the module had, with the values that they had."""
    parameters = [(parameter, parameter.data, parameter.grad) for parameter in module.parameters()]
    buffers = [
        (owner, name, buffer, buffer.clone())
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    # A cast of the module would cast the gradients as well.
    for parameter, _, _ in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, data, gradient in parameters:
            parameter.data = data
            parameter.grad = gradient
        for owner, name, buffer, value in buffers:
            owner._buffers[name] = buffer
            buffer.copy_(value)


@contextlib.contextmanager
def _mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Training or evaluation mode with every dropout at rate 0."""
    modes = [(part, part.training) for part in module.modules()]
    rates = [(part, part.p) for part in module.modules() if isinstance(part, nn.modules.dropout._DropoutNd)]
    module.train(training)
    for part, _ in rates:
        part.p = 0.0
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for part, rate in rates:
            part.p = rate


@contextlib.contextmanager
def _watched(module: nn.Module, pair: LayerPair, recorder: Recorder, truth: Readable | None) -> Iterator[None]:
    """Records every call of one module and, with a truth, feeds it.

    Our hook sees the arguments before the module's own hooks do, and the result after them, so a hook of the module
    counts as part of it.
    """
    # Key, tensors as given, and their values then: the module may overwrite them.
    open_calls: list[tuple[tuple[str, int], list[Tensor], tuple[np.ndarray, ...]]] = []
    own_forward = vars(module).get("forward")
    forward = module.forward

    def counterpart(key: tuple[str, int]) -> Call | None:
        return None if truth is None else truth.left((pair.reference, key[1]))

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        key = recorder.begin(pair.port)
        given = flatten((args, kwargs), torch.is_tensor)[: pair.inputs]
        reference = None if truth is None else truth.entered((pair.reference, key[1]))
        fed_inputs = None if reference is None or not given else reference.inputs
        # A layer that is fed never sees what it was given, so it cannot overwrite it.
        kept = recorder.keeps or fed_inputs is None
        arrays = _arrays(pair, given, is_input=True, wide=recorder.wide, copy=kept)
        open_calls.append((key, given, arrays))
        recorder.enter(key, arrays)
        if fed_inputs is None:
            return None
        fed = [
            _tensor(pair.to_port(array, is_input=True), like)
            for array, like in zip(fed_inputs[: len(given)], given, strict=True)
        ]
        rest = flatten((args, kwargs), torch.is_tensor)[pair.inputs :]
        return replace((args, kwargs), torch.is_tensor, fed + rest)

    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return forward(*args, **kwargs)
        except Exception as exception:
            key, given, values = open_calls[-1]
            reference = counterpart(key)
            recorder.end(key, values, (), describe(exception))
            if reference is None or not given or any(isinstance(array, Sample) for array in reference.outputs):
                raise
            results = [_tensor(pair.to_port(_whole(array)), given[0]) for array in reference.outputs]
            return results[0] if len(results) == 1 else tuple(results)

    def after(_: nn.Module, args: tuple[Any, ...], result: Any) -> Any:
        key, _given, values = open_calls.pop()
        everything = flatten(result, torch.is_tensor)
        chosen = range(len(everything)) if pair.returned is None else pair.returned
        places = [place for place in chosen if place < len(everything)]
        returned = [everything[place] for place in places]
        if key not in recorder.calls:
            recorder.end(key, values, _arrays(pair, returned, wide=recorder.wide, copy=recorder.keeps))
        reference = counterpart(key)
        if reference is None or any(isinstance(array, Sample) for array in reference.outputs):
            return None
        count = min(len(reference.outputs), len(returned))
        for place, array, like in zip(places[:count], reference.outputs[:count], returned[:count], strict=True):
            everything[place] = _tensor(pair.to_port(_whole(array)), like)
        if truth is not None:
            truth.release((pair.reference, key[1]))
        return replace(result, torch.is_tensor, everything)

    handles = [
        module.register_forward_pre_hook(before, prepend=True, with_kwargs=True),
        module.register_forward_hook(after),
    ]
    module.forward = guarded
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        if own_forward is None:
            del module.forward
        else:
            module.forward = own_forward


def _array(tensor: Tensor, *, wide: bool = True, copy: bool = True) -> np.ndarray:
    if tensor.is_complex():
        raise TypeError("complex activations cannot be compared: let the layer return real and imaginary part")
    # Widening to float64 is exact, so one dtype serves all comparisons; the copy outlives in-place changes of the
    # tensor.
    dtype = torch.float64 if wide or tensor.dtype not in _NARROW else torch.float32
    return tensor.detach().to(device="cpu", dtype=dtype, copy=copy).numpy()


def _arrays(
    pair: LayerPair, tensors: list[Tensor], *, is_input: bool = False, wide: bool = True, copy: bool = True
) -> tuple[np.ndarray, ...]:
    return tuple(pair.to_reference(_array(tensor, wide=wide, copy=copy), is_input=is_input) for tensor in tensors)


def _whole(array: np.ndarray | Sample) -> np.ndarray:
    if isinstance(array, Sample):
        raise TypeError("a sample cannot feed a layer")
    return array


def _tensor(array: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.array(array)).to(device=like.device, dtype=like.dtype)

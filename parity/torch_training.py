"""A PyTorch module in training: its gradients, freely or layer by layer, and its steps, with numbers from outside."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.draws import Draws
from parity.layer_map import LayerMap, LayerPair
from parity.torch_side import DTYPES, PrecisionSetter, _array, _arrays, _kept_state, _tensor, cast_module
from parity.trace import Call, Recorder, Sample, describe, flatten, replace
from parity.training import MOMENTS, Backward, Inputs, Recipe, Snapshot, Targets, TensorPair

Gradients = dict[tuple[str, int], tuple[list[Tensor | None], list[Tensor | None]]]


class TorchTraining:
    """The port.

    Args:
        module: The module; it is left as it was found.
        layer_map: Which of its modules to watch, and under which names its dropouts draw.
        recipe: How it is trained.
        draws: Where its dropouts take their numbers from.
        set_precision: Context manager that puts the module into a precision; casts everything by default.
    """

    def __init__(
        self,
        module: nn.Module,
        layer_map: LayerMap,
        recipe: Recipe,
        draws: Draws,
        set_precision: PrecisionSetter | None = None,
    ) -> None:
        self.module = module
        self.layer_map = layer_map
        self.recipe = recipe
        self.draws = draws
        self.set_precision = set_precision or cast_module
        self.modules = dict(module.named_modules())

    def gradients(self, inputs: Inputs, targets: Targets, *, precision: str, truth: Backward | None = None) -> Backward:
        """One forward and one backward pass in training mode.

        Args:
            inputs: The model's arguments.
            targets: What the loss takes beside the output.
            precision: ``float64`` or ``float32``.
            truth: The reference's pass to feed the layers with: each gets the reference's inputs and hands on its
                outputs, and on the way back gets the reference's gradient and hands on what the reference's layer made
                of it. So one pass reads every layer in isolation, both ways.

        Returns:
            The pass, in the reference's activation layout. An exception ends it and stands in ``error``.
        """
        values, junctions = Recorder(), _Junctions()
        loss, error = None, ""
        with self._prepared(precision) as stack:
            # The module was cast; gradients belong to its parameters as they are now.
            parameters = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
            for pair in self.layer_map:
                if not pair.alias and pair.port in self.modules:
                    stack.enter_context(_watched(self.modules[pair.port], pair, values, junctions, truth))
            try:
                output = self.module(*self._arguments(inputs, precision))
                value = self.recipe.loss(output, self._targets(targets, precision))
                loss = float(value.detach())
                junctions.reach_all(value).backward()
            except Exception as exception:  # noqa: BLE001  whatever the port raises is a finding, not our failure
                error = describe(exception)
            found = {
                name: _array(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))
                for name, parameter in parameters.items()
            }
        gradients = Recorder()
        for key, (given, returned) in junctions.gradients(self.layer_map).items():
            gradients.begin(key[0])
            gradients.end(key, given, returned)
        return Backward(
            loss=loss,
            forward=values.trace({}, error),
            gradients=gradients.trace({}, error),
            parameters={} if error else found,
            error=error,
        )

    def run(
        self,
        batches: Callable[[int], tuple[Inputs, Targets]],
        steps: int,
        tensors: Sequence[TensorPair],
        *,
        precision: str,
    ) -> list[Snapshot]:
        """Trains with fresh optimizers. A step that raises ends the run; its snapshot says what was raised."""
        snapshots: list[Snapshot] = []
        optimizers: Sequence[torch.optim.Optimizer] = ()
        rates: tuple[float, ...] = ()
        with self._prepared(precision):
            for step in range(steps):
                self.draws.step = step
                inputs, targets = batches(step)
                try:
                    if not snapshots:
                        optimizers = self.recipe.optimizers(self.module)
                    rates = _set_rates(optimizers, self.recipe.schedule(step))
                    for optimizer in optimizers:
                        optimizer.zero_grad(set_to_none=True)
                    output = self.module(*self._arguments(inputs, precision))
                    loss = self.recipe.loss(output, self._targets(targets, precision))
                    loss.backward()
                    for optimizer in optimizers:
                        optimizer.step()
                except Exception as exception:  # noqa: BLE001  a finding, not our failure
                    snapshots.append(self._snapshot(step + 1, 0.0, rates, optimizers, tensors, describe(exception)))
                    break
                snapshots.append(self._snapshot(step + 1, float(loss.detach()), rates, optimizers, tensors))
        return snapshots

    def steps(
        self, gradients: Sequence[Mapping[str, np.ndarray]], tensors: Sequence[TensorPair], *, precision: str
    ) -> list[Snapshot]:
        """Optimizer steps along given gradients, one {parameter name: array in the port's layout} a step.

        A parameter that no pair knows gets no gradient.
        """
        known = {pair.port for pair in tensors}
        snapshots: list[Snapshot] = []
        optimizers: Sequence[torch.optim.Optimizer] = ()
        rates: tuple[float, ...] = ()
        with self._prepared(precision):
            parameters = dict(self.module.named_parameters())
            for step, given in enumerate(gradients):
                for name, parameter in parameters.items():
                    if name not in known:
                        parameter.grad = None
                        continue
                    array = given.get(name)
                    # A parameter too many, too few or of another shape is what the comparison then finds.
                    fits = array is not None and array.shape == tuple(parameter.shape)
                    gradient = torch.from_numpy(np.array(array)) if fits else torch.zeros_like(parameter)
                    parameter.grad = gradient.to(parameter)
                try:
                    if not snapshots:
                        optimizers = self.recipe.optimizers(self.module)
                    rates = _set_rates(optimizers, self.recipe.schedule(step))
                    for optimizer in optimizers:
                        optimizer.step()
                except Exception as exception:  # noqa: BLE001  a finding, not our failure
                    snapshots.append(self._snapshot(step + 1, 0.0, rates, optimizers, tensors, describe(exception)))
                    break
                snapshots.append(self._snapshot(step + 1, 0.0, rates, optimizers, tensors))
        return snapshots

    @contextlib.contextmanager
    def _prepared(self, precision: str) -> Iterator[contextlib.ExitStack]:
        """Training mode in a precision with fed dropouts, and afterwards the module as it was found."""
        modes = [(part, part.training) for part in self.module.modules()]
        # Training writes into parameters, which are kept by their values, not only by their tensors.
        kept = [(parameter, parameter.detach().clone()) for parameter in self.module.parameters()]
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(_kept_state(self.module))
                stack.enter_context(self.set_precision(self.module, precision))
                stack.enter_context(fed_dropout(self.module, self.layer_map, self.draws))
                stack.enter_context(torch.enable_grad())
                self.module.train()
                yield stack
        finally:
            with torch.no_grad():
                for parameter, value in kept:
                    parameter.copy_(value)
            for part, mode in modes:
                part.training = mode

    def _snapshot(
        self,
        step: int,
        loss: float,
        rates: tuple[float, ...],
        optimizers: Sequence[torch.optim.Optimizer],
        tensors: Sequence[TensorPair],
        error: str = "",
    ) -> Snapshot:
        state = self.module.state_dict()
        names = {id(parameter): name for name, parameter in self.module.named_parameters()}
        moments: dict[str, dict[str, np.ndarray]] = {moment: {} for moment in MOMENTS}
        counters = []
        for optimizer in optimizers:
            counts = set()
            for parameter, slots in optimizer.state.items():
                for moment in MOMENTS:
                    if moment in slots:
                        moments[moment][names[id(parameter)]] = _array(slots[moment])
                counts.add(int(slots.get("step", -1)))
            # Parameters that count differently have no common counter, and none is what the comparison then finds.
            counters.append(counts.pop() if len(counts) == 1 else -1)
        trainable = {pair.port for pair in tensors if pair.trainable}
        values = {pair.port: _array(state[pair.port]) for pair in tensors if pair.port in state}
        # What is trained and has no pair is kept as well, for the comparison to find.
        known = {pair.port for pair in tensors}
        unknown = {n: _array(p) for n, p in self.module.named_parameters() if p.requires_grad and n not in known}
        return Snapshot(
            step=step,
            loss=loss,
            learning_rates=rates,
            weights={name: value for name, value in values.items() if name in trainable} | unknown,
            statistics={name: value for name, value in values.items() if name not in trainable},
            exp_avg=moments["exp_avg"],
            exp_avg_sq=moments["exp_avg_sq"],
            counters=tuple(counters),
            error=error,
        )

    @property
    def _device(self) -> torch.device | None:
        return next((tensor.device for tensor in (*self.module.parameters(), *self.module.buffers())), None)

    def _arguments(self, inputs: Inputs, precision: str) -> list[Tensor]:
        tensors = [torch.from_numpy(np.array(array)).to(self._device) for array in inputs]
        return [
            tensor.to(DTYPES[precision]).requires_grad_() if tensor.is_floating_point() else tensor
            for tensor in tensors
        ]

    def _targets(self, targets: Targets, precision: str) -> dict[str, Tensor]:
        dtype = torch.float64 if precision == "float64" else torch.float32
        tensors = {name: torch.from_numpy(np.array(array)).to(self._device) for name, array in targets.items()}
        return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


@contextlib.contextmanager
def fed_dropout(module: nn.Module, layer_map: LayerMap, draws: Draws) -> Iterator[None]:
    """Lets every dropout of a module take its mask from ``draws``; all else about it stays its own.

    The mask goes by the reference's name of the innermost mapped module that is running and by how often that one has
    dropped before in the pass. A dropout outside of all mapped modules raises.
    """
    running: list[LayerPair] = []
    counts: dict[str, int] = {}

    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0.0:
            return input
        if not running:
            raise RuntimeError("a dropout outside of every mapped layer")
        pair = running[-1]
        index = counts.get(pair.reference, 0)
        counts[pair.reference] = index + 1
        shape = pair.to_reference(np.empty(input.shape, dtype=bool)).shape
        keep = pair.to_port(draws.keep(pair.reference, index, shape, p))
        mask = torch.from_numpy(np.ascontiguousarray(keep)).to(device=input.device, dtype=input.dtype)
        return input.mul_(mask / (1 - p)) if inplace else input * (mask / (1 - p))

    def entering(pair: LayerPair) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if pair.port == "":
                counts.clear()
            running.append(pair)

        return hook

    def leaving(*_: Any) -> None:
        running.pop()

    parts = dict(module.named_modules())
    pairs = [pair for pair in layer_map if not pair.alias and pair.port in parts]
    handles = []
    for pair in pairs:
        handles.append(parts[pair.port].register_forward_pre_hook(entering(pair), prepend=True))
        handles.append(parts[pair.port].register_forward_hook(leaving, always_call=True))
    try:
        with mock.patch.object(F, "dropout", dropout):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Junction(torch.autograd.Function):
    """Hands a tensor on, and its gradient back; either may be exchanged for the reference's on the way."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, value: Tensor | None, gradient: Tensor | None, seen: list[Any]) -> Tensor:
        ctx.gradient, ctx.seen = gradient, seen
        return tensor.clone() if value is None else value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (arriving,) = gradients
        ctx.seen.append(arriving.detach().clone())
        return (arriving if ctx.gradient is None else ctx.gradient), None, None, None


class _Reach(torch.autograd.Function):
    """Adds nothing to a loss, but lets its backward pass reach a tensor that the loss does not depend on."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return (gradients[0], *(torch.zeros_like(tensor) for tensor in ctx.saved_tensors))


class _Junctions:
    """The junctions of one pass: before and after every call."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], tuple[list[list[Tensor]], list[list[Tensor]]]] = {}
        self._shapes: dict[tuple[str, int], tuple[list[Tensor], list[Tensor]]] = {}
        self._ends: list[Tensor] = []

    def open(self, key: tuple[str, int]) -> None:
        """Makes room for a call."""
        self._seen[key], self._shapes[key] = ([], []), ([], [])

    def join(
        self, key: tuple[str, int], side: int, tensor: Tensor, value: Tensor | None, gradient: Tensor | None
    ) -> Tensor:
        """Puts a junction behind a tensor; ``side`` 0 is before the call, 1 after it."""
        if not tensor.is_floating_point():
            return tensor
        if not tensor.requires_grad:
            # A constant has a gradient as well, and the reference tells it.
            tensor = tensor.detach().requires_grad_()
        seen: list[Tensor] = []
        self._seen[key][side].append(seen)
        joined = _Junction.apply(tensor, value, gradient, seen)
        self._shapes[key][side].append(joined.detach())
        self._ends.append(joined)
        return joined

    def reach_all(self, loss: Tensor) -> Tensor:
        """The loss, made to reach every junction: else one detached tensor would leave all before it unread."""
        return _Reach.apply(loss, *self._ends)

    def gradients(
        self, layer_map: LayerMap
    ) -> dict[tuple[str, int], tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]]:
        """What arrived at each junction, in the reference's layout; zero where nothing did."""
        pairs = {pair.port: pair for pair in layer_map if not pair.alias}

        def arrays(key: tuple[str, int], side: int) -> tuple[np.ndarray, ...]:
            pair = pairs[key[0]]
            return tuple(
                pair.to_reference(_array(seen[0] if seen else torch.zeros_like(like)))
                for seen, like in zip(self._seen[key][side], self._shapes[key][side], strict=True)
            )

        return {key: (arrays(key, 0), arrays(key, 1)) for key in self._seen}


@contextlib.contextmanager
def _watched(
    module: nn.Module, pair: LayerPair, values: Recorder, junctions: _Junctions, truth: Backward | None
) -> Iterator[None]:
    """Records every call of one module and its gradients and, with a truth, feeds it both ways."""
    open_calls: list[tuple[tuple[str, int], tuple[np.ndarray, ...]]] = []

    def fed(key: tuple[str, int], tensors: list[Tensor], side: int) -> list[Tensor]:
        reference: Call | None = None
        gradient: Call | None = None
        if truth is not None:
            reference = truth.forward.calls.get((pair.reference, key[1]))
            gradient = truth.gradients.calls.get((pair.reference, key[1]))
        joined = []
        for position, tensor in enumerate(tensors):
            value = _pick(reference, side, position, tensor, pair)
            back = _pick(gradient, side, position, tensor, pair)
            joined.append(junctions.join(key, side, tensor, value, back))
        return joined

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        key = values.begin(pair.port)
        junctions.open(key)
        tensors = flatten((args, kwargs), torch.is_tensor)
        given = fed(key, tensors[: pair.inputs], 0)
        open_calls.append((key, _arrays(pair, given)))
        return replace((args, kwargs), torch.is_tensor, given + tensors[pair.inputs :])

    def after(_: nn.Module, args: tuple[Any, ...], result: Any) -> Any:
        key, given = open_calls.pop()
        returned = flatten(result, torch.is_tensor)
        values.end(key, given, _arrays(pair, returned))
        return replace(result, torch.is_tensor, fed(key, returned, 1))

    handles = [
        module.register_forward_pre_hook(before, prepend=True, with_kwargs=True),
        module.register_forward_hook(after),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _pick(call: Call | None, side: int, position: int, like: Tensor, pair: LayerPair) -> Tensor | None:
    """The reference's tensor for a junction; None where it has none of that shape, which the comparison then finds."""
    if call is None:
        return None
    arrays = (call.inputs or ()) if side == 0 else call.outputs
    if position >= len(arrays) or isinstance(arrays[position], Sample):
        return None
    tensor = _tensor(pair.to_port(np.asarray(arrays[position])), like)
    return tensor if tensor.shape == like.shape else None


def _set_rates(optimizers: Sequence[torch.optim.Optimizer], rates: Sequence[float]) -> tuple[float, ...]:
    """Sets the learning rates and returns them in the precision of the parameters, in which Keras holds them."""
    held = []
    for optimizer, rate in zip(optimizers, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        wide = all(p.dtype == torch.float64 for group in optimizer.param_groups for p in group["params"])
        held.append(float(rate) if wide else float(np.float32(rate)))
    return tuple(held)

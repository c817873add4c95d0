"""Names for what a PyTorch module computes without a module: functional operations, found with ``torch.fx``.

``F.relu(x)``, ``a + b``, ``torch.cat``, ``x[:, 3:-3]`` in a ``forward`` cannot be watched, because nothing but the
result of the whole ``forward`` passes by. Here each module that contains others is traced by itself, with its children
as they are, and gets a twin in which each such operation is a module of its own, ``tower.1.relu``. Parameters and
buffers are the very same objects. A module whose ``forward`` cannot be traced stays as it is, and is named.
"""

import copy
import dataclasses
import inspect
import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from parity.trace import describe

_FUNCTIONS = {
    F.relu: "activation", F.gelu: "activation", F.silu: "activation", F.elu: "activation", F.leaky_relu: "activation",
    F.softplus: "activation", F.softmax: "activation", F.log_softmax: "activation", F.sigmoid: "activation",
    F.hardsigmoid: "activation", F.hardswish: "activation", F.mish: "activation", F.selu: "activation",
    F.relu6: "activation", F.logsigmoid: "activation", F.softsign: "activation", F.tanh: "activation",
    torch.relu: "activation", torch.sigmoid: "activation", torch.tanh: "activation",
    torch.softmax: "activation", torch.exp: "activation",
    operator.add: "merge", operator.iadd: "merge", operator.sub: "merge", operator.mul: "merge", torch.add: "merge",
    torch.sub: "merge", torch.mul: "merge", torch.cat: "merge", torch.concat: "merge", torch.maximum: "merge",
    F.max_pool1d: "pool", F.max_pool2d: "pool", F.avg_pool1d: "pool", F.avg_pool2d: "pool", torch.mean: "pool",
    torch.amax: "pool", F.pad: "pad", F.interpolate: "upsample",
}  # fmt: skip
_METHODS = {
    "relu": "activation", "sigmoid": "activation", "tanh": "activation", "softmax": "activation", "exp": "activation",
    "add": "merge", "mul": "merge", "sub": "merge", "mean": "pool", "amax": "pool",
}  # fmt: skip


class Operation(nn.Module):
    """One functional operation as a module.

    Args:
        kind: As ``parity.torch_kinds`` names kinds.
        call: What is called.
    """

    def __init__(self, kind: str, call: Any) -> None:
        super().__init__()
        self.kind = kind
        self.call = call

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls it."""
        return self.call(*args, **kwargs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Named:
    """A port whose operations have names.

    Attributes:
        module: The twin: the port's own parameters and leaf modules, and modules for the operations.
        untraced: {path: why its operations have no names}.
    """

    module: nn.Module
    untraced: Mapping[str, str]


def name_operations(port: nn.Module) -> Named:
    """Gives every functional operation of a port a name, where ``torch.fx`` can trace it."""
    untraced: dict[str, str] = {}
    return Named(module=_twin(port, "", untraced, {}), untraced=untraced)


def _twin(module: nn.Module, path: str, untraced: dict[str, str], made: dict[int, nn.Module]) -> nn.Module:
    if id(module) in made:
        return made[id(module)]
    if path and not any(module.children()):
        return module  # a layer, which is read as a whole
    start = f"{path}." if path else ""
    children = {name: _twin(child, f"{start}{name}", untraced, made) for name, child in module.named_children()}
    twin: nn.Module
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        twin = module
    elif type(module) in (nn.Sequential, nn.ModuleList, nn.ModuleDict):
        twin = type(module)()
        for name, child in children.items():
            twin.add_module(name, child)
    else:
        twin = _traced(module, children, path, untraced)
    made[id(module)] = twin
    return twin


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Every child is called as it is."""
        return True


class _Twin(nn.Module):
    """A module that runs a graph; calls may leave out arguments that have defaults, as of any function."""

    def __init__(self, graph: fx.Graph, signature: inspect.Signature) -> None:
        super().__init__()
        self.graph = graph
        self.signature = signature

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return fx.Interpreter(self, graph=self.graph).run(*bound.arguments.values())


def _traced(module: nn.Module, children: Mapping[str, nn.Module], path: str, untraced: dict[str, str]) -> nn.Module:
    """A twin of one module, or the module itself with the reason."""
    if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        untraced[path] = "it has hooks or a patched forward, which a graph would leave out"
        return module
    graph, reason = _graph_of(module)
    if graph is None:
        untraced[path] = reason
        return _with_children(module, children)
    twin = _Twin(graph, inspect.signature(module.forward))
    twin.training = module.training
    for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
        twin.register_parameter(name, parameter)
    for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
        twin.register_buffer(name, buffer)
    for name, child in children.items():
        twin.add_module(name, child)
    called: set[str] = set()
    for node in graph.nodes:
        if node.op == "call_module":
            part = twin.get_submodule(node.target)
            if node.target in called and not any(part.state_dict()):
                # One nn.ReLU that is called in five places is five operations.
                node.target = _add(twin, node.target, copy.deepcopy(part))
            called.add(node.target)
        elif kind := _kind(node):
            name = "crop" if kind == "crop" else node.name
            operation = Operation(kind, node.target if node.op == "call_function" else _Method(node.target))
            node.op, node.target = "call_module", _add(twin, name, operation)
    return twin


def _with_children(module: nn.Module, children: Mapping[str, nn.Module]) -> nn.Module:
    """A module that calls the children's twins; itself where none has one."""
    if all(child is children[name] for name, child in module.named_children()):
        return module
    twin = copy.copy(module)
    vars(twin)["_modules"] = {**module._modules, **children}
    return twin


def _graph_of(module: nn.Module) -> tuple[fx.Graph | None, str]:
    parameters = list(inspect.signature(module.forward).parameters.values())
    if any(parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) for parameter in parameters):
        return None, "its forward takes any number of arguments"
    if any(parameter.default is None or isinstance(parameter.default, bool | str) for parameter in parameters):
        # Whether such an argument is there decides what is computed, and a graph takes every argument for given.
        return None, "its forward has optional arguments that may choose what it computes"
    before, graphs = dict(vars(module)), []
    modes = [(part, part.training) for part in module.modules()]
    try:
        for training in (True, False):
            module.train(training)
            graphs.append(_Tracer().trace(module))
    except Exception as exception:  # noqa: BLE001  control flow that depends on values: whatever it raises is the reason
        return None, describe(exception)
    finally:
        for part, mode in modes:
            part.training = mode
        # Constant tensors: the tracer hangs them on the module.
        constants = [name for name in vars(module) if name not in before]
        for name in constants:
            delattr(module, name)
    if constants:
        return None, "its forward makes tensors of its own, whose precision a graph would not change"
    if graphs[0].python_code("self").src != graphs[1].python_code("self").src:
        return None, "its forward differs between training and evaluation, and a graph holds one of them"
    return graphs[1], ""


class _Method:
    """A method of a tensor as a function."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        return getattr(tensor, self.name)(*args, **kwargs)


def _kind(node: fx.Node) -> str:
    """Kind of a functional operation; empty for what only changes shapes or is no operation on tensors."""
    if node.op == "call_function":
        if node.target is operator.getitem and any(isinstance(part, slice) for part in _parts(node.args[1])):
            return "crop"
        return _FUNCTIONS.get(node.target, "")
    return _METHODS.get(str(node.target), "") if node.op == "call_method" else ""


def _parts(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _add(twin: nn.Module, wanted: str, part: nn.Module) -> str:
    """Adds a part under the wanted name, or with a number where that is taken."""
    name, number = wanted.replace(".", "_"), 0
    while hasattr(twin, name):
        number += 1
        name = f"{wanted.replace('.', '_')}_{number}"
    twin.add_module(name, part)
    return name

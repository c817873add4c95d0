"""A module's code and settings as Python text that needs nothing but PyTorch, NumPy and the standard library.

Only the definitions that a class needs are taken, from the modules in which they stand, without their annotations'
imports. What cannot be written so is refused with the reason; nothing is left out without a word.
"""

import ast
import copy
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import math
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

AVAILABLE = frozenset({"torch", "numpy"}) | sys.stdlib_module_names
"""Packages that a script may import."""

_BOOKKEEPING = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class NotSelfContained(ValueError):
    """Something that a script cannot hold; the message says what."""


class Sources:
    """Definitions, each after those that it needs.

    Of a module's class only what runs when it is called is taken: ``forward`` and the methods that this reaches.

    Args:
        modules: What is to be written; the packages that define its classes may be copied from.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        classes = {base for module in modules for base in type(module).__mro__}
        self.packages = frozenset(base.__module__.partition(".")[0] for base in classes) - AVAILABLE
        self._methods = _reached([base for base in classes if base.__module__.partition(".")[0] in self.packages])
        self.imports: dict[str, None] = {}
        self.definitions: dict[str, str] = {}
        self._origins: dict[str, str] = {}
        self._taken: set[tuple[str, str]] = set()

    @property
    def text(self) -> str:
        """All definitions; a statement that makes several of them once."""
        return "\n\n\n".join(dict.fromkeys(self.definitions.values()))

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules that code was taken from."""
        return tuple(dict.fromkeys(self._origins.values()))

    def add(self, value: Any) -> str:
        """Takes up a class or a function with all that it needs; returns the expression that names it.

        Raises:
            NotSelfContained: It is no definition of a module's top level, or needs another package.
        """
        name, module = getattr(value, "__qualname__", ""), getattr(value, "__module__", None)
        if module is None:  # a function that torch has from C++
            name, module = value.__name__, "torch"
        package = module.partition(".")[0]
        if package in AVAILABLE:
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part, None)
            if found is None:
                name = getattr(value, "__name__", name)
                found = getattr(importlib.import_module(module), name, None)
            if found is not value:
                raise NotSelfContained(f"a {type(value).__name__} is not what {module}.{name} names")
            if package == "builtins":
                return name
            self.imports[f"import {module}"] = None
            return f"{module}.{name}"
        if not name.isidentifier():
            raise NotSelfContained(f"{name or value!r} stands inside another definition, not at the top of a module")
        self._take(module, name, needed_by=name)
        return name

    def _take(self, module: str, name: str, *, needed_by: str) -> None:
        if (module, name) in self._taken:
            return
        self._taken.add((module, name))
        statements = _top_level(module)
        if name not in statements:
            raise NotSelfContained(f"{needed_by} needs {module}.{name}, which no statement at its top level makes")
        statement, text = statements[name]
        if isinstance(statement, ast.Import | ast.ImportFrom):
            self._take_import(module, statement, name, needed_by)
            return
        if self._origins.setdefault(name, module) != module:
            raise NotSelfContained(f"{module} and {self._origins[name]} both define {name}")
        if isinstance(statement, ast.ClassDef) and issubclass(_value(module, name), nn.Module):
            statement, text = _only(self._methods, statement, text)
        for needed in _names(statement):
            if needed in statements and needed != name:
                self._take(module, needed, needed_by=name)
        self.definitions[name] = text

    def _take_import(self, module: str, statement: ast.Import | ast.ImportFrom, name: str, needed_by: str) -> None:
        alias = next(alias for alias in statement.names if (alias.asname or alias.name.partition(".")[0]) == name)
        if isinstance(statement, ast.Import):
            if alias.name.partition(".")[0] not in AVAILABLE:
                raise NotSelfContained(f"{needed_by} needs the package {alias.name}")
            self.imports[ast.unparse(ast.Import(names=[alias]))] = None
            return
        package = module.rpartition(".")[0] if statement.level else None
        source = importlib.util.resolve_name("." * statement.level + (statement.module or ""), package)
        if source.partition(".")[0] in AVAILABLE:
            self.imports[ast.unparse(ast.ImportFrom(module=source, names=[alias], level=0))] = None
            return
        if source.partition(".")[0] not in self.packages:
            raise NotSelfContained(f"{needed_by} needs the package {source.partition('.')[0]}")
        self._take(source, alias.name, needed_by=needed_by)
        if name != alias.name:
            self.definitions[name] = f"{name} = {alias.name}"

    def expression(self, value: Any) -> str:
        """A setting as Python text.

        Raises:
            NotSelfContained: It is neither plain data nor a class or function that can be copied.
        """
        if isinstance(value, float) and not math.isfinite(value):
            return f'float("{value}")'
        if value is None or type(value) in (bool, int, float, str, bytes):
            return repr(value)
        if isinstance(value, torch.dtype):
            self.imports["import torch"] = None
            return repr(value)
        if type(value) is list or isinstance(value, torch.Size):
            return f"[{', '.join(map(self.expression, value))}]"
        if type(value) is tuple:
            return f"({', '.join(map(self.expression, value))}{',' if len(value) == 1 else ''})"
        if isinstance(value, Mapping):
            return f"{{{', '.join(f'{self.expression(key)}: {self.expression(value[key])}' for key in value)}}}"
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = (field.name for field in dataclasses.fields(value) if field.init)
            given = ", ".join(f"{name}={self.expression(getattr(value, name))}" for name in fields)
            return f"{self.add(type(value))}({given})"
        if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
            return self.add(value)
        raise NotSelfContained(f"a {type(value).__name__} is no plain data")


def settings(module: nn.Module) -> dict[str, Any]:
    """What its constructor and whoever came later put on a module, beside parameters, buffers and parts.

    Raises:
        NotSelfContained: The module has hooks.
    """
    if any(getattr(module, name) for name in _HOOKS):
        raise NotSelfContained(f"a {type(module).__name__} has hooks")
    return {name: value for name, value in vars(module).items() if name not in _BOOKKEEPING}


def method_of(module: nn.Module, value: Any) -> Callable[..., Any] | None:
    """The function of a method that was put on this very module; None if it is anything else."""
    return value.__func__ if isinstance(value, types.MethodType) and value.__self__ is module else None


@functools.cache
def _top_level(module: str) -> dict[str, tuple[ast.stmt, str]]:
    """Every name that a statement at the top of a module binds, and that statement with its text."""
    try:
        text = inspect.getsource(sys.modules.get(module) or importlib.import_module(module))
    except (OSError, TypeError, ImportError) as error:
        raise NotSelfContained(f"the source of {module} cannot be read: {error}") from None
    lines, found = text.splitlines(), {}
    for statement in ast.parse(text).body:
        first = min([statement.lineno, *(mark.lineno for mark in getattr(statement, "decorator_list", []))])
        for name in _bound(statement):
            found[name] = (statement, "\n".join(lines[first - 1 : statement.end_lineno]))
    return found


def _value(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _reached(classes: Sequence[type]) -> frozenset[str]:
    """Names of the methods that ``forward`` reaches, in any of some classes."""
    methods: dict[str, list[ast.AST]] = {}
    for base in classes:
        statement, _ = _top_level(base.__module__).get(base.__qualname__, (None, ""))
        for node in statement.body if isinstance(statement, ast.ClassDef) else []:
            if isinstance(node, ast.FunctionDef):
                methods.setdefault(node.name, []).append(node)
    reached, waiting = set(), {"forward"}
    while waiting:
        name = waiting.pop()
        reached.add(name)
        used = (node for method in methods.get(name, []) for node in ast.walk(method))
        waiting |= {node.attr for node in used if isinstance(node, ast.Attribute)} & methods.keys() - reached
    return frozenset(reached)


def _only(methods: frozenset[str], statement: ast.ClassDef, text: str) -> tuple[ast.ClassDef, str]:
    """A class without its other methods."""
    lines = text.splitlines()
    offset = statement.end_lineno - len(lines) + 1 if statement.end_lineno else 1
    left = [node for node in statement.body if isinstance(node, ast.FunctionDef) and node.name not in methods]
    for node in left:
        first = min([node.lineno, *(mark.lineno for mark in node.decorator_list)])
        for line in range(first, (node.end_lineno or node.lineno) + 1):
            lines[line - offset] = ""
    kept = [node for node in statement.body if node not in left]
    if not kept:
        lines.append("    pass")
    squeezed = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip()
    pruned = copy.copy(statement)
    pruned.body = kept
    return pruned, squeezed


def _bound(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
    elif isinstance(statement, ast.Import | ast.ImportFrom):
        for alias in statement.names:
            yield alias.asname or alias.name.partition(".")[0]
    elif isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for target in targets:
            for node in ast.walk(target):
                if isinstance(node, ast.Name):
                    yield node.id


def _names(node: ast.AST) -> Iterator[str]:
    """Names that code uses when it runs, which annotations do not."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.Name):
                yield child.id
            if isinstance(child, ast.AST):
                yield from _names(child)

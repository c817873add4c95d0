"""Scripts that show one layer's difference with nothing but NumPy and PyTorch.

Each holds the layer's code, settings and weights, the smallest input on which it fails, what was expected and what the
parts of the layer return there. It repeats the isolated reading: a part that has a reading of its own is replaced by
one that returns the reference's numbers, so what differs is the layer's own.
"""

import base64
import contextlib
import dataclasses
import io
import re
import runpy
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parity.isolation import IsolatedLayer
from parity.ladder import TRAINING_GATES
from parity.layer_map import LayerMap, LayerPair
from parity.records import Comparison, Culprit, Reading, Result, Status
from parity.reference import LiveReference
from parity.sources import NotSelfContained, Sources, method_of, settings
from parity.tolerances import TABLE
from parity.torch_side import TorchSide
from parity.trace import Trace, describe, flatten, replace

WRITTEN_OUT = 400
"""Numbers that stand in the script as text, if there are no more."""
EMBEDDED = 300_000
"""Bytes of a compressed archive that stand in the script; a larger one lies beside it."""
LONGEST_NAME = 120
TEMPLATE = Path(__file__).with_name("repro_template.txt")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """Port and reference of one case, as they were compared."""

    port: TorchSide
    live: LiveReference
    layer_map: LayerMap


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One array that the script compares."""

    what: str
    expected: np.ndarray
    limit: float
    peak: float


Benches = Callable[[str], contextlib.AbstractContextManager[Bench]]
"""From the name of a case to its bench. Raises LookupError for a case that has none."""


def write_repros(result: Result, benches: Benches, folder: Path) -> Result:
    """Writes a script for each culprit, and notes for which there is none.

    Args:
        result: What was found.
        benches: Makes port and reference of a case again.
        folder: Where to write; made when there is something to write.

    Returns:
        The result, whose culprits name their scripts by the path from the folder's parent.
    """
    rows, taken = [], set()
    for culprit in result.culprit_rows:
        name = _file_name(culprit.port, taken)
        try:
            _write_one(result, culprit, benches, folder / name)
        except (NotSelfContained, LookupError) as error:
            rows.append(dataclasses.replace(culprit, no_script=" ".join(str(error).split())))
        except Exception as exception:  # noqa: BLE001  the finding stands without its script
            rows.append(dataclasses.replace(culprit, no_script=describe(exception)))
        else:
            taken.add(name.lower())
            rows.append(dataclasses.replace(culprit, script=f"{folder.name}/{name}"))
    return dataclasses.replace(result, culprit_rows=tuple(rows))


def remove_repros(folder: Path) -> None:
    """Removes the scripts of an earlier run, which would speak of layers that may be right by now.

    A script is known by its first text, an archive by the name of its script; whatever else lies there is the user's.
    """
    first = TEMPLATE.read_text(encoding="utf-8").partition("<<")[0]
    for path in [*folder.glob("*.py")]:
        if path.is_file() and path.read_text(encoding="utf-8", errors="replace").startswith(first):
            path.unlink()
            path.with_suffix(".npz").unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something of the user's lies there
        folder.rmdir()


def _file_name(layer: str, taken: Iterable[str]) -> str:
    """A layer's name as that of a file on any system; ``repro_copy.py`` hides no module of the standard library."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", layer)[:LONGEST_NAME].strip("._-") or "layer"
    name, number = f"repro_{safe}.py", 1
    while name.lower() in taken:
        number += 1
        name = f"repro_{safe}_{number}.py"
    return name


def _write_one(result: Result, culprit: Culprit, benches: Benches, path: Path) -> None:
    row = _reading(result, culprit)
    with benches(row.case) as bench:
        pair = next((pair for pair in bench.layer_map if pair.port == row.layer and not pair.alias), None)
        if pair is None:
            raise LookupError(f"the layer map has no row {row.layer}")
        # What a layer handed to a part of its own counts against itself; which of its calls that was is not recorded.
        call = int(row.port.partition("@")[2] or 0) if row.port.partition("@")[0] == row.layer else 0
        layer = IsolatedLayer(
            bench.port, bench.live, pair, bench.layer_map, precision=row.precision, mode=row.mode, call=call
        )
        title = f"{culprit.port} is not what {culprit.reference} of the reference is"
        write_script(layer, path, title=title, found=_found(culprit))


def _reading(result: Result, culprit: Culprit) -> Comparison:
    """The failed reading that says most plainly what is wrong with a culprit."""
    failed = [row for row in result.comparisons if row.status is not Status.PASS]
    named = [row for row in failed if row.layer == culprit.worst.layer]
    isolated = [row for row in named if row.reading in (Reading.ISOLATED, Reading.STATE) and row.gate == "layers"]
    if not culprit.certain:
        raise LookupError("only end-to-end readings exist, and they do not tell whose difference it is")
    if not isolated:
        gates = ", ".join(dict.fromkeys(row.gate for row in named))
        kind = "in training" if {row.gate for row in named} <= set(TRAINING_GATES) else "by a copied value"
        raise LookupError(f"it fails {kind} ({gates}); fed with the reference's inputs, it computes what it should")
    order = ("float64", "float32", "bfloat16")
    cases = sorted(isolated, key=lambda row: ("," in row.case, row.mode != "evaluation"))
    return min(cases, key=lambda row: order.index(row.precision) if row.precision in order else len(order))


def _found(culprit: Culprit) -> str:
    row = culprit.worst
    error = "" if row.error is None else f" relative error {row.error:.3g}, limit {row.limit:.3g}."
    return (
        f"The worst reading: {row.quantity}, {' '.join(filter(None, (row.case, row.precision, row.mode)))}; "
        f"{row.status}.{error} {row.detail}".rstrip()
    )


def write_script(layer: IsolatedLayer, path: Path, *, title: str, found: str) -> None:
    """Shrinks a layer's input and writes the script; runs it once, for a script that does not fail is none.

    Args:
        layer: The layer.
        path: File to write; an archive of the same name beside it if there are many numbers.
        title: First line of the script.
        found: What the harness found, in words.

    Raises:
        LookupError: Called alone, the layer does not fail.
        NotSelfContained: Its code cannot be written down.
    """
    part, rows = layer.shrink()
    port, live = layer.sides(part)
    training = layer.mode == "training"
    truth = live.trace(live.precisions[0], training=training, reading=Reading.ACCUMULATED)
    children = _children(layer.layer_map, port.modules)
    with _results(children, port.modules) as results:
        port.trace(live.inputs, precision=layer.precision, training=training, truth=truth)
    writer = _Writer(layer.module)
    writer.sources.add(type(layer.module))
    with port.prepared(port.module, layer.precision, training):
        given = {
            name: writer.given(pair, name, port.modules[name], truth, results[name], rows, layer)
            for name, pair in children.items()
        }
        built = writer.module(layer.module, "", given)
        args, kwargs = port.arguments.structure
        inputs = [layer.pair.to_port(array) for array in _inputs(truth, "", 0)[: port.mapped]]
        tensors = port.arguments.tensors
        fed = [
            torch.from_numpy(np.array(array)).to(like.dtype)
            for array, like in zip(inputs, tensors[: len(inputs)], strict=True)
        ]
        args, kwargs = replace((args, kwargs), torch.is_tensor, [*fed, *tensors[len(inputs) :]])
        call = [writer.structure(value, f"input {index}" if index else "input") for index, value in enumerate(args)]
        call += [f"{name}={writer.structure(value, name)}" for name, value in kwargs.items()]
    outputs = [writer.check(check) for check in _output_checks(layer, truth, rows)]
    state = [f"({name!r}, {writer.check(check)})" for name, check in _state_checks(layer, truth, rows)]
    count, (start, stop) = part.examples[1] - part.examples[0], part.positions
    part_text = f"{count} of {part.batch} examples, positions {start} to {stop - 1} of {part.length}"
    text = writer.script(
        title=title,
        found=found,
        part=part_text,
        built=built,
        call=call,
        outputs=outputs,
        state=state,
        training=training,
        path=path,
    )
    _write_failing(path, text)


def write_example(
    module: nn.Module,
    call: Callable[[], Any],
    expected: Mapping[str, np.ndarray],
    path: Path,
    *,
    title: str,
    found: str,
    tolerance: str,
    training: bool,
) -> None:
    """Writes the script of one example of one layer, with all its parts; runs it once.

    Args:
        module: The layer, in the mode and with the weights of the example.
        call: Calls it.
        expected: What should come of it, outputs before statistics: {name: array}.
        path: File to write.
        title: First line of the script.
        found: How it was found, in words.
        tolerance: Row of the table of tolerances.
        training: Whether it trains.

    Raises:
        LookupError: The script does not fail, or the layer was not called.
        NotSelfContained: The layer's code cannot be written down.
    """
    writer = _Writer(module)
    built = writer.module(module, "", {})
    seen: list[Any] = []
    handle = module.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    try:
        with torch.no_grad(), contextlib.suppress(Exception, SystemExit):  # what it raises, the script will raise
            call()
    finally:
        handle.remove()
    if not seen:
        raise LookupError("the layer is not called")
    args, kwargs = seen[0]
    texts = [writer.structure(value, f"input {index}" if index else "input") for index, value in enumerate(args)]
    texts += [f"{name}={writer.structure(value, name)}" for name, value in kwargs.items()]
    row, statistics = TABLE[tolerance], dict(module.named_buffers())
    outputs, state = [], []
    for name, array in expected.items():
        text = writer.check(Check(what=name, expected=array, limit=row.limit, peak=row.largest_peak))
        if name in statistics:
            state.append(f"({name!r}, {text})")
        else:
            outputs.append(text)
    text = writer.script(
        title=title, found=found, part="shrunk by Hypothesis", built=built, call=texts, outputs=outputs, state=state,
        training=training, path=path,
    )  # fmt: skip
    _write_failing(path, text)


def _write_failing(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.write_text(text, encoding="utf-8")
        with contextlib.redirect_stdout(io.StringIO()):
            differences = runpy.run_path(str(path))["differences"]()
        if not differences:
            raise LookupError("written as a script, the layer computes what it should")
    except BaseException as error:
        path.unlink(missing_ok=True)
        path.with_suffix(".npz").unlink(missing_ok=True)
        if isinstance(error, SystemExit):
            raise LookupError("written as a script, the layer ends the program") from None
        raise


def _children(layer_map: LayerMap, modules: Mapping[str, nn.Module]) -> dict[str, LayerPair]:
    """Parts with a reading of their own that are in no other such part."""
    named = {pair.port: pair for pair in layer_map if pair.port and not pair.alias and pair.port in modules}
    return {name: pair for name, pair in named.items() if not any(name.startswith(f"{other}.") for other in named)}


@contextlib.contextmanager
def _results(children: Mapping[str, LayerPair], modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Any]]]:
    """Fills a dictionary with what each part returned, call by call."""
    results: dict[str, list[Any]] = {name: [] for name in children}
    handles = []
    for name in children:

        def look(_: nn.Module, __: tuple[Any, ...], result: Any, name: str = name) -> None:
            results[name].append(result)

        handles.append(modules[name].register_forward_hook(look))
    try:
        yield results
    finally:
        for handle in handles:
            handle.remove()


def _inputs(truth: Trace, path: str, call: int) -> tuple[np.ndarray, ...]:
    return truth.calls[path, call].inputs or ()


def _bounds(rows: Iterable[Comparison], port: str, quantity: str, precision: str) -> tuple[float, float]:
    """Limits of an array's norm and of its largest difference."""
    row = next((row for row in rows if (row.port, row.quantity) == (port, quantity)), None)
    if row is not None and row.limit is not None and row.peak_limit is not None:
        return row.limit, row.peak_limit
    tolerance = TABLE[precision if row is None else row.tolerance]
    if tolerance.ratio:
        return tolerance.floor, tolerance.peak_ratio * tolerance.floor
    return tolerance.limit, tolerance.largest_peak


def _output_checks(layer: IsolatedLayer, truth: Trace, rows: list[Comparison]) -> Iterator[Check]:
    for index, array in enumerate(truth.calls["", 0].outputs):
        name = layer.pair.outputs[index] if index < len(layer.pair.outputs) else f"output_{index}"
        limit, peak = _bounds(rows, "", name, layer.precision)
        yield Check(what=name, expected=layer.pair.to_port(np.asarray(array)), limit=limit, peak=peak)


def _state_checks(layer: IsolatedLayer, truth: Trace, rows: list[Comparison]) -> Iterator[tuple[str, Check]]:
    for name, reference in layer.pair.state if layer.mode == "training" else ():
        limit, peak = _bounds(rows, "", name, layer.precision)
        yield name, Check(what=name, expected=truth.state[""][reference], limit=limit, peak=peak)


class _Writer:
    """Turns a layer into text, and collects the numbers that it needs."""

    def __init__(self, module: nn.Module) -> None:
        self.sources = Sources(module.modules())
        self.numbers: dict[str, np.ndarray] = {}

    def number(self, name: str, tensor: Tensor | np.ndarray) -> str:
        """Takes up an array; returns the key that it has."""
        key, count = name, 1
        while key in self.numbers:
            count += 1
            key = f"{name} ({count})"
        array = tensor.detach().cpu() if isinstance(tensor, Tensor) else torch.from_numpy(np.array(tensor))
        self.numbers[key] = (array.double() if array.is_floating_point() else array).numpy().copy()
        return key

    def tensor(self, name: str, tensor: Tensor) -> str:
        """A tensor as text."""
        return f"tensor({self.number(name, tensor)!r}, {tensor.dtype})"

    def structure(self, value: Any, name: str) -> str:
        """An argument or a result as text."""
        if torch.is_tensor(value):
            return self.tensor(name, value)
        if isinstance(value, Mapping):
            return f"{{{', '.join(f'{key!r}: {self.structure(item, name)}' for key, item in value.items())}}}"
        if isinstance(value, list | tuple):
            items = [self.structure(item, name) for item in value]
            return f"[{', '.join(items)}]" if isinstance(value, list) else f"({', '.join(items)},)"
        return self.sources.expression(value)

    def check(self, check: Check) -> str:
        """What is compared as text."""
        limits = (check.limit, check.peak)
        shown = ", ".join(map(self.sources.expression, limits))
        return f"({check.what!r}, {self.number(f'expected {check.what}', check.expected)!r}, {shown})"

    def module(self, module: nn.Module, name: str, given: Mapping[str, str], depth: int = 1) -> str:
        """The call that makes a module again, without its constructor."""
        if name in given:
            return given[name]
        indent = "    " * depth
        start = f"{name}." if name else ""
        kept = settings(module)
        if isinstance(module, nn.ModuleList | nn.Sequential | nn.ModuleDict):
            kept = {}
        texts = []
        for key, value in kept.items():
            function = method_of(module, value)
            text = self.sources.expression(value) if function is None else f"method({self.sources.add(function)})"
            texts.append(f"{key!r}: {text}")
        named = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        tensors = [f"{key!r}: {self.tensor(start + key, tensor)}" for key, tensor in named]
        tensors += [
            f"{key!r}: None" for key, value in {**module._parameters, **module._buffers}.items() if value is None
        ]
        parts = [
            f"{key!r}: {'None' if part is None else self.module(part, start + key, given, depth + 2)}"
            for key, part in module._modules.items()
        ]
        lines = [f"{self.sources.add(type(module))},"]
        for label, items in (("settings", texts), ("tensors", tensors), ("parts", parts)):
            if items:
                lines += [f"{label}={{", *(f"    {item}," for item in items), "},"]
        return "made(\n" + "".join(f"{indent}    {line}\n" for line in lines) + f"{indent})"

    def given(
        self,
        pair: LayerPair,
        name: str,
        module: nn.Module,
        truth: Trace,
        results: list[Any],
        rows: list[Comparison],
        layer: IsolatedLayer,
    ) -> str:
        """A part that returns the reference's numbers."""
        calls = []
        for index in range(truth.count(pair.reference)):
            call = truth.calls[pair.reference, index]
            suffix = f"@{index}" if index else ""
            checks = []
            for position, array in enumerate((call.inputs or ())[: pair.inputs]):
                quantity = f"input_{position}" if position else "input"
                limit, peak = _bounds(rows, name + suffix, quantity, layer.precision)
                what = f"{quantity} of {name}{suffix}"
                checks.append(self.check(Check(what=what, expected=pair.to_port(array), limit=limit, peak=peak)))
            outputs = [pair.to_port(np.asarray(array)) for array in call.outputs]
            raw = results[index] if index < len(results) else None
            like = flatten(raw, torch.is_tensor)
            dtypes = [tensor.dtype for tensor in like] or [torch.float64]
            tensors = [torch.from_numpy(np.array(a)).to(dtypes[min(i, len(dtypes) - 1)]) for i, a in enumerate(outputs)]
            if len(like) == len(tensors):
                returned = replace(raw, torch.is_tensor, list(tensors))
            else:
                returned = tensors[0] if len(tensors) == 1 else tuple(tensors)
            label = f"{name}{suffix} returns"
            calls.append(f"([{', '.join(checks)}], {self.structure(returned, label)})")
        plain = {key: value for key, value in settings(module).items() if type(value) in (bool, int, float, str)}
        used = {key: value for key, value in plain.items() if f".{key}" in self.sources.text}
        return f"Given({name!r}, [{', '.join(calls)}], {self.sources.expression(used)})"

    def script(
        self, *, title: str, found: str, part: str, built: str, call: list[str], outputs: list[str], state: list[str],
        training: bool, path: Path,
    ) -> str:  # fmt: skip
        """The whole text; writes the archive beside it where the numbers are many."""
        count = sum(array.size for array in self.numbers.values())
        if count <= WRITTEN_OUT:
            rows = [
                f"    {key!r}: np.array({a.ravel().tolist()!r}, dtype={str(a.dtype)!r}).reshape({a.shape!r}),"
                for key, a in self.numbers.items()
            ]
            numbers = "NUMBERS = {\n" + "\n".join(rows) + "\n}"
        else:
            archive = io.BytesIO()
            np.savez_compressed(
                archive, allow_pickle=False, **{f"a{i}": a for i, a in enumerate(self.numbers.values())}
            )
            numbers = f"NAMES = {list(self.numbers)!r}\n"
            if len(archive.getvalue()) <= EMBEDDED:
                lines = base64.encodebytes(archive.getvalue()).decode()
                numbers += f'ARCHIVE = io.BytesIO(base64.b64decode("""\n{lines}"""))\n'
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.with_suffix(".npz").write_bytes(archive.getvalue())
                numbers += f"ARCHIVE = Path(__file__).with_name({path.with_suffix('.npz').name!r})\n"
            numbers += "with np.load(ARCHIVE, allow_pickle=False) as archive:\n"
            numbers += '    NUMBERS = {name: archive[f"a{index}"] for index, name in enumerate(NAMES)}'
        first = {"import base64", "import io", "import sys", "import types", "from pathlib import Path"}
        imports = sorted(
            {*first, "import numpy as np", "import torch", "from torch import nn"} | set(self.sources.imports)
        )
        values = {
            "TITLE": title,
            "FOUND": found,
            "PART": part,
            "NAME": path.name,
            "MODULES": ", ".join(self.sources.modules) or "torch",
            "IMPORTS": "\n".join(imports),
            "CODE": self.sources.text,
            "NUMBERS": numbers,
            "LAYER": built,
            "CALL": ", ".join(call),
            "OUTPUTS": "[" + ", ".join(outputs) + "]",
            "STATE": "[" + ", ".join(state) + "]",
            "TRAINING": repr(training),
        }
        for key in ("TITLE", "FOUND", "PART", "NAME", "MODULES"):
            values[key] = values[key].encode("unicode_escape").decode().replace('"""', "'''")
        # In one pass: what fills a place may itself hold what looks like one.
        return re.sub(r"<<([A-Z]+)>>", lambda place: values[place[1]], TEMPLATE.read_text(encoding="utf-8"))

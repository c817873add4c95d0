"""``epibert layer``: one layer of the port, on drawn geometries, weights and inputs, against what it should compute.

Starts without TensorFlow: the layer is held against its formula in NumPy, which the suite of layer properties proves to
be the reference's; ``--reference tensorflow`` asks the Keras layer itself.
"""

import argparse
import contextlib
import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky
from rich.console import Console
from torch import nn

import torch_impl.model as port
from parity.pairs.epibert_layers import LAYERS, Case, Layer
from parity.pairs.twins import Side, Twins, compare_twins
from parity.records import Comparison, Status
from parity.tolerances import TABLE
from parity.trace import describe

PROVEN, NOT_PROVEN, WRONG_USE = 0, 1, 2
SHOWN = 40
"""Numbers of an array that are printed."""


class UsageError(ValueError):
    """A request that cannot be met, in one line for the user."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counterexample:
    """The smallest example found on which a layer differs.

    Attributes:
        case: Geometry, input, seed of the weights, mode.
        problem: What is wrong, in words, where it is not numbers.
        weights: Weights by their path below the layer.
        compared: Every array with its comparison, what was got and what was expected.
        twins: The layer; None if it cannot be made.
    """

    case: Case
    problem: str
    weights: Mapping[str, np.ndarray]
    compared: Sequence[tuple[Comparison, np.ndarray | None, np.ndarray | None]]
    twins: Twins | None


def find_counterexample(
    layer: Layer, *, examples: int, seed_: int = 0, own: type[nn.Module] | None = None, side: Side = "formula"
) -> Counterexample | None:
    """Draws examples until one fails, and shrinks that.

    Args:
        layer: Which layer.
        examples: How many are drawn.
        seed_: Of the draws.
        own: A class to put in the place of the port's.
        side: What the layer is held against.

    Returns:
        The smallest failing example that Hypothesis found; None if none fails.
    """
    found: list[Counterexample] = []

    @seed(seed_)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(case=layer.cases)
    def agrees(case: Case) -> None:
        example = examine(layer, case, own=own, side=side)
        if example is not None:
            found.append(example)
            raise _Differs

    # Hypothesis tells of the example by notes and prints; the last one that it runs is the smallest.
    try:
        agrees()
    except Flaky:  # before the other: a group of these may hold it
        raise _NotDeterministic from None
    except _Differs:
        pass
    return found[-1] if found else None


class _Differs(Exception):
    pass


class _NotDeterministic(Exception):
    """An example that differed did not when it was run again."""


def examine(layer: Layer, case: Case, *, own: type[nn.Module] | None, side: Side) -> Counterexample | None:
    """One example; None if the layer computes what it should."""
    weights: dict[str, np.ndarray] = {}
    twins = None
    compared: list[Any] = []
    try:
        with contextlib.nullcontext() if own is None else mock.patch.object(port, layer.port, own):
            twins = layer.make(**case.geometry)
        unmatched = twins.unmatched()
        problem = "" if not unmatched else f"tensors that only the port or only the reference has: {unmatched}"
        if not problem:
            weights = twins.draw(case.seed)
            compared = compare_twins(
                twins, case.inputs, weights, training=case.training, tolerance=layer.tolerance, side=side
            )
    except Exception as exception:  # noqa: BLE001  whatever the layer raises is a counterexample
        problem = describe(exception)
    if not problem and all(row.status is Status.PASS for row, _, _ in compared):
        return None
    return Counterexample(case=case, problem=problem, weights=weights, compared=compared, twins=twins)


def print_counterexample(name: str, example: Counterexample, console: Console) -> None:
    """Shapes, weights, input, expected, got, error against tolerance."""
    case = example.case
    geometry = ", ".join(f"{key}={value!r}" for key, value in case.geometry.items())
    console.print(f"{name} is not what it should be. The smallest example found:")
    console.print(f"  geometry   {geometry or '-'}")
    console.print(f"  mode       {'training' if case.training else 'evaluation'}")
    console.print(f"  input      {case.inputs!r}, shape {case.inputs.numbers.shape}")
    console.print(f"             {_glance(case.inputs.numbers)}")
    console.print(f"  weights    drawn with seed {case.seed}")
    for path, array in example.weights.items():
        console.print(f"             {path} {array.shape}: {_glance(array)}")
    if example.problem:
        console.print(f"  problem    {example.problem}")
    for row, got, expected in example.compared:
        console.print(f"  {row.quantity}: {row.status}")
        if row.status is Status.PASS:
            continue
        console.print(f"    {row.detail}")
        if row.error is not None:
            limit = TABLE[row.tolerance]
            console.print(f"    relative error {row.error:.3g}, limit {limit.limit:.3g} (row {row.tolerance})")
        for what, array in (("expected", expected), ("got     ", got)):
            console.print(f"    {what} {'nothing' if array is None else f'{array.shape}: {_glance(array)}'}")


def _glance(array: np.ndarray) -> str:
    numbers = np.array2string(
        array.reshape(-1), threshold=SHOWN, edgeitems=SHOWN // 4, precision=17, floatmode="unique"
    )
    return " ".join(numbers.split())


def own_class(given_: str, name: str) -> type[nn.Module]:
    """The class that ``--port`` names: ``module:Class`` or ``file.py:Class``, the class being ``name`` by default.

    Raises:
        UsageError: There is no such module, file or class, or it cannot be imported.
    """
    place, _, wanted = given_.rpartition(":") if ":" in given_ else (given_, "", "")
    wanted = wanted or name
    try:
        if place.endswith(".py"):
            if not Path(place).is_file():
                raise UsageError(f"no file {place}")
            # Under a name of its own: a file may be called as a module that is there already.
            spec = importlib.util.spec_from_file_location(f"own_{Path(place).stem}", place)
            if spec is None or spec.loader is None:
                raise UsageError(f"{place} cannot be imported")
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
        else:
            sys.path.insert(0, "")
            module = importlib.import_module(place)
    except UsageError:
        raise
    except Exception as exception:  # noqa: BLE001  the user's module may raise anything
        raise UsageError(f"{place} cannot be imported: {describe(exception)}") from None
    found = getattr(module, wanted, None)
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise UsageError(f"{place} has no torch module {wanted}; name another by --port {place}:CLASS")
    return found


def find_layer(name: str) -> Layer:
    """The layer of a name, whatever its case.

    Raises:
        UsageError: There is none; near names are in the message.
    """
    plain = {known.lower(): known for known in LAYERS}
    if name.lower().replace("_", "") in plain:
        return LAYERS[plain[name.lower().replace("_", "")]]
    near = difflib.get_close_matches(name.lower().replace("_", ""), plain, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(plain[match] for match in near)}?" if near else "epibert layer --list names them"
    raise UsageError(f"no layer {name!r}: {hint}")


def run(
    name: str,
    *,
    examples: int = 100,
    seed_: int = 0,
    own: str | None = None,
    out: str | None = None,
    side: Side = "formula",
    console: Console,
) -> int:
    """Tests a layer; see ``main``."""
    layer = find_layer(name)
    if examples < 1:
        raise UsageError("--examples must be at least 1")
    if side == "tensorflow" and importlib.util.find_spec("tensorflow") is None:
        raise UsageError("--reference tensorflow needs TensorFlow: install the extra 'reference'")
    cls = None if own is None else own_class(own, layer.port)
    tested = layer.port if cls is None else f"{cls.__name__} of {own}"
    try:
        example = find_counterexample(layer, examples=examples, seed_=seed_, own=cls, side=side)
    except _NotDeterministic:
        console.print(f"{tested}: differs from call to call on the same input")
        return NOT_PROVEN
    against = "its formula in NumPy" if side == "formula" else "the Keras layer"
    if example is None:
        console.print(f"{tested}: {examples} examples, none of which differs from {against}")
        return PROVEN
    print_counterexample(tested, example, console)
    if out is not None:
        _write(tested, layer, example, Path(out), console)
    return NOT_PROVEN


def _write(tested: str, layer: Layer, example: Counterexample, folder: Path, console: Console) -> None:
    from parity.repro import write_example
    from parity.sources import NotSelfContained

    path, twins, inputs = folder / f"repro_{layer.port}.py", example.twins, example.case.inputs
    expected_of = {row.quantity: expected for row, _, expected in example.compared if expected is not None}
    if twins is None or not expected_of:
        console.print(f"no script: {example.problem or 'nothing was expected'}")
        return
    twins.fill(example.weights, reference=False)
    twins.port.train(example.case.training)
    try:
        write_example(
            twins.port,
            lambda: twins.call(inputs),
            expected_of,
            path,
            title=f"{tested} is not what {layer.port} should be",
            found=f"Found by epibert layer {layer.port}.",
            tolerance=layer.tolerance,
            training=example.case.training,
        )
    except (NotSelfContained, LookupError, OSError) as error:
        console.print(f"no script: {' '.join(str(error).split())}")
    else:
        console.print(f"written to {path}")


def main(arguments: Sequence[str], program: str = "epibert layer") -> int:
    """Reads the command line and tests one layer.

    Args:
        arguments: What follows the command's name.
        program: Name shown in the help.

    Returns:
        0: no example differs; 1: one does; 2: wrong use.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description="Property-test one layer: geometries, weights and inputs are drawn, and the smallest example on "
        "which the port differs is printed. Exit status 0: none differs; 1: one does; 2: wrong use.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="layer, by the name of its class: see --list")
    parser.add_argument("--list", action="store_true", help="name the layers")
    parser.add_argument("--examples", type=int, default=100, help="how many are drawn (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    parser.add_argument(
        "--port",
        metavar="MODULE:CLASS",
        help="a layer of your own in the place of the port's, as MODULE:CLASS or FILE.py:CLASS; it is made with the "
        "same arguments and has tensors of the same names",
    )
    parser.add_argument("--out", metavar="DIR", help="write a script there that shows a counterexample alone")
    parser.add_argument(
        "--reference",
        choices=("formula", "tensorflow"),
        default="formula",
        help="what it is held against: its formula in NumPy, which the tests prove to be the reference's, or the Keras "
        "layer of the reference (default: %(default)s)",
    )
    parsed = parser.parse_args(list(arguments))
    console = Console(markup=False, highlight=False, soft_wrap=True)
    if parsed.list:
        for name, layer in LAYERS.items():
            console.print(f"{name:<18}{(inspect.getdoc(getattr(port, layer.port)) or '').splitlines()[0]}")
        return PROVEN
    try:
        if parsed.name is None:
            raise UsageError("which layer? epibert layer --list names them")
        return run(
            parsed.name,
            examples=parsed.examples,
            seed_=parsed.seed,
            own=parsed.port,
            out=parsed.out,
            side=parsed.reference,
            console=console,
        )
    except UsageError as error:
        Console(stderr=True, markup=False, highlight=False, soft_wrap=True).print(f"epibert: error: {error}")
        return WRONG_USE

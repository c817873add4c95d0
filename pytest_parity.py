"""A pytest plugin: tests for a PyTorch port and its Keras reference, from a fixture that makes the two.

A module that defines ``parity_pair`` gets one test for each rung of the ladder, and, where ``layers`` is one of them,
one with a subtest for each layer::

    pytestmark = pytest.mark.parity(gates=("weights", "layers", "model"))

    @pytest.fixture(scope="module")
    def parity_pair():
        return keras_model, port, inputs  # and, if need be, a dictionary of further arguments of parity.verify
        # or, with TensorFlow absent: parity.Recording("recording.h5"), port, None

``parity_result`` is what ``parity.verify`` found, for tests of one's own, and for pairs that a ``conftest.py`` makes.
Neither framework is imported before a test asks for a result, so that the plugin costs nothing where it isn't used.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from parity import Comparison, Result

PAIR = "parity_pair"
MARKER = "parity"
GATES = ("weights", "constants", "layers", "blocks", "model", "gradients", "trajectory")
"""The last two against a recording."""

DEFAULT_GATES = ("weights", "layers", "model")
_OPTIONS = ("gates", "modes", "precisions")
_RESULTS = pytest.StashKey[dict[tuple[int, str], tuple[Any, Any]]]()


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker."""
    config.addinivalue_line(
        "markers",
        "parity(gates, modes, precisions): what parity.verify has to prove of the pair that the fixture parity_pair "
        "makes",
    )


@pytest.fixture
def parity_result(request: pytest.FixtureRequest) -> "Result":
    """What ``parity.verify`` finds for ``parity_pair``; the same pair is verified once."""
    import parity

    pair = request.getfixturevalue(PAIR)
    options = _options(request.node)
    results = request.session.stash.setdefault(_RESULTS, {})
    key = id(pair), repr(sorted(options.items()))
    if key not in results:
        reference, port, inputs, *more = pair
        given: Mapping[str, Any] = more[0] if more else {}
        # The pair is kept beside its result: its identity is not given to another one.
        results[key] = pair, parity.verify(reference, port, inputs, **{**options, **given})
    return results[key][1]


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: Any, name: str, obj: object) -> list[pytest.Item] | None:
    """A module's own ``parity_pair`` becomes tests."""
    if name != PAIR or not isinstance(collector, pytest.Module):
        return None
    # What a fixture is marked by, before pytest 8.4 and since.
    if not hasattr(obj, "_fixture_function") and not hasattr(obj, "_pytestfixturefunction"):
        raise pytest.UsageError(f"{collector.nodeid}: {PAIR} is no fixture; put @pytest.fixture above it")
    gates = _options(collector)["gates"]
    tests = [(f"test_parity[{gate}]", _test_of(gate)) for gate in gates]
    if "layers" in gates:
        tests.append(("test_parity_layers", _test_of_layers))
    return [pytest.Function.from_parent(collector, name=label, callobj=function) for label, function in tests]


def _options(node: Any) -> dict[str, Any]:
    marker = node.get_closest_marker(MARKER)
    options = {"gates": DEFAULT_GATES, **({} if marker is None else marker.kwargs)}
    unknown = sorted(set(options) - set(_OPTIONS)) + sorted(set(options["gates"]) - set(GATES))
    if unknown or (marker is not None and marker.args) or not options["gates"]:
        raise pytest.UsageError(
            f"{node.nodeid}: pytest.mark.parity takes {', '.join(_OPTIONS)} by name, and gates are some of "
            f"{', '.join(GATES)}; unknown: {unknown or 'none'}"
        )
    return options


def _test_of(gate: str) -> Callable[..., None]:
    def test_parity(parity_result: "Result") -> None:
        found = parity_result.gates[gate]
        if found.status != "passed":
            pytest.fail(
                f"the gate {gate!r} is {found.status}: {found.reason}\n{describe(parity_result)}", pytrace=False
            )

    return test_parity


def _test_of_layers(parity_result: "Result", subtests: "pytest.Subtests") -> None:
    by_layer: dict[str, list[Comparison]] = {}
    for row in parity_result.gates["layers"].comparisons:
        by_layer.setdefault(row.layer or "the model itself", []).append(row)
    assert by_layer, "no layer was compared"
    for layer, rows in by_layer.items():
        with subtests.test(layer):
            failures = [_line(row) for row in rows if row.status != "pass"]
            if failures:
                pytest.fail("\n".join(failures), pytrace=False)


def describe(result: "Result") -> str:
    """Which layers are at fault, by their worst comparison, and how the pairs were found where they are unsure."""
    lines = [f"at fault: {row.port} = {row.reference}: {_line(row.worst)}" for row in result.culprit_rows]
    lines += [f"{row.name}: {row.reason}" for row in result.not_compared if row.side == "pairing"]
    return "\n".join(lines)


def _line(row: "Comparison") -> str:
    where = " ".join(part for part in (row.precision, row.mode, row.reading) if part)
    numbers = "" if row.error is None or row.limit is None else f", error {row.error:.2g}, limit {row.limit:.2g}"
    return f"{row.quantity} of {row.port or 'the port'} ({where}): {row.status}{numbers}; {row.detail}"

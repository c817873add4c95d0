"""What is declared is what is imported, and all of it is pinned."""

import importlib.metadata
import re
import sys
import tomllib

import pytest

from tests.unit.sources import PACKAGES, ROOT, imports, modules


def _normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _requirement_name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement)
    assert match, requirement
    return _normalised(match[0])


def declared() -> dict[str, set[str]]:
    """Extra ('' for the base) -> normalised names of the distributions it asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: {_requirement_name(requirement) for requirement in names} for extra, names in groups.items()}


def pinned() -> dict[str, str]:
    """Normalised distribution -> version, from constraints.txt."""
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line)
            assert match, f"constraints.txt: {line!r} is no plain name==version"
            pins[_normalised(match[1])] = match[2]
    return pins


def imported_distributions(package: str) -> set[str]:
    """Distributions behind every import in a package, those of the standard library and of ours left out."""
    owners = importlib.metadata.packages_distributions()
    names = set().union(*(imports(path.read_text()) for path in modules(package).values()))
    names -= sys.stdlib_module_names | set(PACKAGES) | {"benchmarks"}
    # A namespace such as `google` belongs to several distributions; the declared ones are among them.
    everything = set().union(*declared().values())
    result = set()
    for name in names:
        candidates = {_normalised(owner) for owner in owners.get(name, [name])}
        result |= candidates & everything or candidates
    return result


@pytest.mark.parametrize(
    ("package", "extras"),
    [
        ("torch_impl", [""]),
        ("weights", ["", "reference"]),
        ("tf_reference", ["", "reference"]),
        ("parity", ["", "reference", "report", "development"]),
    ],
)
def test_a_package_imports_only_what_its_installation_declares(package, extras):
    allowed = set().union(*(declared()[extra] for extra in extras))
    assert imported_distributions(package) <= allowed


def test_the_base_asks_for_nothing_that_is_not_imported():
    used = set().union(*(imported_distributions(package) for package in PACKAGES))
    assert declared()[""] <= used


def test_the_base_holds_no_tensorflow():
    assert not declared()[""] & {"tensorflow", "tf-keras", "keras"}
    assert {"tensorflow", "tf-keras"} <= declared()["reference"]


def test_every_distribution_that_installation_brings_is_pinned():
    reached: set[str] = set()
    todo = set().union(*declared().values())
    while todo:
        name = todo.pop()
        reached.add(name)
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            pytest.fail(f"{name} is declared but not installed: run make")
        todo |= {_requirement_name(r) for r in requirements if ";" not in r} - reached
    assert not sorted(reached - set(pinned()))

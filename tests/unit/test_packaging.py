"""What is declared is what is imported, and all of it is pinned."""

import fnmatch
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterable

import pytest
from packaging.requirements import Requirement

from tests.unit.sources import PACKAGES, ROOT, imports, modules


def _normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def declared_requirements() -> dict[str, list[str]]:
    """Extra ('' for the base) -> what it asks for, as written in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def declared() -> dict[str, set[str]]:
    """Extra -> normalised names of the distributions that it asks for."""
    return {
        extra: {_normalised(Requirement(text).name) for text in texts}
        for extra, texts in declared_requirements().items()
    }


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
        ("torch_impl", ["", "report", "cluster", "tracks"]),
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


def brought(requirements: Iterable[str]) -> set[str]:
    """Normalised names of everything that the requirements bring, themselves included, from installed metadata."""
    names: set[str] = set()
    visited: set[tuple[str, str]] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        name = _normalised(requirement.name)
        names.add(name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in visited:
                continue
            visited.add((name, extra))
            for text in importlib.metadata.requires(name) or []:
                marker = Requirement(text).marker
                # A build of PyTorch for CUDA brings and pins its own libraries; constraints.txt serves every build.
                if name == "torch" and "platform_system" in str(marker):
                    continue
                if marker is None or marker.evaluate({"extra": extra}):
                    waiting.append(Requirement(text))
    return names


def test_an_unpinned_distribution_is_found_through_markers_and_extras():
    assert {"jsonargparse", "pyyaml"} <= brought(["jsonargparse"])
    assert {"docstring-parser", "typeshed-client"} <= brought(["jsonargparse[signatures]"]) - brought(["jsonargparse"])


def test_what_installation_brings_and_what_is_pinned_are_the_same():
    # What `make huggingface` installs by itself, without dependencies, is named in full.
    apart = declared_requirements()
    alone = {_normalised(Requirement(text).name) for text in apart.pop("huggingface")}
    everything = brought(text for texts in apart.values() for text in texts) | alone
    assert everything - set(pinned()) == set()
    # The build backend's own tools come along with other packages or with the environment.
    assert set(pinned()) - everything <= {"setuptools", "wheel"}


def test_every_file_that_is_no_module_travels_with_the_package():
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    files = [
        p
        for package in PACKAGES
        for p in (ROOT / package).rglob("*")
        if p.is_file() and p.suffix not in {".py", ".pyc"}
    ]
    assert files
    for file in files:
        package = ".".join(file.parent.relative_to(ROOT).parts)
        patterns = [*table["*"], *table.get(package, [])]
        assert any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns), f"{file} would be left behind"

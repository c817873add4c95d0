"""Spellings that would let a check compare less than it says, and what must not be left in the sources.

Each check is a function from a source text to the lines that offend, and is first shown texts that do.
"""

import ast
import re
from collections.abc import Callable, Iterator

import pytest

from tests.unit.sources import PACKAGES, ROOT, package_sources


def _calls(source: str) -> Iterator[tuple[ast.Call, str, dict[str | None, ast.expr]]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            yield node, name, {keyword.arg: keyword.value for keyword in node.keywords}


def _is_literally(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def strict_not_true(source: str) -> list[int]:
    """``strict=`` anything but a literal True, in whatever call, and a positional one in ``load_state_dict``."""
    return [
        node.lineno
        for node, name, keywords in _calls(source)
        if ("strict" in keywords and not _is_literally(keywords["strict"], True))
        or (name == "load_state_dict" and len(node.args) > 1)
    ]


def truncating_iteration(source: str) -> list[int]:
    """``zip`` without ``strict=True``, and ``map`` over several iterables, which stops at the shortest as well."""
    return [
        node.lineno
        for node, name, keywords in _calls(source)
        if isinstance(node.func, ast.Name)
        and (
            (name == "zip" and not _is_literally(keywords.get("strict"), True))
            or (name == "map" and len(node.args) > 2)
        )
    ]


def hidden_non_finite(source: str) -> list[int]:
    """Calls that make NaN disappear or equal."""
    masking = {"nan_to_num", "nanmean", "nansum", "nanmax", "nanmin", "nanmedian", "nanstd", "nanvar"}
    return [
        node.lineno
        for node, name, keywords in _calls(source)
        if name in masking or ("equal_nan" in keywords and not _is_literally(keywords["equal_nan"], False))
    ]


def unsafe_loading(source: str) -> list[int]:
    """Loaders that may run code from a file."""
    return [
        node.lineno
        for node, _, keywords in _calls(source)
        if ("allow_pickle" in keywords and not _is_literally(keywords["allow_pickle"], False))
        or ("weights_only" in keywords and not _is_literally(keywords["weights_only"], True))
    ]


def swallowed_errors(source: str) -> list[int]:
    """A bare ``except``, or one for every exception that does not even name what it caught."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ExceptHandler)
        and (
            node.type is None
            or (
                node.name is None
                and {"Exception", "BaseException"} & {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
            )
        )
    ]


def unfinished(source: str) -> list[int]:
    """What is left behind when something was not written."""
    raised = [
        n.lineno for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name) and n.id == "NotImplementedError"
    ]
    marked = [i for i, line in enumerate(source.splitlines(), 1) if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", line)]
    return sorted(raised + marked)


def machine_paths(source: str) -> list[int]:
    """Absolute paths of somebody's machine, and the neighbour folder that a clone does not have."""
    pattern = r"(?<![\w.<>{}*-])/(?:home|root|work|Users|opt|mnt|srv|scratch|tmp)/\w|\.\./" + "shared|file:/" + "//"
    return [i for i, line in enumerate(source.splitlines(), 1) if re.search(pattern, line)]


SPELLINGS: dict[Callable[[str], list[int]], tuple[list[str], list[str]]] = {
    strict_not_true: (
        ["m.load_state_dict(s, strict=False)", "m.load_state_dict(s, strict=flag)", "m.load_state_dict(s, False)"],
        ["m.load_state_dict(s, strict=True)", "m.load_state_dict(s)"],
    ),
    truncating_iteration: (
        ["for a, b in zip(x, y): f(a)", "list(zip(x, y, strict=False))", "list(map(f, x, y))"],
        ["list(zip(x, y, strict=True))", "list(map(f, x))", "archive.zip(x)"],
    ),
    hidden_non_finite: (
        ["np.nan_to_num(x)", "np.nanmean(x)", "np.array_equal(a, b, equal_nan=True)", "allclose(a, b, equal_nan=e)"],
        ["np.mean(x)", "np.array_equal(a, b)", "np.isnan(x)"],
    ),
    unsafe_loading: (
        ["np.load(p, allow_pickle=True)", "torch.load(p, weights_only=False)"],
        ["np.load(p)", "np.load(p, allow_pickle=False)", "torch.load(p, weights_only=True)"],
    ),
    swallowed_errors: (
        ["try: f()\nexcept: pass", "try: f()\nexcept Exception: pass", "try: f()\nexcept (OSError, Exception): g()"],
        ["try: f()\nexcept OSError: g()", "try: f()\nexcept Exception as error: record(error)"],
    ),
    unfinished: (
        ["raise NotImplementedError", "raise NotImplementedError('later')", "x = 1  # TO" + "DO"],
        ["x = 1  # to do it again"],
    ),
    machine_paths: (
        ["p = '/ho" + "me/me/data'", "# see /wo" + "rk/x", "p = '../" + "shared/golden'", "u = 'file:/" + "//x'"],
        ["k = 'model/wo" + "rk/kernel'", "#!/usr/bin/env python", "p = '<case>/ro" + "ot/x'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("check", SPELLINGS, ids=lambda check: check.__name__)
def test_each_check_sees_its_offenders_and_nothing_else(check):
    offenders, innocent = SPELLINGS[check]
    assert [text for text in offenders if not check(text)] == []
    assert [text for text in innocent if check(text)] == []


@pytest.mark.parametrize("check", SPELLINGS, ids=lambda check: check.__name__)
def test_no_package_of_ours_offends(check):
    offences = {name: lines for name, source in package_sources().items() if (lines := check(source))}
    assert not offences


def test_no_text_file_of_the_repository_names_a_path_of_a_machine():
    suffixes = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".json", ".html", ".css", ".js"}
    folders = [ROOT / name for name in (*PACKAGES, "tests", "benchmarks", "goldens", ".ci", ".github")]
    paths = [p for folder in folders for p in folder.rglob("*") if p.suffix in suffixes or p.parent.name == ".ci"]
    paths += [p for p in ROOT.iterdir() if p.suffix in suffixes or p.name in {"Makefile", "LICENSE", ".gitignore"}]
    assert len(paths) > 20
    offences = {str(p.relative_to(ROOT)): lines for p in paths if (lines := machine_paths(p.read_text()))}
    assert not offences

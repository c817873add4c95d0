"""The source texts of this repository, for the tests that read them."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch_impl", "tf_reference", "weights", "parity")


def modules(package: str) -> dict[str, Path]:
    """Dotted name -> file, of every module in the package."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def package_sources() -> dict[str, str]:
    sources = {name: path.read_text() for package in PACKAGES for name, path in modules(package).items()}
    assert sources
    return sources


def _nodes(tree: ast.AST, *, run_at_import: bool) -> Iterator[ast.AST]:
    """All nodes below; with ``run_at_import`` only those that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        if run_at_import and (deferred or typing_only):
            continue
        yield node
        yield from _nodes(node, run_at_import=run_at_import)


def imports(source: str, *, run_at_import: bool = False) -> set[str]:
    """Top-level names of the packages that a source text imports, by statement or by name."""
    names = set()
    for node in _nodes(ast.parse(source), run_at_import=run_at_import):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in {
            "import_module",
            "__import__",
        }:
            names |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
    return {name.partition(".")[0] for name in names}

"""The layout: which module may import which, and nothing that runs at import."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = {"train", "generate"}
MAY_IMPORT = {
    "atomic": set(),
    "checkpoint": {"atomic"},
    "graph": set(),
    "losses": set(),
    "matrix_conv": set(),
    "ranks": set(),
    "signals": set(),
    "sources": set(),
    "streams": set(),
    "pictures": {"sources"},
    "cache": {"pictures", "sources"},
    "dataset": {"cache", "sources", "utils"},
    "models": {"checkpoint"},
    "game": {"config", "dataset", "losses", "matrix_conv", "models"},
    "utils": {"atomic", "sources", "streams"},
    "config": {"dataset", "sources", "utils"},
    "record": {"atomic", "checkpoint", "config", "dataset", "pictures", "sources", "utils"},
}
OURS = {path.stem for path in ROOT.glob("*.py")}


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


@pytest.mark.parametrize("module", sorted(OURS))
def test_arrows_point_one_way(module):
    tree = ast.parse((ROOT / f"{module}.py").read_text(encoding="utf-8"))
    allowed = OURS - SCRIPTS if module in SCRIPTS else MAY_IMPORT[module]
    assert set(imports(tree)) & OURS <= allowed


@pytest.mark.parametrize("module", sorted(OURS))
def test_nothing_runs_at_import(module):
    """Only definitions, constants and the main guard stand at a module's top level."""
    definitions = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.FunctionDef,
                   ast.ClassDef)  # fmt: skip
    docstring, *body = ast.parse((ROOT / f"{module}.py").read_text(encoding="utf-8")).body
    assert isinstance(docstring, ast.Expr) and isinstance(docstring.value.value, str)
    for node in body:
        guard = isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        assert guard or isinstance(node, definitions), f"{module}.py line {node.lineno}"
        if isinstance(node, ast.Assign | ast.AnnAssign):
            calls = {ast.unparse(n.func) for n in ast.walk(node) if isinstance(n, ast.Call)}
            allowed = {"TypeVar", "Loss", "range", "re.compile", "timedelta", "torch.device"}
            assert calls <= allowed, f"{module}: {calls}"

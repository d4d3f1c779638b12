"""Imports point one way, nothing runs at import, no file of weights runs code, no test goes out."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = {"train", "generate", "evaluate", "probe", "explore"}
LAYERS = [  # each may import what stands above it, and its own folder
    {"utils", "models"}, {"preprocessing"}, {"dataset"}, {"serialization"}, {"metrics"},
    {"visualization"}, {"training"}, SCRIPTS,
]  # fmt: skip
OURS = set.union(*LAYERS)
FILES = [
    path for name in sorted(OURS) for path in (*ROOT.glob(f"{name}.py"), *ROOT.glob(f"{name}/*.py"))
]


def layer_of(path):
    name = path.relative_to(ROOT).with_suffix("").parts[0]
    return next(number for number, layer in enumerate(LAYERS) if name in layer), name


def imports(nodes):
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    number, name = layer_of(path)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    # models.py alone may reach upwards, from inside a function: from_checkpoint.
    nodes = tree.body if name == "models" else ast.walk(tree)
    allowed = set().union(*LAYERS[:number]) | ({name} if path.parent != ROOT else set())
    assert set(imports(nodes)) & OURS <= allowed


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_at_import(path):
    """Only definitions, constants and the main guard stand at a module's top level."""
    definitions = (
        ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign | ast.FunctionDef | ast.ClassDef
    )
    docstring, *body = ast.parse(path.read_text(encoding="utf-8")).body
    assert isinstance(docstring, ast.Expr) and isinstance(docstring.value.value, str)
    for node in body:
        guard = isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        assert guard or isinstance(node, definitions), f"line {node.lineno}"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: path.name)
def test_no_checkpoint_is_read_with_leave_to_run_code(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert "weights_only=True" in ast.unparse(node), f"line {node.lineno}"


@pytest.mark.parametrize("how", ["tcp.connect(there)", "udp.sendto(b'hello', there)"])
def test_the_tests_are_off_the_network(how):
    setup = "import socket as s; tcp, udp = s.socket(), s.socket(s.AF_INET, s.SOCK_DGRAM); "
    code = setup + "there = ('192.0.2.1', 9); " + how  # an address for documentation, RFC 5737
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "PermissionError: the tests may not reach 192.0.2.1" in done.stderr
    with pytest.raises(PermissionError, match="may not reach"):
        exec(code, {})

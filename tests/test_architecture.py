"""The layout: which module may import which, what runs at import; and what no code may do."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = {"train", "generate", "evaluate", "probe", "explore"}
MAY_IMPORT = {
    "animation": {"atomic", "utils"},
    "atomic": set(),
    "checkpoint": {"atomic"},
    "command": {"checkpoint", "dataset", "latents", "models", "opening", "sheet", "utils"},
    "directions": {"construct", "models", "utils"},
    "opening": {"checkpoint", "construct", "dataset", "models", "utils"},
    "page": {"signals", "utils"},
    "export": {"atomic", "checkpoint", "models", "utils"},
    "graph": set(),
    "hubconf": set(),
    "losses": set(),
    "matrix_conv": set(),
    "ranks": set(),
    "signals": set(),
    "sources": set(),
    "streams": set(),
    "pictures": {"sources"},
    "cache": {"pictures", "sources"},
    "dataset": {"atomic", "cache", "sources", "utils"},
    "labelled": {"cache", "dataset", "sources", "utils"},
    "svm": set(),
    "features": {"atomic", "dataset", "models", "sources", "utils"},
    "metrics": set(),
    "foreign": {"chain", "checkpoint", "construct", "remembered", "strides"},
    "construct": {"chain", "strides"},
    "chain": set(),
    "remembered": set(),
    "strides": set(),
    "models": {"checkpoint", "foreign"},
    "augment": set(),
    "game": {"augment", "checkpoint", "config", "dataset", "losses", "matrix_conv", "models"},
    "filters": {"construct", "dataset", "features", "models", "utils"},
    "inversion": {"checkpoint", "command", "dataset", "latents", "models", "pictures", "sheet",
                  "sources", "utils"},
    "latents": {"atomic", "models", "utils"},
    "sheet": {"atomic"},
    "show": {"dataset", "models"},
    "utils": {"atomic", "sources", "streams"},
    "config": {"dataset", "sources", "utils"},
    "referee": {"losses"},
    "best": {
        "checkpoint", "config", "dataset", "features", "metrics", "models", "sources", "utils"
    },
    "keeper": {
        "best", "checkpoint", "config", "dataset", "features", "game", "losses", "models",
        "record", "referee", "utils",
    },
    "record": {
        "animation", "atomic", "checkpoint", "config", "dataset", "pictures", "ranks", "utils"
    },
    "resume": {"checkpoint", "config", "dataset", "sources", "utils"},
}  # fmt: skip
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
            allowed |= {"Path", "Path(__file__).with_name"}
            assert calls <= allowed, f"{module}: {calls}"


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

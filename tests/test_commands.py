"""README and docs are true: commands run, Python runs, the table of flags is the parser's."""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from conftest import write_images, write_mnist
from PIL import Image

from explore import COMMANDS
from serialization.checkpoint import SHIPPED, beside
from train import Config
from utils import shown_default

ROOT = Path(__file__).parent.parent
TRAINING = ROOT / "docs" / "training.md"  # whose checkpoints the other pages speak of
OTHERS = sorted(set((ROOT / "docs").glob("*.md")) - {TRAINING})
CARD = ROOT / "checkpoints" / "README.md"
PAGES = [ROOT / "README.md", TRAINING, *OTHERS, CARD]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
SMALL = ["--steps", "2", "--features", "4", "--batch_size", "16", "--device", "cpu"]
SMALL += ["--precision", "fp32"]


def blocks(language, text=TEXT):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text):
    """Return the commands in pages, pip and pytest left out, each as a list of words."""
    lines = [part for block in blocks("bash", text) for line in block.splitlines()
             for part in line.split("&&")]  # fmt: skip
    words = [shlex.split(line, comments=True) for line in lines]
    return [w for w in words if w and "pip" not in w and "pytest" not in w]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the scripts, with the data that the pages speak of."""
    folder = tmp_path_factory.mktemp("clone")
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    for path in (ROOT / "settings", *(path.parent for path in ROOT.glob("*/__init__.py"))):
        shutil.copytree(path, folder / path.name)
    (folder / "checkpoints").mkdir()
    for path in (SHIPPED, beside(SHIPPED)):
        shutil.copy(path, folder / "checkpoints")
    cats = write_images(folder / "path" / "to" / "cats", 40)
    with zipfile.ZipFile(folder / "celeba.zip", "w") as archive:
        for path in sorted(cats.iterdir()):
            archive.write(path, path.name)
    write_mnist(folder / "data", 40)
    return folder


def run(command, folder):
    """Run a command of the pages in `folder`, in a process of its own."""
    environment = dict(os.environ)
    if "=" in command[0]:  # VARIABLE=VALUE before a command, as in a shell
        name, _, value = command[0].partition("=")
        environment[name], command = value, command[1:]
    programs = {
        "python": [sys.executable],
        "torchrun": [sys.executable, "-m", "torch.distributed.run"],
    }
    done = subprocess.run(
        [*programs[command[0]], *command[1:]],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
    return done


@pytest.fixture
def run_here(monkeypatch):
    """Run a command `python SCRIPT ...` in this process, which has imported torch; its status."""

    def run_script(command, folder):
        program, name, *arguments = command
        assert program == "python"
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [str(ROOT / name), *arguments])
        try:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        except SystemExit as stopped:
            return stopped.code
        return 0

    return run_script


def shortened(pages):
    """Yield the commands of pages in their order, with fewer steps.

    And narrow networks, where a run does not take the width from a checkpoint.
    """
    for command in commands("\n".join(page.read_text(encoding="utf-8") for page in pages)):
        command = [word.replace("epoch_0078", "epoch_0003") for word in command]
        if "train.py" in command:
            going_on = "--resume" in command or any(word.startswith("@") for word in command)
            command = command + (["--steps", "6"] if going_on else [*SMALL, "--save_every", "1"])
            if "path/to/cats" in command and not going_on:
                # Three whole epochs of 40 images, for the numbered checkpoint that follows.
                command += ["--steps", "6", "--save_every", "3"]
        yield command


def test_the_readmes_commands_run_in_their_order(clone, run_here):
    assert len(commands(PAGES[0].read_text(encoding="utf-8"))) >= 10
    for command in shortened(PAGES[:1]):
        assert run_here(command, clone) == 0, shlex.join(command)
    grid = Image.open(clone / "samples" / "generated.png")
    assert grid.size == (8 * 66 + 2, 8 * 66 + 2) and np.asarray(grid).std() > 1
    assert len(list((clone / "cats").iterdir())) == 100


@pytest.mark.slow
def test_the_other_pages_commands_run_in_their_order(clone):
    """Behind those of the README, whose checkpoints they speak of."""
    known = (clone / "checkpoints" / "cats").exists()
    for command in shortened(PAGES[1:] if known else PAGES):
        run(command, clone)
    assert (clone / "checkpoints" / "cats" / "epoch_0003.pth").exists()
    assert Image.open(clone / "samples" / "celeba" / "real.png").size[0] % 66 == 2


def test_the_pages_python_runs(clone):
    code = "\n".join(blocks("python")).replace("epochs=40", "steps=2, features=4, device='cpu'")
    code += "\nprint(images.shape, images.dtype, *x.shape)"
    (clone / "cell.py").write_text(code)
    assert "(3, 16, 16, 1) uint8 16 1 16 16" in run(["python", "cell.py"], clone).stdout


def test_the_notebooks_cells_run_in_their_order(clone, monkeypatch):
    notebook = ROOT / "demo.ipynb"
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    cells = [cell for cell in cells if cell["cell_type"] == "code"]
    code = "\n".join("".join(cell["source"]) for cell in cells)
    short = code.replace("epochs=50", "steps=2, device='cpu'")
    assert short != code
    (clone / "demo.py").write_text(short + "\nprint(type(seed), frames.shape, images.shape)")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    said = run(["python", "demo.py"], clone).stdout
    assert "<class 'int'> (19, 64, 64, 1) (21, 64, 64, 1)" in said

    # Who looks at it before running it sees the images of a whole run, and none of a broken one.
    shown = [json.dumps(cell["outputs"]) for cell in cells]
    assert sum("image/png" in outputs for outputs in shown) == 4 and "epoch 50" in "".join(shown)
    assert '"error"' not in "".join(shown) and notebook.stat().st_size < 300_000


def flag_rows():
    """Return the table of flags, written from the settings themselves."""
    group, rows = None, []
    for field in fields(Config):
        heading = field.metadata["group"]
        if heading != group:
            rows += ([""] if group else []) + [f"| {heading} | default | |", "|---|---|---|"]
        group = heading
        help = field.metadata["help"]
        if field.metadata["choices"] and field.name != "channels":
            help += ": " + ", ".join(map(str, field.metadata["choices"]))
        default = shown_default(field).removeprefix("default: ")
        rows.append(f"| `--{field.name}` | {default} | {help} |")
    return "\n".join(rows)


def test_the_table_of_flags_is_the_parsers():
    table = re.search(r"<!-- flags of train.py -->\n(.*?)\n<!-- end -->", TEXT, re.DOTALL)
    assert table and table[1].strip() == flag_rows()


@pytest.mark.parametrize(
    "command",
    ["train.py", "generate.py", "evaluate.py", "probe.py", "dataset.py",
     *(f"explore.py {name}" for name in COMMANDS)],
)  # fmt: skip
def test_help_shows_the_defaults(command, run_here, tmp_path, capsys):
    status = run_here(["python", *command.split(), "--help"], tmp_path)
    said = capsys.readouterr().out
    assert status == 0 and "usage:" in said and "(default: " in said


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("train.py --nonsense 1", "--nonsense"),
        ("train.py --epochs", "--epochs"),
        ("train.py --epochs 0", "--epochs 0"),
        ("train.py --data missing", "--data missing"),
        ("train.py --data empty", "--data empty"),
        ("train.py --data notes.pth", "--data notes.pth"),
        ("train.py --image_size 4", "--image_size 4"),
        ("train.py --device toaster", "--device toaster"),
        ("train.py --resume notes.pth", "notes.pth"),
        ("train.py --data path --sample_dir notes.pth", "notes.pth"),
        ("train.py @missing.txt", "missing.txt"),
        ("train.py --data path --checkpoint_dir notes.pth", "notes.pth"),
        ("generate.py --load_path missing.pth", "missing.pth"),
        ("generate.py --load_path notes.pth", "notes.pth"),
        ("generate.py --load_path empty", "empty"),
        ("generate.py --load_path a.pth --nonsense 1", "--nonsense"),
        ("explore.py", "pick|walk|"),
        ("explore.py dance", "dance"),
        ("explore.py arithmetic --load_path a.pth", "EXPRESSION"),
        ("explore.py turn --to 3 --load_path a.pth", "--from"),
        ("explore.py invert --load_path a.pth", "PHOTOS"),
        ("explore.py invert photo.jpg --load_path a.zip", "a.zip"),
        ("explore.py dropout --load_path a.pth", "--boxes"),
        ("explore.py features --load_path a.pth --filters 0", "--filters 0"),
        ("explore.py pick --load_path missing.pth", "missing.pth"),
        ("explore.py walk --load_path notes.pth", "notes.pth"),
        ("explore.py walk --load_path a.zip", "a.zip"),
        ("explore.py serve --port 70000 --load_path a.zip", "--port 70000"),
        ("explore.py pick --load_path a.zip --image_size big", "--image_size big"),
        ("explore.py walk --load_path a.zip --output walk.jpg", "walk.jpg"),
        ("explore.py pick --load_path a.zip --output notes.pth/a.png", "notes.pth"),
        ("dataset.py", "data"),
        ("dataset.py path --output sheet.jpg", "sheet.jpg"),
        ("dataset.py path --output notes.pth/sheet.png", "notes.pth"),
        ("generate.py --load_path a.zip", "a.zip"),
        ("dataset.py missing", "missing"),
        ("dataset.py empty --image_size big", "--image_size big"),
        ("dataset.py empty --nonsense", "--nonsense"),
    ],
)
def test_a_mistake_is_one_line_with_status_2_and_writes_nothing(
    run_here, tmp_path, capsys, command, says
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.pth").write_text("no checkpoint")
    write_images(tmp_path / "path", 3)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("notes.txt", "no checkpoint either")
    before = sorted(tmp_path.rglob("*"))
    status = run_here(["python", *command.split()], tmp_path)
    said = capsys.readouterr().err
    assert status == 2 and len(said.splitlines()) == 1 and says in said, said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_log_file_has_no_progress_bar(clone, tmp_path):
    arguments = ["python", clone / "train.py", *SMALL, "--image_size", "8"]
    done = run(arguments, tmp_path)
    assert "\r" not in done.stdout + done.stderr and not done.stderr
    assert "loss_d" in done.stdout


def test_every_link_leads_somewhere():
    for page in PAGES:
        links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
        for link in links:
            assert link.startswith("https://") or (page.parent / link).exists(), (page.name, link)

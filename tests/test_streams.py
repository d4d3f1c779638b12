"""A run needs nobody who reads what it says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_images

from serialization import checkpoint

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(os.name != "posix", reason="redirects as a POSIX shell does")


@pytest.mark.parametrize("redirected", [">&-", "2>&-", ">&- 2>&-", ">/dev/full", "2>/dev/full"])
def test_closed_and_full_outputs_cost_nothing(redirected):
    """One picture of the folder can't be read, which is said on stderr."""
    write_images(Path("images"), 8)
    Path("images", "broken.png").write_bytes(b"")
    small = "--data images --image_size 16 --features 4 --batch_size 4 --device cpu --steps 4"
    line = f'exec "{sys.executable}" "{ROOT / "train.py"}" {small} {redirected}'
    done = subprocess.run(line, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert checkpoint.load("checkpoints/images/last.pth")["step"] == 4
    assert ("loss_d" in done.stdout) == redirected.startswith("2")


def test_what_was_closed_is_not_opened_as_a_file():
    code = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import utils
utils.keep_outputs_open()
with open("file", "w") as file:
    file.write(str([os.readlink(f"/proc/self/fd/{{n}}") for n in range(3)]))
"""
    if not Path("/proc/self/fd").exists():
        pytest.skip("looks at descriptors as Linux shows them")
    Path("code.py").write_text(code)
    subprocess.run(f'"{sys.executable}" code.py <&- >&- 2>&-', shell=True, check=True)
    assert Path("file").read_text() == str(["/dev/null"] * 3)


def test_a_reader_who_leaves_ends_no_run():
    """And each line comes as soon as it is written, also into a pipe."""
    write_images(Path("images"), 8)
    small = "--data images --image_size 16 --features 4 --batch_size 4 --device cpu --steps 60"
    words = [sys.executable, str(ROOT / "train.py"), *small.split()]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not process.stdout.readline().startswith(b"epoch 1 "):
            assert process.poll() is None
        process.stdout.close()
        process.stderr.close()
        assert process.wait(120) == 0
    assert checkpoint.load("checkpoints/images/last.pth")["step"] == 60

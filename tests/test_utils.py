"""Settings as flags and files, one-line errors, standard streams, files."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_images

import utils
from serialization import checkpoint
from train import Config
from utils import (
    REQUIRED,
    SettingsError,
    atomic_write,
    check_settings,
    check_writable,
    parse_named_settings,
    parse_settings,
    run_script,
    setting,
    write_settings,
)

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, kw_only=True)
class Example:
    path: str = setting("things", REQUIRED, "a path")
    count: int = setting("things", 3, "how many", minimum=1)
    rate: float | None = setting("things", None, "how fast", shown="as fast as can be", below=1)
    kind: str = setting("others", "a", "which", choices=("a", "b"))
    loud: bool = setting("others", False, "loudly: 100%")
    again: str | None = setting("others", None, "once more", bare="last")
    size: str | None = setting("others", None, "how large", size=True)

    def __post_init__(self):
        check_settings(self)


def parse(*arguments):
    return parse_settings(Example, "What it is for.", arguments)


# Flags --------------------------------------------------------------------------------------------


def test_flags_become_settings():
    assert parse("--path", "x") == Example(path="x")
    given = parse("--path=x", "--count", "7", "--rate", "0.5", "--kind", "b", "--loud", "--again")
    assert given == Example(path="x", count=7, rate=0.5, kind="b", loud=True, again="last")
    assert parse("--path", "x", "--again", "y").again == "y"
    assert parse("-path", "x", "-count=7", "-loud") == parse("--path", "x", "--count=7", "--loud")


def test_a_dash_does_for_an_underscore(tmp_path):
    (tmp_path / "settings.txt").write_text("--log-every 5\n-name=two-words")
    words = [f"@{tmp_path / 'settings.txt'}", "--image-size=32", "-batch-size", "8", "--data=a-b"]
    config, named = parse_named_settings(Config, None, words)
    assert (config.image_size, config.batch_size, config.log_every) == ("32", 8, 5)
    assert (config.name, config.data) == ("two-words", "a-b")
    assert named == {"log_every", "name", "image_size", "batch_size", "data"}


def test_flags_of_an_older_version_are_read():
    words = ["--epochs", "40", "--on_collapse", "stop", "--mirror"]
    config, named = parse_named_settings(Config, None, words)
    assert config == Config(mirror=True) and named == {"epochs", "mirror"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--path"),
        (["--path", "x", "--volume", "3"], "--volume"),
        (["--path", "x", "--count", "many"], "--count"),
        (["--path", "x", "--kind", "c"], "--kind"),
        (["--path", "x", "--coun", "3"], "--coun"),
        (["--path", "x", "--loud", "False"], "False"),
    ],
)
def test_a_flag_that_does_not_parse_is_one_line_and_status_2(capsys, arguments, says):
    with pytest.raises(SystemExit) as stopped:
        parse(*arguments)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and says in said and len(said.splitlines()) == 1


@dataclass(frozen=True, kw_only=True)
class Move:
    """Move a thing.

    And what else there is to say.
    """

    thing: str = setting("things", REQUIRED, "what", positional=True)
    from_: int = setting("places", 0, "where it is", minimum=0)

    def __post_init__(self):
        check_settings(self)


def parse_command(*arguments):
    return parse_settings({"move": Move, "example": Example}, "What they are for.", arguments)


def test_the_first_argument_chooses_among_commands():
    assert parse_command("move", "a - b", "--from", "3") == Move(thing="a - b", from_=3)
    assert parse_command("move", "-from=3", "a") == Move(thing="a", from_=3)
    assert parse_command("example", "--path", "x") == Example(path="x")
    with pytest.raises(SettingsError, match="--from -1: must be at least 0"):
        parse_command("move", "a", "--from", "-1")


def test_help_shows_commands_groups_and_every_default(capsys):
    example = ["What it is for.", "things:", "others:", "(required)", "(default: 3)",
               "(default: as fast as can be)", "(default: a)", "100% (default: False)"]  # fmt: skip
    for parser, arguments, words in (
        (parse_command, ["--help"], ["What they are for.", "move", "Move a thing."]),
        (parse_command, ["move", "--help"], ["And what else", "THING", "--from", "(default: 0)"]),
        (parse, ["--help"], example),
    ):
        with pytest.raises(SystemExit) as stopped:
            parser(*arguments)
        said = " ".join(capsys.readouterr().out.split())
        assert stopped.value.code == 0 and all(word in said for word in words)


# Values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [{"count": 0}, {"count": 2.0}, {"count": True}, {"count": "3"}, {"rate": 1.0}, {"rate": "fast"},
     {"rate": float("nan")}, {"rate": float("-inf")}, {"rate": True}, {"kind": "c"}, {"path": 3},
     {"path": ""}, {"path": None}, {"path": b"x"}, {"loud": "no"}, {"loud": 1}, {"again": 3},
     {"size": (7, 8)}, {"size": (8, 9, 10)}, {"size": 64.0}],
)  # fmt: skip
def test_values_that_cannot_be_used_are_refused_by_name(wrong):
    name = next(iter(wrong)).replace("size", "image_size")
    with pytest.raises(SettingsError, match=f"--{name} "):
        Example(**{"path": "x", **wrong})


@pytest.mark.parametrize(
    "wrong",
    [{"image_size": "7"}, {"image_size": "64x300"}, {"image_size": "big"}, {"image_size": "64x"},
     {"name": "a/b"}, {"name": ".."}, {"batch_size": 0}, {"beta1": 1.0}, {"loss": "wgan"},
     {"learning_rate": -1.0}, {"learning_rate_g": float("inf")}, {"seed": -1}],
)  # fmt: skip
def test_config_refuses_by_the_name_of_the_flag(wrong):
    with pytest.raises(SettingsError, match=f"--{next(iter(wrong))} "):
        Config(**wrong)


def test_what_notebooks_pass_is_converted():
    config = Config(
        data=Path("cats"), image_size=(48, np.int64(64)), mirror=np.True_, batch_size=np.int32(8),
        learning_rate=np.float32(0.5), r1=1, resume=True, device=torch.device("cpu"),
    )  # fmt: skip
    plain = Config(
        data="cats", image_size="48x64", mirror=True, batch_size=8, learning_rate=0.5, r1=1.0,
        resume="last", device="cpu",
    )  # fmt: skip
    assert config == plain and json.dumps(asdict(config)) == json.dumps(asdict(plain))
    assert Config(resume=False) == Config()
    assert Config(image_size=28).image_size == Config(image_size="28x28").image_size == "28"
    assert replace(config, epochs=4).epochs == 4
    assert {type(field.default) for field in fields(Config)} <= {str, int, float, bool, type(None)}


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "settings.txt").write_text("--data ~/cats\n")
    home = str(tmp_path / "cats")
    for config in (
        Config(data="~/cats"),
        Config(data=Path("~", "cats")),
        parse_settings(Config, None, ["--data=~/cats"]),
        parse_settings(Config, None, ["@~/settings.txt"]),
    ):
        assert config.data == home
    assert Config(data="~").data == str(tmp_path) and Config(data="~x").data == "~x"


# Settings files -----------------------------------------------------------------------------------


def test_a_settings_file_is_read_with_comments_quotes_and_spaces(tmp_path):
    path = tmp_path / "settings.txt"
    path.write_text(
        "# a comment\n\n--path /images/my cats   # where\n--count=7\n   --kind 'b'\n--loud\n"
        '--again "one #2"\n'
    )
    expected = Example(path="/images/my cats", count=7, kind="b", loud=True, again="one #2")
    assert parse(f"@{path}") == expected
    assert parse(f"@{path}", "--count", "8").count == 8


TEXTS = [
    "cats", "/a b/c", "C:\\cats\\new", "a #b", "#b", "c#", "o'brien", '"x"', "'x'", " x ",
    "Äpfel", 'a" #', "=x", "-dash", "--loud", "@x", "a\u2028b", "\udce9", "a'b\"c",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_written_settings_are_read_back(tmp_path, text):
    settings = Example(path=text, rate=1e-5, loud=True)
    write_settings(tmp_path / "settings.txt", settings)
    assert parse(f"@{tmp_path / 'settings.txt'}") == settings


@pytest.mark.parametrize(
    ("line", "value"),
    [('"quo""te"', 'quo"te'), ('""""', '"'), ("o'brien", "o'brien"), ("C:\\my cats", "C:\\my cats"),
     ('"C:\\my #1"', "C:\\my #1"), ('" a"', " a")],
)  # fmt: skip
def test_settings_files_of_earlier_versions_are_read(tmp_path, line, value):
    (tmp_path / "settings.txt").write_text(f"--path {line}\n")
    assert parse(f"@{tmp_path / 'settings.txt'}").path == value


@pytest.mark.parametrize("content", [b"epochs: 25\n", b"\x89PNG\r\n\x1a\n\x00\x00", b'--path "x\n'])
def test_what_is_not_a_settings_file_is_refused_by_name(tmp_path, content):
    (tmp_path / "settings.txt").write_bytes(content)
    with pytest.raises(SettingsError, match=r"settings\.txt"):
        parse(f"@{tmp_path / 'settings.txt'}")
    with pytest.raises(SettingsError, match=r"missing\.txt: No such file"):
        parse("@missing.txt")


def test_a_settings_file_from_windows_is_read(tmp_path):
    (tmp_path / "settings.txt").write_bytes("\ufeff--path Äpfel\r\n--count 7\r\n".encode())
    assert parse(f"@{tmp_path / 'settings.txt'}") == Example(path="Äpfel", count=7)


# Errors and standard streams ----------------------------------------------------------------------


def test_a_mistake_is_one_line_and_a_defect_a_traceback(capsys):
    def fail(error):
        raise error

    with pytest.raises(SystemExit) as stopped:
        run_script(lambda: fail(SettingsError("--count 0: must be at least 1")))
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith(": --count 0: must be at least 1\n")
    with pytest.raises(SystemExit):
        run_script(lambda: Path("/no/such/folder/file").read_bytes())
    assert "/no/such/folder/file" in capsys.readouterr().err
    with pytest.raises(ValueError, match="a defect"):
        run_script(lambda: fail(ValueError("a defect")))


@pytest.mark.skipif(os.name != "posix", reason="redirects as a POSIX shell does")
@pytest.mark.parametrize("redirected", ["<&- >&- 2>&-", ">/dev/full 2>&1", "2>&1 | head -n 1"])
def test_output_that_nothing_takes_ends_no_script(redirected):
    """Closed, whose number no file then gets; on a full disk; a pipe whose reader leaves."""
    code = """
from pathlib import Path
from utils import run_script, warn

def main():
    for i in range(10_000):
        print(i)
    warn("one that nobody reads")
    with open("done", "w") as file:
        file.write(str(file.fileno()))

run_script(main)
"""
    Path("code.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ['PYTHONPATH']}"}
    line = f"'{sys.executable}' code.py {redirected}"
    done = subprocess.run(line, shell=True, env=environment, capture_output=True, text=True)
    assert int(Path("done").read_text()) > 2 and not done.stderr and done.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="closes pipes as POSIX does")
def test_a_reader_who_leaves_ends_no_run():
    """And each line comes as soon as it is written, also into a pipe."""
    write_images(Path("images"), 8)
    small = "--data images --image_size 16 --features 4 --batch_size 4 --device cpu --steps 40"
    small += " --precision fp32"
    words = [sys.executable, str(ROOT / "train.py"), *small.split()]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not process.stdout.readline().startswith(b"epoch "):
            assert process.poll() is None
        process.stdout.close()
        process.stderr.close()
        assert process.wait() == 0
    assert checkpoint.load("checkpoints/images/last.pth")["step"] == 40


# Files --------------------------------------------------------------------------------------------


def test_folders_that_cannot_be_written_are_refused_without_making_them(tmp_path):
    (tmp_path / "file").write_text("")
    check_writable(tmp_path / "new" / "deep")
    check_writable(Path("relative"))
    for wrong in (tmp_path / "file", tmp_path / "file" / "deep"):
        with pytest.raises(SettingsError, match="file"):
            check_writable(wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.name != "posix", reason="elsewhere folders are not flushed")
def test_a_disk_that_flushes_no_folders_is_written_with_one_warning(tmp_path, monkeypatch, capsys):
    """As network mounts and shared folders of virtual machines."""
    real = os.fsync

    def fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    monkeypatch.setattr(utils.os, "fsync", fsync)
    for content in (b"first", b"second"):
        with atomic_write(tmp_path / "file") as file:
            file.write(content)
    assert (tmp_path / "file").read_bytes() == b"second"
    assert capsys.readouterr().err.count("flushes no folders") == 1

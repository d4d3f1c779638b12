"""Settings as flags and files, devices."""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import pytest

from train import Config
from utils import (
    REQUIRED,
    SettingsError,
    check_settings,
    check_writable,
    parse_named_settings,
    parse_settings,
    run_script,
    setting,
    write_settings,
)


@dataclass(frozen=True, kw_only=True)
class Example:
    path: str = setting("things", REQUIRED, "a path")
    count: int = setting("things", 3, "how many", minimum=1)
    rate: float | None = setting("things", None, "how fast", shown="as fast as can be", below=1)
    kind: str = setting("others", "a", "which", choices=("a", "b"))
    loud: bool = setting("others", False, "loudly: 100%")
    again: str | None = setting("others", None, "once more", bare="last")

    def __post_init__(self):
        check_settings(self)


def parse(*arguments):
    return parse_settings(Example, "What it is for.", arguments)


def test_flags_become_settings():
    assert parse("--path", "x") == Example(path="x")
    given = parse("--path=x", "--count", "7", "--rate", "0.5", "--kind", "b", "--loud", "--again")
    assert given == Example(path="x", count=7, rate=0.5, kind="b", loud=True, again="last")
    assert parse("--path", "x", "--again", "y").again == "y"


def test_one_dash_does_for_two():
    assert parse("-path", "x", "-count=7", "-loud") == parse("--path", "x", "--count=7", "--loud")


def test_a_dash_does_for_an_underscore(tmp_path):
    (tmp_path / "settings.txt").write_text("--log-every 5\n--name=two-words")
    words = [f"@{tmp_path / 'settings.txt'}", "--image-size=32", "-batch-size", "8", "--data=a-b"]
    config = parse_settings(Config, None, words)
    assert (config.image_size, config.batch_size, config.log_every) == ("32", 8, 5)
    assert (config.name, config.data) == ("two-words", "a-b")


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


@pytest.mark.parametrize(
    "wrong",
    [{"count": 0}, {"count": 2.0}, {"count": True}, {"rate": 1.0}, {"rate": float("nan")},
     {"kind": "c"}, {"path": 3}, {"path": ""}, {"loud": "no"}],
)  # fmt: skip
def test_values_out_of_their_range_are_refused_by_name(wrong):
    with pytest.raises(SettingsError, match=f"--{next(iter(wrong))} "):
        Example(**{"path": "x", **wrong})


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


def test_help_speaks_of_commands_and_of_one(capsys):
    for arguments, words in (
        (["--help"], ["What they are for.", "move", "Move a thing."]),
        (["move", "--help"], ["And what else", "THING", "(required)", "--from", "(default: 0)"]),
    ):
        with pytest.raises(SystemExit) as stopped:
            parse_command(*arguments)
        said = capsys.readouterr().out
        assert stopped.value.code == 0 and all(word in said for word in words)


def test_help_shows_groups_and_every_default(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    said = " ".join(capsys.readouterr().out.split())
    for words in ("What it is for.", "things:", "others:", "(required)", "(default: 3)",
                  "(default: as fast as can be)", "(default: a)", "100% (default: False)",
                  ):  # fmt: skip
        assert words in said


def test_a_settings_file_is_read_with_comments_quotes_and_spaces(tmp_path):
    path = tmp_path / "settings.txt"
    path.write_text(
        "# a comment\n\n--path /images/my cats   # where\n--count=7\n   --kind b\n--loud\n"
        '--again "one #2"\n'
    )
    expected = Example(path="/images/my cats", count=7, kind="b", loud=True, again="one #2")
    assert parse(f"@{path}") == expected
    assert parse(f"@{path}", "--count", "8").count == 8


@pytest.mark.parametrize(
    "text",
    [
        "cats",
        "/a b/c",
        "C:\\cats\\new",
        "a #b",
        "#b",
        "c#",
        "o'brien",
        '"x"',
        " x ",
        "Äpfel",
        'a" #',
        "=x",
        "-dash",
        "--loud",
        "@x",
        "a\u2028b",
        "\udce9",
    ],
)
def test_written_settings_are_read_back(tmp_path, text):
    settings = Example(path=text, rate=1e-5, loud=True)
    write_settings(tmp_path / "settings.txt", settings)
    assert parse(f"@{tmp_path / 'settings.txt'}") == settings


@pytest.mark.parametrize("content", [b"epochs: 25\n", b"\x89PNG\r\n\x1a\n\x00\x00", b'--path "x\n'])
def test_what_is_no_settings_file_is_refused_by_name(tmp_path, content):
    (tmp_path / "settings.txt").write_bytes(content)
    with pytest.raises(SettingsError, match=r"settings\.txt"):
        parse(f"@{tmp_path / 'settings.txt'}")


def test_a_settings_file_from_windows_is_read(tmp_path):
    (tmp_path / "settings.txt").write_bytes("\ufeff--path Äpfel\r\n--count 7\r\n".encode())
    assert parse(f"@{tmp_path / 'settings.txt'}") == Example(path="Äpfel", count=7)


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


def test_config_is_plain():
    config = Config(epochs=3, image_size="64x64")
    assert json.loads(json.dumps(asdict(config)))["image_size"] == "64"
    assert Config(image_size=28).image_size == "28"
    assert Config(image_size="64x96").image_size == "64x96"
    assert replace(config, epochs=4).epochs == 4
    assert {type(field.default) for field in fields(Config)} <= {str, int, float, bool, type(None)}


def test_flags_of_an_older_version_are_read():
    words = ["--epochs", "40", "--on_collapse", "stop", "--mirror"]
    config, named = parse_named_settings(Config, None, words)
    assert config == Config(mirror=True) and named == {"epochs", "mirror"}


@pytest.mark.parametrize(
    "wrong",
    [{"image_size": "7"}, {"image_size": "64x300"}, {"image_size": "big"}, {"image_size": "64x"},
     {"name": "a/b"},
     {"name": ".."}, {"name": ""}, {"batch_size": 0}, {"beta1": 1.0}, {"loss": "wgan"},
     {"learning_rate": -1.0}, {"learning_rate_g": float("inf")}, {"seed": -1}],
)  # fmt: skip
def test_config_refuses_by_the_name_of_the_flag(wrong):
    with pytest.raises(ValueError, match=f"--{next(iter(wrong))} "):
        Config(**wrong)


def test_folders_that_cannot_be_written_are_refused_without_making_them(tmp_path):
    (tmp_path / "file").write_text("")
    check_writable(tmp_path / "new" / "deep")
    check_writable(Path("relative"))
    for wrong in (tmp_path / "file", tmp_path / "file" / "deep"):
        with pytest.raises(SettingsError, match="file"):
            check_writable(wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

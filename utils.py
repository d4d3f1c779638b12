"""What every script needs: settings as flags, one-line errors, the device, atomic files, seeds."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import functools
import inspect
import io
import json
import math
import os
import re
import shutil
import signal
import sys
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

Settings = TypeVar("Settings")
REQUIRED = dataclasses.MISSING
UNSUPPORTED = (errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # by network mounts
ALSO_TAKEN: dict[type, tuple[type, ...]] = {  # for a setting of a type, and converted into it
    bool: (np.bool_,), int: (np.integer,), float: (int, np.integer, np.floating),
    str: (str, os.PathLike, torch.device), list: (),
}  # fmt: skip


class UserError(ValueError):
    """A mistake of the user's; the message is one line that says what to do."""


class SettingsError(UserError):
    """A setting that cannot be used; the message is one line that names its flag."""


def warn(message: str) -> None:
    """Print one line on stderr, above a progress bar if there is one."""
    tqdm.write(f"Warning: {message}", file=sys.stderr)


@functools.cache
def warn_once(message: str) -> None:
    """Do as `warn`, the first time that it is called with `message`."""
    warn(message)


def first_line(text: str) -> str:
    """Return the first line of a text, such as what an error of torch's says in pages."""
    return next(iter(text.strip().splitlines()), "")


# Settings as flags -------------------------------------------------------------------------------


def setting(
    group: str,
    default: Any,
    help: str,
    *,
    choices: Sequence[Any] = (),
    minimum: float = -math.inf,
    below: float = math.inf,
    bare: str | None = None,
    shown: str | None = None,
    may_change: bool = False,
    positional: bool = False,
    size: bool = False,
) -> Any:
    """Declare a field of a settings dataclass, and with it a flag of the same name.

    The flag of a field that is named `from_`, since `from` is Python's, is `--from`.

    Args:
        group: the heading that the flag stands under in `--help`.
        default: the default; `REQUIRED` makes it a flag that must be given.
        help: one line, which says the unit; `--help` adds the default.
        choices: the only values allowed.
        minimum, below: the range allowed, minimum <= value < below.
        bare: the value that the flag has when it is given without one.
        shown: the default in words, where it is None.
        may_change: whether a resumed run may have another value.
        positional: whether it is given by its place, and not as a flag; `default` is `REQUIRED`.
            Such a field may be a `list[str]`, which takes one or more.
        size: whether it is a size in pixels, see `parse_size`; kept as "64" or "64x96".
    """
    metadata = {
        "help": help, "group": group, "choices": choices, "minimum": minimum, "below": below,
        "bare": bare, "shown": shown, "may_change": may_change, "positional": positional,
        "size": size,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


def check_settings(settings: Any) -> None:
    """Convert the values of a settings dataclass to the types declared, and refuse what is wrong.

    A notebook may pass paths, NumPy's numbers and an int for a float; `~` is the home folder.

    Raises:
        SettingsError: naming the flag and what it takes.
    """
    for field in dataclasses.fields(settings):
        given, wanted = getattr(settings, field.name), _type_of(settings, field)
        choices, minimum, below = (field.metadata[key] for key in ("choices", "minimum", "below"))
        value = _convert(given, wanted, field.metadata)
        object.__setattr__(settings, field.name, value)
        if value is None and field.default is None:
            continue
        if type(value) is not wanted:
            problem = f"must be of type {wanted.__name__}, not {type(value).__name__}"
        elif value == "":
            problem = "must not be empty"
        elif wanted is float and not math.isfinite(value):
            problem = "must be a finite number"
        elif choices and value not in choices:
            problem = "must be one of " + ", ".join(map(str, choices))
        elif wanted in (int, float) and not minimum <= value < below:
            bounds = [f"at least {minimum:g}"] * (minimum > -math.inf)
            problem = "must be " + " and ".join(bounds + [f"below {below:g}"] * (below < math.inf))
        else:
            continue
        raise SettingsError(f"{flag(field)} {given}: {problem}")


def _convert(value: Any, wanted: type, metadata: Mapping[str, Any]) -> Any:
    """Return `value` as the type `wanted`, or as it is where it does not stand for one of that."""
    if value is None:
        return None
    if metadata["size"]:
        height, width = parse_size(value)
        return f"{height}" if height == width else f"{height}x{width}"
    if metadata["bare"] and isinstance(value, bool):
        return metadata["bare"] if value else None
    if wanted is list and isinstance(value, list | tuple):
        return [_convert(each, str, metadata) for each in value]
    if isinstance(value, ALSO_TAKEN[wanted]) and type(value) is not bool:
        value = wanted(value)
    if type(value) is str and value[:2] in ("~", "~/", "~\\"):
        value = os.path.expanduser(value)
    return value


def parse_settings(
    kind: type[Settings] | Mapping[str, type[Settings]],
    description: str | None,
    arguments: Sequence[str] | None = None,
) -> Settings:
    """Build the settings dataclass `kind` from command-line arguments, by default the process's."""
    return parse_named_settings(kind, description, arguments)[0]


def parse_named_settings(
    kind: type[Settings] | Mapping[str, type[Settings]],
    description: str | None,
    arguments: Sequence[str] | None = None,
) -> tuple[Settings, frozenset[str]]:
    """Build `kind` from command-line arguments; return it and the names of what they set.

    One dash does for two, or for a word's underscore, and @FILE stands for the flags in a settings
    file. A flag that does not parse ends the process with one line and status 2. Where `kind` holds
    several by the names of commands, the first argument chooses. A class may have `renamed`, the
    flags of older versions: each maps to its new name, or to None where it is dropped.

    Raises:
        SettingsError: a value that cannot be used, or a settings file that cannot be read.
    """
    style: dict[str, Any] = {
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "argument_default": argparse.SUPPRESS,
        "allow_abbrev": False,
    }
    parser = _Parser(description=description, **style)
    if isinstance(kind, Mapping):
        commands = parser.add_subparsers(title="commands", metavar="|".join(kind), required=True)
        for name, each in kind.items():
            text = inspect.getdoc(each) or ""
            command = commands.add_parser(
                name, help=text.partition("\n")[0], description=text, **style
            )
            _add_flags(command, each)
    else:
        _add_flags(parser, kind)

    words: list[str] = []
    for word in sys.argv[1:] if arguments is None else arguments:
        words += read_settings(word[1:]) if word.startswith("@") else [word]
    words = [_FLAG.sub(lambda match: "--" + match[1].replace("-", "_"), word) for word in words]
    values = vars(parser.parse_args(words))
    kind = values.pop("_kind")
    values.pop("_dropped", None)
    return kind(**values), frozenset(values)


def _add_flags(parser: argparse.ArgumentParser, kind: type[Settings]) -> None:
    """Let `parser` take the settings of `kind`, and give `kind` itself as one more value."""
    parser.set_defaults(_kind=kind)
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        metadata, wanted = field.metadata, _type_of(kind, field)
        group = metadata["group"]
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        help = f"{metadata['help']} ({shown_default(field)})".replace("%", "%%")
        options: dict[str, Any] = {"help": help}
        if wanted is bool:
            options["action"] = "store_true"
        else:
            options.update(type=wanted, metavar=wanted.__name__.upper())
            if metadata["choices"]:
                options.update(choices=metadata["choices"], metavar=None)
            if metadata["bare"]:
                options.update(nargs="?", const=metadata["bare"])
        if metadata["positional"]:
            options["metavar"] = field.name.upper()
            if wanted is list:
                options.update(type=str, nargs="+")
        else:
            options.update(dest=field.name, required=field.default is REQUIRED)
        groups[group].add_argument(flag(field), **options)
    for old, new in getattr(kind, "renamed", {}).items():
        wanted = typing.get_type_hints(kind)[new] if new else str
        parser.add_argument(
            f"--{old}", dest=new or "_dropped", type=wanted, nargs="?", help=argparse.SUPPRESS
        )


def flag(field: dataclasses.Field) -> str:
    """Return the flag of a setting, or the name of one that is given by its place."""
    name = field.name.rstrip("_")
    return name if field.metadata["positional"] else f"--{name}"


def shown_default(field: dataclasses.Field) -> str:
    """Return the default of a setting as `--help` shows it."""
    if field.default is REQUIRED:
        return "required"
    return f"default: {field.metadata['shown'] or field.default}"


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


_FLAG = re.compile(r"^--?([a-z][\w-]+)(?==|$)")  # as users write it

# A flag, its value plain or in quotes, which are doubled inside, and a comment: all optional.
# shlex.split would drop the backslashes of C:\cats, and break at the apostrophe of o'brien.
_SETTINGS_LINE = re.compile(
    r"""\s* (?: (--?[\w-]+) (?: (?:\s*=\s*|\s+)
    ( "(?:[^"]|"")*" | '(?:[^']|'')*' | (?![\#="'])\S.*? ) )? )? (?: (?:^|\s+) \#.* )? \s*""",
    re.VERBOSE,
)


def read_settings(path: str) -> list[str]:
    """Read a settings file, one `--flag value` a line, into command-line arguments.

    Raises:
        SettingsError: the file can't be read, or a line is none of flag, value and comment.
    """
    try:
        text = Path(path).expanduser().read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise SettingsError(f"settings file {path}: {error.strerror}") from None
    arguments = []
    for line in re.split(r"\r?\n", text):
        match = _SETTINGS_LINE.fullmatch(line)
        if match is None:
            line = line if line.isprintable() else "a line"
            raise SettingsError(f"settings file {path}: {line} is not like: --epochs 25")
        flag, value = match.groups()
        if value and value[0] in "\"'":
            value = value[1:-1].replace(2 * value[0], value[0])
        if flag:
            arguments.append(flag if value is None else f"{flag}={value}")
    return arguments


def write_settings(path: Path, settings: Any) -> None:
    """Write `settings` as a file that `@FILE` reads back."""
    lines = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value is True:
            lines.append(flag(field))
        elif value is not None and value is not False:
            plain = re.fullmatch(r"""[^\s"'#=]([^"#]*[^\s"#])?""", str(value))
            value = value if plain else '"{}"'.format(value.replace('"', '""'))
            lines.append(f"{flag(field)} {value}")
    with atomic_write(path) as file:
        file.write("\n".join([*lines, ""]).encode("utf-8", "surrogateescape"))


def parse_size(size: Any) -> tuple[int, int]:
    """Convert 64, "64", "64x96" or (64, 96), in pixels, into (height, width).

    Raises:
        SettingsError: it is none of these, or a side is not from 8 to 256.
    """
    text = "x".join(map(str, size)) if isinstance(size, tuple | list) else str(size)
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if match is None:
        raise SettingsError(f"--image_size {text}: give it as 64 or, height x width, 64x96")
    height, width = int(match[1]), int(match[2] or match[1])
    if not (8 <= height <= 256 and 8 <= width <= 256):
        raise SettingsError(f"--image_size {text}: must be from 8 to 256 pixels a side")
    return height, width


def _type_of(settings: Any, field: dataclasses.Field) -> type:
    """Return the type of a field's values: T for `T | None`, list for `list[str]`."""
    kind = settings if isinstance(settings, type) else type(settings)
    annotation = typing.get_type_hints(kind)[field.name]
    if typing.get_origin(annotation) is list:
        return list
    members = [member for member in typing.get_args(annotation) if member is not type(None)]
    return members[0] if members else annotation


def keep_outputs_open() -> None:
    """Let stdout and stderr drop what nothing takes: `| head` has left, a log's disk is full.

    A run would end there, and lose the steps since its last checkpoint.
    """
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # closed before the start, as by >&-: the next file would get the number, and the text
    os.close(spare)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w")  # noqa: SIM115
            setattr(sys, name, stream)
        if hasattr(stream, "reconfigure"):  # a pipe on Windows may lack the letters of a file name
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
        for method in ("write", "flush"):
            setattr(stream, method, functools.partial(_attempt, getattr(stream, method), stream))


def _attempt(call: Callable[..., Any], stream: IO[str], *arguments: Any) -> Any:
    """Call a method of `stream`, which leads to nowhere from the first call on that fails."""
    try:
        return call(*arguments)
    except OSError:
        with open(os.devnull, "wb") as nowhere:  # under it, as what is buffered is tried again
            os.dup2(nowhere.fileno(), stream.fileno())


def run_script(main: Callable[[], Any]) -> None:
    """Run a script's `main`: a user's mistake becomes one line on stderr and exit status 2.

    Mistakes are `UserError`s, and files that the system refuses. A run that a signal has stopped
    ends with one line too, and with 128 + the signal's number, as shells expect.
    """
    keep_outputs_open()
    try:
        main()
    except UserError as error:
        status, message = 2, str(error)
    except torch.OutOfMemoryError:
        status = 2
        message = (
            "the GPU's memory is full: lower --batch_size or --features, or end what else uses it "
            "(nvidia-smi); what was saved is kept"
        )
    except OSError as error:
        if error.filename is None:
            raise
        status, message = 2, f"{error.filename}: {error.strerror}"
    except KeyboardInterrupt as interrupt:
        number = getattr(interrupt, "number", signal.SIGINT)
        status, message = 128 + number, str(interrupt) or "interrupted"
    else:
        return
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    sys.exit(status)


# The machine -------------------------------------------------------------------------------------


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is the GPU if CUDA can train on one, else the CPU.

    A GPU becomes the current one, on which streams, graphs and pinned memory are made, once it has
    trained a small step. Under torchrun each process has its own GPU.

    Raises:
        SettingsError: no such device, or none that can train.
    """
    if not re.fullmatch(r"auto|(cpu|cuda|mps|xpu)(:\d+)?", name):
        raise SettingsError(f"--device {name}: must be auto, cpu, cuda, cuda:1, mps or xpu")
    device = torch.device(_cuda_or_cpu() if name == "auto" else name)
    if device.type == "cuda" and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        if device.index is not None:
            raise SettingsError(f"--device {name}: under torchrun leave the number out")
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if device.type == "cpu":
        return device
    try:
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            device = torch.device("cuda", index)
            torch.cuda.set_device(device)
        train_once(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = _device_problem(device, error)
        if name != "auto":
            raise SettingsError(f"--device {name}: {reason}") from None
        warn(f"{reason}: using the CPU")
        return torch.device("cpu")
    return device


def _cuda_or_cpu() -> str:
    """Return "cuda" if CUDA finds a GPU, else "cpu", with a warning where there may be one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return "cuda"
    said = " ".join(str(warning.message) for warning in caught)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if "driver" in said and "too old" in said:
        warn(
            f"the NVIDIA driver is too old for this PyTorch (CUDA {torch.version.cuda}): using the "
            "CPU; update the driver, or install a PyTorch for an older CUDA (pytorch.org)"
        )
    elif said:
        warn(f"{first_line(said)}: using the CPU")
    elif visible is not None and shutil.which("nvidia-smi"):
        warn(f"CUDA_VISIBLE_DEVICES={visible!r} hides all GPUs: using the CPU")
    elif torch.version.cuda is None and shutil.which("nvidia-smi"):
        warn("this PyTorch was built without CUDA: using the CPU; pytorch.org has one with it")
    elif torch.backends.mps.is_available():
        print("training on the CPU; --device mps would use this Mac's GPU")
    return "cpu"


def train_once(device: torch.device) -> None:
    """Train one step of a tiny network, so that a kernel, operator or memory that lacks shows now.

    Leaves the random numbers as they were.
    """
    with torch.random.fork_rng(devices=[]):
        network = nn.Sequential(
            nn.ConvTranspose2d(8, 8, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 1, 4)
        )
    network.to(device, memory_format=memory_format(device))
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    loss = F.softplus(network(torch.ones(2, 8, 4, 4).to(device))).mean()
    loss.backward()
    optimizer.step()
    loss.item()


def _device_problem(device: torch.device, error: Exception) -> str:
    """Return what keeps `device` from training, in one line with what to do."""
    said = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return f"{device} has no memory left; end what else uses it (nvidia-smi)"
    if "no kernel image" in said or "invalid device function" in said:
        return (
            f"this PyTorch (CUDA {torch.version.cuda}) has no kernels for {device}; one for "
            "another CUDA may (pytorch.org)"
        )
    if "busy or unavailable" in said:
        return f"{device} is used by another program alone (exclusive mode)"
    return f"{device} is not available here ({re.split(r'[.] ', first_line(said))[0]})"


def memory_format(device: torch.device) -> torch.memory_format:
    """Return channels_last where it is faster and right: on MPS batch norm's gradients are wrong.

    PyTorch issue 175189.
    """
    fast = device.type in ("cpu", "cuda")
    return torch.channels_last if fast else torch.contiguous_format


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the CPU to `device`; to a CUDA GPU without waiting for it."""
    if device.type != "cuda":  # elsewhere the source might be freed too early (PyTorch 189690)
        return tensor.to(device)
    try:
        pinned = tensor.pin_memory()
    except RuntimeError as error:
        warn_once(f"no pinned memory here ({first_line(str(error))}): copies to the GPU wait")
        return tensor.to(device)
    return pinned.to(device, non_blocking=True)


# Files -------------------------------------------------------------------------------------------


def check_writable(folder: Path) -> None:
    """Refuse a folder that can't be made or written to, without making it.

    Raises:
        SettingsError: naming what stands in the way.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise SettingsError(f"{folder} can't be written: {there} is no folder with that permission")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file in memory, and write it to `path` whole or not at all.

    It is written beside its place, flushed to the disk and renamed, so that a crash or a full disk
    leaves the file that was there before. In memory, since NumPy and torch hide what the system
    says of a disk that is full.

    Raises:
        OSError: naming `path`.
    """
    contents = io.BytesIO()
    yield contents
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _naming(path):
            with open(temporary, "wb") as file:
                file.write(contents.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, entries: Sequence[Any]) -> None:
    """Write `entries` as a JSON list, one a line, so that `grep` and `diff` find them.

    Raises:
        OSError: naming `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(("[\n" + ",\n".join(map(json.dumps, entries)) + "\n]\n").encode())


def append_line(path: Path, line: bytes) -> None:
    """Add a line to a file, whole or not at all as long as the program runs.

    Raises:
        OSError: naming `path`.
    """
    with _naming(path), open(path, "ab", buffering=0) as file:
        end = file.tell()
        if file.write(line) < len(line):  # the disk is full; the next line must not join it
            file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let what the system says of a file name it, which it does not when a disk is full."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def remove_temporaries(folder: Path) -> None:
    """Delete what writers that were killed have left in `folder`."""
    for path in folder.glob(".*.[0-9]*.tmp"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system and the disk can."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        warn_once(f"{folder}: this disk flushes no folders; a power cut may lose the last file")


# Images and randomness ----------------------------------------------------------------------------


def make_grid(images: np.ndarray) -> Image.Image:
    """Lay images (N, H, W, C) uint8 out in rows on black, as square as N allows, 2 pixels apart."""
    count, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    grid = np.zeros((rows * (height + 2) + 2, columns * (width + 2) + 2, channels), np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 2) + 2, i % columns * (width + 2) + 2
        grid[top : top + height, left : left + width] = image
    return Image.fromarray(grid.squeeze(2) if channels == 1 else grid)


def evenly_spaced(length: int, count: int) -> np.ndarray:
    """Return at most `count` of the indices 0 to `length` - 1, evenly spaced."""
    return np.linspace(0, length - 1, min(length, count)).round().astype(int)


def random_at(seed: int, purpose: str, position: int) -> np.random.Generator:
    """Return the random numbers of one position: the order of an epoch, the flips of a step.

    They follow from the arguments alone, so that a resumed run needs no saved generator state.
    """
    return np.random.default_rng([seed, position, *purpose.encode()])

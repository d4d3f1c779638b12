"""Writes checkpoints so that none is ever half a file, and reads them back without running them.

A training checkpoint is a dictionary of plain values and tensors, which `torch.load` opens under
`weights_only=True`:

    format         "dcgan-1"
    config         every setting of the run, `dataclasses.asdict` of train.Config
    epoch, step    completed epochs and steps
    images       how many it was trained on
    generator, discriminator, optimizer_g, optimizer_d    their state dicts
    generator_ema  that of the generator's average
    best           of best.pth alone: its distance from real images, and how that was measured

One to pass on, see export.py, holds the generator alone, its weights in half precision; the
discriminator lies beside it, see `beside`.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import sys
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from utils import UserError, atomic_write

FORMAT = "dcgan-1"
SHIPPED = Path(__file__).parents[1] / "checkpoints" / "cats64.pth"  # comes with the repository
NETWORK = {"features": int, "channels": int, "max_features": int, "norm": str}
SETTINGS = {
    "generator": {**NETWORK, "z_dim": int, "activation": str, "z_dist": str},
    "discriminator": NETWORK,
}
# What the pickle of a checkpoint calls, and besides what those of other programs call. Of what else
# torch allows, some claims gigabytes by itself, and some makes tensors that are no plain arrays.
CALLED = {
    "collections OrderedDict", "torch._utils _rebuild_tensor_v2",
    "torch FloatStorage", "torch HalfStorage", "torch LongStorage",
}  # fmt: skip
CALLED_ELSEWHERE = {
    "torch._utils _rebuild_tensor", "torch._utils _rebuild_parameter", "torch Size", "torch device",
    "torch DoubleStorage", "torch BFloat16Storage", "torch IntStorage", "torch ShortStorage",
    "torch CharStorage", "torch ByteStorage", "torch BoolStorage",
}  # fmt: skip
# What does nothing but hold or copy, of Python's own and torch's.
HARMLESS = {
    "argparse Namespace", "pathlib PosixPath", "pathlib WindowsPath", "_codecs encode",
    "__builtin__ set", "builtins set", "torch float32", "torch float16", "torch bfloat16",
}  # fmt: skip
ARCHIVE = b"PK\x03\x04"  # how files begin that torch takes for archives,
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # and those of PyTorch before 1.6


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message is one line that names the file."""


class Blank:
    """Stands for whatever else a file makes, which is not run: it takes all and keeps its state."""

    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Blank:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state


def save(path: str | Path, contents: Mapping[str, Any]) -> None:
    """Write `contents` to `path`, whole or not at all.

    Raises:
        OSError: naming `path`; the file that was there before still is.
    """
    write(path, {"format": FORMAT, **contents})


def write(path: str | Path, contents: Any) -> None:
    """Do as `save`, for a file that need not be a training checkpoint."""
    with atomic_write(Path(path)) as file:
        torch.save(contents, file)


def load(path: str | Path) -> dict[str, Any]:
    """Read a training checkpoint onto the CPU.

    Raises:
        CheckpointError: missing, a folder, damaged (its checksums are compared) or not ours.
    """
    contents = read(path)
    if not is_ours(contents):
        raise CheckpointError(f"{path} is no checkpoint of train.py: its format is not {FORMAT}")
    return contents


def is_ours(contents: Any) -> bool:
    """Return whether what a file holds is a training checkpoint."""
    return type(contents) is dict and contents.get("format") == FORMAT


def read(path: str | Path) -> Any:
    """Read what a file of any program's weights holds onto the CPU, without running it.

    Other programs' objects, and functions that made such, are each a `Blank`.

    Raises:
        CheckpointError: missing, a folder, damaged, or more than weights and plain values.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; name the .pth file in it")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    with open(path, "rb") as file:
        try:
            beginning = file.read(len(LEGACY))
            if beginning == LEGACY:
                called = _called_by_legacy(file)
            elif beginning.startswith(ARCHIVE):
                called = _called_by_archive(file, path)
            else:
                raise ValueError("torch and zipfile may each read something else in it")
        except CheckpointError:
            raise
        except Exception as error:  # what is no archive makes zipfile raise nearly anything
            raise CheckpointError(f"{path} is no checkpoint, or is cut short") from error
    unknown = called - CALLED - CALLED_ELSEWHERE
    barred = [name for name in unknown - HARMLESS if _acts(name)]
    if barred:
        raise CheckpointError(
            f"{path} holds more than weights, which is not run: it calls {min(barred)!r}; a file "
            "of the network's state_dict() alone would open"
        )
    blanks = [(Blank, name.replace(" ", ".")) for name in unknown]
    try:
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(blanks):
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch names no common class for what it cannot read
        reason = first_line(error)
        if isinstance(error, pickle.UnpicklingError):  # at which torch advises to run it
            reason = "not without running it; the network's state_dict() would open alone"
        raise CheckpointError(f"{path} is no checkpoint that can be read: {reason}") from error
    if is_ours(contents) and not called <= CALLED:
        raise CheckpointError(
            f"{path} is no checkpoint of train.py: it calls {min(called - CALLED)!r}"
        )
    return contents


def beside(path: str | Path) -> Path:
    """Return where the discriminator lies that was passed on with the generator in `path`."""
    path = Path(path)
    return path.with_name(f"{path.stem}_discriminator{path.suffix}")


def numbered(folder: Path) -> list[Path]:
    """Return a run's numbered checkpoints, in the order of their epochs."""
    paths = [path for path in folder.iterdir() if re.fullmatch(r"epoch_\d+\.pth", path.name)]
    return sorted(paths, key=epoch_of)


def epoch_of(path: Path) -> int:
    """Return the epoch in a numbered checkpoint's name."""
    return int(path.stem.removeprefix("epoch_"))


def network_in(
    path: str | Path, contents: Mapping[str, Any], network: str, average: bool = False
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the settings and the weights of a checkpoint's "generator" or "discriminator".

    The settings are arguments of the class of that name in models.py. The weights are the last, or
    with `average` their average, if there is one.

    Raises:
        CheckpointError: it has none, or they are no such settings.
    """
    config, weights = contents.get("config"), contents.get(network)
    weights = contents.get(f"{network}_ema", weights) if average else weights
    for name, value in ((network, weights), ("config", config)):
        if not isinstance(value, dict):
            raise CheckpointError(f"{path} holds no {name}")
    try:
        height, _, width = config["image_size"].partition("x")
        settings = {name: config[name] for name in SETTINGS[network]}
        settings["image_size"] = (int(height), int(width or height))
        for name, kind in SETTINGS[network].items():
            if not isinstance(settings[name], kind):
                raise TypeError(f"{name} is no {kind.__name__}")
        if settings["channels"] not in (1, 3, 4):
            raise ValueError(f"{settings['channels']} channels")
        weights = dict(weights)  # without what torch notes beside them, and believes
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: its config is not a {network}'s ({error!r})") from error
    return settings, weights


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, which may be pages if it is torch's."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _called_by_archive(file: IO[bytes], path: Path) -> set[str]:
    """Return what the pickle in an archive calls, as "module name", and compare all checksums.

    Raises:
        CheckpointError: the archive is compressed or damaged.
    """
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise CheckpointError(f"{path} is compressed, which PyTorch's checkpoints are not")
        # Attributes, which torch leaves at 0, may call an entry a folder: its checksum
        # would not be compared, and what it holds not be read.
        odd = (entry.filename for entry in entries if entry.external_attr)
        damaged = next(odd, None) or archive.testzip()
        if damaged:
            raise CheckpointError(f"{path} is damaged: {damaged!r} does not match its checksum")
        [pickled] = [name for name in archive.namelist() if name.lower().endswith("/data.pkl")]
        return _called(archive.read(pickled))


def _called_by_legacy(file: IO[bytes]) -> set[str]:
    """Return what the pickles of a legacy file call, but for its first."""
    return set.union(*(_called(file) for _ in range(4)))


def _called(pickled: bytes | IO[bytes]) -> set[str]:
    """Return the functions and classes, as "module name", that a pickle calls, up to its end."""
    codes = pickletools.genops(pickled)
    return {argument for code, argument, _ in codes if code.name == "GLOBAL"}


def _acts(name: str) -> bool:
    """Return whether a "module name" is Python's or torch's own, which no network's state is."""
    root = name.split()[0].partition(".")[0]
    is_module = name.startswith(("torch.nn.modules.", "torch.nn.parallel."))
    return root in {*sys.stdlib_module_names, "__builtin__", "torch"} and not is_module


def check_weights(
    path: str | Path, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Refuse weights that have not the names and shapes `expected`, or not the bytes for them.

    Raises:
        CheckpointError: naming what differs.
    """
    if not isinstance(weights, Mapping) or weights.keys() != expected.keys():
        raise CheckpointError(f"{path}: its weights are not those of the network in its config")
    for name, tensor in expected.items():
        given = weights[name]
        if not isinstance(given, Tensor) or given.shape != tensor.shape:
            raise CheckpointError(f"{path}: {name} has not the shape {tuple(tensor.shape)}")
        if given.untyped_storage().nbytes() < given.numel() * given.element_size():
            raise CheckpointError(f"{path}: {name} holds less than its shape says")
        if not given.isfinite().all():
            raise CheckpointError(f"{path}: {name} holds numbers that are not finite")

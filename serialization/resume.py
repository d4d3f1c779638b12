"""Which checkpoint a run goes on from, and with which settings."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from config import Config
from dataset import run_name
from preprocessing.sources import NAMED_SETS
from serialization import checkpoint
from serialization.checkpoint import CheckpointError
from utils import warn

NEEDED = {  # of a checkpoint, to go on from it; first what one to draw with lacks
    "optimizer_g": dict, "optimizer_d": dict, "config": dict, "epoch": int, "step": int,
    "pictures": int, "generator": dict, "discriminator": dict, "generator_ema": dict,
}  # fmt: skip


def find_run(config: Config) -> tuple[Config, dict[str, Any] | None]:
    """Settle a run's name and settings, and read the checkpoint that it goes on from, if any.

    `config.given` says which settings the user named. The checkpoint comes with its own place as
    "path".

    Raises:
        CheckpointError: the run exists and is not resumed, or it was made with other settings.
    """
    name = config.name or run_name(config.data)
    own = Path(config.checkpoint_dir, name, "last.pth")
    anew = replace(config, name=name, resume=None)
    if config.resume is None:
        if own.exists():
            raise CheckpointError(f"{own} exists: add --resume to go on, or --name for a new run")
        return anew, None
    is_file = config.resume != "last"
    if is_file:
        saved, moved = read(config.resume), {}
    elif own.exists() or any(own.parent.glob("epoch_*.pth")):
        saved, moved = newest_whole(own), {"name": name, "checkpoint_dir": config.checkpoint_dir}
    else:
        print(f"Nothing is saved as {own} yet: starting anew")
        return anew, None

    source = saved["path"]
    config = replace(merge(config, saved["config"], source), resume=None, **moved)
    own = Path(config.checkpoint_dir, config.name, "last.pth")
    if is_file and own.exists() and not own.samefile(source):
        raise CheckpointError(f"{own} exists: add --name for a new run that goes on from {source}")
    return config, saved


def read(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint that a run can go on from, with its own place as "path".

    Raises:
        CheckpointError: it can't be read, or has not all that a run needs.
    """
    contents = checkpoint.load(path)
    for name, kind in NEEDED.items():
        value = contents.get(name)
        if not isinstance(value, kind) or (kind is int and value < 0):
            raise CheckpointError(
                f"{path} can't be trained further: it has no {name} to go on with"
            )
    return contents | {"path": Path(path)}


def newest_whole(last: Path) -> dict[str, Any]:
    """Read `last`, or if it is damaged the newest numbered checkpoint beside it that is not.

    Raises:
        CheckpointError: none of them can be used.
    """
    problems = []
    for path in (last, *reversed(checkpoint.numbered(last.parent))):
        try:
            saved = read(path)
        except CheckpointError as error:
            problems.append(error)
            continue
        for problem in problems:
            warn(f"{problem}; going on from {path}")
        return saved
    raise problems[0]


def merge(config: Config, stored: dict[str, Any], source: Path) -> Config:
    """Take what `config` was given over what is `stored`, and refuse what can't change midway."""
    unknown = stored.keys() - {field.name for field in fields(config)}
    if unknown:
        names = ", ".join(sorted(map(str, unknown)))
        raise CheckpointError(f"{source} is of another version; it has {names}")
    given = {name: getattr(config, name) for name in config.given}
    for field in fields(config):
        name = field.name
        if name not in given or field.metadata["may_change"]:
            continue
        old, new = stored.get(name, field.default), given[name]
        if old == new or (name == "data" and _same_data(old, new)):
            continue
        raise CheckpointError(
            f"--{name} {new}: {source} was trained with {old}; leave the flag out, or start a new "
            "run with another --name and without --resume"
        )
    if "epochs" in given:
        given = {"steps": None, **given}  # the new bound, not the one that the run had
    return Config(**stored | given)


def _same_data(old: str, new: str) -> bool:
    """Return whether `new` is `old`, written otherwise, or where it may have been moved to."""
    moved = old not in NAMED_SETS and not Path(old).exists()
    return moved or Path(old).resolve() == Path(new).resolve()

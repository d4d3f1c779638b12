"""The checkpoint that a run goes on from, and the settings that it then has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from preprocessing.sources import NAMED_SETS, run_name
from serialization import checkpoint
from serialization.checkpoint import CheckpointError
from utils import warn

NEEDED = {  # of a checkpoint, to go on from it; first what one that only generates lacks
    "optimizer_g": dict, "optimizer_d": dict, "config": dict, "epoch": int, "step": int,
    "pictures": int, "generator": dict, "discriminator": dict, "generator_ema": dict,
}  # fmt: skip


def find_run(config: Any, named: Collection[str] | None = None) -> tuple[Any, dict | None]:
    """Return a run's `train.Config` with its name, and the checkpoint that it goes on from or None.

    Args:
        named: the settings that a resumed run takes from `config`; the others are those of the
            checkpoint. None: all that differ from their defaults, and more epochs than it had.

    Raises:
        CheckpointError: the run exists and is not resumed, or it was made with other settings.
    """
    name = config.name or run_name(config.data)
    own = Path(config.checkpoint_dir, name, "last.pth")
    new = replace(config, name=name, resume=None)
    if config.resume is None:
        if own.exists():
            raise CheckpointError(f"{own} exists: add --resume to go on, or --name for a new run")
        return new, None
    is_file = config.resume != "last"
    if is_file:
        saved, moved = read(config.resume), {}
    elif own.exists() or any(own.parent.glob("epoch_*.pth")):
        saved, moved = newest_whole(own), {"name": name, "checkpoint_dir": config.checkpoint_dir}
    else:
        print(f"no checkpoint at {own}: starting a new run")
        return new, None

    source = saved["path"]
    config = replace(merge(config, named, saved["config"], source), resume=None, **moved)
    own = Path(config.checkpoint_dir, config.name, "last.pth")
    if is_file and own.exists() and not own.samefile(source):
        raise CheckpointError(f"{own} exists: add --name for a new run that goes on from {source}")
    return config, saved


def read(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint that a run can go on from, with its own place as "path".

    Raises:
        CheckpointError: it can't be read, or lacks what a run needs.
    """
    contents = checkpoint.load(path)
    for name, kind in NEEDED.items():
        value = contents.get(name)
        if not isinstance(value, kind) or (kind is int and value < 0):
            raise CheckpointError(f"{path} cannot be resumed: it has no {name}")
    return contents | {"path": Path(path)}


def newest_whole(last: Path) -> dict[str, Any]:
    """Load `last`, or if it is damaged the newest numbered checkpoint beside it that is not.

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
            warn(f"{problem}; resuming from {path}")
        return saved
    raise problems[0]


def merge(
    config: Any, named: Collection[str] | None, stored: Mapping[str, Any], source: Path
) -> Any:
    """Return the settings in `stored` with the `named` ones of `config`.

    Raises:
        CheckpointError: one that a resumed run cannot change, or settings of another version.
    """
    known = {field.name: field for field in fields(config)}
    stored = {config.renamed.get(name, name): value for name, value in stored.items()}
    stored.pop(None, None)  # settings that are no more
    unknown = stored.keys() - known.keys()
    if unknown:
        names = ", ".join(sorted(map(str, unknown)))
        raise CheckpointError(f"{source} is of a newer version; it has {names}")
    if named is None:
        named = {name for name, field in known.items() if getattr(config, name) != field.default}
        named |= {"epochs"} if config.epochs > stored.get("epochs", 0) else set()
    changed = {name: getattr(config, name) for name in named}
    for name in changed.keys() - {name for name in known if known[name].metadata["may_change"]}:
        old, new = stored.get(name, known[name].default), changed[name]
        if old == new or (name == "data" and _same_data(old, new)):
            continue
        if old is None:  # which stands for another setting's value, or for what was found
            shown = known[name].metadata["shown"]
            old = stored.get(shown, shown)
        raise CheckpointError(
            f"--{name} {new}: {source} was trained with {old}; leave the flag out, or start a new "
            "run with another --name and without --resume"
        )
    if "epochs" in changed:
        changed = {"steps": None, **changed}  # the new length, not the one that the run had
    return type(config)(**stored | changed)


def check_states(saved: Mapping[str, Any], generator: nn.Module, discriminator: nn.Module) -> None:
    """Refuse a checkpoint whose weights and Adam's moments are not those of the networks.

    The networks may be on the meta device: a few bytes may claim gigabytes.

    Raises:
        CheckpointError: naming what differs.
    """
    path = saved["path"]
    for name, network in (
        ("generator", generator), ("generator_ema", generator), ("discriminator", discriminator),
    ):  # fmt: skip
        checkpoint.check_weights(path, saved[name], network.state_dict())
    moments = ("exp_avg", "exp_avg_sq")
    for name, network in (("optimizer_g", generator), ("optimizer_d", discriminator)):
        expected = {
            f"{i} {moment}": p for i, p in enumerate(network.parameters()) for moment in moments
        }
        try:
            states = saved[name]["state"].items()
            given = {f"{i} {moment}": state[moment] for i, state in states for moment in moments}
        except (AttributeError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: its {name} is not Adam's") from error
        checkpoint.check_weights(path, given, expected)


def restore(gan: Any, saved: Mapping[str, Any]) -> None:
    """Load the states of a checkpoint into a `train.GAN`, on whatever device either is.

    Raises:
        CheckpointError: a state does not fit.
    """
    for name, part in gan._asdict().items():
        state = saved.get(name)
        if not state and name.startswith("scaler"):
            continue  # was trained in another precision
        try:
            part.load_state_dict(state)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = checkpoint.first_line(error)
            raise CheckpointError(f"{saved['path']}: its {name} does not fit ({reason})") from error
        for group in getattr(part, "param_groups", ()):
            group["capturable"] = part.defaults["capturable"]  # this device's, not the saved


def _same_data(old: str, new: str) -> bool:
    """Return whether `new` is the path `old` written otherwise, or where it may have moved to."""
    moved = old not in NAMED_SETS and not Path(old).exists()
    return moved or Path(old).resolve() == Path(new).resolve()

"""Networks for other programs, by PyTorch's hub, whatever modules those have of their own.

    generator = torch.hub.load("path/to/this/folder", "generator", source="local", path="X.pth")
    images = generator(torch.randn(16, generator.z_dim))  # (16, C, H, W) in [-1, 1]

Each `def` here without an underscore is what can be asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import pathlib  # names that are imported from modules would be taken for networks on offer
import sys
import typing
import zlib

from torch import nn

dependencies = ["torch", "numpy"]

_FOLDER = pathlib.Path(__file__).parent
_SHIPPED = _FOLDER / "checkpoints" / "cats64.pth"


def generator(
    path: str | pathlib.Path | None = None, average: bool = True, **unsaid: typing.Any
) -> nn.Module:
    """Load the generator of a checkpoint, in eval mode on the CPU: latents (N, Z) to images.

    Arguments as in `models.Generator.from_checkpoint`; without `path`, that of the cats that are
    included.

    Raises:
        CheckpointError: a ValueError that says in one line why there is none.
    """
    with _our_models() as models:
        return models.Generator.from_checkpoint(path or _SHIPPED, average=average, **unsaid)


def discriminator(path: str | pathlib.Path | None = None) -> nn.Module:
    """Load the discriminator of a checkpoint, in eval mode on the CPU: images to logits (N,).

    Raises:
        CheckpointError: as in `generator`.
    """
    with _our_models() as models:
        return models.Discriminator.from_checkpoint(path or _SHIPPED)


@contextlib.contextmanager
def _our_models() -> typing.Any:
    """Yield models.py, while the caller's modules of the same names as ours step aside.

    Ours are kept under names that no other program has.
    """
    ours = {path.stem for path in _FOLDER.glob("*.py")}
    ours |= {path.parent.name for path in _FOLDER.glob("*/__init__.py")}
    prefix = f"dcgan_{zlib.crc32(bytes(_FOLDER)):08x}_"  # of this copy, if there are two
    theirs = {key: sys.modules.pop(key) for key in [*sys.modules] if key.partition(".")[0] in ours}
    kept = {key: module for key, module in sys.modules.items() if key.startswith(prefix)}
    sys.modules.update({key.removeprefix(prefix): module for key, module in kept.items()})
    sys.path.insert(0, str(_FOLDER))
    try:
        models = importlib.import_module("models")
        for network in (models.Generator, models.Discriminator):
            network.__module__ = f"{prefix}models"  # by which they are pickled
        yield models
    finally:
        sys.path.remove(str(_FOLDER))
        for key in [key for key in sys.modules if key.partition(".")[0] in ours]:
            sys.modules[prefix + key] = sys.modules.pop(key)
        sys.modules.update(theirs)

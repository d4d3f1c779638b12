"""Networks for other programs, by PyTorch's hub, whatever modules those have of their own.

    generator = torch.hub.load("path/to/this/folder", "generator", source="local", path="X.pth")
    images = generator(torch.randn(16, generator.z_dim))  # (16, C, H, W) in [-1, 1]

Each `def` here without an underscore is what can be asked for.
"""

from __future__ import annotations

import importlib
import pathlib  # names that are imported from modules would be taken for networks on offer
import sys
import types
import typing

from torch import nn

dependencies = ["torch", "numpy"]


def generator(
    path: str | pathlib.Path | None = None, average: bool = True, **unsaid: typing.Any
) -> nn.Module:
    """Return the generator of a checkpoint, in eval mode on the CPU: latents (N, Z) to images.

    Arguments as in `models.Generator.from_checkpoint`; without `path`, that of the cats that come
    with the repository.

    Raises:
        CheckpointError: a ValueError that says in one line why there is none.
    """
    path = path or _ours("serialization.checkpoint").SHIPPED
    return _ours("models").Generator.from_checkpoint(path, average=average, **unsaid)


def discriminator(path: str | pathlib.Path | None = None) -> nn.Module:
    """Return the discriminator of a checkpoint, in eval mode on the CPU: images to logits (N,).

    Raises:
        CheckpointError: as in `generator`.
    """
    path = path or _ours("serialization.checkpoint").SHIPPED
    return _ours("models").Discriminator.from_checkpoint(path)


def _ours(name: str) -> types.ModuleType:
    """Import a module of this folder, leaving `sys.path` and the caller's modules as they were.

    A caller's `models` or `utils` would be taken for ours, so they step aside for the import.
    """
    folder = pathlib.Path(__file__).parent
    ours = {path.stem for path in folder.glob("*.py")} | {
        path.parent.name for path in folder.glob("*/__init__.py")
    }
    theirs = {key: sys.modules.pop(key) for key in [*sys.modules] if key.partition(".")[0] in ours}
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
        for key in [*sys.modules]:
            if key.partition(".")[0] in ours:
                del sys.modules[key]
        sys.modules.update(theirs)

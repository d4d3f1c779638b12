"""Networks for other programs, by PyTorch's hub, whatever modules those have of their own.

    generator = torch.hub.load("path/to/this/folder", "generator", source="local", path="X.pth")
    images = generator(torch.randn(16, generator.z_dim))  # (16, C, H, W) in [-1, 1]

Each `def` here without an underscore is what can be asked for.
"""

from __future__ import annotations

import builtins
import importlib.util
import pathlib  # names that are imported from modules would be taken for networks on offer
import sys
import types
import typing
import zlib

from torch import nn

dependencies = ["torch", "numpy"]


def generator(
    path: str | pathlib.Path | None = None, average: bool = True, **unsaid: typing.Any
) -> nn.Module:
    """Give the generator of a checkpoint, in eval mode on the CPU: latents (N, Z) to images.

    Arguments as in `models.Generator.from_checkpoint`; without `path`, that of the cats that come
    with the repository.

    Raises:
        CheckpointError: a ValueError that says in one line why there is none.
    """
    path = path or _ours("checkpoint").SHIPPED
    return _ours("models").Generator.from_checkpoint(path, average=average, **unsaid)


def discriminator(path: str | pathlib.Path | None = None) -> nn.Module:
    """Give the discriminator of a checkpoint, in eval mode on the CPU: images to logits (N,).

    Raises:
        CheckpointError: as in `generator`.
    """
    path = path or _ours("checkpoint").SHIPPED
    return _ours("models").Discriminator.from_checkpoint(path)


def _ours(name: str) -> types.ModuleType:
    """Import a module of this folder under a name that no other program has for its own.

    What it imports goes the same way, since `import` calls the `__import__` among its builtins:
    neither `sys.path` nor a module that is called `models` or `utils` elsewhere is touched.
    """
    folder = pathlib.Path(__file__).parent
    unique = f"dcgan_{zlib.crc32(bytes(folder)):08x}_{name}"  # of this copy, if there are two
    if unique in sys.modules:
        return sys.modules[unique]

    def import_(name: str, *others: typing.Any, **more: typing.Any) -> types.ModuleType:
        ours = (folder / f"{name}.py").is_file()
        return _ours(name) if ours else builtins.__import__(name, *others, **more)

    spec = importlib.util.spec_from_file_location(unique, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    vars(module)["__builtins__"] = {**vars(builtins), "__import__": import_}
    sys.modules[unique] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[unique]  # so that the next try begins anew
        raise
    return module

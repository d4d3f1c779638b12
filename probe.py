"""Measure a discriminator's features by how well a linear SVM tells classes by them.

    python probe.py --load_path checkpoints/cats/last.pth --data path/to/classes
    python probe.py --load_path X.pth --data svhn --labels_per_class 100

Section 5 of the paper: the maps of all convolutions, each max-pooled to 4x4, describe an image to
a regularised linear L2-SVM. Beside its accuracy on test images stand those by the same network
untrained and by raw pixels. A file beside the checkpoint keeps all of it.

A folder or .zip holds train/CLASS and test/CLASS; or CLASS alone, and a fifth becomes the test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from dataset import to_tensor
from metrics import linear_svm
from metrics.features import untrained
from models import Discriminator, recalibrate
from preprocessing.labelled import Labelled, open_labelled
from preprocessing.sources import NAMED_SETS
from utils import (
    REQUIRED,
    SettingsError,
    check_settings,
    check_writable,
    parse_settings,
    pick_device,
    random_at,
    run_script,
    setting,
    write_json,
)

CHOOSING = 10  # draws of labels by which C is chosen, as in the authors' code
BATCH = 128  # images at most, as in training
CALIBRATING = 10_000  # images that batch norm takes its statistics from
PUBLISHED = """\
Radford et al. 2015: 82.8% on CIFAR-10, by 28,672 features of a network trained on ImageNet; 77.5%
on SVHN from 100 labels a class, by 7,168 features of a network trained on SVHN's images"""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Which features to probe, and how.

    Raises:
        SettingsError: a value out of its range, or `draws` without `labels_per_class`.
    """

    load_path: str = setting("images", REQUIRED, "the checkpoint, a .pth file")
    data: str = setting(
        "images", REQUIRED, "classes in a folder or a .zip, or a set: "
        + ", ".join(name for name in NAMED_SETS if name != "celeba"),
    )  # fmt: skip
    download_dir: str = setting("images", "data", "folder of downloaded sets")
    cache_dir: str = setting("images", "cache", "folder of decoded images")

    layers: str | None = setting(
        "probe", None, "convolutions to take, such as 1,2,3 from the image on", shown="all"
    )
    statistics: str = setting(
        "probe", "recalibrated", "batch norm's: of these training images, or the checkpoint's",
        choices=("recalibrated", "running"),
    )  # fmt: skip
    labels_per_class: int | None = setting(
        "probe", None, "learn from so many images of each class", shown="from all", minimum=1
    )
    draws: int | None = setting(
        "probe", None, "how often --labels_per_class are drawn", shown="100", minimum=2
    )
    no_baselines: bool = setting("probe", False, "neither the untrained network nor raw pixels")
    seed: int = setting(
        "probe", 0, "of untrained weights, draws, and what is set apart", minimum=0, below=2**63
    )

    output: str | None = setting(
        "files", None, "the results, a .json file", shown="beside the checkpoint"
    )
    device: str = setting("run", "auto", "cpu, cuda, cuda:1, mps; auto: cuda or cpu")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.draws is not None and self.labels_per_class is None:
            raise SettingsError(f"--draws {self.draws}: is for --labels_per_class")
        if self.output is not None and Path(self.output).suffix != ".json":
            raise SettingsError(f"--output {self.output}: must be a .json file")


def probe(request: Request) -> list[dict[str, Any]]:
    """Probe as asked, print, write, and give what was written, one dictionary a kind of features.

    Raises:
        SettingsError, DataError, CheckpointError: before anything is written but decoded images.
    """
    device = pick_device(request.device)
    network = Discriminator.from_checkpoint(request.load_path, device)
    output = Path(request.output or Path(request.load_path).with_suffix(".probe.json"))
    check_writable(output.parent)
    layers = pick_layers(request.layers, network)
    data = open_labelled(
        request.data, network.image_size, network.channels, request.seed,
        request.download_dir, request.cache_dir,
    )  # fmt: skip
    draws = draw_labels(request, data)

    learning, validation, test = (len(rows) for rows in (data.learning, data.validation, data.test))
    labels = len(draws[0]) if draws else learning + validation
    chance = np.bincount(data.labels[data.test]).max() / test
    about = {
        "labels": labels, "draws": len(draws) or 1, "validation": validation, "test": test,
        "classes": len(data.classes), "chance": round(chance, 6), "layers": layers,
        "statistics": request.statistics, "seed": request.seed,
        "load_path": request.load_path, "data": request.data,
    }  # fmt: skip
    drawn = f", drawn {len(draws)} times from {learning:,}" if draws else ""
    print(
        f"learning from {labels:,} labels{drawn}; {validation:,} choose C\n"
        f"testing on {test:,} images of {len(data.classes)} classes; chance {chance:.1%}\n"
        f"layers: {', '.join(map(str, layers))}; batch norm's statistics: {request.statistics}\n\n"
        f"{'':15}{'dimensions':>10}{'C':>9}{'validation':>12}{'test':>10}"
    )
    networks: dict[str, Discriminator | None] = {"discriminator": network}
    if not request.no_baselines:
        networks |= {"untrained": untrained(network, request.seed), "raw pixels": None}
    lines = []
    for name, network in networks.items():
        if network is not None and request.statistics == "recalibrated":
            recalibrate(network, batches(data.images, data.learning[:CALIBRATING], device))
        features_of = partial(describe, network, layers) if network else nn.Flatten()
        line = {"features": name, **measure(features_of, data, draws, device)}
        spread = f" ± {line['deviation']:.2%}" if draws else ""
        print(
            f"{name:15}{line['dimensions']:>10,}{line['C']:>9g}{line['validation_accuracy']:>12.2%}"
            f"{line['accuracy']:>10.2%}{spread}"
        )
        lines.append(line | about)
    write_json(output, lines)
    print(f"\n{PUBLISHED}\nWrote {output}")
    return lines


def pick_layers(layers: str | None, network: Discriminator) -> list[int]:
    """Convert "1,2,3" to the numbers of convolutions that have a feature map; None is all.

    Raises:
        SettingsError: there are none of that number.
    """
    count = sum(isinstance(layer, nn.LeakyReLU) for layer in network.main)
    numbers = [str(number) for number in range(1, count + 1)]
    wanted = numbers if layers is None else layers.split(",")
    if not set(wanted) <= set(numbers):
        raise SettingsError(f"--layers {layers}: must be some of {','.join(numbers)}")
    return sorted({int(number) for number in wanted})


def draw_labels(request: Request, data: Labelled) -> list[np.ndarray]:
    """Sample as many images of every class, as often as asked: positions in `data.learning`.

    Draw i follows from the seed and i alone. None are drawn if all images are to be learnt from.

    Raises:
        SettingsError: a class has not so many.
    """
    wanted = request.labels_per_class
    if wanted is None:
        return []
    labels = data.labels[data.learning]
    members = [np.flatnonzero(labels == i) for i in range(len(data.classes))]
    for name, there in zip(data.classes, members, strict=True):
        if len(there) < wanted:
            raise SettingsError(
                f"--labels_per_class {wanted}: there are {len(there)} of {name} to learn from"
            )
    draws = []
    for i in range(request.draws or 100):
        random = random_at(request.seed, "labels", i)
        draws.append(np.concatenate([random.choice(m, wanted, replace=False) for m in members]))
    return draws


# Features ----------------------------------------------------------------------------------------


def describe(network: Discriminator, layers: Sequence[int], x: Tensor) -> Tensor:
    """Return the features (N, D) of images x (N, C, H, W) in [-1, 1], as section 5.1 has them.

    D is 16 times the sum of the layers' channels, 15,360 for all of the default network at 64x64.
    """
    maps = network.feature_maps(x)
    return torch.cat([F.adaptive_max_pool2d(maps[i - 1], 4).flatten(1) for i in layers], 1)


def batches(images: np.ndarray, rows: np.ndarray, device: torch.device) -> Iterator[Tensor]:
    """Yield images (N, H, W, C) uint8 at `rows`, in [-1, 1] and batches of nearly equal size."""
    with tqdm(total=len(rows), unit="image", disable=None, leave=False) as bar:
        for some in np.array_split(rows, -(-len(rows) // BATCH)):
            yield to_tensor(torch.from_numpy(images[some]).to(device))
            bar.update(len(some))


@torch.no_grad()
def extract(
    features_of: Callable[[Tensor], Tensor], stream: Iterable[Tensor], count: int
) -> Tensor:
    """Return the features (count, D) of a stream of so many images, without a second copy."""
    features, done = torch.empty(0), 0
    for x in stream:
        some = features_of(x)
        if done == 0:
            features = some.new_empty(count, some.shape[1])
        features[done : done + len(some)] = some
        done += len(some)
    return features


def standardise(x: Tensor, *others: Tensor) -> None:
    """Return the features of x (N, D) mean 0 and deviation 1, and change `others` (M, D) alike.

    So that C means the same for all of them, and that an SVM is trained in few steps. Next to one
    factor for all features it was worth half a point of accuracy, a trained network's on 4,000
    images of CIFAR-10. What is constant becomes 0.
    """
    deviation, mean = torch.std_mean(x, 0)
    deviation[deviation < 1e-5 * deviation.max()] = torch.inf
    for features in (x, *others):
        features.sub_(mean).div_(deviation)


def measure(
    features_of: Callable[[Tensor], Tensor],
    data: Labelled,
    draws: Sequence[np.ndarray],
    device: torch.device,
) -> dict[str, Any]:
    """Classify the test images by their features, and return the accuracies.

    With `draws`, accuracies are means over SVMs that learn from one draw each. Without, the SVM
    that is tested learns from the validation images too, once they have chosen C.
    """
    learnable, count = np.concatenate([data.learning, data.validation]), len(data.learning)
    x, x_test = (
        extract(features_of, batches(data.images, rows, device), len(rows))
        for rows in (learnable, data.test)
    )
    y, y_test = (torch.from_numpy(data.labels[rows]).to(device) for rows in (learnable, data.test))
    standardise(x, x_test)
    classes = len(data.classes)
    chosen = linear_svm.choose(x, y, classes, count, draws[:CHOOSING] or [slice(count)])
    accuracies = []
    pairs = list(zip_longest(draws or [slice(None)], chosen.weights))
    for rows, start in tqdm(pairs, desc="Testing", disable=None, leave=False):
        weights = linear_svm.train(x[rows], y[rows], classes, chosen.c, start)
        accuracies.append(linear_svm.accuracy(weights, x_test, y_test))
    return {
        "dimensions": x.shape[1], "C": chosen.c,
        "validation_accuracy": round(chosen.accuracy, 6),
        "accuracy": round(np.mean(accuracies).item(), 6),
        "deviation": round(np.std(accuracies).item(), 6) if draws else None,
    }  # fmt: skip


if __name__ == "__main__":
    run_script(lambda: probe(parse_settings(Request, __doc__)))

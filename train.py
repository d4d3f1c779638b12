"""Train a DCGAN on a folder of images, a .zip of one, or a set known by name.

    python train.py                         handwritten digits, in a minute or two on any computer
    python train.py --data path/to/cats     your own images; --resume goes on after a break
    torchrun --standalone --nproc_per_node gpu train.py     on every GPU of this machine

Flags can also come from a file, one `--flag value` a line: python train.py @settings.txt
"""

from __future__ import annotations

import copy
import math
import re
import shlex
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp import GradScaler
from tqdm.auto import tqdm

from dataset import to_image
from models import (
    GENERATE_BATCH,
    Discriminator,
    Generator,
    generate,
    random_latents,
    recalibrate,
    sample_latents,
)
from preprocessing.sources import NAMED_SETS, DataError
from serialization.resume import check_states, find_run, restore
from training import distributed, signals
from training.acceleration import Graph, cudnn_benchmark, pick_precision
from training.augment import augment
from training.best import Best
from training.inputs import Inputs
from training.logger import Diverged, copy_states, open_logger, tensors_in
from training.matrix_conv import largest_map_that_pays, use_matrix_products
from training.setup import Schedule, check_run, describe, load_images, make_schedule
from utils import (
    SettingsError,
    check_settings,
    memory_format,
    parse_named_settings,
    parse_size,
    pick_device,
    random_at,
    run_script,
    setting,
)

METRICS = ("loss_d", "loss_g", "d_real", "d_fake", "r1")  # what train_step returns
STATISTICS_IMAGES = 128  # that the EMA generator's batch-norm statistics are of
GRID_SEEDS = range(64)  # of the sample grids, and what generate.py samples by default


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every setting of a run. Section numbers are those of arXiv 1511.06434.

    Raises:
        SettingsError, DataError: a value out of its range or choices.
    """

    # Settings of older versions, in checkpoints and settings files: the new name, or None.
    renamed: ClassVar[Mapping[str, str | None]] = {"on_collapse": None}

    data: str = setting("data", "digits", "a folder, a .zip, or a set: " + ", ".join(NAMED_SETS))
    download_dir: str = setting("data", "data", "folder of downloaded sets", may_change=True)
    cache_dir: str = setting("data", "cache", "folder of decoded images", may_change=True)
    clear_cache: bool = setting("data", False, "delete all decoded images first", may_change=True)
    image_size: str | None = setting(
        "data",
        None,
        "in pixels, 64 or 64x96 (height x width)",
        shown="64, or the set's own",
        size=True,
    )
    channels: int | None = setting(
        "data", None, "1 grey, 3 colour, 4 with alpha", shown="found", choices=(1, 3, 4)
    )
    mirror: bool = setting("data", False, "flip half of the images left to right")

    z_dim: int = setting("networks", 100, "dimensions of z (fig. 1)", minimum=1)
    z_dist: str = setting(
        "networks", "normal", "z from N(0, 1) or U(-1, 1)", choices=("normal", "uniform")
    )
    features: int = setting(
        "networks", 64, "channels of the largest maps; 128 is the paper's", minimum=1
    )
    max_features: int = setting("networks", 1024, "upper bound of any map's channels", minimum=1)
    norm: str = setting("networks", "batch", "normalisation (sec. 3)", choices=("batch", "none"))
    sync_bn: bool = setting(
        "networks", False, "batch norm over all GPUs' images, not each one's", may_change=True
    )
    activation: str = setting(
        "networks", "relu", "of the generator (sec. 3)", choices=("relu", "leaky_relu")
    )

    loss: str = setting(
        "game", "bce", "what the networks minimise", choices=("bce", "minimax", "lsgan", "hinge")
    )
    r1: float = setting("game", 0.0, "gamma of the penalty on D's gradient, R1; 0: none", minimum=0)
    r1_every: int = setting("game", 1, "steps from one penalty to the next", minimum=1)
    batch_size: int = setting("game", 128, "images a step (sec. 4)", minimum=1)
    learning_rate: float = setting("game", 0.0002, "Adam's, of both networks (sec. 4)", minimum=0)
    learning_rate_g: float | None = setting(
        "game", None, "the generator's own", shown="learning_rate", minimum=0
    )
    learning_rate_d: float | None = setting(
        "game", None, "the discriminator's own", shown="learning_rate", minimum=0
    )
    beta1: float = setting("game", 0.5, "Adam's (sec. 4)", minimum=0, below=1)
    beta2: float = setting("game", 0.999, "Adam's", minimum=0, below=1)
    fresh_latents: bool = setting("game", False, "new latents for the generator's half of a step")
    ema: float = setting(
        "game", 0.999, "decay of the generator's EMA, which generates; 0: none", minimum=0, below=1
    )
    augment: bool = setting(
        "game", False, "show D all images changed in colour and place, with holes (small sets)"
    )

    epochs: int = setting("run", 40, "times to see each image", minimum=1, may_change=True)
    steps: int | None = setting(
        "run", None, "steps in all; wins over epochs", shown="none", minimum=1, may_change=True
    )
    seed: int = setting("run", 0, "of weights, order, latents and flips", minimum=0, below=2**63)
    device: str = setting(
        "run", "auto", "cpu, cuda, cuda:1, mps; auto: cuda or cpu", may_change=True
    )
    precision: str = setting(
        "run", "auto", "of the layers; auto: the faster one, measured",
        choices=("auto", "fp32", "bf16", "fp16"), may_change=True,
    )  # fmt: skip
    no_graph: bool = setting(
        "run", False, "no CUDA graph: start a GPU's kernels one by one", may_change=True
    )
    resume: str | None = setting(
        "run", None, "go on from the run's last checkpoint, or from a file", bare="last",
        shown="none", may_change=True,
    )  # fmt: skip
    evaluate_every: int | None = setting(
        "run", None, "epochs between measurements; the best checkpoint is kept", shown="never",
        minimum=1, may_change=True,
    )  # fmt: skip
    feature_network: str = setting(
        "run", "efficientnet", "that measures, see evaluate.py",
        choices=("efficientnet", "inception"), may_change=True,
    )  # fmt: skip

    name: str | None = setting(
        "files", None, "of the run and its folders", shown="from data", may_change=True
    )
    checkpoint_dir: str = setting(
        "files", "checkpoints", "folder of all runs' checkpoints", may_change=True
    )
    sample_dir: str = setting(
        "files", "samples", "folder of all runs' sample grids and logs", may_change=True
    )
    save_every: int = setting(
        "files", 3, "epochs between numbered checkpoints", minimum=1, may_change=True
    )
    keep: int = setting("files", 5, "numbered checkpoints to keep", minimum=1, may_change=True)
    sample_every: int = setting(
        "files", 500, "steps between sample grids, beside every epoch's", minimum=1, may_change=True
    )
    log_every: int = setting("files", 10, "steps between log lines", minimum=1, may_change=True)
    tensorboard: bool = setting("files", False, "log to TensorBoard too", may_change=True)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.name is not None and not re.fullmatch(r"[^/\\:]{0,99}[^/\\:.]", self.name):
            raise SettingsError(f"--name {self.name}: must be the name of a folder, not a path")


# Losses -------------------------------------------------------------------------------------------


class Loss(NamedTuple):
    """What each network minimises, from logits (N,), and how D's output is reported."""

    discriminator: Callable[[Tensor, Tensor], Tensor]  # of logit_real, logit_fake
    generator: Callable[[Tensor], Tensor]  # of logit_fake
    output: Callable[[Tensor], Tensor]
    outputs: tuple[float, float]  # for an image that is surely generated, and surely real


def bce_discriminator(logit_real: Tensor, logit_fake: Tensor) -> Tensor:
    """-log D(x) - log(1 - D(G(z))), where D is the sigmoid of its logit."""
    return F.softplus(-logit_real).mean() + F.softplus(logit_fake).mean()


def bce_generator(logit_fake: Tensor) -> Tensor:
    """-log D(G(z)): non-saturating, so that it learns most while it loses (Goodfellow 2014)."""
    return F.softplus(-logit_fake).mean()


def minimax_generator(logit_fake: Tensor) -> Tensor:
    """log(1 - D(G(z))): the game as it is derived; saturates while the generator loses."""
    return -F.softplus(logit_fake).mean()


def lsgan_discriminator(logit_real: Tensor, logit_fake: Tensor) -> Tensor:
    """Least squares with targets 1 and 0 (Mao et al. 2017, eq. 2)."""
    return ((logit_real - 1).square().mean() + logit_fake.square().mean()) / 2


def lsgan_generator(logit_fake: Tensor) -> Tensor:
    """Least squares with target 1."""
    return (logit_fake - 1).square().mean() / 2


def hinge_discriminator(logit_real: Tensor, logit_fake: Tensor) -> Tensor:
    """max(0, 1 - D(x)) + max(0, 1 + D(G(z))) (Lim and Ye 2017)."""
    return F.relu(1 - logit_real).mean() + F.relu(1 + logit_fake).mean()


def hinge_generator(logit_fake: Tensor) -> Tensor:
    """-D(G(z))."""
    return -logit_fake.mean()


LOSSES = {
    "bce": Loss(bce_discriminator, bce_generator, torch.sigmoid, (0, 1)),
    "minimax": Loss(bce_discriminator, minimax_generator, torch.sigmoid, (0, 1)),
    "lsgan": Loss(lsgan_discriminator, lsgan_generator, lambda logit: logit, (0, 1)),
    "hinge": Loss(hinge_discriminator, hinge_generator, lambda logit: logit, (-1, 1)),
}


# The two networks ---------------------------------------------------------------------------------


class GAN(NamedTuple):
    """Both networks, Adam for each, the EMA of the generator, and loss scaling for fp16."""

    generator: nn.Module
    discriminator: nn.Module
    optimizer_g: torch.optim.Optimizer
    optimizer_d: torch.optim.Optimizer
    generator_ema: nn.Module
    scaler_g: GradScaler  # one each: one for both does not converge (NVIDIA/apex#82)
    scaler_d: GradScaler


def build_networks(config: Config) -> tuple[Generator, Discriminator]:
    """Build the two networks with new weights."""
    size = parse_size(config.image_size)
    generator = Generator(
        config.z_dim, config.features, config.channels, size,
        config.max_features, config.norm, config.activation, config.z_dist,
    )  # fmt: skip
    discriminator = Discriminator(
        config.features, config.channels, size, config.max_features, config.norm
    )
    return generator, discriminator


def build_gan(config: Config, device: torch.device) -> GAN:
    """Build networks and optimizers; the weights depend on the seed alone, on every device."""
    torch.manual_seed(config.seed)
    generator, discriminator = build_networks(config)
    generator_ema = copy.deepcopy(generator).requires_grad_(False)
    for network in (generator, discriminator):
        if device.type == "cpu" and config.precision == "bf16":
            use_matrix_products(network, largest_map_that_pays())
        if config.sync_bn and device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for network in (generator, discriminator, generator_ema):
        network.to(device, memory_format=memory_format(device))

    def adam(network: nn.Module, own_rate: float | None) -> torch.optim.Adam:
        return torch.optim.Adam(
            network.parameters(),
            lr=config.learning_rate if own_rate is None else own_rate,
            betas=(config.beta1, config.beta2),
            fused=True,
            capturable=device.type == "cuda",  # its steps may be part of a CUDA graph
        )

    optimizer_g = adam(generator, config.learning_rate_g)
    optimizer_d = adam(discriminator, config.learning_rate_d)
    scalers = (GradScaler(device.type, enabled=config.precision == "fp16") for _ in range(2))
    return GAN(generator, discriminator, optimizer_g, optimizer_d, generator_ema, *scalers)


# One step -----------------------------------------------------------------------------------------


def train_step(
    gan: GAN,
    loss: Loss,
    real: Tensor,
    z: Tensor,
    z_fresh: Tensor | None = None,
    chances: Tensor | None = None,
    precision: str = "fp32",
    r1: float = 0.0,
) -> Tensor:
    """Update each network once, on real images (N, C, H, W) in [-1, 1] and latents z (N, Z).

    Args:
        z_fresh: (N, Z), from which the generator's half samples new images.
        chances: (3, N, 7), with which D sees all images augmented, see `augment`.
        precision: "bf16" or "fp16" compute the layers in that, from fp32 weights.
        r1: weight of the penalty r1 / 2 * mean over real x of |dD(x)/dx|^2, D being the logit
            (Mescheder et al. 2018, eq. 9).

    Returns:
        `METRICS` (5,), on the device: the losses, without the penalty, the means of D(x) and
        D(G(z)), and the penalty.
    """
    generator, discriminator = gan.generator, gan.discriminator
    # Each half enters autocast anew: inside, weights are cast once, and D's are about to change.
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    autocast = torch.autocast(real.device.type, dtype, enabled=precision != "fp32")
    # In fp16 the gradient with respect to an image, which is not scaled, would underflow.
    keep_fp32 = torch.autocast(real.device.type, dtype, enabled=False)
    autocast_real = keep_fp32 if r1 and precision == "fp16" else nullcontext()

    def seen(x: Tensor, look: int) -> Tensor:
        return x if chances is None else augment(x, chances[look])

    # Discriminator: tell real from generated. Real and generated images in batches of their own,
    # as each batch is normalised by its own statistics.
    real = seen(real, 0).detach().requires_grad_(r1 > 0)
    with autocast:
        with torch.set_grad_enabled(z_fresh is None):
            fake = generator(z)
        with autocast_real:
            logit_real = discriminator(real)
        logit_fake = discriminator(seen(fake.detach(), 1))
    logit_real, logit_fake = logit_real.float(), logit_fake.float()
    loss_d = loss.discriminator(logit_real, logit_fake)
    penalty = torch.zeros_like(loss_d)
    if r1:
        (gradient,) = torch.autograd.grad(logit_real.sum(), real, create_graph=True)
        penalty = r1 / 2 * gradient.square().sum((1, 2, 3)).mean()
    gan.optimizer_d.zero_grad()
    gan.scaler_d.scale(loss_d + penalty).backward()
    gan.scaler_d.step(gan.optimizer_d)
    gan.scaler_d.update()

    # Generator: be taken for real by the discriminator just updated, whose own weights need no
    # gradients for it.
    with frozen(discriminator), autocast:
        if z_fresh is not None:
            fake = generator(z_fresh)
        logit = discriminator(seen(fake, 2))
    loss_g = loss.generator(logit.float())
    gan.optimizer_g.zero_grad()
    gan.scaler_g.scale(loss_g).backward()
    gan.scaler_g.step(gan.optimizer_g)
    gan.scaler_g.update()

    outputs = loss.output(logit_real).mean(), loss.output(logit_fake).mean()
    return torch.stack([loss_d, loss_g, *outputs, penalty]).detach()


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Leave the network's parameters out of the gradients, also where the step fails."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


@torch.no_grad()
def update_ema(generator_ema: nn.Module, generator: nn.Module, weight: Tensor | float) -> None:
    """Move the EMA's parameters by `weight` towards the generator's.

    Batch-norm statistics are not averaged: the EMA's own samples have others, see `sample_grid`.
    """
    for average, parameter in zip(generator_ema.parameters(), generator.parameters(), strict=True):
        average.lerp_(parameter, weight)


def make_step(
    config: Config, gan: GAN, inputs: Inputs, device: torch.device
) -> Callable[..., Tensor]:
    """Return the function that plays a step, by its number and its inputs; it returns `METRICS`."""
    shared = gan._replace(
        generator=distributed.average_gradients(gan.generator, device),
        discriminator=distributed.average_gradients(gan.discriminator, device),
    )

    def step_with(r1: float) -> Callable[..., Tensor]:
        def step(
            real: Tensor, ema_weight: Tensor, flip: Tensor | None = None, **noise: Tensor
        ) -> Tensor:
            metrics = train_step(
                shared, LOSSES[config.loss], inputs.real(real, flip),
                precision=config.precision, r1=r1, **noise,
            )  # fmt: skip
            update_ema(gan.generator_ema, gan.generator, ema_weight)
            return metrics

        return record(step, config, gan, device)

    plain, penalised = step_with(0.0), step_with(config.r1 * config.r1_every)

    def play(number: int, **inputs: Tensor) -> Tensor:
        return (penalised if config.r1 and number % config.r1_every == 0 else plain)(**inputs)

    return play


def record(
    step: Callable[..., Tensor], config: Config, gan: GAN, device: torch.device
) -> Callable[..., Tensor]:
    """Return `step`, on one CUDA GPU as a CUDA graph that is recorded and replayed."""
    if device.type != "cuda" or config.no_graph or distributed.world_size() > 1:
        return step

    def changed() -> list[Tensor]:
        scales = [x for scaler in gan[-2:] for x in (scaler._scale, scaler._growth_tracker)]
        return [*tensors_in([part.state_dict() for part in gan]), *filter(torch.is_tensor, scales)]

    return Graph(step, changed)


# The run ------------------------------------------------------------------------------------------


def train(config: Config, named: Collection[str] | None = None) -> Path:
    """Train as `config` says, and return the path of the last checkpoint.

    Args:
        named: with `resume`, the settings that are taken from `config` and not from the checkpoint;
            None: all that differ from their defaults.

    Raises:
        SettingsError, DataError, CheckpointError: settings, data or a checkpoint that cannot be
            used; before anything is written but decoded images.
        Diverged: a loss or a weight is no longer finite.
        signals.Stopped: a signal has ended the run, which is saved.
    """
    # Refuse what cannot work (settings, data, checkpoint) before anything is written.
    with distributed.only_rank_zero_prints():
        config, saved = find_run(config, named)
    device = pick_device(config.device)
    with distributed.process_group(device):
        check_run(config, device)
        images = load_images(config)
        count, height, width, channels = images.shape
        config = replace(config, image_size=f"{height}x{width}", channels=channels)
        schedule = make_schedule(config, count, saved)
        source = saved and saved["path"]
        if len(set(distributed.gather((schedule, source, images.shape)))) > 1:
            raise DataError("the ranks found different checkpoints, or other images")
        if schedule.start >= schedule.total:
            print(f"{source} has all its {schedule.start:,} steps; --epochs asks for no more")
            return source
        if saved:
            with torch.device("meta"):
                check_states(saved, *build_networks(config))

        # Build the networks, or restore them.
        config = replace(config, precision=measure_precision(config, device))
        best = None
        if config.evaluate_every and distributed.rank() == 0:
            best = Best(config, images, device)
        distributed.gather(None)  # for hours, where the networks' own waiting would end sooner
        gan = build_gan(config, device)
        if saved:
            restore(gan, saved)
        describe(config, schedule, gan, images, device, best)

        stopped = run(config, schedule, gan, images, source, best)
        distributed.gather(None)  # so that none ends the others before the first has saved
        prints = distributed.rank() == 0
    if stopped and not prints:
        sys.exit(128 + stopped.number)
    if stopped:
        raise stopped
    return Path(config.checkpoint_dir, config.name, "last.pth")


def run(
    config: Config, schedule: Schedule, gan: GAN, images: np.ndarray, source: Path | None,
    best: Best | None,
) -> signals.Stopped | None:  # fmt: skip
    """Play the game: D and G in turn, until all steps are played or a signal asks to stop."""
    device = next(gan.generator.parameters()).device
    shard = distributed.shard(schedule.batch_size)
    inputs = Inputs(config, images, schedule.batch_size, shard, device)
    play, unread, stop = make_step(config, gan, inputs, device), [], 0
    with (
        signals.noted() as signal_noted,
        cudnn_benchmark(),
        closing(inputs.steps(schedule.start)) as stream,
        tqdm(total=schedule.total, initial=schedule.start, unit="step", disable=None) as bar,
        nullcontext() if distributed.rank() else open_logger(
            config, schedule, source, images, LOSSES[config.loss].outputs
        ) as logger,
    ):  # fmt: skip
        if best and source:
            best.recall()
        for step in range(schedule.start + 1, schedule.total + 1):
            unread.append(play(step, **next(stream)))
            bar.update()

            # What is due. Ranks ask each other for signals only when something is.
            epoch, within = divmod(step, schedule.steps_per_epoch)
            ends = within == 0 or step == schedule.total  # of an epoch or of the run
            grid_due = within == 0 or step % config.sample_every == 0
            log_due = grid_due or ends or step % config.log_every == 0
            if log_due or distributed.world_size() == 1:
                stop = distributed.largest(signal_noted())
            if not log_due and not stop:
                continue

            # Losses, D(x) and D(G(z)); samples of the EMA generator; states. What is not finite
            # ends the run here, before anything of the step is written.
            values = read_metrics(unread, step)
            if logger and (grid_due or ends or stop):
                grid = sample_grid(config, gan.generator_ema, step)
            if logger and (ends or stop):
                states = copy_states(gan, step)

            # Sample grid.
            if logger and (grid_due or ends or stop):
                variety = logger.write_grid(step, grid)
                if grid_due:  # not where this run alone has a grid, by where it ends
                    values["variety"] = variety

            # Log.
            if logger:
                logger.log(step, values, bar)

            # Checkpoint.
            if logger and (ends or stop):
                logger.save(step, states, bar)

            # FID against the real images; best.pth keeps the least. A signal ends it.
            measured = step == schedule.total or epoch % (config.evaluate_every or 1) == 0
            if config.evaluate_every and ends and measured and not stop:
                if best:
                    distance = best.measure(gan.generator_ema, step, signal_noted)
                    logger.log_distance(step, best, distance, states, bar)
                stop = distributed.largest(signal_noted())
            if stop:
                break
        if logger:
            logger.advise(step, at_once=True)
    if best and best.step:
        print(
            f"best: step {best.step:,}, {best.network.frechet} {best.value:.1f} "
            f"(floor {best.floor:.1f}), {best.path}"
        )
    if not stop or step == schedule.total:
        return None
    flags = f"--name {shlex.quote(config.name)}"
    if config.checkpoint_dir != "checkpoints":
        flags += f" --checkpoint_dir {shlex.quote(config.checkpoint_dir)}"
    name = signal.Signals(stop).name
    return signals.Stopped(
        stop, f"{name}: saved step {step:,}; go on with train.py {flags} --resume"
    )


def sample_grid(config: Config, generator_ema: nn.Module, step: int) -> np.ndarray:
    """Sample the images (64, H, W, C) uint8 of the grid, as generate.py does from a checkpoint.

    Recomputes the EMA generator's batch-norm statistics on its own samples: they follow from its
    weights alone, whenever this is called.

    Raises:
        Diverged: a value is not finite.
    """
    random = random_at(config.seed, "statistics", 0)
    z = random_latents(random, STATISTICS_IMAGES, config.z_dim, config.z_dist)
    device = next(generator_ema.parameters()).device
    recalibrate(generator_ema, z.to(device).split(GENERATE_BATCH))
    grid = generate(generator_ema, sample_latents(GRID_SEEDS, config.z_dim, config.z_dist))
    if not grid.isfinite().all():
        raise Diverged(step)
    return to_image(grid)


def read_metrics(unread: list[Tensor], step: int) -> dict[str, float]:
    """Return the metrics of `step`, the last of the `unread` (5,), which waits for the device.

    Raises:
        Diverged: a value of any of the steps is not finite.
    """
    rows = distributed.mean(torch.stack(unread)).tolist()
    unread.clear()
    for number, row in enumerate(rows, step - len(rows) + 1):
        if not all(map(math.isfinite, row)):
            raise Diverged(number)
    values = dict(zip(METRICS, rows[-1], strict=True))
    penalties = [row[-1] for row in rows if row[-1]]
    del values["r1"]
    return values | ({"r1": penalties[-1]} if penalties else {})


def measure_precision(config: Config, device: torch.device) -> str:
    """Return the precision to train in: what `config` names, or the faster one on this device."""
    count = config.batch_size if device.type == "cuda" else min(config.batch_size, 16)
    size = parse_size(config.image_size)
    inputs = {"real": torch.zeros(count, config.channels, *size, device=device)}
    inputs["z"] = torch.zeros(count, config.z_dim, device=device)

    def make_trial(precision: str) -> Callable[[], Tensor]:
        gan = build_gan(replace(config, precision=precision), device)

        def step(**inputs: Tensor) -> Tensor:
            return train_step(gan, LOSSES[config.loss], **inputs, precision=precision)

        return partial(record(step, config, gan, device), **inputs)

    return distributed.gather(pick_precision(config.precision, device, make_trial))[0]


if __name__ == "__main__":
    run_script(lambda: train(*parse_named_settings(Config, __doc__)))

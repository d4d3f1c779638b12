"""Train a DCGAN on a folder of pictures, a .zip of one, or a set known by name.

    python train.py                         handwritten digits, in a few minutes on any computer
    python train.py --data path/to/cats     your own pictures; --resume goes on after a break

Flags can also come from a file, one `--flag value` a line: python train.py @settings.txt
"""

from __future__ import annotations

import importlib.util
import re
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import checkpoint
from checkpoint import CheckpointError
from dataset import batches, load, parse_size, random_at, to_image, to_tensor
from losses import LOSSES, Loss
from models import Discriminator, Generator, draw, draw_latents, sample_latents
from pictures import NAMED_SETS
from record import Record, find_run, prune, set_aside
from utils import (
    SettingsError,
    check_settings,
    check_writable,
    parse_settings,
    pick_device,
    run_script,
    setting,
    warn,
    write_settings,
)

METRICS = ("loss_d", "loss_g", "d_real", "d_fake")  # what train_step gives
FEW_STEPS = 500  # digits were readable after 280 steps, the eyes of cats after 600
GRID_SEEDS = range(64)  # the latents of every sample grid, those that generate.py draws by default


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every setting of a run. Section numbers are those of arXiv 1511.06434.

    Raises:
        SettingsError, DataError: a value out of its range or choices.
    """

    data: str = setting("data", "digits", "a folder, a .zip, or a set: " + ", ".join(NAMED_SETS))
    download_dir: str = setting("data", "data", "folder of downloaded sets", may_change=True)
    image_size: str | None = setting(
        "data", None, "in pixels, 64 or 64x96 (height x width)", shown="64, or the set's own"
    )
    channels: int | None = setting(
        "data", None, "1 grey, 3 colour, 4 with alpha", shown="found", choices=(1, 3, 4)
    )
    mirror: bool = setting("data", False, "flip half of the pictures left to right")

    z_dim: int = setting("networks", 100, "dimensions of z (fig. 1)", minimum=1)
    z_dist: str = setting(
        "networks", "normal", "z from N(0, 1) or U(-1, 1)", choices=("normal", "uniform")
    )
    features: int = setting(
        "networks", 64, "channels of the largest maps; 128 is the paper's", minimum=1
    )
    max_features: int = setting("networks", 1024, "upper bound of any map's channels", minimum=1)
    norm: str = setting("networks", "batch", "normalisation (sec. 3)", choices=("batch", "none"))
    activation: str = setting(
        "networks", "relu", "of the generator (sec. 3)", choices=("relu", "leaky_relu")
    )

    loss: str = setting(
        "game", "bce", "what the players minimise", choices=("bce", "minimax", "lsgan", "hinge")
    )
    batch_size: int = setting("game", 128, "pictures a step (sec. 4)", minimum=1)
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

    epochs: int = setting("run", 40, "times to see each picture", minimum=1, may_change=True)
    steps: int | None = setting(
        "run", None, "steps in all; wins over epochs", shown="none", minimum=1, may_change=True
    )
    seed: int = setting("run", 0, "of weights, order, latents and flips", minimum=0, below=2**63)
    device: str = setting(
        "run", "auto", "cpu, cuda, cuda:1, mps; auto: cuda or cpu", may_change=True
    )
    resume: str | None = setting(
        "run", None, "go on from the run's last checkpoint, or from a file", bare="last",
        shown="none", may_change=True,
    )  # fmt: skip

    name: str | None = setting(
        "files", None, "of the run and its folders", shown="from data", may_change=True
    )
    checkpoint_dir: str = setting(
        "files", "checkpoints", "folder of all runs' checkpoints", may_change=True
    )
    sample_dir: str = setting(
        "files", "samples", "folder of all runs' pictures and logs", may_change=True
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

    def __new__(cls, **given: Any) -> Config:
        """Note which settings were named: on --resume, the others come from the checkpoint."""
        self = super().__new__(cls)
        object.__setattr__(self, "given", frozenset(given))
        return self

    def __post_init__(self) -> None:
        if self.image_size is not None:
            height, width = parse_size(self.image_size)
            canonical = f"{height}" if height == width else f"{height}x{width}"
            object.__setattr__(self, "image_size", canonical)
        check_settings(self)
        if self.name is not None and not re.fullmatch(r"[^/\\:]{0,99}[^/\\:.]", self.name):
            raise SettingsError(f"--name {self.name}: must be the name of a folder, not a path")


# The game ----------------------------------------------------------------------------------------


class Players(NamedTuple):
    """Both networks and their optimizers."""

    generator: Generator
    discriminator: Discriminator
    optimizer_g: torch.optim.Optimizer
    optimizer_d: torch.optim.Optimizer


def train_step(
    players: Players, loss: Loss, real: Tensor, z: Tensor, z_fresh: Tensor | None = None
) -> Tensor:
    """Play one step of each network on real images (N, C, H, W) in [-1, 1] and latents z (N, Z).

    With `z_fresh` (N, Z) the generator's half draws new images from it. Gives loss_d, loss_g,
    and the means of D(x) and D(G(z)), (4,), on the device.
    """
    generator, discriminator, optimizer_g, optimizer_d = players

    # Discriminator: tell real from generated. Real and generated pictures in batches of their
    # own, as each batch is normalised by its own statistics.
    fake = generator(z)
    logit_real, logit_fake = discriminator(real), discriminator(fake.detach())
    loss_d = loss.discriminator(logit_real, logit_fake)
    optimizer_d.zero_grad()
    loss_d.backward()
    optimizer_d.step()

    # Generator: be taken for real by the discriminator just improved, which needs no gradients
    # of its own weights for it.
    if z_fresh is not None:
        fake = generator(z_fresh)
    discriminator.requires_grad_(False)
    loss_g = loss.generator(discriminator(fake))
    discriminator.requires_grad_(True)
    optimizer_g.zero_grad()
    loss_g.backward()
    optimizer_g.step()

    outputs = loss.output(logit_real).mean(), loss.output(logit_fake).mean()
    return torch.stack([loss_d, loss_g, *outputs]).detach()


def make_players(config: Config, device: torch.device) -> Players:
    """Make networks and optimizers; the weights follow from the seed alone, on every device."""
    torch.manual_seed(config.seed)
    size = parse_size(config.image_size)
    generator = Generator(
        config.z_dim, config.features, config.channels, size,
        config.max_features, config.norm, config.activation, config.z_dist,
    )  # fmt: skip
    discriminator = Discriminator(
        config.features, config.channels, size, config.max_features, config.norm
    )
    optimizers = []
    for network, rate in (
        (generator, config.learning_rate_g), (discriminator, config.learning_rate_d),
    ):  # fmt: skip
        network.to(device, memory_format=torch.channels_last)
        rate = config.learning_rate if rate is None else rate
        betas = (config.beta1, config.beta2)
        optimizers.append(torch.optim.Adam(network.parameters(), rate, betas, fused=True))
    return Players(generator, discriminator, *optimizers)


# The run -----------------------------------------------------------------------------------------


def train(config: Config) -> Path:
    """Train as `config` says, and give the path of the last checkpoint.

    Raises:
        SettingsError, DataError, CheckpointError: before anything is written, for settings, data
            or a checkpoint that cannot be used.
    """
    config, saved = find_run(config)
    device = pick_device(config.device)
    folder = Path(config.checkpoint_dir, config.name)
    sample_folder = Path(config.sample_dir, config.name)
    check_writable(folder)
    check_writable(sample_folder)
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise SettingsError("--tensorboard: not installed here; pip install tensorboard")
    size = config.image_size and parse_size(config.image_size)
    images = load(config.data, size, config.channels, config.download_dir)
    count, height, width, channels = images.shape
    config = replace(config, image_size=f"{height}x{width}", channels=channels)

    batch_size = min(config.batch_size, count)
    if batch_size < config.batch_size:
        warn(f"only {count} pictures: the batch is {batch_size}, not {config.batch_size}")
    steps_per_epoch = count // batch_size
    total = config.steps or config.epochs * steps_per_epoch
    if config.steps is None and total < FEW_STEPS:
        warn(f"{total} steps are few to learn from; raise --epochs, or lower --batch_size")

    players, start = make_players(config, device), 0
    if saved:
        start = saved["step"]
        for player, key in zip(players, Players._fields, strict=True):
            player.load_state_dict(saved[key])
        if count != saved["pictures"]:
            warn(f"--data {config.data} has {count:,} pictures; it had {saved['pictures']:,}")
    if start >= total:
        print(f"{saved['path']} has {start:,} steps already; --epochs and --steps ask for no more")
        return saved["path"]

    parameters = [sum(p.numel() for p in network.parameters()) for network in players[:2]]
    print(
        f"{config.name}: {count:,} pictures of {channels} x {height} x {width} (C x H x W)\n"
        f"device: {device}\n"
        f"parameters: {parameters[0]:,} generator, {parameters[1]:,} discriminator\n"
        f"steps: {start:,} to {total:,}, {steps_per_epoch:,} an epoch, {batch_size} pictures each\n"
        f"writing to: {folder}, {sample_folder}"
    )
    if not (folder / "last.pth").exists():
        set_aside(folder)
        set_aside(sample_folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_settings(folder / "settings.txt", config)
    record = Record(sample_folder, start, config.tensorboard)
    record.draw("real", images[:: -(-count // len(GRID_SEEDS))])
    grid_z = sample_latents(GRID_SEEDS, config.z_dim, config.z_dist)

    bar = tqdm(total=total, initial=start, unit="step", disable=None)
    began = clock = time.perf_counter()
    logged = start
    stream = batches(images, batch_size, config.seed, start, config.mirror)
    for step, batch in zip(range(start + 1, total + 1), stream, strict=False):
        latents = latents_at(config, step, batch_size, device)
        metrics = train_step(players, LOSSES[config.loss], to_tensor(batch.to(device)), *latents)
        bar.update()
        epoch, within = divmod(step, steps_per_epoch)
        ends = within == 0 or step == total

        if step % config.log_every == 0 or ends:
            values = dict(zip(METRICS, metrics.tolist(), strict=True))  # waits for the device
            seconds, clock = time.perf_counter() - clock, time.perf_counter()
            values["images_per_second"] = round((step - logged) * batch_size / seconds, 1)
            logged = step
            record.log({"step": step, "epoch": round(step / steps_per_epoch, 4), **values})
            bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()})
        if step % config.sample_every == 0 or ends:
            grid = to_image(draw(players.generator, grid_z))
            record.draw(f"step_{step:07d}", grid, step)
        if ends:
            contents = {"config": asdict(config), "epoch": epoch, "step": step, "pictures": count}
            contents |= {key: player.state_dict() for key, player in players._asdict().items()}
            checkpoint.save(folder / "last.pth", contents)
            left = tqdm.format_interval((clock - began) / (step - start) * (total - step))
            shown = "  ".join(f"{name} {values[name]:.3f}" for name in METRICS)
            speed = f"{values['images_per_second']:,.0f} images/s"
            done = f"epoch {step / steps_per_epoch:.4g}  step {step:,}/{total:,}"
            bar.write(f"{done}  {shown}  {speed}  {left} left")
        if within == 0 and epoch % config.save_every == 0:
            checkpoint.save(folder / f"epoch_{epoch:04d}.pth", contents)
            prune(folder, config.keep)
            record.plot()
    bar.close()
    record.plot()
    record.animate()
    return folder / "last.pth"


def latents_at(config: Config, step: int, batch_size: int, device: torch.device) -> list[Tensor]:
    """Draw the latents (batch_size, Z) of a step, and with `fresh_latents` a second time."""
    draws = [
        draw_latents(random_at(config.seed, purpose, step), batch_size, config.z_dim, config.z_dist)
        for purpose in ["latents"] + ["fresh latents"] * config.fresh_latents
    ]
    return [z.to(device) for z in draws]


if __name__ == "__main__":
    run_script(lambda: train(parse_settings(Config, __doc__)), CheckpointError)

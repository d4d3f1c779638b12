"""How the game goes, in words, from the numbers that training logs anyway."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

BEGINNING = "just begun"
BALANCED = "balanced"
D_WINS = "the discriminator is winning"
G_WINS = "the generator is winning"
FALLING = "variety is falling"
COLLAPSED = "collapsed"
ADVICE = {
    D_WINS: "images decay when that lasts; in a new run --r1 1 --r1_every 4 keeps it from winning, "
    "on a small set --augment; --evaluate_every 1 keeps the best checkpoint",
    G_WINS: "slow the generator by --learning_rate_g 0.0001, or raise --learning_rate_d",
    FALLING: "an earlier checkpoint may be better, and --evaluate_every 1 keeps the best; a lower "
    "--learning_rate falls later",
    COLLAPSED: "take an earlier checkpoint, and start a new run with a lower --learning_rate, or "
    "with the defaults of --loss and --norm",
}

# The bounds lie between our runs that went well and those that were made to fail; the README shows
# both.
WINDOW = 10  # log entries whose mean is judged, as single steps swing
GAP = 0.9  # D(x) - D(G(z)) beyond which the discriminator wins
FOOLED = 0.6  # D(G(z)) beyond which the generator does
FALL = 0.6  # of the highest variety so far; more than the real images' is noise, and not counted
NONE_LEFT = 0.3  # of the real images' variety
BEGUN = 500  # steps; before, images are grey and who wins changes from line to line
PATIENCE = 500  # steps that the game goes badly before it is worth a warning


class Monitor:
    """The state of the game, judged from the log alone, so that a resumed run goes on with it.

    Args:
        outputs: of the discriminator when it is sure that an image is generated, and real.
        entries: the log so far.
    """

    def __init__(
        self, outputs: tuple[float, float], entries: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        self.scale = outputs
        self.outputs: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self.variety, self.highest = None, 0.0
        self.state, self.since = BEGINNING, 0
        self.advised_since = -1  # when the last state that was advised on began
        for entry in entries:
            self.see(entry)

    def see(self, entry: Mapping[str, Any]) -> None:
        """Take a log entry into account: its step, d_real, d_fake, and variety if it has one."""
        if "variety" in entry and entry["step"] >= BEGUN:
            self.variety = entry["variety"]
            self.highest = max(self.highest, min(self.variety, 1.0))
        if "d_real" in entry:
            low, high = self.scale
            outputs = entry["d_real"], entry["d_fake"]
            self.outputs.append(tuple((output - low) / (high - low) for output in outputs))
        state = BEGINNING if entry["step"] < BEGUN else self._judge()
        if state != self.state:
            self.state, self.since = state, entry["step"]

    def words(self, step: int) -> str:
        """Return the state in words, with how long it has lasted."""
        lasting = step - self.since
        known = lasting and self.state != BEGINNING
        return f"{self.state} for {lasting:,} steps" if known else self.state

    def advice(self, step: int, at_once: bool = False) -> str:
        """Return advice on a state that has been bad for long, once for each such state, or "".

        Where one network wins, that comes first, whatever the images look like.
        """
        long = at_once or self.state == COLLAPSED or step - self.since >= PATIENCE
        advice = ADVICE.get(self.state, "")
        if self.state in (FALLING, COLLAPSED):
            advice = ADVICE.get(self._winner(), advice)
        if not long or self.since == self.advised_since:
            return ""
        if advice:
            self.advised_since = self.since
        return advice

    def _judge(self) -> str:
        if self.variety is not None:
            if self.variety < NONE_LEFT:
                return COLLAPSED
            if self.variety < FALL * self.highest:
                return FALLING
        return self._winner()

    def _winner(self) -> str:
        d_real, d_fake = np.mean(self.outputs, 0) if self.outputs else (0.5, 0.5)
        if d_real - d_fake > GAP:
            return D_WINS
        return G_WINS if d_fake > FOOLED else BALANCED


def variety(images: np.ndarray) -> float:
    """Return the mean root-mean-square distance of two of the images (N, H, W, C), in levels."""
    if len(images) < 2:
        return 0.0
    pixels = images.reshape(len(images), -1).astype(np.float64)
    squares = (pixels**2).sum(1)
    distances = np.maximum(squares[:, None] + squares - 2 * pixels @ pixels.T, 0) ** 0.5
    return distances.sum() / (len(images) * (len(images) - 1) * pixels.shape[1] ** 0.5)

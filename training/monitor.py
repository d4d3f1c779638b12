"""How the game goes, in words, from the numbers that training logs anyway."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from losses import Loss

BEGINNING = "just begun"
BALANCED = "balanced"
D_WINS = "the discriminator is winning"
G_WINS = "the generator is winning"
FALLING = "variety is falling"
COLLAPSED = "collapsed"
ADVICE = {
    D_WINS: "slow the discriminator by --learning_rate_d 0.0001, or leave --loss at bce; on a "
    "small set add --augment",
    G_WINS: "slow the generator by --learning_rate_g 0.0001, or raise --learning_rate_d",
    FALLING: "an earlier checkpoint may be better, and --evaluate_every 1 keeps the best; a lower "
    "--learning_rate falls later",
    COLLAPSED: "take an earlier checkpoint, and begin anew with a lower --learning_rate, or with "
    "the defaults of --loss and --norm",
}

# The bounds lie between our runs that went well and those that were made to fail; the README shows
# both.
WINDOW = 10  # log lines whose mean is judged, as single steps swing
GAP = 0.9  # D(x) - D(G(z)) beyond which the discriminator wins
FOOLED = 0.6  # D(G(z)) beyond which the generator does
FALL = 0.6  # of the highest variety so far, of which what is beyond real images' is noise
NONE_LEFT = 0.3  # of the real images' variety
BEGUN = 500  # steps; before them images are grey: a winner can be told, but no balance or variety


class Referee:
    """Watches a run's log and says how the game goes.

    Its judgement follows from the log alone, so that a resumed run goes on with it.

    Args:
        loss: what the players minimise, which gives D's outputs their scale.
        entries: the lines that the log has already.
    """

    def __init__(self, loss: Loss, entries: Iterable[Mapping[str, Any]] = ()) -> None:
        self.loss = loss
        self.outputs: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self.variety, self.highest = None, 0.0
        self.state, self.since = BEGINNING, 0
        for entry in entries:
            self.see(entry)

    def see(self, entry: Mapping[str, Any]) -> None:
        """Take a line of the log into account: its step, d_real, d_fake, and variety if it has."""
        if "variety" in entry and entry["step"] >= BEGUN:
            self.variety = entry["variety"]
            self.highest = max(self.highest, min(self.variety, 1.0))
        if "d_real" in entry:
            low, high = self.loss.outputs
            outputs = entry["d_real"], entry["d_fake"]
            self.outputs.append(tuple((output - low) / (high - low) for output in outputs))
        state = self._judge()
        if state == BALANCED and entry["step"] < BEGUN:
            state = BEGINNING
        if state != self.state:
            self.state, self.since = state, entry["step"]

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

    def words(self, step: int) -> str:
        """Say how the game goes, and for how long it has if that is known."""
        lasting = step - self.since
        known = lasting and self.state != BEGINNING
        return f"{self.state} for {lasting:,} steps" if known else self.state

    def advice(self) -> str:
        """Return a sentence that names a flag, or nothing while all is well.

        Where one player wins that is to be mended first, whatever the images look like.
        """
        return ADVICE.get(self._winner()) or ADVICE.get(self.state, "")


def variety(images: np.ndarray) -> float:
    """Return the mean distance of any two of the images (N, H, W, C) uint8, in levels a value."""
    if len(images) < 2:
        return 0.0
    pixels = images.reshape(len(images), -1).astype(np.float64)
    squares = (pixels**2).sum(1)
    distances = np.maximum(squares[:, None] + squares - 2 * pixels @ pixels.T, 0) ** 0.5
    return distances.sum() / (len(images) * (len(images) - 1) * pixels.shape[1] ** 0.5)

"""Signals that ask a run to stop: noted at once, answered when the step is done and saved."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C, `kill` and schedulers, a closed terminal

APART = 1.0  # seconds between two of a user's; a scheduler may signal a process and its parent


class Stopped(KeyboardInterrupt):
    """A run that a signal has stopped, after saving it; the message says how to go on."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


@contextlib.contextmanager
def noted() -> Iterator[Callable[[], int]]:
    """Note the signals in `NAMES`; gives a function that tells the number of the last, or 0.

    A second SIGINT interrupts at once, if it is not the first one delivered twice. A signal that
    is ignored, as under nohup, stays so. Only the main thread receives signals; in another nothing
    is noted.
    """
    came: list[int] = []
    interrupted = math.inf

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if number == signal.SIGINT:
            if time.monotonic() - interrupted >= APART:
                raise KeyboardInterrupt
            interrupted = min(interrupted, time.monotonic())
        came.append(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, note)
    try:
        yield lambda: came[-1] if came else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

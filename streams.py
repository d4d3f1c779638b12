"""Standard output and error that need no reader: a run goes on when its terminal has gone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TextIO


def keep_open() -> None:
    """Let this process write to stdout and stderr whether or not anything still takes it.

    That may have been closed before the start, or be a pipe, terminal or full disk later. Whole
    lines are handed on at once, also into a pipe or a file.
    """
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a descriptor that was closed would be that of the next file, and get the outputs
    os.close(spare)
    sys.stdout, sys.stderr = (_Unheard(stream) for stream in (sys.stdout, sys.stderr))


class _Unheard:
    """A stream whose text goes nowhere from the first write on that fails."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115
        if hasattr(self.stream, "reconfigure"):
            # A pipe on Windows may not have the letters of a file's name.
            self.stream.reconfigure(line_buffering=True, errors="backslashreplace")

    def write(self, text: str) -> int:
        self._try(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, call: Callable[..., Any], *arguments: str) -> None:
        try:
            call(*arguments)
        except OSError:
            # Under the stream, as what it has buffered will be tried again when the process ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

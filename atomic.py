"""Files that are whole or not there, whenever the program or the machine stops."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of `path` once all is in it.

    It lies beside its place until it is flushed to the disk, and is then renamed, so that a crash
    leaves the file that was there before, as does an error in the caller's block.

    Raises:
        OSError: naming `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _naming(path):
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def append(path: Path, line: bytes) -> None:
    """Add a line to a file, whole or not at all as long as the program runs.

    Raises:
        OSError: naming `path`.
    """
    with _naming(path), open(path, "ab", buffering=0) as file:
        end = file.tell()
        if file.write(line) < len(line):  # the disk is full; the next line must not join it
            file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let what the system says of a file name it, which it does not when a disk is full."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def sweep(folder: Path) -> None:
    """Delete what writers that were killed have left in `folder`."""
    for path in folder.glob(".*.[0-9]*.tmp"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut; Windows offers no such call."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Images become an animation: WebP, GIF or MP4, by the file's suffix."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from utils import SettingsError, atomic_write

SUFFIXES = (".webp", ".gif", ".mp4")
FRAMES_A_SECOND = 25  # of an MP4
IMAGE_DESCRIPTION = 270  # in EXIF


def write_animation(
    path: Path, frames: Sequence[Image.Image], durations: Sequence[int], about: str = ""
) -> None:
    """Write RGB images of one size, each shown for its milliseconds; WebP and GIF start again.

    `about` goes into a WebP's EXIF as its description, and is a GIF's comment. An MP4 has none. A
    GIF has 256 colours, and takes three times a WebP's space; an MP4 can be cut and uploaded.

    Raises:
        SettingsError: this system can't write an MP4.
        OSError: naming `path`.
    """
    comment = about.encode("utf-8", "backslashreplace")
    exif = Image.Exif()
    exif[IMAGE_DESCRIPTION] = comment
    # Pillow leaves the prefix of a JPEG's EXIF before that of an animation, where it is none.
    plain = exif.tobytes().removeprefix(b"Exif\0\0") if about else b""
    options = {
        ".webp": {"format": "WEBP", "quality": 80, "method": 0, "exif": plain},
        ".gif": {"format": "GIF", "comment": comment},
    }
    suffix = path.suffix.lower()
    encoded = _encode_mp4(path, frames, durations) if suffix == ".mp4" else b""
    with atomic_write(path) as file:
        if encoded:
            file.write(encoded)
        else:
            frames[0].save(
                file, save_all=True, append_images=frames[1:], duration=list(durations), loop=0,
                **options[suffix],
            )  # fmt: skip


def _encode_mp4(path: Path, frames: Sequence[Image.Image], durations: Sequence[int]) -> bytes:
    """Return the bytes of an MP4 for `path`. OpenCV writes files alone, and reports no error."""
    import cv2

    width, height = frames[0].size
    edges = (0, height % 2, 0, width % 2)  # of odd sizes it would cut the last row and column off
    size = (width + edges[3], height + edges[1])
    repeats = [max(1, round(time * FRAMES_A_SECOND / 1000)) for time in durations]
    with tempfile.TemporaryDirectory() as folder:
        name = f"{folder}/animation.mp4"
        writer = cv2.VideoWriter(name, cv2.VideoWriter_fourcc(*"mp4v"), FRAMES_A_SECOND, size)
        for frame, times in zip(frames, repeats, strict=True):
            pixels = cv2.cvtColor(np.asarray(frame), cv2.COLOR_RGB2BGR)
            pixels = cv2.copyMakeBorder(pixels, *edges, cv2.BORDER_REPLICATE)
            for _ in range(times):
                writer.write(pixels)
        writer.release()
        if cv2.VideoCapture(name).get(cv2.CAP_PROP_FRAME_COUNT) != sum(repeats):
            raise SettingsError(f"{path}: OpenCV can't write an .mp4 here; take .webp")
        return Path(name).read_bytes()

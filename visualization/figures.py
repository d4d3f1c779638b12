"""Figures: images in rows and columns with text, saved as PNG; and frames as an animation."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from preprocessing.decode import to_channels
from utils import atomic_write

GAP = 2  # pixels between cells
SUFFIXES = (".webp", ".gif", ".mp4")  # of animations
FRAMES_A_SECOND = 25  # of an MP4


class Cell(NamedTuple):
    """An image (H, W, C) uint8 with a line of text beneath, or text alone in its place."""

    image: np.ndarray | None = None
    text: str = ""
    text_size: int = 12  # pixels

    def measure(self) -> tuple[int, int, int]:
        """Return the width, the image's height and the text's height, in pixels."""
        height, width = (0, 0) if self.image is None else self.image.shape[:2]
        if not self.text:
            return width, height, 0
        text_width = int(_font(self.text_size).getlength(self.text)) + 4
        return max(width, text_width), height, self.text_size + 3


def as_pillow(image: np.ndarray) -> Image.Image:
    """Convert an image (H, W, C) uint8 to Pillow's, of mode L, RGB or RGBA."""
    return Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)


def wrap(*rows: Sequence[Cell], columns: int = 8) -> list[Sequence[Cell]]:
    """Break rows of the same length after every `columns` cells, and keep the rows together."""
    return [row[i : i + columns] for i in range(0, len(rows[0]), columns) for row in rows]


def lay_out(rows: Sequence[Sequence[Cell]]) -> Image.Image:
    """Plot cells as a table: each row is as high, and each column as wide, as its largest cell.

    All images have the same 1, 3 or 4 channels, and so has the table, on opaque white.
    """
    columns = zip_longest(*rows, fillvalue=Cell())
    widths = [max(cell.measure()[0] for cell in column) for column in columns]
    heights = [max(sum(cell.measure()[1:]) for cell in row) for row in rows]
    mode = next(
        as_pillow(cell.image).mode for row in rows for cell in row if cell.image is not None
    )
    size = (sum(widths) + GAP * (len(widths) + 1), sum(heights) + GAP * (len(heights) + 1))
    figure = Image.new(mode, size, "white")
    pen = ImageDraw.Draw(figure)

    top = GAP
    for row, height in zip(rows, heights, strict=True):
        left = GAP
        for cell, width in zip(row, widths, strict=False):
            _, image_height, text_height = cell.measure()
            if cell.image is None:
                text_height = height
            else:
                centred = left + (width - cell.image.shape[1]) // 2
                figure.paste(as_pillow(cell.image), (centred, top))
            centre = (left + width / 2, top + image_height + text_height / 2)
            pen.text(centre, cell.text, "black", _font(cell.text_size), anchor="mm")
            left += width + GAP
        top += height + GAP
    return figure


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def save_figure(path: Path, rows: Sequence[Sequence[Cell]], command: str) -> None:
    """Save cells as a PNG, with the command that makes it again in its text under "command".

    Raises:
        OSError: naming `path`.
    """
    about = PngImagePlugin.PngInfo()
    about.add_text("command", command.encode("utf-8", "backslashreplace").decode())
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        lay_out(rows).save(file, "PNG", pnginfo=about)


def write_animation(path: Path, frames: Sequence[Image.Image], durations: Sequence[int]) -> None:
    """Save images of one size, each shown for its milliseconds, as WebP, GIF or MP4 by the suffix.

    Alpha is shown on white. WebP and GIF start again at the end. A GIF has 256 colours, and takes
    three times a WebP's space.

    Raises:
        OSError: naming `path`.
    """
    frames = [to_channels(frame, 3) for frame in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        if path.suffix.lower() == ".mp4":
            _write_mp4(file, frames, durations)
            return
        webp = {"quality": 80, "method": 0} if path.suffix.lower() == ".webp" else {}
        frames[0].save(
            file, path.suffix[1:], save_all=True, append_images=frames[1:],
            duration=list(durations), loop=0, **webp,
        )  # fmt: skip


def _write_mp4(file: IO[bytes], frames: Sequence[Image.Image], durations: Sequence[int]) -> None:
    """Encode RGB frames as H.264, which every browser plays; it takes even sizes alone."""
    import av  # for an MP4 only

    width, height = frames[0].size
    right, bottom = width % 2, height % 2
    with av.open(file, "w", "mp4") as video:
        stream = video.add_stream(
            "libx264", FRAMES_A_SECOND, width=width + right, height=height + bottom,
            pix_fmt="yuv420p", options={"crf": "18"},
        )  # fmt: skip
        for frame, time in zip(frames, durations, strict=True):
            pixels = np.pad(np.asarray(frame), ((0, bottom), (0, right), (0, 0)), "edge")
            for _ in range(max(1, round(time * FRAMES_A_SECOND / 1000))):
                video.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        video.mux(stream.encode())

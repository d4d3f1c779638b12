"""Images in rows and columns on one white sheet, with words beneath or beside them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from utils import atomic_write

GAP = 2  # pixels between cells


class Cell(NamedTuple):
    """An image (H, W, C) uint8 with a line of text beneath, or the text alone in its place."""

    image: np.ndarray | None = None
    text: str = ""
    text_size: int = 12  # pixels


def as_pillow(image: np.ndarray) -> Image.Image:
    """Convert an image (H, W, C) uint8 into Pillow's, of mode L, RGB or RGBA."""
    return Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)


def in_lines(*rows: Sequence[Cell], columns: int = 8) -> list[Sequence[Cell]]:
    """Break rows that belong together, each above the next, into lines of so many cells."""
    count = max(map(len, rows))
    return [row[i : i + columns] for i in range(0, count, columns) for row in rows]


def lay_out(rows: Sequence[Sequence[Cell]]) -> Image.Image:
    """Draw cells as a table: each row as high and each column as wide as what is in it.

    All images have the same 1, 3 or 4 channels, and so has the sheet, whose white is opaque.
    """
    heights = [max(sum(_heights(cell)) for cell in row) for row in rows]
    columns = zip_longest(*rows, fillvalue=Cell())
    widths = [max(map(_width, column)) for column in columns]
    channels = next(cell.image.shape[2] for row in rows for cell in row if cell.image is not None)
    size = (sum(widths) + GAP * (len(widths) + 1), sum(heights) + GAP * (len(heights) + 1))
    sheet = Image.new({1: "L", 3: "RGB", 4: "RGBA"}[channels], size, "white")
    pen = ImageDraw.Draw(sheet)

    top = GAP
    for row, height in zip(rows, heights, strict=True):
        left = GAP
        for cell, width in zip(row, widths, strict=False):
            above, line = _heights(cell)
            if cell.image is None:
                line = height
            else:
                sheet.paste(as_pillow(cell.image), (left + (width - cell.image.shape[1]) // 2, top))
            centre = (left + width / 2, top + above + line / 2)
            pen.text(centre, cell.text, "black", _font(cell.text_size), anchor="mm")
            left += width + GAP
        top += height + GAP
    return sheet


def _heights(cell: Cell) -> tuple[int, int]:
    """Return the pixels that a cell's image and its text take, one above the other."""
    image = 0 if cell.image is None else cell.image.shape[0]
    return image, cell.text_size + 3 if cell.text else 0


def _width(cell: Cell) -> int:
    image = 0 if cell.image is None else cell.image.shape[1]
    text = int(_font(cell.text_size).getlength(cell.text)) + 4 if cell.text else 0
    return max(image, text)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def write_png(path: Path, sheet: Image.Image, command: str) -> None:
    """Write a sheet, with the command that draws it in the PNG's text under "command".

    Raises:
        OSError: naming `path`.
    """
    about = PngImagePlugin.PngInfo()
    about.add_text("command", command.encode("utf-8", "backslashreplace").decode())
    with atomic_write(path) as file:
        sheet.save(file, "PNG", pnginfo=about)

"""Pictures in rows and columns on one white sheet, with words beneath or beside them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

import atomic

TEXT_SIZE = 12  # pixels
LINE = 15  # pixels that a line of text takes
GAP = 2  # pixels between cells


class Cell(NamedTuple):
    """A picture (H, W, C) uint8 with a line of text beneath, or the text alone in its place."""

    image: np.ndarray | None = None
    text: str = ""


def lay_out(rows: Sequence[Sequence[Cell]]) -> Image.Image:
    """Draw cells as a table: each row as high and each column as wide as what is in it.

    All pictures have the same 1, 3 or 4 channels, and so has the sheet, whose white is opaque.
    """
    font = ImageFont.load_default(TEXT_SIZE)
    heights = [max(map(_height, row), default=0) for row in rows]
    columns = zip_longest(*rows, fillvalue=Cell())
    widths = [max(_width(cell, font) for cell in column) for column in columns]
    channels = next(cell.image.shape[2] for row in rows for cell in row if cell.image is not None)
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    size = (sum(widths) + GAP * (len(widths) + 1), sum(heights) + GAP * (len(heights) + 1))
    sheet = Image.new(mode, size, "white")
    pen = ImageDraw.Draw(sheet)

    top = GAP
    for row, height in zip(rows, heights, strict=True):
        left = GAP
        for cell, width in zip(row, widths, strict=False):
            middle, text_top = left + width / 2, top + (height - LINE) / 2
            if cell.image is not None:
                image = cell.image.squeeze(2) if channels == 1 else cell.image
                sheet.paste(Image.fromarray(image), (left + (width - image.shape[1]) // 2, top))
                text_top = top + image.shape[0]
            pen.text((middle, text_top + LINE / 2), cell.text, "black", font, anchor="mm")
            left += width + GAP
        top += height + GAP
    return sheet


def _height(cell: Cell) -> int:
    return (0 if cell.image is None else cell.image.shape[0]) + LINE * bool(cell.text)


def _width(cell: Cell, font: ImageFont.FreeTypeFont) -> int:
    picture = 0 if cell.image is None else cell.image.shape[1]
    return max(picture, int(font.getlength(cell.text)) + 4 if cell.text else 0)


def write_png(path: Path, sheet: Image.Image, command: str) -> None:
    """Write a sheet, with the command that draws it in the PNG's text under "command".

    Raises:
        OSError: naming `path`.
    """
    about = PngImagePlugin.PngInfo()
    about.add_text("command", command)
    with atomic.writing(path) as file:
        sheet.save(file, "PNG", pnginfo=about)

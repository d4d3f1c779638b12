"""Show the scripts a folder of odd files, and change files under their hands: neither does harm.

    python tests/stress/odd_images.py

Every odd file must be accepted and look right, be skipped with a reason, or be left alone, by the
data doctor and by a training run in processes of their own. Then files change between the moment
they are found and the moment they are read: each is skipped with a reason, or read as it is by
then, and the next start sees what has changed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import struct
import sys
import tempfile
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from harness import GIGABYTE, RUN, command, conclude, measured, run
from PIL import Image, ImageCms

from preprocessing.cache import Cached, open_cached
from preprocessing.sources import Found, find

BROKEN = ("wrong", "crashes", "over 1 GB", "stale")

# What becomes of a file that is not accepted.
SKIPPED, ALONE = "skipped with a reason", "left alone"

# Every image has a quarter of its own at the top left. The two colours, as the network sees them:
RED, BLUE = (200, 40, 40), (40, 60, 200)
COLOUR = RED, BLUE
GREY = (200, 200, 200), (60, 60, 60)
BLACK_WHITE = (255, 255, 255), (0, 0, 0)
OVER_WHITE = RED, (255, 255, 255)
OTHER = (30, 150, 30), (220, 220, 90)
ONE_RED = RED, RED
WHITE = (255, 255, 255), (255, 255, 255)

Expected = tuple | str


def quarter(colours: tuple = COLOUR, mode: str = "RGB", size: tuple = (64, 48)) -> Image.Image:
    """Return an image of `size` (width, height) with a quarter of its own."""
    corner, rest = colours
    image = Image.new(mode, size, rest)
    image.paste(corner, (0, 0, size[0] // 2, size[1] // 2))
    return image


def as_grey(mode: str, scale: int = 1) -> np.ndarray:
    """Return the grey image as an array of a type like "u2", its levels times `scale`."""
    return np.asarray(quarter((200, 60), "L")).astype(mode) * np.asarray(scale, mode)


def write_png(path: Path, width: int, height: int, bits: int, kind: int) -> None:
    """Write a huge PNG of zeros in a moment; `kind` is 0 for grey, 6 for RGBA."""
    row = bytes(1 + width * bits * {0: 1, 6: 4}[kind] // 8)
    packer = zlib.compressobj(9)
    first = packer.compress(row) + packer.flush(zlib.Z_FULL_FLUSH)
    others = packer.compress(row) + packer.flush(zlib.Z_FULL_FLUSH)
    check = 1
    for _ in range(height):
        check = zlib.adler32(row, check)
    pixels = first + others * (height - 1) + b"\3\0" + check.to_bytes(4, "big")
    header = struct.pack(">LLBBBBB", width, height, bits, kind, 0, 0, 0)
    path.write_bytes(png(header, pixels))


def png(header: bytes, pixels: bytes) -> bytes:
    """Return a PNG with this header and these packed pixels."""
    data = b"\x89PNG\r\n\x1a\n"
    for tag, part in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")):
        data += len(part).to_bytes(4, "big") + tag + part
        data += zlib.crc32(tag + part).to_bytes(4, "big")
    return data


def png_16(image: np.ndarray) -> bytes:
    """Return an image (H, W, 3) of 16 bits a value as a PNG, which Pillow does not write."""
    height, width, _ = image.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in image)
    return png(struct.pack(">LLBBBBB", width, height, 16, 2, 0, 0, 0), zlib.compress(rows))


def tiff_16(image: np.ndarray) -> bytes:
    """Return an image (H, W, 3) of 16 bits a value as a TIFF, which Pillow does not write."""
    height, width, _ = image.shape
    pixels = image.astype("<u2").tobytes()
    bits = struct.pack("<3H", 16, 16, 16)
    entries = [  # tag, type (3: 16 bits, 4: 32 bits), count, value or where it stands
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, 14), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, len(pixels)),
    ]  # fmt: skip
    start = 14 + len(pixels)
    listed = b"".join(struct.pack("<HHLL", *entry) for entry in entries)
    header = b"II*\0" + struct.pack("<L", start)
    return header + bits + pixels + struct.pack("<H", len(entries)) + listed + bytes(4)


def saved(image: Image.Image, kind: str, **options) -> Callable[[Path], None]:
    """Return what saves an image as a format, whatever the name."""
    return lambda path: image.save(path, kind, **options)


def cut(image: Image.Image, kind: str, **options) -> Callable[[Path], None]:
    """Return what saves an image and loses the second half of the file."""

    def write(path: Path) -> None:
        image.save(path, kind, **options)
        os.truncate(path, path.stat().st_size // 2)

    return write


def holding(data: bytes) -> Callable[[Path], None]:
    """Return what writes bytes."""
    return lambda path: path.write_bytes(data)


def odd_files() -> list[tuple[str, Callable[[Path], None], Expected]]:
    """Return the name of each odd file, what writes it, and what must become of it."""
    plain, other = quarter(), quarter(OTHER)
    noise = Image.effect_noise((200, 200), 50)
    palette = plain.quantize(2)
    clear = palette.getpixel((63, 47))  # the palette's number of what is not the quarter
    lit = quarter(((*RED, 255), (*BLUE, 0)), "RGBA")
    turned = Image.Exif()
    turned[274] = 6  # to be turned right when it is shown
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    broken_exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\xff\xff\xff\xff" * 4
    wide = np.asarray(plain).astype("u2") * 257
    named = ["صورة.png", "图片.png", "🐈.png", "two\nlines.png", os.fsdecode(b"\xff.png"),
             "\u202egnp.png", "n" * 196 + ".png"]  # fmt: skip
    return [
        # Broken, or no images
        ("cut.jpg", cut(noise, "JPEG"), SKIPPED),
        ("cut progressive.jpg", cut(noise, "JPEG", progressive=True), SKIPPED),
        ("cut.png", cut(noise, "PNG"), SKIPPED),
        ("cut.gif", cut(noise, "GIF"), SKIPPED),
        ("cut.webp", cut(noise, "WEBP"), SKIPPED),
        ("cut.tif", cut(noise, "TIFF"), SKIPPED),
        ("empty.png", holding(b""), SKIPPED),
        ("text.jpg", holding(b"no image"), SKIPPED),
        ("page.png", holding(b"<!DOCTYPE html><title>404 Not Found</title>"), SKIPPED),
        ("program.png", holding(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), SKIPPED),
        ("float.tif", saved(Image.fromarray(as_grey("f4") / 255), "TIFF"), SKIPPED),
        ("400 megapixels.png", lambda path: write_png(path, 20_000, 20_000, 1, 0), SKIPPED),
        ("169 megapixels.png", lambda path: write_png(path, 13_000, 13_000, 16, 0), SKIPPED),
        ("169 with alpha.png", lambda path: write_png(path, 13_000, 13_000, 8, 6), SKIPPED),
        ("24 with alpha.png", lambda path: write_png(path, 6_000, 4_000, 8, 6), WHITE),
        # Ways to store an image
        ("plain.png", saved(plain, "PNG"), COLOUR),
        ("cmyk.jpg", saved(plain.convert("CMYK"), "JPEG", quality=95), COLOUR),
        ("cmyk.tif", saved(plain.convert("CMYK"), "TIFF"), COLOUR),
        ("lab.tif", saved(ImageCms.applyTransform(plain, to_lab), "TIFF"), COLOUR),
        ("ycbcr.tif", saved(plain.convert("YCbCr"), "TIFF"), COLOUR),
        ("grey 16.png", saved(Image.fromarray(as_grey("u2", 257)), "PNG"), GREY),
        ("grey 16.tif", saved(Image.fromarray(as_grey(">u2", 257)), "TIFF"), GREY),
        ("grey 16.pgm", saved(Image.fromarray(as_grey("u2", 257)), "PPM"), GREY),
        ("colour 16.png", holding(png_16(wide)), COLOUR),
        ("colour 16.tif", holding(tiff_16(wide)), COLOUR),
        ("palette.png", saved(palette, "PNG"), COLOUR),
        ("clear palette.png", saved(palette, "PNG", transparency=clear), OVER_WHITE),
        ("clear.gif", saved(palette, "GIF", transparency=clear), OVER_WHITE),
        ("clear colour.png", saved(plain, "PNG", transparency=BLUE), OVER_WHITE),
        ("grey with alpha.png", saved(quarter(((200, 255), (60, 255)), "LA"), "PNG"), GREY),
        ("alpha.png", saved(lit, "PNG"), OVER_WHITE),
        ("alpha.webp", saved(lit, "WEBP", lossless=True), OVER_WHITE),
        ("two levels.png", saved(quarter((1, 0), "1"), "PNG"), BLACK_WHITE),
        ("two levels.tif", saved(quarter((1, 0), "1"), "TIFF", compression="group4"), BLACK_WHITE),
        # Turned, moving, more than one
        ("turned.jpg", saved(plain.rotate(90, expand=True), "JPEG", exif=turned), COLOUR),
        ("turned.png", saved(plain.rotate(90, expand=True), "PNG", exif=turned), COLOUR),
        ("moving.gif", saved(plain, "GIF", save_all=True, append_images=[other]), COLOUR),
        ("moving.png", saved(plain, "PNG", save_all=True, append_images=[other]), COLOUR),
        ("moving.webp", saved(plain, "WEBP", save_all=True, append_images=[other]), COLOUR),
        ("pages.tif", saved(plain, "TIFF", save_all=True, append_images=[other]), COLOUR),
        ("pair.jpg", saved(plain, "MPO", save_all=True, append_images=[other]), COLOUR),
        # With something broken beside the pixels
        ("broken profile.jpg", saved(plain, "JPEG", icc_profile=b"broken" * 30), COLOUR),
        ("broken profile.png", saved(plain, "PNG", icc_profile=b"broken" * 30), COLOUR),
        ("broken exif.jpg", saved(plain, "JPEG", exif=broken_exif), COLOUR),
        ("broken exif.png", saved(plain, "PNG", exif=b"Exif\0\0broken"), COLOUR),
        # Sizes and names
        ("1x1.png", saved(quarter(ONE_RED, size=(1, 1)), "PNG"), ONE_RED),
        ("1x5000.png", saved(quarter(ONE_RED, size=(5000, 1)), "PNG"), ONE_RED),
        ("5000x1.jpg", saved(quarter(ONE_RED, size=(1, 5000)), "JPEG"), ONE_RED),
        ("jpeg.png", saved(plain, "JPEG"), COLOUR),
        ("LOUD.JPG", saved(plain, "JPEG"), COLOUR),
        *((name, saved(plain, "PNG"), COLOUR) for name in named),
        *((f"broken {name}", holding(b"no image"), SKIPPED) for name in named),
        # What is no file
        ("circle", lambda path: path.symlink_to(path.parent), ALONE),
        ("dangling.png", lambda path: path.symlink_to("nowhere.png"), SKIPPED),
        ("itself.png", lambda path: path.symlink_to(path), SKIPPED),
        ("folder.png", Path.mkdir, ALONE),
        (os.path.join("folder.png", "inside.png"), saved(plain, "PNG"), COLOUR),
        ("pipe.png", os.mkfifo if hasattr(os, "mkfifo") else Path.mkdir, ALONE),
    ]  # fmt: skip


def write_odd(folder: Path) -> dict[str, Expected]:
    """Write the odd files that this system lets us; give what must become of each."""
    folder.mkdir()
    expected = {}
    for name, write, becomes in odd_files():
        with contextlib.suppress(OSError):
            write(folder / name)
            expected[name] = becomes
    quarter().save(folder / "closed.png")
    (folder / "closed").mkdir()
    for name, path, opened in (
        ("closed.png", folder / "closed.png", COLOUR),
        (str(folder / "closed"), folder / "closed", ALONE),
    ):
        path.chmod(0)
        expected[name] = opened if os.access(path, os.R_OK) else SKIPPED  # root opens everything
    return expected


def looks(image: np.ndarray, colours: tuple, tolerance: int = 16) -> bool:
    """Return whether an image (H, W, C) has these colours in its quarter and its other corners."""
    corners = image[[8, 8, -8, -8], [8, -8, 8, -8]].astype(int)
    return bool(abs(corners - [colours[0], *[colours[1]] * 3]).max() <= tolerance)


def results(found: Found, cached: Cached) -> dict[str, np.ndarray | str]:
    """Return the image (H, W, C) that each name has become, or the reason why there is none."""
    unread = dict(cached.skipped[len(found.unreadable) :])
    names = [name for name in found.names if name not in unread]
    images = zip(names, cached.images, strict=True)
    return dict(cached.skipped) | dict(images)


def count_wrong(
    kind: str, expected: dict[str, Expected], became: dict[str, np.ndarray | str], counts: Counter
) -> None:
    """Count as `kind`, and name, the files that have not become what they must."""
    for name in sorted(expected.keys() | became.keys()):
        must, has = expected.get(name, ALONE), became.get(name, ALONE)
        if isinstance(has, np.ndarray):
            right = isinstance(must, tuple) and looks(has, must)
            has = "accepted"
        else:
            right = must == (ALONE if has == ALONE else SKIPPED) and has != ""
        if not right:
            counts[kind] += 1
            print(f"{kind}: {name!r} must be {must}, but: {has}", file=sys.stderr)


def read_odd(folder: Path, counts: Counter) -> None:
    """Run both scripts on a folder of odd files, and count how they fare."""
    expected = write_odd(folder / "images")
    counts["files"] = len(expected)
    narrow = os.environ | {"PYTHONIOENCODING": "cp1252"}  # what a pipe takes on Windows
    status, out, said, peak = measured(folder, command("dataset.py", "images"), env=narrow)
    counts["most memory, in MB"] = peak >> 20
    counts["over 1 GB"] += peak > GIGABYTE
    if status:
        counts["crashes"] += 1
        print(f"dataset.py: status {status}\n{out}\n{said}", file=sys.stderr)
    if (folder / "cache").exists():
        found = find(str(folder / "images"))
        built = sorted((folder / "cache").iterdir())
        cached = open_cached(found, (64, 64), None, str(folder / "cache"), "images")
        assert sorted((folder / "cache").iterdir()) == built, "not what dataset.py has made"
        count_wrong("wrong", expected, results(found, cached), counts)
        counts["accepted"] = len(cached.images)
        counts["skipped with a reason"] = sum(bool(reason) for _, reason in cached.skipped)
    status, said = run(folder, command("train.py", *RUN, "--steps", "1"))
    if status:
        counts["crashes"] += 1
        print(f"train.py: status {status}\n{said}", file=sys.stderr)
    (folder / "images" / "closed").chmod(0o700)  # so that it can be deleted


# Files that change after they were found ---------------------------------------------------------

# What is done to a file, and what must become of it: in the run that found it, at the next start.
CHANGES: dict[str, tuple[Callable[[Path], object], Expected, Expected]] = {
    "deleted.png": (Path.unlink, SKIPPED, ALONE),
    "emptied.png": (holding(b""), SKIPPED, SKIPPED),
    "cut.png": (lambda path: os.truncate(path, path.stat().st_size // 2), SKIPPED, SKIPPED),
    "replaced.png": (saved(quarter(OTHER), "PNG"), OTHER, OTHER),
    "resized.png": (saved(quarter(OTHER, size=(90, 70)), "JPEG"), OTHER, OTHER),
    "text.png": (holding(b"no image"), SKIPPED, SKIPPED),
    "linked.png": (lambda path: (path.unlink(), path.symlink_to(path)), SKIPPED, SKIPPED),
    "folder.png": (lambda path: (path.unlink(), path.mkdir()), SKIPPED, ALONE),
    "added.png": (saved(quarter(), "PNG"), ALONE, COLOUR),
    # On a disk that is gone for a while: it is brought back before the next start.
    "away.png": (lambda path: path.rename(path.with_name("away")), SKIPPED, COLOUR),
}


def change_files(folder: Path, counts: Counter) -> None:
    """Change each file after it was found; count how that run and the next start fare."""
    for name, (change, now, then) in CHANGES.items():
        images = folder / name
        images.mkdir()
        quarter().save(images / "kept.png")
        if name != "added.png":
            quarter().save(images / name)
        found = find(str(images))
        change(images / name)
        for kind, becomes in (("wrong", now), ("stale", then)):
            try:
                cached = open_cached(found, (64, 64), None, str(folder / "cache"), name)
                expected = {"kept.png": COLOUR, name: becomes}
                count_wrong(kind, expected, results(found, cached), counts)
            except Exception:
                counts["crashes"] += 1
                traceback.print_exc()
            with contextlib.suppress(FileNotFoundError):
                (images / "away").rename(images / name)
            found = find(str(images))
        counts["files changed"] += 1


def main(arguments: list[str] | None = None) -> int:
    """Print the counts; give 1 if a promise was broken."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args(arguments)
    counts: Counter = Counter()
    with tempfile.TemporaryDirectory() as name:
        read_odd(Path(name), counts)
        change_files(Path(name), counts)
    return conclude(counts, BROKEN)


if __name__ == "__main__":
    sys.exit(main())

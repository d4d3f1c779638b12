"""Broken files as hypothesis makes them from real ones, and what must become of them when read.

Stretches of bytes are replaced, cut out, put in or taken from another file; and, behind checksums
that are right, members, pickle opcodes, settings and weights.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from harness import checkpoint
from hypothesis import strategies as st
from PIL import Image

from dataset import to_image
from models import Discriminator, Generator, generate, sample_latents
from preprocessing.decode import decode_all
from preprocessing.sources import DataError, find, formats
from utils import make_grid

SIZE = (16, 16)
CONFIG = {"z_dim": 4, "features": 2, "channels": 1, "image_size": "8x9", "max_features": 8,
          "norm": "batch", "activation": "relu", "z_dist": "normal"}  # fmt: skip

# What is put into files --------------------------------------------------------------------------

NUMBERS = st.sampled_from([0, 1, 2, 7, 127, 255, 65535, 2**31 - 1, 2**32 - 1, 2**40, 2**64 - 1])
BYTES = st.binary(max_size=16) | st.builds(
    lambda form, number: struct.pack(form, number % (1 << 8 * struct.calcsize(form))),
    st.sampled_from(["B", "<H", ">H", "<I", ">I", "<Q", ">Q"]), NUMBERS,
)  # fmt: skip
NAMES = st.builds("{}{}".format, st.text(max_size=4), st.sampled_from([".png", ".zip", ""])) | (
    st.sampled_from(
        ["../a\n.png", "/a.png", "C:\\a.png", "0.png", "0.png/", "b/a.jpg", "archive/data.pkl",
         "archive/data/0", "archive/version", "archive/byteorder", "archive/constants.pkl"]
    )
)  # fmt: skip
NEST = functools.reduce(lambda inner, _: [inner, inner], range(60), "a")  # endless when written out
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.integers() | st.floats() | st.binary(max_size=4)
    | st.text(max_size=4) | st.builds(lambda: NEST) | st.sampled_from(
        ["16", "8x", "8x8x8", "-8", "1e3", "x\ny", "uniform", "none", "leaky_relu", -1, print,
         torch.ones(2), torch.tensor(4), torch.Size([4]), torch.float16, {4}, np.float64(4)]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner)
    | st.tuples(inner),
    max_leaves=4,
)  # fmt: skip
TENSORS = st.sampled_from([
    torch.Tensor.double, torch.Tensor.half, torch.Tensor.bool, torch.Tensor.to_sparse,
    torch._neg_view, lambda x: torch.nn.Parameter(x, False), lambda x: x.flatten()[:0],
    lambda x: x[..., None], lambda x: x.to("meta"), lambda x: x.to(torch.float8_e4m3fn),
    lambda x: x.to(torch.cfloat).conj(), lambda x: torch.stack([x, x], -1)[..., 0],
    lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8), lambda x: x / 0,
    lambda x: x.flatten()[0].expand(x.shape), lambda x: torch.zeros(1).expand(2**20, 2**20),
    lambda x: torch.empty(2**40, device="meta"), torch.zeros_like,
])  # fmt: skip
CALLED = [b"builtins\nbytearray", b"torch\nTensor", b"torch.storage\nUntypedStorage", b"os\nsystem",
          b"torch._utils\n_rebuild_tensor_v2", b"collections\nOrderedDict"]  # fmt: skip
OPCODES = st.lists(
    st.sampled_from([bytes([code]) for code in b"\x81Rba\x65sut\x85\x86\x87(N\x88\x89)]}\x8fQ."])
    | st.builds(lambda call, n: b"c%s\n\x8a\x09%s\x85R" % (call, n.to_bytes(9, "little")),
                st.sampled_from(CALLED), NUMBERS)
    | st.deferred(lambda: st.sampled_from(real_checkpoint()[3])),
    max_size=4,
)  # fmt: skip
CHECKPOINTS = BYTES | st.deferred(lambda: st.sampled_from(real_checkpoint()[:2]))
IMAGES = st.deferred(lambda: st.one_of(*map(st.sampled_from, real_images().values())))
THREE, TEN, EXTENTS = st.integers(1, 3), st.integers(0, 9), st.integers(-8, 8)
PLACES = st.integers(-64, 63) | st.integers(64, 1 << 16)  # near an end as often as anywhere


def edited(choose: Callable, parts, fresh: st.SearchStrategy):
    """Replace some stretches of bytes, or of a list, by nothing, fresh ones or its own."""
    for _ in range(choose(THREE)):
        end, how, extent = len(parts), choose(TEN), choose(EXTENTS)
        at, source = (
            place * end >> 16 if place >= 64 else min(max(place + end * (place < 0), 0), end)
            for place in (choose(PLACES), choose(PLACES) if how < 3 else 0)
        )
        new = choose(fresh) if how > 4 else parts[source : source + 64 * (how < 3)]
        parts = parts[:at] + new + parts[at + (extent if extent >= 0 else len(new)) :]
    return parts


def edited_members(choose: Callable, members: list, data: st.SearchStrategy) -> list:
    """Change what members (name, data) hold, how they are called, and which there are."""
    for _ in range(choose(THREE)):
        how = choose(TEN)
        if how < 3 or not members:
            members = edited(choose, members, st.tuples(NAMES, data).map(lambda new: [new]))
            continue
        i = choose(TEN) * len(members) // 10
        name, old = members[i]
        new = (name, edited(choose, old, data)) if how < 7 else (choose(NAMES), old)
        members = [*members[:i], new, *members[i + 1 :]]
    return members


def zipped(members: list[tuple[str, bytes]], packing: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members:
            if name:
                archive.writestr(zipfile.ZipInfo(name), data, packing)
        for entry in archive.infolist():  # as torch leaves them
            entry.external_attr = 0
    return file.getvalue()


# Checkpoints -------------------------------------------------------------------------------------


@functools.cache
def real_contents() -> dict:
    weights = Generator(**CONFIG | {"image_size": (8, 9)}).state_dict()
    return {"format": checkpoint.FORMAT, "config": CONFIG, "generator": weights}


@functools.cache
def foreign_contents() -> dict:
    """Return what another program may write of a generator and a discriminator."""
    networks = Generator(4, 2, 1, 16), Discriminator(2, 1, 16)
    states = [
        {
            name.replace("main.", "module.net."): tensor
            for name, tensor in network.state_dict().items()
        }
        for network in networks
    ]
    return {"epoch": 3, "models": {"netG": states[0], "netD": states[1]}, "fixed": torch.ones(3)}


@functools.cache
def real_checkpoint() -> tuple[bytes, bytes, list[tuple[str, bytes]], list[bytes]]:
    """Return a file, one as torch once wrote them, and the file's members and pickle opcodes."""
    file = saved(real_contents())
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    pickled = members[0][1]
    starts = [at for _, _, at in pickletools.genops(pickled)]
    opcodes = [pickled[start:end] for start, end in itertools.pairwise([*starts, None])]
    return file, saved(real_contents(), is_zip=False), members, opcodes


def saved(contents: object, is_zip: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(contents, file, _use_new_zipfile_serialization=is_zip)
    return file.getvalue()


def changed(choose: Callable, values: dict) -> dict:
    """Replace or remove a value, at any depth."""
    key = choose(st.sampled_from(list(values)))
    old, how = values[key], choose(TEN)
    if how == 0:
        return {name: value for name, value in values.items() if name != key}
    if isinstance(old, dict) and old and how < 9:
        return {**values, key: changed(choose, old)}
    is_weight = isinstance(old, torch.Tensor) and how < 9
    return {**values, key: choose(TENSORS)(old) if is_weight else choose(VALUES)}


def checkpoint_case(choose: Callable) -> bytes:
    """Return a checkpoint that is broken somehow."""
    how = choose(TEN)
    file, legacy, members, opcodes = real_checkpoint()
    if how < 2:
        return edited(choose, legacy if how else file, CHECKPOINTS)
    if how < 4:
        return zipped(edited_members(choose, members, CHECKPOINTS))
    if how < 7:
        pickled = b"".join(edited(choose, opcodes, OPCODES))
        return zipped([(members[0][0], pickled), *members[1:]])
    contents = real_contents() if choose(TEN) < 6 else foreign_contents()
    return saved(changed(choose, contents), is_zip=choose(TEN) > 0)


def read_checkpoint(path: Path) -> bool:
    """Draw an image with its generator, or be refused."""
    try:
        generator = Generator.from_checkpoint(path)
    except checkpoint.CheckpointError as error:
        return refused(error, path)
    z = sample_latents([0], generator.z_dim, generator.z_dist)
    images = to_image(generate(generator, z))
    assert images.shape == (1, *generator.image_size, generator.channels), images.shape
    make_grid(images).save(io.BytesIO(), "png")
    return True


def refused(error: Exception, path: Path) -> bool:
    assert str(path) in str(error) and len(str(error).splitlines()) == 1, repr(str(error))
    return False


# Images, and archives of them ------------------------------------------------------------------


@functools.cache
def real_images() -> dict[str, list[bytes]]:
    """Return small images of every format, in every mode and way that it can be written in."""
    random = np.random.default_rng(0)
    colour = Image.fromarray(random.integers(0, 256, (10, 12, 4), np.uint8))
    deep = Image.fromarray(random.integers(0, 65536, (10, 12)).astype(np.uint16))
    modes = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F")
    images = [deep, *(colour.convert("RGB").convert(mode) for mode in modes)]
    turned = Image.Exif()
    turned[274] = 6
    packings = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4")
    ways = [{"exif": turned, "progressive": True, "lossless": True, "transparency": 1},
            {"save_all": True, "append_images": [colour]},
            *({"compression": packing} for packing in packings)]  # fmt: skip
    files = {form: set() for form in formats()}
    files["PPM"] = {b"P1\n2 2\n1 0 0 1\n", b"P2\n2 1\n9\n3 4\n", b"P3\n2 1\n9\n1 2 3 4 5 6\n"}
    for form, image, way in itertools.product(files, images, ways):
        if form == "TIFF" or "compression" not in way:
            file = io.BytesIO()
            with contextlib.suppress(OSError, ValueError, KeyError):
                image.save(file, form, **way)
                files[form].add(file.getvalue())
    return {form: sorted(written) for form, written in files.items()}


def with_checksums(png: bytes) -> bytes:
    start = 8
    while start + 12 <= len(png):
        end = start + 8 + int.from_bytes(png[start : start + 4], "big")
        checksum = struct.pack(">I", zlib.crc32(png[start + 4 : end]))
        png, start = png[:end] + checksum + png[end + 4 :], end + 4
    return png


def image_case(choose: Callable) -> bytes:
    """Return an image that is broken somehow."""
    image = edited(choose, choose(IMAGES), BYTES | IMAGES)
    return with_checksums(image) if image[1:4] == b"PNG" else image


def archive_case(choose: Callable) -> bytes:
    """Return an archive of images, of which some may be broken, as it may be itself."""
    smallest = [min(files, key=len) for files in real_images().values()]
    members = [(f"{i}.png", file) for i, file in enumerate(smallest[choose(TEN) :][:4])]
    how = choose(THREE)
    if how & 1:
        members = edited_members(choose, members, BYTES | IMAGES)
    archive = zipped(members, choose(st.sampled_from([0, 8, 8, 12])))
    return edited(choose, archive, BYTES) if how & 2 else archive


def read_images(data: Path, path: Path) -> bool:
    """Decode all images of `data`, or be refused."""
    channels = (None, 1, 3, 4)[path.stat().st_size % 4]
    try:
        found = find(str(data))
    except DataError as error:
        return refused(error, data)
    images = list(decode_all(found, SIZE, channels))
    assert [name for name, _ in images] == list(found.names)
    reasons = [*found.unreadable, *((name, one.reason) for name, one in images if one.reason)]
    assert all(len(reason.splitlines()) == 1 for _, reason in reasons), reasons
    decoded = [one for _, one in images if not one.reason]
    assert all(one.pixels.shape == (*SIZE, channels or one.channels) for one in decoded), decoded
    return bool(decoded)

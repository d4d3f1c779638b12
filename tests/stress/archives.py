"""Return the data doctor archives that are broken, hostile or huge: none does harm.

    python tests/stress/archives.py --entries 100000

Each is read by `python dataset.py`, which must refuse it in one line, or skip what is bad in it
with a reason and read all that is good, in under 1 GB, and write nothing outside its own folders.
"""

from __future__ import annotations

import argparse
import bz2
import io
import os
import struct
import sys
import tarfile
import tempfile
import traceback
import zipfile
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from harness import GIGABYTE, command, conclude, measured
from odd_images import results
from PIL import Image
from tqdm import tqdm

from preprocessing.cache import open_cached
from preprocessing.sources import DataError, Found, find

BROKEN = ("wrong", "crashes", "written outside", "over 1 GB", "stale")
SIZE = (8, 8)
STORED, DEFLATED, DEFLATED64, BZIP2, UNKNOWN = 0, 8, 9, 12, 77
ENCRYPTED, UTF8 = 1, 1 << 11  # bits of an entry's flags


class Entry(NamedTuple):
    """One entry of an archive as it is to be written, however wrong."""

    name: str | bytes
    data: bytes
    colour: tuple[int, int, int] | None  # what must be seen; None: it must be skipped
    may_be_skipped: bool = False
    packed: bytes | None = None  # as it stands in the archive, if not as `data`
    method: int = STORED
    flags: int = UTF8
    size: int | None = None  # that the headers claim, if not that of `data`
    link: bool = False
    within: bool = False  # lies at the end of the entry before, and is only listed


def colour_of(number: int) -> tuple[int, int, int]:
    """Return one of 256 colours that are well apart from white, black and each other."""
    return 40 + number % 8 * 20, 40 + number // 8 % 8 * 20, 40 + number // 64 % 4 * 50


def image(number: int) -> bytes:
    """Return a PNG of one colour."""
    file = io.BytesIO()
    Image.new("RGB", SIZE, colour_of(number)).save(file, "PNG")
    return file.getvalue()


def good(name: str | bytes, number: int, **how) -> Entry:
    """Return an entry that must be read, whatever its name."""
    return Entry(name, image(number), colour_of(number), **how)


def bad(name: str | bytes, data: bytes | None = None, **how) -> Entry:
    """Return an entry that must be skipped, by default an image."""
    return Entry(name, image(0) if data is None else data, None, **how)


def header(entry: Entry) -> tuple[bytes, bytes]:
    """Return what an entry's two headers have in common, and its name."""
    name = entry.name if isinstance(entry.name, bytes) else entry.name.encode()
    packed = entry.data if entry.packed is None else entry.packed
    size = len(entry.data) if entry.size is None else entry.size
    fields = 20, entry.flags, entry.method, 0, 33, zlib.crc32(entry.data), len(packed), size
    return struct.pack("<HHHHHLLLHH", *fields, len(name), 0), name


def local(entry: Entry) -> bytes:
    """Return an entry as it stands in the archive, with its header."""
    return b"PK\3\4" + b"".join(header(entry)) + (entry.packed or entry.data)


def write_zip(path: Path, entries: list[Entry]) -> None:
    """Write an archive by hand, as zipfile writes none that is wrong."""
    listed = b""
    with open(path, "wb") as file:
        for entry in entries:
            offset = file.tell() - (len(local(entry)) if entry.within else 0)
            if not entry.within:
                file.write(local(entry))
            fields, name = header(entry)
            mode = (0o120777 if entry.link else 0o100644) << 16
            listed += b"PK\1\2\x14\3" + fields + struct.pack("<HHHLL", 0, 0, 0, mode, offset) + name
        count = len(entries)
        ends = struct.pack("<HHHHLLH", 0, 0, count, count, len(listed), file.tell(), 0)
        file.write(listed + b"PK\5\6" + ends)


def zeros(megabytes: int) -> bytes:
    """Return what unpacks to so many megabytes, a thousandth of that, in a moment."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    one = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return one * megabytes + packer.flush()


def odd_archives(outside: str) -> dict[str, list[Entry]]:
    """Return archives of good images and all kinds of bad entries; `outside` is a folder."""
    plain = [good("plain.png", 1), good("folder/plain.png", 2)]
    inner = good("inner.png", 3)
    outer = image(4) + local(inner)
    whole = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = whole.compress(image(5)) + whole.flush()
    gigabyte = {"packed": zeros(1000), "method": DEFLATED}
    return {
        "odd": [
            *plain,
            # Names
            *(bad(name) for name in ("../x.png", "../../x.png", "in/../../x.png", "..\\x.png")),
            *(bad(name) for name in (f"{outside}/x.png", "C:\\x.png", "c:x.png", r"\\disk\x.png")),
            bad("link.png", b"plain.png", link=True),
            bad("link out.png", f"{outside}/x.png".encode(), link=True),
            good(b"caf\x82.png", 6, flags=0),  # in cp437, as old Windows writes it
            good("图片.png", 7),
            good("./here/inside.png", 10),
            good("windows\\inside.png", 8),
            good("two\nlines.png", 9),
            good("n" * 3000 + ".png", 11),
            # Contents
            bad("encrypted.png", packed=os.urandom(99), flags=ENCRYPTED),
            bad("wrong sum.png", packed=image(12)),
            bad("deflate64.png", packed=packed, method=DEFLATED64),
            bad("unknown.png", packed=packed, method=UNKNOWN),
            bad("cut.png", image(5), packed=packed[:-20], method=DEFLATED),
            bad("no deflate.png", method=DEFLATED),
            bad("too large.png", size=2**32 - 2),
            bad("inner.zip", b"PK"),
            bad("inner.tar.gz", b""),
            good("packed.png", 5, packed=packed, method=DEFLATED),
            good("twice.png", 13),
            good("twice.png", 14),
            # As of Python 3.11.8, zipfile refuses entries that overlap.
            Entry("outer.png", outer, colour_of(4), may_be_skipped=True),
            inner._replace(may_be_skipped=True, within=True),
        ],
        "bombs": [
            *plain,
            bad("bomb.png", size=1000 << 20, **gigabyte),
            bad("smaller bomb.png", bytes(100 << 20), packed=zeros(100), method=DEFLATED),
            bad("lying bomb.png", bytes(100), **gigabyte),
            bad("lying bzip2.png", bytes(100), packed=bz2.compress(bytes(250 << 20)), method=BZIP2),
            good("hidden bomb.png", 15, may_be_skipped=True),
            good("hidden bomb.png", 15, may_be_skipped=True, size=1000 << 20, **gigabyte),
        ],
    }


def write_refused(folder: Path) -> None:
    """Write archives of which nothing can be read."""
    write_zip(folder / "cut.zip", [good("plain.png", 1), good("other.png", 2)])
    os.truncate(folder / "cut.zip", (folder / "cut.zip").stat().st_size - 60)
    write_zip(folder / "empty.zip", [])
    write_zip(folder / "bad name.zip", [good("plain.png", 1), bad(b"\xff.png")])
    with tarfile.open(folder / "tar.zip", "w:gz") as tar:
        member = tarfile.TarInfo("plain.png")
        member.size = len(image(1))
        tar.addfile(member, io.BytesIO(image(1)))


def write_many(path: Path, entries: int) -> None:
    """Write an archive of so many images, a thousand to a folder."""
    data = [image(number) for number in range(256)]
    with zipfile.ZipFile(path, "w") as archive:
        for i in tqdm(range(entries), desc="Entries", disable=None, leave=False):
            archive.writestr(f"{i // 1000:03d}/{i:06d}.png", data[i % 256])


def snapshot(folder: Path, but: tuple[Path, ...]) -> list[tuple[str, int, int]]:
    """Return the name, size and time of every file below a folder, but not those below `but`."""
    files = (path for path in folder.rglob("*") if not path.is_dir())
    kept = (path for path in files if not any(map(path.is_relative_to, but)))
    return sorted((str(path), path.lstat().st_size, path.lstat().st_mtime_ns) for path in kept)


def count_entries(path: Path, entries: list[Entry], cache: Path, counts: Counter) -> None:
    """Count the entries that have become what they must, by what the data doctor has cached."""
    expected = {}
    for entry in entries:
        name = entry.name
        if isinstance(name, bytes):
            name = name.decode("cp437")
        expected[name] = entry  # of two with the same name, the later
    found = find(str(path))
    became = results(found, open_cached(found, SIZE, None, str(cache), path.stem))
    for name in sorted(expected.keys() | became.keys()):
        entry, has = expected.get(name), became.get(name, "")
        if isinstance(has, np.ndarray):
            right = entry and entry.colour and (has == entry.colour).all()
            counts["entries accepted"] += 1
            has = has[0, 0]
        else:
            right = entry and has and (entry.colour is None or entry.may_be_skipped)
            counts["entries skipped with a reason"] += has != ""
        counts["kinds held" if right else "wrong"] += 1
        if not right:
            print(f"wrong: {path.name}: {name!r}: {has}", file=sys.stderr)


def count_many(path: Path, entries: int, cache: Path, counts: Counter) -> None:
    """Count the images of the huge archive that are there and look right."""
    found = find(str(path))
    images = open_cached(found, SIZE, None, str(cache), path.stem).images
    numbers = [int(Path(name).stem) % 256 for name in found.names]
    colours = np.array([colour_of(number) for number in range(256)], np.uint8)[numbers]
    right = len(images) == entries and (images == colours[:, None, None]).all()
    counts["kinds held" if right else "wrong"] += 1
    counts["entries accepted"] += len(images)


def seen(found: Found, cache: Path) -> dict[str, tuple | str]:
    """Return the colour that each name has become, or why it has none."""
    became = results(found, open_cached(found, SIZE, None, str(cache), "changed"))
    for name, has in became.items():
        became[name] = tuple(has[0, 0].tolist()) if isinstance(has, np.ndarray) else has
    return became


def change_archives(folder: Path, counts: Counter) -> None:
    """Change archives after they were found; count how that run and the next start fare."""
    changes = {
        "replaced": lambda path: write_zip(path, [good("one.png", 3)]),
        "shortened": lambda path: os.truncate(path, path.stat().st_size - 60),
        "deleted": Path.unlink,
    }
    for name, change in changes.items():
        path = folder / f"{name}.zip"
        write_zip(path, [good("one.png", 1), good("two.png", 2)])
        right = {"one.png": colour_of(3)} if name == "replaced" else {}
        try:
            found = find(str(path))
            change(path)
            became = seen(found, folder / "cache")
            reasons = [became.pop(name) for name in became.keys() - right.keys()]
            counts["wrong"] += became != right or not all(reasons)
            try:
                became = seen(find(str(path)), folder / "cache")
            except DataError:
                became = {}
            counts["stale"] += became != right
        except Exception:
            counts["crashes"] += 1
            traceback.print_exc()
        counts["archives changed"] += 1


def stress(entries: int) -> Counter:
    """Let the data doctor read every archive, and count how it fares."""
    counts: Counter = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        here, archives, temporary = folder / "work" / "here", folder / "archives", folder / "tmp"
        for made in (here, archives, temporary):
            made.mkdir(parents=True)
        odd = odd_archives(str(folder))
        for kind, members in odd.items():
            write_zip(archives / f"{kind}.zip", members)
        write_refused(archives)
        write_many(archives / "many.zip", entries)
        but = here / "cache", here / "samples"
        before = snapshot(folder, but)

        def read(path: Path) -> tuple[Path, tuple[int, str, str, int]]:
            words = command("dataset.py", str(path), "--image_size", "8")
            return path, measured(here, words, env=os.environ | {"TMPDIR": str(temporary)})

        paths = sorted(archives.iterdir())
        with ThreadPoolExecutor(2) as pool:
            bar = tqdm(pool.map(read, paths), "Archives", len(paths), disable=None)
            for path, (status, out, said, peak) in bar:
                counts["archives"] += 1
                counts["most memory, in MB"] = max(counts["most memory, in MB"], peak >> 20)
                counts["over 1 GB"] += peak > GIGABYTE
                expected = 0 if path.stem in (*odd, "many") else 2
                one_line = len(said.splitlines()) == 1 and path.name in said
                if status != expected or (status == 2 and not one_line):
                    counts["wrong" if status in (0, 2) else "crashes"] += 1
                    print(f"{path.name}: status {status}\n{out}\n{said}", file=sys.stderr)
                elif path.stem in odd:
                    count_entries(path, odd[path.stem], here / "cache", counts)
                elif path.stem == "many":
                    count_many(path, entries, here / "cache", counts)
                else:
                    counts["refused"] += 1
                    counts["kinds held"] += 1
                if peak > GIGABYTE:
                    print(f"{path.name}: {peak / 1e9:.1f} GB", file=sys.stderr)
        counts["written outside"] = len(set(snapshot(folder, but)) ^ set(before))
        change_archives(temporary, counts)
    return counts


def main(arguments: list[str] | None = None) -> int:
    """Print the counts; give 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--entries", type=int, default=100_000, help="of the huge archive")
    flags = parser.parse_args(arguments)
    return conclude(stress(flags.entries), BROKEN)


if __name__ == "__main__":
    sys.exit(main())

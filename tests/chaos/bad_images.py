"""Image folders in which some images are broken, each in another way."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

BOMB_SIDE = 60_000


def picture(seed: int, kind: str = "PNG") -> bytes:
    """A small image of noise, encoded."""
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def png_bomb(side: int = BOMB_SIDE) -> bytes:
    """A whole, valid PNG of side x side black pixels in less than a megabyte."""
    row = bytes(1 + -(-side // 8))
    rows = side // 100
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = pack.compress(row * rows) + pack.flush(zlib.Z_FULL_FLUSH)  # the same bytes for the same rows
    sums = 1
    for _ in range(100):
        sums = zlib.adler32(row * rows, sums)
    end = zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    data = b"\x78\xda" + block * 100 + end + sums.to_bytes(4, "big")

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_bomb() -> bytes:
    """A JPEG that says it is 65,500 pixels wide and high, and ends soon after."""
    whole = bytearray(picture(0, "JPEG"))
    place = whole.index(b"\xff\xc0")
    whole[place + 5 : place + 9] = struct.pack(">HH", 65_500, 65_500)
    return bytes(whole)


def gif_bomb(frames: int = 190, side: int = 1000) -> bytes:
    """An animation whose every frame is harmless."""
    black = Image.new("P", (side, side))
    white = Image.new("P", (side, side), 1)
    buffer = io.BytesIO()
    black.save(buffer, "GIF", save_all=True, append_images=[white, black] * (frames // 2), optimize=False)
    return buffer.getvalue()


def broken(seed: int = 0) -> dict[str, bytes]:
    """Broken images by what is wrong with them."""
    whole = picture(seed)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x10
    return {
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "flipped": bytes(flipped),
        "text": b"<html>404 Not Found</html>",
        "gigantic": png_bomb(),
    }


def decode_damaged(kinds: list[str], count: int) -> str:
    """Decode so many damaged images of each kind, cut off or with a flipped bit. How many of each gave no image."""
    return " ".join(str(sum(_is_refused(kind, i) for i in range(count))) for kind in kinds)


def _is_refused(kind: str, number: int) -> bool:
    from simlap.data.decode import DecodeError, decode_image
    from simlap.data.source import StoredImage

    rng = random.Random(f"{kind} {number}")
    content = bytearray(picture(number % 8, kind))
    place = rng.randrange(len(content))
    if number % 4:
        content[place] ^= 1 << rng.randrange(8)
    else:
        del content[place:]
    try:
        decode_image(StoredImage("here", None, lambda: bytes(content)), 3)
    except DecodeError:
        return True
    return False


def image_folders(root: Path, *, classes: int = 3, train: int = 40, test: int = 8) -> dict[str, str]:
    """`train/` and `test/` of whole images. Returns the data section."""
    number = 0
    for part, count in (("train", train), ("test", test)):
        for label in range(classes):
            folder = root / part / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                number += 1
                kind = ("PNG", "JPEG")[i % 2]
                (folder / f"{i:03d}.{kind.lower()}").write_bytes(picture(number, kind))
    return {"source": "folder", "train": str(root / "train"), "test": str(root / "test")}


def break_some(root: Path) -> dict[str, bytes]:
    """Break five training images, two of them neighbours of a class, and one of the test part. Returns path -> content."""
    contents = list(broken().values())
    places = ["train/class0/004.png", "train/class0/005.jpeg", "train/class1/039.jpeg", "train/class1/010.png",
              "train/class2/000.png"]  # fmt: skip
    written = dict(zip(places, contents, strict=True)) | {"test/class1/003.jpeg": contents[1]}
    for place, content in written.items():
        (root / place).write_bytes(content)
    return written

"""What is looked at in an encoded image before a decoder is: how large it says it is, and whether a PNG is whole."""

from __future__ import annotations

import io
import zlib

MAX_PIXELS = 178_956_970
"""More is taken for an attack or a mistake, as Pillow does (twice its `MAX_IMAGE_PIXELS`); for an animation, of all frames."""
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
"""Markers of a JPEG's header that say its size."""
_ALONE = frozenset({0x01, *range(0xD0, 0xDA)})
"""Markers without a length."""


def pixels(encoded: bytes) -> int | None:
    """How many pixels a decoder would make room for; None where the header does not tell (it will not decode either)."""
    if encoded.startswith(_PNG):
        return _number(encoded, 16, 4) * _number(encoded, 20, 4) if len(encoded) >= 24 else None
    if encoded.startswith(_JPEG):
        return _of_jpeg(encoded)
    return _as_pillow_says(encoded)


def png_damage(encoded: bytes) -> str | None:
    """What is wrong with a PNG; None where nothing is, or it is no PNG. Chunks that decoding does without may be damaged.

    torchvision 0.28 does not survive libpng's own complaint of damaged pixels: the process ends by a signal.
    """
    if not encoded.startswith(_PNG):
        return None
    place, view = len(_PNG), memoryview(encoded)
    while place + 12 <= len(encoded):
        length, kind = _number(encoded, place, 4), encoded[place + 4 : place + 8]
        end = place + 8 + length
        if end + 4 > len(encoded):
            break
        needed = not kind[0] & 0x20  # an upper case letter
        if needed and zlib.crc32(view[place + 4 : end]) != _number(encoded, end, 4):
            return f"the checksum of its {kind.decode('latin-1')!r} chunk is wrong"
        if kind == b"IEND":
            return None
        place = end + 4
    return "it is cut off"


def _of_jpeg(encoded: bytes) -> int | None:
    place = 2
    while place + 9 <= len(encoded):
        if encoded[place] != 0xFF:
            return None
        marker = encoded[place + 1]
        if marker in _FRAMES:
            return _number(encoded, place + 5, 2) * _number(encoded, place + 7, 2)
        if marker == 0xFF:  # filler
            place += 1
        elif marker in _ALONE:
            place += 2
        else:
            place += 2 + _number(encoded, place + 2, 2)
    return None


def _as_pillow_says(encoded: bytes) -> int | None:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded)) as file:
            return file.width * file.height * int(getattr(file, "n_frames", 1))
    except Image.DecompressionBombError:
        return MAX_PIXELS + 1
    except (OSError, SyntaxError, ValueError):
        return None


def _number(data: bytes, place: int, size: int) -> int:
    return int.from_bytes(data[place : place + size], "big")

"""Encoded images to uint8 squares."""

from __future__ import annotations

import io
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from simlap.data.encoded import MAX_PIXELS, pixels, png_damage
from simlap.data.resize import fit_square
from simlap.data.source import Part, Source, StoredImage
from simlap.errors import DataError

Job = TypeVar("Job")
Result = TypeVar("Result")
_MOST_THREADS = 8  # more help large images only; small ones are bound by the interpreter
_ORIGIN = re.compile(r"^[\w()]+, \S+:\d+, ")  # torchvision begins with the line of its source file


Mend = Callable[[int, "DecodeError"], Tensor]
"""From an image's row in its source, and what is wrong with it, to the image that stands in."""


class DecodeError(Exception):
    """An image that cannot be decoded: its place and the decoder's words. `of_storage`: it could not even be read."""

    def __init__(self, place: str, reason: str, *, of_storage: bool = False) -> None:
        self.place, self.reason, self.of_storage = place, reason, of_storage
        super().__init__(f"{place}: {reason}")


def decoded_squares(source: Source, part: Part, rows: Tensor, size: int, mend: Mend | None = None) -> Tensor:
    """What `Source.images` is to give, of a source with encoded images: uint8 [m, c, size, size]. Raises DataError."""
    out = torch.empty((len(rows), source.channels, size, size), dtype=torch.uint8)
    order = rows.argsort()
    try:
        decode_images(source.stored(part, rows[order]), out, targets=order, numbers=rows[order], mend=mend)
    except DecodeError as error:
        raise DataError(str(error), key=source.key(part)) from error
    return out


def decode_images(
    chunks: Iterable[Sequence[StoredImage]],
    out: Tensor,
    *,
    targets: Tensor | None = None,
    threads: int | None = None,
    numbers: Tensor | None = None,
    mend: Mend | None = None,
) -> None:
    """Decode images into `out`, in threads.

    Args:
        chunks: images, in the order of `targets`. A chunk is one job: some hundred small images, since handing over a job
            costs as much as one of them.
        out: uint8 [n, c, s, s], c is 1 or 3. Grey images fill three channels alike; colours become luma.
        targets: int64 [n], the row of `out` that each image goes to (default: 0, 1, ...).
        threads: as in `in_threads` (the decoder lets go of the interpreter lock).
        numbers: int64 [n], rows of the source, in the order of the images; with `mend`.
        mend: as in `decode_into`.

    Raises:
        DecodeError: for the first image that cannot be decoded.
    """
    rows = range(len(out)) if targets is None else targets.tolist()
    named = range(len(out)) if numbers is None else numbers.tolist()

    def jobs() -> Iterator[tuple[Sequence[StoredImage], Sequence[int], Sequence[int], Mend | None]]:
        first = 0
        for chunk in chunks:
            end = first + len(chunk)
            yield chunk, rows[first:end], named[first:end], mend
            first = end

    for _ in in_threads(lambda job: decode_into(out, *job), jobs(), threads=threads):
        pass


def decode_into(
    out: Tensor,
    images: Iterable[StoredImage],
    rows: Iterable[int],
    numbers: Iterable[int] | None = None,
    mend: Mend | None = None,
) -> None:
    """Decode images into these rows of uint8 [n, c, s, s], one after another. Raises DecodeError.

    Args:
        out: to be written to.
        images: to be decoded.
        rows: of `out`.
        numbers: rows of the source, for `mend`.
        mend: gives the image (uint8 [c, h, w]) that stands in for one that cannot be decoded.
    """
    rows = list(rows)
    for stored, row, number in zip(images, rows, rows if numbers is None else numbers, strict=True):
        try:
            image = decode_image(stored, out.shape[1])
        except DecodeError as error:
            if mend is None:
                raise
            image = mend(number, error)
        out[row] = fit_square(image[None], out.shape[-1])[0]


def in_threads(work: Callable[[Job], Result], jobs: Iterable[Job], *, threads: int | None = None) -> Iterator[Result]:
    """`work(job)` of every job, in order, done in threads. The first exception ends it; jobs that wait are dropped.

    Args:
        work: what to do.
        jobs: to be done.
        threads: how many work (default: as many as torch uses, which are those a cell was given; at most 8).
    """
    threads = threads or min(_MOST_THREADS, torch.get_num_threads())
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for job in jobs:
                pending.append(pool.submit(work, job))
                while len(pending) > 2 * threads:  # bounds the encoded bytes held in memory
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def decode_image(image: StoredImage, channels: int) -> Tensor:
    """One image in its own size: uint8 [channels, h, w]. An animation gives its first frame. Raises DecodeError."""
    try:
        content = image.read()
    except OSError as error:
        raise DecodeError(image.place, str(error), of_storage=True) from error
    if isinstance(content, Tensor):
        return content
    if not content:
        raise DecodeError(image.place, "the image has no bytes (images by path alone cannot be read)")
    return _decode(image.place, content, channels)


def _decode(place: str, encoded: bytes, channels: int) -> Tensor:
    from torchvision import io as tvio  # seconds of import time, paid only by those who use it

    if (count := pixels(encoded)) is not None and count > MAX_PIXELS:
        raise DecodeError(place, f"the image has {count:,} pixels or more; at most {MAX_PIXELS:,} are decoded")
    if damage := png_damage(encoded):
        raise DecodeError(place, damage)
    mode = tvio.ImageReadMode.GRAY if channels == 1 else tvio.ImageReadMode.RGB
    try:
        # the copy into a bytearray gives torch the writable memory it insists on
        image: Tensor = tvio.decode_image(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), mode)
    except (RuntimeError, ValueError) as error:
        rare = _decode_rare(encoded, channels)
        if rare is None:
            raise DecodeError(place, _ORIGIN.sub("", str(error).splitlines()[0])) from error
        return rare
    if image.dtype == torch.uint16:  # 16-bit PNG
        image = (image.to(torch.int32) >> 8).to(torch.uint8)
    return image[0] if image.dim() == 4 else image


def _decode_rare(encoded: bytes, channels: int) -> Tensor | None:
    """BMP, TIFF and whatever else Pillow knows and torchvision does not; None where Pillow fails as well."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded)) as file:
            pixels = np.array(file.convert("L" if channels == 1 else "RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    return torch.from_numpy(pixels).reshape(*pixels.shape[:2], channels).permute(2, 0, 1)

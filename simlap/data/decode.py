"""Encoded images to uint8 squares."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from simlap.data.resize import fit_square


class DecodeError(Exception):
    """An image that cannot be decoded: its row and the decoder's words."""

    def __init__(self, row: int, reason: str) -> None:
        self.row, self.reason = row, reason
        super().__init__(f"row {row}: {reason}")


def decode_images(chunks: Iterable[Sequence[bytes | None]], out: Tensor, threads: int) -> None:
    """Decode JPEG, PNG, GIF or WebP images into `out`, in threads.

    Args:
        chunks: encoded images, in the order of the rows. Some hundred to a chunk: handing over a job costs as
            much as a small image.
        out: uint8 [n, 3, s, s]; grey images fill the three channels alike.
        threads: decoders at work (the decoder lets go of the interpreter lock).
    """
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        first = 0
        try:
            for chunk in chunks:
                pending.append(pool.submit(_decode_chunk, chunk, out[first : first + len(chunk)], first))
                first += len(chunk)
                while len(pending) > 2 * threads:  # bounds the encoded bytes held in memory
                    pending.popleft().result()
            while pending:
                pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _decode_chunk(chunk: Sequence[bytes | None], out: Tensor, first: int) -> None:
    from torchvision.io import ImageReadMode, decode_image  # seconds of import time, paid only by those who use it

    for offset, encoded in enumerate(chunk):
        if not encoded:
            raise DecodeError(first + offset, "the image has no bytes (images by path alone cannot be read)")
        try:
            # the copy into a bytearray gives torch the writable memory it insists on
            image = decode_image(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), ImageReadMode.RGB)
        except (RuntimeError, ValueError) as error:
            raise DecodeError(first + offset, str(error).splitlines()[0]) from error
        if image.dtype == torch.uint16:  # 16-bit PNG
            image = (image.to(torch.int32) >> 8).to(torch.uint8)
        if image.dim() == 4:  # an animation: its first frame
            image = image[0]
        out[offset] = fit_square(image[None], out.shape[-1])[0]

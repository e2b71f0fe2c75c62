from __future__ import annotations

import io
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from simlap.data.decode import DecodeError, decode_image, decode_images, in_threads
from simlap.data.source import StoredImage

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def _encoded(kind: str, pixels: np.ndarray = PIXELS, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, kind)
    return buffer.getvalue()


def _stored(content: bytes | torch.Tensor | None, place: str = "here") -> StoredImage:
    return StoredImage(place, None, lambda: content)


def _tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_pixels(kind: str) -> None:
    image = decode_image(_stored(_encoded(kind)), 3)
    assert torch.equal(image, _tensor(PIXELS))
    assert decode_image(_stored(_encoded(kind)), 1).shape == (1, 6, 9)


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "CMYK"), ("JPEG", None), ("WEBP", None), ("GIF", None), ("PNG", "LA")]
)
def test_other_formats_are_decoded(kind: str, mode: str | None) -> None:
    smooth = np.full((16, 16, 3), (200, 100, 50), dtype=np.uint8)
    image = decode_image(_stored(_encoded(kind, smooth, mode)), 3)
    expected = np.array(Image.open(io.BytesIO(_encoded(kind, smooth, mode))).convert("RGB"))
    assert (image.int() - _tensor(expected).int()).abs().max() <= 4


def test_grey_sets_keep_grey_images() -> None:
    assert torch.equal(
        decode_image(_stored(_encoded("PNG", PIXELS[..., 0])), 1), torch.from_numpy(PIXELS[None, ..., 0])
    )


def test_arrays_pass_through() -> None:
    array = torch.zeros(1, 3, 3, dtype=torch.uint8)
    assert decode_image(_stored(array), 1) is array


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_half_an_image_is_an_error(kind: str) -> None:
    large = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    encoded = _encoded(kind, large)
    with pytest.raises(DecodeError, match=r"^here: ") as caught:
        decode_image(_stored(encoded[: len(encoded) // 2]), 3)
    assert ".cpp" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_an_error() -> None:
    def fail() -> bytes:
        raise FileNotFoundError("gone")

    with pytest.raises(DecodeError, match="there: gone"):
        decode_image(StoredImage("there", None, fail), 3)
    with pytest.raises(DecodeError, match="no bytes"):
        decode_image(_stored(None), 3)


def test_images_go_to_their_targets() -> None:
    images = [torch.full((1, 2, 2), value, dtype=torch.uint8) for value in range(7)]
    chunks = [[_stored(image) for image in images[:3]], [], [_stored(image) for image in images[3:]]]
    out = torch.empty(7, 1, 2, 2, dtype=torch.uint8)
    targets = torch.tensor([6, 5, 0, 1, 2, 3, 4])
    decode_images(chunks, out, targets=targets, threads=2)
    assert out[targets, 0, 0, 0].tolist() == list(range(7))


def test_threads_keep_the_order_and_stop_at_the_first_error() -> None:
    drawn = 0

    def jobs() -> Iterator[int]:
        nonlocal drawn
        for job in range(1000):
            drawn += 1
            yield job

    def work(job: int) -> tuple[int, str]:
        if job == 20:
            raise ValueError("twenty")
        return job, threading.current_thread().name

    done: list[int] = []

    def consume() -> None:
        for job, name in in_threads(work, jobs(), threads=3):
            assert name != threading.main_thread().name
            done.append(job)

    with pytest.raises(ValueError, match="twenty"):
        consume()
    assert done == list(range(20))
    assert drawn < 40, "jobs are drawn as they are needed"

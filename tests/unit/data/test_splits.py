from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simlap.config.schema import Validation
from simlap.data.resize import fit_square
from simlap.data.source import ImageSet
from simlap.data.splits import channel_statistics, validation_rows


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=80),
    st.floats(0.01, 0.99),
    st.integers(0, 3),
)
def test_split_is_a_stratified_partition(labels: list[int], fraction: float, seed: int) -> None:
    y = torch.tensor(labels)
    train, val = validation_rows(y, Validation(fraction=fraction, split_seed=seed))
    assert torch.equal(torch.cat((train, val)).sort().values, torch.arange(len(y)))
    assert torch.equal(train, train.sort().values)
    assert torch.equal(val, val.sort().values)
    for label in set(labels):
        assert abs(int((y[val] == label).sum()) - fraction * labels.count(label)) <= 0.5 + 1e-9


def test_split_depends_on_its_seed_alone() -> None:
    y = torch.arange(200) % 4
    once = validation_rows(y, Validation(split_seed=1))[1]
    torch.manual_seed(5)
    assert torch.equal(once, validation_rows(y, Validation(split_seed=1))[1])
    assert not torch.equal(once, validation_rows(y, Validation(split_seed=2))[1])


def test_split_of_a_class_ignores_other_classes() -> None:
    y = torch.arange(200) % 4
    val = validation_rows(y, Validation())[1]
    without = y[y != 2]
    rows = (y != 2).nonzero()[:, 0]
    assert torch.equal(rows[validation_rows(without, Validation())[1]], val[y[val] != 2])


def test_channel_statistics_are_those_of_the_pixels() -> None:
    images = torch.randint(0, 256, (5000, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 1] //= 2
    mean, std = channel_statistics(images)
    pixels = images.double() / 255
    torch.testing.assert_close(torch.tensor(mean, dtype=torch.float64), pixels.mean((0, 2, 3)), rtol=1e-12, atol=0)
    expected = pixels.std((0, 2, 3), correction=0)
    torch.testing.assert_close(torch.tensor(std, dtype=torch.float64), expected, rtol=1e-12, atol=0)


def test_a_constant_channel_divides_by_one() -> None:
    assert channel_statistics(torch.full((4, 1, 2, 2), 51, dtype=torch.uint8)) == ((0.2,), (1.0,))


def test_fit_square_keeps_the_proportions_and_the_centre() -> None:
    wide = torch.zeros(1, 3, 8, 16, dtype=torch.uint8)
    wide[..., 4:12] = 200
    assert torch.equal(fit_square(wide, 8), torch.full((1, 3, 8, 8), 200, dtype=torch.uint8))
    assert fit_square(wide, 5).shape == (1, 3, 5, 5)
    assert fit_square(wide.mT, 4).float().mean() > 150
    square = torch.zeros(2, 1, 6, 6, dtype=torch.uint8)
    assert fit_square(square, 6) is square


def test_image_set_refuses_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="2 images but 3 labels"):
        ImageSet(torch.zeros(2, 1, 1, 1, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))

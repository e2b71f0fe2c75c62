from __future__ import annotations

import random
from collections import Counter, defaultdict
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import chi2_contingency, ks_2samp
from timm.data import auto_augment as timm
from torch import Tensor

from simlap import rng
from simlap.data.augment.geometry import Interpolation
from simlap.data.augment.layers import Choice
from simlap.data.augment.rand_augment import _AMOUNTS, Policy, RandAugment, parse_rand_augment
from simlap.errors import ConfigError
from tests.unit.data.augment.images import counters, from_pillow, noise, smooth, to_pillow

NAMES = tuple(dict.fromkeys(Policy(increasing=True).operations + Policy().operations))
MOVING = {"Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"}
MEAN = (0.49, 0.31, 0.2)
AUTHORS = "rand-m9-mstd0.5-inc1"


def _one(name: str, images: Tensor, amounts: np.ndarray, interpolation: Interpolation) -> Tensor:
    """One operation on every row."""
    augment = RandAugment(Policy(), MEAN[: images.shape[1]], interpolation)
    return augment.apply(images, [[Choice(name, np.arange(len(images)), amounts)]])


# timm's tables hold functions of different signatures
OPERATIONS: dict[str, Any] = timm.NAME_TO_OP
LEVELS: dict[str, Any] = timm.LEVEL_TO_ARG


def _timm(name: str, image: Tensor, amount: float, interpolation: str) -> Tensor:
    whole = name.startswith(("Posterize", "Solarize"))
    arguments = () if LEVELS[name] is None else (int(amount) if whole else float(amount),)
    fill = tuple(round(255 * value) for value in MEAN[: len(image)])
    resample = Image.Resampling[interpolation.upper()]
    return from_pillow(OPERATIONS[name](to_pillow(image), *arguments, fillcolor=fill, resample=resample))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_operations_are_timms(name: str, channels: int) -> None:
    flat = torch.full((2, channels, 32, 32), 77, dtype=torch.uint8)
    images = torch.cat((smooth(12, channels), noise(12, channels, 32), flat))
    generator = np.random.default_rng(0)
    levels, signs = generator.uniform(0, 10, len(images)), generator.choice([-1.0, 1.0], len(images))
    levels[:3], levels[-2:] = (0, 5, 10), (0, 10)
    amounts = _AMOUNTS[name](levels, signs)
    for interpolation in ("bilinear", "bicubic") if name in MOVING else ("bilinear",):
        ours = _one(name, images, amounts, interpolation)
        theirs = torch.stack([_timm(name, *pair, interpolation) for pair in zip(images, amounts, strict=True)])
        if name in MOVING:  # float32 may fall on the other side of a whole number
            difference = (ours.to(torch.int16) - theirs).abs().to(torch.float32)
            assert float(difference.max()) <= 1
            assert float(difference.mean()) < 0.01
        else:
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_operations_are_timms_on_small_images(size: int) -> None:
    images = noise(6, 3, size)
    for name in NAMES:
        amounts = _AMOUNTS[name](np.full(6, 7.0), np.array([1.0, -1.0] * 3))
        ours = _one(name, images, amounts, "bicubic")
        theirs = torch.stack([_timm(name, *pair, "bicubic") for pair in zip(images, amounts, strict=True)])
        assert int((ours.to(torch.int16) - theirs).abs().max()) <= (1 if name in MOVING else 0), name


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(NAMES), level=st.floats(0, 30), negative=st.booleans())
def test_amounts_are_timms(name: str, level: float, negative: bool) -> None:
    ours = _AMOUNTS[name](np.array([level]), np.array([-1.0 if negative else 1.0]))[0]
    if LEVELS[name] is None:
        assert ours == 0
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random, "random", lambda: 0.9 if negative else 0.1)
        (theirs,) = LEVELS[name](level, {})
    if name.startswith("Posterize"):
        theirs = max(1, theirs)  # Pillow refuses fewer
    assert ours == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("increasing", [True, False])
def test_the_set_is_timms(increasing: bool) -> None:
    assert list(Policy(increasing=increasing).operations) == timm.rand_augment_choices("", increasing)


def _sampled_by_timm(text: str, images: int) -> dict[str, list[float]]:
    """What timm passes to its operations: amounts by name."""
    transform, seen = timm.rand_augment_transform(text, {"img_mean": (0, 0, 0)}), defaultdict(list)

    def record(name: str, image: Image.Image, *arguments: float, **_: object) -> Image.Image:
        seen[name].append(float(arguments[0]) if arguments else 0.0)
        return image

    for op in transform.ops:
        op.aug_fn = partial(record, op.name)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    image = Image.new("RGB", (2, 2))
    for _ in range(images):
        transform(image)
    return seen


@pytest.mark.parametrize("text", [AUTHORS, "rand-m7-n3-p0.8-mstd101", "rand-m12-mmax20-mstd2-inc1"])
def test_frequencies_and_magnitudes_are_timms(text: str) -> None:
    augment, n = RandAugment(parse_rand_augment(text), MEAN, "bicubic"), 12_000
    ours: dict[str, list[float]] = defaultdict(list)
    rows: Counter[int] = Counter()
    for choices in augment.choose(rng.uniform(2, *counters(n), augment.num_draws)):
        for choice in choices:
            ours[choice.operation] += choice.amounts.tolist()
            rows.update(choice.rows.tolist())
    theirs = _sampled_by_timm(text, n)
    assert ours.keys() == theirs.keys()
    table = [[len(sample[name]) for name in ours] for sample in (ours, theirs)]
    assert chi2_contingency(table).pvalue > 0.01
    applied = sum(table[0]) / n / augment.policy.layers
    assert applied == pytest.approx(augment.policy.probability, abs=0.02)
    assert Counter(rows.values())[augment.policy.layers] / n == pytest.approx(applied**augment.policy.layers, abs=0.03)
    for name in ours:
        mine, other = np.array(ours[name]), np.array(theirs[name])
        if name.startswith("Posterize"):
            other = np.maximum(other, 1)
        assert ks_2samp(mine, other).pvalue > 1e-3, name
        if name in MOVING:
            assert abs((mine < 0).mean() - 0.5) < 0.08


def test_layers_follow_each_other() -> None:
    """A batch is what its rows are, one operation after the other."""
    augment = RandAugment(parse_rand_augment("rand-m9-n3-p1-mstd0.5-inc1"), MEAN, "bicubic")
    images = smooth(40)
    draws = rng.uniform(4, *counters(40), augment.num_draws)
    expected = images.clone()
    for choices in augment.choose(draws):
        for choice in choices:
            for row, amount in zip(choice.rows, choice.amounts, strict=True):
                expected[row] = _one(choice.operation, expected[row : row + 1], np.array([amount]), "bicubic")[0]
    assert torch.equal(augment(images, draws), expected)
    assert not torch.equal(expected, images)


def test_nothing_applies_with_probability_zero() -> None:
    augment = RandAugment(parse_rand_augment("rand-m9-p0"), MEAN, "bicubic")
    images = smooth(20)
    assert torch.equal(augment(images, rng.uniform(4, *counters(20), augment.num_draws)), images)


sections = st.fixed_dictionaries(
    {},
    optional={
        "m": st.integers(0, 20),
        "n": st.integers(1, 4),
        "p": st.sampled_from([0.1, 0.5, 1.0]),
        "mstd": st.sampled_from([0, 0.5, 1.25, 100, 101, 999]),
        "mmax": st.integers(0, 30),
        "inc": st.integers(0, 2),
    },
)


@settings(max_examples=60, deadline=None)
@given(values=sections, data=st.data())
def test_the_notation_is_read_as_timm_reads_it(values: dict[str, Any], data: st.DataObject) -> None:
    names = data.draw(st.permutations(list(values)))
    text = "-".join(["rand", *(f"{name}{values[name]}" for name in names)])
    ours, theirs = parse_rand_augment(text), timm.rand_augment_transform(text)
    op = theirs.ops[0]
    assert ours.layers == theirs.num_layers
    assert ours.operations == tuple(op.name for op in theirs.ops)
    assert (ours.magnitude, ours.probability, ours.deviation) == (op.magnitude, op.prob, op.magnitude_std)
    assert ours.highest == (op.magnitude_max or 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("augmix-m5", "must begin with 'rand'"),
        ("v0", "must begin with 'rand'"),
        ("rand-m9-w0", "section 'w0' is unknown"),
        ("rand-tweights", "section 'tweights' is unknown"),
        ("rand-m9-t3a", "section 't3a' is unknown"),
        ("rand-mstd", "section 'mstd' is unknown or has no number"),
        ("rand-", "section '' is unknown"),
        ("rand-m9-m8", "section 'm' is given twice"),
        ("rand-m9.5", "section 'm9.5' has no number of its kind"),
        ("rand-mstd0.5x", "section 'mstd0.5x' has no number of its kind"),
        ("rand-inc0.5", "section 'inc0.5' has no number of its kind"),
    ],
)
def test_wrong_notation_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_rand_augment(text)
    assert caught.value.key == "data.augment.rand_augment"
    assert caught.value.value == text
    assert message in str(caught.value)
    for section in ("m<int>", "mstd<float>", "mmax<int>", "inc<0 or 1>", "p<float>", "n<int>"):
        assert section in str(caught.value)

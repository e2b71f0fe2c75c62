from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simlap.config.schema import DigitsData, Validation
from simlap.data import inspect_data, load_splits
from simlap.data.selection import chosen_classes, fraction_rows, validation_rows
from simlap.data.splits import select
from simlap.errors import DataError

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=80)


@given(LABELS, st.floats(0.01, 0.99), st.integers(0, 3))
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


def test_the_default_split_is_what_it_has_always_been() -> None:
    """Golden: runs are compared across versions."""
    assert validation_rows(torch.arange(60) % 3, Validation())[1].tolist() == GOLDEN_VALIDATION
    assert fraction_rows(torch.arange(60) % 3, 0.1).tolist() == GOLDEN_FRACTION


GOLDEN_VALIDATION = [0, 5, 19, 20, 34, 51]
GOLDEN_FRACTION = [0, 5, 13, 40, 54, 59]


@given(LABELS, st.floats(0.001, 1.0), st.floats(0.001, 1.0))
def test_a_smaller_share_is_part_of_a_larger_one(labels: list[int], one: float, other: float) -> None:
    y = torch.tensor(labels)
    smaller, larger = (set(fraction_rows(y, fraction).tolist()) for fraction in sorted((one, other)))
    assert smaller <= larger


@given(LABELS, st.floats(0.001, 1.0))
def test_a_share_is_stratified_and_never_empties_a_class(labels: list[int], fraction: float) -> None:
    y = torch.tensor(labels)
    rows = fraction_rows(y, fraction)
    assert torch.equal(rows, rows.unique())
    for label in set(labels):
        count, size = int((y[rows] == label).sum()), labels.count(label)
        assert count >= 1
        assert abs(count - fraction * size) <= 0.5 + 1e-9 or count == 1


@given(LABELS, st.floats(0.001, 1.0), st.integers(0, 4))
def test_a_class_gives_the_same_images_whatever_others_there_are(
    labels: list[int], fraction: float, left_out: int
) -> None:
    y = torch.tensor(labels)
    kept = (y != left_out).nonzero()[:, 0]
    chosen = fraction_rows(y, fraction)
    assert torch.equal(kept[fraction_rows(y[kept], fraction)], chosen[y[chosen] != left_out])


def test_the_whole_is_the_whole() -> None:
    assert torch.equal(fraction_rows(torch.arange(30) % 3, 1.0), torch.arange(30))


NAMES = ("cat", "dog", "emu", "dog")


def test_classes_by_name_and_label() -> None:
    assert chosen_classes(NAMES, None) == [0, 1, 2, 3]
    assert chosen_classes(NAMES, ("emu", 3, "cat")) == [2, 3, 0]


@pytest.mark.parametrize(
    ("classes", "key", "parts"),
    [
        (("cat", "emmu"), "data.classes.1", ["'emmu'", "did you mean 'emu'", "Valid: cat, dog, emu, dog"]),
        ((0, 4), "data.classes.1", ["4", "from 0 to 3"]),
        ((-1, 1), "data.classes.0", ["-1", "from 0 to 3"]),
        (("cat", 0), "data.classes.1", ["'cat' (label 0) twice"]),
        (("cat", "dog"), "data.classes.1", ["2 classes have this name", "Valid: 1, 3"]),
    ],
)
def test_wrong_classes(classes: tuple[str | int, ...], key: str, parts: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        chosen_classes(NAMES, classes)
    assert caught.value.key == key
    for part in parts:
        assert part in str(caught.value)


# --- in a dataset


def test_chosen_classes_become_the_first_labels_in_both_parts() -> None:
    data = DigitsData(source="digits", classes=("7", 2), validation="none")
    whole, some = load_splits(data.model_copy(update={"classes": None})), load_splits(data)
    assert some.class_names == ("7", "2")
    for part in ("train", "test"):
        before, after = getattr(whole, part), getattr(some, part)
        rows = ((before.labels == 7) | (before.labels == 2)).nonzero()[:, 0]
        assert torch.equal(after.images, before.images[rows])
        assert torch.equal(after.labels, (before.labels[rows] == 2).long())
    assert inspect_data(data).class_sizes == tuple(some.train.labels.bincount().tolist())


def test_the_fingerprint_is_that_of_the_whole_dataset() -> None:
    data = DigitsData(source="digits")
    some = data.model_copy(update={"classes": (1, 2), "fraction": 0.5})
    assert inspect_data(some).fingerprint == inspect_data(data).fingerprint


def test_validation_is_drawn_from_the_chosen_share() -> None:
    data = DigitsData(source="digits", fraction=0.2, validation=Validation(fraction=0.25))
    selection, whole = select(data), select(DigitsData(source="digits", validation="none"))
    share = fraction_rows(whole.source.labels("train"), 0.2)
    assert torch.equal(torch.cat((selection.train, selection.val)).sort().values, share)
    assert len(selection.val) == pytest.approx(0.25 * len(share), abs=5)
    assert torch.equal(selection.test, whole.test), "the test set stays whole"


def test_leaving_classes_out_changes_no_image_of_the_others() -> None:
    few, all_ = (select(DigitsData(source="digits", fraction=0.3, classes=classes)) for classes in ((4, 1), None))
    labels = all_.source.labels("train")
    for mine, whole in ((few.train, all_.train), (few.val, all_.val)):
        here = labels[whole]
        assert torch.equal(mine, whole[(here == 4) | (here == 1)])


def test_one_image_of_each_class_can_be_trained_on_without_validation() -> None:
    info = inspect_data(DigitsData(source="digits", fraction=0.001, validation="none"))
    assert info.class_sizes == (1,) * 10
    with pytest.raises(DataError) as caught:
        inspect_data(DigitsData(source="digits", fraction=0.001))
    assert caught.value.key == "data.validation.fraction"


def test_the_digits_have_no_hierarchy() -> None:
    assert inspect_data(DigitsData(source="digits")).hierarchy is None

from __future__ import annotations

import pytest

from simlap.errors import ConfigError
from simlap.methods import check_loss
from tests.tiny import METHODS, tiny, tiny_method


@pytest.mark.parametrize("name", METHODS)
def test_the_shipped_choices_are_fine(name: str) -> None:
    check_loss(tiny_method(name))


@pytest.mark.parametrize("name", ["simlap", "fuse", "supcon"])
def test_the_ring_is_for_the_subspace_info_nce(name: str) -> None:
    check_loss(tiny_method(name, train__keys="ring"))


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("khosla", "method.kind: supcon, method.variant: khosla"),
        ("one_to_one", "method.kind: supcon, method.variant: one_to_one"),
        ("simclr", "method.kind: simclr"),
        ("supervised", "method.kind: supervised"),
    ],
)
def test_and_for_nothing_else(name: str, named: str) -> None:
    with pytest.raises(ConfigError, match=r"^train\.keys: .*\(got 'ring'\).* Valid: gather") as caught:
        check_loss(tiny_method(name, train__keys="ring"))
    assert f"not for {named} (got" in str(caught.value)


def test_the_ring_has_a_form_of_its_own() -> None:
    with pytest.raises(
        ConfigError, match=r"^train\.loss: with train\.keys: ring .*train\.keys: gather \(got 'plain'\)"
    ):
        check_loss(tiny(train__keys="ring", train__loss="plain"))


def test_fused_wants_a_gpu() -> None:
    with pytest.raises(
        ConfigError, match=r"^train\.loss: is for CUDA.*\(got 'fused'\).* Valid: auto, plain, compiled, chunked"
    ):
        check_loss(tiny(train__loss="fused"))
    check_loss(tiny(train__loss="fused", resources__gpus_per_worker=1))

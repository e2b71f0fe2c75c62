from __future__ import annotations

import pytest

from simlap.methods import pair_kind
from tests.tiny import METHODS, tiny, tiny_method
from tests.unit.methods.batches import build


@pytest.mark.parametrize("name", METHODS)
def test_the_kind_names_the_class(name: str) -> None:
    experiment = tiny_method(name)
    assert type(build(experiment)).__name__.lower() == experiment.method.kind


def test_pairs_of_methods_with_and_without() -> None:
    assert pair_kind(tiny(method__pairs="distinct")) == "distinct"
    assert pair_kind(tiny_method("fuse")) == "arbitrary"
    assert pair_kind(tiny_method("khosla", method__pairs="distinct")) == "distinct"
    assert pair_kind(tiny_method("simclr")) == pair_kind(tiny_method("supervised")) == "identical"

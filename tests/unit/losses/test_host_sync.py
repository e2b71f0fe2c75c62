"""No loss waits for the device: on fake CUDA tensors, which have no values, reading one is an error."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from simlap import losses
from simlap.losses.arguments import Similarity
from simlap.losses.subspace_info_nce import Form


def _arguments(name: str) -> tuple[list[Tensor], dict[str, Any]]:
    """On the default device: 6 anchors, 8 keys."""
    z, keys, gates = (torch.randn(rows, 5, requires_grad=True) for rows in (6, 8, 6))
    labels, key_labels, own, key_slots = (torch.randint(3, (rows,)) for rows in (6, 8, 6, 8))
    temperature = torch.tensor(0.1, requires_grad=True)
    match name:
        case "subspace_info_nce":
            options = {"self_index": own, "positives": "either", "temperature": temperature}
            return [z, keys, gates, labels, labels, key_labels], options
        case "count_positives":
            return [labels, labels, key_labels, own], {"positives": "either"}
        case "one_to_one":
            return [z, keys, labels, key_labels, own, key_slots], {"temperature": temperature}
        case "count_terms":
            return [labels, key_labels, own, key_slots], {}
        case "nt_xent" | "supcon":
            return [z, keys, labels, key_labels, own], {"temperature": temperature}
        case _:
            return [labels, key_labels, own], {}


@pytest.mark.parametrize("name", losses.__all__)
def test_no_value_is_read(name: str) -> None:
    with FakeTensorMode(), torch.device("cuda"):
        arguments, options = _arguments(name)
        result = getattr(losses, name)(*arguments, **options)
    assert result.device.type == "cuda"
    assert result.shape == ()


@pytest.mark.parametrize("shared_from", [0, 2**16])
@pytest.mark.parametrize("similarity", ["cosine", "masked_dot"])
@pytest.mark.parametrize("form", ["plain", "chunked"])
def test_no_value_is_read_with_shared_gates(
    form: Form, similarity: Similarity, shared_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradients of `chunked`, which it makes in the forward pass, included."""
    monkeypatch.setattr(sys.modules["simlap.losses.subspace_info_nce"], "_SHARED_FROM", shared_from)
    with FakeTensorMode(), torch.device("cuda"):
        (z, keys, gates, *labels), options = _arguments("subspace_info_nce")
        options |= {"gate_index": torch.randint(2, (6,)), "similarity": similarity, "form": form}
        loss = losses.subspace_info_nce(z, keys, gates[:2], *labels, **options)
    assert loss.device.type == "cuda"
    assert loss.requires_grad


def test_the_check_would_notice() -> None:
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.ones((), device="cuda").item()

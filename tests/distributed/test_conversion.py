"""Conversion to synchronised batch norm, in one process."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from simlap.train.distributed import SyncBatchNorm, all_gather_with_gradient, convert_sync_batchnorm


@pytest.mark.parametrize("name", ["resnet10t", "efficientnet_lite0"])  # BatchNorm2d; BatchNormAct2d
def test_network_is_the_same_with_one_process(name: str) -> None:
    """Parameters, names, and bit for bit what it computes, in training and in evaluation mode."""

    def run(convert: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=0)
        before = dict(model.named_parameters())
        if convert:
            model = convert_sync_batchnorm(model)
            assert all(before[key] is p for key, p in model.named_parameters())
            assert not any(type(layer) is nn.BatchNorm2d for layer in model.modules())
        x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        return [model.train()(x), model.eval()(x)], model.state_dict()

    (outputs, state), (converted_outputs, converted_state) = run(False), run(True)
    assert list(state) == list(converted_state)
    for a, b in zip([*outputs, *state.values()], [*converted_outputs, *converted_state.values()], strict=True):
        assert torch.equal(a, b)


def test_activation_of_timms_norm_is_kept() -> None:
    source = BatchNormAct2d(4, act_layer=nn.SiLU)
    converted = convert_sync_batchnorm(source)
    assert isinstance(converted, SyncBatchNorm)
    assert converted.act is source.act
    assert converted.drop is source.drop


def test_mode_and_settings_are_kept() -> None:
    source = nn.BatchNorm1d(4, eps=1e-3, momentum=None, affine=False).eval()
    converted = convert_sync_batchnorm(source)
    assert isinstance(converted, SyncBatchNorm)
    assert (converted.eps, converted.momentum, converted.affine, converted.training) == (1e-3, None, False, False)
    assert convert_sync_batchnorm(converted) is converted


def test_a_shared_norm_stays_shared() -> None:
    norm = nn.BatchNorm1d(4)
    model = convert_sync_batchnorm(nn.Sequential(norm, nn.ReLU(), norm))
    assert isinstance(model, nn.Sequential)
    assert isinstance(model[0], SyncBatchNorm)
    assert model[0] is model[2]


def test_unknown_batch_norm_is_refused() -> None:
    class Other(nn.BatchNorm1d):
        pass

    with pytest.raises(TypeError, match="Other"):
        convert_sync_batchnorm(nn.Sequential(Other(4)))


def test_gathering_in_one_process_is_the_identity() -> None:
    x = torch.randn(3, 2)
    assert all_gather_with_gradient(x) is x

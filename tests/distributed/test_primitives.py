"""Gathering with gradient, and batch norm over the global batch."""

from __future__ import annotations

import pytest
import torch

from tests.distributed import primitives
from tests.distributed.conftest import Runs


def shards(runs: Runs) -> list[slice]:
    return [slice(rank, None, runs.world_size) for rank in range(runs.world_size)]


def test_gathered_rows_are_in_rank_order(runs: Runs) -> None:
    rows = primitives.numbers(runs.size, 2, 3)
    expected = torch.cat([rows[shard] for shard in shards(runs)])
    labels = torch.cat([torch.arange(runs.size)[shard] for shard in shards(runs)])
    for worker in runs.workers:
        assert torch.equal(worker["gather"]["rows"], expected)
        assert torch.equal(worker["gather"]["known sizes"], expected)
        assert "do not fit worker" in worker["gather"]["wrong sizes"]
        assert torch.equal(worker["gather"]["labels"], labels)
        assert worker["gather"]["labels"].dtype == torch.int64
        assert worker["gather"]["alone"]


def test_gathered_gradient_is_summed_over_workers(runs: Runs) -> None:
    total = sum(primitives.numbers(runs.size, 2, 3, seed=1 + rank) for rank in range(runs.world_size))
    assert isinstance(total, torch.Tensor)
    begin = 0
    for worker in runs.workers:
        grad = worker["gather"]["grad"]
        torch.testing.assert_close(grad, total[begin : begin + len(grad)])
        begin += len(grad)
        assert (worker["gather"]["half grad"] == runs.world_size).all()
        assert worker["gather"]["half grad"].dtype == torch.bfloat16
    assert begin == runs.size


@pytest.mark.parametrize("name", primitives.NORMS)
def test_batch_norm_is_that_of_the_global_batch(runs: Runs, name: str) -> None:
    whole = primitives.norm_case(name, runs.size, slice(None), convert=False)
    dtype = primitives.NORMS[name][2]
    # far from zero: torch's own float32 kernel is off by 1e-3 there; a square sum in float32 would be off by 1
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-3, torch.bfloat16: 2e-2}[dtype]
    parts = [worker["norms"][name] for worker in runs.workers]
    for key, expected in whole.items():
        for shard, part in zip(shards(runs), parts, strict=True):
            assert part.keys() == whole.keys()
            if key in ("weight.grad", "bias.grad"):  # of each worker's rows: the wrapper adds them up
                got, wanted = torch.stack([p[key] for p in parts]).sum(0), expected
            else:
                per_row = key.startswith(("out", "x.grad", "evaluation"))
                got, wanted = part[key], expected[shard] if per_row else expected
            torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance, msg=f"{name}, {key}")


def test_batch_norm_of_workers_without_rows(runs: Runs) -> None:
    norm = torch.nn.BatchNorm2d(4).double()
    x = primitives.numbers(runs.size, 4, 3, 2).requires_grad_()
    out = norm(x)
    out.backward(primitives.numbers(runs.size, 4, 3, 2, seed=1))
    first, *others = [worker["rows on one worker"] for worker in runs.workers]
    for key, expected in {"out": out, "x.grad": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}.items():
        assert expected is not None
        torch.testing.assert_close(first[key], expected.detach(), rtol=1e-12, atol=1e-12)
        for other in others:
            assert float(other[key].abs().sum()) == 0.0
            assert other[key].shape[1:] == expected.shape[1:]


def test_one_value_per_channel_over_all_workers_is_refused(runs: Runs) -> None:
    assert all("more than 1 value" in worker["one value"] for worker in runs.workers)

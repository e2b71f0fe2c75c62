from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from simlap.evaluate.gate_analysis import analyse_gates
from simlap.evaluate.gate_failures import failure_text, gate_failures, gate_signatures
from simlap.evaluate.pair_gates import pair_gates
from tests.unit.evaluate.test_gate_analysis import Table

C, D = 8, 40


def _metrics(table: Tensor) -> dict[str, float]:
    c = len(table)
    labels = torch.arange(4 * c) % c
    features = torch.randn(4 * c, 5, generator=torch.Generator().manual_seed(1))
    table = (table + table.transpose(0, 1)) / 2
    names = [str(i) for i in range(c)]
    found = analyse_gates(Table(table), class_names=names, features=features, labels=labels, permutations=9)
    json.dumps(found.artefact, allow_nan=False)
    return found.metrics


def _random(c: int = C) -> Tensor:
    return torch.rand(c, c, D, generator=torch.Generator().manual_seed(0)).round()


def _kinds(table: Tensor) -> list[str]:
    return [failure.kind for failure in gate_failures(_metrics(table))]


def test_gates_that_work_are_not_flagged() -> None:
    metrics = _metrics(_random())
    assert gate_failures(metrics) == []
    assert len(gate_signatures(metrics)) == 6


def test_all_open_and_all_closed_say_nothing_else() -> None:
    assert _kinds(torch.ones(C, C, D)) == ["open"]
    assert _kinds(torch.zeros(C, C, D)) == ["closed"]
    assert _kinds(torch.full((C, C, D), 0.995)) == ["open"]


def test_identical_gates() -> None:
    mask = (torch.arange(D) % 2).float().expand(C, C, D)
    assert _kinds(mask) == ["identical"]
    assert _kinds(0.99 * mask + 0.001 * _random()) == ["identical"]
    text = failure_text(gate_failures(_metrics(mask))[0])
    assert "all pairs have the same gate (standard deviation over pairs 0.0000" in text


def test_dead_dimensions() -> None:
    table = _random()
    table[..., :14], table[..., 14:26] = 0.0, 1.0
    metrics = _metrics(table)
    assert metrics["closed_dimensions"] == pytest.approx(14 / D)
    assert metrics["open_dimensions"] == pytest.approx(12 / D)
    assert metrics["dead_dimensions"] == pytest.approx(26 / D)
    (failure,) = gate_failures(metrics)
    assert failure.kind == "dead"
    assert "65% of the dimensions" in failure.number
    assert "(35% never open, 30% open for every pair)" in failure.number
    table[..., 14:26] = 0.4  # neither open nor closed, and the same for all pairs
    assert _metrics(table)["dead_dimensions"] == pytest.approx(26 / D)


def test_pairs_that_open_one_dimension() -> None:
    table = torch.zeros(C, C, D)
    for a in range(C):
        for b in range(C):
            table[a, b, (a + b) % D] = 1
    assert "few dimensions" in _kinds(table)
    assert _metrics(table)["dimensions_per_pair"] == pytest.approx(1)


def test_gates_that_vary_along_one_direction() -> None:
    amount = torch.rand(C, C, 1, generator=torch.Generator().manual_seed(0))
    table = amount * torch.linspace(0.5, 1, D)
    metrics = _metrics(table)
    assert metrics["directions"] == pytest.approx(1)
    assert [failure.kind for failure in gate_failures(metrics)] == ["one direction"]


def test_two_classes_are_judged_by_what_one_pair_can_show() -> None:
    metrics = _metrics(_random(2))
    assert {one.kind for one in gate_signatures(metrics)} == {"closed", "open", "few dimensions"}


def test_records_of_older_versions_are_judged_by_what_they_have() -> None:
    assert [one.kind for one in gate_failures({"activation": 1.0, "self_activation": 1.0})] == ["open"]
    assert gate_failures({"activation": 0.5}) == []


def test_numbers_of_dimensions_are_those_of_all_pairs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    table = torch.rand(C, C, D, generator=torch.Generator().manual_seed(2))
    table = (table + table.transpose(0, 1)) / 2
    monkeypatch.setattr("simlap.evaluate.pair_gates._MAX_GATES", 3 * D)
    got = pair_gates(Table(table), C)
    rows = torch.stack([table[a, b] for a in range(C) for b in range(a + 1, C)]).double()
    of = got.dimensions
    torch.testing.assert_close(of.mean, rows.mean(0))
    torch.testing.assert_close(of.std, rows.std(0, correction=0))
    torch.testing.assert_close(of.low, rows.amin(0))
    torch.testing.assert_close(of.high, rows.amax(0))
    assert got.per_pair == pytest.approx(float((rows.sum(1) ** 2 / (rows**2).sum(1)).mean()))
    values = torch.linalg.eigvalsh(torch.cov(rows.T, correction=0)).clamp(min=0)
    p = values / values.sum()
    assert of.directions == pytest.approx(float(torch.exp(-torch.xlogy(p, p).sum())))

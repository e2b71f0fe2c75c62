from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simlap.evaluate.gate_analysis import analyse_gates
from simlap.report.gate_figures import GateData, heat_map, own_gates, scatter
from simlap.report.gates import gates_page, sentences, write_gates_page
from simlap.storage import Storage
from tests.unit.evaluate.test_gate_analysis import C, Table, signs
from tests.unit.report.test_html import EVIL, Page, figures_in


def artefact(c: int = 12, groups: int | None = 3, spread: float = 0.5, **names: str) -> dict[str, Any]:
    """Of gates that follow groups."""
    of = [f"group {i * (groups or 3) // c}" for i in range(c)]
    generator = torch.Generator().manual_seed(0)
    numbers = torch.arange(c) * (groups or 3) // c
    weights = torch.randn(groups or 3, 200, generator=generator)[numbers] + spread * torch.randn(
        c, 200, generator=generator
    )
    labels = torch.arange(4 * c) % c
    semantic = (numbers[:, None] != numbers[None]).double() / 2 + 0.5
    found = analyse_gates(
        signs(weights), class_names=[names.get(f"c{i}", f"class {i}") for i in range(c)],
        features=weights[labels], labels=labels, semantic=semantic.fill_diagonal_(0) if groups else None,
        groups=of if groups else None, permutations=99, notes=["a note"],
    )  # fmt: skip
    return json.loads(json.dumps(found.artefact))  # type: ignore[no-any-return]


def test_page_and_data_are_written(tmp_path: Path) -> None:
    made = artefact()
    assert write_gates_page(made, tmp_path, "A title") == ["gates.html", "gates.json"]
    assert json.loads((tmp_path / "gates.json").read_text()) == made
    assert write_gates_page(made, Storage(tmp_path), "A title", name="other") == ["other.html", "other.json"]
    text = (tmp_path / "gates.html").read_text()
    page = Page(text)
    assert all(s is None or s.startswith("data:") for _, a in page.tags for s in (a.get("src"), a.get("href")))
    ids = {a["id"] for t, a in page.tags if t == "div" and "id" in a}
    assert ids == set(figures_in(text)) == {"matrix", "features", "hierarchy", "own"}
    parts = ("A title", "a note", "group 2", "mirror the distance in the hierarchy", "Closest pairs")
    for part in (*parts, "12 classes", "66 class pairs"):
        assert part in page.text, part


def test_without_hierarchy_there_are_no_groups() -> None:
    text = gates_page(artefact(groups=None), "T")
    assert set(figures_in(text)) == {"matrix", "features", "own"}
    assert "group" not in Page(text).text


def test_everything_is_escaped() -> None:
    made = artefact(c0=EVIL)
    made["groups"] = [EVIL if group == "group 0" else group for group in made["groups"]]
    made["notes"] = [EVIL]
    text = gates_page(made, EVIL)
    page = Page(text)
    assert not [t for t, _ in page.tags if t == "img"]
    assert page.text.count(EVIL) >= 4
    data = json.dumps(figures_in(text))
    assert "<img" not in data


def test_sentences_say_what_the_numbers_say() -> None:
    found = sentences(GateData(artefact()))
    assert [(verdict, chip) for verdict, chip, _ in found] == [
        ("better", "mirrors"), ("better", "mirrors"), ("better", "tree"), ("better", "groups"), ("better", "groups"),
    ]  # fmt: skip
    assert "p = 0.010, 99 permutations" in found[0][2]
    assert "purity 1.00" in found[3][2]
    chance = artefact()
    for tests in chance["correlations"].values():
        tests["activation"] = {"rho": -0.1, "p": 0.7, "permutations": 120, "exact": True}
    chance["metrics"]["cophenetic"] = 0.3
    texts = [text for _, _, text in sentences(GateData(chance))]
    assert (
        "no more agreement with the distance of the classes' mean features than chance gives: ρ = −0.10, p = 0.700"
        in texts[0]
    )
    assert "all 120 permutations" in texts[0]
    assert "badly" in texts[2]


def test_open_gates_say_that_there_is_nothing_to_see() -> None:
    labels = torch.arange(4 * C) % C
    features = torch.randn(4 * C, 3, generator=torch.Generator().manual_seed(0))
    found = analyse_gates(Table(torch.ones(C, C, 5)), class_names=list("abcdefg"), features=features, labels=labels)
    page = Page(gates_page(found.artefact, "open")).text
    assert "no differences between the gates" in page
    assert "All gates are near 1" in page


def test_the_heat_map_is_in_the_order_of_the_tree() -> None:
    made = artefact()
    data = GateData(made)
    figure = heat_map(data)
    heat = next(trace for trace in figure.data if trace.type == "heatmap")
    square = data.square(data.distance)
    for i, a in enumerate(data.leaves):
        for j, b in enumerate(data.leaves):
            if i == j:
                assert heat.z[i][j] is None
            else:
                assert heat.z[i][j] == pytest.approx(square[a, b], rel=1e-3)
    bends = [trace for trace in figure.data if trace.type == "scatter"]
    places = sorted(x for trace in bends for x, y in zip(trace.x, trace.y, strict=True) if y == 0)
    assert places == list(range(12))  # every leaf hangs from the tree, once
    assert len(bends) == 4  # three groups and what joins them
    tops = [y for trace in bends for y in trace.y if y is not None]
    assert max(tops) == pytest.approx(made["linkage"][-1][2])


def test_scatter_leaves_out_what_is_not_known_and_thins_what_is_too_much() -> None:
    made = artefact()
    made["feature_distance"][5] = None
    data = GateData(made)
    points = sum(len(trace.x) for trace in scatter(data, "features", data.others["features"]).data)
    assert points == 65
    many = GateData(artefact(c=110, groups=None))
    values = many.others["features"]
    assert len(values) == 5995
    assert sum(len(trace.x) for trace in scatter(many, "features", values).data) == 5000
    assert not heat_map(many).layout.xaxis3.showticklabels
    assert len(own_gates(many).data[1].x) == 110


def test_average_openness_leaves_out_the_own_gate() -> None:
    data = GateData(artefact())
    shown = own_gates(data).data[0].y
    expected = [np.mean([data.activation[a, b] for b in range(12) if b != a]) for a in data.leaves]
    assert list(shown) == pytest.approx(expected)


def test_two_classes_are_one_pair() -> None:
    made = artefact(c=2, groups=None)
    ((verdict, chip, text),) = sentences(GateData(made))
    assert (verdict, chip) == ("same", "one pair")
    assert text.startswith(f"Two classes make one pair, at a gate distance of {made['distance'][0]:.3f}.")
    assert set(figures_in(gates_page(made, "T"))) == {"matrix", "own"}
    assert "<b>1</b> class pair</li>" in gates_page(made, "T")
    page = Page(gates_page(made, "T")).text
    assert "no differences" not in page
    assert "Spearman" not in page

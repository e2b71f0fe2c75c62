from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simlap.evaluate.class_map import ClassMap
from simlap.evaluate.gate_analysis import analyse_gates, tree_of
from simlap.evaluate.gate_seeds import merge_seeds
from simlap.record.view import EpochRow
from simlap.report import render
from simlap.report.gate_figures import GateData, heat_map, own_gates, scatter
from simlap.report.gate_heat import heat_figure
from simlap.report.gate_map import _label_places, class_map_of, map_figure, map_text
from simlap.report.gate_study import READING, arm_entry, failures_text, gates_section, overview_page
from simlap.report.gate_training import curves_figure
from simlap.report.gates import gates_page, sentences, write_gates_page
from simlap.storage import Storage
from tests.unit.evaluate.test_gate_analysis import C, Table, signs
from tests.unit.report import factory
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
    assert ids == set(figures_in(text)) == {"matrix", "map", "features", "hierarchy", "pairs", "own"}
    parts = ("A title", "a note", "group 2", "mirror the distance in the hierarchy", "Closest pairs")
    for part in (*parts, "12 classes", "66 class pairs"):
        assert part in page.text, part


def test_without_hierarchy_there_are_no_groups() -> None:
    text = gates_page(artefact(groups=None), "T")
    assert set(figures_in(text)) == {"matrix", "map", "features", "pairs", "own"}
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
    assert set(figures_in(gates_page(made, "T"))) == {"matrix", "pairs", "own"}
    assert "<b>1</b> class pair</li>" in gates_page(made, "T")
    page = Page(gates_page(made, "T")).text
    assert "no differences" not in page
    assert "Spearman" not in page


PNG = "iVBORw0KGgo="


def pictures(**changes: Any) -> dict[str, Any]:
    """As `gate_pictures` makes them."""
    images = [{"row": 3, "label": 1, "z": 1.5}, {"row": 8, "label": 0, "z": -0.25}]
    cams = [{"row": 3, "similarity": 0.5, "overlay": PNG}, {"row": 8, "similarity": 0.25, "overlay": None}]
    made: dict[str, Any] = {
        "images": {"3": PNG, "8": PNG},
        "dimensions": [{"dimension": 17, "mean": 0.1, "pairs": [[0, 1, 0.9]], "highest": images, "lowest": images[:1]}],
        "cams": [{"first": 0, "second": 1, "mean_similarity": 0.4, "images": cams}],
        "layer": "layer2 (Sequential), 4 × 4 places", "notes": ["Something is not shown."], "part": "val",
    }  # fmt: skip
    return {**made, **changes}


def epochs(count: int, value: float = 0.5) -> list[EpochRow]:
    return [
        EpochRow(e, 0, {"gate/activation": value * e, "gate/entropy": value / e, "x": 1}) for e in range(1, count + 1)
    ]


def test_pictures_and_training_are_on_the_page(tmp_path: Path) -> None:
    made = artefact()
    training = {"a run": epochs(4)}
    write_gates_page(made, tmp_path, "T", training=training, pictures=pictures())
    text = (tmp_path / "gates.html").read_text()
    page = Page(text)
    found = figures_in(text)
    assert {"training-0", "training-2"} <= set(found)
    assert "training-1" not in found  # open_fraction was not measured
    assert found["training-0"]["data"][0]["y"] == [0.5, 1, 1.5, 2]  # type: ignore[index]
    images = [a["src"] for t, a in page.tags if t == "img"]
    assert images == [f"data:image/png;base64,{PNG}"] * (3 + 4)
    parts = ("Dimension 17", "class 0 – class 1 (0.90)", "validation images", "class 0 → class 1", "similarity +0.50")
    for part in (*parts, "no place speaks for it", "layer2 (Sequential), 4 × 4", "Something is not shown.", "z −0.25"):
        assert part in page.text, part
    data = json.loads((tmp_path / "gates.json").read_text())
    assert data["training"]["a run"][0] == [1, {"gate/activation": 0.5, "gate/entropy": 0.5}]
    assert data["pictures"]["dimensions"][0]["highest"][0] == {"row": 3, "label": 1, "z": 1.5}
    assert PNG not in json.dumps(data)


def test_pictures_are_escaped() -> None:
    made = artefact(c0=EVIL, c1=EVIL)
    page = Page(gates_page(made, "T", pictures=pictures(notes=[EVIL], layer=EVIL), training={EVIL: epochs(2)}, of=EVIL))
    assert all((a.get("src") or "").startswith("data:image/png;base64,") for t, a in page.tags if t == "img")
    assert len([t for t, _ in page.tags if t == "img"]) == 7


def test_the_mean_of_seeds_goes_as_far_as_all_of_them() -> None:
    figure = curves_figure({"seed 0": {1: 0.2, 2: 0.4, 3: 0.9}, "seed 1": {1: 0.4, 2: 0.2}}, "gate/mean")
    *single, mean = figure.data
    assert [list(trace.x) for trace in single] == [[1, 2, 3], [1, 2]]
    assert list(mean.x) == [1, 2]
    assert list(mean.y) == pytest.approx([0.3, 0.3])


def test_rows_of_the_pair_heat_map() -> None:
    made = artefact()
    heat = made["pair_gates"]
    figure = heat_figure(GateData(made), heat)
    traces = [trace for trace in figure.data if trace.type == "heatmap"]
    rows = [list(row) for trace in traces for row in trace.z]
    assert rows == heat["gates"]
    assert [a.text for a in figure.layout.annotations] == ["Closest pairs", "Farthest pairs", "A class with itself"]
    (a, b, _), *_ = heat["pairs"]
    assert figure.layout.yaxis.ticktext[0] == f"class {a} – class {b}"
    assert list(traces[0].x) == [str(dimension) for dimension in heat["dimensions"]]


def test_the_map_is_that_of_the_distances() -> None:
    data = GateData(artefact())
    found = class_map_of(data)
    assert found is not None
    figure = map_figure(data, found)
    assert list(figure.data[0].x) == pytest.approx(found.points[:, 0], abs=1e-4)
    assert list(figure.data[0].marker.color) == [data.colour(group) for group in data.groups or []]
    assert f"hold {found.explained:.0%} of the spread" in map_text(found)
    assert f"stress of {found.stress:.2f}" in map_text(found)


def test_labels_of_the_map_avoid_each_other() -> None:
    points = np.array([[0.0, 0.0], [0.0, 0.03], [0.5, 0.0], [-0.6, 0.0]])
    places = _label_places(ClassMap(points, 1.0, 0.0, 1.0), ["below", "above", "free", "free"], 400.0)
    assert places[2:] == ["top center"] * 2
    assert places[0] != "top center"  # the other point is there
    assert len(set(places[:2])) == 2


def test_failures_are_flagged_with_their_numbers() -> None:
    made = artefact()
    page = Page(gates_page(made, "T")).text
    assert "Failure signatures" in page
    assert "Before you rely on it" in page  # for its note alone
    assert "the filter is one fixed mask" not in page
    made["metrics"]["pair_std"] = 0.004
    page = Page(gates_page(made, "T")).text
    assert "All pairs have the same gate (standard deviation over pairs 0.0040" in page
    assert "the filter is one fixed mask, whatever the pair." in page


def test_records_of_older_versions_can_be_drawn() -> None:
    made = artefact()
    kept = ("activation", "self_activation", "entropy", "open_fraction", "cophenetic")
    old = {**made, "schema_version": 1, "metrics": {k: v for k, v in made["metrics"].items() if k in kept}}
    del old["pair_gates"]
    assert set(figures_in(gates_page(old, "T"))) == {"matrix", "map", "features", "hierarchy", "own"}
    first = json.loads((Path(__file__).parent / "gates_v1.json").read_text())
    assert "Map of the classes" in Page(gates_page(first, "T")).text


def test_very_many_classes_share_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simlap.report.gate_figures.MAX_CELLS", 15)
    made = artefact(c=29, groups=None)
    data = GateData(made)
    heat = next(trace for trace in heat_map(data).data if trace.type == "heatmap")
    square = data.square(data.distance)
    assert len(heat.z) == 15
    a, b, last = data.leaves[:2], data.leaves[4:6], data.leaves[28]
    assert heat.z[0][2] == pytest.approx(np.mean([square[i, j] for i in a for j in b]), rel=1e-2)
    assert heat.z[0][0] == pytest.approx(square[a[0], a[1]], rel=1e-2)  # the diagonal is left out
    assert heat.z[14][0] == pytest.approx(np.mean([square[last, j] for j in a]), rel=1e-2)
    assert heat.z[14][14] is None
    assert "Of 29 classes, every 2 neighbours in the tree share a row" in Page(gates_page(made, "T")).text


def test_the_page_of_a_thousand_classes_stays_light() -> None:
    c = 1000
    distance = np.random.default_rng(0).random(c * (c - 1) // 2)
    square = np.zeros((c, c))
    square[np.triu_indices(c, 1)] = distance
    _, tree = tree_of(square + square.T, "average", None)
    values = distance.tolist()
    metrics = {"activation": 0.5, "self_activation": 0.6, "entropy": 0.1}
    made = {
        "class_names": [f"class {i}" for i in range(c)], "activation": values, "self_activation": [0.6] * c,
        "distance": values, "feature_distance": values, "semantic_distance": None, "groups": None, "notes": [],
        "correlations": {"features": {"activation": {"rho": 0.1, "p": 0.5, "permutations": 9, "exact": False}}},
        "metrics": metrics, **tree,
    }  # fmt: skip
    figures = figures_in(gates_page(made, "T", pictures=pictures()))
    assert sum(len(json.dumps(figure)) for figure in figures.values()) < 2_500_000


def _study_entries() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    merged = merge_seeds({0: artefact(), 4: artefact(spread=0.6)}, permutations=9)
    return [(arm_entry("filter=on", {0: "cell", 4: "other"}, "filter=on.html", merged), merged)]


def test_a_page_of_several_seeds() -> None:
    (_, merged), *_ = _study_entries()
    training = {f"seed {seed}": epochs(3) for seed in (0, 4)}
    text = gates_page({**merged, "pair_gates": artefact()["pair_gates"]}, "T", training=training, of="Seed 0")
    page = Page(text).text
    assert "Seeds order the class pairs alike" in page
    assert "Seed 0: dimensions of different seeds have nothing to do with each other." in page
    assert len(figures_in(text)["training-0"]["data"]) == 3  # type: ignore[arg-type]
    alone = merge_seeds({0: artefact()}, permutations=9)
    assert "Whether seeds agree cannot be said: there is one seed only." in Page(gates_page(alone, "T")).text


def test_overview_and_section_of_a_study() -> None:
    entries = json.loads(json.dumps(_study_entries()))
    text = overview_page(EVIL, entries, ["filter=off: it has no gates that learn.", EVIL])
    page = Page(text)
    assert not [t for t, _ in page.tags if t == "img"]
    assert [a["href"] for t, a in page.tags if t == "a"] == ["filter=on.html"]
    assert set(figures_in(text)) == {"map-0"}
    entry = entries[0][0]
    assert f"{entry['agreement']['mean']:+.2f}" in page.text
    assert f"{entry['metrics']['spearman_hierarchy']:+.2f}" in page.text
    assert "it has no gates that learn" in page.text
    view = factory.study()
    arm = view.arms[0]
    cells = {str(cell.seed): cell.cell_id for cell in arm.cells}
    mine = {**entry, "arm": arm.name, "cells": cells, "by_seed": dict.fromkeys(cells, entry["by_seed"]["0"])}
    found = replace(view, gates={"study": "filter", "arms": [mine]})
    made = Page(gates_section(found))
    assert [a["href"] for t, a in made.tags if t == "a"] == ["../gates/filter=on.html", "../gates/index.html"]
    assert "looks again" not in made.text
    assert "What the gates learnt" in render(found, "html")
    assert gates_section(view) == ""
    fewer = replace(arm, cells=[*arm.cells[1:], replace(arm.cells[0], cell_id="new")])
    old = Page(gates_section(replace(found, arms=[fewer, *view.arms[1:]])))
    assert f"Not of the runs that are finished now: {arm.name}. simlap gates filter looks again." in old.text
    del entry["metrics"]["spearman_hierarchy"]
    alone = replace(view, gates={"arms": [entry]})
    assert "hierarchy" not in Page(gates_section(alone)).text.replace(READING, "")


def test_failures_of_a_study_say_in_how_many_seeds() -> None:
    good, bad = {"activation": 0.5}, {"activation": 1.0}
    assert failures_text({"0": good, "1": good}) == ""
    assert failures_text({"0": good, "1": bad}) == "all gates are near 1 (1 of 2 seeds)"

"""`simlap gates` on a study: a page per arm with learnt gates, nothing computed twice."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from simlap import cli
from simlap.errors import ConfigError
from simlap.record.journal import cell_storage, read_study
from simlap.report import render
from simlap.run import gates as run_gates
from simlap.storage import Storage
from simlap.study.gate_pages import _page_names, write_gate_pages
from simlap.study.plan import Plan
from simlap.train import manifest
from tests.tiny import TREE, tiny_method
from tests.unit.study.test_verify import make

STUDY = """
name: small
base: base.yaml
factors:
  gate:
    path: method.gate
    levels:
      sigmoid: {kind: sigmoid, embedding_dim: 8, hidden_dim: 16}
      open: {kind: open}
      product: {kind: product, embedding_dim: 8, hidden_dim: 16}
baseline: {gate: sigmoid}
seeds: 2
"""
BASE = {
    **TREE, "data": {**TREE["data"], "fraction": 0.15}, "train": {"epochs": 1, "batch_size": 64, "ema_decay": 0.9},
    "evaluate": [{"kind": "probe"}, {"kind": "gates", "permutations": 9}],
}  # fmt: skip


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return make(tmp_path_factory.mktemp("gates"), BASE, STUDY)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["simlap", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    return run


def test_pages_of_a_study(plan: Plan, call: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    storage = plan.storage
    folder = storage.child("studies", "small")
    assert call("gates", "small", "--storage", storage.uri) == 0
    assert "looking at the gates" not in capsys.readouterr().out, "the runs' own evaluations are used"
    pages = ["gate=product.html", "gate=product.json", "gate=sigmoid.html", "gate=sigmoid.json"]
    assert folder.list("gates") == [*pages, "index.html", "summary.json"]
    summary = folder.read_json("gates/summary.json")
    assert [entry["arm"] for entry in summary["arms"]] == ["gate=sigmoid", "gate=product"]
    assert summary["left_out"] == ["gate=open: it has no gates that learn."]
    entry, written = summary["arms"][0], folder.read_json("gates/gate=sigmoid.json")
    by_seed = {}
    for cell in plan.cells:
        if cell.cell_id in entry["cells"].values():
            run = cell_storage(storage, cell.cell_id)
            (path,) = [name for name in run.list("evaluations") if name.endswith(".json") and len(name) == 21]
            by_seed[str(cell.experiment.seed)] = run.read_json(f"evaluations/{path}")
    assert entry["by_seed"] == {seed: one["metrics"] for seed, one in by_seed.items()}
    mean = [(a + b) / 2 for a, b in zip(*(one["distance"] for one in by_seed.values()), strict=True)]
    assert written["distance"] == pytest.approx(mean, abs=1e-6)
    assert written["pair_gates"] == by_seed["0"]["pair_gates"]
    assert set(written["training"]) == {"seed 0", "seed 1"}
    assert written["pictures"]["cams"]
    report = render(read_study(storage, "small"), "html")
    assert "What the gates learnt" in report
    assert '"../gates/gate=sigmoid.html"' in report
    assert "What the gates learnt" in folder.read("report/report.html").decode()


def test_what_is_missing_is_computed_once_and_resumed(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = plan.storage
    first = cell_storage(storage, plan.cells[0].cell_id)
    own: dict[str, object] = {}
    for cell in plan.cells:
        run = cell_storage(storage, cell.cell_id)
        for name in run.list("evaluations"):
            if len(name) == 21:  # an id and .json
                own[f"{cell.cell_id} {name}"] = run.read_json(f"evaluations/{name}")
            run.delete(f"evaluations/{name}")
    view = read_study(storage, "small")
    told: list[str] = []
    analysis = run_gates.GateStudio.analysis

    def interrupted(self: run_gates.GateStudio) -> object:
        if told[1:]:
            raise KeyboardInterrupt
        return analysis(self)

    with monkeypatch.context() as patch:
        patch.setattr(run_gates.GateStudio, "analysis", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_gate_pages(storage, view, say=told.append)
    assert told == [f"gate=sigmoid, seed {seed}: looking at the gates" for seed in (0, 1)]
    assert len(first.list("evaluations/gates")) == 1
    told.clear()
    write_gate_pages(storage, view, say=told.append)
    again = [text.partition(":")[0] for text in told]
    assert again == ["gate=sigmoid, seed 1", "gate=product, seed 0", "gate=product, seed 1"]
    for cell in plan.cells[:2]:
        run = cell_storage(storage, cell.cell_id)
        for name in run.list("evaluations/gates"):
            if len(name) == 21:
                assert run.read_json(f"evaluations/gates/{name}") == own[f"{cell.cell_id} {name}"], (
                    "with the averaged weights"
                )
    told.clear()
    monkeypatch.setattr(run_gates, "own_evaluator", None)  # nothing is to be evaluated any more
    write_gate_pages(storage, view, say=told.append)
    assert told == []


def test_one_arm_and_named_pairs_leave_the_others_as_they_are(plan: Plan, tmp_path: Path) -> None:
    view, out = read_study(plan.storage, "small"), Storage(tmp_path)
    write_gate_pages(plan.storage, view, out=out)
    before = out.read("gate=product.html"), out.read_json("summary.json")
    write_gate_pages(plan.storage, view, out=out, arms=["gate=sigmoid"], pairs=["3:8"])
    assert out.read("gate=product.html") == before[0]
    assert out.read_json("summary.json")["arms"] == before[1]["arms"]
    shown = out.read_json("gate=sigmoid.json")
    assert shown["pair_gates"]["pairs"] == [[3, 8, "named"], [3, 3, "same class"], [8, 8, "same class"]]
    assert {(cam["first"], cam["second"]) for cam in shown["pictures"]["cams"]} == {(3, 8), (8, 3)}


@pytest.mark.parametrize("method", ["supcon", "simclr", "supervised"])
def test_methods_without_gates_are_refused(method: str) -> None:
    with pytest.raises(ConfigError, match=f"method.kind: there are no gates \\(got '{method}'\\)"):
        run_gates.check_gates(tiny_method(method))
    run_gates.check_gates(tiny_method("fuse"))


def test_file_names() -> None:
    found = _page_names(["a=1, b=2", "a=1/ b=2", "index", "A=1, b=2", "../x", "…"])
    assert found["a=1, b=2"] == "a=1_b=2"
    assert len({name.lower() for name in found.values()}) == 6
    assert not {"index", "summary"} & set(found.values())
    assert not any("/" in name or name.startswith(".") for name in found.values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["small", "--arm", "gate=sigmid"], ["--arm", "no such arm", "did you mean 'gate=sigmoid'"]),
        (["small", "--arm", "gate=open"], ["learnt gates", "gate=open: it has no gates that learn."]),
        (["small", "--pair", "3:x", "--out", "OUT"], ["--pair", "no such class", "'x'", "8"]),
        (["small", "--pair", "3", "--out", "OUT"], ["--pair", "CLASS:CLASS"]),
        (["smal"], ["'smal'", "did you mean 'small'"]),
        (["CELL", "--arm", "gate=sigmoid"], ["--arm", "single run"]),
        (["OPEN"], ["method.gate.kind", "'open'", "nothing was learnt"]),
    ],
)
def test_wrong_input(
    plan: Plan, call: Callable[..., int], tmp_path: Path, arguments: list[str], words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    opened = next(cell.cell_id for cell in plan.cells if cell.experiment.method.gate.kind == "open")  # type: ignore[union-attr]
    places = {"CELL": plan.cells[0].cell_id, "OPEN": opened, "OUT": str(tmp_path / "out")}
    assert call("gates", *(places.get(a, a) for a in arguments), "--storage", plan.storage.uri) == cli.WRONG_INPUT
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    for word in words:
        assert word in said


def test_a_single_run_and_its_checkpoint(
    plan: Plan, call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = cell_storage(plan.storage, plan.cells[0].cell_id)
    assert call("gates", plan.cells[0].cell_id, "--storage", plan.storage.uri, "--pair", "0:0") == 0
    shown = run.read_json("evaluations/gates.json")
    assert shown["pair_gates"]["pairs"] == [[0, 0, "named"]]
    assert list(shown["training"]) == ["small/gate=sigmoid"]
    (checkpoint,) = manifest.names(run.child("checkpoints"))
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in run.list(f"checkpoints/{checkpoint}"):
        (copy / name).write_bytes(run.read(f"checkpoints/{checkpoint}/{name}"))
    assert call("gates", copy) == cli.WRONG_INPUT
    assert "say with --out" in capsys.readouterr().err
    assert call("gates", copy, "--out", tmp_path / "out") == 0
    alone = json.loads((tmp_path / "out/gates.json").read_text())
    assert alone["metrics"] == shown["metrics"]
    assert "training" not in alone
    text = (tmp_path / "out/gates.html").read_text()
    assert "Where in an image the evidence lies" in text

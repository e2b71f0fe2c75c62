"""`simlap check`: verdicts, exit codes, JUnit XML, and what it says of claims that came late."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from simlap import cli
from simlap.config import yaml
from simlap.storage import Storage
from simlap.study.plan import make_plan
from simlap.study.spec import load_study
from tests.tiny import TREE
from tests.unit.study.pretend import pretend

STUDY = """
name: small
base: base.yaml
factors: {lr: {path: optim.lr, levels: [0.01, 0.02, 0.03]}}
baseline: {lr: 0.01}
seeds: 4
claims:
  - lr=0.02 > baseline by 0.05
  - lr=0.03 < baseline, p < 0.05
"""
EFFECTS = {"lr=0.01": 0.5, "lr=0.02": 0.6, "lr=0.03": 0.4}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(yaml.dump({**TREE, "evaluate": [{"kind": "probe"}]}))
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path


def run(folder: Path, effects: dict[str, float] = EFFECTS, left: int = 0) -> None:
    """Every cell comes to its end, but the last `left` ones."""
    made = make_plan(load_study(folder / "study.yaml"), Storage("./runs"))
    made.save()
    cells = made.pending[: len(made.pending) - left]
    for cell in cells:
        pretend(cell, value=effects[cell.line] + 0.01 * cell.seed + 0.001 * (int(cell.cell_id[:4], 16) % 7))


def check(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["simlap", "check", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize("study", ["study.yaml", "small"])
def test_all_hold(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], study: str
) -> None:
    run(folder)
    assert check(monkeypatch, study, "--junit", "claims.xml") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert told.startswith("holds lr=0.02 > baseline by 0.05 lr=0.02 is above lr=0.01 by 10.0 ± ")
    assert told.endswith("2 claims: 2 hold")
    suite = ElementTree.parse(folder / "claims.xml").getroot()[0]
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == ("small", "2", "0")


def test_one_fails(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, {**EFFECTS, "lr=0.03": 0.7})
    assert check(monkeypatch, "small") == 1
    assert "2 claims: 1 holds, 1 fails" in capsys.readouterr().out


def test_a_study_that_is_not_finished(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(monkeypatch, "study.yaml") == 1
    assert capsys.readouterr().out.count("the study has not been run yet") == 2
    run(folder, left=1)
    assert check(monkeypatch, "study.yaml") == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "undecided lr=0.03 < baseline, p < 0.05 lr=0.03 is not finished: 1 of 4 seeds are to come" in told
    assert "2 claims: 1 holds, 1 undecided" in told


def test_claims_that_come_late_are_said_to(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(folder)
    late = STUDY.replace("lr=0.03 < baseline, p < 0.05", "lr=0.03 < lr=0.02")
    (folder / "study.yaml").write_text(late)
    assert check(monkeypatch, "study.yaml") == 0
    assert "1 of the file's claims were not there when the study was last applied" in capsys.readouterr().out
    for _ in range(2):  # and it stays late
        made = make_plan(load_study(folder / "study.yaml"), Storage("./runs"))
        made.save()
        assert check(monkeypatch, "study.yaml") == 0
        assert "claimed when there were results already: lr=0.03 < lr=0.02" in capsys.readouterr().out
    saved = Storage("./runs").read_json("studies/small/plan.json")
    assert saved["declared_late"] == ["claim lr=0.03 < lr=0.02", "no longer: claim lr=0.03 < baseline, p < 0.05"]
    (folder / "study.yaml").write_text(STUDY + "compare: last\n")
    make_plan(load_study(folder / "study.yaml"), Storage("./runs")).save()
    late_now = Storage("./runs").read_json("studies/small/plan.json")["declared_late"]
    assert "compare last" in late_now
    assert "no longer: claim lr=0.03 < baseline, p < 0.05" not in late_now


def test_seeds_and_metrics_that_change_when_there_are_results_are_said_to(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seeds that are added until a claim holds make it hold too often."""
    run(folder)
    for old, new, told in (
        ("seeds: 4", "seeds: 3", "seeds: 3"),
        ("lr=0.03 < base", "lr=0.02 < base", "no longer: claim"),
    ):
        (folder / "study.yaml").write_text(text := (folder / "study.yaml").read_text().replace(old, new))
        assert text != STUDY
        make_plan(load_study(folder / "study.yaml"), Storage("./runs")).save()
        check(monkeypatch, "small")
        assert "changed when there were results already: " in (said := capsys.readouterr().out)
        assert told in said
    saved = Storage("./runs").read_json("studies/small/plan.json")
    Storage("./runs").write_json("studies/small/plan.json", {**saved, "report_metric": "test/probe_loss"})
    make_plan(load_study(folder / "study.yaml"), Storage("./runs")).save()
    late = Storage("./runs").read_json("studies/small/plan.json")["declared_late"]
    assert "metric val/probe_top1, test/probe_top1" in late
    assert "seeds: 3" in late
    (folder / "study.yaml").write_text(STUDY.partition("claims:")[0].replace("seeds: 4", "seeds: 5"))
    make_plan(load_study(folder / "study.yaml"), Storage("./runs")).save()
    late = Storage("./runs").read_json("studies/small/plan.json")["declared_late"]
    assert not any(text.startswith(("seeds", "metric")) for text in late)  # nothing is claimed of them


def test_a_file_that_says_otherwise_than_what_was_applied(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(folder)
    check(monkeypatch, "study.yaml")
    assert "last applied" not in capsys.readouterr().out
    (folder / "study.yaml").write_text(STUDY.replace("seeds: 4", "seeds: 6") + "compare: last\n")
    check(monkeypatch, "study.yaml")
    assert "the file has another compare and seeds than when the study was last applied" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ("[lr=0.2 > baseline]", "study.yaml: claims.0: `lr=0.2 > baseline`: no such level of lr (got '0.2')"),
        ("[]", "study.yaml: claims: the study claims nothing"),
    ],
)
def test_wrong_claims(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], claims: str, message: str
) -> None:
    (folder / "study.yaml").write_text(STUDY.partition("claims:")[0] + f"claims: {claims}\n")
    assert check(monkeypatch, "study.yaml") == 2
    assert message in capsys.readouterr().err
    assert not (folder / "runs").exists()


def test_where_the_xml_cannot_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(monkeypatch, "study.yaml", "--junit", "nowhere/claims.xml") == 2
    assert "nowhere/claims.xml: --junit: cannot be written" in capsys.readouterr().err

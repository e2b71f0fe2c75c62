"""`simlap plan`: what would be run, the shared stages first; and where `simlap report` cannot write."""

from __future__ import annotations

import sys
from pathlib import Path

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
seeds: 2
"""


def test_a_plan_with_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "first.yaml").write_text(yaml.dump({**TREE, "train": {"epochs": 2, "batch_size": 128}}))
    (tmp_path / "base.yaml").write_text(yaml.dump({**TREE, "pretrain": "first.yaml", "method": {"kind": "supervised"}}))
    (tmp_path / "study.yaml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["simlap", "plan", "study.yaml"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == cli.OK
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[:5] == [
        "arm cells epochs device-h",
        "pretrain (shared by 6 cells) ++ 4 ?",
        "lr=0.01 (baseline) ++ 6 ?",
        "lr=0.02 ++ 6 ?",
        "lr=0.03 ++ 6 ?",
    ]
    assert lines[5] == "2 of 2 stages and 6 of 6 cells to run: unknown until something has run"
    assert not (tmp_path / "runs").exists()


def test_a_plan_with_a_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from simlap.study import probe

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(probe, "_run", lambda text, seconds: ([{"epoch_s": 600.0}], ""))
    (tmp_path / "base.yaml").write_text(yaml.dump(TREE))
    (tmp_path / "study.yaml").write_text(f"{STUDY}detect: 0.01\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["simlap", "plan", "study.yaml", "--probe"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == cli.OK
    told = " ".join(capsys.readouterr().out.split())
    assert "6 of 6 cells to run: about 3 device-hours, from a probe on this machine" in told
    assert "power for a difference of 0.01 in test/probe_top1: unknown until two seeds of the baseline are done" in told


def test_a_study_that_is_taken_over_has_an_exit_code_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from simlap.study import apply
    from simlap.study.lease import LostLeaseError

    def taken_over(*arguments: object, **options: object) -> None:
        raise LostLeaseError("study small was taken over by process 7 on elsewhere")

    monkeypatch.setattr(apply, "apply", taken_over)
    (tmp_path / "base.yaml").write_text(yaml.dump(TREE))
    (tmp_path / "study.yaml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["simlap", "ablate", "study.yaml"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 4
    assert capsys.readouterr().err == "taken over: study small was taken over by process 7 on elsewhere\n"


def test_a_plan_of_a_fraction_tells_what_is_confounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "base.yaml").write_text(yaml.dump(TREE))
    places = {"a": "optim.lr", "b": "optim.weight_decay", "c": "method.temperature"}
    study = {
        "name": "part",
        "base": "base.yaml",
        "factors": {name: {"path": path, "levels": [0.01, 0.02]} for name, path in places.items()},
        "design": "fractional",
        "resolution": 3,
        "baseline": dict.fromkeys(places, 0.01),
    }
    (tmp_path / "study.yaml").write_text(yaml.dump(study))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["simlap", "plan", "study.yaml"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == cli.OK
    lines = capsys.readouterr().out.splitlines()
    assert "fraction of 4 arms, resolution 3: c = -a*b" in lines
    assert "  a is not told from -b*c" in lines


def test_a_plan_of_a_race_promises_the_first_look_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "base.yaml").write_text(yaml.dump(TREE))
    (tmp_path / "study.yaml").write_text(STUDY.replace("seeds: 2", "seeds: 6\nscheduler: {kind: race}"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["simlap", "plan", "study.yaml"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == cli.OK
    printed = capsys.readouterr().out
    assert "++++??" in printed
    assert "12 of 18 cells to run now (36 epochs), up to 6 more if the race needs them" in printed
    assert "? if the race needs it" in printed


def test_a_plan_tells_what_other_code_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "base.yaml").write_text(yaml.dump(TREE))
    (tmp_path / "study.yaml").write_text(STUDY)
    made = make_plan(load_study(tmp_path / "study.yaml"), Storage(tmp_path / "runs"))
    pretend(made.cells[0], "interrupted", 1, code="old")
    pretend(made.cells[1], code="old")
    pretend(made.cells[2], "stopped", 1, code="old")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["simlap", "plan", "study.yaml"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == cli.OK
    told = " ".join(capsys.readouterr().out.split())
    assert "3 of 6 cells to run" in told
    assert "1 cells were computed by other code and are kept; `--rerun stale` runs them anew" in told
    assert "unfinished runs that other code began: 2, left as they are; `--rerun stale` runs them anew" in told


@pytest.mark.parametrize(
    "arguments", [["-o", "small.html"], ["--format", "md"], ["--format", "latex"], ["--format", "latex", "-o", "small.tex"]]
)
def test_figures_stand_beside_markdown_or_in_the_studys_folder(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["simlap", "report", "small", "--figures", "png", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == cli.WRONG_INPUT
    assert "error: --figures: needs --format md and --output" in capsys.readouterr().err


def test_a_report_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "base.yaml").write_text(yaml.dump(TREE))
    (tmp_path / "study.yaml").write_text(STUDY)
    make_plan(load_study(tmp_path / "study.yaml"), Storage(tmp_path / "runs")).save()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["simlap", "report", "small", "--format", "md", "-o", "/proc/foo"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == cli.WRONG_INPUT
    assert "error: /proc/foo: --output: cannot be written" in capsys.readouterr().err

"""`python -m simlap.train`: all stages, resumed, without Ray and MLflow; wrong input; torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from simlap.config import yaml
from simlap.storage import Storage
from simlap.train import __main__ as program
from simlap.train import loop
from simlap.train.checkpoint import CheckpointStore
from tests.tiny import TREE

ROOT = Path(__file__).parents[3]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A pretraining with a moving average, and a fine-tuning of it."""
    quick = {**TREE["data"], "fraction": 0.2}
    train = {"epochs": 2, "batch_size": 50}
    first = {**TREE, "name": "pre train", "data": quick, "train": {**train, "ema_decay": 0.8}}
    second = {
        "name": "fine",
        "pretrain": "first.yaml",
        "data": quick,
        "method": {"kind": "supervised"},
        "optim": {"name": "sgd", "lr": 0.05, "warmup_epochs": 1, "layer_decay": 0.65},
        "train": train,
        "evaluate": [{"kind": "probe"}],
    }
    (tmp_path / "first.yaml").write_text(yaml.dump({**first, "evaluate": [{"kind": "probe"}, {"kind": "gates"}]}))
    path = tmp_path / "second.yaml"
    path.write_text(yaml.dump(second))
    return path


def result(out: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / stage / "result.json").read_text())
    return found


def test_all_stages(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert program.main([str(file), "--out", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed if "epoch" in line] == ["  epoch 1", "  epoch 2"] * 2
    assert sorted(os.listdir(out)) == ["1-pre-train", "2-fine"]
    first, second = result(out, "1-pre-train"), result(out, "2-fine")
    assert first["epochs"] == second["epochs"] == 2
    (metrics,) = second["evaluations"].values()
    assert {"test/probe_top1", "val/probe_top1"} <= metrics.keys()
    artefacts = os.listdir(out / "1-pre-train" / "evaluations")
    assert len(artefacts) == 1
    assert artefacts[0].removesuffix(".json") in first["evaluations"]
    ends = [line for line in printed if not line.startswith("  epoch") and line.startswith("  ")]
    assert "gates/activation" in ends[0]
    assert all("test/probe_top1" in end for end in ends)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    assert program.main([str(file), "--out", str(out)]) == 0
    again = capsys.readouterr().out
    assert "goes on after 2 epochs" in again
    assert again.count("finished before") == 2
    assert (result(out, "1-pre-train"), result(out, "2-fine")) == (first, second)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")} == before


@pytest.mark.parametrize(("protocols", "words"), [("[{kind: gates}]", "gates/activation"), ("[]", "finished")])
def test_a_fresh_run_does_not_say_that_it_was_finished_before(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], protocols: str, words: str
) -> None:
    first = str(file.parent / "first.yaml")
    assert program.main([first, f"evaluate={protocols}", "train.epochs=1", "--out", str(tmp_path / "out")]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert words in last
    assert "before" not in last


def test_the_second_stage_starts_from_the_moving_average(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[Any] = []
    fit = loop.fit

    def spy(*args: Any, **kwargs: Any) -> Any:
        starts.append(kwargs["start"])
        return fit(*args, **kwargs)

    monkeypatch.setattr(program, "fit", spy)
    assert program.main([str(file), "--out", str(tmp_path / "out")]) == 0
    assert starts[0] is None
    newest = CheckpointStore(Storage(tmp_path / "out" / "1-pre-train" / "checkpoints")).newest()
    assert newest is not None
    assert torch.equal(starts[1]["0.weight"], newest.model["ema.backbone.0.weight"])


def test_another_run_is_not_continued(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert program.main([str(file), "--out", out]) == 0
    assert program.main([str(file), "optim.lr=0.06", "--out", out]) == 2
    assert "2-fine holds another run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["optim.name=adamm"], ["second.yaml", "optim.name", "did you mean 'adam'"]),
        (["pretrain.optim.name=adamm"], ["pretrain.optim.name"]),
        (["optim.lrr=1"], ["lrr", "did you mean 'lr'"]),
        (["resources.gpus_per_worker=1"], ["resources.gpus_per_worker", "no CUDA device"]),
    ],
)
def test_wrong_input(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], words: list[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert program.main([str(file), *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    for word in words:
        assert word in error
    assert not (tmp_path / "out").exists()


def test_asked_to_stop_it_saves_and_goes_on(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch = program._Files.epoch

    def interrupted(files: Any, *args: Any) -> None:
        epoch(files, *args)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(program._Files, "epoch", interrupted)
        assert program.main([str(file), "--out", str(tmp_path / "parts")]) == 75
    assert "the same command goes on" in capsys.readouterr().err
    assert program.main([str(file), "--out", str(tmp_path / "parts")]) == 0
    assert program.main([str(file), "--out", str(tmp_path / "whole")]) == 0
    for stage in ("1-pre-train", "2-fine"):
        assert result(tmp_path / "parts", stage) == result(tmp_path / "whole", stage)


@pytest.mark.slow
def test_torchrun(file: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "simlap.train",
    ]
    command += [str(file), "train.micro_batch_size=10", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 1:") == 2, "once per stage, on one worker"
    assert result(tmp_path / "out", "2-fine")["epochs"] == 2
    loaded = "import sys, simlap.train.__main__; print([m for m in ('ray', 'mlflow') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", loaded], env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"

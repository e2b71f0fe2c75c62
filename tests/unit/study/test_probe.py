"""Estimates from a few steps, and what is said of them before a study starts."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from simlap.config import yaml
from simlap.errors import UserError
from simlap.storage import Storage
from simlap.study import probe
from simlap.study.announce import announce
from simlap.study.estimate import device_hours, to_probe
from simlap.study.plan import Plan, make_plan
from simlap.study.spec import load_study
from tests.tiny import METHODS, TREE, tiny, tiny_method
from tests.unit.study.pretend import EPOCH_S, pretend

STUDY = """
name: small
base: base.yaml
factors: {filter: {path: method.gate.kind, levels: [gumbel, open]}, lr: {path: optim.lr, levels: [0.01, 0.02]}}
baseline: {filter: gumbel, lr: 0.01}
seeds: 2
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def plan(tmp_path: Path, text: str = STUDY) -> Plan:
    (tmp_path / "base.yaml").write_text(yaml.dump(TREE))
    (tmp_path / "study.yaml").write_text(text)
    return make_plan(load_study(tmp_path / "study.yaml"), Storage(tmp_path / "runs"))


def test_shapes_are_timed_once_in_a_process_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(tmp_path)
    assert made.device_hours() is None
    asked = to_probe(made.cells)
    assert len(asked) == 2, "the learning rate changes no shape"
    assert probe.probe(asked) == probe.Probed(2, 0)
    monkeypatch.setattr(probe, "_run", None)  # there is nothing to be run any more
    assert probe.probe(to_probe(plan(tmp_path).cells)) == probe.Probed(0, 0)
    hours = device_hours(plan(tmp_path).cells)
    seconds = [probe.known(*one) for one in asked]
    assert None not in seconds
    assert hours.total == pytest.approx(sum(4 * 3 * (s or 0.0) for s in seconds) / 3600)
    assert hours.probed
    assert not hours.guessed


def test_what_ran_counts_more_than_a_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [{"epoch_s": 100.0}, {"error": "OSError: gone"}]
    monkeypatch.setattr(probe, "_run", lambda text, seconds: (answers, ""))
    done = probe.probe(to_probe(plan(tmp_path).cells))
    assert done == probe.Probed(1, 0, ("tiny: OSError: gone",))
    pretend(plan(tmp_path).cells[0])  # of the shape that was probed
    hours = device_hours(plan(tmp_path).cells)
    assert hours.by_line["filter=gumbel lr=0.02"] == pytest.approx(2 * 3 * EPOCH_S / 3600)
    assert (hours.probed, hours.guessed) == (False, True)


def test_more_shapes_than_are_probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [((str(i),), tiny()) for i in range(probe.MAX_SHAPES + 2)]
    monkeypatch.setattr(probe, "_run", lambda text, seconds: ([{"epoch_s": 1.0}] * 3, "was killed"))
    done = probe.probe(asked)
    assert (done.done, done.left) == (3, 2)
    assert done.failed == ("tiny: was killed",) * (probe.MAX_SHAPES - 3)


@pytest.mark.parametrize("method", [*METHODS])
def test_every_method_can_be_probed(method: str) -> None:
    assert probe.epoch_seconds(tiny_method(method, train__batch_size=128)) > 0


def test_several_workers_share_the_batch() -> None:
    small = probe._of_one_worker(tiny(resources__workers=3, train__compile=True))
    assert (small.train.batch_size, small.resources.workers, small.train.compile) == (43, 1, False)


def test_no_gpu_here() -> None:
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA device"):
            probe.epoch_seconds(tiny(resources__gpus_per_worker=1.0))


def test_the_budget_is_spoken_of_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_run", lambda text, seconds: ([{"epoch_s": 3600.0}] * 2, ""))
    for limit, fits in ((40, True), (20, False)):
        made = plan(tmp_path, f"{STUDY}budget: {{device_hours: {limit}}}\n")
        probe.probe(to_probe(made.cells))
        out = io.StringIO()
        announce(made, Console(file=out, width=80))
        said = " ".join(out.getvalue().split())
        assert (said == "") is fits
        if not fits:
            assert said.startswith(
                "the study needs about 24 device-hours, the budget is 20: it will stop when that is reached"
            )

"""The table of a study: what it says, and that it fits."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from simlap.config import yaml
from simlap.errors import ConfigError
from simlap.record.journal import Journal, cell_storage
from simlap.storage import Storage
from simlap.study.budget import Use
from simlap.study.events import EventLog
from simlap.study.follow import Follower, watch
from simlap.study.live import FAILURES, Failure, LiveArm, LiveCell, LiveStudy
from simlap.study.plan import make_plan
from simlap.study.progress import Progress
from simlap.study.spec import load_study
from tests.tiny import TREE, tiny

STUDY = """
name: small
base: base.yaml
factors: {filter: {path: method.gate.kind, levels: [gumbel, open]}}
baseline: {filter: gumbel}
seeds: 2
"""


def cell(seed: int, values: dict[int, float], state: str = "running", seconds: float = 0.0) -> LiveCell:
    epoch = max(values, default=0)
    return LiveCell(f"c{seed}", seed, state, epoch, 10, 1, dict(values), seconds, epoch)


def text(study: LiveStudy, width: int, height: int | None = None) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    with console.capture() as found:
        console.print(study.render(width, height))
    return found.get()


def study(*arms: LiveArm, failures: int = 0) -> LiveStudy:
    failed = [
        Failure(f"arm · seed {n}", f"id{n}", "other", f"OSError: {n}\nmore", again=False) for n in range(failures)
    ]
    return LiveStudy("s", "val/probe_top1", list(arms), failed, budget=lambda: [Use(3.0, 4.0, "device-hours")])


def test_what_is_compared_is_at_the_same_epoch_of_the_same_seeds() -> None:
    base = LiveArm("base", [cell(0, {1: 0.1, 2: 0.5}), cell(1, {1: 0.3, 2: 0.7})], baseline=True)
    other = LiveArm("other", [cell(0, {1: 0.2, 2: 0.6}), cell(1, {1: 0.4})])
    shown = text(study(base, other), 120)
    assert "0.6000 ±" in shown, "the baseline at its second epoch"
    assert "0.3000 ±" in shown, "the other one where both of its seeds are"
    assert "+0.1000 ±0.0000" in shown, "0.2 - 0.1 and 0.4 - 0.3, at the first epoch"


def test_a_seed_that_only_one_has_is_not_compared() -> None:
    base = LiveArm("base", [cell(0, {1: 0.1}), cell(1, {})], baseline=True)
    other = LiveArm("other", [cell(0, {1: 0.3}), cell(1, {1: 0.9})])
    assert "+0.2000" in text(study(base, other), 120)


def test_states_stops_and_time() -> None:
    stopped = LiveArm("weak", [cell(0, {5: 0.1}, "stopped", 1800), cell(1, {3: 0.1}, "stopped", 1800)])
    going = LiveArm("good", [cell(0, {10: 0.9}, "done", 3600), cell(1, {5: 0.5}, "running", 3600)])
    shown = text(study(stopped, going), 120)
    assert "3–5" in shown
    assert "3/4 cells, 1 running, 2 stopped, 3 device-hours, about 39 min left" in " ".join(shown.split())
    assert shown.splitlines()[-1] == "budget: 3 of 4 device-hours"


@given(
    st.integers(20, 200),
    st.lists(
        st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=60), min_size=1, max_size=6
    ),
    st.integers(0, 9),
)
def test_it_never_wraps(width: int, names: list[str], failures: int) -> None:
    arms = [
        LiveArm(name, [cell(s, {1: 0.5 + s / 10}, "stopped") for s in range(2)], baseline=i == 0)
        for i, name in enumerate(names)
    ]
    shown = text(study(*arms, failures=failures), width).rstrip("\n").split("\n")
    assert len(shown) == 1 + len(names) + 2 + min(failures, FAILURES)
    assert all(cell_len(line) <= width for line in shown)


def test_eighty_columns_hold_what_matters() -> None:
    base = LiveArm(
        "filter=on pairs=arbitrary", [cell(s, {3: 0.91 + s / 100}, "done", 9) for s in range(3)], baseline=True
    )
    other = LiveArm("filter=off pairs=identical", [cell(s, {3: 0.9}, "running", 9) for s in range(3)])
    shown = text(study(base, other), 80)
    for part in ("filter=on pairs", "3/3", "0.9200 ±", "Δ", "-0.0200 ±"):
        assert part in shown


def tall(arms: int = 60, failures: int = 0) -> LiveStudy:
    """The first arm is the baseline, arm 30 runs, arm 40 has a failed cell, arms 50 to 59 have ended one after the other."""
    lines = [LiveArm(f"arm={i}", [cell(s, {}, "waiting") for s in range(3)], baseline=i == 0) for i in range(arms)]
    made = study(*lines, failures=failures)
    lines[30].cells[1].state, lines[40].cells[0].state = "running", "failed"
    for line in lines[50:]:
        for one in line.cells:
            one.state = "done" if line.name != "arm=50" else "stopped"
            made.touch(one)
    return made


def test_a_tall_study_shows_what_matters_first() -> None:
    shown = text(tall(failures=5), 80, 24).rstrip("\n").split("\n")
    assert len(shown) == 24
    names = [line.split()[0] for line in shown[1:18]]
    assert {"arm=0", "arm=30", "arm=40", *(f"arm={i}" for i in range(51, 60))} <= {*names}, "17 of them"
    assert names == sorted(names, key=lambda name: int(name[4:])), "in the study's order"
    assert shown[18] == "… 43 more: 43 waiting"
    assert shown[19].startswith("30/180 cells, 1 running, 3 stopped, 1 failed")
    assert shown[20] == "budget: 3 of 4 device-hours"
    assert [line[:12] for line in shown[21:]] == [f"arm · seed {n}" for n in (2, 3, 4)]
    shown = text(tall(failures=5), 80, 16).rstrip("\n").split("\n")
    assert shown[10] == "… 51 more: 3 done, 1 stopped, 47 waiting"


@pytest.mark.parametrize("height", range(1, 70))
def test_it_is_never_higher_than_the_terminal(height: int) -> None:
    shown = text(tall(failures=2), 80, height).rstrip("\n").split("\n")
    assert len(shown) <= height
    assert any(line.startswith("30/180 cells") for line in shown)
    assert height < 2 or "budget: 3 of 4 device-hours" in shown
    assert height < 4 or sum(line.startswith("arm · seed") for line in shown) == 2
    arms = sum(line.startswith("arm=") for line in shown)
    hidden = next((int(line.split()[1].rstrip(":")) for line in shown if line.startswith("…")), 0)
    assert height < 5 or arms + hidden == 60


def test_failures_that_stay_come_before_those_that_are_tried_again() -> None:
    made = study(LiveArm("base", [cell(0, {})], baseline=True))
    made.failures = [Failure(f"f{n}", "id", "other", "no", again=n > 0) for n in range(9)]
    assert [line.split()[0] for line in text(made, 80).splitlines()[-FAILURES:]] == ["f0", "f7", "f8"]


def test_many_hours_are_whole_numbers() -> None:
    shown = text(study(LiveArm("base", [cell(0, {10: 0.9}, "done", 3600 * 123.4)], baseline=True)), 120)
    assert "123 device-hours" in shown


def prepared(folder: Path) -> tuple[Storage, list[str]]:
    (folder / "base.yaml").write_text(yaml.dump(TREE))
    (folder / "study.yaml").write_text(STUDY)
    storage = Storage(folder / "runs")
    plan = make_plan(load_study(folder / "study.yaml"), storage)
    plan.save()
    return storage, [planned.cell_id for planned in plan.cells]


def trained(storage: Storage, cell_id: str, epochs: int, *, end: str | None = None, gpus: float = 0.0) -> None:
    folder = cell_storage(storage, cell_id)
    config = tiny(resources__gpus_per_worker=gpus).model_dump(mode="json")
    folder.write("config.yaml", yaml.dump(config).encode())
    journal = Journal(folder, writer="test", attempt=1)
    journal.start(0, 0, {})
    for epoch in range(1, epochs + 1):
        journal.epoch(epoch, {"val/probe_top1": epoch / 10, "time/epoch_s": 36.0})
    if end:
        journal.end(end, epochs, reason="OSError: the disk is full")  # type: ignore[arg-type]


def hold(storage: Storage) -> None:
    """As a launch on another machine."""
    lease = {"token": "x", "counter": 1, "host": "elsewhere", "pid": 1}
    storage.child("studies", "small").write_json("lease.json", lease)


def test_followed_from_the_records_alone(tmp_path: Path) -> None:
    storage, (one, two, *_) = prepared(tmp_path)
    hold(storage)
    seen = Follower(storage, "small")
    assert "0/4 cells" in seen.study.totals()
    events = EventLog(storage.child("studies", "small"), block=3)
    events.write("launch", pending=4)
    trained(storage, one, 2)
    events.write("cell_started", cell_id=one, arm="filter=gumbel", seed=0)
    seen.look()
    before = seen.running
    assert "1 running, 0.02 device-hours" in seen.study.totals()
    trained(storage, two, 1, end="failed")
    events.write(
        "cell_failed", cell_id=two, arm="filter=open", attempt=1, failure="other", reason="OSError: the disk is full"
    )
    seen.look()
    assert [(f.where, f.kind, f.again) for f in seen.study.failures] == [("filter=open · seed 0", "other", False)]
    events.write("launch_ended", finished=False)
    seen.look()
    assert (before, seen.running) == (True, False)
    assert len(seen.study.failures) == 1, "a block repeats events, and they are read once"


def test_hours_are_of_the_share_of_a_gpu(tmp_path: Path) -> None:
    storage, (one, two, *_) = prepared(tmp_path)
    trained(storage, one, 2, gpus=0.25)
    trained(storage, two, 2, gpus=2)
    assert f"{72 * 2.25 / 3600:.2g} device-hours" in Follower(storage, "small").study.totals()
    plan = make_plan(load_study(tmp_path / "study.yaml"), Storage(tmp_path / "other"))
    progress = Progress(plan, Console(file=io.StringIO()))
    progress.started(one, 0.25)
    progress.reported(one, 1, 0.5, 7200.0)
    assert "0.5 device-hours" in progress.study.totals()


def test_only_what_changes_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, (one, *_) = prepared(tmp_path)
    hold(storage)
    seen = Follower(storage, "small")
    events = EventLog(storage.child("studies", "small"))
    trained(storage, one, 2)
    events.write("cell_started", cell_id=one, arm="filter=gumbel", seed=0)
    read: list[str] = []
    real = Storage.read

    def noted(self: Storage, path: str) -> bytes:
        if path != "lease.json":
            read.append(f"{self.uri}/{path}")
        return real(self, path)

    monkeypatch.setattr(Storage, "read", noted)
    seen.look()
    assert read
    assert all(one in path or "/events/" in path for path in read)
    read.clear()
    trained(storage, one, 3, end="interrupted")
    seen.look()
    read.clear()
    seen.look()
    assert read == [], "nothing runs, nothing has happened"


def test_watching_a_log_file(tmp_path: Path) -> None:
    storage, _ = prepared(tmp_path)
    out = io.StringIO()
    watch(storage, "small", Console(file=out, width=80), every_s=0.0)
    lines = out.getvalue().split("\n")
    assert [line.split()[:2] for line in lines[1:4]] == [
        ["arm", "seeds"],
        ["filter=gumbel", "*"],
        ["filter=open", "0/2"],
    ]
    assert lines[4:] == ["0/4 cells, 0 device-hours", "", ""]
    with pytest.raises(ConfigError, match="no such study"):
        watch(storage, "smal", Console(file=out))


def test_the_first_error_says_where_the_log_is(tmp_path: Path) -> None:
    storage, (one, two, *_) = prepared(tmp_path)
    out = io.StringIO()
    plan = make_plan(load_study(tmp_path / "study.yaml"), storage)
    with Progress(plan, Console(file=out, width=60)) as progress:
        progress.started(one, 1.0)
        progress.reported(one, 1, 0.5, 2.0)
        progress.retrying(one, "lost", "the process died", "not counted")
        progress.ended(two, "failed", "ValueError: no", "user")
        progress.started(one, 1.0)
        progress.ended(one, "done")
    lines = out.getvalue().splitlines()
    assert lines[0].startswith(f"again    filter=gumbel · seed 0 ({one}) lost: the process died")
    assert lines[1] == f"         its log: simlap logs {one} --storage {storage.uri}"
    assert lines[2] == f"failed   filter=open · seed 0 ({two}): ValueError: no"
    assert lines[3].startswith("done     filter=gumbel · seed 0")
    assert "val/probe_top1 0.5000  [2/4" in lines[3]

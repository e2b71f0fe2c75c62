"""Studies projected into a real sqlite store: what MLflow holds afterwards, and that repeating it changes nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run, ViewType
from safetensors.torch import load_file, save

from simlap.record.mlflow import (
    Projected,
    StudyProjector,
    needs_projection,
    project_run,
    project_study,
    resolve_tracking_uri,
)
from simlap.record.view import CellView, StudyView
from simlap.storage import Storage
from tests.integration.blank import blank_store
from tests.integration.mlflow_studies import START, cell, study, write_checkpoints, write_report


@pytest.fixture
def blank() -> bytes:
    return blank_store()


class Place:
    """A storage and a tracking store, with questions to it."""

    def __init__(self, folder: Path, database: bytes) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.database = folder / "my mlflow.db"  # a blank in the path is allowed
        self.database.write_bytes(database)
        self.storage = Storage(folder / "runs")
        self.uri = resolve_tracking_uri(f"sqlite:///{self.database}")
        self.client = MlflowClient(self.uri)

    def project(self, view: StudyView) -> Projected:
        return project_study(view, self.storage, self.uri)

    def runs(self, kind: str | None = None, name: str = "filter", view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
        experiment = self.client.get_experiment_by_name(name)
        assert experiment is not None
        found = self.client.search_runs([experiment.experiment_id], run_view_type=view, max_results=1000)
        return [run for run in found if kind in (None, run.data.tags.get("simlap.kind"))]

    def cell(self, one: CellView) -> Run:
        (run,) = [run for run in self.runs("cell") if run.data.tags["simlap.cell_id"] == one.cell_id]
        return run

    def history(self, one: CellView, metric: str) -> list[tuple[int, int, float]]:
        points = self.client.get_metric_history(self.cell(one).info.run_id, metric)
        return sorted((point.step, point.timestamp, point.value) for point in points)

    def content(self) -> dict[str, Any]:
        """All that the store holds of the study, for comparison."""
        held = {}
        for run in self.runs():
            points = {
                key: sorted(
                    (m.step, m.timestamp, m.value) for m in self.client.get_metric_history(run.info.run_id, key)
                )
                for key in run.data.metrics
            }
            tags = {k: v for k, v in run.data.tags.items() if k != "mlflow.parentRunId"}
            parent = self.client.get_run(p).info.run_name if (p := run.data.tags.get("mlflow.parentRunId")) else None
            info = (run.info.status, run.info.start_time, run.info.end_time, parent)
            assert run.info.run_name not in held
            held[run.info.run_name] = (info, tags, run.data.params, points)
        return held

    def cursor_files(self) -> list[Path]:
        return list(Path(self.storage.uri).glob("studies/*/mlflow/*.json"))


@pytest.fixture
def place(tmp_path: Path, blank: bytes) -> Place:
    return Place(tmp_path, blank)


def expected(one: CellView, metric: str) -> list[tuple[int, int, float]]:
    return [(row.epoch, row.time_ms, row.metrics[metric]) for row in one.rows if row.epoch <= one.durable_epoch]


def test_a_finished_study_is_there_completely(place: Place) -> None:
    view = study(seeds=2)
    write_checkpoints(place.storage, view)
    write_report(place.storage, view)
    done = place.project(view)
    assert (done.runs, done.created, done.errors) == (13, 13, [])
    assert Counter(run.data.tags["simlap.kind"] for run in place.runs()) == {"study": 1, "arm": 4, "cell": 8}

    (top,) = place.runs("study")
    assert top.info.run_id == done.run_id
    assert top.data.tags["mlflow.note.content"].startswith("| arm &emsp;|")
    assert {item.path for item in place.client.list_artifacts(top.info.run_id)} == {"report", "study.yaml"}
    assert len(place.client.list_artifacts(top.info.run_id, "report")) == 3
    assert str(place.database.parent / "mlruns") in top.info.artifact_uri.replace("%20", " ")

    for arm_view, arm in zip(view.arms, sorted(place.runs("arm"), key=lambda run: run.info.start_time), strict=True):
        assert (arm.info.run_name, arm.info.status) == (arm_view.name, "FINISHED")
        assert arm.data.tags["mlflow.parentRunId"] == top.info.run_id
        assert arm.data.params == {f"factor.{key}": level for key, level in arm_view.levels.items()}
        assert arm.data.metrics["mean"] == 0.91
        for one in arm_view.cells:
            run = place.cell(one)
            assert run.info.run_name == f"{arm_view.name} · seed {one.seed}"
            assert run.data.tags["mlflow.parentRunId"] == arm.info.run_id
            assert (run.info.status, run.info.start_time, run.info.end_time) == (
                "FINISHED",
                one.started_ms,
                one.ended_ms,
            )
            assert place.history(one, "train/loss") == expected(one, "train/loss")
            assert place.history(one, "final/test_probe_top1") == [(0, one.ended_ms, one.result["test/probe_top1"])]
            assert place.history(one, "test/probe_top1") == [(3, one.ended_ms, one.result["test/probe_top1"])]
            assert run.data.params["method.gate.kind"] == arm_view.levels["filter"]
            assert run.inputs is not None
            assert run.outputs is not None
            (data,) = run.inputs.dataset_inputs
            assert (data.dataset.name, data.dataset.digest) == ("digits", "fp" * 10)
            (model,) = run.outputs.model_outputs
            logged = place.client.get_logged_model(model.model_id)
            assert (str(logged.status), logged.source_run_id) == ("READY", run.info.run_id)
            files = {item.path for item in place.client.list_logged_model_artifacts(model.model_id)}
            assert files == {"model.safetensors", "config.yaml", "README.md"}


def test_a_logged_model_loads_without_pickle(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view = study(levels=("on",))
    write_checkpoints(place.storage, view)
    tensors = {"backbone.weight": torch.arange(6.0).reshape(2, 3), "probe.bias": torch.ones(2)}
    for cell_view in (one for arm in view.arms for one in arm.cells):
        path = place.storage.read_json(f"cells/{cell_view.cell_id}/result.json")["checkpoint"]["path"]
        place.storage.write(f"cells/{cell_view.cell_id}/{path}/model.safetensors", save(tensors))
    place.project(view)
    outputs = place.cell(view.arms[0].cells[0]).outputs
    assert outputs is not None
    (found,) = outputs.model_outputs
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)
    (tmp_path / "model").mkdir()
    folder = download_artifacts(f"models:/{found.model_id}", dst_path=str(tmp_path / "model"))
    assert {file.name for file in Path(folder).iterdir()} == {"model.safetensors", "config.yaml", "README.md"}
    loaded = load_file(Path(folder, "model.safetensors"))
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_repeating_changes_nothing_and_is_not_needed(place: Place) -> None:
    view = study()
    write_checkpoints(place.storage, view)
    assert needs_projection(view, place.storage, place.uri)
    place.project(view)
    before = place.content()
    assert not needs_projection(view, place.storage, place.uri)
    assert place.project(view).writes == 0
    assert place.content() == before
    write_report(place.storage, view)
    assert needs_projection(view, place.storage, place.uri)
    assert place.project(view).metrics == 4 * 5  # the arms' five numbers
    write_report(place.storage, view, mean=0.5)
    place.project(view)
    assert {run.data.metrics["mean"] for run in place.runs("arm")} == {0.5}
    assert not needs_projection(view, place.storage, place.uri)


def test_a_growing_study_ends_as_one_projected_at_the_end(place: Place, tmp_path: Path, blank: bytes) -> None:
    projector = StudyProjector(place.storage, place.uri, "filter")
    final = study()
    write_checkpoints(place.storage, final)
    for reached in (0, 1, 2, 3):
        projector.project(study(reached=reached))
        assert len(place.runs("cell")) == (4 if reached else 0)
    assert projector.project(final).created == 0
    other = Place(tmp_path / "other", blank)
    write_checkpoints(other.storage, final)
    other.project(final)
    grown, whole = place.content(), other.content()
    assert grown.keys() == whole.keys()
    for name in whole:
        if "seed" in name:  # the runs of study and arms start when they are first seen
            (info, tags, params, points), (info2, tags2, params2, points2) = grown[name], whole[name]
            tags["simlap.directory"] = tags2["simlap.directory"]
            assert (info, tags, params, points) == (info2, tags2, params2, points2)


def test_epochs_that_may_be_replayed_wait(place: Place) -> None:
    view = study(states={0: {"state": "running", "epochs": 2, "durable": 1}})
    place.project(view)
    one = view.arms[0].cells[0]
    assert [step for step, _, _ in place.history(one, "train/loss")] == [1]
    assert place.cell(one).info.status == "RUNNING"


def test_a_lost_cursor_neither_doubles_runs_nor_points(place: Place) -> None:
    view = study()
    write_checkpoints(place.storage, view)
    place.project(study(reached=2))
    (file,) = place.cursor_files()
    file.unlink()
    assert place.project(view).created == 0
    before = place.content()
    file.write_text("{")
    done = place.project(view)
    assert (done.created, done.metrics) == (0, 0)
    assert place.content() == before
    models = place.client.search_logged_models([done.experiment_id])
    assert len(models) == 4


def test_an_epoch_trained_again_after_the_cursor_was_lost_stays_single(place: Place) -> None:
    place.project(study(reached=2))
    (file,) = place.cursor_files()
    file.unlink()
    view = study()
    again = view.arms[0].cells[0]
    again.rows[1] = replace(again.rows[1], time_ms=START + 999_999)
    place.project(view)
    assert [step for step, _, _ in place.history(again, "train/loss")] == [1, 2, 3]


def test_a_cell_that_is_resumed_stays_one_run(place: Place) -> None:
    for state, status in (("stopped", "KILLED"), ("running", "RUNNING"), ("failed", "FAILED"), ("done", "FINISHED")):
        view = study(states={0: {"state": state, "reason": "rung 1", "error": "RuntimeError: boom"}})
        place.project(view)
        run = place.cell(view.arms[0].cells[0])
        assert run.info.status == status
        assert ("simlap.stopped" in run.data.tags) == (state == "stopped")
        assert ("simlap.error" in run.data.tags) == (state == "failed")
        if state == "failed":
            assert "error.txt" in {item.path for item in place.client.list_artifacts(run.info.run_id)}
            assert "boom" in run.data.tags["mlflow.note.content"]
    assert len(place.runs("cell")) == 4


def test_an_edited_study_adds_keeps_and_marks(place: Place) -> None:
    place.project(study())
    wider = study(levels=("on", "off", "product"))
    assert place.project(wider).created == 2 + 2
    place.project(study(levels=("on", "product")))
    gone = [run for run in place.runs() if run.data.tags.get("simlap.in_study") == "false"]
    assert Counter(run.data.tags["simlap.kind"] for run in gone) == {"arm": 2, "cell": 2}
    assert all("off" in run.data.tags["simlap.arm"] for run in gone)
    place.project(wider)
    assert not [run for run in place.runs() if "simlap.in_study" in run.data.tags]


def test_a_changed_param_is_told_as_a_tag(place: Place) -> None:
    view = study()
    place.project(view)
    arm = view.arms[0]
    arm.cells[0].config["optim"]["lr"] = 0.1
    done = place.project(view)
    run = place.cell(arm.cells[0])
    assert done.errors == []
    assert (run.data.params["optim.lr"], run.data.tags["simlap.changed.optim.lr"]) == ("0.003", "0.1")


def test_a_deleted_store_or_run_is_rebuilt(place: Place, blank: bytes) -> None:
    view = study()
    place.project(view)
    before = place.content()
    run = place.cell(view.arms[0].cells[0])
    place.client.delete_run(run.info.run_id)
    assert needs_projection(view, place.storage, place.uri)
    assert place.project(view).created == 1
    assert place.content() == before
    place.database.write_bytes(blank)
    assert needs_projection(view, place.storage, place.uri)
    assert place.project(view).created == 9
    assert place.content() == before


def test_runs_created_twice_are_made_one(place: Place) -> None:
    view = study(reached=1)
    place.project(view)
    run = place.cell(view.arms[0].cells[0])
    late = {k: v for k, v in run.data.tags.items() if k != "mlflow.runName"}
    place.client.create_run(run.info.experiment_id, start_time=START + 10**9, tags=late, run_name="late")
    assert len(place.runs("cell")) == 5
    place.project(study())
    assert len(place.runs("cell")) == 4
    assert place.cell(view.arms[0].cells[0]).info.run_id == run.info.run_id


def test_one_rejected_run_does_not_hold_up_the_others(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    view = study()
    real = MlflowClient.log_batch

    def log_batch(self: MlflowClient, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> Any:
        if any(param.value == "on" for param in params) and metrics:
            raise MlflowException("refused", INVALID_PARAMETER_VALUE)
        return real(self, run_id, metrics, params, tags)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", log_batch)
        done = place.project(view)
    assert len(done.errors) >= 2
    assert place.history(view.arms[2].cells[0], "train/loss") == expected(view.arms[2].cells[0], "train/loss")
    assert needs_projection(view, place.storage, place.uri)
    assert place.project(view).errors == []
    assert len(place.runs()) == 9
    assert place.history(view.arms[0].cells[0], "train/loss") == expected(view.arms[0].cells[0], "train/loss")


@pytest.mark.parametrize("request_number", [0, 3, 8, 14, 19, 21])
def test_a_kill_at_any_request_costs_nothing(
    request_number: int, place: Place, tmp_path: Path, blank: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply to one request is lost, and sometimes the cursor too; the next process completes the records."""
    from simlap.record.tracking.cursor import Cursor
    from simlap.record.tracking.writer import Writer

    view = study(levels=("on",))
    write_checkpoints(place.storage, view)
    sent = 0
    real = Writer._write

    def write(self: Writer, request: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal sent
        answer = real(self, request, *arguments, **named)
        sent += 1
        if sent > request_number:
            raise ConnectionError("no reply")
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "_write", write)
        if request_number % 2:
            patch.setattr(Cursor, "save", lambda *_, **__: None)
        with pytest.raises(ConnectionError):
            place.project(view)
    assert needs_projection(view, place.storage, place.uri)
    place.project(view)
    assert not needs_projection(view, place.storage, place.uri)
    other = Place(tmp_path / "other", blank)
    write_checkpoints(other.storage, view)
    other.project(view)
    broken, whole = place.content(), other.content()
    for name, (info, tags, params, points) in whole.items():
        tags["simlap.directory"] = broken[name][1].get("simlap.directory", "")
        tags = {key: value for key, value in tags.items() if value}
        assert broken[name] == (info, tags, params, points)
    assert broken.keys() == whole.keys()
    assert len(place.client.search_logged_models([place.runs()[0].info.experiment_id])) == 2


def test_a_missing_checkpoint_is_said_once(place: Place) -> None:
    view = study()
    done = place.project(view)
    assert (len(done.notes), done.errors) == (4, [])
    assert "checkpoint" in done.notes[0]
    assert not needs_projection(view, place.storage, place.uri)
    run = place.cell(view.arms[0].cells[0])
    assert run.data.tags["simlap.model"].startswith("missing")


def test_a_single_run_is_one_top_level_run(place: Place) -> None:
    for epochs, state in ((1, "running"), (2, "interrupted"), (3, "done")):
        one = cell(0, 4, {"filter": "on"}, epochs=epochs, state=state)  # type: ignore[arg-type]
        project_run(one, "digits", place.storage, place.uri)
    (run,) = place.runs(name="digits")
    assert (run.info.run_name, run.info.status) == ("digits · seed 4", "FINISHED")
    assert "mlflow.parentRunId" not in run.data.tags
    assert len(place.client.get_metric_history(run.info.run_id, "train/loss")) == 3
    other = cell(1, 5, {"filter": "on"})
    assert project_run(other, "digits", place.storage, place.uri).created == 1
    assert project_run(other, "digits", place.storage, place.uri).writes == 0
    assert len(place.runs(name="digits")) == 2


def test_a_deleted_experiment_comes_back(place: Place) -> None:
    done = place.project(study())
    place.client.delete_experiment(done.experiment_id)
    assert place.project(study()).experiment_id == done.experiment_id
    assert len(place.runs("cell")) == 4

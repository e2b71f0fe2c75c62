"""A cell that starts from another one, and what it leaves besides numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from simlap.config import Experiment, evaluation_id
from simlap.errors import ConfigError, DataError
from simlap.record.journal import cell_storage, read_cell, read_result
from simlap.run import worker
from simlap.run.task import CellTask
from simlap.run.worker import run_cell
from simlap.storage import Storage
from simlap.train.check import Stage, check_experiment
from simlap.train.checkpoint import Checkpoint, CheckpointError, find_checkpoint
from simlap.train.manifest import names
from simlap.train.weights import backbone_of
from simlap.train.world import World
from tests.tiny import TREE, tiny


def two_stages(**changes: Any) -> Experiment:
    """The tiny experiment, and a second one with next to no learning rate on what it learns."""
    return tiny(
        pretrain={**TREE, "name": "first", "train": {"epochs": 1, "batch_size": 128}},
        method={"kind": "supervised"}, train__epochs=1, optim__lr=1e-8, optim__schedule="constant",
        optim__warmup_epochs=0.0, evaluate=[{"kind": "probe"}], **changes,
    )  # fmt: skip


def run(stage: Stage, storage: Storage) -> None:
    provenance = {"data_fingerprint": stage.info.fingerprint}
    task = CellTask(stage.cell_id, stage.experiment.model_dump(mode="json"), storage.uri, provenance, stage.start)
    for _ in run_cell(task, World()):
        pass


def learnt(stage: Stage, storage: Storage) -> dict[str, torch.Tensor]:
    found = find_checkpoint(storage.child("cells", stage.cell_id).uri)
    assert found is not None
    return backbone_of(found.model)


def test_a_stage_starts_from_the_one_before(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    first, second = check_experiment(two_stages(), file="x")
    run(first, storage)
    run(second, storage)
    before, after = learnt(first, storage), learnt(second, storage)
    for name, value in before.items():
        if "running" not in name and value.is_floating_point():
            assert torch.allclose(after[name], value, atol=1e-5), name
    view = read_cell(storage, second.cell_id)
    assert view.start == first.cell_id == second.start
    assert view.provenance["start"] == first.cell_id
    assert read_cell(storage, first.cell_id).start is None


def test_without_the_stage_it_fails_and_says_so(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    _, second = check_experiment(two_stages(), file="x")
    with pytest.raises(ConfigError, match="run that stage first"):
        run(second, storage)
    view = read_cell(storage, second.cell_id)
    assert view.state == "failed"
    assert "'first'" in (view.reason or "")


def test_a_run_that_has_begun_goes_on_without_the_stage(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    first, second = check_experiment(two_stages(), file="x")
    run(first, storage)
    run(second, storage)
    storage.delete(f"cells/{first.cell_id}")
    more = second.experiment.model_copy(update={"evaluate": two_stages().pretrain.evaluate})  # type: ignore[union-attr]
    run(Stage(more, second.info, second.cell_id, second.start), storage)
    assert read_cell(storage, second.cell_id, evaluate=more.model_dump(mode="json")["evaluate"]).state == "done"


def test_a_run_with_a_checkpoint_of_its_own_leaves_the_stage_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(tmp_path)
    first, second = check_experiment(two_stages(data__fraction=0.3), file="x")
    run(first, storage)
    read: list[str] = []

    def find(path: str) -> Checkpoint | None:
        read.append(path)
        return find_checkpoint(path)

    monkeypatch.setattr(worker, "find_checkpoint", find)
    run(second, storage)
    assert len(read) == 1
    more = second.experiment.model_copy(update={"evaluate": two_stages().pretrain.evaluate})  # type: ignore[union-attr]
    run(Stage(more, second.info, second.cell_id, second.start), storage)
    assert len(read) == 1
    cell = cell_storage(storage, second.cell_id)
    for name in names(cell.child("checkpoints")):
        cell.write(f"checkpoints/{name}/model.safetensors", b"damaged")
    with pytest.raises(CheckpointError, match="no checkpoint is valid"):
        run(second, storage)
    assert len(read) == 1, "what is lost is not begun anew from the stage without a word"


def test_weights_are_checked_where_only_a_damaged_checkpoint_is_there(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    (first,) = check_experiment(tiny(train__epochs=1, data__fraction=0.3), file="x")
    run(first, storage)
    weights = str(tmp_path / "cells" / first.cell_id)
    (second,) = check_experiment(first.experiment.with_seed(1).model_copy(
        update={"backbone": first.experiment.backbone.model_copy(update={"weights": weights})}
    ), file="x")  # fmt: skip
    changed = Stage(second.experiment, second.info, second.cell_id, "weights:0123")
    cell_storage(storage, second.cell_id).write("checkpoints/epoch-00001-step-0000000-attempt-0001/state.json", b"{}")
    with pytest.raises(DataError, match="have changed since the run was planned"):
        run(changed, storage)
    run(second, storage)
    run(changed, storage)  # its own checkpoint counts


def test_a_protocol_that_came_later_joins_the_config(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    probe, knn = {"kind": "probe"}, {"kind": "knn"}
    short = {"train__epochs": 1, "data__fraction": 0.3}
    (stage,) = check_experiment(tiny(**short, evaluate=[probe, {**knn, "k": [1], "headline": 1}]), file="x")
    run(stage, storage)
    before = read_cell(storage, stage.cell_id)
    later = tiny(**short, name="renamed", evaluate=[{**knn, "k": [3], "headline": 3}, {"kind": "linear", "l2": 0.01}])
    run(Stage(later, stage.info, stage.cell_id, None), storage)
    after = read_cell(storage, stage.cell_id)
    assert [protocol["kind"] for protocol in after.config["evaluate"]] == ["probe", "knn", "linear"]
    assert after.config["evaluate"][1]["k"] == [3]
    assert {**after.config, "evaluate": None} == {**before.config, "evaluate": None}, "nothing else of it changed"
    assert after.provenance == before.provenance
    assert after.result.keys() >= {"test/probe_top1", "test/knn_top1_k3", "test/linear_top1"}
    assert "test/knn_top1_k1" not in after.result


def test_weights_that_have_changed_since_the_plan(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    (first,) = check_experiment(tiny(train__epochs=1), file="x")
    run(first, storage)
    weights = str(tmp_path / "cells" / first.cell_id)
    (second,) = check_experiment(tiny(train__epochs=1, seed=1, backbone__weights=weights), file="x")
    assert (second.start or "").startswith("weights:")
    with pytest.raises(DataError, match="have changed since the run was planned"):
        run(Stage(second.experiment, second.info, second.cell_id, "weights:0123"), storage)
    run(second, storage)
    assert read_cell(storage, second.cell_id).start == second.start


def test_what_an_evaluation_gives_besides_numbers_is_kept(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    experiment = tiny(train__epochs=1, evaluate=[{"kind": "gates", "permutations": 9}])
    (stage,) = check_experiment(experiment, file="x")
    run(stage, storage)
    cell = cell_storage(storage, stage.cell_id)
    result = read_result(cell)
    assert result is not None
    identity = evaluation_id(experiment.evaluate[0], result["checkpoint"]["sha256"])
    assert cell.list("evaluations") == [f"{identity}.json"]
    assert cell.read_json(f"evaluations/{identity}.json")
    assert "gates/activation" in result["evaluations"][identity]

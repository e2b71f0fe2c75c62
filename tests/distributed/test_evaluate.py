"""Every protocol on two workers: what one process gives."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from simlap.config import validate
from simlap.config.schema import KNN, Collapse, Evaluation, Experiment, FineTune, Gates, Linear, Probe, Transfer
from simlap.data.splits import load_splits
from simlap.evaluate.cache import FeatureCache
from simlap.methods import build_method
from simlap.storage import Storage
from simlap.train.distributed import convert_sync_batchnorm
from simlap.train.evaluate import Evaluator
from simlap.train.world import World
from tests.distributed.spawn import run_workers
from tests.tiny import TREE, tiny

pytestmark = pytest.mark.slow

FINETUNE = FineTune(kind="finetune", epochs=1, batch_size=63)
OTHER = validate(Experiment, {**TREE, "data": {"source": "digits", "fraction": 0.2}}).data
EVERY: list[Evaluation] = [
    Probe(kind="probe"),
    KNN(kind="knn"),
    Collapse(kind="collapse"),
    Linear(kind="linear", l2=1e-2),
    FINETUNE,
    Gates(kind="gates", permutations=99),
    Transfer(kind="transfer", data={"part": OTHER}, protocols=(KNN(kind="knn"), FINETUNE)),
]


def work(rank: int, world_size: int, folder: str) -> list[dict[str, float]]:
    world = World.current()
    experiment = tiny(data__fraction=0.3)
    splits = load_splits(experiment.data)
    model = build_method(experiment, num_classes=10, channels=1, world=world)
    if world_size > 1:
        convert_sync_batchnorm(model)
    cache = FeatureCache(Storage(folder), "0" * 64) if folder else None
    evaluator = Evaluator(model, splits, world, experiment, cache)
    return [evaluator.final(evaluation).metrics for evaluation in EVERY]


def test_two_workers_give_what_one_gives(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    alone = work(0, 1, "")
    first = run_workers(work, 2, tmp_path_factory.mktemp("first"), str(tmp_path))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 6  # three splits of two datasets
    for worker in first:
        for ours, theirs in zip(alone, worker, strict=True):
            assert list(ours) == list(theirs)
            for name, value in ours.items():
                assert math.isclose(theirs[name], value, rel_tol=1e-3, abs_tol=0.02 if "finetune" in name else 1e-5), (
                    name
                )

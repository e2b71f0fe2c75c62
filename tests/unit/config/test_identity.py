"""What is part of a run's identity and what is not; golden ids, which must survive upgrades."""

from __future__ import annotations

from typing import Any

import pytest

from simlap.config import Experiment, cell_id, evaluation_id, override, validate
from simlap.config.identity import EXCLUDED, UNCOUNTED, training_part
from simlap.config.schema import KNN

BASE: dict[str, Any] = {"name": "x", "data": {"source": "digits"}}
PARQUET: dict[str, Any] = {"name": "x", "data": {"source": "parquet", "train": "a", "test": "b"}}


def experiment(tree: dict[str, Any] = BASE, **changes: Any) -> Experiment:
    return override(validate(Experiment, tree), [(path.replace("__", "."), value) for path, value in changes.items()])


@pytest.mark.parametrize(
    ("tree", "changes", "golden"),
    [
        (BASE, {}, "9f8a605cce0062b3"),
        (BASE, {"seed": 1, "method__gate": {"kind": "open"}}, "9820ec2b73a2d52e"),
        (PARQUET, {"optim__lr": 0.1, "backbone__kwargs": {"stem_type": "deep"}}, "daa7225d7e138926"),
    ],
)
def test_golden_ids(tree: dict[str, Any], changes: dict[str, Any], golden: str) -> None:
    assert cell_id(experiment(tree, **changes), "fingerprint") == golden


CHANGES: dict[str, Any] = {
    "name": "y",
    "seed": 1,
    "data.augment.flip": 0.1,
    "data.augment.crop_scale": [0.5, 1.0],
    "data.augment.crop_ratio": [1.0, 1.0],
    "data.augment.rotate": 3.0,
    "data.augment.translate": 0.1,
    "data.augment.brightness": 0.1,
    "data.augment.contrast": 0.1,
    "data.augment.erase": 0.1,
    "data.repeated_augmentation": 2,
    "data.validation": "none",
    "data.image_size": 16,
    "data.train": "elsewhere",
    "data.test": "elsewhere",
    "data.image_column": "img",
    "data.label_column": "fine_label",
    "backbone.name": "conv3",
    "backbone.kwargs": {"widths": [8]},
    "method.pairs": "distinct",
    "method.gate": {"kind": "open"},
    "method.similarity": "masked_dot",
    "method.embed_dim": 8,
    "method.projector_hidden_dim": 8,
    "method.temperature": 0.5,
    "method.keep_self": False,
    "method.probe": "joint",
    "optim.name": "sgd",
    "optim.lr": 0.5,
    "optim.weight_decay": 0.5,
    "optim.momentum": 0.5,
    "optim.schedule": "constant",
    "optim.warmup_epochs": 0.5,
    "optim.warmup_lr": 5e-4,
    "optim.min_lr": 5e-4,
    "train.epochs": 7,
    "train.batch_size": 7,
    "train.precision": "bf16",
    "checkpoint.every_epochs": 5,
    "checkpoint.keep": 5,
    "checkpoint.on_stop": False,
    "evaluate": [],
    "resources.workers": 3,
    "resources.cpus_per_worker": 3,
}
BY_FINGERPRINT = {"data.train", "data.test", "data.image_column", "data.label_column"}
NOT_COUNTED = {"name", "checkpoint", "evaluate", "resources"} | BY_FINGERPRINT


@pytest.mark.parametrize("path", CHANGES)
def test_every_training_field_counts(path: str) -> None:
    changed = override(validate(Experiment, PARQUET), [(path, CHANGES[path])])
    same = cell_id(changed, "f") == cell_id(validate(Experiment, PARQUET), "f")
    assert same == (path in NOT_COUNTED or path.split(".")[0] in NOT_COUNTED)


def test_the_list_above_covers_the_schema() -> None:
    def leaves(tree: dict[str, Any], prefix: str = "") -> set[str]:
        found: set[str] = set()
        for key, value in tree.items():
            inner = isinstance(value, dict) and f"{prefix}{key}" not in CHANGES
            found |= leaves(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}"}
        return found

    schema = leaves(validate(Experiment, PARQUET).model_dump(mode="json"))
    # the kind of a node is changed with the node; a GPU share changes the precision, tested apart
    apart = {"schema_version", "data.source", "method.kind", "resources.gpus_per_worker"}
    assert schema - apart == set(CHANGES)


def test_excluded_fields_are_those_that_do_not_count() -> None:
    assert set(EXCLUDED) == NOT_COUNTED | {"train.precision"}
    assert set(UNCOUNTED) == NOT_COUNTED - BY_FINGERPRINT


def test_the_data_counts_by_its_fingerprint() -> None:
    assert cell_id(experiment(), "a") != cell_id(experiment(), "b")


def test_a_value_at_its_default_is_left_out() -> None:
    written = experiment(optim__lr=1e-3, method__embed_dim=256, train__precision="fp32")
    assert training_part(written, "f") == training_part(experiment(), "f")


def test_precision_counts_as_resolved() -> None:
    assert cell_id(experiment(train__precision="bf16"), "f") == cell_id(experiment(resources__gpus_per_worker=1.0), "f")


def test_evaluation_id_depends_on_protocol_and_checkpoint_only() -> None:
    one = evaluation_id(KNN(kind="knn"), "a")
    assert one == evaluation_id(KNN(kind="knn", every_epochs=3), "a")
    assert one != evaluation_id(KNN(kind="knn"), "b")
    assert one != evaluation_id(KNN(kind="knn", temperature=0.1), "a")

"""What is part of a run's identity and what is not; golden ids, which must survive upgrades."""

from __future__ import annotations

from typing import Any

import pytest

from simlap.config import Experiment, cell_id, evaluation_id, override, validate
from simlap.config.identity import EXCLUDED, UNCOUNTED, training_part
from simlap.config.schema import KNN, Evaluation, Gates, ParquetData, TorchvisionData, Transfer

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


TORCHVISION = {"name": "x", "data": {"source": "cifar10"}}
FOLDER = {"name": "x", "data": {"source": "folder", "train": "a", "test": "b"}}


def with_method(kind: str, **tree: Any) -> dict[str, Any]:
    return {"name": "x", "data": {"source": "digits", "augment": {"views": 2}}, "method": {"kind": kind, **tree}}


CHANGES: dict[str, Any] = {
    "name": "y",
    "seed": 1,
    "pretrain": {"name": "z", "data": {"source": "digits"}},
    "data.augment.pipeline": "timm",
    "data.augment.views": 2,
    "data.augment.flip": 0.1,
    "data.augment.crop_scale": [0.5, 1.0],
    "data.augment.crop_ratio": [1.0, 1.0],
    "data.augment.interpolation": "bicubic",
    "data.augment.rotate": 3.0,
    "data.augment.translate": 0.1,
    "data.augment.rand_augment": "rand-m9-mstd0.5-inc1",
    "data.augment.three_augment": True,
    "data.augment.brightness": 0.1,
    "data.augment.contrast": 0.1,
    "data.augment.saturation": 0.1,
    "data.augment.hue": 0.1,
    "data.augment.jitter": 0.1,
    "data.augment.grey": 0.1,
    "data.augment.blur": 0.1,
    "data.augment.blur_sigma": [0.1, 1.0],
    "data.augment.solarise": 0.1,
    "data.augment.erase": 0.1,
    "data.augment.mixup": 0.0,
    "data.augment.cutmix": 0.0,
    "data.augment.mix_probability": 0.1,
    "data.repeated_augmentation": 2,
    "data.sampling": {"kind": "pk", "classes": 4, "images": 64},
    "data.validation": "none",
    "data.classes": [0, 1],
    "data.fraction": 0.5,
    "data.image_size": 16,
    "data.stored_size": 40,
    "data.eval_size": 40,
    "data.mean": None,
    "data.std": None,
    "data.streaming": {},
    "data.max_bad_share": 0.5,
    "data.fingerprint": "f",
    "data.train": "elsewhere",
    "data.test": "elsewhere",
    "data.image_column": "img",
    "data.label_column": "fine_label",
    "backbone.name": "conv3",
    "backbone.kwargs": {"widths": [8]},
    "backbone.stem": "small",
    "backbone.frozen_norm": True,
    "backbone.weights": "elsewhere",
    "backbone.key_prefix": "backbone.",
    "method.pairs": "distinct",
    "method.gate": {"kind": "open"},
    "method.gate_penalty": 0.1,
    "method.similarity": "masked_dot",
    "method.embed_dim": 8,
    "method.projector_hidden_dim": 8,
    "method.temperature": 0.5,
    "method.learn_temperature": True,
    "method.keep_self": False,
    "method.probe": "joint",
    "optim.name": "sgd",
    "optim.kwargs": {"betas": [0.8, 0.9]},
    "optim.lr": 0.5,
    "optim.weight_decay": 0.5,
    "optim.momentum": 0.5,
    "optim.layer_decay": 0.5,
    "optim.clip_grad": 1.0,
    "optim.schedule": "constant",
    "optim.warmup_epochs": 0.5,
    "optim.warmup_lr": 5e-4,
    "optim.min_lr": 5e-4,
    "train.epochs": 7,
    "train.batch_size": 7,
    "train.micro_batch_size": 7,
    "train.precision": "bf16",
    "train.ema_decay": 0.9,
    "train.compile": True,
    "train.channels_last": True,
    "train.loss": "plain",
    "train.keys": "ring",
    "train.max_skipped_steps": 3,
    "checkpoint.every_epochs": 5,
    "checkpoint.keep": 5,
    "checkpoint.on_stop": False,
    "evaluate": [],
    "resources.workers": 3,
    "resources.min_workers": 1,
    "resources.cpus_per_worker": 3,
}
STREAMED = {"name": "x", "data": {**PARQUET["data"], "streaming": {}}}
STREAMING = {"workers": 2, "prefetch": 2, "block": 2, "window": 2}
OTHERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (STREAMED, {f"data.streaming.{name}": value for name, value in STREAMING.items()}),
    (TORCHVISION, {"data.root": "elsewhere", "data.download": True, "data.image_size": 16}),
    (FOLDER, {"data.train": "elsewhere", "data.test": "elsewhere", "data.image_size": 16}),
    (
        with_method("supcon"),
        {
            "method.variant": "khosla",
            "method.pairs": "distinct",
            "method.projector": "linear",
            "method.embed_dim": 8,
            "method.projector_hidden_dim": 8,
            "method.temperature": 0.5,
            "method.learn_temperature": True,
            "method.keep_self": False,
            "method.probe": "joint",
        },
    ),
    (
        with_method("simclr"),
        {
            "method.embed_dim": 8,
            "method.projector_hidden_dim": 8,
            "method.temperature": 0.5,
            "method.learn_temperature": True,
            "method.probe": "joint",
        },
    ),
    (
        with_method("supervised"),
        {"method.label_smoothing": 0.1, "method.dropout": 0.1, "data.augment.mixup": 0.8, "data.augment.cutmix": 1.0},
    ),
    (
        with_method("fuse"),
        {
            "method.pairs": "distinct",
            "method.gate": {"kind": "open"},
            "method.gate_penalty": 0.1,
            "method.embed_dim": 8,
            "method.projector_hidden_dim": 8,
            "method.temperature": 0.5,
            "method.nce_weight": 0.5,
        },
    ),
]
CASES = [(PARQUET, path, value) for path, value in CHANGES.items()] + [
    (tree, path, value) for tree, changes in OTHERS for path, value in changes.items()
]
BY_FINGERPRINT = {
    "data.train", "data.test", "data.image_column", "data.label_column", "data.root", "data.fingerprint",
    "backbone.weights", "backbone.key_prefix",
}  # fmt: skip
BY_ID = {"pretrain"}
"""Counts through the id of the stage."""
OF_NO_CONSEQUENCE = {
    "data.download", "data.max_bad_share", "data.streaming.workers", "data.streaming.prefetch",
    "train.compile", "train.channels_last", "train.loss", "train.keys", "train.max_skipped_steps",
}  # fmt: skip
TOGETHER = {"data.mean", "data.std", "data.augment.mixup", "data.augment.cutmix"}
"""Cannot be changed alone; tested apart."""
NEEDED: dict[str, list[tuple[str, Any]]] = {
    "data.sampling": [("train.batch_size", 256)],
    "backbone.frozen_norm": [("backbone.weights", "w")],
}
"""What must be set before."""
SECTIONS = {"name", "checkpoint", "evaluate", "resources"}
NOT_COUNTED = SECTIONS | BY_FINGERPRINT | BY_ID | OF_NO_CONSEQUENCE


@pytest.mark.parametrize(("tree", "path", "value"), [c for c in CASES if not (c[1] in TOGETHER and c[0] is PARQUET)])
def test_every_training_field_counts(tree: dict[str, Any], path: str, value: Any) -> None:
    base = override(validate(Experiment, tree), NEEDED.get(path, []))
    changed = override(base, [(path, value)])
    assert changed != base
    same = cell_id(changed, "f") == cell_id(base, "f")
    assert same == (path in NOT_COUNTED or path.split(".")[0] in NOT_COUNTED)


def test_given_statistics_count() -> None:
    changed = override(validate(Experiment, PARQUET), [("data.mean", [0.5] * 3), ("data.std", [0.5] * 3)])
    assert cell_id(changed, "f") != cell_id(validate(Experiment, PARQUET), "f")


def test_the_lists_above_cover_the_schema() -> None:
    def leaves(tree: dict[str, Any], known: set[str], prefix: str = "") -> set[str]:
        found: set[str] = set()
        for key, value in tree.items():
            inner = isinstance(value, dict) and f"{prefix}{key}" not in known
            found |= leaves(value, known, f"{prefix}{key}.") if inner else {f"{prefix}{key}"}
        return found

    # the kind of a node is changed with the node; a GPU share changes the precision, tested apart
    apart = {"schema_version", "data.source", "method.kind", "resources.gpus_per_worker"}
    for tree, changes in [(PARQUET, CHANGES), *OTHERS]:
        known = {path for path in {*changes, *CHANGES} if not any(other.startswith(f"{path}.") for other in changes)}
        schema = leaves(validate(Experiment, tree).model_dump(mode="json"), known)
        sections = {"data.", "method."} if tree is not PARQUET else {""}
        own = {path for path in schema - apart if path.startswith(tuple(sections))}
        assert own <= known, own - known
        assert set(changes) <= schema, set(changes) - schema


def test_excluded_fields_are_those_that_do_not_count() -> None:
    assert set(EXCLUDED) == NOT_COUNTED | {"train.precision"}
    assert set(UNCOUNTED) == SECTIONS


def test_what_the_backbone_starts_from_counts() -> None:
    ids = {cell_id(experiment(), "f", start) for start in (None, "stage", "another")}
    assert len(ids) == 3


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
    assert one == evaluation_id(KNN(kind="knn", temperature=0.07), "a"), "a default that is written out"


def test_golden_evaluation_ids() -> None:
    found = [
        evaluation_id(protocol, "checkpoint")
        for protocol in (KNN(kind="knn"), KNN(kind="knn", k=(1, 5)), Gates(kind="gates"))
    ]
    assert found == ["1b81cf6b1f9efa60", "7df44af4d01f65da", "271e2978617d7fbb"]


def test_a_headline_counts_by_what_it_is() -> None:
    """Not by whether it is written."""

    def of(**fields: Any) -> str:
        return evaluation_id(KNN(kind="knn", **fields), "a")

    assert of() == of(headline=20)
    assert of(k=(1, 5)) == of(k=(1, 5), headline=5) != of(k=(1, 5), headline=1)
    inside = [
        transfer({"a": PLACED}, protocols=(KNN(kind="knn", k=(1, 5), headline=headline),)) for headline in (None, 5, 1)
    ]
    first, second, third = (evaluation_id(protocol, "a") for protocol in inside)
    assert first == second != third


def test_a_hierarchy_is_part_of_the_protocol() -> None:
    gates = Gates(kind="gates", hierarchy={"even": ["0", "2"], "odd": ["1"]})
    assert evaluation_id(gates, "a") != evaluation_id(Gates(kind="gates"), "a")


PLACED = ParquetData(source="parquet", train="/one/train", test="/one/test", fingerprint="f")


def transfer(data: dict[str, Any], **fields: Any) -> Evaluation:
    return Transfer(kind="transfer", data=data, **fields)


def test_a_dataset_to_transfer_to_counts_by_its_fingerprint() -> None:
    def of(data: Any, **changes: Any) -> str:
        return evaluation_id(transfer({"a": data.model_copy(update=changes)}), "a")

    elsewhere = {"train": "s3://two/a", "test": "s3://two/b", "image_column": "img", "label_column": "fine"}
    assert of(PLACED) == of(PLACED, **elsewhere)
    assert of(PLACED) != of(PLACED, fingerprint="g")
    assert of(PLACED) != of(PLACED, fraction=0.5)
    assert of(PLACED, fingerprint=None) != of(PLACED, **elsewhere, fingerprint=None), "without it, the place counts"
    pets = TorchvisionData(source="oxford_pets", fingerprint="f")
    assert of(pets) == of(pets, root="elsewhere", download=True)
    assert of(pets) != of(PLACED)

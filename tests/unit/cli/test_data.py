"""`simlap data`: a look at a dataset, and its conversion."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simlap import cli
from simlap.config import yaml
from tests.tiny import TREE


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", ["simlap", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    return run


def image_folders(root: Path) -> None:
    generator = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 3)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (10, 14, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")


def test_a_table_of_what_is_there(call, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("data", "digits") == 0
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines()]
    assert ["train", "1,260", "121", "130"] in rows
    assert ["8", "8", "121", "14", "39"] in rows
    assert ["channels", "1"] in rows
    assert "8x8 (1,400)" in shown


def test_what_is_converted_is_the_same_data(call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image_folders(tmp_path / "pets")
    sizes = ("--set", "data.image_size=8")
    assert call("data", "pets", *sizes, "--to", "shards", "--rows-per-shard", "10") == 0
    before = capsys.readouterr().out
    assert "24 train, 6 test images in 4 files" in before
    parquet = {"source": "parquet", "train": "shards/train", "test": "shards/test", "image_size": 8}
    (tmp_path / "pets.yaml").write_text(yaml.dump({**TREE, "data": parquet}))
    assert call("data", "pets.yaml") == 0
    after = capsys.readouterr().out
    for name in ("train", "val", "test", "mean", "std", "sizes,"):
        (one,), (other,) = (
            [row for row in text.splitlines() if row.split()[:1] == [name]][:1] for text in (before, after)
        )
        assert one.split() == other.split()


def test_damaged_images_are_listed_and_not_converted(call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image_folders(tmp_path / "pets")
    (tmp_path / "pets/train/cat/3.png").write_bytes(b"no image")
    assert call("data", "pets", "--to", "shards") == cli.FAILED
    captured = capsys.readouterr()
    assert "damaged: " in captured.out
    assert "3.png" in captured.out
    assert "damaged images: 1; nothing was converted" in captured.err
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.yaml"], ["nowhere.yaml", "no such file"]),
        (["cifra10"], ["neither an experiment file", "did you mean 'cifar10'"]),
        (["."], ["train and test"]),
        (["digits", "--set", "data.fractoin=0.1"], ["--set", "did you mean 'fraction'"]),
        (["digits", "--rows-per-shard", "0"], ["--rows-per-shard"]),
        (["svhn", "--root", "there"], ["svhn", "there"]),
        (["digits", "--root", "there"], ["--root", "'there'", "digits is none of them"]),
        ([".", "--root", "there"], ["--root", "'there'"]),
        (["small.yaml", "--root", "there"], ["--root", "'there'", "small.yaml"]),
    ],
)
def test_wrong_input(call, arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("data", *arguments) == cli.WRONG_INPUT
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    for word in words:
        assert word in captured.err

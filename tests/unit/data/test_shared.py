"""One decoded dataset for all processes: found, made once, kept within bounds, and never in the way."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from simlap.config.schema.data import DigitsData, ParquetData, Streaming
from simlap.data import inspect_data, load_splits, shared
from simlap.data.shared import cache_folder, shared_splits
from simlap.data.source import ImageSet
from simlap.data.splits import Splits
from simlap.errors import DataError

HOLD = """
import fcntl, os, sys, time
file = open(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), "r+b")
fcntl.flock(file, fcntl.LOCK_EX)
file.write(b"half of it")
file.flush()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMLAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SIMLAP_CACHE_GB", raising=False)


@pytest.fixture(name="decoded")
def _decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The datasets that were really decoded."""
    seen: list[str] = []

    def load(data: Any, **options: Any) -> Splits:
        seen.append(data.source)
        return load_splits(data, **options)

    monkeypatch.setattr(shared, "load_splits", load)
    return seen


def digits(**changes: Any) -> DigitsData:
    return DigitsData(source="digits", **changes)


def entries() -> list[str]:
    return sorted(path.name for path in cache_folder().iterdir())


def check_same(found: Splits, expected: Splits) -> None:
    for field in fields(Splits):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(other, ImageSet):
            for mine, theirs in ((one.images, other.images), (one.labels, other.labels)):
                assert mine.dtype == theirs.dtype, field.name
                assert torch.equal(mine, theirs), field.name
        else:
            assert one == other, field.name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"validation": "none"},
        {"classes": (3, 1), "fraction": 0.5, "stored_size": 12, "image_size": 10, "eval_size": 11},
        {"mean": (0.5,), "std": (0.25,)},
    ],
)
def test_what_is_found_is_what_was_decoded(changes: dict[str, Any], decoded: list[str]) -> None:
    data = digits(**changes)
    for _ in range(3):
        check_same(shared_splits(data), load_splits(data))
    assert decoded == ["digits"]


def test_channels_and_statistics_from_elsewhere(decoded: list[str]) -> None:
    options: dict[str, Any] = {"channels": 3, "mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 3.0)}
    for _ in range(2):
        check_same(shared_splits(digits(), **options), load_splits(digits(), **options))
    check_same(shared_splits(digits()), load_splits(digits()))
    assert len(decoded) == 2


def test_what_decoding_does_not_depend_on_is_shared(decoded: list[str]) -> None:
    shared_splits(digits())
    augmented = digits(augment={"flip": 0.9, "interpolation": "bicubic"}, repeated_augmentation=2, eval_size=9)
    found = shared_splits(augmented)
    assert decoded == ["digits"]
    assert (found.eval_size, found.interpolation) == (9, "bicubic"), "the experiment's own"


@pytest.mark.parametrize(
    "changes", [{"fraction": 0.5}, {"classes": (1, 2)}, {"validation": "none"}, {"image_size": 9}, {"stored_size": 9}]
)
def test_what_it_depends_on_is_not(changes: dict[str, Any], decoded: list[str]) -> None:
    shared_splits(digits())
    check_same(shared_splits(digits(**changes)), load_splits(digits(**changes)))
    assert len(decoded) == 2


def test_other_code_decodes_anew(decoded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shared_splits(digits())
    monkeypatch.setattr(shared, "_code", lambda: {"torch": "another"})
    shared_splits(digits())
    assert len(decoded) == 2


def test_writing_is_possible_and_seen_by_nobody_else() -> None:
    shared_splits(digits())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of memory that must not be written to
        mine, other = shared_splits(digits()), shared_splits(digits())
    assert mine.train.images.data_ptr() != other.train.images.data_ptr()
    mine.train.images.zero_()
    check_same(other, load_splits(digits()))
    check_same(shared_splits(digits()), load_splits(digits()))


def test_a_known_dataset_is_not_even_opened(tmp_path: Path, write: Any) -> None:
    train = write(tmp_path / "train.parquet", [0, 1] * 10, names=["a", "b"])
    test = write(tmp_path / "test.parquet", [0, 1], names=["a", "b"], first_row=50)
    data = ParquetData(source="parquet", train=str(train), test=str(test), image_size=8)
    known, before = inspect_data(data).fingerprint, shared_splits(data)
    train.unlink()
    check_same(shared_splits(data, known), before)
    write(train, [1, 0, 0] * 8, names=["a", "b"])
    check_same(shared_splits(data, known), before)
    assert len(shared_splits(data).train) != len(before.train), "asked for whatever is there"
    with pytest.raises(DataError, match="are others") as caught:
        shared_splits(data.model_copy(update={"fraction": 0.5}), known)
    assert caught.value.key == "data.fingerprint"
    assert caught.value.value == known


def test_a_streamed_dataset_is_left_alone(decoded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "load_splits", lambda data, **_: decoded.append("streamed"))
    shared_splits(digits(streaming=Streaming()))
    assert decoded == ["streamed"]
    assert not cache_folder().exists()


def test_switched_off(decoded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMLAP_CACHE", "off")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    for _ in range(2):
        shared_splits(digits())
    assert len(decoded) == 2
    assert not (tmp_path / "xdg").exists()


def test_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == tmp_path / "cache/decoded"
    monkeypatch.delenv("SIMLAP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/simlap/decoded")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path("/home/me/.cache/simlap/decoded")


def test_one_of_many_decodes_and_the_others_wait(decoded: list[str]) -> None:
    start, found = threading.Barrier(6), []

    def work() -> None:
        start.wait()
        found.append(shared_splits(digits()))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert decoded == ["digits"]
    for splits in found:
        check_same(splits, load_splits(digits()))


def _held(path: Path) -> subprocess.Popen[str]:
    """Another process that has claimed a file and is far from done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    return other


def _partial() -> Path:
    """The name under which the digits are made."""
    shared_splits(digits())
    (name,) = entries()
    (cache_folder() / name).unlink()
    return cache_folder() / name.replace(".splits", ".partial")


def test_a_maker_that_dies_leaves_no_lock(decoded: list[str], caplog: pytest.LogCaptureFixture) -> None:
    other = _held(_partial())
    killer = threading.Timer(0.3, other.kill)
    killer.start()
    check_same(shared_splits(digits()), load_splits(digits()))
    other.wait()
    assert other.stdout is not None
    other.stdout.close()
    assert len(decoded) == 2
    assert [name.rpartition(".")[2] for name in entries()] == ["splits"]
    assert caplog.text == ""


def test_who_waits_too_long_decodes_for_itself(
    decoded: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = _held(_partial())
    monkeypatch.setattr(shared, "WAIT_S", 0.1)
    with other, caplog.at_level(logging.WARNING):
        check_same(shared_splits(digits()), load_splits(digits()))
        other.kill()
    assert len(decoded) == 2
    assert "another process has been decoding" in caplog.text
    assert len(caplog.records) == 1


def _cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 4096)


def _flip(at: int) -> Any:
    def damage(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[at] ^= 1
        file.write_bytes(content)

    return damage


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (_cut, "bytes, not"),
        (lambda file: file.write_bytes(b""), "empty"),
        (lambda file: file.write_bytes(b"something else"), "does not begin"),
        (_flip(60), "header"),
        (_flip(3), "does not begin"),
        (_flip(30), "header"),
        (_flip(8192), "train.images have changed"),
        (_flip(-4000), "test.labels have changed"),
    ],
)
def test_a_damaged_file_is_made_again_loudly(
    damage: Any, word: str, decoded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    shared_splits(digits())
    (name,) = entries()
    damage(cache_folder() / name)
    check_same(shared_splits(digits()), load_splits(digits()))
    assert len(decoded) == 2
    assert word in caplog.text
    assert "damaged" in caplog.text
    shared_splits(digits())
    assert len(decoded) == 2
    assert entries() == [name]


def test_a_folder_that_cannot_be_used(decoded: list[str], caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    check_same(shared_splits(digits()), load_splits(digits()))
    assert decoded == ["digits"]
    assert "not shared" in caplog.text
    assert len(caplog.records) == 1


def test_a_folder_that_can_only_be_read(
    decoded: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared_splits(digits())

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(os, "open", refuse)
    shared_splits(digits())
    assert len(decoded) == 1, "what is there is used"
    assert caplog.text == ""
    shared_splits(digits(fraction=0.5))
    assert len(decoded) == 2
    assert "read-only" in caplog.text


def test_a_disk_that_is_full(
    decoded: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared, "write_splits", full)
    check_same(shared_splits(digits()), load_splits(digits()))
    assert decoded == ["digits"], "what was decoded is used"
    assert entries() == []
    assert "No space left" in caplog.text


def test_an_error_of_the_data_is_the_callers(decoded: list[str]) -> None:
    data = digits(classes=(1, 77))
    for _ in range(2):
        with pytest.raises(DataError, match="no such label"):
            shared_splits(data, inspect_data(digits()).fingerprint)
    assert entries() == []


def _age(name: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(cache_folder() / name, (then, then))


def _gb(files: float) -> str:
    """A limit that so many files of the digits fit into."""
    return str(files * (1797 * 64 + 1797 * 8 + 22 * 4096) / 1e9)


def test_what_was_not_used_for_longest_makes_room(monkeypatch: pytest.MonkeyPatch, decoded: list[str]) -> None:
    monkeypatch.setenv("SIMLAP_CACHE_GB", _gb(2.1))
    names: list[str] = []
    for split_seed in (0, 1):
        shared_splits(digits(validation={"split_seed": split_seed}))
        names += [name for name in entries() if name not in names]
    for name in names:
        _age(name, 1000)
    shared_splits(digits())  # used again: the other one is older now
    (cache_folder() / "dead.partial").write_bytes(b"left behind")
    shared_splits(digits(validation={"split_seed": 2}))
    assert len(entries()) == 2
    assert names[0] in entries()
    assert names[1] not in entries()
    assert len(decoded) == 3


def test_what_is_in_use_is_not_removed(
    monkeypatch: pytest.MonkeyPatch, decoded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    used = shared_splits(digits())
    monkeypatch.setenv("SIMLAP_CACHE_GB", _gb(1.1))
    other = digits(validation={"split_seed": 1})
    check_same(shared_splits(other), load_splits(other))
    assert len(entries()) == 1
    assert "in use" in caplog.text
    del used
    shared_splits(other)
    shared_splits(other)
    assert len(decoded) == 3
    assert len(entries()) == 1


@pytest.mark.parametrize("limit", ["0", "none"])
def test_a_limit_that_nothing_fits_into(
    limit: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SIMLAP_CACHE_GB", limit)
    check_same(shared_splits(digits()), load_splits(digits()))
    assert entries() == []
    assert "not shared" in caplog.text


def test_a_fifth_of_the_disk_is_the_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Disk(400_000))
    shared_splits(digits())
    assert entries() == []
    assert "which may hold 0.00 GB" in caplog.text


class _Disk:
    def __init__(self, free: int) -> None:
        self.free = free

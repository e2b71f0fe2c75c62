"""Whole objects in a folder, on any file system."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from simlap.errors import UserError
from simlap.storage import Storage, expect_an_answer


@pytest.mark.parametrize("folder", ["plain", "with space", "what?", "50%"])
def test_objects(tmp_path: Path, folder: str) -> None:
    storage = Storage(tmp_path / folder)
    assert storage.list() == []
    assert not storage.exists("a/b")
    storage.write("a/b", b"one")
    storage.write("a/b", b"two")
    assert storage.read("a/b") == b"two"
    assert storage.child("a").read("b") == b"two"
    assert storage.list("a") == ["b"]
    assert (tmp_path / folder / "a" / "b").read_bytes() == b"two"
    storage.delete("a")
    storage.delete("a")
    assert storage.list() == []
    with pytest.raises(FileNotFoundError):
        storage.read("a/b")


def test_what_is_there_is_not_created_again(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    assert storage.create("a/b", b"one")
    assert not storage.create("a/b", b"two")
    assert storage.read("a/b") == b"one"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"], "nothing temporary is left"
    storage.delete("a/b")
    assert storage.create("a/b", b"two")


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(tmp_path)
    storage.write("x", b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("simlap.storage.os.fsync", full)
    with pytest.raises(OSError, match=r"no space left: .* needs 3 bytes"):
        storage.write("x", b"new")
    assert storage.read("x") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"], "no temporary file is left"


def test_it_travels(tmp_path: Path) -> None:
    storage = pickle.loads(pickle.dumps(Storage(tmp_path)))
    storage.write_json("a", {"b": [1, 2.5, None]})
    assert Storage(tmp_path).read_json("a") == {"b": [1, 2.5, None]}


def test_a_query_stays_at_the_end() -> None:
    storage = Storage("s3://bucket/path?region=us-east-1&scheme=http&endpoint_override=127.0.0.1%3A1")
    assert storage.child("a", "b").uri.startswith("s3://bucket/path/a/b?region=us-east-1")
    assert storage.local_path("x") is None


def test_an_unknown_scheme_is_an_error() -> None:
    with pytest.raises(UserError, match="nowhere://x"):
        Storage("nowhere://x")


def test_a_folder_made_while_it_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow looks twice: what is made between its two looks is an error to it, though none is asked for."""
    storage = Storage(tmp_path)
    file_system = storage._fs

    class MadeMeanwhile:
        def get_file_info(self, selector: Any) -> Any:
            monkeypatch.setattr(storage, "_fs", file_system)
            storage.write("cells/a", b"one")
            raise FileNotFoundError("Cannot list directory")

    monkeypatch.setattr(storage, "_fs", MadeMeanwhile())
    assert storage.list("cells") == ["a"]


def test_a_storage_elsewhere_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(tmp_path)
    monkeypatch.setattr(Storage, "is_local", False)
    monkeypatch.setattr("simlap.storage._PAUSES_S", (0.0, 0.0))
    done: list[int] = []

    def fails(times: int, error: OSError) -> str:
        done.append(1)
        if len(done) <= times:
            raise error
        return "done"

    assert storage._trying("x", lambda: fails(2, OSError("AWS Error SLOW_DOWN (HTTP status 503)"))) == "done"
    for error, tries in (
        (OSError("AWS Error SLOW_DOWN (HTTP status 503)"), 3),
        (FileNotFoundError("x"), 1),
        (OSError("AWS Error NO_SUCH_BUCKET during PutObject"), 1),
    ):
        done.clear()
        with pytest.raises(type(error), match=str(error)[:5]):
            storage._trying("x", lambda error=error: fails(99, error))  # type: ignore[misc]
        assert len(done) == tries


def test_who_never_answered_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its address may be wrong: a command says so at once. Once it has answered, it is asked again."""
    storage = Storage(tmp_path)
    monkeypatch.setattr(Storage, "is_local", False)
    monkeypatch.setattr("simlap.storage._PAUSES_S", (0.0, 0.0))
    tries = 0

    def fails(times: int, error: OSError) -> str:
        nonlocal tries
        tries += 1
        if tries <= times:
            raise error
        return "done"

    away = OSError("AWS Error NETWORK_CONNECTION")
    monkeypatch.setattr("simlap.storage._unproven", False)
    expect_an_answer()
    with pytest.raises(UserError, match=r"storage '.*' does not answer, or refuses: AWS Error NETWORK"):
        storage._trying("x", lambda: fails(99, away))
    assert tries == 1
    tries = 0
    with pytest.raises(FileNotFoundError):
        storage._trying("x", lambda: fails(99, FileNotFoundError("x")))
    tries = 0
    assert storage._trying("x", lambda: fails(2, away)) == "done", "that was an answer"

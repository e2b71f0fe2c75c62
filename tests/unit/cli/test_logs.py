"""`simlap logs`: which run is meant, and what is shown of it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from simlap.cli.app import app
from simlap.cli.logs import find_cell
from simlap.errors import UserError
from simlap.record.journal import Journal, cell_storage
from simlap.storage import Storage

IDS = ["a1b2c3d4", "a1ffffff", "e5f6a7b8"]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    store = Storage(tmp_path)
    for cell_id in IDS:
        journal(store, cell_id, 1).start(0, 0, {})
    arm = {"name": "filter=on", "cells": [{"cell_id": IDS[0], "seed": 0}, {"cell_id": IDS[1], "seed": 7}]}
    store.child("studies", "filter").write_json("plan.json", {"arms": [arm]})
    return store


def journal(storage: Storage, cell_id: str, attempt: int) -> Journal:
    return Journal(cell_storage(storage, cell_id), writer="test", attempt=attempt)


def shown(storage: Storage, *arguments: str) -> str:
    result = CliRunner().invoke(app, ["logs", *arguments, "--storage", storage.uri], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize(
    ("words", "cell_id"),
    [
        (["a1b2c3d4"], IDS[0]),
        (["e5"], IDS[2]),
        (["filter", "filter=on", "0"], IDS[0]),
        (["filter", "filter=on", "7"], IDS[1]),
    ],
)
def test_the_run_that_is_meant(storage: Storage, words: list[str], cell_id: str) -> None:
    assert find_cell(storage, words) == cell_id


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a1b2c3d5"], "no such run.*did you mean 'a1b2c3d4'"),
        (["a1"], "several runs begin like this.*a1b2c3d4, a1ffffff"),
        (["filtre", "filter=on", "0"], "no such study.*did you mean 'filter'"),
        (["filter", "filter=onn", "0"], "no such arm.*did you mean 'filter=on'"),
        (["filter", "filter=on", "1"], "no such seed.*Valid: 0, 7"),
        (["filter", "filter=on"], "give the id of a run, or a study, an arm and a seed"),
    ],
)
def test_a_run_that_is_not_there(storage: Storage, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_cell(storage, words)


def test_the_newest_attempt_or_the_one_that_is_asked_for(storage: Storage) -> None:
    folder = cell_storage(storage, IDS[0])
    journal(storage, IDS[0], 2).start(1, 0, {})
    folder.write("logs/0001.log", b"first\n")
    folder.write("logs/0002.log", b"[100 earlier bytes are left out]\nsecond\n")
    folder.write("logs/0002-rank1.log", b"of the other worker\n")
    assert shown(storage, IDS[0]) == "second\n"
    assert shown(storage, IDS[0], "--attempt", "1") == "first\n"
    assert shown(storage, IDS[0], "--rank", "1") == "of the other worker\n"
    with pytest.raises(UserError, match=r"no such attempt.*Valid: 1, 2"):
        shown(storage, IDS[0], "--attempt", "3")


def test_a_process_that_died_without_a_word(storage: Storage) -> None:
    journal(storage, IDS[0], 1).end("failed", 0, reason="the process died", error="ActorDiedError: killed")
    assert shown(storage, IDS[0]) == "nothing was printed; the journal says:\nActorDiedError: killed\n"


def test_following_ends_with_the_run(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte once, though the object is written anew as a whole and its beginning goes."""
    monkeypatch.setattr("simlap.cli.logs.POLL_S", 0.01)
    folder = cell_storage(storage, IDS[0])
    folder.write("logs/0001.log", b"one\n")

    def go_on() -> None:
        time.sleep(0.1)
        folder.write("logs/0001.log", b"one\ntwo\n")
        time.sleep(0.1)
        folder.write("logs/0001.log", b"[4 earlier bytes are left out]\ntwo\nthree\n")
        journal(storage, IDS[0], 1).end("done", 1)

    thread = threading.Thread(target=go_on)
    thread.start()
    found = shown(storage, IDS[0], "--follow")
    thread.join()
    assert found == "one\ntwo\nthree\n"

"""What is said of nodes that are not like the driver."""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle

import simlap
from simlap.errors import UserError
from simlap.run import nodes
from simlap.run.nodes import Facts, Member, check_size, complaints, lacking, members, refuse
from simlap.storage import Storage

OWN = Facts("3.12", "0.1.0", "aaaa", "/home/me/simlap", "2.15.0+cu130")


def node(name: str, address: str, **changes: Any) -> dict[str, Any]:
    return {"NodeID": name, "NodeManagerAddress": address, "Alive": True, "Resources": {"CPU": 4.0}, **changes}


def test_nodes_that_cells_can_run_on() -> None:
    found = members(
        [
            node("a" * 56, "10.0.0.1", Resources={"memory": 1.0}),  # a head
            node("b" * 56, "10.0.0.2"),
            node("c" * 56, "10.0.0.3", Alive=False),
            node("d" * 56, "10.0.0.4", Resources={"GPU": 1.0}),
            node("e" * 56, "10.0.0.5", Resources={"CPU": 0.0}),
        ]
    )
    assert found == [Member("b" * 56, "10.0.0.2"), Member("d" * 56, "10.0.0.4")]


def test_nodes_of_one_address_are_told_apart() -> None:
    found = members([node("a" * 56, "10.0.0.1"), node("b" * 56, "10.0.0.1"), node("c" * 56, "10.0.0.2")])
    assert [one.label for one in found] == ["10.0.0.1 (node aaaaaaaa)", "10.0.0.1 (node bbbbbbbb)", "10.0.0.2"]


@pytest.mark.parametrize(
    "facts",
    [OWN, replace(OWN, torch="2.15.0+cpu"), replace(OWN, place="/opt/simlap"), Facts("3.12", torch="2.15.0")],
    ids=["equal", "torch for another device", "elsewhere", "no simlap, which is sent"],
)
def test_no_complaint(facts: Facts) -> None:
    assert complaints("/runs", OWN, {"10.0.0.2": facts}) == []
    refuse([])


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (
            replace(OWN, simlap="0.0.9"),
            ["have another simlap than this machine (0.1.0, source aaaa", "0.0.9", "same commit"],
        ),
        (replace(OWN, code="bbbb", place="/opt/simlap"), ["  10.0.0.3: 0.1.0, source bbbb, in /opt/simlap"]),
        (replace(OWN, python="3.11"), ["another Python than this machine (3.12)", "  10.0.0.3: 3.11"]),
        (Facts("3.11", torch="2.15.0"), ["another Python"]),  # sending simlap there would not help
        (replace(OWN, torch="2.14.1"), ["another torch than this machine (2.15.0+cu130)", "  10.0.0.3: 2.14.1"]),
        (replace(OWN, torch=None), ["  10.0.0.3: none", "constraints.txt"]),
        (
            replace(OWN, storage="FileNotFoundError: no such file"),
            ["do not share --storage /runs", "  10.0.0.3: FileNotFoundError: no such file", "NFS", "s3://bucket/runs"],
        ),
        ("nothing within 120 s", ["did not answer", "  10.0.0.3: nothing within 120 s"]),
    ],
)
def test_complaints(facts: Facts | str, words: list[str]) -> None:
    (text,) = complaints("/runs", OWN, {"10.0.0.2": OWN, "10.0.0.3": facts})
    assert text.startswith("1 of 2 nodes")
    assert "10.0.0.2" not in text
    for word in words:
        assert word in text
    with pytest.raises(UserError, match="not alike"):
        refuse([text])


def test_everything_is_said_at_once() -> None:
    found: dict[str, Facts | str] = {
        "a": replace(OWN, python="3.11", code="x"),
        "b": replace(OWN, storage="OSError: denied"),
        "c": "no answer",
    }
    assert [text.splitlines()[1] for text in complaints("s3://b/runs", OWN, found)] == [
        "  c: no answer",
        "  a: 0.1.0, source x, in /home/me/simlap",
        "  a: 3.11",
        "  b: OSError: denied",
    ]


def test_no_password_is_shown() -> None:
    denied = replace(OWN, storage="OSError: s3://key:secret@b/runs: denied")
    (text,) = complaints("s3://key:secret@b/runs", OWN, {"a": denied})
    assert "secret" not in text


def test_nodes_without_simlap() -> None:
    assert lacking({"a": OWN, "b": Facts("3.12"), "c": "no answer"}) == ["b"]


def test_what_is_too_large_to_be_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_size(nodes.PACKAGE)  # ours is not
    monkeypatch.setattr(nodes, "MAX_MIB", 1)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/compiled.pyc").write_bytes(bytes(2**21))
    (tmp_path / "code.py").write_bytes(bytes(2**19))
    check_size(tmp_path)
    (tmp_path / "weights.bin").write_bytes(bytes(2**20))
    with pytest.raises(UserError, match=r"2 MiB, at most 1\..*weights\.bin"):
        check_size(tmp_path)


def test_the_question_is_sent_whole(tmp_path: Path) -> None:
    """A process that has no simlap can be asked, and one that has it finds what this one does."""
    question = tmp_path / "question"
    question.write_bytes(cloudpickle.dumps(nodes._question()))
    script = (
        "import pickle, sys; sys.path[:] = [p for p in sys.path if p not in sys.argv[2].split(':')]; "
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]; "
        "print(pickle.loads(open(sys.argv[1], 'rb').read())('', '', ''))"
    )
    hidden = ":".join(entry for entry in ["", *sys.path] if (Path(entry) / "simlap/__init__.py").exists())
    done = subprocess.run(
        [sys.executable, "-c", script, question, hidden], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    own = nodes._question()("", "", "")
    assert ast.literal_eval(done.stdout) == {"python": own["python"], "torch": own["torch"]}
    assert own["simlap"] == simlap.__version__
    assert own["place"] == str(nodes.PACKAGE)
    assert pickle.loads(question.read_bytes())("", "", "") == own


def test_the_round_trip_over_the_storage(tmp_path: Path) -> None:
    look = nodes._question()
    (tmp_path / "marker").write_text("token")
    assert "storage" not in look(str(tmp_path), "marker", "answer")
    assert (tmp_path / "answer").read_text() == "token"
    (tmp_path / "folder").mkdir()
    assert look(str(tmp_path), "marker", "folder")["storage"].startswith("IsADirectoryError")


def test_a_node_that_has_just_died_is_asked_again_until_it_is_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ray goes on listing it for a while; what is sent there fails."""
    well, dying, back = (Member(letter * 56, f"10.0.0.{letter}") for letter in "123")
    answers: list[dict[str, Facts | str]] = [
        {well.label: OWN, dying.label: "ActorDiedError", back.label: "OutOfMemoryError"},
        {dying.label: "ActorDiedError", back.label: OWN},
        {},
    ]
    asked: list[list[Member]] = []

    def ask(nodes: Sequence[Member], storage: Storage) -> dict[str, Facts | str]:
        asked.append(list(nodes))
        return answers[len(asked) - 1]

    monkeypatch.setattr(nodes, "_ask_once", ask)
    monkeypatch.setattr("simlap.run.nodes.time.sleep", lambda seconds: None)
    assert nodes._ask([well, dying, back], Storage(tmp_path)) == {well.label: OWN, back.label: OWN}
    assert asked == [[well, dying, back], [dying, back], [dying]]

    asked.clear()
    monkeypatch.setattr(nodes, "_LEAVING_S", 0.0)
    assert nodes._ask([well, dying, back], Storage(tmp_path)) == answers[0], "told, in the end"

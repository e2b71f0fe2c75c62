"""Which code a run's numbers are of, from what its attempts left."""

from __future__ import annotations

from typing import Any

import pytest

from simlap.record.attempts import codes_of, start_rerun_of

Row = dict[str, Any]


def start(epoch: int, code: str | None, step: int = 0) -> Row:
    provenance = {} if code is None else {"code": code}
    return {"type": "start", "from_epoch": epoch, "from_step": step, "provenance": provenance}


def epochs(*numbers: int) -> list[Row]:
    return [{"type": "metrics", "epoch": number} for number in numbers]


def end(state: str, epoch: int) -> Row:
    return {"type": "end", "state": state, "epoch": epoch}


@pytest.mark.parametrize(
    ("rows", "codes"),
    [
        ([], []),
        ([start(0, "a"), *epochs(1, 2), end("done", 2)], ["a"]),
        ([start(0, "a"), *epochs(1), start(1, "b"), *epochs(2), end("done", 2)], ["a", "b"]),
        ([start(0, "a"), *epochs(1), start(1, "b"), *epochs(2), start(2, "a"), *epochs(3)], ["a", "b"]),
        ([start(0, "a"), *epochs(1), start(0, "b"), *epochs(1, 2)], ["b"]),  # no checkpoint: begun anew
        ([start(0, "a"), *epochs(1), start(0, "b")], []),  # what b will do is not there yet
        ([start(0, "a"), *epochs(1), start(1, "b"), *epochs(2, 3), start(1, "c"), *epochs(2)], ["a", "c"]),
        ([start(0, "a"), *epochs(1, 2, 3), start(3, "b"), start(3, "c"), *epochs(4)], ["a", "c"]),
        ([start(0, "a"), end("failed", 0), start(0, "b"), *epochs(1)], ["b"]),
        ([start(0, "a"), end("interrupted", 0), start(0, "b", step=3), *epochs(1)], ["a", "b"]),  # in its first epoch
        ([start(0, "a"), end("interrupted", 0)], ["a"]),
        ([start(0, "a"), *epochs(1, 2), start(2, "b"), end("done", 2)], ["a", "b"]),  # b evaluated what a trained
        ([start(0, "a"), *epochs(1, 2), end("done", 2), start(2, "b"), end("done", 2)], ["a"]),  # evaluated once more
        ([start(0, "a"), *epochs(1, 2), end("done", 2), start(2, "b"), start(2, "c"), end("done", 2)], ["a"]),
        ([start(0, "a"), *epochs(1, 2), end("done", 2), start(0, "b"), *epochs(1)], ["b"]),  # its result was lost
        ([start(0, None), *epochs(1), start(1, "b"), *epochs(2)], ["b"]),  # not noted in those days
        ([end("failed", 0)], []),  # its worker never began
    ],
)
def test_codes_of_what_counts(rows: list[Row], codes: list[str]) -> None:
    assert codes_of(rows) == codes


def test_the_stage_that_counts_is_the_one_of_the_last_beginning() -> None:
    def noted(epoch: int, times: int | None, step: int = 0) -> Row:
        return {**start(epoch, "a", step), "provenance": {} if times is None else {"start_rerun": times}}

    assert start_rerun_of([]) is None
    assert start_rerun_of([noted(0, None), *epochs(1), noted(1, 1)]) is None, "begun when nobody noted it"
    assert start_rerun_of([noted(0, 0), *epochs(1), noted(1, 1), end("done", 3)]) == 0
    assert start_rerun_of([noted(0, 0), end("interrupted", 0), noted(0, 1, step=3)]) == 0
    assert start_rerun_of([noted(0, 0), *epochs(1), noted(0, 1), *epochs(1)]) == 1

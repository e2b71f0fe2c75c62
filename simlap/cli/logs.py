"""`simlap logs`: what a cell printed."""

from __future__ import annotations

import difflib
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from simlap.cli.app import StorageOption, app
from simlap.errors import UserError

if TYPE_CHECKING:
    from simlap.storage import Storage

POLL_S = 1.0


@app.command()
def logs(
    cell: Annotated[list[str], typer.Argument(help='Id of a run (or its beginning); or STUDY "ARM" SEED.')],
    storage: StorageOption = "./runs",
    attempt: Annotated[
        int | None, typer.Option("--attempt", help="Which attempt (default: the newest).", min=1)
    ] = None,
    rank: Annotated[int, typer.Option("--rank", help="Which worker of a group.", min=0)] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
) -> None:
    """Show what a run printed: output, warnings, tracebacks."""
    from simlap.record.journal import cell_storage
    from simlap.storage import Storage

    store = Storage(storage)
    cell_id = find_cell(store, cell)
    folder = cell_storage(store, cell_id)
    if not follow:
        number = _attempt(folder, attempt)
        _, text = _read(folder, number, rank)
        _show(text if text else _end_of(folder, number))
        return
    number, seen = _attempt(folder, attempt), 0
    while True:
        ended = _ended(store, cell_id)  # asked before reading: what was printed until then is read below
        if attempt is None and _attempt(folder, None) > number:
            number, seen = _attempt(folder, None), 0
            _show(f"--- attempt {number} ---\n".encode())
        first, text = _read(folder, number, rank)
        _show(text[max(0, seen - first) :])
        seen = first + len(text)
        if ended:
            if not seen:
                _show(_end_of(folder, number))
            return
        time.sleep(POLL_S)


def find_cell(storage: Storage, words: list[str]) -> str:
    """The cell id that is meant. Raises UserError, with what is near."""
    match words:
        case [word]:
            known = storage.list("cells")
            matches = [cell_id for cell_id in known if cell_id.startswith(word)]
            if word in known or len(matches) == 1:
                return word if word in known else matches[0]
            near = matches[:5] or difflib.get_close_matches(word, known, n=5, cutoff=0.4)
            message = "several runs begin like this" if matches else "no such run"
            raise UserError(message, file=storage.describe("cells"), value=word, choices=near)
        case [study, arm, seed]:
            try:
                arms = storage.child("studies", study).read_json("plan.json")["arms"]
            except FileNotFoundError:
                place, known = storage.describe("studies"), storage.list("studies")
                raise UserError("no such study", file=place, value=study, choices=known) from None
            cells = next((found["cells"] for found in arms if found["name"] == arm), None)
            if cells is None:
                raise UserError("no such arm", file=f"study {study}", value=arm, choices=[a["name"] for a in arms])
            by_seed: dict[str, str] = {str(found["seed"]): found["cell_id"] for found in cells}
            if seed not in by_seed:
                raise UserError("no such seed", file=f"study {study}: {arm}", value=seed, choices=list(by_seed))
            return by_seed[seed]
        case _:
            raise UserError('give the id of a run, or a study, an arm and a seed (`simlap logs filter "filter=on" 0`)')


def _attempt(folder: Storage, wanted: int | None) -> int:
    """The attempt whose log is wanted. Raises UserError where it was never made."""
    from simlap.record.journal import next_attempt
    from simlap.run.logs import list_logs

    logged = {int(name[:4]) for name in list_logs(folder)}
    last = max([next_attempt(folder) - 1, *logged])
    if wanted is None or (1 <= wanted <= last):
        return last if wanted is None else wanted
    made = [str(number) for number in range(1, last + 1)]
    raise UserError("no such attempt", file=folder.describe(), key="--attempt", value=wanted, choices=made)


def _read(folder: Storage, attempt: int, rank: int) -> tuple[int, bytes]:
    """How much came before, and the text; nothing where nothing was printed (yet)."""
    from simlap.run.logs import log_name, read_log

    try:
        return read_log(folder, log_name(attempt, rank).removeprefix("logs/"))
    except FileNotFoundError:
        return 0, b""


def _end_of(folder: Storage, attempt: int) -> bytes:
    """What the journal has of an attempt that printed nothing: of a process that died, for one."""
    from simlap.record.journal import read_rows

    rows = [row for row in read_rows(folder) if row["attempt"] == attempt]
    ends = [row for row in rows if row["type"] == "end"]
    if ends and (ends[-1].get("error") or ends[-1].get("reason")):
        return f"nothing was printed; the journal says:\n{ends[-1].get('error') or ends[-1]['reason']}\n".encode()
    return f"attempt {attempt}: nothing was printed\n".encode()


def _ended(storage: Storage, cell_id: str) -> bool:
    from simlap.record.journal import cell_storage, read_rows

    rows = read_rows(cell_storage(storage, cell_id))
    return bool(rows) and rows[-1]["type"] == "end"


def _show(text: bytes) -> None:
    if text:
        sys.stdout.write(text.decode(errors="replace") + ("" if text.endswith(b"\n") else "\n"))
        sys.stdout.flush()

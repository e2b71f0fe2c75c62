"""`simlap gc`: what no study needs any more."""

from __future__ import annotations

from typing import Annotated

import typer

from simlap.cli.app import StorageOption, app
from simlap.cli.output import out


@app.command()
def gc(
    storage: StorageOption = "./runs",
    delete: Annotated[bool, typer.Option("--delete", help="Delete what is listed.")] = False,
    removed: Annotated[
        bool, typer.Option("--removed", help="Also cells of arms and seeds that their study file has no more.")
    ] = False,
) -> None:
    """List what no study needs: cells in no study, superseded checkpoints of finished runs. Delete it with --delete."""
    from simlap.storage import Storage
    from simlap.study import gc as collector

    store = Storage(storage)
    found = collector.find_leftovers(store, removed=removed)
    for leftover in found:
        line = f"{leftover.bytes / 2**20:9.1f} MiB  {leftover.path}  ({leftover.why})"
        out.print(line, soft_wrap=True, markup=False, highlight=False)
    total = sum(leftover.bytes for leftover in found) / 2**20
    if not found:
        out.print("nothing to delete")
    elif delete:
        collector.delete(store, found)
        out.print(f"deleted {total:.1f} MiB", highlight=False)
    else:
        out.print(f"{total:.1f} MiB in {len(found)} places; add --delete to delete them", highlight=False)

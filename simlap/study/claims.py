"""One launch at a time runs a cell, also where several studies have it.

A claim, `cells/<id>/claim.json`, names a launch; whether that is alive its study's lease says (`simlap.study.lease`), whose
counter is watched and compared with no clock. So a claim costs one small object to make and one to remove, nothing beats for
every cell, and what a dead launch has left behind is void at once. Where two launches make a claim at the same moment on a
storage that cannot create an object exclusively, attempts are fences, as ever.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from simlap.record.journal import cell_storage
from simlap.storage import Storage
from simlap.study.lease import BEAT_S, POLLS, Lease, is_dead

CLAIM = "claim.json"
"""In a run directory."""


@dataclass(frozen=True)
class Holder:
    """A launch that has claimed a cell."""

    token: str
    """Of its lease."""
    study: str
    host: str
    pid: int

    def __str__(self) -> str:
        return f"study {self.study}, process {self.pid} on {self.host}"


class Claims:
    """The claims of one launch, which holds a lease.

    Args:
        storage: that holds `cells/` and `studies/`.
        study: name of the launch's own.
        lease: that it holds.
        clock: seconds; for tests.
    """

    def __init__(self, storage: Storage, study: str, lease: Lease, *, clock: Callable[[], float] = time.monotonic):
        self._storage, self._clock, self.lease = storage, clock, lease
        self._own = Holder(lease.token, study, socket.gethostname(), os.getpid())
        self._looked: dict[str, tuple[int, float]] = {}
        """Token -> its lease's counter, and when that was first seen."""

    @property
    def is_void(self) -> bool:
        """Whether another launch has taken the study over, and with it all that this one has claimed."""
        return self.lease.is_lost()

    def take(self, cell_id: str) -> Holder | None:
        """Claim a cell. Returns None where this launch has it now, else who has."""
        cell = cell_storage(self._storage, cell_id)
        mine = json.dumps(vars(self._own)).encode()
        created = cell.create(CLAIM, mine)
        if created and cell.is_local:
            return None
        found = self._read(cell_id)
        if found is not None and found.token != self._own.token:
            if self._is_alive(found):
                return found
            cell.write(CLAIM, mine)
            found = self._read(cell_id)  # another one may have taken over at the same moment
        elif found is None:  # it has just been given back
            return None if cell.create(CLAIM, mine) else self.holder(cell_id)
        return None if found is None or found.token == self._own.token else found

    def take_from_dead(self, cell_id: str) -> Holder | None:
        """As `take`, but waits until it is known whether who has the cell is alive: one that died elsewhere first looks so."""
        seen: dict[str, tuple[int, float] | None] = {}
        while (holder := self.take(cell_id)) is not None:
            looked = self._looked.get(holder.token)
            if seen.setdefault(holder.token, looked) != looked:
                return holder
            time.sleep(BEAT_S / 10)
        return None

    def release(self, cell_id: str) -> None:
        """Give a cell back, if this launch has it."""
        found = self._read(cell_id)
        if found is not None and found.token == self._own.token:
            cell_storage(self._storage, cell_id).delete(CLAIM)

    def holder(self, cell_id: str) -> Holder | None:
        """Another launch that is alive, as far as is known, and has the cell."""
        found = self._read(cell_id)
        other = found is not None and found.token != self._own.token
        return found if found is not None and other and self._is_alive(found) else None

    def is_abandoned(self, cell_id: str) -> bool:
        """Whether another launch had the cell when it died."""
        found = self._read(cell_id)
        return found is not None and found.token != self._own.token and not self._is_alive(found)

    def _read(self, cell_id: str) -> Holder | None:
        try:
            return Holder(**cell_storage(self._storage, cell_id).read_json(CLAIM))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):  # not whole: whoever wrote it is gone, for objects appear as a whole
            return Holder("", "", "", 0)

    def _is_alive(self, holder: Holder) -> bool:
        """Whether the holder's lease is still its own and its counter has moved of late. Alive until that is known."""
        try:
            lease = self._storage.child("studies", holder.study).read_json("lease.json") if holder.study else {}
        except FileNotFoundError:
            return False
        if lease.get("token") != holder.token or is_dead(lease):
            return False
        now = self._clock()
        counter, since = self._looked.get(holder.token, (None, now))
        if counter != lease["counter"]:
            self._looked[holder.token] = (lease["counter"], now)
            return True
        return now - since <= POLLS * BEAT_S

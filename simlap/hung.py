"""How long what stands still is waited for."""

from __future__ import annotations

import os

from simlap.errors import UserError

VARIABLE = "SIMLAP_HUNG_S"
_DEFAULT_S = 600.0


def hung_s() -> float:
    """Seconds after which workers that wait for another one, a worker that does not answer, or a cell that does not report are
    taken for hung: `$SIMLAP_HUNG_S`, else 600. Raises UserError."""
    given = os.environ.get(VARIABLE, str(_DEFAULT_S))
    try:
        found = float(given)
    except ValueError:
        found = 0.0
    if not 1.0 <= found < float("inf"):
        raise UserError("must be a number of seconds, at least 1", key=VARIABLE, value=given)
    return found

"""What a worker group needs before it trains."""

from __future__ import annotations

import subprocess
import sys


def test_who_only_starts_a_group_does_not_load_what_trains() -> None:
    """Train's controller and a study's driver load the module; each would take two seconds longer."""
    loaded = (
        "import sys, simlap.run.launch; print([m for m in ('simlap.train.loop', 'torch._dynamo') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == "[]"

"""What every test starts from: one torch thread, fixed seeds, none of the caller's settings, no telemetry."""

from __future__ import annotations

import atexit
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Iterator

import hypothesis
import numpy as np
import pytest

_CACHE = tempfile.mkdtemp(prefix="simlap-test-cache-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
# before torch, Ray or MLflow are imported, and inherited by the processes that tests start
os.environ.update(
    SIMLAP_CACHE=_CACHE,
    OMP_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    MLFLOW_DISABLE_TELEMETRY="true",
    RAY_USAGE_STATS_ENABLED="0",
)
for _name in [name for name in os.environ if name in {"RAY_ADDRESS"} or name.startswith(("MLFLOW_TRACKING_", "AWS_"))]:
    del os.environ[_name]
# a shell starts what runs in the background with SIGINT ignored, which what we interrupt would inherit
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import torch  # noqa: E402

torch.set_num_threads(1)

# the same examples on every machine; HYPOTHESIS_PROFILE=search looks for new ones
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=50, database=None)
hypothesis.settings.register_profile("search", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(autouse=True)
def _seeds() -> Iterator[None]:
    """The global generators at fixed seeds, and torch's settings as they were once the test is over."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    dtype, deterministic = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(1)
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # the setter imports the compiler: seconds
        torch.use_deterministic_algorithms(deterministic)

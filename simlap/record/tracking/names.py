"""What MLflow accepts: names, lengths, numbers, batch sizes. Anything else rejects a whole batch or is cut silently."""

from __future__ import annotations

import hashlib
import json
import math
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

MAX_PARAM = 6_000
MAX_TAG = 8_000
MAX_KEY = 250
MAX_PER_BATCH = 100
"""Params, and tags, per request."""
MAX_METRICS = 800
"""Metrics per request: the limit is 1,000, and 1,000 for metrics, params and tags together."""
MAX_BYTES = 300_000
"""Text of params, and of tags, per request: the limit is 1 MB for all."""

_REFUSED = re.compile(r"[^/\w.\- ]")


class Point(NamedTuple):
    """One value of a metric. `step` is the epoch, `time_ms` when it was measured."""

    key: str
    value: float
    time_ms: int
    step: int


def safe_name(name: str) -> str:
    """A metric, param or tag name that MLflow accepts. A changed one gets a short hash: two never become one."""
    safe = _REFUSED.sub("_", name)
    if posixpath.normpath(safe) != safe or safe.startswith(("/", "..")) or safe == ".":
        safe = "/".join(part for part in safe.split("/") if part not in ("", ".", "..")) or "_"
    if len(safe) > MAX_KEY:
        safe = safe[: MAX_KEY - 7].rstrip("/")
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted keys with text values: `{"a": {"b": 1}}` -> `{"a.b": "1"}`. Lists become JSON."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return flat


def clip(text: str, limit: int) -> str:
    """Text of at most `limit` characters; what was cut ends with an ellipsis."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics under accepted names without NaN and infinities (MLflow turns those into ±1.8e308)."""
    return {safe_name(key): float(value) for key, value in metrics.items() if math.isfinite(value)}


def batches(
    metrics: Sequence[Point], params: Mapping[str, str], tags: Mapping[str, str]
) -> Iterator[tuple[Sequence[Point], dict[str, str], dict[str, str]]]:
    """Cut into as few requests as MLflow's limits allow."""
    parts = [metrics[start : start + MAX_METRICS] for start in range(0, len(metrics), MAX_METRICS)]
    for some, param, tag in zip_longest(parts, _text_batches(params), _text_batches(tags)):
        yield some or (), param or {}, tag or {}


def _text_batches(items: Mapping[str, str]) -> Iterator[dict[str, str]]:
    batch: dict[str, str] = {}
    size = 0
    for key, value in items.items():
        length = len((key + value).encode())
        if batch and (len(batch) == MAX_PER_BATCH or size + length > MAX_BYTES):
            yield batch
            batch, size = {}, 0
        batch[key] = value
        size += length
    if batch:
        yield batch

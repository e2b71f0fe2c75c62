"""One decoded dataset for all processes of a machine: the first one decodes and keeps it in a file, all map that file.

The file lies in the folder `decoded` of `$SIMLAP_CACHE` (default: `$XDG_CACHE_HOME/simlap`, `~/.cache/simlap`); a folder below
/dev/shm keeps it in memory. `SIMLAP_CACHE=off` switches sharing off. What was not used for longest is removed once all files
together are larger than `$SIMLAP_CACHE_GB` (default: a fifth of what the disk would have free without them).

Nothing here stops a run: where the folder cannot be used, a process decodes for itself and says so in one line.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

from simlap import __version__
from simlap.config.schema import Data
from simlap.data.shared_file import DamagedError, byte_size, map_splits, write_splits
from simlap.data.shared_folder import SharedFile
from simlap.data.splits import Splits, inspect_data, load_splits

FOLDER_VARIABLE = "SIMLAP_CACHE"
WAIT_S = 1800.0
"""How long a process waits for another one to decode, before it decodes for itself."""
_POLL_S = 0.05
_PLACES = {"train", "test", "root", "download", "image_column", "label_column", "fingerprint"}
"""Fields that a dataset's fingerprint stands for."""
_LATER = {"image_size", "stored_size", "eval_size", "augment", "sampling", "repeated_augmentation", "streaming"}
"""Fields about what is done with decoded images; the side that they are stored with counts by itself."""
_log = logging.getLogger("simlap.data")


def shared_splits(
    data: Data,
    fingerprint: str | None = None,
    *,
    channels: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Splits:
    """What `load_splits` gives, decoded once per machine and held in memory once, however many processes use it.

    The tensors are private mappings of one file: whoever writes into one gets a copy of that page, and nobody else sees it.
    A dataset that is streamed is not shared: there is nothing to decode beforehand.

    Args:
        data: of the experiment.
        fingerprint: that the data must have, as `inspect_data` gives it (default: whichever they have). Given, a dataset that
            is there decoded is not even opened.
        channels, mean, std: as in `load_splits`.

    Raises:
        DataError: as `load_splits`; also where the data have another fingerprint.
    """

    def decode(expected: str | None = fingerprint, copies: int | None = None) -> Splits:
        known = data if expected is None else data.model_copy(update={"fingerprint": expected})
        return load_splits(known, channels=channels, mean=mean, std=std, copies=copies)

    if data.streaming is not None or os.environ.get(FOLDER_VARIABLE) == "off":
        return decode()
    fingerprint = fingerprint or inspect_data(data).fingerprint
    facts = _facts(data, fingerprint, channels, mean, std)
    try:
        shared = SharedFile(cache_folder(), _name(facts))
        found = _find_or_claim(shared, facts, data)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        _warn(error)
        return decode(fingerprint)
    if isinstance(found, Splits):
        return found
    try:
        splits = decode(fingerprint, copies=1)
    except BaseException:
        shared.discard(found)  # whoever waits for it meets the error for itself
        raise
    try:
        shared.make_room(byte_size(splits))
        write_splits(found, splits, facts)
        shared.publish(found)
        return _mapped(shared, facts, data) or splits
    except (OSError, ValueError) as error:  # ValueError: the limit is not a number
        shared.discard(found)
        _warn(error)
        return splits


def cache_folder() -> Path:
    """The folder of decoded datasets. Raises RuntimeError where there is no home folder."""
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(named).expanduser().absolute() / "decoded"
    above = os.environ.get("XDG_CACHE_HOME")
    return (Path(above) if above else Path.home() / ".cache") / "simlap" / "decoded"


def _find_or_claim(shared: SharedFile, facts: dict[str, Any], data: Data) -> Splits | BinaryIO:
    """The decoded dataset, or the claimed file that it is to be written to. Waits while another process decodes."""
    end = time.monotonic() + WAIT_S
    while True:
        found = _mapped(shared, facts, data) or shared.claim()
        if found is not None:
            return found
        if time.monotonic() > end:
            raise TimeoutError(f"another process has been decoding them for {WAIT_S:.0f} s ({shared.path})")
        time.sleep(_POLL_S)


def _mapped(shared: SharedFile, facts: dict[str, Any], data: Data) -> Splits | None:
    """The decoded dataset where it is there; a damaged file is removed, loudly."""
    file = shared.open()
    if file is None:
        return None
    try:
        splits = map_splits(file, facts, data)
    except DamagedError as error:
        _log.warning("%s is damaged (%s): the images are decoded again", shared.path, error)
        shared.remove(file)
        return None
    file.close()  # the mapping has its own hold on it
    return splits


def _facts(
    data: Data, fingerprint: str, channels: int | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> dict[str, Any]:
    """Everything that the decoded content depends on, JSON-able. A field that is new counts, until it is named above."""
    return {
        "fingerprint": fingerprint,
        "data": data.model_dump(mode="json", exclude=_PLACES | _LATER),
        "size": data.stored_size or data.image_size,
        "channels": channels,
        "mean": None if mean is None else list(mean),
        "std": None if std is None else list(std),
        **_code(),
    }


@functools.cache
def _code() -> dict[str, str]:
    """What decodes: other code, or another decoder, may give other pixels."""
    sources = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        sources.update(file.read_bytes())
    versions = {name: metadata.version(name) for name in ("torch", "torchvision", "pillow")}
    return {"simlap": __version__, "sources": sources.hexdigest(), **versions}


def _name(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _warn(error: Exception) -> None:
    _log.warning("the decoded images are not shared with other processes: %s", error)

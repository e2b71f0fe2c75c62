"""Whether all nodes of a cluster have what cells need there: the same storage, simlap, Python and torch as the driver.

Asked before anything expensive starts: a folder that only one node has would show at the first checkpoint, and other code on
one node in nothing but its numbers. A node without simlap gets it from the driver.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import simlap
from simlap.errors import UserError
from simlap.redact import hide_credentials
from simlap.run.cluster import connect
from simlap.run.head import unwatch_head
from simlap.storage import Storage

PACKAGE = Path(simlap.__file__).parent
TIMEOUT_S = 120.0
"""How long nodes may take to answer: a worker starts there first, and a network file system may be slow."""
MAX_MIB = 20
"""The most that is sent to nodes. Ray takes 100."""

_LEAVING_S = 20.0
"""How long a node that has just died may stay in Ray's list. What is asked of it fails at once."""
_SEEN_S = 5.0
"""How long a network file system may take to show on one machine what another has written."""
_UNREADABLE = "what it writes there does not arrive on this machine"


@dataclass(frozen=True)
class Facts:
    """What a process finds on its machine."""

    python: str
    """Major and minor version."""
    simlap: str | None = None
    """Its version; None: there is none."""
    code: str | None = None
    """16 hex digits over the source of the package, comments included."""
    place: str | None = None
    """The folder of the package."""
    torch: str | None = None
    """Its version; None: there is none."""
    storage: str | None = None
    """Why the storage there is not the driver's; None: it is, or was not looked at."""

    @property
    def release(self) -> str | None:
        """Torch's version without what it was built for (`+cpu`), which may differ between machines."""
        return self.torch.partition("+")[0] if self.torch else None


@dataclass(frozen=True)
class Member:
    """A node that cells can run on."""

    node_id: str
    label: str
    """Its address, and some of its id where others have the same address."""


def agree(address: str, storage: Storage) -> None:
    """Ask every node of the cluster that this process is connected to. Raises UserError with all that is not as here.

    Does nothing where cells can run on this process's own node only. Connects anew where a node lacks simlap, to send it.
    """
    import ray

    nodes = members(ray.nodes())
    if all(node.node_id == ray.get_runtime_context().get_node_id() for node in nodes):
        return
    own = Facts(**_question()("", "", ""))
    found = _ask(nodes, storage)
    refuse(complaints(storage.uri, own, found))
    if lacking(found):
        check_size(PACKAGE)
        unwatch_head()
        ray.shutdown()
        connect(address, ship=PACKAGE)
        found = _ask(nodes, storage)
        still = [f"  {label}: there is no simlap, and it does not get there from here" for label in lacking(found)]
        refuse([*complaints(storage.uri, own, found), *still])


def unlike(storage: Storage, of: Collection[str] | None = None) -> list[str]:
    """What is not as here on nodes of the cluster that this process is connected to, each with the remedy; empty: nothing.

    Args:
        storage: that all must have.
        of: ids of the nodes that are asked; None: all.
    """
    import ray

    nodes = [node for node in members(ray.nodes()) if of is None or node.node_id in of]
    found = _ask(nodes, storage)
    without = [f"  {label}: there is no simlap" for label in lacking(found)]
    return [*complaints(storage.uri, Facts(**_question()("", "", "")), found), *without]


def members(nodes: Iterable[Mapping[str, Any]]) -> list[Member]:
    """Those of `ray.nodes()` that are alive and have CPUs or GPUs for cells."""
    found = [
        node
        for node in nodes
        if node["Alive"] and (node["Resources"].get("CPU", 0) > 0 or node["Resources"].get("GPU", 0) > 0)
    ]
    places = [node["NodeManagerAddress"] for node in found]
    return [
        Member(node["NodeID"], place if places.count(place) == 1 else f"{place} (node {node['NodeID'][:8]})")
        for node, place in zip(found, places, strict=True)
    ]


def lacking(found: Mapping[str, Facts | str]) -> list[str]:
    """The nodes that have no simlap."""
    return [label for label, facts in found.items() if isinstance(facts, Facts) and facts.simlap is None]


def complaints(uri: str, own: Facts, found: Mapping[str, Facts | str]) -> list[str]:
    """What differs from the driver, each with the nodes and the remedy. Nodes without simlap are no reason.

    Args:
        uri: of the storage.
        own: the driver's.
        found: by node: what it has, or why it did not answer.
    """
    silent = {label: facts for label, facts in found.items() if isinstance(facts, str)}
    known = {label: facts for label, facts in found.items() if isinstance(facts, Facts)}
    code = {
        label: _simlap(facts)
        for label, facts in known.items()
        if facts.simlap is not None and (facts.simlap, facts.code) != (own.simlap, own.code)
    }
    python = {label: facts.python for label, facts in known.items() if facts.python != own.python}
    torch = {label: facts.torch or "none" for label, facts in known.items() if facts.release != own.release}
    storage = {label: hide_credentials(facts.storage) for label, facts in known.items() if facts.storage is not None}
    total = len(found)
    texts = [
        _listed(silent, total, "did not answer", "See whether they are well (`ray status`), and their logs."),
        _listed(
            code,
            total,
            f"have another simlap than this machine ({_simlap(own)})",
            "Install the same commit everywhere, or none on the nodes: then they get this machine's.",
        ),
        _listed(
            python,
            total,
            f"have another Python than this machine ({own.python})",
            "Make the environment with the same Python everywhere.",
        ),
        _listed(
            torch,
            total,
            f"have another torch than this machine ({own.torch})",
            "Install from the same constraints.txt everywhere.",
        ),
        _listed(
            storage,
            total,
            f"do not share --storage {hide_credentials(uri)} with this machine: runs on them would be lost",
            "Valid: a folder that all nodes mount at the same path (NFS, Lustre, EFS, a shared volume), or an object store "
            "that all nodes have credentials for (s3://bucket/runs, gs://bucket/runs).",
        ),
    ]
    return [text for text in texts if text]


def refuse(texts: Sequence[str]) -> None:
    """Raises UserError where there are any."""
    if texts:
        raise UserError("the cluster's nodes are not alike\n" + "\n".join(texts))


def check_size(package: Path) -> None:
    """Raises UserError where a package is too large to be sent to nodes."""
    sizes = {
        file: file.stat().st_size for file in package.rglob("*") if file.is_file() and "__pycache__" not in file.parts
    }
    total = sum(sizes.values()) / 2**20
    if total > MAX_MIB:
        largest = max(sizes, key=sizes.__getitem__)
        raise UserError(
            f"{package}: nodes of the cluster have no simlap, and it is too large to be sent to them: {total:.0f} MiB, at most "
            f"{MAX_MIB}. Install it on the nodes, or take out what does not belong to it (the largest file is {largest})"
        )


def _listed(nodes: Mapping[str, str], total: int, what: str, remedy: str) -> str:
    lines = [f"  {label}: {text}" for label, text in nodes.items()]
    return "\n".join([f"{len(nodes)} of {total} nodes {what}:", *lines, remedy]) if nodes else ""


def _simlap(facts: Facts) -> str:
    return f"{facts.simlap}, source {facts.code}, in {facts.place}"


def _ask(nodes: Sequence[Member], storage: Storage) -> dict[str, Facts | str]:
    """What every node has, by its label, or why it did not answer. Nodes that end meanwhile are left out."""
    end = time.monotonic() + _LEAVING_S
    found = _ask_once(nodes, storage)
    while (silent := [node for node in nodes if isinstance(found.get(node.label), str)]) and time.monotonic() < end:
        time.sleep(1.0)
        for node in silent:
            del found[node.label]
        found |= _ask_once(silent, storage)
    return found


def _ask_once(nodes: Sequence[Member], storage: Storage) -> dict[str, Facts | str]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    token = secrets.token_hex(8)
    marker = f".nodes-{token}"
    answers = {node: f"{marker}-{node.node_id[:16]}" for node in nodes}
    try:
        storage.write(marker, token.encode())
    except OSError as error:
        raise UserError(f"--storage {hide_credentials(f'{storage.uri}: cannot be written to: {error}')}") from error
    try:
        task = ray.remote(num_cpus=0)(_question())
        references = {
            node: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)).remote(
                storage.uri, marker, answers[node]
            )
            for node in nodes
        }
        ready, late = ray.wait(list(references.values()), num_returns=len(references), timeout=TIMEOUT_S)
        found: dict[str, Facts | str] = {}
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        for node, reference in references.items():
            if reference in ready:
                try:
                    facts: Facts | str = Facts(**ray.get(reference))
                except ray.exceptions.RayError as error:
                    facts = hide_credentials(f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}")
            else:
                facts = f"nothing within {TIMEOUT_S:.0f} s: its storage hangs, or it cannot start a worker"
            if isinstance(facts, Facts) and facts.simlap is not None and facts.storage is None:
                facts = _arrived(facts, storage, answers[node], token)
            if node.node_id in alive:
                found[node.label] = facts
        for reference in late:
            ray.cancel(reference, force=True)
        return found
    finally:
        for name in (marker, *answers.values()):
            with suppress(OSError):  # an empty file more
                storage.delete(name)


def _arrived(facts: Facts, storage: Storage, answer: str, token: str) -> Facts:
    """The same, or with the complaint that the node's answer is not where the driver looks for it."""
    end = time.monotonic() + _SEEN_S
    while True:
        with suppress(FileNotFoundError):
            if storage.read(answer) == token.encode():
                return facts
        if time.monotonic() > end:
            return Facts(facts.python, facts.simlap, facts.code, facts.place, facts.torch, _UNREADABLE)
        time.sleep(0.2)


def _question() -> Callable[[str, str, str], dict[str, Any]]:
    """What a node is asked: a function that refers to nothing outside of itself, so that Ray sends it whole. A node may have no
    simlap, or another one."""

    def look(uri: str, marker: str, answer: str) -> dict[str, Any]:
        import contextlib
        import hashlib
        import sys
        import time
        from importlib import metadata, util
        from pathlib import Path

        facts: dict[str, Any] = {"python": f"{sys.version_info[0]}.{sys.version_info[1]}"}
        with contextlib.suppress(metadata.PackageNotFoundError):
            facts["torch"] = metadata.version("torch")
        spec = util.find_spec("simlap")
        if spec is None or spec.origin is None:  # a folder of that name without code is none either
            return facts
        folder = Path(spec.origin).parent
        digest = hashlib.sha256()
        for name, file in sorted((file.relative_to(folder).as_posix(), file) for file in folder.rglob("*.py")):
            digest.update(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
        import simlap

        facts.update(simlap=simlap.__version__, code=digest.hexdigest()[:16], place=str(folder))
        if not uri:
            return facts
        try:
            from simlap.storage import Storage

            storage = Storage(uri)
            end = time.monotonic() + 5.0
            while True:
                try:
                    token = storage.read(marker)
                    break
                except FileNotFoundError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.2)
            storage.write(answer, token)
        except Exception as error:  # noqa: BLE001 - whatever a file system can do is told
            facts["storage"] = f"{type(error).__name__}: {error}"
        return facts

    return look

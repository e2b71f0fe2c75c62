"""Ask a vulnerability service about every package of constraints.txt, with `uv audit`. Prints every finding.

Exit code 0: nothing found that tools/audit_allow.txt does not have, or nobody to ask (which is said). 1: a finding. 2: what is
asked, or what is allowed, is not as it should be.

tools/audit_allow.txt has a line for every vulnerability that is known here and does not matter: its id, the package, the reason.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 120
_NO_SOURCE = (
    "https://packages.invalid/simple"  # uv asks no registry about packages that are locked; it wants an address
)
_PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)")
_ALLOWED = re.compile(r"(?P<id>\S+)\s+(?P<package>\S+)\s+(?P<reason>\S.*)")
_NOBODY = ("error sending request", "timed out", "dns error", "Connect", "503", "502", "504", "429")


@dataclass(frozen=True)
class Finding:
    """A vulnerability of a package."""

    package: str
    version: str
    ids: tuple[str, ...]
    """Its id, and what others call it."""
    summary: str
    fixed_in: tuple[str, ...]

    def __str__(self) -> str:
        remedy = f"fixed in {', '.join(self.fixed_in)}" if self.fixed_in else "no version without it"
        return f"{self.package} {self.version}: {' '.join(self.ids)}: {self.summary or 'no summary'} ({remedy})"


class NobodyError(Exception):
    """The service does not answer."""


def read_pins(text: str) -> list[tuple[str, str]]:
    """Packages and versions; one that differs between Pythons or systems has several."""
    return [(match["name"].lower(), match["version"]) for line in text.splitlines() if (match := _PIN.match(line))]


def read_allowed(text: str) -> dict[str, str]:
    """Reason by id. Raises ValueError for a line without one."""
    allowed = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _ALLOWED.fullmatch(line.strip())
        if match is None:
            raise ValueError(f"line {number}: not an id, a package and a reason: {line!r}")
        allowed[match["id"]] = match["reason"]
    return allowed


def lock(pins: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """A project with exactly these packages, as uv has it: `pyproject.toml` and `uv.lock`."""
    project = '[project]\nname = "audited"\nversion = "0"\nrequires-python = ">=3.11"\n'
    source = f'source = {{ registry = "{_NO_SOURCE}" }}'
    needs = ", ".join(f'{{ name = "{name}", version = "{version}", {source} }}' for name, version in pins)
    parts = [
        'version = 1\nrevision = 3\nrequires-python = ">=3.11"\n',
        f'[[package]]\nname = "audited"\nversion = "0"\nsource = {{ virtual = "." }}\ndependencies = [{needs}]\n',
        *(f'[[package]]\nname = "{name}"\nversion = "{version}"\n{source}\n' for name, version in pins),
    ]
    return project, "\n".join(parts)


def ask(pins: Sequence[tuple[str, str]], uv: Path, service: str | None = None) -> list[Finding]:
    """What the service knows of these packages. Raises NobodyError where it does not answer, RuntimeError where uv fails."""
    with tempfile.TemporaryDirectory(prefix="simlap-audit-") as folder:
        for name, text in zip(("pyproject.toml", "uv.lock"), lock(pins), strict=True):
            Path(folder, name).write_text(text)
        words = [str(uv), "audit", "--frozen", "--no-config", "--output-format", "json", "--project", folder]
        words += ["--service-url", service] if service else []
        try:
            done = subprocess.run(
                words,
                check=False,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                env={**os.environ, "UV_HTTP_RETRIES": "0"},
            )
        except subprocess.TimeoutExpired:
            raise NobodyError(f"no answer in {TIMEOUT_S} s") from None
    if done.returncode not in (0, 1) or not done.stdout.strip():
        causes = [line.split("cause: ")[-1].strip() for line in done.stderr.splitlines() if line.strip()]
        last = causes[-1] if causes else f"exit code {done.returncode}"
        raise (NobodyError if any(word in done.stderr for word in _NOBODY) else RuntimeError)(last)
    answer = json.loads(done.stdout)
    if answer["summary"]["audited_packages"] != len(pins):
        raise RuntimeError(f"{answer['summary']['audited_packages']} of {len(pins)} packages were looked up")
    return [_finding(one) for one in answer["vulnerabilities"]]


def _finding(one: Mapping[str, Any]) -> Finding:
    ids = dict.fromkeys([one["id"], one.get("display_id") or one["id"], *one["aliases"]])
    package = one["dependency"]
    return Finding(
        package["name"], package["version"], tuple(ids), one.get("summary") or "", tuple(one.get("fix_versions") or ())
    )


def main(uv: Path, service: str | None = None, root: Path = ROOT) -> int:
    pins = read_pins((root / "constraints.txt").read_text())
    try:
        allowed = read_allowed((root / "tools/audit_allow.txt").read_text())
    except ValueError as error:
        print(f"audit: tools/audit_allow.txt: {error}", file=sys.stderr)
        return 2
    try:
        findings = ask(pins, uv, service)
    except NobodyError as error:
        print(
            f"audit: SKIPPED: the vulnerability service does not answer ({error}); {len(pins)} packages are not audited"
        )
        return 0
    except RuntimeError as error:
        print(f"audit: uv audit failed: {error}", file=sys.stderr)
        return 2
    bad = [finding for finding in findings if not any(one in allowed for one in finding.ids)]
    known = {one for finding in findings for one in finding.ids}
    for finding in bad:
        print(f"audit: {finding}", file=sys.stderr)
    for one in allowed:
        if one not in known:
            print(f"audit: {one} is in tools/audit_allow.txt and is not found any more")
    print(f"audit: {len(pins)} packages, {len(bad)} findings, {len(findings) - len(bad)} allowed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

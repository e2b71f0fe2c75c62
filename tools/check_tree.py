"""Checks of the files under version control that no linter makes. Prints every finding; exit code 1 where there is one.

- No file names a package registry's host: which one is used is the user's business (mirrors, closed networks).
- constraints.txt holds `name==version` lines only: no addresses, no index options, no hashes.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# in parts, so that this file passes its own check
HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("download", "pytorch", "org"),
        ("registry", "npmjs", "org"),
        ("deb", "debian", "org"),
        ("conda", "anaconda", "org"),
        ("crates", "io"),
        ("proxy", "golang", "org"),
    )
)
PIN = re.compile(r"[a-z0-9]+([-._][a-z0-9]+)*==[0-9][A-Za-z0-9.!]*( ; [^:/]+)?")


def tracked_files(root: Path) -> list[Path]:
    """Files under version control, and new ones that are not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    return [root / name for name in listing.split("\0") if name and (root / name).is_file()]


def host_findings(name: str, text: str) -> list[str]:
    """One line per place in `text` that names a registry."""
    return [
        f"{name}:{number}: names the package registry {host}"
        for number, line in enumerate(text.splitlines(), 1)
        for host in HOSTS
        if host in line.lower()
    ]


def pin_findings(name: str, text: str) -> list[str]:
    """One line per line of a constraints file that is not a plain pin."""
    return [
        f"{name}:{number}: not a plain pin: {line}"
        for number, line in enumerate(text.splitlines(), 1)
        if not PIN.fullmatch(line)
    ]


def main(root: Path) -> int:
    findings: list[str] = []
    for path in tracked_files(root):
        data = path.read_bytes()
        if b"\0" not in data:
            findings += host_findings(str(path.relative_to(root)), data.decode(errors="replace"))
    findings += pin_findings("constraints.txt", (root / "constraints.txt").read_text())
    print("\n".join(findings), end="\n" if findings else "", file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent.parent))

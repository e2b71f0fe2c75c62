"""The audit of dependencies: uv asks a service, which here is on this machine."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tools import audit

UV = Path(sys.executable).parent / "uv"
VULNERABLE = {"jinja2": "GHSA-aaaa", "ray": "GHSA-bbbb"}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Address of a service that knows `VULNERABLE`."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
            known = [VULNERABLE.get(query["package"]["name"]) for query in asked]
            stamp = "2026-01-01T00:00:00Z"
            self.answer({"results": [{"vulns": [{"id": one, "modified": stamp}]} if one else {} for one in known]})

        def do_GET(self) -> None:
            number = self.path.rpartition("/")[2]
            name = next(name for name, one in VULNERABLE.items() if one == number)
            ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99"}]}]
            affected = [{"package": {"ecosystem": "PyPI", "name": name}, "ranges": ranges}]
            about = {"id": number, "modified": "2026-01-01T00:00:00Z", "summary": "bad", "aliases": [f"CVE-{name}"]}
            self.answer({**about, "affected": affected})

        def answer(self, value: object) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/audit_allow.txt").write_text("# none\n\n")
    (tmp_path / "constraints.txt").write_text(
        "jinja2==3.1.0\nmarkupsafe==3.0.2 ; sys_platform == 'linux'\nmarkupsafe==2.0 ; sys_platform != 'linux'\nRay==2.60.0\n"
    )
    return tmp_path


def test_what_is_found_is_listed(service: str, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main(UV, service, tree) == 1
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        "audit: jinja2 3.1.0: GHSA-aaaa CVE-jinja2: bad (fixed in 99)",
        "audit: ray 2.60.0: GHSA-bbbb CVE-ray: bad (fixed in 99)",
    ]
    assert said.out == "audit: 4 packages, 2 findings, 0 allowed\n"


def test_what_is_allowed_is_counted_and_what_is_over_is_told(
    service: str, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "tools/audit_allow.txt").write_text(
        "GHSA-aaaa jinja2 its templates are ours\nCVE-ray ray tokens\nGHSA-cccc numpy old\n"
    )
    assert audit.main(UV, service, tree) == 0
    assert capsys.readouterr().out.splitlines() == [
        "audit: GHSA-cccc is in tools/audit_allow.txt and is not found any more",
        "audit: 4 packages, 0 findings, 2 allowed",
    ]


def test_nobody_to_ask_is_told_and_is_no_error(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert audit.main(UV, f"http://127.0.0.1:{port}/", tree) == 0
    said = capsys.readouterr()
    assert said.out.startswith("audit: SKIPPED: the vulnerability service does not answer (")
    assert said.out.endswith("4 packages are not audited\n")


def test_a_line_without_a_reason_is_an_error(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "tools/audit_allow.txt").write_text("# ids\nGHSA-aaaa jinja2\n")
    assert audit.main(UV, None, tree) == 2
    assert "line 2: not an id, a package and a reason: 'GHSA-aaaa jinja2'" in capsys.readouterr().err


def test_our_own_files_are_read_whole() -> None:
    lines = (audit.ROOT / "constraints.txt").read_text().splitlines()
    assert len(audit.read_pins("\n".join(lines))) == len(lines) > 100
    audit.read_allowed((audit.ROOT / "tools/audit_allow.txt").read_text())

"""Ray's token, the file it is in, and clusters that ask for none."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from simlap.errors import UserError
from simlap.run import access
from simlap.run.access import answers_anybody, check_token, make_token, open_cluster


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (access.MODE, access.TOKEN, access.PATH):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_made_for_its_owner_once(home: Path) -> None:
    file = home / ".ray/auth_token"
    before = os.umask(0)
    try:
        make_token()
    finally:
        os.umask(before)
    assert rights(file) == 0o600
    token = file.read_text()
    assert len(token) == 64
    make_token()
    assert file.read_text() == token
    assert [path.name for path in file.parent.iterdir()] == ["auth_token"], "nothing temporary is left"


def test_many_who_start_at_once_have_the_same(home: Path) -> None:
    def start(_: int) -> str:
        make_token()
        return (home / ".ray/auth_token").read_text()

    with ThreadPoolExecutor(8) as pool:
        tokens = set(pool.map(start, range(32)))
    assert len(tokens) == 1
    assert len(tokens.pop()) == 64


@pytest.mark.parametrize("look", [make_token, check_token])
def test_what_ray_made_for_everybody_becomes_ours_alone(look: Callable[[], None], home: Path) -> None:
    file = home / ".ray/auth_token"
    file.parent.mkdir()
    file.write_text("made by Ray")
    file.chmod(0o644)
    look()
    assert (rights(file), file.read_text()) == (0o600, "made by Ray")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_named_file_that_others_can_use_is_refused(mode: int, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = home / "token"
    file.write_text("hush")
    file.chmod(mode)
    monkeypatch.setenv(access.PATH, str(file))
    for ask in (make_token, check_token):
        with pytest.raises(UserError) as error:
            ask()
        assert str(error.value) == (
            f"{file}: RAY_AUTH_TOKEN_PATH: others can use this file (mode {mode:04o}), and whoever has Ray's token runs code as "
            f"you: `chmod 600 {file}`"
        )
        assert rights(file) == mode, "it is not ours to change"
    file.chmod(0o400)
    check_token()
    monkeypatch.setenv(access.MODE, "disabled")
    file.chmod(mode)
    check_token()  # nobody uses it
    monkeypatch.setenv(access.MODE, "token")
    monkeypatch.setenv(access.TOKEN, "another")
    check_token()  # Ray prefers the variable


@pytest.mark.parametrize(("text", "why"), [(None, "No such file"), ("\n", "is empty")])
def test_a_named_file_without_a_token_is_an_error(
    text: str | None, why: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(access.PATH, str(home / "token"))
    if text is not None:
        (home / "token").touch(0o600)
        (home / "token").write_text(text)
    with pytest.raises(UserError, match=why):
        check_token()


def test_without_a_token_a_cluster_decides() -> None:
    check_token()


class Head(grpc.GenericRpcHandler):  # type: ignore[misc]  # of a library without types
    """A head that answers everybody, or only those with a token."""

    def __init__(self, token: str | None) -> None:
        self.token = token

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            given = dict(context.invocation_metadata()).get("authorization")
            if self.token is not None and given != f"Bearer {self.token}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b"nodes"

        known = details.method == "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"
        return grpc.unary_unary_rpc_method_handler(answer) if known else None


@pytest.fixture
def heads() -> Iterator[dict[str, str]]:
    """Addresses of an open head, and of one that asks for a token."""
    servers, found = [], {}
    for name, token in (("open", None), ("closed", "hush")):
        server = grpc.server(ThreadPoolExecutor(1), handlers=[Head(token)])
        found[name] = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        servers.append(server)
    yield found
    for server in servers:
        server.stop(None).wait()


def test_an_open_cluster_is_told_and_one_on_loopback_is_not(
    heads: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answers_anybody(heads["open"])
    assert not answers_anybody(heads["closed"])
    assert open_cluster(heads["open"]) is None, "nobody else reaches it"
    monkeypatch.setattr(access, "is_loopback", lambda host: False)
    told = open_cluster(heads["open"])
    assert told is not None
    assert heads["open"] in told
    assert "RAY_AUTH_MODE=token" in told
    assert open_cluster(heads["closed"]) is None


def test_nobody_there_is_nobodys_open_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(access, "is_loopback", lambda host: False)
    assert not answers_anybody(place)
    assert open_cluster(place) is None
    assert open_cluster("ray://host:10001") is None

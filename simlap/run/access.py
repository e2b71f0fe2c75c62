"""Who may speak to Ray: whoever reaches a cluster runs code there as its owner, unless it asks for a token.

Ray finds the token in RAY_AUTH_TOKEN, else in the file that RAY_AUTH_TOKEN_PATH names, else in `~/.ray/auth_token`. With
RAY_AUTH_MODE unset it uses one that is there; a Ray that starts on this machine makes one.
"""

from __future__ import annotations

import os
import secrets
import stat
import uuid
from contextlib import suppress
from pathlib import Path

from simlap.errors import UserError
from simlap.net import is_loopback

MODE, TOKEN, PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
TIMEOUT_S = 5.0
_QUESTION = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"


def make_token() -> None:
    """Before Ray starts here: make the token that it would make itself, in a file that everybody can read, for its owner only.

    Nothing happens where the environment says which token is used, or that none is. Raises UserError.
    """
    if not _is_used() or TOKEN in os.environ:
        return
    path = token_file()
    if PATH not in os.environ:
        try:
            if not path.exists():
                _create(path, secrets.token_hex(32))
        except OSError as error:
            raise UserError(f"Ray's token cannot be kept there: {error.strerror}", file=str(path), key=PATH) from error
    check_token()


def check_token() -> None:
    """Raises UserError where the token that Ray will use is in a file that others can read, or that is not there.

    Ray's own file in its own place becomes its owner's alone: Ray makes it for everybody to read.
    """
    path = token_file()
    if not _is_used() or TOKEN in os.environ or not (path.exists() or PATH in os.environ):
        return
    try:
        facts = path.stat()
        if PATH not in os.environ and facts.st_uid == os.getuid() and facts.st_mode & 0o077:
            path.chmod(0o600)
            facts = path.stat()
        empty = not path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Ray's token cannot be read: {error}", file=str(path), key=PATH) from error
    # one that is another's (mounted in a container) may be for our group: we cannot change that
    others = stat.S_IMODE(facts.st_mode) & (0o077 if facts.st_uid == os.getuid() else 0o007)
    if others:
        raise UserError(
            f"others can use this file (mode {stat.S_IMODE(facts.st_mode):04o}), and whoever has Ray's token runs code as you: "
            f"`chmod 600 {path}`",
            file=str(path),
            key=PATH,
        )
    if empty:
        raise UserError("the file of Ray's token is empty", file=str(path), key=PATH)


def token_file() -> Path:
    """Where Ray looks for a token that is not in the environment."""
    return Path(os.environ.get(PATH) or "~/.ray/auth_token").expanduser()


def open_cluster(address: str) -> str | None:
    """Why a cluster is open to others, in words; None where it asks for a token, is on the loopback interface or not there.

    Args:
        address: as Ray takes it.
    """
    place = _place(address)
    if place is None or is_loopback(place.rpartition(":")[0]) or not answers_anybody(place):
        return None
    return (
        f"the Ray cluster at {place} asks for no token: whoever reaches that address runs code there as its owner; start it "
        f"with {MODE}=token and a token in a file of mode 0600"
    )


def answers_anybody(place: str) -> bool:
    """Whether the head at `host:port` tells its nodes to somebody without a token."""
    import grpc

    with grpc.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_QUESTION)(b"", timeout=TIMEOUT_S)
        except grpc.RpcError:
            return False
    return True


def _is_used() -> bool:
    return os.environ.get(MODE, "token").lower() == "token"


def _create(path: Path, token: str) -> None:
    """All or nothing of it is seen by another Ray that starts; the first one's stays."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(token)
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _place(address: str) -> str | None:
    """The head as `host:port`; None where there is none, or it is spoken to through a client's server."""
    if address == "auto":
        from ray._private.services import canonicalize_bootstrap_address

        try:
            address = canonicalize_bootstrap_address(address) or ""
        except (ConnectionError, ValueError):
            return None
    return address if "://" not in address and ":" in address else None

"""Who may use a tracking server of ours that others can reach: one user, with a password that is made for it."""

from __future__ import annotations

import importlib.util
import os
import secrets
import socket
import tempfile
from pathlib import Path
from types import TracebackType

import psutil

from simlap.errors import UserError
from simlap.net import LOOPBACK, in_url, is_any

USER = "simlap"
_INI = """[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///{folder}/users.db
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


class Guard:
    """MLflow's user accounts in a folder of their own, gone after `with`.

    User and password are those of this process's environment (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD), where they
    are also left for what asks the server; without a password there, one is made.
    """

    def __init__(self, host: str, port: int) -> None:
        """Raises UserError where MLflow lacks what it needs for it."""
        if importlib.util.find_spec("flask_wtf") is None:
            raise UserError(
                "others could reach the server, and MLflow needs the package flask-wtf to ask them for a password: "
                "pip install 'simlap[server]'",
                key="--host",
                value=host,
            )
        self.user = os.environ.get("MLFLOW_TRACKING_USERNAME") or USER
        given = os.environ.get("MLFLOW_TRACKING_PASSWORD") or None
        self.is_made = given is None
        self._password = given or secrets.token_urlsafe(24)
        self._hosts = ",".join(allowed_hosts(host, port))

    @property
    def password_file(self) -> Path:
        """Has the password, for its owner only."""
        return self._folder / "password"

    @property
    def environment(self) -> dict[str, str]:
        """Of the server."""
        return {
            "MLFLOW_AUTH_CONFIG_PATH": str(self._folder / "auth.ini"),
            "MLFLOW_AUTH_ADMIN_USERNAME": self.user,
            "MLFLOW_AUTH_ADMIN_PASSWORD": self._password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
            "MLFLOW_SERVER_ALLOWED_HOSTS": os.environ.get("MLFLOW_SERVER_ALLOWED_HOSTS") or self._hosts,
        }

    def __enter__(self) -> Guard:
        self._temporary = tempfile.TemporaryDirectory(prefix="simlap-ui-")  # for its owner only
        self._folder = Path(self._temporary.name)
        (self._folder / "auth.ini").write_text(_INI.format(folder=self._folder))
        self.password_file.touch(0o600)
        self.password_file.write_text(self._password)
        os.environ.update(MLFLOW_TRACKING_USERNAME=self.user, MLFLOW_TRACKING_PASSWORD=self._password)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._temporary.cleanup()


def allowed_hosts(host: str, port: int) -> list[str]:
    """Names that a browser may call the server by. Another name that leads here is somebody's trick (DNS rebinding)."""
    names = {host}
    if is_any(host):
        names |= {LOOPBACK, "localhost", socket.gethostname(), socket.getfqdn()}
        families = (socket.AF_INET, socket.AF_INET6)
        found = [one for several in psutil.net_if_addrs().values() for one in several if one.family in families]
        names |= {one.address.partition("%")[0] for one in found}
    return sorted(f"{in_url(name)}:{port}" for name in names if not is_any(name))

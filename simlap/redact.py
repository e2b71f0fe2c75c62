"""Secrets are kept out of what is written and shown: journals, logs, reports, MLflow's records, the console.

Secret is: user and password of an address; a parameter of an address whose name says so (`?sig=...`); what follows
`Authorization:`; and the values of this process's environment variables whose names say so (`..._TOKEN`, `..._PASSWORD`,
`..._KEY`, ...). A value of fewer than 8 characters, or the path of a file, is not looked for: it may be any word.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TextIO
from urllib.parse import quote, unquote

from simlap.errors import UserError

SHORTEST = 8
"""Characters of a value that is looked for."""
MARGIN = 4096
"""Bytes of the longest value that `hide_in_bytes` surely finds where a text is cut."""
STARS = "***"

_USER_INFO = r"://(?P<user>[^/\s'\"?#]*|[^/\s'\"?#]*:(?!\d+(?:/|$))[^\s'\"?#@]*)@"
"""Up to the last `@` of a host's part; else a password with slashes in it, which is no port."""
_PARAMETER = (
    r"[?&;](?:[\w.%-]*(?:secret|token|passw|credential|signature|access_?key|api_?key|account_?key)[\w.%-]*|sig|pwd)="
    r"(?P<parameter>[^&;\s'\"#\\]+)"
)
_HEADER = r"authorization['\"]?\s*[:=]\s*(?:b(?=['\"]))?['\"]?(?:(?:basic|bearer|token)\s+)?(?P<header>[^\s'\",}\\]+)"
_SECRET = re.compile("|".join((_USER_INFO, _PARAMETER, _HEADER)), re.IGNORECASE)
_SECRET_BYTES = re.compile(_SECRET.pattern.encode(), re.IGNORECASE)
_REFUSED = re.compile(rf"://[^/\s?#@]*:(?!\d+(?:/|$))[^\s?#]+@|{_PARAMETER}", re.IGNORECASE)
_PASSWORD = re.compile(r"://[^/\s:@'\"?#]*:([^/\s@'\"?#]+)@")

_PARTS = {"AUTH", "CREDENTIAL", "CREDENTIALS", "DSN", "KEY", "KEYS", "PASS", "PWD", "SECRETS", "TOKENS"}
_ENDS = ("PASSWORD", "PASSWD", "PASSPHRASE", "SECRET", "TOKEN", "APIKEY")
_NO_SECRETS = {"PWD", "OLDPWD", "SSH_AUTH_SOCK", "RAY_AUTH_MODE"}


def hide_credentials(text: str) -> str:
    """A text without the secrets in it: a command line, an error message, a traceback."""
    for value in _known(os.environ, sys.argv):
        text = text.replace(value, STARS)
    return _SECRET.sub(_without, text)


def hide_in_tree(value: Any) -> Any:
    """The same of every text in a tree of plain values; keys stay."""
    if isinstance(value, str):
        return hide_credentials(value)
    if isinstance(value, Mapping):
        return {key: hide_in_tree(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(hide_in_tree(inner) for inner in value)
    return [hide_in_tree(inner) for inner in value] if isinstance(value, list) else value


def hide_in_bytes(data: bytes) -> bytes:
    """The same of what a process printed, with `*` for every byte of a secret: places in it stay the same."""
    for value in _known(os.environ, sys.argv):
        secret = value.encode()
        data = data.replace(secret, b"*" * len(secret))
    return _SECRET_BYTES.sub(_starred, data)


def hide_in_error(error: BaseException | None) -> None:
    """Hide the secrets in the texts of an exception, and of those that it came from, before it leaves for others' logs."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.args = hide_in_tree(one.args)
        for name, value in [*vars(one).items()]:  # its own attributes, and notes
            if isinstance(value, str | list | tuple | dict):
                setattr(one, name, hide_in_tree(value))
        if isinstance(one, OSError):
            for name in ("strerror", "filename", "filename2"):
                if isinstance(value := getattr(one, name), str):
                    setattr(one, name, hide_credentials(value))
        waiting += [one.__cause__, one.__context__, *(one.exceptions if isinstance(one, BaseExceptionGroup) else ())]


def refuse_credentials(uri: str, what: str, *, key: str | None = None) -> None:
    """Raises UserError where an address of files holds a secret: it is stored with every run, and shown.

    Args:
        uri: the address, or a path.
        what: it is, in words.
        key: the setting that has it.
    """
    if "://" in uri and _REFUSED.search(uri):
        raise UserError(
            f"{what} {hide_credentials(uri)!r}: holds a password or a key, which would be stored with every run and shown; "
            "give credentials to all processes by their environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_KEY ...) or by the machine's role",
            key=key,
        )


class HidingStream:
    """A text stream whose writer's secrets do not arrive in it. What is written at a time is looked at as a whole."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(hide_credentials(text))
        return len(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def _without(match: re.Match[str]) -> str:
    """What stands in a secret's place: nothing for an address's user and password, stars for other things."""
    whole, kind = match[0], match.lastgroup
    return "://" if kind == "user" else whole.removesuffix(match[kind or 0]) + STARS


def _starred(match: re.Match[bytes]) -> bytes:
    start, end = (place - match.start() for place in match.span(match.lastgroup or 0))
    return match[0][:start] + b"*" * (end - start) + match[0][end:]


def _known(environment: Mapping[str, str], words: Iterable[str]) -> list[str]:
    """Texts that are secret, in all the forms they may take, longer ones first."""
    found: set[str] = set()
    for name, value in environment.items():
        if names_a_secret(name) and not os.path.exists(value):
            found.add(value.strip())
    user, password = (environment.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD"))
    if password:
        found.add(base64.b64encode(f"{user}:{password}".encode()).decode())
    for text in (*environment.values(), *words):
        if "://" in text:
            found.update(_PASSWORD.findall(text))
    forms = {
        form for value in found for form in (value, unquote(value), quote(value, safe=""), json.dumps(value)[1:-1])
    }
    return sorted((form for form in forms if len(form) >= SHORTEST), key=len, reverse=True)


def names_a_secret(name: str) -> bool:
    """Whether an environment variable of this name holds one."""
    parts = name.upper().split("_")
    if name.upper() in _NO_SECRETS or parts[-1] in ("PATH", "FILE", "DIR", "MODE"):
        return False
    return any(part in _PARTS or part.endswith(_ENDS) for part in parts)

"""Errors a user can act on. The command line prints them without a traceback and exits with 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Wrong input: a config, a path, a dataset, a resource request. The message is the whole story."""


class ConfigError(UserError):
    """A wrong value in a file: names the file, the key, the value, the reason and the valid choices."""

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        key: str | None = None,
        value: object = None,
        choices: Iterable[str] = (),
    ) -> None:
        self.message, self.file, self.key, self.value = message, file, key, value
        self.choices = tuple(choices)
        super().__init__(self._text())

    def _text(self) -> str:
        where = ": ".join(part for part in (self.file, self.key) if part)
        text = f"{where}: {self.message}" if where else self.message
        if self.value is not None:
            text += f" (got {self.value!r})"
        near = nearest(str(self.value), self.choices) or nearest((self.key or "").split(".")[-1], self.choices)
        if near:
            text += f"; did you mean {near!r}?"
        if self.choices:
            text += f" Valid: {', '.join(self.choices)}."
        return text


class DataError(UserError):
    """A dataset that is missing, unreadable or unfit: names the place and what is wrong there."""


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice closest in spelling to `word`, or None where nothing is close or `word` is one of them."""
    found = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return found[0] if found and found[0] != word else None

"""Errors a user can act on. The command line prints them without a traceback and exits with 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Self


class UserError(Exception):
    """Wrong input. The message is the whole story: file, key, what is wrong, the value and the valid choices."""

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

    def at(self, file: str) -> Self:
        """The same error with its file, where it did not know it."""
        return type(self)(
            self.message, file=self.file or file, key=self.key, value=self.value, choices=self.choices
        )  # fmt: skip

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


class ConfigError(UserError):
    """A wrong value in a file or on the command line."""


class DataError(UserError):
    """A dataset that is missing, unreadable or unfit. The key is the setting that leads to it."""


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice closest in spelling to `word`, or None where nothing is close or `word` is one of them."""
    found = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return found[0] if found and found[0] != word else None

"""The redaction hook: what an operator's own function does to every text before it is written anywhere.

`store.redact = "package.module:function"` names a function `str -> str`. Pure but for what the function does; knows
no store. Whoever writes texts passes each through the `Redactor` of its store.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Protocol

from service.errors import BadRequest, Unavailable

log = logging.getLogger(__name__)


class RedactionFailed(Unavailable):
    """The hook broke, so nothing is written: better no record than one that holds what it must not."""


class Redactor(Protocol):
    def text(self, text: str) -> str:
        """What may be kept of the text. Raises `RedactionFailed`."""
        ...


class KeepAll:
    """No hook: every text is kept as it is."""

    def text(self, text: str) -> str:
        return text


KEEP_ALL = KeepAll()


class Hook:
    """An operator's function, which may do anything and answer anything."""

    def __init__(self, name: str, function: Callable[[str], object]) -> None:
        self._name = name
        self._function = function

    def text(self, text: str) -> str:
        try:
            kept = self._function(text)
        except Exception as error:  # of the operator's code; its message may hold the text, so it is not repeated
            raise self._failed(f"raised {type(error).__name__}") from None
        if not isinstance(kept, str):
            raise self._failed(f"answered a {type(kept).__name__}, not a str")
        return kept

    def _failed(self, how: str) -> RedactionFailed:
        log.error("the redaction hook %s %s; nothing is written", self._name, how)
        return RedactionFailed(
            f"The redaction hook {how}, so nothing was written. Mend the function that store.redact names.",
            code="redaction_failed",
        )


def load(name: str | None) -> Redactor:
    """The redactor that the setting `store.redact` names. Raises `BadRequest` when there is no such function."""
    if name is None:
        return KEEP_ALL
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the operator's module does when it is imported
        raise _refused(name, f"{type(error).__name__}: {error}. It must be installed, or lie on PYTHONPATH") from error
    if not callable(function):
        raise _refused(name, f"it is a {type(function).__name__}, not a function")
    return Hook(name, function)


def _refused(name: str, why: str) -> BadRequest:
    return BadRequest(
        f"store.redact = '{name}' cannot be used: {why}.", param="store.redact", code="redaction_hook_not_usable"
    )

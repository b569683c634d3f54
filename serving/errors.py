"""What a replica refuses, and why.

ServingError
├── UnknownModel      `model` is neither an alias with an adapter behind it nor a loaded adapter
├── RequestRefused    the body is not one we answer; carries OpenAI's error fields
├── AdapterRefused    an adapter directory does not hash to its manifest or breaks its contract
├── NoRoom            every adapter place is taken by adapters still in use
└── HostError         not every replica did what it was told
"""

from __future__ import annotations


class ServingError(Exception):
    """Carries one line for the person who reads it."""


class UnknownModel(ServingError):
    def __init__(self, model: str) -> None:
        super().__init__(
            f"The model '{model[:100]}' does not exist or is not loaded. Use 'policy', 'policy@stable', "
            "'policy@previous', 'base' or the full name of a loaded adapter (GET /v1/models lists them)."
        )


class RequestRefused(ServingError):
    """`status` is the HTTP status, `param` the field at fault, `code` a stable word for programs."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code


class AdapterRefused(ServingError): ...


class NoRoom(ServingError): ...


class HostError(ServingError): ...


class HostAbsent(HostError): ...

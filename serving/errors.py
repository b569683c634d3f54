"""What a replica refuses, and why.

ServingError
├── UnknownModel      `model` is neither an alias with an adapter behind it nor a published adapter
├── RequestRefused    the body is not one we answer; carries OpenAI's error fields
├── Overloaded        as many requests as may run and wait do so; come back later
├── DeadlineExceeded  an answer took longer than it may
├── EngineFailed      the engine gave up in the middle of an answer
├── AdapterRefused    an adapter directory does not hash to its manifest or breaks its contract
├── AdapterUnreachable  the place where its files lie does not answer now
├── BaseRefused       the base model on this node is not the one that the service was started with
├── NoRoom            every adapter place is taken by adapters still in use
└── HostError         not every replica did what it was told, or the one that was asked could not say
    └── HostAbsent    nobody was there to be told or asked, or nobody who could do it now
"""

from __future__ import annotations

import re


class ServingError(Exception):
    """Carries one line for the person who reads it."""


class UnknownModel(ServingError):
    def __init__(self, model: str) -> None:
        super().__init__(
            f"The model '{model[:100]}' does not exist. Use 'policy', 'policy@stable', 'policy@previous', "
            "'policy@candidate', 'base' (GET /v1/models lists those that there are) or the full name of an adapter."
        )


class RequestRefused(ServingError):
    """`status` is the HTTP status, `param` the field at fault, `code` a stable word for programs."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    @classmethod
    def by_engine(cls, message: str, *, status: int, param: str | None) -> RequestRefused:
        """In the engine's words, which repeat the parameter for programs, and without the place in a body of its own."""
        message = re.sub(r" \(parameter=.*\)$", "", message)
        over = "maximum context length" in message
        return cls(
            message,
            status=status,
            param="messages" if over else param,
            code="context_length_exceeded" if over else "invalid_value",
        )


class EngineFailed(ServingError):
    code = "engine_failed"


class Overloaded(ServingError):
    """Nothing was done yet, so trying again is safe."""

    code = "overloaded"

    def __init__(self, why: str, *, retry_after_seconds: int) -> None:
        super().__init__(f"This replica is busy: {why}. Try again in {retry_after_seconds} seconds.")
        self.retry_after_seconds = retry_after_seconds


class DeadlineExceeded(ServingError):
    code = "deadline_exceeded"

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(f"{what} within {seconds:g} seconds. Ask for a shorter answer, or try again later.")


class AdapterRefused(ServingError): ...


class AdapterUnreachable(ServingError): ...


class BaseRefused(ServingError): ...


class NoRoom(ServingError): ...


class HostError(ServingError): ...


class HostAbsent(HostError): ...

"""A JSON body, read only after whoever sent it is known: a stranger learns nothing from what is wrong with it.

Python's parser takes more than JSON, and JSON leaves open what some readers see in another way than others. What is not
one thing to every reader is refused: a key that stands twice, an integer that no double holds, NaN, and depth that only
serves to break a parser.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import pydantic
from fastapi import Request

from service.errors import BadRequest, from_faults

Model = TypeVar("Model", bound=pydantic.BaseModel)

MAX_DEPTH = 32  # objects and lists in one another
MAX_INTEGER = 2**53  # beyond, not every integer is a double


def json_body(model: type[Model]) -> Callable[[Request], Awaitable[Model]]:
    """A dependency that parses the body. Name it after the guard: FastAPI asks them in the order of the arguments."""

    async def parse(request: Request) -> Model:
        """Raises `BadRequest` that names the field, or says that the body is no JSON object."""
        return _parsed(model, await json_object(request))

    return parse


def optional_json_body(model: type[Model]) -> Callable[[Request], Awaitable[Model]]:
    """The same, where no body at all stands for a model with its defaults."""

    async def parse(request: Request) -> Model:
        return _parsed(model, await json_object(request) if await request.body() else {})

    return parse


async def json_object(request: Request) -> dict[str, Any]:
    """The body as it is. Raises `BadRequest`."""
    raw = await request.body()
    if not raw:
        raise BadRequest("A JSON body is required.", code="missing_parameter")
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise _not_an_object()
    value = strict_json(raw)
    if not isinstance(value, dict):
        raise _not_an_object()
    return value


def strict_json(raw: bytes) -> Any:
    """What every reader of JSON takes it for. Raises `BadRequest`."""
    try:
        value = json.loads(
            raw, object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_no_number
        )
    except BadRequest:
        raise
    except (ValueError, RecursionError) as error:  # broken, or not UTF-8; far too deep
        raise _invalid("The body is not valid JSON.") from error
    if _deeper_than(value, MAX_DEPTH):
        raise _invalid(f"The body is nested more than {MAX_DEPTH} deep.")
    return value


def _parsed(model: type[Model], value: dict[str, Any]) -> Model:
    try:
        return model.model_validate(value)
    except pydantic.ValidationError as error:
        raise from_faults(error.errors(include_url=False, include_input=False, include_context=False)) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _invalid(f"The field '{twice[:100]}' stands twice in one object. Which of them counts?")
    return found


def _integer(digits: str) -> int:
    if len(digits) > 17 or abs(int(digits)) > MAX_INTEGER:
        raise _invalid(f"The body holds an integer beyond {MAX_INTEGER}, which not every reader of JSON keeps.")
    return int(digits)


def _number(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _no_number(digits)


def _no_number(word: str) -> NoReturn:
    raise _invalid(f"{word[:20]} is no number in JSON. Send one, or leave the field out.")


def _deeper_than(value: Any, most: int) -> bool:
    """Level by level, without recursion."""
    level = [value]
    for _ in range(most):
        level = [child for one in level if isinstance(one, dict | list) for child in _children(one)]
        if not level:
            return False
    return True


def _children(value: dict[str, Any] | list[Any]) -> list[Any]:
    children = value.values() if isinstance(value, dict) else value
    return [child for child in children if isinstance(child, dict | list)]


def _invalid(message: str) -> BadRequest:
    return BadRequest(message, code="invalid_json")


def _not_an_object() -> BadRequest:
    return _invalid("The body must be a JSON object, sent as application/json.")

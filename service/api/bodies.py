"""A JSON body, read only after whoever sent it is known: a stranger learns nothing from what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pydantic
from fastapi import Request

from service.errors import BadRequest, from_faults

Model = TypeVar("Model", bound=pydantic.BaseModel)


def json_body(model: type[Model]) -> Callable[[Request], Awaitable[Model]]:
    """A dependency that parses the body. Name it after the guard: FastAPI asks them in the order of the arguments."""

    async def parse(request: Request) -> Model:
        """Raises `BadRequest` that names the field, or says that the body is no JSON object."""
        raw = await request.body()
        if not raw:
            raise BadRequest("A JSON body is required.", code="missing_parameter")
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise _not_an_object()
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError) as error:  # broken, not UTF-8, a number of thousands of digits; too deep
            raise BadRequest("The body is not valid JSON.", code="invalid_json") from error
        if not isinstance(value, dict):
            raise _not_an_object()
        try:
            return model.model_validate(value)
        except pydantic.ValidationError as error:
            raise from_faults(error.errors(include_url=False, include_input=False, include_context=False)) from error

    return parse


def _not_an_object() -> BadRequest:
    return BadRequest("The body must be a JSON object, sent as application/json.", code="invalid_json")

"""Reads a request's body within size and time limits, and validates it against its schema."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from core.server.errors import ApiError, from_validation
from core.server.options import Limits


async def read_body(request: Request, limits: Limits) -> bytes:
    """Return the whole body. Raises ApiError, ClientDisconnect."""
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > limits.body:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.body_s):
            return await _collect(request, limits)
    except TimeoutError:
        raise ApiError(408, "The body of the request did not arrive in time.") from None


Model = TypeVar("Model", bound=BaseModel)


async def read(request: Request, model: type[Model], limits: Limits) -> Model:
    """Parse the body as `model`. Raises ApiError, ClientDisconnect."""
    body = await read_body(request, limits)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise from_validation(error) from None


async def _collect(request: Request, limits: Limits) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limits.body:
            raise _too_large(limits)
    return bytes(body)


def _too_large(limits: Limits) -> ApiError:
    return ApiError(413, f"The body of a request may have at most {limits.body >> 20} MiB.")

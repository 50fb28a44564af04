"""Errors of a request as HTTP responses in the format that the client expects."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from starlette.responses import JSONResponse

from core.errors import (
    BadRequest,
    DeviceLost,
    HeteGenError,
    NoChatTemplate,
    NotEnoughMemory,
    PromptTooLong,
)

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class ApiError(Exception):
    """An error response: HTTP status, a sentence, and OpenAI's `code` and `param`."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param

    @property
    def kind(self) -> str:
        """OpenAI's error type for this status."""
        return KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")


def from_engine(error: HeteGenError) -> ApiError:
    """Return the response to a request that the engine refused or failed."""
    match error:
        case PromptTooLong():
            return ApiError(400, str(error), code="context_length_exceeded", param="messages")
        case BadRequest() | NoChatTemplate():
            return ApiError(400, str(error))
        case NotEnoughMemory() | DeviceLost():
            return ApiError(503, str(error))
        case _:
            return ApiError(500, str(error))


def from_validation(error: ValidationError) -> ApiError:
    """Return the response for an invalid body: its first error, by location, without repeating values."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return ApiError(400, f"{place}: {first['msg']}" if place else first["msg"], param=place or None)


def error_body(error: ApiError, path: str) -> dict[str, Any]:
    """Return the JSON of an error: Anthropic's format for /v1/messages, OpenAI's elsewhere."""
    if path.startswith("/v1/messages"):
        return {"type": "error", "error": {"type": error.kind, "message": error.message}}
    return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}


def error_response(error: ApiError, path: str) -> JSONResponse:
    """Return the error as a JSON response in the format of this path's API."""
    headers = {"www-authenticate": "Bearer"} if error.status == 401 else {}
    if error.status in (429, 503):
        headers["retry-after"] = "1"
    return JSONResponse(error_body(error, path), error.status, headers)

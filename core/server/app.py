"""The routes of the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from core.server import chat, completions, messages, responses
from core.server.body import read, read_body
from core.server.errors import ApiError, error_response
from core.server.metrics import metrics_text
from core.server.schemas import ChatCompletion, Completion, CountTokens, MessageCreate, ResponseCreate
from core.server.security import AccessRules, Guard
from core.server.service import Service, client_of

CLIENT_LEFT = 499
Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(service: Service) -> ASGIApp:
    """Return the server as an ASGI application."""
    routes = Routes(service)
    table: list[tuple[str, str, Endpoint]] = [
        ("GET", "/health", routes.health),
        ("GET", "/metrics", routes.metrics),
        ("GET", "/v1/models", routes.models),
        ("GET", "/v1/models/{id:path}", routes.one_model),
        ("POST", "/v1/chat/completions", routes.chat),
        ("POST", "/v1/completions", routes.completions),
        ("POST", "/v1/responses", routes.responses),
        ("POST", "/v1/messages", routes.messages),
        ("POST", "/v1/messages/count_tokens", routes.count_tokens),
        ("POST", "/v1/embeddings", routes.embeddings),
    ]
    # Some clients expect an address with /v1, others without.
    table += [(method, path.removeprefix("/v1"), do) for method, path, do in table if path.startswith("/v1")]
    starlette = Starlette(
        routes=[Route(path, routes.logged(endpoint), methods=[method]) for method, path, endpoint in table]
        + [Route(path, preflight, methods=["OPTIONS"]) for _, path, _ in table],
        exception_handlers={HTTPException: _refused},
    )
    return Guard(starlette, AccessRules(service.options))


class Routes:
    """The endpoints of one server."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._limits = service.options.limits

    def logged(self, endpoint: Endpoint) -> Endpoint:
        """Wrap an endpoint: errors become responses, and each request is logged."""

        async def answer(request: Request) -> Response:
            began = time.perf_counter()
            try:
                response = await endpoint(request)
            except ApiError as error:
                response = error_response(error, request.url.path)
            except ClientDisconnect:
                response = Response(status_code=CLIENT_LEFT)
            live = getattr(request.state, "live", None)
            self._service.activity.answered(
                client_of(request),
                request.scope["route"].path,
                response.status_code,
                time.perf_counter() - began,
                live.tokens if live else 0,
            )
            return response

        return answer

    async def health(self, request: Request) -> Response:
        """Answer 200 if a model is ready, otherwise 503."""
        ready = self._service.backend.model() is not None
        return JSONResponse({"status": "ok" if ready else "no model"}, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        """Return metrics for Prometheus."""
        return PlainTextResponse(metrics_text(self._service.activity))

    async def models(self, request: Request) -> Response:
        """List the available models."""
        return JSONResponse({"object": "list", "data": await self._models()})

    async def one_model(self, request: Request) -> Response:
        """Return one model by name."""
        wanted = request.path_params["id"]
        found = next((entry for entry in await self._models() if entry["id"] == wanted), None)
        if found is None:
            raise ApiError(404, "There is no such model here.", code="model_not_found", param="model")
        return JSONResponse(found)

    async def chat(self, request: Request) -> Response:
        """Answer OpenAI's chat completions."""
        service = self._service
        wish = await read(request, ChatCompletion, self._limits)
        model = service.model(wish.model)
        exchange = service.ask(request, model, chat.to_request(wish))
        if wish.stream:
            return await service.stream(request, exchange, lambda events: chat.chunks(events, model, wish))
        return await service.whole(request, exchange, lambda answer: chat.whole(answer, model, wish))

    async def completions(self, request: Request) -> Response:
        """Answer OpenAI's completions of plain text."""
        service = self._service
        wish = await read(request, Completion, self._limits)
        model = service.model(wish.model, chat=False)
        exchange = service.ask(request, model, completions.to_request(wish))
        if wish.stream:
            return await service.stream(request, exchange, lambda events: completions.chunks(events, model, wish))
        return await service.whole(request, exchange, lambda answer: completions.whole(answer, model, wish))

    async def responses(self, request: Request) -> Response:
        """Answer OpenAI's responses."""
        service = self._service
        wish = await read(request, ResponseCreate, self._limits)
        model = service.model(wish.model)
        exchange = service.ask(request, model, responses.to_request(wish))
        if wish.stream:
            return await service.stream(request, exchange, lambda events: responses.chunks(events, model))
        return await service.whole(request, exchange, lambda answer: responses.whole(answer, model))

    async def messages(self, request: Request) -> Response:
        """Answer Anthropic's messages."""
        service = self._service
        wish = await read(request, MessageCreate, self._limits)
        model = service.model(wish.model)
        exchange = service.ask(request, model, messages.to_request(wish))
        if wish.stream:
            return await service.stream(request, exchange, lambda events: messages.chunks(events, model))
        return await service.whole(request, exchange, lambda answer: messages.whole(answer, model))

    async def count_tokens(self, request: Request) -> Response:
        """Count a prompt's tokens, as Anthropic's API does."""
        wish = await read(request, CountTokens, self._limits)
        model = self._service.model(wish.model)
        return JSONResponse({"input_tokens": await self._service.count(request, model, messages.to_count(wish))})

    async def embeddings(self, request: Request) -> Response:
        """Refuse: chat models give no embeddings. Raises ApiError."""
        await read_body(request, self._limits)
        raise ApiError(400, "The loaded model answers questions; it gives no embeddings.", code="no_embeddings")

    async def _models(self) -> list[dict[str, Any]]:
        loaded, name = self._service.backend.model(), self._service.backend.name()
        names = await asyncio.to_thread(self._service.backend.installed)
        created = self._service.started
        entries = [] if loaded is None else [_entry(name, created) | {
            "loaded": True, "meta": {"n_ctx": loaded.context, "n_ctx_train": loaded.spec.context_limit if loaded.spec
            else loaded.context, "n_params": loaded.parameters, "size": loaded.weight_bytes},
            "max_model_len": loaded.context, "context_length": loaded.context,
        }]  # fmt: skip
        known = {entry["id"] for entry in entries}
        return entries + [_entry(name, created) | {"loaded": False} for name in names if name not in known]


def _entry(id: str, created: int) -> dict[str, Any]:
    architecture = {"input_modalities": ["text"], "output_modalities": ["text"]}
    return {"id": id, "object": "model", "created": created, "owned_by": "hetegen", "architecture": architecture}


async def preflight(request: Request) -> Response:
    """Answer a CORS preflight; `Guard` has already checked the origin."""
    return Response(status_code=204)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: "There is no such path here.", 405: "This path is not used with that method."}
    shown = ApiError(error.status_code, words.get(error.status_code, error.detail))
    return error_response(shown, request.url.path)

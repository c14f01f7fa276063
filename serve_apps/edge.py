"""Outermost ASGI layer: bounds the body before anything parses it, and counts the answers."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from serve_apps.metrics import GatewayMetrics
from serve_apps.problems import problem

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Edge:
    """Answers 413 to a body above `max_body_bytes`, declared or streamed; `is_stream` picks what passes as it comes."""

    def __init__(
        self,
        app: App,
        max_body_bytes: int,
        metrics: GatewayMetrics,
        is_stream: Callable[[Scope], bool] = lambda _scope: False,
    ) -> None:
        self._app, self._is_stream = app, is_stream
        self._max_body_bytes = max_body_bytes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(_route_of(scope), str(message["status"])).inc()
            await send(message)

        if self._is_stream(scope):
            await self._app(scope, receive, counting_send)
            return
        body = await self._read(scope, receive)
        if body is None:
            answer = problem(413, f"the body is larger than {self._max_body_bytes} bytes; send it in parts")
            await answer(scope, receive, counting_send)
            return
        await self._app(scope, _replay(body, receive), counting_send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > self._max_body_bytes:
            return None
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                break
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_body_bytes:
                return None
            more = message.get("more_body", False)
        return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()  # the disconnect, when it comes
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _route_of(scope: Scope) -> str:
    """The route's template, never the path: ids must not become label values."""
    return getattr(scope.get("route"), "path", "none")

"""Outermost ASGI layer: bounds what a request may be before anything parses it, names it, times it, counts it."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import Response

from avrec_ray.config import LimitsConfig
from serve_apps.access_log import AccessLog, RequestNotes, begin_notes
from serve_apps.metrics import GatewayMetrics
from serve_apps.problems import problem
from serve_apps.request_ids import HEADER, current_request_id, take_request_id
from serve_apps.tracing import end_request, request_span

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger(__name__)

_ALWAYS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
"""Lists are personal: no cache on the way may keep them."""


class Edge:
    """Answers 408, 413, 414, 431 and 503 itself; whatever headers say, none of its bounds can be raised by a client.

    `is_stream` picks requests whose body passes as it comes: a route bounds it, and its time, by itself.
    """

    def __init__(
        self,
        app: App,
        max_body_bytes: int,
        metrics: GatewayMetrics,
        limits: LimitsConfig | None = None,
        echoes_request_id: bool = True,
        is_stream: Callable[[Scope], bool] = lambda _scope: False,
        access_log: AccessLog | None = None,
    ) -> None:
        """Without `echoes_request_id` the id is not put into the answer: Ray Serve's proxy puts it there itself."""
        self._app, self._is_stream = app, is_stream
        self._max_body_bytes = max_body_bytes
        self._metrics = metrics
        self._limits = limits or LimitsConfig()
        self._echoes_request_id = echoes_request_id
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        offered = _header(scope, b"x-request-id")
        request_id = take_request_id(offered).encode()
        notes = begin_notes()
        headers = list(_ALWAYS)
        if self._echoes_request_id or request_id != offered:
            headers.append((HEADER.lower().encode(), request_id))
        answer = _Answer(send, headers)
        started = time.perf_counter()
        with request_span(scope["headers"], scope["method"], current_request_id()) as span:
            try:
                await self._bounded(scope, receive, answer)
            finally:
                end_request(span, _route_of(scope), answer.status)
                self._report(scope, answer.status, time.perf_counter() - started, notes)

    async def _bounded(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        refusal = self._refusal(scope)
        body: bytes | None = b""
        if refusal is None and self._is_stream(scope):
            await self._app(scope, receive, answer)
            return
        if refusal is None:
            try:
                async with asyncio.timeout(self._limits.body_seconds):
                    body = await self._read(scope, receive)
            except TimeoutError:
                refusal = problem(408, f"the body took more than {self._limits.body_seconds:g} s to arrive")
        if body is None:
            refusal = problem(413, f"the body is larger than {self._max_body_bytes} bytes; send it in parts")
        if refusal is not None:
            await refusal(scope, receive, answer)
            return
        try:
            async with asyncio.timeout(self._limits.request_seconds):
                await self._app(scope, _replay(body or b"", receive), answer)
        except TimeoutError:
            if answer.status:
                raise  # half of an answer is out: all that is left is to break the connection
            logger.warning("request %s: out of time", current_request_id())
            late = problem(503, f"no answer within {self._limits.request_seconds:g} s; send the request again")
            await late(scope, receive, answer)
        except Exception:  # of ours; answered here and not further out, so that it is counted and has its headers
            logger.exception("request %s: %s failed", current_request_id(), _route_of(scope))
            if answer.status:
                raise
            await problem(500, "The service made a mistake; its log says which.")(scope, receive, answer)

    def _refusal(self, scope: Scope) -> Response | None:
        """Why the head of the request is too much, if it is."""
        num_bytes = sum(len(name) + len(value) for name, value in scope["headers"])
        if num_bytes > self._limits.header_bytes or len(scope["headers"]) > self._limits.max_headers:
            return problem(
                431,
                f"expected at most {self._limits.max_headers} headers of {self._limits.header_bytes} bytes together",
            )
        path = scope.get("raw_path") or scope["path"].encode("utf-8", "surrogateescape")
        if len(path) + len(scope.get("query_string", b"")) > self._limits.url_bytes:
            return problem(414, f"path and query are longer than {self._limits.url_bytes} bytes")
        if any(letter < " " or letter == "\x7f" for letter in scope["path"]):  # routes take no newline, or lose one
            return problem(400, "the path holds a control character; expected none, also when it is %-encoded")
        return None

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        declared = _header(scope, b"content-length") or b"0"
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

    def _report(self, scope: Scope, status: int, seconds: float, notes: RequestNotes) -> None:
        route = _route_of(scope)
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        key = scope.get("avrec.key")
        key_name = key.name if key else "-"
        logger.info(
            "request %s: %s %s %s in %.1f ms, key %s",
            current_request_id(), scope["method"], route, status, seconds * 1000, key_name,
        )  # fmt: skip
        if self._access_log is not None:
            self._access_log.write(scope["method"], route, status, seconds, key_name, notes)


class _Answer:
    """Passes the answer on, with `headers` added, and remembers its status: 0 while there is none."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._headers = headers
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
            message["headers"] = [*message.get("headers", []), *self._headers]
        await self._send(message)


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()  # the disconnect, when it comes
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key.lower() == name), None)


def _route_of(scope: Scope) -> str:
    """The route's template, never the path: ids must not become label values."""
    return getattr(scope.get("route"), "path", "none")

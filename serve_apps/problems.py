"""Errors as application/problem+json (RFC 9457): what was got, what was expected."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException


class ProblemError(Exception):
    """An error with an HTTP status; `more` are extra members of the answer, `headers` of its own."""

    def __init__(
        self,
        status: int,
        detail: str,
        more: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.more = dict(more or {})
        self.headers = dict(headers or {})


def install(api: FastAPI) -> None:
    """Make every error of `api` a problem document."""
    api.add_exception_handler(ProblemError, _on_problem)
    api.add_exception_handler(HTTPException, _on_http)
    api.add_exception_handler(RequestValidationError, _on_invalid)


_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "1"}}


def problem(
    status: int, detail: str, more: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The answer for a status, with the header that belongs to it unless `headers` has it."""
    title = HTTPStatus(status).phrase
    body = {"type": f"urn:avrec:problem:{status}", "title": title, "status": status, "detail": detail, **(more or {})}
    headers = {**_HEADERS.get(status, {}), **(headers or {})}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


async def _on_problem(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ProblemError)
    return problem(error.status, error.detail, error.more, error.headers)


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = {"Allow": _allowed(request)} if error.status_code == 405 else error.headers
    return problem(error.status_code, str(error.detail), headers=headers)


def _allowed(request: Request) -> str:
    """Methods of every route with this path; Starlette names those of the first alone."""
    routes = [route for route in request.app.state.routes if route.path_regex.match(request.scope["path"])]
    return ", ".join(sorted({method for route in routes for method in route.methods}))


async def _on_invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    fields = [_field_error(e) for e in error.errors()[:10]]
    first = fields[0]
    return problem(422, f"{first['field']}: got {first['got']}, expected {first['expected']}", {"errors": fields})


def _field_error(error: Mapping[str, Any]) -> dict[str, str]:
    where = [str(part) for part in error["loc"] if part not in ("body", "query", "path")]
    message = str(error["msg"])
    for start in ("Input should be ", "Value error, "):
        message = message.removeprefix(start)
    if error["type"] == "missing":
        return {"field": ".".join(where) or "body", "got": "nothing", "expected": "a value: the field is required"}
    if error["type"] == "extra_forbidden":
        message = "no such field; see /openapi.json for the known ones"
    if error["type"] == "json_invalid":
        return {"field": "body", "got": "text that is not JSON", "expected": "a JSON object"}
    return {"field": _ascii(".".join(where) or "body"), "got": shown(error.get("input")), "expected": _ascii(message)}


def shown(value: Any) -> str:
    """A client's value as short ASCII with its type, fit for an answer and a log."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):
        text = "..."
    return f"{text[:77] + '...' if len(text) > 80 else text} ({type(value).__name__})"


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()[:300]

"""The description of the API: what FastAPI writes, and an example of each request and answer, the statuses that the
edge answers, the two headers a key may come in, and links from lists to what can be asked next.
"""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from serve_apps.api_examples import ANSWERS, PARAMETERS, REQUESTS
from serve_apps.auth import RequireScope
from serve_apps.schemas import Problem

Spec = dict[str, Any]

_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
EDGE_STATUSES = (400, 408, 413, 414, 431, 500, 503)
"""What any route can answer: a head or a body that is too much, too late or no HTTP, a mistake of ours, no time."""
_TITLES = {
    400: "The request is no HTTP that can be read, or its path holds a control character.",
    401: "No key, or one that is not known.",
    403: "The key lacks the scope; without keys: the caller is not a program on this machine.",
    404: "There is no such thing.",
    405: "What is asked for knows another method; Allow says which.",
    409: "It cannot be done in the state that things are in; `detail` says why.",
    408: "The body took too long to arrive.",
    413: "The body is too large.",
    414: "Path and query are too long.",
    422: "A value is wrong; `errors` says which, what was got and what was expected.",
    429: "Too many requests of this key, or more work than the service can queue; see Retry-After.",
    431: "The headers are too many or too large.",
    500: "A mistake of the service; its log says which.",
    503: "What is needed does not answer, or not in time; see Retry-After.",
}
_RETRY_AFTER = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds to wait."}}
_REQUEST_ID = {"X-Request-Id": {"schema": {"type": "string"}, "description": "The client's if clean, else a new one."}}
LINKS: dict[str, dict[str, tuple[str, dict[str, str]]]] = {
    "recommend": {
        "similarToFirst": ("similar", {"item_id": "$response.body#/items/0/item_id"}),
        "first": ("item", {"item_id": "$response.body#/items/0/item_id"}),
    },
    "search": {"similarToFound": ("similar", {"item_id": "$response.body#/items/0/item_id"})},
    "similar": {"nearest": ("item", {"item_id": "$response.body#/items/0/item_id"})},
    "gorse_recommend": {"firstItem": ("gorse_item", {"item_id": "$response.body#/0"})},
}
"""Operation to its links: a name, the operation that comes next, and where that one's parameters come from."""


def describe(api: FastAPI, routes: Sequence[APIRoute]) -> None:
    """Make `api.openapi()` give the whole description; made once, when it is first asked for."""
    written_by_fastapi = api.openapi

    def openapi() -> Spec:
        if api.openapi_schema is None:
            api.openapi_schema = _completed(written_by_fastapi(), scopes_of(routes))
        return api.openapi_schema

    api.openapi = openapi  # type: ignore[method-assign]


def scopes_of(routes: Sequence[APIRoute]) -> dict[str, str]:
    """The scope that each route needs, by operation; routes that need none are left out."""
    return {
        route.name: dependency.dependency.scope
        for route in routes
        for dependency in route.dependencies
        if isinstance(dependency.dependency, RequireScope)
    }


def _completed(spec: Spec, scopes: dict[str, str]) -> Spec:
    spec["components"]["securitySchemes"] = _SECURITY
    spec["components"]["schemas"].setdefault("Problem", Problem.model_json_schema())
    for schema in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which no route answers
        spec["components"]["schemas"].pop(schema, None)
    for methods in spec["paths"].values():
        for operation in methods.values():
            _complete(operation, scopes.get(operation["operationId"]))
    return spec


def _complete(operation: Spec, scope: str | None) -> None:
    name = operation["operationId"]
    operation["security"] = [{"bearer": []}, {"apiKey": []}] if scope else []
    if scope:
        operation["description"] = f"{operation.get('description', '')}\n\nScope: {scope}.".strip()
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        if kind != "application/json":
            continue
        content["examples"] = {key: {"value": value} for key, value in REQUESTS.get(name, {}).items()}
    for parameter in operation.get("parameters", []):
        if parameter["name"] in PARAMETERS:
            parameter["example"] = PARAMETERS[parameter["name"]]
    answers = operation["responses"]
    for status in EDGE_STATUSES:
        answers.setdefault(str(status), {})
    for status, answer in answers.items():
        _complete_answer(name, int(status), answer)
    for key, (target, parameters) in LINKS.get(name, {}).items():
        answers["200"].setdefault("links", {})[key] = {"operationId": target, "parameters": parameters}
    operation["responses"] = dict(sorted(answers.items()))


def _complete_answer(name: str, status: int, answer: Spec) -> None:
    answer["headers"] = {**_REQUEST_ID, **(_RETRY_AFTER if status in (429, 503) else {})}
    if status < 300:
        for content in answer.get("content", {}).values():
            if name in ANSWERS:
                content["example"] = ANSWERS[name]
        return
    answer["description"] = _TITLES[status]
    content = {kind: body for kind, body in answer.get("content", {}).items() if _is_of_a_model(body)}
    answer["content"] = {**content, "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


def _is_of_a_model(body: Spec) -> bool:
    """False for what FastAPI writes for errors by itself: they come as problem documents, and as nothing else."""
    reference = body.get("schema", {}).get("$ref", "")
    return bool(reference) and not reference.endswith(("/Problem", "/HTTPValidationError"))

"""The description is whole: an example of each request and answer, which works; every status; links to what exists."""

from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from jsonschema import Draft202012Validator

from serve_apps.api_examples import ANSWERS, PARAMETERS, REQUESTS
from serve_apps.openapi import EDGE_STATUSES, LINKS
from tests.serve_apps.test_auth import PUBLIC, api

__all__ = ["api"]  # the fixture

DONE = {"200", "202"}


def operations(spec: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(method, path, op) for path, methods in spec["paths"].items() for method, op in methods.items()]


def done_status(op: dict[str, Any]) -> str:
    """The status of an operation that did what was asked."""
    (status,) = DONE & set(op["responses"])
    return status


def test_every_operation_has_an_id_an_example_and_every_status(api: FastAPI) -> None:
    spec = api.openapi()
    seen = set()
    for _, path, op in operations(spec):
        name = op["operationId"]
        assert name not in seen
        seen.add(name)
        assert op["description"], path
        assert name in ANSWERS, f"{name} needs an example in api_examples.py"
        done = done_status(op)
        assert all("example" in content for content in op["responses"][done].get("content", {}).values())
        assert ("requestBody" in op) == (name in REQUESTS)
        expected = {done, *map(str, EDGE_STATUSES)}
        expected |= set() if name in PUBLIC else {"401", "403", "422", "429"}
        assert expected <= set(op["responses"]), name
        assert bool(op["security"]) == (name not in PUBLIC)
    assert set(ANSWERS) == seen
    assert set(REQUESTS) <= seen


def test_errors_are_described_as_problem_documents_alone(api: FastAPI) -> None:
    for _, path, op in operations(api.openapi()):
        for status, answer in op["responses"].items():
            if status not in DONE:
                assert answer["content"]["application/problem+json"]["schema"]["$ref"].endswith("/Problem"), path
                assert answer["description"]
            if status in ("429", "503"):
                assert "Retry-After" in answer["headers"]
    assert "HTTPValidationError" not in str(api.openapi())


def test_examples_of_answers_fit_their_schemas(api: FastAPI) -> None:
    spec = api.openapi()
    checked = 0
    for _, _, op in operations(spec):
        content = op["responses"][done_status(op)].get("content", {}).get("application/json")
        if content and "schema" in content:
            schema = {**content["schema"], "components": spec["components"]}
            Draft202012Validator(schema).validate(content["example"])
            checked += 1
    assert checked > 12


def test_examples_of_requests_are_accepted(client: httpx.Client) -> None:
    for method, path, op in operations(client.get("/openapi.json").json()):
        for name, value in (PARAMETERS | {"item_id": "i1"}).items():
            path = path.replace(f"{{{name}}}", str(value))
        needed = {p["name"]: p["example"] for p in op.get("parameters", []) if p["in"] == "query" and p["required"]}
        bodies = [
            example["value"]
            for content in op.get("requestBody", {}).get("content", {}).values()
            for example in content.get("examples", {}).values()
        ]
        for body in bodies or [None]:
            answer = client.request(method, path, params=needed, json=body)
            assert str(answer.status_code) == done_status(op), (path, answer.text)


def test_links_lead_to_operations_and_their_parameters(api: FastAPI) -> None:
    spec = api.openapi()
    by_name = {op["operationId"]: op for _, _, op in operations(spec)}
    for source, links in LINKS.items():
        assert set(by_name[source]["responses"]["200"]["links"]) == set(links)
        for target, parameters in links.values():
            assert set(parameters) <= {parameter["name"] for parameter in by_name[target]["parameters"]}


@pytest.mark.parametrize("scope", ["read", "write"])
def test_scopes_are_told(api: FastAPI, scope: str) -> None:
    assert any(f"Scope: {scope}." in op["description"] for _, _, op in operations(api.openapi()))

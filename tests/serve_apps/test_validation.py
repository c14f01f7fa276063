"""Bad requests: 4xx, a problem document, the field named, never a 500."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avrec_ray.feedback.store import EventStore
from serve_apps.flow import RequestFlow
from serve_apps.schemas import RankRequest, RecommendRequest
from tests.serve_apps.conftest import CategoryModels, client_of, small_catalogue


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """One server for the whole file: a refused request leaves nothing behind."""
    catalogue = small_catalogue()
    store = EventStore(f"sqlite:///{tmp_path_factory.mktemp('store') / 'events.db'}")
    models = CategoryModels(catalogue).as_models()
    with client_of(RequestFlow(models, store, catalogue, "v-test", "v-index", 50, 1500)) as opened:
        yield opened


@pytest.mark.parametrize(
    ("path", "body", "detail"),
    [
        ("recommend", {"k": "ten"}, "k: got 'ten' (str), expected a valid integer"),
        ("recommend", {"k": "10"}, "k: got '10' (str), expected a valid integer"),
        ("recommend", {"k": True}, "k: got True (bool), expected a valid integer"),
        ("recommend", {"k": 0}, "k: got 0 (int), expected greater than or equal to 1"),
        ("recommend", {"k": 101}, "k: got 101 (int), expected less than or equal to 100"),
        ("recommend", {"user_id": 5}, "user_id: got 5 (int), expected a valid string"),
        ("recommend", {"user_id": "x" * 257}, "user_id: got 'xxx"),
        ("recommend", {"user_id": "a\n"}, "user_id: got 'a\\n' (str), expected Unicode"),
        ("recommend", {"user": "u1"}, "user: got 'u1' (str), expected no such field"),
        ("recommend", {"diversity": 1.5}, "diversity: got 1.5 (float), expected less than or equal to 1"),
        (
            "recommend",
            {"filters": {"categories": "music"}},
            "filters.categories: got 'music' (str), expected a valid l",
        ),
        ("recommend", {"filters": {"max_duration_seconds": -1}}, "filters.max_duration_seconds: got -1"),
        ("recommend", {"session": [{"item_id": "i1", "event": "applaud"}]}, "session.0.event: got 'applaud' (str)"),
        ("recommend", {"session": [{"event": "like"}]}, "session.0.item_id: got nothing, expected a value"),
        ("recommend", {"session": [{"item_id": "i", "event": "like", "at": "noon"}]}, "session.0.at: got 'noon'"),
        ("recommend", {"deadline_ms": 0}, "deadline_ms: got 0 (int), expected greater"),
        ("recommend", [], "body: got [] (list), expected a valid dictionary"),
        ("rank", {"user_id": "u1"}, "items: got nothing, expected a value: the field is required"),
        ("rank", {"items": ["i1"]}, "user_id: got nothing"),
        ("rank", {"user_id": "u1", "items": []}, "items: got [] (list), expected List should have at least 1 item"),
        ("rank", {"user_id": "u1", "items": ["i"] * 501}, "items: got ['i', 'i'"),
        ("feedback", {}, "events: got nothing"),
        ("feedback", {"events": {}}, "events: got {} (dict), expected a valid list"),
    ],
)
def test_request_bad_value_is_422_naming_field_got_and_expected(
    client: httpx.Client, path: str, body: object, detail: str
) -> None:
    response = client.post(f"/v1/{path}", json=body)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["detail"].startswith(detail)
    assert (problem["status"], bool(problem["title"])) == (422, True)
    assert problem["type"] == "urn:avrec:problem:422"
    assert set(problem["errors"][0]) == {"field", "got", "expected"}


@pytest.mark.parametrize("k", ["0", "101", "ten"])
def test_similar_bad_k_is_422(client: httpx.Client, k: str) -> None:
    response = client.get("/v1/items/i1/similar", params={"k": k})
    assert response.status_code == 422
    assert response.json()["detail"].startswith(f"k: got '{k}' (str)")


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"{", "body: got text that is not JSON, expected a JSON object"),
        (b'{"k": NaN}', "k: got nan (float)"),
        (b'{"user_id": "\\ud800"}', "user_id: got '\\ud800'"),
        (b'{"\\ud800": 1}', "body: got '\\ud800' (str), expected a valid string"),
        (b'{"k": 1e400}', "k: got inf (float)"),
        (b"", "body: got nothing"),
    ],
)
def test_request_hostile_json_is_422(client: httpx.Client, content: bytes, detail: str) -> None:
    response = client.post("/v1/recommend", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert response.json()["detail"].startswith(detail)


@pytest.mark.parametrize("content", [b"[" * 50_000, b"\xff\xfe", b"k=10", b'{"k":' + b"9" * 6000 + b"}"])
def test_request_unreadable_body_is_a_4xx_problem(client: httpx.Client, content: bytes) -> None:
    response = client.post("/v1/feedback", content=content, headers={"content-type": "application/json"})
    assert 400 <= response.status_code < 500
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("chunked", [False, True])
def test_request_too_large_is_413(make_client: Callable[..., httpx.Client], chunked: bool) -> None:
    client = make_client(max_body_bytes=2048)
    body = b" " * 3000
    content = iter([body[:1500], body[1500:]]) if chunked else body
    response = client.post("/v1/feedback", content=content)
    assert response.status_code == 413
    assert response.json()["detail"] == "the body is larger than 2048 bytes; send it in parts"
    assert client.get("/health/live").status_code == 200


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("GET", "/v1/recommend", 405)])
def test_request_wrong_route_is_a_problem(client: httpx.Client, method: str, path: str, status: int) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"


def test_openapi_lists_every_route_and_the_shape_of_an_event(client: httpx.Client) -> None:
    description = client.get("/openapi.json").json()
    routes = {"/v1/recommend", "/v1/rank", "/v1/feedback", "/v1/items/{item_id}", "/v1/items/{item_id}/similar"}
    assert routes | {"/health/live", "/health/ready", "/metrics"} <= set(description["paths"])
    event = description["components"]["schemas"]["FeedbackRequest"]["properties"]["events"]["items"]
    assert event["required"] == ["event_id", "user_id", "item_id", "event"]
    assert "skip" in event["properties"]["event"]["enum"]
    answers = description["paths"]["/v1/recommend"]["post"]["responses"]
    assert "application/problem+json" in answers["422"]["content"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from([*RecommendRequest.model_fields, *RankRequest.model_fields, "events", "extra"])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(["recommend", "rank", "feedback"]), body=st.dictionaries(names, json_values, max_size=4))
def test_request_any_json_is_answered_without_a_5xx(client: httpx.Client, path: str, body: dict[str, Any]) -> None:
    response = client.post(f"/v1/{path}", json=body)
    assert response.status_code in (200, 422)
    if response.status_code == 422:
        assert response.json()["detail"]

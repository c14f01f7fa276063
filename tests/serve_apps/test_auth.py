"""Who may call what: every route of the application against every kind of key, and against callers without one."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request

from avrec_ray.errors import ConfigError
from avrec_ray.feedback.config import FeedbackConfig
from avrec_ray.feedback.store import EventStore
from serve_apps.api import create_api
from serve_apps.auth import Gate, RequireScope, check_host, check_local
from serve_apps.flow import RequestFlow
from serve_apps.keys import SCOPES, KeyRing, keys_from_environment
from serve_apps.openapi import scopes_of
from serve_apps.problems import ProblemError
from tests.serve_apps.conftest import CategoryModels, client_of, queue_of, small_catalogue

SECRETS = {scope: f"the-{scope}-key-0123456789" for scope in SCOPES}
PUBLIC = {"live", "ready", "gorse_live", "gorse_ready"}
"""Operations that need no key. Add one here only if whoever reaches the port may call it."""
OPENS = {"read": {"read", "admin"}, "write": {"write", "admin"}, "admin": {"admin"}}
"""Scopes of keys by the scope that a route needs."""


def ring_of_scopes() -> KeyRing:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AVREC_API_KEYS", ",".join(f"{scope}:{secret}" for scope, secret in SECRETS.items()))
        return KeyRing(keys_from_environment())


def parts(folder: Path) -> RequestFlow:
    catalogue = small_catalogue()
    store = EventStore(f"sqlite:///{folder / 'events.db'}")
    return RequestFlow(CategoryModels(catalogue).as_models(), store, catalogue, "v-test", "v-index", 50, 1500)


def whole_api(folder: Path, feedback: FeedbackConfig | None = None) -> FastAPI:
    """Every route there is, behind a key of each scope."""
    flow = parts(folder)
    gate, queue = Gate(ring_of_scopes()), queue_of(flow, folder)
    return create_api(flow, feedback or FeedbackConfig(), gate, new_items=queue)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return whole_api(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server with a key of each scope."""
    folder = tmp_path_factory.mktemp("store")
    flow = parts(folder)
    with client_of(flow, keys=ring_of_scopes(), new_items=queue_of(flow, folder)) as client:
        yield client


def all_routes(api: FastAPI) -> list[tuple[str, str, APIRoute]]:
    """(method, path, route) of every route that the application really has, hidden ones too."""
    found = [
        route
        for entry in api.routes
        for route in getattr(getattr(entry, "original_router", None), "routes", [entry])
        if isinstance(route, APIRoute)
    ]
    return [(method, route.path, route) for route in found for method in sorted(route.methods)]


def scope_of(route: APIRoute) -> str | None:
    found = [d.dependency.scope for d in route.dependencies if isinstance(d.dependency, RequireScope)]
    assert len(found) <= 1, f"{route.path} asks for several scopes"
    return found[0] if found else None


def test_every_route_asks_for_a_scope_or_is_named_public(api: FastAPI) -> None:
    routes = all_routes(api)
    assert len(routes) > 15
    open_ones = {route.name for _, _, route in routes if scope_of(route) is None}
    assert open_ones == PUBLIC


def test_every_operation_of_the_description_is_among_the_routes(api: FastAPI) -> None:
    described = {op["operationId"] for methods in api.openapi()["paths"].values() for op in methods.values()}
    assert described == {route.name for _, _, route in all_routes(api)}
    assert set(scopes_of(api.state.routes)) == described - PUBLIC


def test_the_matrix_of_routes_and_keys_is_complete(api: FastAPI, closed: httpx.Client) -> None:
    """No key and a wrong one: 401. A key without the scope: 403. Any other: past the gate, to 200, 404 or 422."""
    checked = 0
    for method, path, route in all_routes(api):
        url = path.replace("{item_id:path}", "i1").replace("{user_id:path}", "u1").replace("{model}", "m")
        scope = scope_of(route)
        callers = {"nobody": None, "stranger": "Bearer not-a-key-0123456789"}
        callers |= {name: f"Bearer {secret}" for name, secret in SECRETS.items()}
        for caller, header in callers.items():
            headers = {} if header is None else {"Authorization": header}
            status = closed.request(method, url, headers=headers).status_code
            if scope is None or caller in OPENS[scope]:
                assert status in (200, 404, 422), (method, path, caller, status)
            else:
                assert status == (403 if caller in SCOPES else 401), (method, path, caller, status)
            checked += 1
    assert checked == 5 * len(all_routes(api))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {SECRETS['read']}"},
        {"Authorization": SECRETS["read"]},
        {"Authorization": f"Bearer {SECRETS['read']}x"},
        {"Authorization": f"Bearer {SECRETS['read']} {SECRETS['read']}"},
        {"X-API-Key": "wrong"},
        {"X-API-Key": f"Bearer {SECRETS['read']}"},
        {"Authorization": "Bearer wrong", "X-API-Key": SECRETS["read"]},
    ],
)
def test_a_key_in_no_accepted_form_is_401(closed: httpx.Client, headers: dict[str, str]) -> None:
    response = closed.get("/v1/items/i1", headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["content-type"] == "application/problem+json"


def test_several_keys_in_one_request_are_401(closed: httpx.Client) -> None:
    twice = [("Authorization", f"Bearer {SECRETS['read']}"), ("Authorization", f"Bearer {SECRETS['admin']}")]
    assert closed.get("/v1/items/i1", headers=httpx.Headers(twice)).status_code == 401


@pytest.mark.parametrize("headers", [{"Authorization": f"bearer {SECRETS['read']}"}, {"X-API-Key": SECRETS["read"]}])
def test_a_key_opens_in_either_header(closed: httpx.Client, headers: dict[str, str]) -> None:
    assert closed.get("/v1/items/i1", headers=headers).status_code == 200


def test_forbidden_says_which_scope_is_missing(closed: httpx.Client) -> None:
    answer = closed.post("/v1/feedback", json={"events": []}, headers={"X-API-Key": SECRETS["read"]})
    assert (answer.status_code, answer.json()["scope"]) == (403, "write")
    assert answer.json()["detail"] == "this key may read, expected one that may write"


def test_health_needs_no_key_and_docs_are_off_with_keys(closed: httpx.Client) -> None:
    assert closed.get("/health/live").status_code == 200
    assert closed.get("/health/ready").status_code == 200
    assert closed.get("/docs").status_code == 404


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "example.org"])
def test_check_host_open_address_without_keys_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="AVREC_API_KEYS is not set"):
        check_host(host, closed=False)
    check_host(host, closed=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_check_host_loopback_needs_no_keys(host: str) -> None:
    check_host(host, closed=False)


def request_from(client: str, **headers: str) -> Request:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "client": (client, 1), "headers": raw})


def test_without_keys_callers_from_other_machines_are_refused() -> None:
    check_local(request_from("127.0.0.1"))
    with pytest.raises(ProblemError, match="only callers on the same machine") as caught:
        check_local(request_from("192.0.2.7"))
    assert caught.value.status == 403
    with pytest.raises(ProblemError, match="only callers on the same machine"):
        asyncio.run(Gate(KeyRing()).require("read")(request_from("192.0.2.7")))


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost:8080", "LOCALHOST", "[::1]:8080", "127.0.0.1"])
def test_without_keys_this_machine_is_known_by_any_of_its_names(
    make_client: Callable[..., httpx.Client], host: str
) -> None:
    assert make_client().get("/v1/items/i1", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "[::2]", "["])
def test_without_keys_a_page_that_points_its_own_name_here_is_refused(
    make_client: Callable[..., httpx.Client], host: str
) -> None:
    """DNS rebinding: the browser then sends the page's host name."""
    answer = make_client().get("/v1/items/i1", headers={"Host": host})
    assert (answer.status_code, "Host is not this machine" in answer.text) == (403, True)


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example:8080", "file://"])
def test_without_keys_a_page_of_another_site_cannot_store_feedback(
    make_client: Callable[..., httpx.Client], store: EventStore, origin: str
) -> None:
    event = {"event": "interaction", "id": "x", "timestamp": 1, "user": "u", "type": "like", "item": "i1"}
    headers = {"Origin": origin, "Content-Type": "text/plain"}
    assert make_client().post("/feedback", json=event, headers=headers).status_code == 403
    assert store.count() == 0
    assert make_client().post("/feedback", json=event, headers={"Origin": "http://localhost:3000"}).status_code == 200

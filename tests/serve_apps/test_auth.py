import asyncio
from collections.abc import Callable

import httpx
import pytest
from starlette.requests import Request

from avrec_ray.errors import ConfigError
from serve_apps.auth import authorise, check_host, key_digests
from serve_apps.problems import ProblemError

KEYS = ("first-key-0123456789", "second-key-0123456789")
GUARDED = [
    ("POST", "/v1/recommend"),
    ("POST", "/v1/rank"),
    ("POST", "/v1/feedback"),
    ("GET", "/v1/items/i1"),
    ("GET", "/v1/items/i1/similar"),
    ("GET", "/metrics"),
]


@pytest.fixture
def digests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("AVREC_API_KEYS", f" {KEYS[0]},,{KEYS[1]} ")
    return key_digests()


def test_key_digests_hold_no_key(digests: list[str]) -> None:
    assert len(digests) == 2
    assert not any(key in digest for key in KEYS for digest in digests)


def test_key_digests_unset_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AVREC_API_KEYS", raising=False)
    assert key_digests() == []


def test_key_digests_short_key_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVREC_API_KEYS", "hunter2")
    with pytest.raises(ConfigError, match="a key of 7 characters, expected at least 16") as caught:
        key_digests()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "example.org"])
def test_check_host_open_address_without_keys_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="AVREC_API_KEYS is not set"):
        check_host(host, [])
    check_host(host, ["digest"])


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_check_host_loopback_needs_no_keys(host: str) -> None:
    check_host(host, [])


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", f"Basic {KEYS[0]}", KEYS[0], f"Bearer {KEYS[0]}x"]
)
def test_guarded_routes_without_a_key_are_401(
    make_client: Callable[..., httpx.Client], digests: list[str], header: str | None
) -> None:
    client = make_client(keys=keys)
    headers = {} if header is None else {"Authorization": header}
    for method, path in GUARDED:
        response = client.request(method, path, headers=headers, json={} if method == "POST" else None)
        assert response.status_code == 401, path
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("key", KEYS)
def test_guarded_route_with_any_of_the_keys_is_open(
    make_client: Callable[..., httpx.Client], digests: list[str], key: str
) -> None:
    client = make_client(keys=keys)
    assert client.get("/v1/items/i1", headers={"Authorization": f"Bearer {key}"}).status_code == 200


def test_health_needs_no_key_and_docs_are_off_with_keys(
    make_client: Callable[..., httpx.Client], digests: list[str]
) -> None:
    client = make_client(keys=keys)
    assert client.get("/health/live").status_code == 200
    assert client.get("/health/ready").status_code == 200
    assert client.get("/docs").status_code == 404


def test_authorise_without_keys_refuses_callers_from_other_machines() -> None:
    check = authorise([])
    asyncio.run(check(Request({"type": "http", "client": ("127.0.0.1", 1), "headers": []})))
    with pytest.raises(ProblemError, match="only callers on the same machine") as caught:
        asyncio.run(check(Request({"type": "http", "client": ("192.0.2.7", 1), "headers": []})))
    assert caught.value.status == 403

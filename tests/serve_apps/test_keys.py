"""Keys of the environment and of a file: read strictly, rotated without a restart, never kept in the clear."""

import hashlib
import hmac
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from avrec_ray.errors import ConfigError
from serve_apps import keys as keys_module
from serve_apps.keys import (
    READ_AGAIN_SECONDS,
    KeyRing,
    from_plain,
    keys_from_environment,
    keys_from_file,
    keys_of_service,
    to_plain,
)

FIRST, SECOND, THIRD = (f"{name}-key-0123456789" for name in ("first", "second", "third"))


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def write(path: Path, *rows: object, mode: int = 0o600) -> Path:
    """Replace the file as careful people do: written beside, then renamed."""
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps({"keys": list(rows)}))
    beside.chmod(mode)
    beside.rename(path)
    return path


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.mark.parametrize(
    ("text", "scopes"),
    [
        (f" {FIRST},,{SECOND} ", [("admin",), ("admin",)]),
        (f"read:{FIRST},write:{SECOND}", [("read",), ("write",)]),
        (f"read+write:{FIRST}, admin : {SECOND}", [("read", "write"), ("admin",)]),
        ("", []),
    ],
)
def test_environment_keys_and_their_scopes(
    monkeypatch: pytest.MonkeyPatch, text: str, scopes: list[tuple[str, ...]]
) -> None:
    monkeypatch.setenv("AVREC_API_KEYS", text)
    found = keys_from_environment()
    assert [key.scopes for key in found] == scopes
    assert [key.digest for key in found] == [digest(FIRST), digest(SECOND)][: len(found)]


def test_environment_unset_is_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AVREC_API_KEYS", raising=False)
    assert keys_from_environment() == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hunter2", "a key of 7 characters, expected at least 16"),
        ("read:hunter2", "a key of 7 characters, expected at least 16"),
        (f"reed:{FIRST}", r"scopes must be some of \['read', 'write', 'admin'\]"),
        (f"read+:{FIRST}", "scopes must be some of"),
        (f":{FIRST}", "scopes must be some of"),
    ],
)
def test_environment_bad_key_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.setenv("AVREC_API_KEYS", text)
    with pytest.raises(ConfigError, match=message) as caught:
        keys_from_environment()
    assert "hunter2" not in str(caught.value)
    assert FIRST not in str(caught.value)


def test_what_replicas_are_given_holds_no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AVREC_API_KEYS", f"read:{FIRST}")
    monkeypatch.setenv("AVREC_API_KEYS_FILE", str(write(tmp_path / "keys.json", {"key": SECOND, "scopes": ["read"]})))
    given = keys_of_service()
    ring = KeyRing(from_plain(given["fixed"]), given["file"])
    assert ring.find(FIRST) is not None
    assert ring.find(SECOND) is not None
    for held in (given, vars(ring)):
        assert FIRST.encode() not in pickle.dumps({k: v for k, v in held.items() if not callable(v)})
        assert SECOND not in repr(held)
    assert from_plain(to_plain(ring.fixed)) == list(ring.fixed)


def test_file_with_digests_and_keys_in_yaml(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(
        f"keys:\n- sha256: {digest(FIRST).upper()}\n  scopes: [read, write]\n  name: shop\n"
        f"- key: {SECOND}\n  scopes: [admin]\n"
    )
    path.chmod(0o600)
    shop, other = keys_from_file(str(path))
    assert (shop.digest, shop.scopes, shop.name) == (digest(FIRST), ("read", "write"), "shop")
    assert (other.digest, other.name) == (digest(SECOND), digest(SECOND)[:8])
    assert [shop.may(scope) for scope in ("read", "write", "admin")] == [True, True, False]
    assert all(other.may(scope) for scope in ("read", "write", "admin"))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "keys.json", {"key": FIRST, "scopes": ["read"]}, mode=mode)
    with pytest.raises(ConfigError, match=f"has mode 0{mode:o}, expected 0600: chmod 600"):
        keys_from_file(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping with the list `keys` alone"),
        ("[]", "expected a mapping with the list `keys` alone"),
        ("{", "neither YAML nor JSON"),
        (f"keys: [*{FIRST}]", "neither YAML nor JSON"),
        ("\xff", "expected a mapping"),
        ("{keys: [], more: 1}", "expected a mapping with the list `keys` alone"),
        ("{keys: [1]}", "keys.0: expected a mapping of `scopes`"),
        (f"keys: [{{key: {FIRST}, sha256: ab, scopes: [read]}}]", "one of `sha256` and `key`"),
        (f"keys: [{{key: {FIRST}}}]", "scopes must be some of"),
        (f"keys: [{{key: {FIRST}, scopes: read}}]", "expected `scopes` as a list"),
        ("keys: [{sha256: abc, scopes: [read]}]", "not 64 hexadecimal digits"),
        ("keys: [{key: short, scopes: [read]}]", "a key of 5 characters"),
        ("keys: !!python/object/apply:os.system [touch /tmp/pwned]", "neither YAML nor JSON"),
        ("keys: " + "[" * 5000, "neither YAML nor JSON"),
        ("#" * 1_000_001, "expected a mapping"),
    ],
)
def test_file_malformed_is_refused_without_showing_a_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=message) as caught:
        keys_from_file(str(path))
    assert FIRST not in str(caught.value)
    assert caught.value.__cause__ is None or FIRST not in str(caught.value.__cause__)


def test_file_absent_or_relative_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        keys_from_file(str(tmp_path / "nothing"))
    monkeypatch.setenv("AVREC_API_KEYS_FILE", "keys.json")
    with pytest.raises(ConfigError, match="is not absolute"):
        keys_of_service()


def test_ring_rotates_without_a_restart(tmp_path: Path) -> None:
    clock = Clock()
    path = write(tmp_path / "keys.json", {"key": FIRST, "scopes": ["read"]})
    ring = KeyRing((), str(path), clock)
    write(path, {"key": FIRST, "scopes": ["read"]}, {"key": SECOND, "scopes": ["read"]})
    assert ring.find(SECOND) is None  # looked a moment ago
    clock.seconds += READ_AGAIN_SECONDS
    assert ring.find(SECOND) is not None
    assert ring.find(FIRST) is not None
    write(path, {"key": SECOND, "scopes": ["read"]})
    clock.seconds += READ_AGAIN_SECONDS
    assert ring.find(FIRST) is None
    assert ring.find(SECOND) is not None


@pytest.mark.parametrize("breakage", ["torn", "open", "gone"])
def test_ring_keeps_its_keys_while_the_file_is_broken(
    tmp_path: Path, breakage: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    path = write(tmp_path / "keys.json", {"key": FIRST, "scopes": ["read"]})
    ring = KeyRing((), str(path), clock)
    if breakage == "torn":
        path.write_text(path.read_text()[:20])
    elif breakage == "open":
        write(path, {"key": SECOND, "scopes": ["read"]}, mode=0o644)
    else:
        path.unlink()
    clock.seconds += READ_AGAIN_SECONDS
    assert ring.find(FIRST) is not None
    assert ring.find(SECOND) is None
    assert "the keys stay as they were" in caplog.text
    write(path, {"key": SECOND, "scopes": ["read"]})
    clock.seconds += READ_AGAIN_SECONDS
    assert ring.find(SECOND) is not None


def test_ring_without_keys_in_its_file_lets_nobody_in(tmp_path: Path, make_client: Callable[..., httpx.Client]) -> None:
    clock = Clock()
    path = write(tmp_path / "keys.json", {"key": FIRST, "scopes": ["read"]})
    ring = KeyRing((), str(path), clock)
    client = make_client(keys=ring)
    headers = {"X-API-Key": FIRST}
    assert client.get("/v1/items/i1", headers=headers).status_code == 200
    write(path)
    clock.seconds += READ_AGAIN_SECONDS
    assert client.get("/v1/items/i1", headers=headers).status_code == 401
    assert client.get("/v1/items/i1").status_code == 401


def test_ring_looks_at_its_file_at_most_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, looks = Clock(), []
    path = write(tmp_path / "keys.json", {"key": FIRST, "scopes": ["read"]})
    ring = KeyRing((), str(path), clock)
    version_of = keys_module._version
    monkeypatch.setattr(keys_module, "_version", lambda file: looks.append(file) or version_of(file))
    for _ in range(100):
        clock.seconds += 0.0625
        ring.find(FIRST)
    assert len(looks) == 6


def test_ring_compares_every_digest_in_constant_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compared = []
    original = hmac.compare_digest
    monkeypatch.setattr(keys_module.hmac, "compare_digest", lambda a, b: compared.append(b) or original(a, b))
    rows = [{"key": secret, "scopes": ["read"]} for secret in (FIRST, SECOND, THIRD)]
    ring = KeyRing((), str(write(tmp_path / "keys.json", *rows)))
    for secret in (FIRST, THIRD, "not-a-key-0123456789"):
        compared.clear()
        ring.find(secret)
        assert compared == [digest(secret) for secret in (FIRST, SECOND, THIRD)]


def test_ring_takes_any_text_as_a_secret() -> None:
    ring = KeyRing()
    for secret in ("", "\udcff", "x" * 100_000, "\x00", os.urandom(64).decode("latin-1")):
        assert ring.find(secret) is None

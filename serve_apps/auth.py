"""Who may call: API keys from the environment, or nobody but this machine."""

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Awaitable, Callable, Sequence

from fastapi import Request

from avrec_ray.errors import ConfigError
from serve_apps.problems import ProblemError

KEYS_VARIABLE = "AVREC_API_KEYS"
MIN_KEY_CHARS = 16


def key_digests() -> list[str]:
    """SHA-256 of each key in AVREC_API_KEYS; replicas get these, never the keys.

    Raises:
        ConfigError: a key is too short to resist guessing.
    """
    keys = [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",") if key.strip()]
    for key in keys:
        if len(key) < MIN_KEY_CHARS:
            raise ConfigError(
                f"{KEYS_VARIABLE} holds a key of {len(key)} characters, expected at least {MIN_KEY_CHARS}; "
                "make one with: openssl rand -hex 24"
            )
    return [_digest(key) for key in keys]


def check_host(host: str, digests: Sequence[str]) -> None:
    """Raise ConfigError if the service would be open to others without keys."""
    if not digests and not is_loopback(host):
        raise ConfigError(
            f"serve.host={host!r} is reachable from other machines, but {KEYS_VARIABLE} is not set; "
            f"set it to comma-separated keys, or serve on 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """True for addresses that only this machine can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def authorise(digests: Sequence[str]) -> Callable[[Request], Awaitable[None]]:
    """A route dependency: a Bearer key among `digests`, or, without keys, a caller on this machine."""

    async def check(request: Request) -> None:
        if digests:
            _check_key(request.headers.get("authorization", ""), digests)
        elif request.client is not None and not is_loopback(request.client.host):
            raise ProblemError(403, f"{KEYS_VARIABLE} is not set: only callers on the same machine are served")

    return check


def _check_key(header: str, digests: Sequence[str]) -> None:
    scheme, _, key = header.partition(" ")
    got = _digest(key.strip())
    # Every digest is compared, in constant time, so that timing tells nothing about which one was close.
    known = sum(hmac.compare_digest(got, digest) for digest in digests)
    if scheme.lower() != "bearer" or not known:
        raise ProblemError(401, "expected a header 'Authorization: Bearer <key>' with one of the service's keys")


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()

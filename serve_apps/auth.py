"""Who may call: holders of an API key whose scopes the route asks for, or, without keys, nobody but this machine."""

import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from fastapi import Depends, Request

from avrec_ray.errors import ConfigError
from serve_apps.keys import FILE_VARIABLE, KEYS_VARIABLE, Key, KeyRing
from serve_apps.problems import ProblemError

Admit = Callable[[Key, str], Awaitable[None]]
"""Counts a request of a key that reads or writes. Raises ProblemError 429 or 503 where it has to wait."""


class Gate:
    """Makes the dependency that every route but the public ones has."""

    def __init__(self, keys: KeyRing, admit: Admit | None = None) -> None:
        self.keys = keys
        self.admit = admit

    def require(self, scope: str) -> "RequireScope":
        """What a request must pass that needs `scope`."""
        return RequireScope(self, scope)

    def depends(self, scope: str) -> Any:
        """The dependency of a route, or of a router, that needs `scope`."""
        return Depends(self.require(scope))


class RequireScope:
    """A route dependency: 401 without a key, 403 without the scope, 429 past the key's rate."""

    def __init__(self, gate: Gate, scope: str) -> None:
        self.gate = gate
        self.scope = scope

    async def __call__(self, request: Request) -> None:
        if not self.gate.keys.closed:
            check_local(request)
            return
        key = self.gate.keys.find(presented_key(request))
        if key is None:
            raise ProblemError(401, "expected a header 'Authorization: Bearer <key>' with one of the service's keys")
        if not key.may(self.scope):
            raise ProblemError(
                403,
                f"this key may {' and '.join(key.scopes)}, expected one that may {self.scope}",
                {"scope": self.scope},
            )
        request.scope["avrec.key"] = key
        if self.gate.admit is not None:
            await self.gate.admit(key, "read" if self.scope == "read" else "write")


def presented_key(request: Request) -> str:
    """The key of `Authorization: Bearer <key>`, or of `X-API-Key`, as Gorse's clients do; "" if none or several."""
    bearers = request.headers.getlist("authorization")
    if bearers:
        scheme, _, key = bearers[0].partition(" ")
        return key.strip() if len(bearers) == 1 and scheme.lower() == "bearer" else ""
    keys = request.headers.getlist("x-api-key")
    return keys[0].strip() if len(keys) == 1 else ""


def check_local(request: Request) -> None:
    """Raise ProblemError 403 unless a program on this machine asks, and not a web page through its browser.

    A page can make a browser send requests here, under a host name of its own that it lets point to 127.0.0.1, or
    across sites; the browser then tells so in Host or Origin.
    """
    if request.client is not None and not is_loopback(request.client.host):
        raise ProblemError(403, f"{KEYS_VARIABLE} is not set: only callers on the same machine are served")
    for name, value in (("Host", _host_of(request)), ("Origin", _origin_of(request))):
        if value and not is_loopback(value):
            raise ProblemError(
                403, f"{name} is not this machine, and {KEYS_VARIABLE} is not set; ask at 127.0.0.1 or set keys"
            )


def _host_of(request: Request) -> str:
    return _name(f"//{request.headers.get('host', '')}")


def _origin_of(request: Request) -> str:
    origin = request.headers.get("origin", "")
    return (_name(origin) or "null") if origin else ""


def _name(url: str) -> str:
    """Host name of a URL; "?" where there is none to be made out."""
    try:
        return urlsplit(url).hostname or ("?" if len(url) > 2 else "")
    except ValueError:
        return "?"


def check_host(host: str, closed: bool) -> None:
    """Raise ConfigError if the service would be open to others without keys."""
    if not closed and not is_loopback(host):
        raise ConfigError(
            f"serve.host={host!r} is reachable from other machines, but {KEYS_VARIABLE} is not set, nor "
            f"{FILE_VARIABLE}; set it to comma-separated keys, or serve on 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """True for addresses that only this machine can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

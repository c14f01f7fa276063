"""GET over https for a manifest's URLs: the name is resolved once, and the address that was checked is connected to.

Otherwise a name that resolves to a public address for the check and to a private one for the connection would lead the
fetcher into the cluster's own network.
"""

import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any, cast
from urllib.parse import SplitResult, urljoin, urlsplit

from avrec_ray.errors import MediaError
from avrec_ray.media.addresses import is_public
from avrec_ray.media.config import MediaConfig

_PORT = 443
_MAX_REDIRECTS = 3
_MAX_HEADER_BYTES = 65536
_REDIRECTS = {301, 302, 303, 307, 308}
_MISSING = {401, 403, 404, 410, 451}
_CHUNK_BYTES = 2**18


def read_https(url: SplitResult, cfg: MediaConfig, deadline: float, allow_private: bool = False) -> Iterator[bytes]:
    """Chunks of the body at an https URL, until `deadline` on the monotonic clock.

    Raises:
        MediaError: forbidden (an address that is not public, a redirect to another host), missing, too_large or
            unreachable.
        TimeoutError: past the deadline.
    """
    for _ in range(1 + _MAX_REDIRECTS):
        connection = _connect(url, deadline, allow_private)
        with connection:
            response = _get(connection, url, cfg, deadline)
            if response.status not in _REDIRECTS:
                yield from _body(response, url, cfg)
                return
            url = _redirected(url, response)
    raise MediaError("unreachable", f"{url.geturl()!r}: more than {_MAX_REDIRECTS} redirects")


def _connect(url: SplitResult, deadline: float, allow_private: bool) -> ssl.SSLSocket:
    """A verified TLS connection to one of the checked addresses of the host."""
    host, port = str(url.hostname), url.port or _PORT
    addresses = _resolve(host, port, deadline)
    if refused := [address for address, _ in addresses if not allow_private and not is_public(address)]:
        raise MediaError("forbidden", f"{host!r} leads to {refused[0]}, which is no address of the public internet")
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    last: OSError | None = None
    for address, family in addresses:
        plain = socket.socket(family, socket.SOCK_STREAM)
        try:
            plain.settimeout(_left(deadline))
            plain.connect((address, port))
            return context.wrap_socket(plain, server_hostname=host)
        except TimeoutError:
            plain.close()
            raise
        except (OSError, ValueError) as error:
            plain.close()
            last = error if isinstance(error, OSError) else OSError(str(error))
    raise MediaError("unreachable", f"{host!r}, port {port}: {last}") from last


def _resolve(host: str, port: int, deadline: float) -> list[tuple[str, int]]:
    """Addresses of a host with their families, in the resolver's order. The resolver itself knows no deadline."""
    found: list[Any] = []

    def ask() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.append(error)

    thread = threading.Thread(target=ask, name="resolve", daemon=True)
    thread.start()
    thread.join(_left(deadline))
    if not found:
        raise TimeoutError
    if isinstance(found[0], Exception):
        raise MediaError("unreachable", f"{host!r} does not resolve: {found[0]}")
    return list(dict.fromkeys((str(entry[4][0]), int(entry[0])) for entry in found[0]))


def _get(connection: ssl.SSLSocket, url: SplitResult, cfg: MediaConfig, deadline: float) -> http.client.HTTPResponse:
    path = url.path + (f"?{url.query}" if url.query else "")
    host = url.netloc.rpartition("@")[2]
    request = (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: avrec_ray\r\nAccept: */*\r\n"
        "Accept-Encoding: identity\r\nConnection: close\r\n\r\n"
    )
    wire = _Wire(connection, deadline)
    response = http.client.HTTPResponse(cast(socket.socket, wire), method="GET")
    try:
        connection.settimeout(_left(deadline))
        connection.sendall(request.encode("ascii"))
        response.begin()
        wire.allow(2 * cfg.max_bytes)  # chunked bodies carry their framing
    except TimeoutError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise MediaError("unreachable", f"{url.hostname!r} gave no answer: {type(error).__name__} {error}") from error
    return response


def _body(response: http.client.HTTPResponse, url: SplitResult, cfg: MediaConfig) -> Iterator[bytes]:
    if response.status != 200:
        reason = "missing" if response.status in _MISSING else "unreachable"
        raise MediaError(reason, f"{url.geturl()!r} answers with status {response.status}")
    if (response.getheader("Content-Encoding") or "identity").lower() != "identity":
        raise MediaError("unreachable", f"{url.geturl()!r} answers in an encoding that was not asked for")
    if response.length is not None and response.length > cfg.max_bytes:
        raise MediaError("too_large", f"{response.length} bytes, media.max_bytes={cfg.max_bytes}")
    try:
        while chunk := response.read(_CHUNK_BYTES):
            yield chunk
        if response.length:  # read(n) does not tell a body that ends early
            raise MediaError("unreachable", f"{url.hostname!r} broke off {response.length} bytes before the end")
    except TimeoutError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise MediaError("unreachable", f"{url.hostname!r} broke off: {type(error).__name__} {error}") from error


def _redirected(url: SplitResult, response: http.client.HTTPResponse) -> SplitResult:
    """The same host's other place. Raises MediaError(forbidden) for any other host, port or scheme."""
    place = response.getheader("Location") or ""
    try:
        target = urlsplit(urljoin(url.geturl(), place))
        is_same = (target.scheme, target.hostname, target.port or _PORT) == ("https", url.hostname, url.port or _PORT)
    except ValueError:
        is_same = False
    if not is_same or "@" in target.netloc or not place.isascii() or not place.isprintable() or " " in place:
        raise MediaError("forbidden", f"{url.geturl()!r} redirects to {place[:200]!r}; only the same host is followed")
    return target


def _left(deadline: float) -> float:
    """Seconds until the deadline. Raises TimeoutError when there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Wire(io.RawIOBase):
    """A connection as http.client wants it, with one deadline for all reads together and a bound on their bytes.

    A socket's own timeout begins anew with each byte: a server that drips would never reach it.
    """

    def __init__(self, connection: ssl.SSLSocket, deadline: float) -> None:
        self._connection, self._deadline = connection, deadline
        self._left_bytes = _MAX_HEADER_BYTES + _CHUNK_BYTES  # the headers, and what is read ahead

    def allow(self, num_bytes: int) -> None:
        """Raise the bound."""
        self._left_bytes += num_bytes

    def makefile(self, mode: str) -> io.BufferedReader:
        """What http.client reads from."""
        return io.BufferedReader(self, _CHUNK_BYTES)

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Some bytes; none at the end."""
        self._connection.settimeout(_left(self._deadline))
        count = self._connection.recv_into(buffer)
        self._left_bytes -= count
        if self._left_bytes < 0:
            raise MediaError("too_large", f"headers over {_MAX_HEADER_BYTES} bytes, or a body far over media.max_bytes")
        return count

import os
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from avrec_ray.errors import ConfigError, MediaError
from avrec_ray.media.addresses import is_public
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.decode import ItemDecoder, open_item
from avrec_ray.media.fetch import fetch_media, scheme_of
from avrec_ray.media.gate import kind_of
from tests.media.tls import BODY, Server, tls_server

CFG = MediaConfig(remote_schemes=["https", "s3", "gs"], fetch_timeout_seconds=20, max_bytes=2 * len(BODY))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with tls_server(tmp_path_factory.mktemp("tls"), ["localhost", "media.test"]) as server:
        yield server


@pytest.fixture
def trusted(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, its authority being one of those that this machine trusts."""
    monkeypatch.setenv("SSL_CERT_FILE", str(server.authority))
    server.requests.clear()
    server.names.clear()
    return server


def url(server: Server, path: str, host: str = "localhost") -> str:
    return f"https://{host}:{server.port}/{path}"


def refused(uri: str, cfg: MediaConfig = CFG, allow_private: bool = True) -> MediaError:
    with pytest.raises(MediaError) as caught:
        fetch_media(uri, cfg, allow_private).close()
    return caught.value


@pytest.mark.parametrize("path", ["film.mp4", "film.mp4?token=a%20b&c=/..", "chunked.mp4"])
def test_fetch_media_gives_an_unnamed_file_for_reading(trusted: Server, path: str) -> None:
    with fetch_media(url(trusted, path), CFG, allow_private=True) as file:
        assert file.read() == BODY
        assert kind_of(file) == "mp4"
        assert os.fstat(file.fileno()).st_nlink == 0
        with pytest.raises(OSError, match="not open for writing|Bad file descriptor"):
            os.write(file.fileno(), b"x")
    assert trusted.requests == [(f"/{path}", f"localhost:{trusted.port}")]


def test_fetch_media_connects_to_the_checked_address_with_the_name(
    trusted: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def resolve(host: str, port: int, **kinds: Any) -> list[Any]:
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 else "127.0.0.2"  # a name that changes its mind
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with fetch_media(url(trusted, "film.mp4", "media.test"), CFG, allow_private=True) as file:
        assert file.read() == BODY
    assert asked == ["media.test"]
    assert trusted.names == ["media.test"]
    assert trusted.requests == [("/film.mp4", f"media.test:{trusted.port}")]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433"])
def test_fetch_media_loopback_is_forbidden_and_never_reached(trusted: Server, host: str) -> None:
    error = refused(url(trusted, "film.mp4", host), allow_private=False)
    assert error.reason in {"forbidden", "unreachable"}  # a resolver without IPv6 may not know ::1
    assert error.reason == "forbidden" or "does not resolve" in error.detail
    assert not trusted.names
    assert not trusted.requests


def test_fetch_media_one_private_address_among_public_ones_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in ("93.184.216.34", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kinds: found)
    error = refused("https://media.test/a.mp4", allow_private=False)
    assert error.reason == "forbidden"
    assert "'media.test' leads to 10.0.0.1" in error.detail


def test_fetch_media_certificate_is_verified(
    server: Server, trusted: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "certificate" in refused(url(server, "film.mp4", "127.0.0.1")).detail  # not one of its names
    (tmp_path / "none.pem").touch()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    error = refused(url(server, "film.mp4"))
    assert error.reason == "unreachable"
    assert "certificate verify failed" in error.detail
    assert not server.requests


@pytest.mark.parametrize(
    ("path", "reason", "detail"),
    [
        ("404", "missing", "status 404"),
        ("403", "missing", "status 403"),
        ("500", "unreachable", "status 500"),
        ("206", "unreachable", "status 206"),
        ("short.mp4", "unreachable", "broke off"),
        ("lies.mp4", "too_large", "media.max_bytes="),
        ("endless.mp4", "too_large", "media.max_bytes="),
        ("headers.mp4", "too_large|unreachable", "headers|header"),
        ("gzip.mp4", "unreachable", "encoding"),
        ("empty.mp4", "not_media", "empty"),
        ("to?https://example.org/a.mp4", "forbidden", "only the same host"),
        ("to?http://localhost/a.mp4", "forbidden", "only the same host"),
        ("to?//127.0.0.1/a.mp4", "forbidden", "only the same host"),
        ("to?https://localhost:1/a.mp4", "forbidden", "only the same host"),
        ("to?file:///etc/passwd", "forbidden", "only the same host"),
        ("to?/to?/404", "missing", "status 404"),
        ("to?/to?/to?/to?/to?/404", "unreachable", "more than 3 redirects"),
    ],
)
def test_fetch_media_answer_that_is_no_media_is_refused(trusted: Server, path: str, reason: str, detail: str) -> None:
    error = refused(url(trusted, path))
    assert error.reason in reason.split("|")
    assert any(part in error.detail for part in detail.split("|")), error.detail


def test_fetch_media_redirect_to_the_same_host_is_followed(trusted: Server) -> None:
    with fetch_media(url(trusted, f"to?https://localhost:{trusted.port}/film.mp4"), CFG, allow_private=True) as file:
        assert file.read() == BODY


def test_fetch_media_server_that_drips_is_cut_off(trusted: Server) -> None:
    began = time.monotonic()
    error = refused(url(trusted, "drip.mp4"), MediaConfig(remote_schemes=["https"], fetch_timeout_seconds=1.0))
    assert error.reason == "timeout"
    assert "media.fetch_timeout_seconds=1" in error.detail
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "uri",
    [
        "http://example.org/a.mp4",
        "ftp://example.org/a.mp4",
        "https:///a.mp4",
        "https://example.org",
        "https://user:secret@example.org/a.mp4",
        "https://example.org:99999/a.mp4",
        "https://example.org/a.mp4\r\nHost: other",
        "https://exa mple.org/a.mp4",
        "https://example.org\\@127.0.0.1/a.mp4",
        "https://exämple.org/a.mp4",
        "https://[::1/a.mp4",
        "https://example.org/" + "a" * 5000,
        "s3://bucket/a.mp4?endpoint_override=169.254.169.254&scheme=http",
        "s3://key:secret@bucket/a.mp4",
        "s3://bucket:80/a.mp4",
        "s3://bucket",
        "gs://bucket/",
    ],
)
def test_fetch_media_odd_url_is_forbidden(uri: str) -> None:
    assert refused(uri).reason == "forbidden"


def test_open_item_scheme_that_is_not_listed_is_forbidden(trusted: Server) -> None:
    for cfg in (MediaConfig(), MediaConfig(remote_schemes=["s3"])):
        with pytest.raises(MediaError, match="forbidden"):
            open_item(url(trusted, "film.mp4"), cfg)
    with pytest.raises(ConfigError, match=r"media\.remote_schemes='http' is not one of"):
        MediaConfig(remote_schemes=["http"])
    with ItemDecoder(CFG) as decoder, pytest.raises(MediaError, match="forbidden: 'localhost' leads to"):
        decoder.decode("a", url(trusted, "film.mp4"))
    assert not trusted.requests


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("::ffff:93.184.216.34", True),
        *((address, False) for address in (
            "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
            "224.0.0.1",
            "240.0.0.1", "255.255.255.255", "192.0.0.8", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1",
            "fe80::1%eth0",
            "fc00::1", "fec0::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::7f00:1", "64:ff9b::7f00:1",
            "2002:7f00:1::", "2001::1", "2001:db8::1", "100::1",
        )),
    ],
)  # fmt: skip
def test_is_public_is_the_internet_alone(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(("uri", "scheme"), [("S3://a/b", "s3"), ("/a:b", ""), ("a/b:c", ""), ("C:\\a", "c")])
def test_scheme_of(uri: str, scheme: str) -> None:
    assert scheme_of(uri) == scheme


class _Bucket(BaseHTTPRequestHandler):
    """The part of S3 that reading an object takes."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        first, _, last = (self.headers["Range"] or "bytes=0-").removeprefix("bytes=").partition("-")
        self._answer(BODY[int(first) : int(last) + 1 if last else None], int(first))

    def _answer(self, body: bytes, first: int = 0) -> None:
        if self.path.partition("?")[0] != "/bucket/film.mp4":
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if self.headers["Range"] else 200)
        self.send_header("Content-Length", str(len(body) if self.command == "GET" else len(BODY)))
        if self.headers["Range"]:
            self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{len(BODY)}")
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Bucket)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    for name, value in (
        ("ACCESS_KEY_ID", "a"),
        ("SECRET_ACCESS_KEY", "b"),
        ("REGION", "x"),
        ("EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    yield
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.usefixtures("bucket")
def test_fetch_media_object_of_a_bucket() -> None:
    with fetch_media("s3://bucket/film.mp4", CFG) as file:
        assert file.read() == BODY
    assert refused("s3://bucket/none.mp4").reason == "missing"
    assert refused("s3://bucket/film.mp4", MediaConfig(remote_schemes=["s3"], max_bytes=99)).reason == "too_large"

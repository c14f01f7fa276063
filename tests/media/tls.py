"""A TLS server on loopback with a certificate of its own authority, that answers as the path says."""

import http.server
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

BODY = b"\x00\x00\x00\x20ftypisom" + bytes(range(256)) * 4000


@dataclass
class Server:
    """Where the server listens, and what it saw."""

    port: int
    authority: Path
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Path and Host of each request."""
    names: list[str | None] = field(default_factory=list)
    """Server name of each handshake."""


def write_certificates(folder: Path, names: list[str]) -> tuple[Path, Path]:
    """Files of a new authority, and of a key with a certificate for `names` signed by it."""
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    sans = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    own = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
    signs = x509.KeyUsage(True, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False, **usage)
    root = _built(issuer, issuer, authority_key.public_key(), authority_key,
                  [x509.BasicConstraints(ca=True, path_length=None), signs, own])  # fmt: skip
    issued_by = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
    leaf = _built(subject, issuer, key.public_key(), authority_key, [sans, issued_by])
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "authority.pem").write_bytes(root.public_bytes(pem))
    (folder / "server.pem").write_bytes(secret + leaf.public_bytes(pem))
    return folder / "authority.pem", folder / "server.pem"


def _built(subject: Any, issuer: Any, key: Any, signer: Any, extensions: list[Any]) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    for extension in extensions:
        is_critical = isinstance(extension, x509.BasicConstraints | x509.KeyUsage)
        builder = builder.add_extension(extension, critical=is_critical)
    return builder.sign(signer, hashes.SHA256())


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        state: Server = self.server.state  # type: ignore[attr-defined]
        state.requests.append((self.path, self.headers["Host"]))
        name = self.path.strip("/").partition("?")[0]
        if name.isdigit():
            self._answer(int(name), {"Content-Length": "0"})
        elif name.startswith("to"):
            self._answer(302, {"Location": self.path.partition("?")[2], "Content-Length": "0"})
        elif name == "short.mp4":
            self._answer(200, {"Content-Length": str(len(BODY))}, BODY[:5000])
        elif name == "lies.mp4":
            self._answer(200, {"Content-Length": str(2**40)}, BODY)
        elif name == "gzip.mp4":
            self._answer(200, {"Content-Length": "4", "Content-Encoding": "gzip"}, b"\x1f\x8b\x08\x00")
        elif name == "empty.mp4":
            self._answer(200, {"Content-Length": "0"})
        elif name in ("chunked.mp4", "endless.mp4"):
            self._answer(200, {"Transfer-Encoding": "chunked"})
            for _ in range(1 if name == "chunked.mp4" else 10**6):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(BODY), BODY))
            self.wfile.write(b"0\r\n\r\n")
        elif name == "headers.mp4":
            for number in range(10**6):
                self.wfile.write((b"HTTP/1.1 200 OK\r\n" if not number else b"") + b"X: " + b"x" * 60000 + b"\r\n")
        elif name == "drip.mp4":
            for letter in b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000:
                self.wfile.write(bytes([letter]))
                time.sleep(0.1)
        else:
            self._answer(200, {"Content-Length": str(len(BODY))}, BODY)

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for header, value in {**headers, "Connection": "close"}.items():
            self.send_header(header, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the test's stderr."""


class _TlsServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that break off are what is tested."""


@contextmanager
def tls_server(folder: Path, names: list[str]) -> Iterator[Server]:
    """A running server with a certificate for `names`."""
    authority, certificate = write_certificates(folder, names)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = _TlsServer(("127.0.0.1", 0), _Handler)
    state = Server(server.server_port, authority)
    context.sni_callback = lambda sock, name, ctx: state.names.append(name)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.state = state  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

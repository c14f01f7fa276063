"""Remote media to an unnamed local file: our own fetcher, so that no decoder ever sees a URL.

Off unless `media.remote_schemes` names the scheme. Bytes and time are limited; https goes to public addresses alone.
"""

import os
import re
import tempfile
import time
from collections.abc import Iterator
from typing import Any, BinaryIO
from urllib.parse import SplitResult, urlsplit

from avrec_ray.errors import MediaError
from avrec_ray.media.config import REMOTE_SCHEMES, MediaConfig
from avrec_ray.media.https import read_https

_MAX_URL = 4096


def scheme_of(uri: str) -> str:
    """Scheme of a URI in lower case; "" for a path.

    >>> scheme_of("HTTPS://example.org/a.mp4"), scheme_of("/a:b.mp4")
    ('https', '')
    """
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", uri)
    return match[1].lower() if match else ""


def fetch_media(uri: str, cfg: MediaConfig, allow_private: bool = False) -> BinaryIO:
    """Fetch a URL into an unnamed temporary file, opened for reading.

    `allow_private` lets https connect to addresses that are not public; it is for tests, no setting reaches it.

    Raises:
        MediaError: forbidden, missing, not_media (empty), too_large, timeout or unreachable.
    """
    url = _checked(uri, cfg)
    deadline = time.monotonic() + cfg.fetch_timeout_seconds
    try:
        chunks = read_https(url, cfg, deadline, allow_private) if url.scheme == "https" else _read_bucket(url, cfg)
        return _to_file(chunks, cfg, deadline)
    except TimeoutError as error:
        raise MediaError("timeout", f"over media.fetch_timeout_seconds={cfg.fetch_timeout_seconds:g}") from error


def _checked(uri: str, cfg: MediaConfig) -> SplitResult:
    """The parts of a URL with an allowed scheme, a host and a path, and nothing that could redirect the fetcher."""
    scheme = scheme_of(uri)
    if scheme not in REMOTE_SCHEMES or scheme not in cfg.remote_schemes:
        raise MediaError("forbidden", f"{uri!r} has the scheme {scheme!r}, media.remote_schemes={cfg.remote_schemes}")
    if len(uri) > _MAX_URL or not uri.isascii() or re.search(r"[\x00-\x20\x7f\\]", uri):
        raise MediaError("forbidden", f"{uri[:200]!r} is too long or holds characters that must be quoted")
    try:
        url = urlsplit(uri)
        is_plain = bool(url.hostname) and url.path not in ("", "/") and "@" not in url.netloc
        port = url.port
    except ValueError as error:
        raise MediaError("forbidden", f"{uri!r} is no URL: {error}") from error
    if not is_plain or (scheme != "https" and (url.query or url.fragment or port is not None)):
        raise MediaError("forbidden", f"{uri!r}: expected https://host/path, s3://bucket/key or gs://bucket/key")
    return url


def _read_bucket(url: SplitResult, cfg: MediaConfig) -> Iterator[bytes]:
    """Chunks of an object in S3 or Google Cloud Storage; credentials, region and endpoint come from the environment."""
    from pyarrow import fs

    seconds = cfg.fetch_timeout_seconds
    try:
        store = _s3(seconds) if url.scheme == "s3" else _gcs(seconds)
        path = url.netloc + url.path
        info = store.get_file_info(path)
        if info.type != fs.FileType.File:
            raise MediaError("missing", f"{url.geturl()!r} is no object")
        _check_size(info.size, cfg)
        with store.open_input_stream(path) as stream:
            while chunk := stream.read(2**20):
                yield chunk
    except OSError as error:
        raise MediaError("unreachable", f"{url.geturl()!r}: {str(error)[:300]}") from error


def _s3(seconds: float) -> Any:
    from pyarrow import fs

    return fs.S3FileSystem(
        endpoint_override=os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        connect_timeout=min(10.0, seconds),
        request_timeout=min(20.0, seconds),
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=2),
    )


def _gcs(seconds: float) -> Any:
    from datetime import timedelta

    from pyarrow import fs

    return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=seconds))


def _to_file(chunks: Iterator[bytes], cfg: MediaConfig, deadline: float) -> BinaryIO:
    """Write the chunks to a file without a name and open it once more, for reading alone."""
    num_bytes = 0
    with tempfile.TemporaryFile(buffering=0) as file:
        for chunk in chunks:
            num_bytes += len(chunk)
            _check_size(num_bytes, cfg)
            if time.monotonic() > deadline:
                raise TimeoutError
            file.write(chunk)
        if not num_bytes:
            raise MediaError("not_media", "the remote file is empty")
        descriptor = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
    return os.fdopen(descriptor, "rb", buffering=0)


def _check_size(num_bytes: int | None, cfg: MediaConfig) -> None:
    if num_bytes is not None and num_bytes > cfg.max_bytes:
        raise MediaError("too_large", f"{num_bytes} bytes, media.max_bytes={cfg.max_bytes}")

"""API keys: who may do what. From the environment, or from a file that is read again when it changes.

Only SHA-256 digests are kept: replicas get digests from the environment of whoever deploys, and digest a file's keys as
they read it. A digest cannot be turned back into a random key of 16 characters and more.
"""

import hashlib
import hmac
import logging
import os
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from avrec_ray.errors import ConfigError

logger = logging.getLogger(__name__)

KEYS_VARIABLE = "AVREC_API_KEYS"
FILE_VARIABLE = "AVREC_API_KEYS_FILE"
MIN_KEY_CHARS = 16
SCOPES = ("read", "write", "admin")
"""read: lists, items, metrics; write: feedback and items; admin: everything, and what removes users and items."""
READ_AGAIN_SECONDS = 1.0
_MAX_FILE_BYTES = 1_000_000


@dataclass(frozen=True)
class Key:
    """What is known of a key: not the key."""

    digest: str
    """SHA-256, 64 hexadecimal digits."""
    scopes: tuple[str, ...]
    name: str
    """For logs and for counting; of a key without a name the first digits of its digest."""

    def may(self, scope: str) -> bool:
        """Whether the key opens what needs `scope`."""
        return scope in self.scopes or "admin" in self.scopes


def keys_from_environment() -> list[Key]:
    """The keys of AVREC_API_KEYS: comma-separated, each `<key>`, which may do everything, or `<scope>+<scope>:<key>`.

    Raises:
        ConfigError: a key is too short to resist guessing, or a scope is unknown.
    """
    entries = [entry.strip() for entry in os.environ.get(KEYS_VARIABLE, "").split(",") if entry.strip()]
    keys = []
    for entry in entries:
        scopes, colon, secret = entry.rpartition(":")
        named = [scope.strip() for scope in scopes.split("+")] if colon else ["admin"]
        keys.append(_key(secret.strip(), named, "", KEYS_VARIABLE))
    return keys


def keys_from_file(path: str) -> list[Key]:
    """The keys of a YAML or JSON file, `keys: [{sha256 or key, scopes, name?}]`.

    Raises:
        ConfigError: the file is open to other users of the machine, cannot be read, or is malformed; no message holds
            a key.
    """
    where = f"{FILE_VARIABLE}={path!r}"
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
                raise ConfigError(
                    f"{where} has mode {stat.S_IMODE(status.st_mode):04o}, expected 0600: chmod 600 {path}"
                )
            text = file.read(_MAX_FILE_BYTES + 1)
        values = yaml.safe_load(text.decode()) if len(text) <= _MAX_FILE_BYTES else None
    except OSError as error:
        raise ConfigError(f"{where} cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError):
        raise ConfigError(f"{where} is neither YAML nor JSON") from None  # the cause would show a line of the file
    rows = values.get("keys") if isinstance(values, dict) and set(values) == {"keys"} else None
    if not isinstance(rows, list):
        raise ConfigError(f"{where}: expected a mapping with the list `keys` alone, under {_MAX_FILE_BYTES} bytes")
    return [_key_of_row(row, f"{where}, keys.{place}") for place, row in enumerate(rows)]


class KeyRing:
    """The keys that open a service now."""

    def __init__(self, fixed: Sequence[Key] = (), file: str = "", now: Callable[[], float] = time.monotonic) -> None:
        """`fixed` are those of the environment; those of `file`, if named, are read now and whenever it changes.

        Raises:
            ConfigError: the file is not as `keys_from_file` wants it.
        """
        self.fixed, self._file, self._now = tuple(fixed), file, now
        self._version = _version(file)
        self._of_file = tuple(keys_from_file(file)) if file else ()
        self._looked_at = now()

    @property
    def closed(self) -> bool:
        """Whether a key is needed. A file without keys lets nobody in, rather than everybody."""
        return bool(self.fixed or self._file)

    def find(self, secret: str) -> Key | None:
        """The key with this secret.

        Every digest is compared, each in constant time, so that timing tells nothing about which was close.
        """
        got = _digest(secret)
        found = [key for key in self._current() if hmac.compare_digest(got, key.digest)]
        return found[0] if found else None

    def _current(self) -> tuple[Key, ...]:
        if self._file and self._now() - self._looked_at >= READ_AGAIN_SECONDS:
            self._looked_at = self._now()
            self._read_if_changed()
        return self.fixed + self._of_file

    def _read_if_changed(self) -> None:
        version = _version(self._file)
        if version == self._version:
            return
        self._version = version
        try:
            self._of_file = tuple(keys_from_file(self._file))
        except ConfigError:
            logger.exception("the keys stay as they were, %s of them in the file", len(self._of_file))
            return
        logger.warning("keys read again from %s: %s", self._file, [key.name for key in self._of_file])


def keys_of_service() -> dict[str, Any]:
    """The keys that this environment names, as plain values for the arguments of a replica.

    Raises:
        ConfigError: a key, or the file, is not as it must be.
    """
    file = os.environ.get(FILE_VARIABLE, "")
    if file and not Path(file).is_absolute():
        raise ConfigError(f"{FILE_VARIABLE}={file!r} is not absolute; replicas run in another directory")
    ring = KeyRing(keys_from_environment(), file)  # a file that cannot be read fails here, not in a replica
    return {"fixed": to_plain(ring.fixed), "file": file}


def to_plain(keys: Iterable[Key]) -> list[dict[str, Any]]:
    """Keys as plain values, for the arguments of a replica."""
    return [{"digest": key.digest, "scopes": list(key.scopes), "name": key.name} for key in keys]


def from_plain(rows: Iterable[dict[str, Any]]) -> list[Key]:
    """What `to_plain` made."""
    return [Key(row["digest"], tuple(row["scopes"]), row["name"]) for row in rows]


def _version(file: str) -> tuple[int, ...]:
    """Changes with the file's content, however it is replaced; empty without a file."""
    try:
        status = Path(file).stat() if file else None
    except OSError:
        return (-1,)
    return () if status is None else (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)


def _key_of_row(row: Any, where: str) -> Key:
    known = {"key", "sha256", "scopes", "name"}
    if not isinstance(row, dict) or set(row) - known or ("key" in row) == ("sha256" in row):
        raise ConfigError(f"{where}: expected a mapping of `scopes`, `name` and one of `sha256` and `key`")
    scopes, name = row.get("scopes", []), row.get("name", "")
    if not isinstance(scopes, list) or not isinstance(name, str):
        raise ConfigError(f"{where}: expected `scopes` as a list and `name` as a text")
    if "key" in row:
        return _key(str(row["key"]), scopes, name, where)
    digest = str(row["sha256"]).lower()
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise ConfigError(f"{where}: sha256 is not 64 hexadecimal digits; make one with: printf %s <key> | sha256sum")
    return Key(digest, _scopes(scopes, where), name or digest[:8])


def _key(secret: str, scopes: Sequence[Any], name: str, where: str) -> Key:
    if len(secret) < MIN_KEY_CHARS:
        raise ConfigError(
            f"{where} holds a key of {len(secret)} characters, expected at least {MIN_KEY_CHARS}; "
            "make one with: openssl rand -hex 24"
        )
    digest = _digest(secret)
    return Key(digest, _scopes(scopes, where), name or digest[:8])


def _scopes(scopes: Sequence[Any], where: str) -> tuple[str, ...]:
    if not scopes or any(scope not in SCOPES for scope in scopes):
        raise ConfigError(f"{where}: a key's scopes must be some of {list(SCOPES)}, e.g. read:<key>")
    return tuple(dict.fromkeys(scopes))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()

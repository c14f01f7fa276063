"""Names under which users are stored: "v2:" and 32 hex digits, which nobody without key 2 can compute or take back.

A pseudonym is AES(key, SHA-256(user id)), one block of 16 bytes. It is a keyed function of the id as an HMAC is, with
one difference: who has the key can take the AES back, but never the hash. So a store changes to a new key row by row
without anybody giving the ids again: AES(new key, AES^-1(old key, ...)). With HMAC that would need a list of all ids.
Digests of erased users and events are made in the same way under a key of their own, and change keys with them.

Without keys, in development, users are stored under their own ids.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from avrec_ray.errors import ConfigError, FeedbackError

KEYS_VARIABLE = "AVREC_USER_KEYS"
FILE_VARIABLE = "AVREC_USER_KEYS_FILE"
MIN_KEY_BYTES = 16
USER_COLUMNS = ("user_id", "friend_id", "shown_to")
"""Columns of tables that name users."""
_PSEUDONYM = re.compile(r"v([1-9][0-9]{0,5}):([0-9a-f]{32})")
_DIGEST = re.compile(r"([te])(0|[1-9][0-9]{0,5}):([0-9a-f]{32})")
_BLOCK_BYTES = 16


def is_pseudonym(name: str) -> bool:
    """Whether a name has the form of a pseudonym, of whatever key.

    >>> is_pseudonym("v1:" + "0" * 32), is_pseudonym("alice")
    (True, False)
    """
    return _PSEUDONYM.fullmatch(name) is not None


class _Permutation:
    """AES on blocks that each stand alone. ECB hides nothing about equal blocks, and equal users must be equal here."""

    def __init__(self, secret: bytes, purpose: str) -> None:
        key = derived_key(secret, purpose)
        self._cipher = Cipher(algorithms.AES(key), modes.ECB())

    def forth(self, blocks: bytes) -> bytes:
        return self._cipher.encryptor().update(blocks)

    def back(self, blocks: bytes) -> bytes:
        return self._cipher.decryptor().update(blocks)


class Pseudonyms:
    """Ids to stored names and names to names of other keys. The first key writes, all of them read."""

    def __init__(self, keys: Sequence[tuple[int, bytes]] = ()) -> None:
        """`keys`: version and secret, the one that writes first; none: users are stored under their own ids.

        Raises:
            ConfigError: a version is below 1 or comes twice, or a secret is too short.
        """
        for version, secret in keys:
            if not 1 <= version <= 999_999:
                raise ConfigError(f"{KEYS_VARIABLE}: got key version {version}, expected 1 to 999999")
            if len(secret) < MIN_KEY_BYTES:
                raise ConfigError(
                    f"{KEYS_VARIABLE}: key {version} has {len(secret)} bytes, expected at least {MIN_KEY_BYTES}; make "
                    "one with: openssl rand -hex 32"
                )
        self.versions = tuple(version for version, _ in keys)
        """Of the keys that are there, the one that writes first."""
        if len(set(self.versions)) < len(keys):
            raise ConfigError(f"{KEYS_VARIABLE}: got key versions {list(self.versions)}, expected each once")
        self._names = {version: _Permutation(secret, "pseudonym") for version, secret in keys}
        self._digests = {version: _Permutation(secret, "erased") for version, secret in keys}
        self._receipt_key = derived_key(keys[0][1], "receipt") if keys else b""

    @classmethod
    def from_environment(cls) -> "Pseudonyms":
        """Keys of AVREC_USER_KEYS, "2:<hex>,1:<hex>", or of the file that AVREC_USER_KEYS_FILE names; none: no keys.

        Raises:
            ConfigError: they are malformed, given twice, or others may read the file.
        """
        text, path = os.environ.get(KEYS_VARIABLE, "").strip(), os.environ.get(FILE_VARIABLE, "").strip()
        if text and path:
            raise ConfigError(f"{KEYS_VARIABLE} and {FILE_VARIABLE} are both set; keep one")
        return cls(_parse(_read_private(Path(path)) if path else text))

    @property
    def is_keyed(self) -> bool:
        """False where users are stored under their own ids."""
        return bool(self.versions)

    @property
    def newest(self) -> int:
        """Version of the key that writes; 0 without keys."""
        return self.versions[0] if self.versions else 0

    @property
    def receipt_key(self) -> bytes:
        """A key derived from the one that writes; empty without keys."""
        return self._receipt_key

    def of(self, user_id: str) -> str:
        """The stored name of a user, from the id as clients know it."""
        if not self.versions:
            return user_id
        return _name(self.newest, self._names[self.newest].forth(_core_of_id(user_id)))

    def stored(self, name: str) -> str:
        """As `of`, for what may be a pseudonym already, of any key that is there.

        Raises:
            ConfigError: it is one of a key that is not there.
        """
        return self.stored_many([name])[0]

    def stored_many(self, names: Sequence[str]) -> list[str]:
        """`stored` of many; one call of the cipher a key."""
        if not self.versions:
            for name in names:
                self._refuse_without_key(name)
            return list(names)
        blocks = self._names[self.newest].forth(b"".join(self._cores(names)))
        return [_name(self.newest, block) for block in _split(blocks)]

    def aliases(self, name: str) -> tuple[str, ...]:
        """The stored name under each key that is there, the one that writes first."""
        if len(self.versions) <= 1:
            return (name,)
        (core,) = self._cores([name])
        return tuple(_name(version, self._names[version].forth(core)) for version in self.versions)

    def names_of_id(self, user_id: str) -> tuple[str, ...]:
        """`aliases` from the id; without keys the id."""
        return self.aliases(self.of(user_id))

    def tombstones(self, name: str) -> tuple[str, ...]:
        """What an erased user is remembered by, under each key; the name cannot be told from it without a key."""
        return tuple(of_version[0] for of_version in self.tombstones_many([name]))

    def tombstones_many(self, names: Sequence[str]) -> list[list[str]]:
        """For each key a list parallel to `names`."""
        return self._digests_of("t", b"".join(self._cores(names)))

    def event_digests(self, event_ids: Sequence[str]) -> list[list[str]]:
        """What ids of erased events are remembered by: for each key a list parallel to `event_ids`."""
        cores = (hashlib.sha256(b"avrec_ray event\0" + _bytes(e)).digest()[:_BLOCK_BYTES] for e in event_ids)
        return self._digests_of("e", b"".join(cores))

    def renewed_digest(self, digest: str) -> str:
        """A tombstone or an event's digest, of any key that is there, under the key that writes."""
        kind, version, core = self._read_digest(digest)
        if not self.versions or version == self.newest:
            return digest
        return f"{kind}{self.newest}:{self._digests[self.newest].forth(core).hex()}"

    def core(self, name: str) -> bytes:
        """A hash of the user's id that is the same under every key. It is not secret: never to be stored as it is."""
        return self._cores([name])[0]

    def check_name(self, name: str) -> None:
        """Raise FeedbackError for what is no name to store: an id, or a name under a key that does not write.

        An id must not get into a store that has keys.
        """
        if self.versions and not (name.startswith(f"v{self.newest}:") and is_pseudonym(name)):
            raise FeedbackError(
                f"event store: got a user id, or a name of another key, expected a pseudonym of key {self.newest}; "
                "this is a bug of the caller"
            )

    def check_value(self, version: int) -> str:
        """By this a store tells a key from another of the same version."""
        return self._names[version].forth(hashlib.sha256(b"avrec_ray key").digest()[:_BLOCK_BYTES]).hex()

    def column(self, values: pa.ChunkedArray) -> pa.ChunkedArray:
        """A column of ids or pseudonyms as stored names; nulls stay.

        Raises:
            ConfigError: it holds a pseudonym of a key that is not there.
        """
        chunks = [self._array(chunk) for chunk in values.chunks]
        return pa.chunked_array(chunks, values.type)

    def table(self, table: pa.Table) -> pa.Table:
        """A table with stored names in every column that names users."""
        for name in USER_COLUMNS:
            if name in table.column_names:
                number = table.schema.get_field_index(name)
                table = table.set_column(number, table.schema.field(number), self.column(table[name]))
        return table

    def _array(self, values: pa.Array) -> pa.Array:
        encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
        names = encoded.dictionary.to_pylist()
        stored = self.stored_many(names)
        if stored == names:
            return values
        renamed = pa.DictionaryArray.from_arrays(encoded.indices, pa.array(stored, encoded.dictionary.type))
        return renamed if pa.types.is_dictionary(values.type) else renamed.dictionary_decode().cast(values.type)

    def _cores(self, names: Sequence[str]) -> list[bytes]:
        """Of stored names of any key, and of ids where there is no key or a name is no pseudonym."""
        cores: list[bytes] = [b""] * len(names)
        places: dict[int, list[int]] = {}
        for place, name in enumerate(names):
            found = _PSEUDONYM.fullmatch(name) if self.versions else None
            if found is None:
                cores[place] = _core_of_id(name)
            else:
                places.setdefault(self._held(int(found[1])), []).append(place)
                cores[place] = bytes.fromhex(found[2])
        for version, mine in places.items():
            blocks = self._names[version].back(b"".join(cores[place] for place in mine))
            for place, core in zip(mine, _split(blocks), strict=True):
                cores[place] = core
        return cores

    def _digests_of(self, kind: str, cores: bytes) -> list[list[str]]:
        if not self.versions:
            return [[f"{kind}0:{core.hex()}" for core in _split(cores)]]
        return [
            [f"{kind}{version}:{block.hex()}" for block in _split(self._digests[version].forth(cores))]
            for version in self.versions
        ]

    def _read_digest(self, digest: str) -> tuple[str, int, bytes]:
        found = _DIGEST.fullmatch(digest)
        if found is None:
            raise FeedbackError(f"event store: got the digest {digest!r}, expected such as 't1:' and 32 hex digits")
        kind, version, block = found[1], int(found[2]), bytes.fromhex(found[3])
        return kind, version, self._digests[self._held(version)].back(block) if version else block

    def _held(self, version: int) -> int:
        if version not in self._names:
            raise ConfigError(
                f"users are stored under key version {version}, and {KEYS_VARIABLE} has {list(self.versions)}; add it"
            )
        return version

    def _refuse_without_key(self, name: str) -> None:
        if found := _PSEUDONYM.fullmatch(name):
            raise ConfigError(f"a table holds pseudonyms of key version {found[1]}, and {KEYS_VARIABLE} is not set")


def derived_key(secret: bytes, purpose: str) -> bytes:
    """32 bytes for one purpose, from which neither the secret nor the key of another purpose follows (HKDF)."""
    return HKDF(hashes.SHA256(), 32, salt=None, info=f"avrec_ray {purpose}".encode()).derive(secret)


def read_hex_key(text: str, name: str) -> bytes:
    """A secret given as hex.

    Raises:
        ConfigError: it is no hex, or too short.
    """
    try:
        secret = bytes.fromhex(text.strip())
    except ValueError as error:
        raise ConfigError(f"{name} is not hexadecimal; make a key with: openssl rand -hex 32") from error
    if len(secret) < MIN_KEY_BYTES:
        raise ConfigError(f"{name} has {len(secret)} bytes, expected at least {MIN_KEY_BYTES}")
    return secret


def _parse(text: str) -> list[tuple[int, bytes]]:
    keys = []
    for part in (p.strip() for p in text.replace("\n", ",").split(",")):
        if part:
            version, colon, secret = part.partition(":")
            if not colon or not version.isdecimal():
                raise ConfigError(
                    f"{KEYS_VARIABLE} is malformed; expected e.g. 2:<hex>,1:<hex>, the key that writes first"
                )
            keys.append((int(version), read_hex_key(secret, f"{KEYS_VARIABLE}: key {version}")))
    return keys


def _read_private(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{FILE_VARIABLE}={str(path)!r} cannot be read ({error})") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{FILE_VARIABLE}: {path} may be read by others; run: chmod 600 {path}")
    return text


def _core_of_id(user_id: str) -> bytes:
    return hashlib.sha256(b"avrec_ray user\0" + _bytes(user_id)).digest()[:_BLOCK_BYTES]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _split(blocks: bytes) -> Iterable[bytes]:
    return (blocks[start : start + _BLOCK_BYTES] for start in range(0, len(blocks), _BLOCK_BYTES))


def _name(version: int, block: bytes) -> str:
    return f"v{version}:{block.hex()}"

"""Which keys a store's users are under: kept in `store_info`, so that nobody opens it with others or with none.

A row "user_key.2" holds "active" or "retired" and a value by which the key is known. A store that has none holds ids.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from avrec_ray.errors import ConfigError
from avrec_ray.feedback.database import StoreUnavailableError, write
from avrec_ray.feedback.pseudonyms import KEYS_VARIABLE, Pseudonyms
from avrec_ray.feedback.tables import erasures, events, impressions, store_info

ACTIVE, RETIRED = "active", "retired"
_PREFIX = "user_key."
_KEYS = sa.select(store_info.c.name, store_info.c.value).where(store_info.c.name.like(f"{_PREFIX}%"))


@dataclass(frozen=True)
class KeyState:
    """What a store says of one key."""

    is_active: bool
    check_value: str


def read_keys(connection: sa.Connection) -> dict[int, KeyState]:
    """Key versions that the store knows; none: its users are stored under their ids."""
    found = {}
    for name, value in connection.execute(_KEYS):
        state, _, check_value = value.partition(":")
        found[int(name.removeprefix(_PREFIX))] = KeyState(state == ACTIVE, check_value)
    return found


def claim(engine: sa.Engine, pseudonyms: Pseudonyms, rotating: bool = False) -> None:
    """Check that a store's users are under these keys; a new store takes the key that writes.

    Args:
        rotating: a store that holds ids is allowed, for the job that gives it its first key.

    Raises:
        ConfigError: the store has other keys, or none.
    """
    with engine.connect() as connection:
        if _is_claimed(connection, pseudonyms, rotating):
            return
    with write(engine) as connection:
        if not _is_claimed(connection, pseudonyms, rotating):
            set_state(connection, pseudonyms, pseudonyms.newest, ACTIVE)


def _is_claimed(connection: sa.Connection, pseudonyms: Pseudonyms, rotating: bool) -> bool:
    known = read_keys(connection)
    check_keys(known, pseudonyms)
    if not pseudonyms.is_keyed or pseudonyms.newest in known:
        return True
    if not known and not is_empty(connection):
        if rotating:
            return True  # `rekey` claims it
        raise ConfigError(
            f"the event store holds users under their own ids, and {KEYS_VARIABLE} is set; give them pseudonyms with: "
            "python -m jobs.rotate_user_keys, or unset it"
        )
    return False


def check_keys(known: Mapping[int, KeyState], pseudonyms: Pseudonyms) -> None:
    """Raise ConfigError unless the keys of a store, or of a backup, are among these and the writing one is active."""
    if known and not pseudonyms.is_keyed:
        raise ConfigError(
            f"the event store holds pseudonyms of key versions {sorted(known)}, and {KEYS_VARIABLE} is not set; set it"
        )
    for version, state in known.items():
        if version in pseudonyms.versions and state.check_value != pseudonyms.check_value(version):
            raise ConfigError(f"{KEYS_VARIABLE}: key {version} is another one than that of the event store")
        if state.is_active and version not in pseudonyms.versions:
            raise ConfigError(
                f"the event store holds pseudonyms of key version {version}, and {KEYS_VARIABLE} has "
                f"{list(pseudonyms.versions)}; add it, or finish its rotation with: python -m jobs.rotate_user_keys"
            )
    if pseudonyms.newest in known and not known[pseudonyms.newest].is_active:
        raise ConfigError(f"{KEYS_VARIABLE}: key {pseudonyms.newest} is retired and comes first; put a newer one there")


def require_writable(connection: sa.Connection, pseudonyms: Pseudonyms) -> None:
    """Within a write's transaction: the store may have got other keys since it was opened.

    Raises:
        StoreUnavailableError: nothing was kept; a process with the keys of today must take the events.
    """
    known = read_keys(connection)
    if pseudonyms.is_keyed:
        state = known.get(pseudonyms.newest)
        if state is None or not state.is_active:
            raise StoreUnavailableError(
                f"event store: key version {pseudonyms.newest} is not in use any more; restart with today's "
                f"{KEYS_VARIABLE}, and send the same again"
            )
    elif known:
        raise StoreUnavailableError(f"event store: it has user keys now; restart with {KEYS_VARIABLE} set")


def set_state(connection: sa.Connection, pseudonyms: Pseudonyms, version: int, state: str) -> None:
    """Note a key as active or retired."""
    name, value = f"{_PREFIX}{version}", f"{state}:{pseudonyms.check_value(version)}"
    connection.execute(sa.delete(store_info).where(store_info.c.name == name))
    connection.execute(sa.insert(store_info).values(name=name, value=value))


def is_empty(connection: sa.Connection) -> bool:
    """Whether the store knows no user at all."""
    return not any(connection.execute(sa.select(t.c.seq).limit(1)).first() for t in (events, impressions, erasures))

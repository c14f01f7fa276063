"""Replicas that keep up with new items: what each is told, and how each begins."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from avrec_ray.bundle import Bundle, BundleMetadata
from avrec_ray.catalogue import Catalogue
from avrec_ray.dataclass_io import from_dict
from avrec_ray.new_items.follow import Follower
from avrec_ray.new_items.log import Change
from avrec_ray.new_items.overlay import add_item, remove_item, update_item
from avrec_ray.new_items.store import NewItemStore
from avrec_ray.new_items.vectors import item_from_bytes
from avrec_ray.towers.config import TowersConfig

_LOOP_SECONDS = 30.0


@dataclass(kw_only=True)
class FollowArgs:
    """Where the log of changes is, and how often to look."""

    url: str
    busy_timeout_seconds: float = 10.0
    poll_seconds: float = 0.3


def begin_to_follow(
    args: dict[str, Any] | None, bundle: Bundle, apply: Callable[[Sequence[Change]], None]
) -> Follower | None:
    """Apply all changes so far, then go on in a thread; None where `args` are.

    A replica that cannot read the log does not start: it would serve what was deleted.
    """
    if args is None:
        return None
    cfg = from_dict(FollowArgs, args)
    store = NewItemStore(cfg.url, cfg.busy_timeout_seconds)
    follower = follower_of(store, bundle.metadata, bundle.items.item_ids, apply, cfg.poll_seconds)
    follower.catch_up()
    follower.start()
    return follower


def follower_of(
    store: NewItemStore,
    metadata: BundleMetadata,
    item_ids: Sequence[str],
    apply: Callable[[Sequence[Change]], None],
    poll_seconds: float,
) -> Follower:
    """A follower of a bundle that still holds what its files do."""
    return Follower(store, metadata, frozenset(item_ids), apply, poll_seconds)


def apply_to_catalogue(items: Catalogue, towers: TowersConfig, changes: Sequence[Change]) -> list[int]:
    """Changes of the facts alone, for who holds no vectors; returns the rows that joined or changed.

    Raises:
        BundleError: vectors that models will refuse; nothing is applied then.
    """
    puts = {c.seq: item_from_bytes(c.facts, c.vectors, towers) for c in changes if c.kind == "put"}
    covered = []
    for change in changes:
        row = items.idx(change.item_id)
        if change.kind == "delete":
            if row is not None:
                remove_item(items, row)
        elif row is None:
            covered.append(add_item(items, puts[change.seq]))
        else:
            update_item(items, row, puts[change.seq])
            covered.append(row)
    return list(dict.fromkeys(covered))


@dataclass(eq=False)
class Following:
    """How the catalogue of one flow keeps up."""

    follower: Follower
    on_loop: "OnLoop"

    def start(self) -> None:
        """Follow, in the running event loop."""
        self.on_loop.loop = asyncio.get_running_loop()
        self.follower.start()

    def close(self) -> None:
        """End following."""
        self.follower.stop()


class OnLoop:
    """Runs a function in the thread of an event loop and waits for it, once there is one; before that, at once.

    A gateway's coroutines read the catalogue without locks: it may only change between two of their steps.
    """

    def __init__(self, function: Callable[[Sequence[Change]], None]) -> None:
        self._function = function
        self.loop: asyncio.AbstractEventLoop | None = None

    def __call__(self, changes: Sequence[Change]) -> None:
        """Never in the loop's own thread."""
        if self.loop is None:
            self._function(changes)
            return
        asyncio.run_coroutine_threadsafe(self._run(changes), self.loop).result(_LOOP_SECONDS)

    async def _run(self, changes: Sequence[Change]) -> None:
        self._function(changes)

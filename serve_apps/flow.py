"""One request, from the user's history to the list that lacks what the catalogue does not know and rules block.

Who orders the items, and what happens when a model is missing, is ladder.py.
"""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np

from avrec_ray.catalogue import Catalogue
from avrec_ray.feedback.profile import Profiler
from avrec_ray.feedback.store import EventStore
from avrec_ray.ranking.rule_effects import RuleEffects
from avrec_ray.retrieval.lexical import LexicalIndex
from avrec_ray.types import Event, Query, RankedItem
from serve_apps.access_log import note_list
from serve_apps.answers import Models
from serve_apps.fallback import Fallback, Vectors
from serve_apps.following import Following
from serve_apps.ladder import Ladder
from serve_apps.metrics import GatewayMetrics
from serve_apps.served import Served, in_given_order, with_session
from serve_apps.stages import Stages
from serve_apps.users import LoadProfiles, UserDoor

logger = logging.getLogger(__name__)

_READ_THREADS = 8


class RequestFlow:
    """Serves lists from the models, the event store and the catalogue. Knows no HTTP and no Ray."""

    def __init__(
        self,
        models: Models,
        store: EventStore,
        catalogue: Catalogue,
        model_version: str,
        index_version: str,
        history_length: int,
        deadline_ms: int,
        metrics: GatewayMetrics | None = None,
        known_users: Collection[str] = frozenset(),
        rules: RuleEffects | None = None,
        load_profiles: LoadProfiles = lambda: None,
        readers: ThreadPoolExecutor | None = None,
        vectors: Vectors | None = None,
    ) -> None:
        """`known_users`: those of whom the models know something without a history; `rules`: for what they block.

        `load_profiles` reads what that is, for a user who asks. Flows over one store may share `readers`, threads of
        their own: reads that hang on a database must not use up those that store feedback. `vectors`: see `Fallback`.
        """
        self.models = models
        self.store = store
        self.catalogue = catalogue
        self.model_version = model_version
        self.index_version = index_version
        self.metrics = metrics or GatewayMetrics()
        self._fallback, self._stages = Fallback(catalogue, vectors), Stages(model_version, deadline_ms)
        self._ladder = Ladder(models, self._fallback, self._stages, self.metrics, model_version)
        self.users = UserDoor(store, known_users, load_profiles)
        self.rules = rules or RuleEffects((), catalogue)
        self.history_length = history_length
        self._deadline_ms = deadline_ms
        self.readers = readers or history_readers()
        self.following: Following | None = None
        """How the catalogue keeps up with new items; None: it stays as it is."""
        self.why_no_new_items = ""

    async def recommend(
        self, query: Query, session: Sequence[Event], deadline_ms: int | None, is_shown: bool = True
    ) -> Served:
        """A list for `query`, whose history is read from the store and then extended by `session`.

        `is_shown` false: it is for comparison, and counts nowhere.
        """
        served = self._open(deadline_ms)
        served.is_shown = is_shown
        name, history = await self._history(served, query.user_id, session)
        query = dataclasses.replace(query, user_id=name, history=history)
        self._mark_unknown(served, name, history)
        served.items = await self._ladder.recommend(served, query)
        return await self._finish(served)

    async def rank(
        self, user_id: str | None, item_ids: Sequence[str], explain: bool, deadline_ms: int | None
    ) -> Served:
        """The given items of the catalogue, in the order that suits the user."""
        served = self._open(deadline_ms)
        name, history = await self._history(served, user_id, ())
        self._mark_unknown(served, name, history)
        query = Query(user_id=name, history=history, k=len(item_ids), explain=explain)
        scored = await self._stages.run(served, "match", lambda: self.models.score(query, item_ids))
        if scored is None or not self._ladder.same_model(served, scored.model_version):
            served.items = self._fallback.rank(item_ids)
            return await self._finish(served)
        ranked = await self._ladder.rerank(served, query, scored.candidates)
        served.items = self._fallback.rank(item_ids) if ranked is None else ranked
        return await self._finish(served)

    async def similar(self, row: int, k: int) -> Served:
        """Items near the one in row `row` of the catalogue."""
        served = self._open(None)
        item_id = self.catalogue.item_ids[row]
        found = await self._stages.run(served, "match", lambda: self.models.similar(item_id, k))
        if found is None or not self._ladder.same_model(served, found.model_version):
            served.items = self._fallback.similar(row, k)
        else:
            served.items = in_given_order(found.candidates, k)
        return await self._finish(served)

    async def search(self, text: str, k: int, kind: str) -> tuple[Served, str]:
        """Items for a text, and how they were found: by `kind`, or "lexical" where "embedding" cannot be done."""
        served = self._open(None)
        if kind == "embedding":
            found = await self._stages.run(served, "match", lambda: self.models.search(text, k))
            if found is not None and found.candidates is None:
                served.lack("text_not_encoded")
            elif found is not None and self._ladder.same_model(served, found.model_version):
                served.items = in_given_order(found.candidates or (), k)
                return await self._finish(served), "embedding"
        loop = asyncio.get_running_loop()
        try:
            # The first time this builds the index of words; whoever comes later finds it built.
            rows = await asyncio.wait_for(
                loop.run_in_executor(self.readers, lambda: self._words.search(text, k)),
                max(served.seconds_left(), 0.05),
            )
        except TimeoutError:
            rows = []
            served.lack("deadline")
        item_ids = self.catalogue.item_ids
        served.items = [RankedItem(item_ids[row], rank, score) for rank, (row, score) in enumerate(rows, start=1)]
        return await self._finish(served), "lexical"

    async def missing(self) -> list[str]:
        """What is not there right now: "event_store", "models"."""
        missing = []
        loop = asyncio.get_running_loop()
        try:
            await asyncio.wait_for(loop.run_in_executor(self.readers, self.store.ping), 2.0)
        except Exception:
            logger.warning("event store does not answer", exc_info=True)
            missing.append("event_store")
        try:
            versions = await asyncio.wait_for(self.models.versions(), 2.0)
            if set(versions) != {self.model_version}:
                missing.append("models")
        except Exception:
            logger.warning("models do not answer", exc_info=True)
            missing.append("models")
        return missing

    def close(self) -> None:
        """Release threads and connections."""
        self.readers.shutdown(wait=False, cancel_futures=True)
        self.store.close()

    @cached_property
    def profiler(self) -> Profiler:
        """What a history says in words."""
        return Profiler(self.catalogue)

    @cached_property
    def _words(self) -> LexicalIndex:
        return LexicalIndex(self.catalogue)

    async def _history(
        self, served: Served, user_id: str | None, session: Sequence[Event]
    ) -> tuple[str | None, tuple[Event, ...]]:
        """The user's name for the models, and the history. Without the store nobody knows who was erased."""
        read: tuple[str, tuple[Event, ...]] | None = None
        if user_id is not None:
            loop = asyncio.get_running_loop()
            read = await self._stages.run(
                served,
                "profile",
                lambda: loop.run_in_executor(self.readers, self._read, user_id),
            )
        unread = None if self.users.known(user_id) else user_id
        name, stored = read or (unread, ())
        return name, with_session(stored, session, time.time())

    def _read(self, user_id: str) -> tuple[str, tuple[Event, ...]]:
        with self.metrics.store_call("read"):
            return self.users.read(user_id, self.history_length)

    def _mark_unknown(self, served: Served, user_id: str | None, history: Sequence[Event]) -> None:
        """A history without one item of this catalogue tells the models nothing, like none at all."""
        if "profile_unavailable" in served.degraded or self.users.known(user_id):
            return
        if not any(e.event != "impression" and self.catalogue.idx(e.item_id) is not None for e in history):
            served.lack("unknown_user")

    def _open(self, deadline_ms: int | None) -> Served:
        return Served(min(deadline_ms or self._deadline_ms, self._deadline_ms), self.model_version, self.catalogue)

    def _unblocked(self, items: list[RankedItem]) -> list[RankedItem]:
        """Without what a rule blocks: only the reranker knows the rules, and a list may be answered without it."""
        rows = np.array([self.catalogue.index_of[item.item_id] for item in items], np.int64)
        blocked = self.rules.blocked(rows, time.time())
        if not blocked.any():
            return items
        kept = [item for item, out in zip(items, blocked.tolist(), strict=True) if not out]
        return [dataclasses.replace(item, rank=rank) for rank, item in enumerate(kept, start=1)]

    async def know(self, item_ids: Iterable[str]) -> None:
        """Where this catalogue lacks one of them, look at once whether it has joined."""
        if any(self.catalogue.idx(item_id) is None for item_id in item_ids):
            await self.follow()

    async def follow(self) -> None:
        """Take over what has joined or left the catalogue by now; what fails is tried again in a moment anyway."""
        if self.following is None:
            return
        catch_up = self.following.follower.catch_up
        try:
            await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(self.readers, catch_up), 2.0)
        except Exception:
            logger.warning("changes of the catalogue cannot be read", exc_info=True)

    async def _finish(self, served: Served) -> Served:
        """Items that the models know and this catalogue does not, new or just deleted, are in no list."""
        await self.know(item.item_id for item in served.items)
        known = [item for item in served.items if self.catalogue.idx(item.item_id) is not None]
        if len(known) < len(served.items):
            served.items = [dataclasses.replace(item, rank=rank) for rank, item in enumerate(known, start=1)]
        return self._close(served)

    def _close(self, served: Served) -> Served:
        served.items = self._unblocked(served.items)
        served.stages_ms["total"] = (time.perf_counter() - served.started_seconds) * 1000
        if served.is_shown:
            self.metrics.count_list(served.stages_ms, served.degraded, served.items, self.catalogue)
            note_list(served.stages_ms, served.degraded, served.model_version)
        return served


def history_readers() -> ThreadPoolExecutor:
    """Threads that read the event store."""
    return ThreadPoolExecutor(_READ_THREADS, "history")

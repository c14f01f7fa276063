"""One request, from the user's history to the list; and what is answered when a part is missing.

The ladder: personal ranking; the matcher's order when the reranker fails; when the matcher fails, time runs out, or the
models disagree on the bundle, what fallback.py gives: by the vector of the last list, by the mean of the history,
popular items of the user's segment, popular items. Filters, seen items and blocks of rules are respected on every rung,
and `degraded` says what was missing and which rung it was.
"""

import asyncio
import dataclasses
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TypeVar

import numpy as np

from avrec_ray.bundle import Catalogue
from avrec_ray.feedback.profile import Profiler
from avrec_ray.feedback.store import EventStore
from avrec_ray.ranking.rule_effects import RuleEffects
from avrec_ray.retrieval.lexical import LexicalIndex
from avrec_ray.types import Candidate, Event, Query, RankedItem
from serve_apps.access_log import note_list
from serve_apps.answers import FusedAnswer, Models, RankAnswer
from serve_apps.fallback import Fallback, Vectors
from serve_apps.following import Following
from serve_apps.metrics import GatewayMetrics
from serve_apps.served import Served, in_given_order, with_session
from serve_apps.stages import UNAVAILABLE, Stages
from serve_apps.users import LoadProfiles, UserDoor

logger = logging.getLogger(__name__)

T = TypeVar("T")

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
        self.fallback = Fallback(catalogue, vectors)
        self.stages = Stages(model_version, deadline_ms)
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
        served.items = await self._personal(served, query) or []
        return await self._finish(served)

    async def rank(
        self, user_id: str | None, item_ids: Sequence[str], explain: bool, deadline_ms: int | None
    ) -> Served:
        """The given items of the catalogue, in the order that suits the user."""
        served = self._open(deadline_ms)
        name, history = await self._history(served, user_id, ())
        self._mark_unknown(served, name, history)
        query = Query(user_id=name, history=history, k=len(item_ids), explain=explain)
        scored = await self._stage(served, "match", lambda: self.models.score(query, item_ids))
        if scored is None or not self._same_model(served, scored.model_version):
            served.items = self.fallback.rank(item_ids)
            return await self._finish(served)
        ranked = await self._rerank(served, query, scored.candidates)
        served.items = self.fallback.rank(item_ids) if ranked is None else ranked
        return await self._finish(served)

    async def similar(self, row: int, k: int) -> Served:
        """Items near the one in row `row` of the catalogue."""
        served = self._open(None)
        item_id = self.catalogue.item_ids[row]
        found = await self._stage(served, "match", lambda: self.models.similar(item_id, k))
        if found is None or not self._same_model(served, found.model_version):
            served.items = self.fallback.similar(row, k)
        else:
            served.items = in_given_order(found.candidates, k)
        return await self._finish(served)

    async def search(self, text: str, k: int, kind: str) -> tuple[Served, str]:
        """Items for a text, and how they were found: by `kind`, or "lexical" where "embedding" cannot be done."""
        served = self._open(None)
        if kind == "embedding":
            found = await self._stage(served, "match", lambda: self.models.search(text, k))
            if found is not None and found.candidates is None:
                served.lack("text_not_encoded")
            elif found is not None and self._same_model(served, found.model_version):
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
            read = await self._stage(
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

    async def _personal(self, served: Served, query: Query) -> list[RankedItem] | None:
        if self.models.recommend is not None:
            return await self._at_once(served, query, self.models.recommend)
        matched = await self._stage(served, "match", lambda: self.models.match(query))
        if matched is None or not self._same_model(served, matched.model_version):
            return self._without_models(served, query)
        if served.is_shown:
            self.metrics.count_candidates(matched.candidates)
        ranked = await self._rerank(served, query, matched.candidates)
        if ranked is not None and served.is_shown and not served.degraded:
            self.metrics.observe_scores(self.model_version, ranked)
        if ranked is not None and not served.degraded:
            self.fallback.remember(query.user_id, ranked)
        return self._without_models(served, query) if ranked is None else ranked

    def _without_models(self, served: Served, query: Query) -> list[RankedItem]:
        """The best list that this process can give alone; `degraded` says which, unless it is plain popularity."""
        rung, items = self.fallback.recommend(query)
        if rung != "popular":
            served.lack(rung)
        return items

    async def _at_once(
        self, served: Served, query: Query, recommend: Callable[[Query], Awaitable[FusedAnswer]]
    ) -> list[RankedItem]:
        """Both stages by one call; the time that it took beside reranking is told as that of matching."""
        told = await self._stage(served, "match", lambda: recommend(query))
        if told is None or not self._same_model(served, told.model_version):
            return self._without_models(served, query)
        served.stages_ms["rerank"] = told.rerank_ms
        served.stages_ms["match"] = max(0.0, served.stages_ms["match"] - told.rerank_ms)
        if served.is_shown:
            self.metrics.count_sources(told.sources)
        if told.items is None:
            served.lack(UNAVAILABLE["rerank"])
            return in_given_order(told.candidates, query.k)
        if served.is_shown and not served.degraded:
            self.metrics.observe_scores(self.model_version, told.items)
        if not served.degraded:
            self.fallback.remember(query.user_id, told.items)
        return told.items

    async def _rerank(self, served: Served, query: Query, candidates: Sequence[Candidate]) -> list[RankedItem] | None:
        """The reranker's list; the matcher's order if it fails; None if it is of another bundle."""
        ranked = await self._stage(served, "rerank", lambda: self._checked_rerank(query, candidates))
        if ranked is None:
            return in_given_order(candidates, query.k)
        return ranked.items if self._same_model(served, ranked.model_version) else None

    async def _checked_rerank(self, query: Query, candidates: Sequence[Candidate]) -> RankAnswer:
        ranked = await self.models.rerank(query, candidates)
        if not all(math.isfinite(item.score) for item in ranked.items):
            raise ValueError(f"the reranker of {ranked.model_version} gave a score that is not finite")
        return ranked

    async def _stage(self, served: Served, name: str, call: Callable[[], Awaitable[T]]) -> T | None:
        return await self.stages.run(served, name, call)

    def _same_model(self, served: Served, model_version: str) -> bool:
        if model_version == self.model_version:
            return True
        served.lack("mixed_model")
        return False

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

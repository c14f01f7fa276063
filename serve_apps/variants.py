"""The bundles that one gateway serves by now: who gets which, and what is seen of them.

A request asks for its flow once and keeps it to the end, so no answer holds parts of two bundles. A change is one
assignment in the event loop.
"""

import asyncio
import dataclasses
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from avrec_ray.feedback.store import EventStore
from avrec_ray.rollout.config import RolloutConfig
from avrec_ray.rollout.guard import Guard, overlap
from avrec_ray.rollout.interleaving import team_draft
from avrec_ray.rollout.lineup import CANDIDATE, CHAMPION, INTERLEAVED, Arm, Lineup
from avrec_ray.types import Event, Query
from serve_apps.flow import RequestFlow
from serve_apps.metrics import GatewayMetrics
from serve_apps.served import Served

logger = logging.getLogger(__name__)

Condemn = Callable[[int, Lineup, str], None]
"""Told the revision, the lineup and why its candidate is not well."""
_MIRRORS_AT_ONCE = 2


@dataclass(frozen=True)
class _Now:
    """What is served at one moment."""

    revision: int
    lineup: Lineup
    champion: RequestFlow
    candidate: RequestFlow | None


class Variants:
    """All flows of one gateway. Its coroutines run in one event loop; `switch` and `take_back` are called there too."""

    def __init__(
        self,
        champion: RequestFlow,
        revision: int = 0,
        lineup: Lineup | None = None,
        cfg: RolloutConfig | None = None,
        seed: int | None = None,
    ) -> None:
        """`lineup`: that of `revision`; None: the champion's bundle alone, for ever. `seed`: for draws in tests."""
        self.cfg = cfg or RolloutConfig()
        self.store: EventStore = champion.store
        self.metrics: GatewayMetrics = champion.metrics
        self.on_start: Callable[[], None] = lambda: None
        self.on_close: Callable[[], None] = lambda: None
        self.condemn: Condemn = lambda _revision, _lineup, _reason: None
        alone = Lineup(champion=Arm(model_version=champion.model_version, bundle="", app=""))
        self._now = _Now(revision, (lineup or alone).without_candidate("start"), champion, None)
        self._guard = Guard(self.cfg)
        self._rng = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()
        self._tell()

    @property
    def champion(self) -> RequestFlow:
        """The flow of who takes part in nothing."""
        return self._now.champion

    @property
    def revision(self) -> int:
        """Of the lineup that is served."""
        return self._now.revision

    @property
    def lineup(self) -> Lineup:
        """What is served."""
        return self._now.lineup

    def stored(self, user_id: str) -> str:
        """The name that everything behind the door uses."""
        return self.store.pseudonyms.of(user_id)

    def switch(self, revision: int, lineup: Lineup, flows: Mapping[str, RequestFlow]) -> None:
        """Serve another lineup from the next request on. `flows`: by application, ready to be asked."""
        if lineup.candidate != self._now.lineup.candidate or lineup.mode != self._now.lineup.mode:
            self._guard = Guard(self.cfg)
        candidate = None if lineup.candidate is None else flows[lineup.candidate.app]
        self._now = _Now(revision, lineup, flows[lineup.champion.app], candidate)
        self._tell()

    def start(self) -> None:
        """Begin to follow new items and lineups, in the running event loop."""
        if self.champion.following is not None:
            self.champion.following.start()
        self.on_start()

    def close(self) -> None:
        """Release threads and connections of everything."""
        for task in self._tasks:
            task.cancel()
        self.on_close()
        if self.champion.following is not None:
            self.champion.following.close()
        self.champion.close()

    async def follow(self) -> None:
        """Take over at once what has joined or left the catalogues."""
        for flow in filter(None, (self._now.champion, self._now.candidate)):
            await flow.follow()

    def measure(self) -> None:
        """Put into the metrics how far the champion's catalogue has followed."""
        following = self.champion.following
        if following is not None:
            self.metrics.catalogue_current.set(following.follower.current_at_seconds)
            self.metrics.catalogue_change.set(following.follower.watermark)

    async def recommend(self, query: Query, session: Sequence[Event], deadline_ms: int | None) -> Served:
        """A list from the flow that is the user's; see `RequestFlow.recommend`."""
        now = self._now
        variant = now.lineup.variant_of(query.user_id)
        if variant == INTERLEAVED and now.candidate is not None:
            served = await self._interleaved(now, now.candidate, query, session, deadline_ms)
        else:
            flow = now.candidate if variant == CANDIDATE and now.candidate is not None else now.champion
            served = await flow.recommend(query, session, deadline_ms)
            served.variant = variant if flow is now.candidate else CHAMPION
            self._observe(now, served)
        self._mirror(now, served, query, session, deadline_ms)
        return served

    async def rank(
        self, user_id: str | None, item_ids: Sequence[str], explain: bool, deadline_ms: int | None
    ) -> tuple[Served, list[str]]:
        """The given items in the user's order, and those that the bundle does not know. Rankings are not mixed."""
        now = self._now
        is_candidate = now.candidate is not None and now.lineup.variant_of(user_id) == CANDIDATE
        flow = now.candidate if is_candidate and now.candidate is not None else now.champion
        await flow.know(item_ids)
        known = [item_id for item_id in item_ids if flow.catalogue.idx(item_id) is not None]
        served = await flow.rank(user_id, known, explain, deadline_ms)
        served.variant = CANDIDATE if is_candidate else CHAMPION
        self._observe(now, served)
        return served, [item_id for item_id in item_ids if flow.catalogue.idx(item_id) is None]

    async def _interleaved(
        self, now: _Now, other: RequestFlow, query: Query, session: Sequence[Event], deadline_ms: int | None
    ) -> Served:
        served, picked = await asyncio.gather(
            now.champion.recommend(query, session, deadline_ms),
            other.recommend(query, session, deadline_ms, is_shown=False),
        )
        for side, variant in ((served, CHAMPION), (picked, CANDIDATE)):
            side.variant = variant
            self._observe(now, side)
        if served.failed or picked.failed:
            return served  # one ranking is no mixture: the list is the champion's
        flows = {CHAMPION: (now.champion, served), CANDIDATE: (other, picked)}
        known = now.champion.catalogue.index_of
        theirs = [item.item_id for item in picked.items if item.item_id in known]
        drafted = team_draft([item.item_id for item in served.items], theirs, query.k, self._rng)
        items = []
        for rank, (item_id, variant) in enumerate(drafted, start=1):
            flow, side = flows[variant]
            item = next(item for item in side.items if item.item_id == item_id)
            # Scores of two models cannot be compared: the place speaks. Propensities are those under whoever picked.
            items.append(dataclasses.replace(item, rank=rank, score=1 / rank))
            served.picked_by[item_id] = (variant, flow.model_version)
        served.items, served.variant = items, INTERLEAVED
        return served

    def _observe(self, now: _Now, served: Served) -> None:
        seconds = served.stages_ms.get("total", 0.0) / 1000
        self.metrics.count_variant(served.variant, served.failed, seconds)
        if now.candidate is None or now is not self._now:
            return
        self._guard.observe(served.variant == CANDIDATE, served.failed, seconds)
        if served.variant == CANDIDATE:  # nothing speaks against it that was not seen of it
            self._judge(now)

    def _judge(self, now: _Now) -> None:
        if reason := self._guard.verdict():
            self.take_back(now.revision, reason)

    def take_back(self, revision: int, reason: str) -> None:
        """Serve the champion alone, here at once; everywhere, when `condemn` has written it down."""
        now = self._now
        if now.revision != revision or now.candidate is None:
            return
        logger.error("candidate %s is taken back: %s", now.candidate.model_version, reason)
        self.metrics.taken_back.inc()
        self._now = _Now(revision, now.lineup.without_candidate(reason), now.champion, None)
        self._tell()
        self.condemn(revision, now.lineup, reason)

    def _mirror(
        self, now: _Now, served: Served, query: Query, session: Sequence[Event], deadline_ms: int | None
    ) -> None:
        """Ask the other side for the same, after the answer, and compare the lists."""
        if now.candidate is None or len(self._tasks) >= _MIRRORS_AT_ONCE:
            return
        is_shadow = now.lineup.mode == "shadow"
        share = now.lineup.share if is_shadow else self.cfg.mirror_share
        asked = now.candidate if is_shadow else now.champion
        if (served.variant == CANDIDATE) == is_shadow or served.variant == INTERLEAVED or self._rng.random() >= share:
            return
        task = asyncio.create_task(self._compare(now, asked, served, query, session, deadline_ms))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _compare(
        self,
        now: _Now,
        asked: RequestFlow,
        served: Served,
        query: Query,
        session: Sequence[Event],
        deadline_ms: int | None,
    ) -> None:
        started = time.perf_counter()
        query = dataclasses.replace(query, explain=False)
        try:
            mirrored = await asked.recommend(query, session, deadline_ms, is_shown=False)
        except Exception:
            logger.warning("a mirrored request failed", exc_info=True)
            return
        if now is not self._now:
            return
        if now.lineup.mode == "shadow":
            mirrored.variant = CANDIDATE
            self.metrics.count_variant("shadow", mirrored.failed, time.perf_counter() - started)
            self._guard.observe(True, mirrored.failed, mirrored.stages_ms.get("total", 0.0) / 1000)
        if not (served.degraded or mirrored.degraded) or served.degraded == mirrored.degraded == ["unknown_user"]:
            lists = [[item.item_id for item in side.items] for side in (served, mirrored)]
            agreement = overlap(lists[0], lists[1])
            self.metrics.agreement.observe(agreement)
            self._guard.compare(agreement)
        self._judge(now)

    def _tell(self) -> None:
        champion, candidate = self._now.champion, self._now.candidate
        versions = None if candidate is None else (candidate.model_version, self._now.lineup.mode)
        self.metrics.serve(champion.model_version, champion.index_version, champion.catalogue, versions)
        self.metrics.lineup_revision.set(self._now.revision)

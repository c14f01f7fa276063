"""How a gateway follows the lineup: an indexed read every fraction of a second, and a switch when all is at hand."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

from avrec_ray.rollout.lineup import Arm, Lineup
from avrec_ray.rollout.store import LineupConflictError, Numbered, RolloutStore
from avrec_ray.types import Query
from serve_apps.flow import RequestFlow
from serve_apps.variants import Variants

logger = logging.getLogger(__name__)

OpenFlow = Callable[[Arm], RequestFlow]
"""Load what a gateway needs of a bundle. Called in a thread; may fail."""
_READY_SECONDS = 10.0
_RETRY_SECONDS = 2.0


class LineupWatch:
    """Keeps the variants of one gateway at the newest lineup that it can serve."""

    def __init__(self, store: RolloutStore, variants: Variants, open_flow: OpenFlow) -> None:
        self._store, self._variants, self._open_flow = store, variants, open_flow
        self._flows = {variants.lineup.champion.app: variants.champion}
        self._unused_since: dict[str, float] = {}
        self._stopped = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="lineup", daemon=True)
        self._condemned: tuple[str, str] | None = None
        variants.on_start, variants.on_close, variants.condemn = self.start, self.stop, self._condemn

    def start(self) -> None:
        """Watch, for the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End watching."""
        self._stopped.set()
        for flow in self._flows.values():
            if flow is not self._variants.champion and flow.following is not None:
                flow.following.close()

    def _run(self) -> None:
        is_failing = False
        while not self._stopped.wait(_RETRY_SECONDS if is_failing else self._variants.cfg.poll_seconds):
            try:
                self._write_down()
                newest = self._store.current()
                behind = newest is not None and newest.revision > self._variants.revision
                if newest is not None and behind:
                    self._take_up(newest)
                self._variants.metrics.lineup_behind.set(0)
                is_failing = False
                self._forget_unused()
            except Exception:  # what is served goes on being served
                if not is_failing:
                    logger.exception("the newest lineup cannot be served; trying again")
                self._variants.metrics.lineup_behind.set(1)
                is_failing = True

    def _take_up(self, newest: Numbered) -> None:
        lineup, present = newest.lineup, {arm.app for arm in self._variants.lineup.arms}
        for arm in filter(None, (lineup.champion, lineup.candidate)):
            if arm.app in self._flows:
                if arm.app not in present:  # its replicas may have been taken down and started again meanwhile
                    asyncio.run(self._reached(self._flows[arm.app]))
                    self._call(self._answers(self._flows[arm.app]))
            else:
                flow = self._open_flow(arm)
                asyncio.run(self._reached(flow))
                self._call(self._made_ready(flow))
                self._flows[arm.app] = flow
        self._call(self._switched(newest))
        logger.info("lineup %d: %s", newest.revision, lineup.reason)

    async def _reached(self, flow: RequestFlow) -> None:
        """In this thread: a handle that is used for the first time asks Serve's controller, and the loop would wait."""
        async with asyncio.timeout(_READY_SECONDS):
            await flow.models.versions()

    async def _made_ready(self, flow: RequestFlow) -> None:
        """The first call through a handle is slow, and no client should wait for it."""
        if flow.following is not None:
            flow.following.start()
        try:
            await self._answers(flow)
        except BaseException:
            if flow.following is not None:
                flow.following.close()
            raise

    async def _answers(self, flow: RequestFlow) -> None:
        served = await flow.recommend(Query(user_id=None, k=1), (), None, is_shown=False)
        if served.failed or not served.items:
            raise RuntimeError(f"{flow.model_version} does not give a list yet: {served.degraded}")

    async def _switched(self, newest: Numbered) -> None:
        self._variants.switch(newest.revision, newest.lineup, self._flows)

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_READY_SECONDS)

    def _forget_unused(self) -> None:
        """Flows that no lineup names any more, once no request can be under way in them."""
        used = {arm.app for arm in self._variants.lineup.arms}
        now = time.monotonic()
        for app in list(self._flows):
            if app in used:
                self._unused_since.pop(app, None)
            elif now - self._unused_since.setdefault(app, now) > self._variants.cfg.linger_seconds:
                flow = self._flows.pop(app)
                if flow.following is not None:
                    flow.following.close()

    def _condemn(self, _revision: int, lineup: Lineup, reason: str) -> None:
        assert lineup.candidate is not None
        self._condemned = (lineup.candidate.app, reason)

    def _write_down(self) -> None:
        """That a candidate must go, for all; tried until the database takes it.

        One that was promoted in this very moment goes, too: whoever promoted it did not know.
        """
        if self._condemned is None:
            return
        app, reason = self._condemned
        newest = self._store.current()
        if newest is not None:
            after, lineup = None, newest.lineup
            if lineup.candidate is not None and lineup.candidate.app == app:
                after = lineup.without_candidate(reason)
            elif lineup.champion.app == app and lineup.previous is not None:
                after = lineup.promoted(lineup.previous, reason)
            if after is not None:
                try:
                    self._store.append(after, newest.revision)
                except LineupConflictError:
                    return  # looked at again in a moment
        self._condemned = None

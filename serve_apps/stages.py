"""The stages of a list: each with its share of the time, its breaker and its span."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from serve_apps.breaker import Breaker
from serve_apps.request_ids import current_request_id
from serve_apps.served import Served
from serve_apps.tracing import mark_failed, stage_span

logger = logging.getLogger(__name__)

T = TypeVar("T")

UNAVAILABLE = {"profile": "profile_unavailable", "match": "matcher_unavailable", "rerank": "reranker_unavailable"}
"""What `degraded` says when a stage fails."""
_BUDGETS = {"profile": 0.5, "match": 0.7, "rerank": 0.9}
"""Share of the time that is left which a stage may take: the rest is for what comes after it, or instead of it."""
_FAIR_SHARE = 0.25


class Stages:
    """Those of one bundle's lists."""

    def __init__(self, model_version: str, deadline_ms: int) -> None:
        self._model_version, self._deadline_ms = model_version, deadline_ms
        self.breakers = {stage: Breaker() for stage in UNAVAILABLE}

    async def run(self, served: Served, name: str, call: Callable[[], Awaitable[T]]) -> T | None:
        """Run one stage in the time that is left; None, and a reason in `degraded`, if it fails."""
        breaker = self.breakers[name]
        if not breaker.lets_through():
            served.lack(UNAVAILABLE[name])
            return None
        started = time.perf_counter()
        seconds = served.seconds_left() * _BUDGETS[name]
        with stage_span(name, self._model_version) as span:
            try:
                if seconds <= 0:
                    raise TimeoutError
                found = await asyncio.wait_for(call(), seconds)
                breaker.note(failed=False)
                return found
            except TimeoutError:
                # A client that is in a hurry says nothing against the part.
                if seconds >= self._deadline_ms / 1000 * _FAIR_SHARE:
                    breaker.note(failed=True)
                served.lack(UNAVAILABLE[name], "deadline")
                mark_failed(span, "deadline")
            except Exception as error:  # whatever it is, the client still gets a list
                breaker.note(failed=True)
                logger.warning("request %s: stage %s failed", current_request_id(), name, exc_info=True)
                served.lack(UNAVAILABLE[name])
                mark_failed(span, type(error).__name__)
            finally:
                served.stages_ms[name] = (time.perf_counter() - started) * 1000
        return None

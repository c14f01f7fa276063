"""A gateway on a real HTTP server, over plain Python models that can be told to fail."""

import asyncio
import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI

from avrec_ray.catalogue import Catalogue
from avrec_ray.config import LimitsConfig
from avrec_ray.feedback.config import FeedbackConfig
from avrec_ray.feedback.store import EventStore
from avrec_ray.new_items.config import NewItemsConfig
from avrec_ray.new_items.follow import Follower
from avrec_ray.new_items.store import NewItemStore
from avrec_ray.types import Because, Candidate, Query, RankedItem
from serve_apps.access_log import AccessLog
from serve_apps.answers import MatchAnswer, Models, RankAnswer, SearchAnswer
from serve_apps.api import create_api
from serve_apps.auth import Admit, Gate
from serve_apps.flow import RequestFlow
from serve_apps.following import Following, OnLoop
from serve_apps.item_inbox import ItemInbox
from serve_apps.keys import KeyRing
from serve_apps.variants import Variants

VERSION = "v-test"
NUM_ITEMS = 40
CATEGORIES = ("cooking", "music", "sport", None)


def small_catalogue() -> Catalogue:
    """Forty items, i0 the most popular, categories in turn; the last has an id with a slash."""
    rows = range(NUM_ITEMS)
    popularity = np.arange(NUM_ITEMS, 0, -1).astype(np.float32)
    return Catalogue(
        item_ids=[f"i{row}" for row in rows[:-1]] + ["a/b"],
        titles=[f"Title {row}" for row in rows],
        categories=[CATEGORIES[row % 4] for row in rows],
        tags=[[f"t{row % 3}"] for row in rows],
        creator_ids=[f"c{row % 5}" for row in rows],
        languages=["en" if row % 2 else "de" for row in rows],
        durations=np.array([np.nan if row % 4 == 3 else 10.0 * row + 10.0 for row in rows], np.float32),
        popularity=popularity / popularity.sum(),
        recent_popularity=popularity / popularity.sum(),
        choices_per_day=popularity,
        warm=np.arange(NUM_ITEMS) % 10 != 7,
    )


@dataclass
class CategoryModels:
    """Matches items of liked categories, ranks by likes of the category; fails or dawdles when told to."""

    catalogue: Catalogue
    failing: set[str] = field(default_factory=set)
    slow_seconds: dict[str, float] = field(default_factory=dict)
    matcher_version: str = VERSION
    reranker_version: str = VERSION
    queries: list[Query] = field(default_factory=list)

    def as_models(self) -> Models:
        return Models(self.match, self.score, self.similar, self.rerank, self.versions, self.search)

    async def match(self, query: Query) -> MatchAnswer:
        await self._pass_through("match")
        self.queries.append(query)
        met = {event.item_id for event in query.history} | set(query.filters.exclude_items)
        rows = [row for row, item_id in enumerate(self.catalogue.item_ids) if item_id not in met]
        allowed = [r for r in rows if (self.catalogue.categories[r] or "") in query.filters.categories or ()]
        return self._answer(query, allowed if query.filters.categories else rows)

    async def score(self, query: Query, item_ids: Sequence[str]) -> MatchAnswer:
        await self._pass_through("match")
        return self._answer(query, [self.catalogue.index_of[item_id] for item_id in item_ids])

    async def similar(self, item_id: str, k: int) -> MatchAnswer:
        await self._pass_through("match")
        row = self.catalogue.index_of[item_id]
        near = sorted((r for r in range(NUM_ITEMS) if r != row), key=lambda r: abs(r - row))[:k]
        return MatchAnswer(self.matcher_version, [Candidate(self.catalogue.item_ids[r], 1.0, "similar") for r in near])

    async def rerank(self, query: Query, candidates: Sequence[Candidate]) -> RankAnswer:
        await self._pass_through("rerank")
        best = sorted(candidates, key=lambda c: -c.score)[: query.k]
        because = (Because(query.history[-1].item_id, 0.5, "video", 0.0, 4.0),) if query.history else ()
        why = because if query.explain else ()
        items = [RankedItem(c.item_id, n, c.score, why, ("t0",)) for n, c in enumerate(best, start=1)]
        if "nan" in self.failing:
            items = [RankedItem(i.item_id, i.rank, float("nan")) for i in items]
        return RankAnswer(self.reranker_version, items)

    async def versions(self) -> tuple[str, str]:
        await self._pass_through("versions")
        return self.matcher_version, self.reranker_version

    async def search(self, text: str, k: int) -> SearchAnswer:
        """Items whose number is in the text; nothing where told that text cannot be encoded."""
        await self._pass_through("match")
        if "encode" in self.failing:
            return SearchAnswer(self.matcher_version, None)
        rows = [row for row in range(NUM_ITEMS) if str(row) in text.split()][:k]
        return SearchAnswer(self.matcher_version, [Candidate(self.catalogue.item_ids[r], 0.9, "search") for r in rows])

    async def _pass_through(self, stage: str) -> None:
        await asyncio.sleep(self.slow_seconds.get(stage, 0.0))
        if stage in self.failing:
            raise ConnectionError(f"the {stage} actor died")

    def _answer(self, query: Query, rows: Sequence[int]) -> MatchAnswer:
        index_of, categories = self.catalogue.index_of, self.catalogue.categories
        liked = Counter(categories[index_of[e.item_id]] for e in query.history if e.item_id in index_of)
        scored = [Candidate(self.catalogue.item_ids[r], liked[categories[r]] - r / 1000, "test") for r in rows]
        return MatchAnswer(self.matcher_version, sorted(scored, key=lambda c: -c.score))


@pytest.fixture
def catalogue() -> Catalogue:
    return small_catalogue()


@pytest.fixture
def models(catalogue: Catalogue) -> CategoryModels:
    return CategoryModels(catalogue)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EventStore]:
    opened = EventStore(f"sqlite:///{tmp_path / 'events.db'}", busy_timeout_seconds=0.2)
    yield opened
    opened.close()


@pytest.fixture
def flow(catalogue: Catalogue, models: CategoryModels, store: EventStore) -> RequestFlow:
    return RequestFlow(models.as_models(), store, catalogue, VERSION, "v-index", history_length=50, deadline_ms=3000)


@pytest.fixture
def make_client(flow: RequestFlow) -> Iterator[Callable[..., httpx.Client]]:
    """Start servers over `flow`, with the keywords of `client_of`."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(client_of(flow, **options))


@pytest.fixture
def client(make_client: Callable[..., httpx.Client], flow: RequestFlow, tmp_path: Path) -> httpx.Client:
    return make_client(new_items=queue_of(flow, tmp_path))


def queue_of(flow: RequestFlow, folder: Path) -> ItemInbox:
    """New items are queued; nobody works on them, and none joins the catalogue."""
    store = NewItemStore(str(flow.store._engine.url.render_as_string(hide_password=False)))
    metadata = SimpleNamespace(towers_version="v-towers", new_items_watermark=0)
    on_loop = OnLoop(lambda _changes: None)
    follower = Follower(store, metadata, frozenset(flow.catalogue.item_ids), on_loop)
    flow.following = Following(follower, on_loop)
    return ItemInbox(store, NewItemsConfig(), folder / "uploads", Variants(flow))


@contextlib.contextmanager
def client_of(
    flow: RequestFlow | Variants,
    keys: KeyRing | None = None,
    max_body_bytes: int = 100_000,
    max_events: int = 500,
    admit: Admit | None = None,
    limits: LimitsConfig | None = None,
    event_names: Mapping[str, str] | None = None,
    new_items: ItemInbox | None = None,
    access_log: AccessLog | None = None,
) -> Iterator[httpx.Client]:
    feedback = FeedbackConfig(max_events_per_request=max_events)
    gate = Gate(keys or KeyRing(), admit)
    more = {"new_items": new_items, "access_log": access_log}
    with (
        served(create_api(flow, feedback, gate, max_body_bytes, limits, event_names, **more)) as url,
        httpx.Client(base_url=url, timeout=20) as client,
    ):
        yield client


@contextlib.contextmanager
def served(api: FastAPI) -> Iterator[str]:
    """Run `api` on uvicorn in a thread; gives its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(api, log_level="critical", ws="none"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def feedback_event(event_id: str, item_id: str = "i1", event: str = "like", user_id: str = "u1") -> dict[str, str]:
    return {"event_id": event_id, "user_id": user_id, "item_id": item_id, "event": event}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

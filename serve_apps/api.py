"""The routes. Every request and answer is a model of schemas.py; every error a problem document."""

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Response
from fastapi import Query as QueryParameter
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from pydantic import AfterValidator

from avrec_ray import __version__
from avrec_ray.config import LimitsConfig
from avrec_ray.feedback.config import FeedbackConfig
from avrec_ray.types import Query
from serve_apps import problems
from serve_apps.access_log import AccessLog
from serve_apps.auth import Gate
from serve_apps.docs_page import docs_html
from serve_apps.edge import Edge
from serve_apps.event_schemas import TEXT_PATTERN
from serve_apps.flow import RequestFlow
from serve_apps.gorse import gorse_routes
from serve_apps.health import health_routes
from serve_apps.impression_log import ImpressionLog
from serve_apps.inbox import Inbox
from serve_apps.item_inbox import ItemInbox, is_upload
from serve_apps.item_routes import add_new_item_routes
from serve_apps.keys import KeyRing
from serve_apps.lists import impressions_of, item_body, list_response, rank_response, row_of, search_response
from serve_apps.metarank import metarank_routes
from serve_apps.openapi import describe
from serve_apps.schemas import (
    MAX_K,
    NOT_FOUND,
    PROBLEM,
    CatalogueItem,
    FeedbackRequest,
    FeedbackResponse,
    ListResponse,
    PathId,
    RankRequest,
    RankResponse,
    RecommendRequest,
    SearchResponse,
    check_text,
)
from serve_apps.users import add_profile_routes, add_user_routes
from serve_apps.variants import Variants

_ERRORS: dict[int | str, dict[str, Any]] = dict.fromkeys((401, 403, 413, 422, 429, 503), PROBLEM)
K = Annotated[int, QueryParameter(ge=1, le=MAX_K)]
SearchKind = Literal["embedding", "lexical"]
SearchText = Annotated[
    str,
    QueryParameter(min_length=1, max_length=256, json_schema_extra={"pattern": TEXT_PATTERN}),
    AfterValidator(check_text),
]


def create_api(
    flow: RequestFlow | Variants,
    feedback: FeedbackConfig,
    gate: Gate | None = None,
    max_body_bytes: int = 1_048_576,
    limits: LimitsConfig | None = None,
    event_names: Mapping[str, str] | None = None,
    echoes_request_id: bool = True,
    new_items: ItemInbox | None = None,
    access_log: AccessLog | None = None,
) -> FastAPI:
    """The application. With keys at the gate every route but health and the API description needs one.

    A new route belongs to `reads`, `writes` or `admin`, and has an example in openapi.py; tests refuse others.
    """

    variants = Variants(flow) if isinstance(flow, RequestFlow) else flow
    store, service_metrics = variants.store, variants.metrics
    inbox = Inbox(store, feedback, service_metrics)
    log = ImpressionLog(store, feedback, service_metrics)
    gate = gate or Gate(KeyRing())

    @asynccontextmanager
    async def lifespan(_api: FastAPI) -> AsyncIterator[None]:
        variants.start()
        yield
        if new_items is not None:
            new_items.close()
        inbox.close()
        log.close()
        variants.close()

    api = FastAPI(
        title="avrec_ray",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # the address of a redirect would be made of a Host header that anybody can send
        generate_unique_id_function=lambda route: route.name,
    )
    problems.install(api)
    reads = APIRouter(dependencies=[gate.depends("read")], responses=_ERRORS)
    writes = APIRouter(dependencies=[gate.depends("write")], responses=_ERRORS)
    admin = APIRouter(dependencies=[gate.depends("admin")], responses=_ERRORS)
    _add_list_routes(reads, variants, log)
    if new_items is not None:  # before the routes of single items, which take any path below /v1/items
        add_new_item_routes(reads, writes, new_items)
    _add_item_routes(reads, variants)
    _add_metrics_route(reads, variants, new_items)
    _add_feedback_route(writes, inbox)
    add_profile_routes(reads, writes, variants)
    add_user_routes(admin, variants)
    compatible = gorse_routes(gate, variants, inbox, event_names or {}, _ERRORS)
    compatible += metarank_routes(gate, variants, inbox, event_names or {}, _ERRORS)
    routers = [health_routes(variants), reads, writes, admin, *compatible]
    for router in routers:
        api.include_router(router)
    api.state.routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    if not gate.keys.closed:  # whoever may reach a service with keys needs no page that explains it
        api.get("/docs", include_in_schema=False)(lambda: HTMLResponse(docs_html(api.openapi())))
    describe(api, api.state.routes)
    api.add_middleware(
        Edge,
        max_body_bytes=max_body_bytes,
        metrics=service_metrics,
        limits=limits,
        is_stream=is_upload,
        echoes_request_id=echoes_request_id,
        access_log=access_log,
    )
    return api


def _add_list_routes(router: APIRouter, variants: Variants, log: ImpressionLog) -> None:
    @router.post("/v1/recommend")
    async def recommend(body: RecommendRequest) -> ListResponse:
        """A list for a user, a session, or both."""
        user_id = None if body.user_id is None else variants.stored(body.user_id)
        query = Query(
            user_id=user_id,
            k=body.k,
            filters=body.filters.to_filters(),
            diversity=body.diversity,
            explain=body.explain,
        )
        session = [event.to_event(user_id or "") for event in body.session]
        served = await variants.recommend(query, session, body.deadline_ms)
        response = list_response(served, body.explain)
        if user_id is not None:  # a list that was shown to nobody known teaches nothing
            log.add(impressions_of(response, served, user_id, time.time()))
        return response

    @router.post("/v1/rank")
    async def rank(body: RankRequest) -> RankResponse:
        """The given items in the order that suits the user."""
        item_ids = list(dict.fromkeys(body.items))
        user_id = variants.stored(body.user_id)
        served, unknown = await variants.rank(user_id, item_ids, body.explain, body.deadline_ms)
        response = rank_response(served, body.explain, unknown)
        log.add(impressions_of(response, served, user_id, time.time()))
        return response

    @router.get("/v1/search")
    async def search(q: SearchText, k: K = 10, kind: SearchKind = "embedding") -> SearchResponse:
        """Items for a text.

        By default those whose embedding is near to the text's, where the bundle can encode text; `kind=lexical` finds
        words of title, tags and category, which is better for a title that is known. The answer says which it was.
        """
        served, found_by = await variants.champion.search(q, k, kind)
        return search_response(served, found_by)


def _add_item_routes(router: APIRouter, variants: Variants) -> None:
    # `:path`, because an id may hold a slash; the longer route comes first.
    @router.get("/v1/items/{item_id:path}/similar", responses=NOT_FOUND)
    async def similar(item_id: PathId, k: K = 10) -> ListResponse:
        """Items near an item."""
        flow = variants.champion
        return list_response(await flow.similar(await _known_row(flow, item_id), k), explain=False)

    @router.get("/v1/items/{item_id:path}", responses=NOT_FOUND)
    async def item(item_id: PathId) -> CatalogueItem:
        """What the bundle knows of an item."""
        flow = variants.champion
        return item_body(flow.catalogue, await _known_row(flow, item_id), flow.model_version)


def _add_metrics_route(router: APIRouter, variants: Variants, new_items: ItemInbox | None) -> None:
    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus metrics of this gateway replica."""
        if new_items is not None:
            variants.measure()
            await new_items.measure(variants.metrics)
        return Response(variants.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _known_row(flow: RequestFlow, item_id: str) -> int:
    """Its row, also of an item that has just joined. Raises ProblemError 404."""
    await flow.know([item_id])
    return row_of(flow, item_id)


def _add_feedback_route(router: APIRouter, inbox: Inbox) -> None:
    @router.post("/v1/feedback")
    async def feedback(body: FeedbackRequest) -> FeedbackResponse:
        """Keep events; answered when they are on disk."""
        return await inbox.keep(body.events)

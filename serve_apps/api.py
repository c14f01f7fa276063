"""The routes. Every request and answer is a model of schemas.py; every error a problem document."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Response
from fastapi import Query as QueryParameter
from fastapi.responses import HTMLResponse

from avrec_ray import __version__
from avrec_ray.feedback.config import FeedbackConfig
from avrec_ray.types import Query
from serve_apps import problems
from serve_apps.auth import authorise
from serve_apps.docs_page import docs_html
from serve_apps.edge import Edge
from serve_apps.flow import RequestFlow
from serve_apps.health import health_routes
from serve_apps.impression_log import ImpressionLog
from serve_apps.inbox import Inbox
from serve_apps.item_inbox import is_upload
from serve_apps.item_routes import new_item_routes
from serve_apps.lists import impressions_of, item_body, list_response, rank_response
from serve_apps.new_items import NewItems
from serve_apps.problems import ProblemError
from serve_apps.schemas import (
    MAX_K,
    CatalogueItem,
    FeedbackRequest,
    FeedbackResponse,
    ListResponse,
    Problem,
    RankRequest,
    RankResponse,
    RecommendRequest,
)
from serve_apps.users import add_user_routes

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "content": {"application/problem+json": {}}} for status in (401, 403, 413, 422, 503)
}


def create_api(
    flow: RequestFlow,
    feedback: FeedbackConfig,
    digests: Sequence[str],
    max_body_bytes: int = 1_048_576,
    new_items: NewItems | None = None,
) -> FastAPI:
    """The application. With `digests` every route but health and the API description needs a key."""

    inbox = Inbox(flow.store, feedback, flow.metrics)
    log = ImpressionLog(flow.store, feedback, flow.metrics)

    @asynccontextmanager
    async def lifespan(_api: FastAPI) -> AsyncIterator[None]:
        if new_items is not None:
            new_items.start()
        yield
        if new_items is not None:
            new_items.close()
        inbox.close()
        log.close()
        flow.close()

    api = FastAPI(
        title="avrec_ray",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    problems.install(api)
    api.include_router(health_routes(flow))
    guarded = APIRouter(dependencies=[Depends(authorise(digests))], responses=_ERRORS)
    _add_list_routes(guarded, flow, log)
    if new_items is not None:
        guarded.include_router(new_item_routes(new_items.inbox, _ERRORS))
    _add_item_routes(guarded, flow)
    _add_feedback_route(guarded, inbox)
    add_user_routes(guarded, flow.users)
    api.include_router(guarded)
    if not digests:  # whoever may reach a service with keys needs no page that explains it
        api.get("/docs", include_in_schema=False)(lambda: HTMLResponse(docs_html(api.openapi())))
    api.add_middleware(Edge, max_body_bytes=max_body_bytes, metrics=flow.metrics, is_stream=is_upload)
    return api


def _add_list_routes(router: APIRouter, flow: RequestFlow, log: ImpressionLog) -> None:
    @router.post("/v1/recommend")
    async def recommend(body: RecommendRequest) -> ListResponse:
        """A list for a user, a session, or both."""
        user_id = None if body.user_id is None else flow.users.stored(body.user_id)
        query = Query(
            user_id=user_id,
            k=body.k,
            filters=body.filters.to_filters(),
            diversity=body.diversity,
            explain=body.explain,
        )
        session = [event.to_event(user_id or "") for event in body.session]
        served = await flow.recommend(query, session, body.deadline_ms)
        response = list_response(flow.catalogue, served, body.explain)
        if user_id is not None:  # a list that was shown to nobody known teaches nothing
            log.add(impressions_of(response, user_id, time.time()))
        return response

    @router.post("/v1/rank")
    async def rank(body: RankRequest) -> RankResponse:
        """The given items in the order that suits the user."""
        item_ids = list(dict.fromkeys(body.items))
        await flow.know(item_ids)
        known = [item_id for item_id in item_ids if flow.catalogue.idx(item_id) is not None]
        user_id = flow.users.stored(body.user_id)
        served = await flow.rank(user_id, known, body.explain, body.deadline_ms)
        unknown = [item_id for item_id in item_ids if flow.catalogue.idx(item_id) is None]
        response = rank_response(flow.catalogue, served, body.explain, unknown)
        log.add(impressions_of(response, user_id, time.time()))
        return response


def _add_item_routes(router: APIRouter, flow: RequestFlow) -> None:
    # `:path`, because an id may hold a slash; the longer route comes first.
    @router.get("/v1/items/{item_id:path}/similar", responses={404: _ERRORS[422]})
    async def similar(item_id: str, k: Annotated[int, QueryParameter(ge=1, le=MAX_K)] = 10) -> ListResponse:
        """Items near an item."""
        served = await flow.similar(await _row_of(flow, item_id), k)
        return list_response(flow.catalogue, served, explain=False)

    @router.get("/v1/items/{item_id:path}", responses={404: _ERRORS[422]})
    async def item(item_id: str) -> CatalogueItem:
        """What the bundle knows of an item."""
        return item_body(flow.catalogue, await _row_of(flow, item_id), flow.model_version)

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus metrics of this gateway replica."""
        return Response(flow.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _row_of(flow: RequestFlow, item_id: str) -> int:
    await flow.know([item_id])
    row = flow.catalogue.idx(item_id)
    if row is None:
        raise ProblemError(404, f"item {item_id[:80]!a} is not in the catalogue of {flow.model_version}")
    return row


def _add_feedback_route(router: APIRouter, inbox: Inbox) -> None:
    @router.post("/v1/feedback")
    async def feedback(body: FeedbackRequest) -> FeedbackResponse:
        """Keep events; answered when they are on disk."""
        return await inbox.keep(body.events)

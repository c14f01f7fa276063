"""Rankings of the core as response bodies, titles and categories added from the catalogue."""

import dataclasses
import logging
import math
import uuid
from typing import Any

from avrec_ray.catalogue import Catalogue
from avrec_ray.feedback.impressions import Impression
from avrec_ray.types import RankedItem
from serve_apps.flow import RequestFlow
from serve_apps.problems import ProblemError
from serve_apps.request_ids import current_request_id
from serve_apps.schemas import (
    BecauseBody,
    CatalogueItem,
    CounterfactualBody,
    Explanation,
    ItemBody,
    ListResponse,
    RankResponse,
    SearchResponse,
    StagesMs,
)
from serve_apps.served import Served

logger = logging.getLogger(__name__)


def list_response(served: Served, explain: bool) -> ListResponse:
    """The answer of /v1/recommend and of similar items."""
    return ListResponse(**_members(served, explain))


def impressions_of(response: ListResponse, served: Served, user_id: str, at_seconds: float) -> list[Impression]:
    """What the user is shown by this answer; positions are ranks, from 1. Of a mixed list, who picked each item."""
    made_by = response.variant, response.model_version
    return [
        Impression(
            request_id=response.request_id,
            user_id=user_id,
            item_id=item.item_id,
            position=item.rank,
            propensity=item.propensity,
            model_version=served.picked_by.get(item.item_id, made_by)[1],
            variant=served.picked_by.get(item.item_id, made_by)[0],
            source=item.source,
            at_seconds=at_seconds,
        )
        for item in response.items
    ]


def rank_response(served: Served, explain: bool, unknown: list[str]) -> RankResponse:
    """The answer of /v1/rank."""
    return RankResponse(**_members(served, explain), unknown_items=unknown)


def search_response(served: Served, kind: str) -> SearchResponse:
    """The answer of /v1/search."""
    return SearchResponse(**_members(served, False), kind="embedding" if kind == "embedding" else "lexical")


def row_of(flow: RequestFlow, item_id: str) -> int:
    """Row of an item in the catalogue. Raises ProblemError 404."""
    row = flow.catalogue.idx(item_id)
    if row is None:
        raise ProblemError(404, f"item {item_id[:80]!a} is not in the catalogue of {flow.model_version}")
    return row


def item_body(catalogue: Catalogue, row: int, model_version: str) -> CatalogueItem:
    """The answer of /v1/items/{id}."""
    duration = float(catalogue.durations[row])
    return CatalogueItem(
        item_id=catalogue.item_ids[row],
        title=catalogue.titles[row],
        category=catalogue.categories[row],
        tags=catalogue.tags[row],
        creator_id=catalogue.creator_ids[row],
        language=catalogue.languages[row],
        duration_seconds=duration if math.isfinite(duration) else None,
        popularity=float(catalogue.popularity[row]),
        model_version=model_version,
    )


def _members(served: Served, explain: bool) -> dict[str, Any]:
    list_id = uuid.uuid4().hex  # of the list, for feedback on it: a client that asks again gets another list
    logger.info("request %s: list %s, degraded %s", current_request_id(), list_id, served.degraded)
    return {
        "request_id": list_id,
        "model_version": served.model_version,
        "variant": served.variant,
        "degraded": served.degraded,
        "items": [_item(served.catalogue, item, explain) for item in served.items],
        "stages_ms": StagesMs(**{name: round(ms, 3) for name, ms in served.stages_ms.items()}),
    }


def _item(catalogue: Catalogue, item: RankedItem, explain: bool) -> ItemBody:
    row = catalogue.index_of[item.item_id]
    return ItemBody(
        item_id=item.item_id,
        rank=item.rank,
        score=item.score,
        title=catalogue.titles[row],
        category=catalogue.categories[row],
        propensity=item.propensity,
        probabilities=dict(item.probabilities),
        source=item.source,
        explanation=_explanation(item) if explain else None,
    )


def _explanation(item: RankedItem) -> Explanation:
    without = item.counterfactual
    return Explanation(
        because=[BecauseBody(**dataclasses.asdict(because)) for because in item.because],
        tags=list(item.tags),
        sentence=item.sentence or None,
        counterfactual=CounterfactualBody(**dataclasses.asdict(without)) if without else None,
    )

"""Routes with the shapes of Metarank (metarank/metarank), so that its clients move over by changing the URL.

There is one model here: whatever a client calls it in the path, the served bundle ranks.
"""

import json
import math
import time
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Body
from fastapi import Query as QueryParameter
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from avrec_ray.errors import FeedbackError
from avrec_ray.types import RankedItem
from serve_apps.auth import Gate
from serve_apps.event_schemas import MAX_EVENTS, metarank_event
from serve_apps.foreign_events import UnsupportedEventError, keep_foreign, known_names, made_id, our_name, read_id
from serve_apps.inbox import Inbox
from serve_apps.problems import ProblemError, shown
from serve_apps.schemas import Id, PathId, RejectionBody, whole
from serve_apps.variants import Variants

_UNSUPPORTED = {
    "item": "item events are not read: the catalogue comes with the bundle, new items through /v1/items",
    "user": "user events are not read: attributes of users come with the bundle",
}


def decoded(body: Any) -> Any:
    """JSON of a body whose type is not application/json, as Metarank's own examples with curl send it."""
    if not isinstance(body, bytes):
        return body
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise ProblemError(422, "body: got text that is not JSON, expected a JSON object") from None


class MetarankItem(BaseModel):
    """An item to rank; its fields are features of Metarank's own models, and are not read."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    id: Id
    fields: list[Any] = []
    label: float | None = None


class MetarankRequest(BaseModel):
    """Items in the order that the client has them, and who asks."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    id: Id
    timestamp: Annotated[int, Field(ge=0), BeforeValidator(whole)] | str
    user: Id | None = None
    session: Id | None = None
    fields: list[Any] = []
    items: list[MetarankItem] = Field(min_length=1, max_length=MAX_EVENTS)


class FeatureBody(BaseModel):
    """What an item's score rests on: a watched item by its weight."""

    name: str
    value: float


class MetarankScore(BaseModel):
    """A ranked item. Items that the catalogue does not hold come last, with the lowest score of the list."""

    item: str
    score: float
    features: list[FeatureBody] | None = Field(default=None, exclude_if=lambda value: value is None)


class MetarankRanking(BaseModel):
    """The items in order."""

    took: int
    items: list[MetarankScore]


class MetarankKept(BaseModel):
    """What became of the events; the last two members tell what Metarank does not."""

    accepted: int
    status: str
    tookMillis: int
    updated: int
    unsupported: dict[str, int] = {}
    rejected: list[RejectionBody] = []


def metarank_routes(
    gate: Gate, variants: Variants, inbox: Inbox, own_names: Mapping[str, str], errors: dict[int | str, Any]
) -> list[APIRouter]:
    """Routers that read and that write."""
    reads = APIRouter(tags=["metarank"], dependencies=[gate.depends("read")], responses=errors)
    writes = APIRouter(tags=["metarank"], dependencies=[gate.depends("write")], responses=errors)

    event = metarank_event(known_names(own_names))
    one_or_more = {"anyOf": [event, {"type": "array", "items": event, "maxItems": MAX_EVENTS}]}

    @reads.post("/rank/{model}")
    async def metarank_rank(
        model: PathId,
        body: Annotated[MetarankRequest, BeforeValidator(decoded), Body()],
        explain: Annotated[bool, QueryParameter()] = False,
    ) -> MetarankRanking:
        """The given items in the order that suits the user; an anonymous one is known by the session."""
        started = time.perf_counter()
        asked = list(dict.fromkeys(item.id for item in body.items))
        asker = body.user or body.session
        served, unknown = await variants.rank(None if asker is None else variants.stored(asker), asked, explain, None)
        return MetarankRanking(took=_millis(started), items=_scores(served.items, unknown, explain))

    @writes.post("/feedback")
    async def metarank_feedback(
        body: Annotated[
            Any,
            WithJsonSchema(one_or_more),
            BeforeValidator(decoded),
            Body(),
        ],
    ) -> MetarankKept:
        """Store ranking and interaction events. Those of other kinds are counted in `unsupported`."""
        started = time.perf_counter()
        submitted = body if isinstance(body, list) else [body]
        if len(submitted) > MAX_EVENTS:
            raise ProblemError(422, f"got {len(submitted)} events, expected at most {MAX_EVENTS}")
        kept = await keep_foreign(inbox, submitted, lambda values: read_events(values, own_names))
        if submitted and not kept.well_formed:
            first = kept.rejected[0]
            rejected = [row.model_dump() for row in kept.rejected]
            raise ProblemError(422, f"{first.index}: {first.reason}", {"rejected": rejected})
        return MetarankKept(
            accepted=kept.accepted,
            status="errors" if kept.rejected else "ok",
            tookMillis=_millis(started),
            updated=kept.stored,
            unsupported=kept.unsupported,
            rejected=kept.rejected,
        )

    return [reads, writes]


def read_events(values: Any, own_names: Mapping[str, str]) -> list[dict[str, Any]]:
    """One event of Metarank as events of ours: an interaction as one, a ranking as an impression of each item.

    Raises:
        UnsupportedEventError: it is about an item or a user.
        FeedbackError: it is malformed, or names neither a user nor a session.
    """
    if not isinstance(values, Mapping):
        raise FeedbackError(f"got {shown(values)}, expected an object with event, id and timestamp")
    kind, event_id = values.get("event"), read_id("id", values.get("id"))
    at = _time(values.get("timestamp"))
    if not isinstance(values.get("fields", []), list):
        raise FeedbackError(f"fields: got {shown(values['fields'])}, expected a list")
    if kind in ("item", "user"):
        read_id(kind, values.get(kind))
        raise UnsupportedEventError(kind, _UNSUPPORTED[kind])
    if kind not in ("ranking", "interaction"):
        raise FeedbackError(f"event: got {shown(kind)}, expected item, user, ranking or interaction")
    actors = [read_id(name, values[name]) for name in ("user", "session") if values.get(name) is not None]
    if not actors:
        raise FeedbackError("neither user nor session is given; an event needs somebody who caused it")
    user_id = actors[0]
    if kind == "ranking":
        shared = {"user_id": user_id, "event": "impression", "at": at, "request_id": event_id}
        return [
            {"event_id": made_id("metarank", event_id, place), "item_id": item_id, "position": place, **shared}
            for place, item_id in enumerate(_item_ids(values.get("items")), start=1)
        ]
    event = {"event_id": event_id, "user_id": user_id, "item_id": values.get("item"), "at": at}
    event |= {"event": our_name(values.get("type"), own_names), "request_id": values.get("ranking")}
    return [{name: value for name, value in event.items() if value is not None}]


def _item_ids(items: Any) -> list[Any]:
    if not isinstance(items, list) or not items or not all(isinstance(item, Mapping) for item in items):
        raise FeedbackError(f"items: got {shown(items)}, expected a list of objects with id")
    return [item.get("id") for item in items]


def _time(value: Any) -> float | str:
    """Metarank's milliseconds, as a number or as digits, to seconds; an ISO 8601 text stays as it is."""
    if isinstance(value, str) and not value.isdecimal():
        return value
    try:
        milliseconds = float(value)
    except (TypeError, ValueError, OverflowError):
        milliseconds = math.nan
    if isinstance(value, bool) or not milliseconds.is_integer():
        raise FeedbackError(f"timestamp: got {shown(value)}, expected milliseconds since 1970")
    return milliseconds / 1000


def _scores(items: list[RankedItem], unknown: list[str], explain: bool) -> list[MetarankScore]:
    lowest = min((item.score for item in items), default=0.0)
    found = [MetarankScore(item=i.item_id, score=i.score, features=_features(i) if explain else None) for i in items]
    none: list[FeatureBody] | None = [] if explain else None
    return found + [MetarankScore(item=item_id, score=lowest, features=none) for item_id in unknown]


def _features(item: RankedItem) -> list[FeatureBody]:
    return [FeatureBody(name=f"because/{because.item_id}", value=because.weight) for because in item.because]


def _millis(started: float) -> int:
    return round((time.perf_counter() - started) * 1000)

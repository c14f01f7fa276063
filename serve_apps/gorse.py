"""Routes with the shapes of Gorse (gorse-io/gorse, /api), so that its clients move over by changing the URL.

What this service cannot do is refused and said, never passed over: `write-back-delay`, and categories in the path.
"""

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Header, Request
from fastapi import Query as QueryParameter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, WithJsonSchema

from avrec_ray.errors import FeedbackError
from avrec_ray.feedback.events import FIELDS, UNDATED, read_time_seconds
from avrec_ray.types import Event, Filters, Query
from serve_apps.auth import Gate
from serve_apps.event_schemas import MAX_EVENTS, VALUE, gorse_event
from serve_apps.foreign_events import keep_foreign, known_names, made_id, our_name, read_id
from serve_apps.inbox import Inbox
from serve_apps.lists import row_of
from serve_apps.problems import ProblemError, shown
from serve_apps.schemas import MAX_K, NOT_FOUND, PathId, RejectionBody
from serve_apps.served import Served
from serve_apps.variants import Variants

_NO_TIME = "0001-01-01T00:00:00Z"
"""What Gorse sends for a time that nobody gave."""
_PROBE_SECONDS = 0.5
_MOST = VALUE["maximum"]
_KNOWN = ("FeedbackType", "UserId", "ItemId", "Value", "Timestamp", "Updated", "Labels", "Comment")

Count = Annotated[int, QueryParameter(ge=1, le=MAX_K)]
Offset = Annotated[int, QueryParameter(ge=0, le=MAX_K - 1)]
Categories = Annotated[list[str], QueryParameter(max_length=100, default_factory=list)]
"""Not `| None`: a query cannot say null, and a description that lets it takes one category for a bad value."""


class ScoreBody(BaseModel):
    """A recommended item."""

    Id: str
    Score: float


class RowsBody(BaseModel):
    """How many events are new; what was not kept is told beside, as Gorse does not."""

    RowAffected: int
    Rejected: list[RejectionBody] = []


class GorseItem(BaseModel):
    """An item as Gorse describes one: tags are its labels, the title its comment."""

    ItemId: str
    IsHidden: bool
    Categories: list[str]
    Timestamp: str
    Labels: list[str]
    Comment: str


class GorseHealth(BaseModel):
    """State of the service. There is no cache store here, and so nothing to be wrong with it."""

    Ready: bool
    DataStoreError: str | None
    CacheStoreError: str | None
    DataStoreConnected: bool
    CacheStoreConnected: bool


def _list_of(schema: dict[str, Any]) -> Any:
    """A body that is a list of anything, described as a list of `schema`: each is checked on its own."""
    return Annotated[list[Annotated[Any, WithJsonSchema(schema)]], Body(max_length=MAX_EVENTS)]


def gorse_routes(
    gate: Gate, variants: Variants, inbox: Inbox, own_names: Mapping[str, str], errors: dict[int | str, Any]
) -> list[APIRouter]:
    """Routers that read, that write, and that need no key."""
    reads = APIRouter(prefix="/api", tags=["gorse"], dependencies=[gate.depends("read")], responses=errors)
    writes = APIRouter(prefix="/api", tags=["gorse"], dependencies=[gate.depends("write")], responses=errors)
    public = APIRouter(prefix="/api", tags=["gorse"])
    _add_lists(reads, gate, variants, inbox, own_names)
    _add_feedback(writes, inbox, own_names)
    _add_health(public, variants)
    return [reads, writes, public]


def _add_lists(router: APIRouter, gate: Gate, variants: Variants, inbox: Inbox, own_names: Mapping[str, str]) -> None:
    names = sorted(known_names(own_names))
    write_back = Annotated[str | None, QueryParameter(alias="write-back-type", json_schema_extra={"enum": names})]
    session_events = _list_of(gorse_event(known_names(own_names), for_session=True))

    @router.get("/recommend/{user_id:path}")
    async def gorse_recommend(
        request: Request,
        user_id: PathId,
        category: Categories,
        n: Count = 10,
        offset: Offset = 0,
        write_back_type: write_back = None,
        write_back_delay: Annotated[Literal["", "0", "0s", "0m"], QueryParameter(alias="write-back-delay")] = "",
        x_api_version: Annotated[str, Header()] = "1",
    ) -> list[str] | list[ScoreBody]:
        """Items for a user, of the first 100 of a list: ids, or with `X-API-Version: 2` ids and scores.

        `write-back-type` stores an event of that type for each item, which needs the scope write.
        """
        event = None if write_back_type is None else _named(write_back_type, own_names)
        if event is not None:
            await gate.require("write")(request)
        query = Query(
            user_id=variants.stored(user_id),
            k=min(n + offset, MAX_K),
            filters=Filters(categories=tuple(category)),
        )
        found = _rows(await variants.recommend(query, (), None), offset)
        if event is not None and found:
            await inbox.keep([_written_back(user_id, row.Id, event) for row in found])
        return found if x_api_version == "2" else [row.Id for row in found]

    @router.post("/session/recommend")
    async def gorse_session_recommend(
        body: session_events,  # type: ignore[valid-type]
        category: Categories,
        n: Count = 10,
        offset: Offset = 0,
    ) -> list[ScoreBody]:
        """Items for somebody of whom nothing is known but these events; they are not stored."""
        given: list[Any] = body
        session = [_session_event(place, values, own_names) for place, values in enumerate(given)]
        query = Query(user_id=None, k=min(n + offset, MAX_K), filters=Filters(categories=tuple(category)))
        return _rows(await variants.recommend(query, session, None), offset)

    @router.get("/item/{item_id:path}", responses=NOT_FOUND)
    async def gorse_item(item_id: PathId) -> GorseItem:
        """What the catalogue knows of an item."""
        flow = variants.champion
        items, row = flow.catalogue, row_of(flow, item_id)
        category = items.categories[row]
        return GorseItem(
            ItemId=item_id,
            IsHidden=False,
            Categories=[category] if category else [],
            Timestamp=_NO_TIME,
            Labels=items.tags[row],
            Comment=items.titles[row],
        )


def _add_feedback(router: APIRouter, inbox: Inbox, own_names: Mapping[str, str]) -> None:
    feedback_list = _list_of(gorse_event(known_names(own_names)))

    async def keep(body: list[Any]) -> RowsBody:
        kept = await keep_foreign(inbox, body, lambda values: [read_feedback(values, own_names)])
        if body and not kept.well_formed:
            first = kept.rejected[0]
            raise ProblemError(
                422, f"{first.index}: {first.reason}", {"Rejected": [row.model_dump() for row in kept.rejected]}
            )
        return RowsBody(RowAffected=kept.stored, Rejected=kept.rejected)

    @router.post("/feedback")
    async def gorse_feedback(body: feedback_list) -> RowsBody:  # type: ignore[valid-type]
        """Store events; the same type, user, item and timestamp again counts once."""
        return await keep(body)

    @router.put("/feedback")
    async def gorse_put_feedback(body: feedback_list) -> RowsBody:  # type: ignore[valid-type]
        """As POST. Events are never overwritten here: one that is known with another value is rejected."""
        return await keep(body)


def _add_health(router: APIRouter, variants: Variants) -> None:
    @router.get("/health/live")
    async def gorse_live() -> GorseHealth:
        """200 while the process answers, whatever is missing."""
        return await _health(variants)

    @router.get("/health/ready", responses={503: {"model": GorseHealth}})
    async def gorse_ready() -> Any:
        """200 while lists and feedback are served, 503 without the event store."""
        health = await _health(variants)
        return JSONResponse(health.model_dump(), 200 if health.Ready else 503)


async def _health(variants: Variants) -> GorseHealth:
    try:  # a probe waits for a second as a rule, and a store that hangs is no reason to kill the process
        missing = await asyncio.wait_for(variants.champion.missing(), _PROBE_SECONDS)
    except TimeoutError:
        missing = ["event_store"]
    stored = "event_store" not in missing
    return GorseHealth(
        Ready=stored,
        DataStoreError=None if stored else "the event store does not answer",
        CacheStoreError=None,
        DataStoreConnected=stored,
        CacheStoreConnected=True,
    )


def read_feedback(values: Any, own_names: Mapping[str, str]) -> dict[str, Any]:
    """One feedback of Gorse as an event of ours; Labels and Comment are not kept.

    Raises:
        FeedbackError: it is no object, has fields that Gorse does not know, or a type that nobody mapped.
    """
    if not isinstance(values, Mapping):
        raise FeedbackError(f"got {shown(values)}, expected an object with FeedbackType, UserId and ItemId")
    for name in values:
        if name not in _KNOWN:
            raise FeedbackError(f"unknown field {shown(name)}; expected some of {list(_KNOWN)}")
    kind, user_id, item_id = values.get("FeedbackType"), values.get("UserId"), values.get("ItemId")
    timestamp, value = values.get("Timestamp"), values.get("Value")
    if not isinstance(timestamp, str | None):
        raise FeedbackError(f"Timestamp: got {shown(timestamp)}, expected a time as a text, or nothing")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _MOST):
        raise FeedbackError(f"Value: got {shown(value)}, expected a 32-bit number, or nothing")
    timestamp = None if timestamp in ("", _NO_TIME) else timestamp
    event = {
        "event_id": made_id("gorse", kind, user_id, item_id, timestamp or ""),
        "user_id": user_id,
        "item_id": item_id,
        "event": our_name(kind, own_names),
        "at": timestamp,
        "value": value,
    }
    return {name: event[name] for name in FIELDS if event.get(name) is not None}


def _session_event(place: int, values: Any, own_names: Mapping[str, str]) -> Event:
    try:
        event = read_feedback({**values, "UserId": "session"} if isinstance(values, Mapping) else values, own_names)
        item_id = read_id("ItemId", event.get("item_id"))
        at_seconds = read_time_seconds(event["at"]) if "at" in event else UNDATED
    except FeedbackError as error:
        raise ProblemError(422, f"{place}: {error}") from error
    return Event("", item_id, event["event"], at_seconds)


def _written_back(user_id: str, item_id: str, event: str) -> dict[str, Any]:
    """One for each list it was in would say that it was shown again: here it counts once for a user and item."""
    event_id = made_id("gorse-write-back", event, user_id, item_id)
    return {"event_id": event_id, "user_id": user_id, "item_id": item_id, "event": event}


def _named(name: str, own_names: Mapping[str, str]) -> str:
    try:
        return our_name(name, own_names)
    except FeedbackError as error:
        raise ProblemError(422, f"write-back-type: {error}") from error


def _rows(served: Served, offset: int) -> list[ScoreBody]:
    return [ScoreBody(Id=item.item_id, Score=item.score) for item in served.items[offset:]]

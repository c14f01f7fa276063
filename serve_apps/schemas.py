"""Request and response bodies. Requests are strict: no unknown field, no number in quotes, everything bounded."""

from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from avrec_ray.feedback.events import MAX_ID_CHARS, UNDATED, is_clean_text, read_event_name, read_time_seconds
from avrec_ray.types import EVENTS, Event, Filters
from serve_apps.event_schemas import FEEDBACK_EVENT, MAX_EVENTS, TEXT_PATTERN, TIME

MAX_K = 100


def whole(value: Any) -> Any:
    """JSON has one kind of number: 10.0 is as whole as 10."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WholeNumber = Annotated[int, BeforeValidator(whole)]
DeadlineMs = Annotated[int, Field(ge=1, le=60_000), BeforeValidator(whole)]


def check_text(value: str) -> str:
    """The value, unless no database takes it or no log should show it. Raises ValueError."""
    if not is_clean_text(value):
        raise ValueError("Unicode text without control characters")
    return value


_CLEAN = Field(min_length=1, max_length=MAX_ID_CHARS, json_schema_extra={"pattern": TEXT_PATTERN})
Id = Annotated[str, _CLEAN, AfterValidator(check_text)]
PathId = Annotated[
    str,
    Path(min_length=1, max_length=MAX_ID_CHARS, json_schema_extra={"pattern": TEXT_PATTERN}),
    AfterValidator(check_text),
]
Seconds = Annotated[float, Field(ge=0, le=1e9)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class FiltersBody(_Request):
    """What a list may hold; an item without the value is left out."""

    categories: list[Id] = Field(default=[], max_length=100)
    languages: list[Id] = Field(default=[], max_length=100)
    max_duration_seconds: Seconds | None = None
    exclude_items: list[Id] = Field(default=[], max_length=1000)

    def to_filters(self) -> Filters:
        """As the core's noun."""
        return Filters(
            tuple(self.categories), tuple(self.languages), self.max_duration_seconds, tuple(self.exclude_items)
        )


class SessionEvent(_Request):
    """An event of the running session: used for this request, not stored."""

    item_id: Id
    event: Annotated[str, AfterValidator(read_event_name), Field(json_schema_extra={"enum": list(EVENTS)})]
    at: Annotated[Annotated[float | str, AfterValidator(read_time_seconds)] | None, WithJsonSchema(TIME)] = None
    watch_seconds: Seconds | None = None
    value: float | None = None
    event_id: Id | None = None
    user_id: Id | None = None
    request_id: Id | None = None
    position: WholeNumber | None = None

    def to_event(self, user_id: str) -> Event:
        """As the core's noun; undated if the client gave no time."""
        at_seconds = UNDATED if self.at is None else float(self.at)
        return Event(user_id, self.item_id, self.event, at_seconds, self.watch_seconds, self.value, self.event_id)


class RecommendRequest(_Request):
    """Who asks, and for what. Without a user the session alone decides."""

    user_id: Id | None = None
    session: list[SessionEvent] = Field(default=[], max_length=MAX_EVENTS)
    k: WholeNumber = Field(default=10, ge=1, le=MAX_K)
    filters: FiltersBody = FiltersBody()
    diversity: float = Field(default=0.0, ge=0, le=1)
    explain: bool = False
    deadline_ms: DeadlineMs | None = None


class RankRequest(_Request):
    """Items that the client chose itself, to be put in order."""

    user_id: Id
    items: list[Id] = Field(min_length=1, max_length=MAX_EVENTS)
    explain: bool = False
    deadline_ms: DeadlineMs | None = None


class FeedbackRequest(_Request):
    """Events to keep. Each is checked on its own, so that a bad one does not hold up the others."""

    events: list[Annotated[Any, WithJsonSchema(FEEDBACK_EVENT)]] = Field(max_length=MAX_EVENTS)


def _is_none(value: object) -> bool:
    return value is None


class BecauseBody(BaseModel):
    """A watched item that raised this one's score, and the moment of this one that counted most."""

    item_id: str
    weight: float
    modality: str
    start_seconds: float
    end_seconds: float


class CounterfactualBody(BaseModel):
    """The rank that the item would have, had the user never met a watched item."""

    item_id: str
    rank: int


class Explanation(BaseModel):
    """Why an item is in the list. What was not measured is left out."""

    because: list[BecauseBody]
    tags: list[str]
    sentence: str | None = Field(default=None, exclude_if=_is_none)
    counterfactual: CounterfactualBody | None = Field(default=None, exclude_if=_is_none)


class ItemBody(BaseModel):
    """One row of a list."""

    item_id: str
    rank: int
    score: float = Field(
        description="Orders one list: a logit in recommendations and in /v1/rank, a cosine in similar items, the log "
        "of popularity where the list is degraded to it. Scores of different lists do not compare."
    )
    title: str
    category: str | None
    propensity: float = Field(
        default=1.0,
        description="Probability that exploration gave the item this place, given those above; keep it with what is "
        "shown to estimate other policies from feedback. 1: nothing was drawn.",
    )
    probabilities: dict[str, float] = Field(
        default={},
        description="How likely the user chooses, likes, finishes or skips the item when it is shown, in [0, 1], "
        "calibrated on users set aside in training. What training had no outcomes of is absent.",
    )
    source: str = Field(default="", description="What made the item a candidate, for example user_tower or popular.")
    explanation: Explanation | None = None


class StagesMs(BaseModel):
    """Milliseconds spent; null where a stage was not reached."""

    profile: float | None = None
    match: float | None = None
    rerank: float | None = None
    total: float = 0.0


class ListResponse(BaseModel):
    """A list, whose model made it, and what was missing when it was made."""

    request_id: str
    model_version: str
    variant: str
    degraded: list[str]
    items: list[ItemBody]
    stages_ms: StagesMs


class RankResponse(ListResponse):
    """The requested items in order."""

    unknown_items: list[str]
    """Requested ids that the catalogue does not hold."""


class SearchResponse(ListResponse):
    """Items for a text."""

    kind: Literal["embedding", "lexical"] = Field(
        description="embedding: by the text encoder of the bundle, scores are cosines; lexical: by the words of title, "
        "tags and category, scores are BM25, because the bundle cannot encode text or its models do not answer."
    )


class RejectionBody(BaseModel):
    """An event that was not kept, by its place in the request."""

    index: int
    reason: str


class FeedbackResponse(BaseModel):
    """What became of the events; sent only when the accepted ones are durable."""

    accepted: int
    duplicates: int
    rejected: list[RejectionBody]


class CatalogueItem(BaseModel):
    """What the bundle knows of an item."""

    item_id: str
    title: str
    category: str | None
    tags: list[str]
    creator_id: str | None
    language: str | None
    duration_seconds: float | None
    popularity: float
    model_version: str


class Problem(BaseModel):
    """application/problem+json (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str


PROBLEM: dict[str, Any] = {"model": Problem, "content": {"application/problem+json": {}}}
NOT_FOUND: dict[int | str, Any] = {404: PROBLEM}
"""For the description of a route that may not find what it is asked for."""

"""The nouns and the tables. A table is checked at the door, and the offending column and row are named.

Parquet is the contract between stages and with users; the schemas below are that contract.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from avrec_ray.errors import TableError
from avrec_ray.item_vectors import check_vectors

EVENTS = (
    "impression", "view", "like", "favorite", "share", "comment", "follow", "skip", "dislike", "report",
)  # fmt: skip
"""Every event a user can cause. An impression is shown, all others are acted."""

POSITIVE_EVENTS = ("view", "like", "favorite", "share", "comment", "follow")
"""Events that say a user chose the item; the targets of training and of evaluation."""

NEGATIVE_EVENTS = ("skip", "dislike", "report")
"""Events that say a user turned the item down."""

MODALITIES = ("video", "audio", "text")
"""Modalities of an item, in the order in which towers stack them."""

QUARANTINE_REASONS = {
    "missing": "the file does not exist or cannot be read",
    "forbidden": "the URI has a scheme not allowed, leaves the media root, passes a link, or is not a regular file",
    "unreachable": "a remote file could not be fetched",
    "changed": "the file changed while it was read",
    "not_media": "the first bytes are not those of a known audio, video or image container",
    "truncated": "the container ends before its declared end, or a frame is cut",
    "corrupt": "the container opens but its streams cannot be decoded",
    "no_streams": "the container has neither a video nor an audio stream",
    "too_large": "bytes, duration, picture size, streams, frame or sample rate above the configured limit",
    "unsupported": "a codec or pixel format that no decoder here reads",
    "timeout": "decoding took longer than the limit",
    "crashed": "the decoder process died",
}
"""Documented reason codes of the quarantine table."""

_TIME = pa.timestamp("us", tz="UTC")

ITEMS = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("media_uri", pa.string()),
        pa.field("title", pa.string(), nullable=False),
        pa.field("description", pa.string()),
        pa.field("tags", pa.list_(pa.string())),
        pa.field("category", pa.string()),
        pa.field("creator_id", pa.string()),
        pa.field("language", pa.string()),
        pa.field("duration_seconds", pa.float32()),
        pa.field("published_at", _TIME),
    ]
)
NEW_ITEMS_WATERMARK = b"new_items_watermark"
"""Key of an items table's metadata: up to which change of the running service's catalogue it goes."""
INTERACTIONS = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("event", pa.string(), nullable=False),
        pa.field("at", _TIME, nullable=False),
        pa.field("watch_seconds", pa.float32()),
        pa.field("value", pa.float32()),
        pa.field("event_id", pa.string()),
        pa.field("request_id", pa.string()),
        pa.field("position", pa.int32()),
    ]
)
USERS = pa.schema(
    [pa.field("user_id", pa.string(), nullable=False), pa.field("attributes", pa.map_(pa.string(), pa.string()))]
)
EDGES = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("friend_id", pa.string(), nullable=False),
        pa.field("weight", pa.float32()),
    ]
)
QUARANTINE = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("media_uri", pa.string()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("at", _TIME, nullable=False),
    ]
)
RECOMMENDATIONS = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
    ]
)
OPTIONAL_COLUMNS = {
    "items": {"description", "tags", "category", "creator_id", "language", "duration_seconds", "published_at"},
    "interactions": {"watch_seconds", "value", "event_id", "request_id", "position"},
    "users": {"attributes"},
    "edges": {"weight"},
}
"""Columns that may be absent from a table; they are then filled with nulls."""


@dataclass(frozen=True)
class Event:
    """One thing a user did with one item. `at_seconds` is a POSIX time, UTC."""

    user_id: str
    item_id: str
    event: str
    at_seconds: float
    watch_seconds: float | None = None
    value: float | None = None
    event_id: str | None = None
    request_id: str | None = None
    position: int | None = None


@dataclass(frozen=True, eq=False)
class Clip:
    """A decoded span of an item: fixed shapes, presence flags instead of nulls.

    The span is half open, in seconds of the media. `frames` is uint8 [T, 3, H, W] and all zero when `has_video`
    is false; `log_mel` is float32 [F, M'] and all zero when `has_audio` is false. `decoder` is "name version".
    """

    item_id: str
    clip_idx: int
    start_seconds: float
    end_seconds: float
    frames: npt.NDArray[np.uint8]
    log_mel: npt.NDArray[np.float32]
    has_video: bool
    has_audio: bool
    decoder: str
    media_sha256: str


@dataclass(frozen=True)
class Filters:
    """What a client allows in its list. Empty means no restriction; an item without the value is left out."""

    categories: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    max_duration_seconds: float | None = None
    exclude_items: tuple[str, ...] = ()


@dataclass(frozen=True)
class Query:
    """One request: a user and the context. `history` is oldest first and holds every event, skips included."""

    user_id: str | None
    history: tuple[Event, ...] = ()
    k: int = 10
    filters: Filters = Filters()
    diversity: float = 0.0
    explain: bool = False


@dataclass(frozen=True)
class Candidate:
    """An item proposed by the matcher. `score` is the matcher's, `source` says which list it came from."""

    item_id: str
    score: float
    source: str


@dataclass(frozen=True)
class Because:
    """One reason for a recommendation: a watched item, and the moment of the recommended item that counted most.

    `weight` in [0, 1] is the item's share of what watched items raised the score by, each measured by leaving it out;
    the span is half open, in seconds of the recommended item. Where no moment moves the score it is the one nearest to
    the watched item; of an item without moments `modality` is "" and the span 0 to 0.
    """

    item_id: str
    weight: float
    modality: str
    start_seconds: float
    end_seconds: float


@dataclass(frozen=True)
class Counterfactual:
    """The rank from 1 that the item would have among the same candidates, had the user never met `item_id`."""

    item_id: str
    rank: int


@dataclass(frozen=True)
class RankedItem:
    """One row of a ranking; `rank` counts from 1. `because` and the three after it say why, where asked.

    `propensity` is the probability that exploration gave the item this place, given those above; 1: nothing was drawn.
    `probabilities` says how likely the user does what the name says (choose, like, finish, skip), were the item shown;
    what was not calibrated is absent. `source` is what made the item a candidate.
    """

    item_id: str
    rank: int
    score: float
    because: tuple[Because, ...] = field(default=())
    tags: tuple[str, ...] = field(default=())
    counterfactual: Counterfactual | None = None
    sentence: str = ""
    propensity: float = 1.0
    probabilities: Mapping[str, float] = field(default_factory=dict)
    source: str = ""


def check_table(table: pa.Table, schema: pa.Schema, name: str, unique: Iterable[str] = ()) -> pa.Table:
    """Return `table` in the order and types of `schema`; extra columns are kept behind.

    Args:
        table: any Arrow table, columns in any order; optional columns may be absent.
        schema: one of the schemas of this module.
        name: what to call the table in errors: "items", "interactions", ...
        unique: columns whose values must not repeat.

    Raises:
        TableError: naming the column, the row and the value.
    """
    columns = [_check_column(table, f, name) for f in schema]
    for column_name in unique:
        _check_unique(columns[schema.get_field_index(column_name)], column_name, name)
    if "event" in schema.names:
        _check_events(columns[schema.get_field_index("event")], name)
    extra = [n for n in table.column_names if n not in schema.names]
    fields = list(schema) + [table.schema.field(n) for n in extra]
    return pa.table(columns + [table.column(n) for n in extra], schema=pa.schema(fields))


def check_items(table: pa.Table) -> pa.Table:
    """Check an items table: `item_id` unique, schema ITEMS, and the vector columns that it may have behind."""
    checked = check_vectors(check_table(table, ITEMS, "items", unique=["item_id"]))
    watermark = (table.schema.metadata or {}).get(NEW_ITEMS_WATERMARK)
    return checked if watermark is None else checked.replace_schema_metadata({NEW_ITEMS_WATERMARK: watermark})


def check_interactions(table: pa.Table) -> pa.Table:
    """Check an interactions table: known events, schema INTERACTIONS, `event_id` unique where given."""
    return check_table(table, INTERACTIONS, "interactions", unique=["event_id"])


def _check_column(table: pa.Table, expected: pa.Field, name: str) -> pa.ChunkedArray:
    if expected.name not in table.column_names:
        if expected.name in OPTIONAL_COLUMNS.get(name, set()):
            return pa.chunked_array([pa.nulls(table.num_rows, expected.type)])
        raise TableError(
            f"{name}: column {expected.name!r} is missing; got {table.column_names}, expected {expected.type}"
        )
    column = table.column(expected.name)
    if not expected.nullable and column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise TableError(f"{name}: column {expected.name!r} is null in row {row}; a value is required")
    if column.type == expected.type:
        return column
    if pa.types.is_timestamp(expected.type) and column.null_count < len(column):
        _check_is_time(column, expected, name)
    try:
        return column.cast(expected.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        row, value = _first_bad_row(column, expected.type)
        raise TableError(
            f"{name}: column {expected.name!r} has type {column.type}, expected {expected.type}; "
            f"row {row} holds {value!r} ({error})"
        ) from error


def _check_is_time(column: pa.ChunkedArray, expected: pa.Field, name: str) -> None:
    """Arrow would take any number for microseconds, and seconds would become a day in 1970."""
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        raise TableError(
            f"{name}: column {expected.name!r} has type {column.type}, expected {expected.type}; row 0 holds "
            f"{column[0].as_py()!r}, a number without a unit: make it a timestamp"
        )


def _first_bad_row(column: pa.ChunkedArray, wanted: pa.DataType) -> tuple[int, object]:
    for row in range(len(column)):
        try:
            column.slice(row, 1).cast(wanted)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return row, column[row].as_py()
    return 0, column[0].as_py() if len(column) else None


def _check_unique(column: pa.ChunkedArray, column_name: str, name: str) -> None:
    counts = pc.value_counts(column.drop_null())
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        value = repeated.field("values")[0].as_py()
        row = pc.indices_nonzero(pc.equal(column, value))[1].as_py()
        raise TableError(f"{name}: column {column_name!r} repeats {value!r} in row {row}; values must be unique")


def _check_events(column: pa.ChunkedArray, name: str) -> None:
    known = pc.is_in(column, value_set=pa.array(EVENTS))
    if not pc.all(known).as_py() and len(column):
        row = pc.index(known, False).as_py()
        raise TableError(
            f"{name}: column 'event' holds {column[row].as_py()!r} in row {row}; expected one of {list(EVENTS)}"
        )

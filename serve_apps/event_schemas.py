"""JSON Schemas of events that are checked one by one, so that what the description says is what is checked."""

from collections.abc import Iterable
from typing import Any

from avrec_ray.feedback.events import FIELDS, MAX_ID_CHARS
from avrec_ray.types import EVENTS

MAX_EVENTS = 500
TEXT_PATTERN = "^[^\\u0000-\\u001f\\u007f]*$"
"""Text without control characters; lone surrogates are no JSON text anyway."""
Schema = dict[str, Any]

ID: Schema = {"type": "string", "minLength": 1, "maxLength": MAX_ID_CHARS, "pattern": TEXT_PATTERN}
_MAX_FLOAT32 = 3.4028234e38
_SECONDS: Schema = {"type": "number", "minimum": 0, "maximum": 253402300799, "description": "POSIX seconds"}
_DATE_TIME: Schema = {"type": "string", "format": "date-time", "pattern": "^(19[7-9]|[2-9][0-9][0-9])[0-9]-"}
_MILLISECONDS: Schema = {"type": "integer", "minimum": 0, "maximum": 253402300799000, "description": "since 1970"}
_DIGITS: Schema = {"type": "string", "pattern": "^[0-9]{1,14}$", "description": "milliseconds since 1970"}
VALUE: Schema = {"type": "number", "minimum": -_MAX_FLOAT32, "maximum": _MAX_FLOAT32}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


TIME: Schema = {"anyOf": [_SECONDS, _DATE_TIME, {"type": "null"}]}

_OPTIONAL: dict[str, Schema] = {
    "at": TIME,
    "watch_seconds": _or_null({"type": "number", "minimum": 0, "maximum": _MAX_FLOAT32}),
    "value": _or_null(VALUE),
    "request_id": _or_null(ID),
    "position": _or_null({"type": "integer", "minimum": 0, "maximum": 2**31 - 1}),
}

FEEDBACK_EVENT: Schema = {
    "type": "object",
    "title": "FeedbackEvent",
    "required": ["event_id", "user_id", "item_id", "event"],
    "additionalProperties": False,
    "properties": {name: {"enum": list(EVENTS)} if name == "event" else _OPTIONAL.get(name, ID) for name in FIELDS},
}


def gorse_event(names: Iterable[str], for_session: bool = False) -> Schema:
    """A feedback of Gorse whose type is one of `names`; in a session nobody's id is read."""
    return {
        "type": "object",
        "title": "GorseSessionFeedback" if for_session else "GorseFeedback",
        "required": ["FeedbackType", "ItemId", *([] if for_session else ["UserId"])],
        "additionalProperties": False,
        "properties": {
            "FeedbackType": {"enum": sorted(names)},
            "UserId": {} if for_session else ID,
            "ItemId": ID,
            "Value": _or_null(VALUE),
            "Timestamp": {"anyOf": [_DATE_TIME, {"enum": ["", "0001-01-01T00:00:00Z"]}, {"type": "null"}]},
            "Updated": {},
            "Labels": {},
            "Comment": {},
        },
    }


def metarank_event(names: Iterable[str]) -> Schema:
    """An event of Metarank, of the four kinds; the type of an interaction is one of `names`."""
    timestamp = {"anyOf": [_MILLISECONDS, _DIGITS, _DATE_TIME]}
    shared: dict[str, Schema] = {"id": ID, "timestamp": timestamp, "fields": {"type": "array"}, "tenant": {}}
    actor: dict[str, Schema] = {"user": _or_null(ID), "session": _or_null(ID)}
    item = {"type": "object", "required": ["id"], "properties": {"id": ID}}
    somebody = {"anyOf": [{"required": [name], "properties": {name: ID}} for name in actor]}
    own: dict[str, tuple[list[str], dict[str, Schema]]] = {
        "item": (["item"], {"item": ID}),
        "user": (["user"], {"user": ID}),
        "ranking": (["items"], {**actor, "items": {"type": "array", "minItems": 1, "maxItems": 100, "items": item}}),
        "interaction": (
            ["item", "type"],
            {**actor, "item": ID, "type": {"enum": sorted(names)}, "ranking": _or_null(ID)},
        ),
    }
    return {
        "title": "MetarankEvent",
        "anyOf": [
            {
                "type": "object",
                "required": ["event", "id", "timestamp", *required],
                "properties": {"event": {"const": kind}, **shared, **properties},
                **(somebody if "session" in properties else {}),
            }
            for kind, (required, properties) in own.items()
        ],
    }

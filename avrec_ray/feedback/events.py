"""One submitted event: plain JSON values to `types.Event`, or the reason why not."""

import hashlib
import json
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from avrec_ray.errors import FeedbackError
from avrec_ray.types import EVENTS, Event

UNDATED = math.nan
"""`at_seconds` of an event whose client gave no time. The store dates it by the server's clock, and a repeat of the
same `event_id`, undated again, is a duplicate rather than a conflict."""

MAX_ID_CHARS = 256
FIELDS = ("event_id", "user_id", "item_id", "event", "at", "watch_seconds", "value", "request_id", "position")
"""What an event may carry."""
_REQUIRED = ("event_id", "user_id", "item_id", "event")
_MAX_FLOAT32 = 3.4028234e38
_MAX_POSITION = 2**31 - 1


def read_event(values: Any, received_at_seconds: float, max_clock_skew_seconds: float) -> Event:
    """Check one event of a feedback request.

    Args:
        values: decoded JSON; `at` is POSIX seconds or an ISO 8601 text with its offset, and may be absent.
        received_at_seconds: the server's clock, POSIX seconds.
        max_clock_skew_seconds: how far `at` may lie ahead of it.

    Raises:
        FeedbackError: naming the field, what was got and what was expected.
    """
    if not isinstance(values, Mapping):
        raise FeedbackError(f"got {_shown(values)}, expected an object with {list(_REQUIRED)}")
    for name in values:
        if name not in FIELDS:
            raise FeedbackError(f"unknown field {_shown(name)}; expected some of {list(FIELDS)}")
    for name in _REQUIRED:
        if values.get(name) is None:
            raise FeedbackError(f"{name} is missing; every event needs {list(_REQUIRED)}")
    request_id = values.get("request_id")
    return Event(
        user_id=_read_id("user_id", values["user_id"]),
        item_id=_read_id("item_id", values["item_id"]),
        event=read_event_name(values["event"]),
        at_seconds=_read_time(values.get("at"), received_at_seconds + max_clock_skew_seconds),
        watch_seconds=_read_number("watch_seconds", values.get("watch_seconds"), 0.0),
        value=_read_number("value", values.get("value"), -_MAX_FLOAT32),
        event_id=_read_id("event_id", values["event_id"]),
        request_id=None if request_id is None else _read_id("request_id", request_id),
        position=_read_position(values.get("position")),
    )


def read_event_name(value: Any) -> str:
    """Check the kind of an event.

    >>> read_event_name("like")
    'like'
    """
    if not isinstance(value, str) or value not in EVENTS:
        raise FeedbackError(f"event: got {_shown(value)}, expected one of {list(EVENTS)}")
    return value


def read_time_seconds(value: float | str) -> float:
    """POSIX seconds from a number or an ISO 8601 text.

    >>> read_time_seconds("1970-01-01T00:01:00Z")
    60.0
    """
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            raise FeedbackError(f"at: got {_shown(value)}, expected POSIX seconds or a time such as {_EXAMPLE_TIME!r}")
        return moment.timestamp()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _MAX_SECONDS:
        raise FeedbackError(f"at: got {_shown(value)}, expected POSIX seconds or a time such as {_EXAMPLE_TIME!r}")
    return float(value)


_EXAMPLE_TIME = "2026-01-31T18:00:00Z"
_MAX_SECONDS = 253402300799  # the last second of year 9999, which Arrow and Python can both hold


def _read_time(value: Any, latest_seconds: float) -> float:
    if value is None:
        return UNDATED
    at_seconds = read_time_seconds(value)
    if at_seconds < 0:
        raise FeedbackError(f"at: got {_shown(value)}, expected a time after 1970")
    if at_seconds > latest_seconds:
        ahead = at_seconds - latest_seconds
        raise FeedbackError(
            f"at: got {_shown(value)}, {ahead:.0f} s further ahead of the server's clock than allowed; "
            "correct the client's clock or leave `at` out"
        )
    return at_seconds


def _read_id(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise FeedbackError(f"{name}: got {_shown(value)} ({type(value).__name__}), expected a string")
    if not 1 <= len(value) <= MAX_ID_CHARS:
        raise FeedbackError(f"{name}: got {len(value)} characters, expected 1 to {MAX_ID_CHARS}")
    if not is_clean_text(value):
        raise FeedbackError(f"{name}: got {_shown(value)}, expected Unicode text without control characters")
    return value


def is_clean_text(value: str) -> bool:
    """False for what no database takes or no log should show: control characters and lone surrogates."""
    return not any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) <= 0xDFFF for c in value)


def _read_number(name: str, value: Any, low: float) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise FeedbackError(f"{name}: got {_shown(value)} ({type(value).__name__}), expected a number")
    if not low <= value <= _MAX_FLOAT32:
        expected = "a number of at least 0" if low == 0 else "a finite 32-bit number"
        raise FeedbackError(f"{name}: got {_shown(value)}, expected {expected}")
    return float(value)


def _read_position(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():  # JSON has one kind of number: 3.0 is as whole as 3
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_POSITION:
        raise FeedbackError(f"position: got {_shown(value)}, expected a whole number of at least 0")
    return value


def _shown(value: Any) -> str:
    """A value for an error message: ASCII, short, safe to log."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or very deep nesting
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def fingerprint_of(event: Event) -> bytes:
    """16 bytes that tell whether two events with one `event_id` are the same event; the time counts if given."""
    at_us = None if math.isnan(event.at_seconds) else round(event.at_seconds * 1e6)
    body = [event.user_id, event.item_id, event.event, at_us, event.watch_seconds, event.value]
    text = json.dumps([*body, event.request_id, event.position])
    return hashlib.sha256(text.encode()).digest()[:16]

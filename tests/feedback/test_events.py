import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.errors import FeedbackError
from avrec_ray.feedback.events import FIELDS, fingerprint_of, read_event, read_time_seconds
from avrec_ray.types import EVENTS, Event

NOW = 1_700_000_000.0
GOOD: dict[str, Any] = {"event_id": "e1", "user_id": "u1", "item_id": "i1", "event": "like"}


def read(**changes: Any) -> Event:
    return read_event({**GOOD, **changes}, NOW, max_clock_skew_seconds=60)


def test_read_event_minimal_is_undated() -> None:
    event = read()
    assert (event.event_id, event.user_id, event.item_id, event.event) == ("e1", "u1", "i1", "like")
    assert math.isnan(event.at_seconds)
    assert (event.watch_seconds, event.value, event.request_id, event.position) == (None, None, None, None)


def test_read_event_full_keeps_every_field() -> None:
    event = read(at=NOW, watch_seconds=3, value=-0.5, request_id="r", position=0, event="view")
    assert event == Event("u1", "i1", "view", NOW, 3.0, -0.5, "e1", "r", 0)


@pytest.mark.parametrize("name", EVENTS)
def test_read_event_every_known_event_is_taken(name: str) -> None:
    assert read(event=name).event == name


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (12, 12.0),
        (0.5, 0.5),
        ("2023-11-14T22:13:20Z", NOW),
        ("2023-11-15T00:13:20+02:00", NOW),
        (NOW + 60, NOW + 60),
    ],
)
def test_read_event_time_in_any_form_is_posix_utc(at: float | str, expected: float) -> None:
    assert read(at=at).at_seconds == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"event": "applaud"}, r"event: got 'applaud', expected one of \['impression', 'view', 'like'"),
        ({"event": 3}, r"event: got 3, expected one of"),
        ({"event": ["like"]}, r"event: got \['like'\], expected one of"),
        ({"user_id": 5}, r"user_id: got 5 \(int\), expected a string"),
        ({"user_id": ""}, r"user_id: got 0 characters, expected 1 to 256"),
        ({"item_id": "x" * 257}, r"item_id: got 257 characters, expected 1 to 256"),
        ({"item_id": None}, r"item_id is missing; every event needs"),
        ({"event_id": "a\x00b"}, r"event_id: got 'a\\x00b', expected Unicode text without control"),
        ({"user_id": "\ud800"}, r"user_id: got '\\ud800', expected Unicode text"),
        ({"watch_seconds": -1}, r"watch_seconds: got -1, expected a number of at least 0"),
        ({"watch_seconds": math.nan}, r"watch_seconds: got nan"),
        ({"watch_seconds": math.inf}, r"watch_seconds: got inf"),
        ({"watch_seconds": "3"}, r"watch_seconds: got '3' \(str\), expected a number"),
        ({"watch_seconds": True}, r"watch_seconds: got True \(bool\), expected a number"),
        ({"watch_seconds": 10**5000}, r"watch_seconds: got a int, expected a number"),
        ({"value": 1e39}, r"value: got 1e\+39, expected a finite 32-bit number"),
        ({"position": -1}, r"position: got -1, expected a whole number"),
        ({"position": 1.5}, r"position: got 1.5, expected a whole number"),
        ({"position": 2**31}, r"position: got 2147483648, expected a whole number"),
        ({"request_id": 7}, r"request_id: got 7 \(int\), expected a string"),
        ({"at": NOW + 61}, r"1 s further ahead of the server's clock than allowed"),
        ({"at": -1}, r"at: got -1, expected POSIX seconds"),
        ({"at": "1969-12-31T23:59:59Z"}, r"expected a time after 1970"),
        ({"at": "yesterday"}, r"at: got 'yesterday', expected POSIX seconds or a time such as"),
        ({"at": "2023-11-14T22:13:20"}, r"at: got '2023-11-14T22:13:20', expected POSIX seconds or"),
        ({"at": math.nan}, r"at: got nan"),
        ({"at": [1]}, r"at: got \[1\]"),
        ({"colour": "red"}, r"unknown field 'colour'; expected some of"),
    ],
)
def test_read_event_bad_value_names_field_got_and_expected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FeedbackError, match=message):
        read(**changes)


@pytest.mark.parametrize("values", [None, 3, "like", [GOOD]])
def test_read_event_not_an_object_is_refused(values: Any) -> None:
    with pytest.raises(FeedbackError, match="expected an object with"):
        read_event(values, NOW, 60)


def test_read_event_long_value_is_shortened_in_the_message() -> None:
    with pytest.raises(FeedbackError) as caught:
        read(event="x" * 10_000)
    assert len(str(caught.value)) < 300


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda s: st.lists(s, max_size=3), max_leaves=4
)


@given(st.dictionaries(st.sampled_from(FIELDS), json_values))
def test_read_event_any_json_is_an_event_or_a_reason(values: dict[str, Any]) -> None:
    try:
        event = read_event(values, NOW, 60)
    except FeedbackError as error:
        reason = str(error)
        event = read()
    else:
        reason = ""
    assert reason.isascii()
    assert event.event in EVENTS
    assert math.isnan(event.at_seconds) or 0 <= event.at_seconds <= NOW + 60
    assert event.watch_seconds is None or 0 <= event.watch_seconds < math.inf


def test_read_time_seconds_number_stays() -> None:
    assert read_time_seconds(1.25) == 1.25


@pytest.mark.parametrize(
    "changes",
    [
        {"user_id": "u2"},
        {"item_id": "i2"},
        {"event": "skip"},
        {"at_seconds": 1.0},
        {"watch_seconds": 2.0},
        {"value": 1.0},
        {"request_id": "r"},
        {"position": 1},
    ],
)
def test_fingerprint_other_body_differs(changes: dict[str, Any]) -> None:
    assert fingerprint_of(read()) != fingerprint_of(dataclasses.replace(read(), **changes))


def test_fingerprint_same_body_is_equal_whatever_its_id() -> None:
    assert fingerprint_of(read()) == fingerprint_of(read(event_id="e2"))

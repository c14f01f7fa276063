"""Events of other services' clients as ours: their names for what a user did, and what they send in one request."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from avrec_ray.errors import FeedbackError
from avrec_ray.feedback.events import MAX_ID_CHARS, is_clean_text
from avrec_ray.types import EVENTS
from serve_apps.event_schemas import MAX_EVENTS
from serve_apps.inbox import Inbox
from serve_apps.problems import ProblemError, shown
from serve_apps.schemas import RejectionBody

USUAL_NAMES = {
    **{name: name for name in EVENTS},
    **dict.fromkeys(("read", "click", "watch", "play", "listen"), "view"),
    **dict.fromkeys(("star", "bookmark", "save", "purchase"), "favorite"),
    "heart": "like",
    "repost": "share",
}
"""What clients call an event, and which of EVENTS it is; `serve.event_names` goes before."""

ReadForeign = Callable[[Any], list[dict[str, Any]]]
"""One foreign event to the events of ours that it stands for. Raises FeedbackError, or UnsupportedEventError."""


class UnsupportedEventError(FeedbackError):
    """An event that is well formed, but of a kind that nobody here reads."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass
class Kept:
    """What became of the foreign events of one request."""

    accepted: int = 0
    """Foreign events of which something is stored now, or was before."""
    stored: int = 0
    """Events of ours that are new."""
    well_formed: bool = False
    """Whether one of them at least was an event that could have been stored, or of a kind that is told apart."""
    unsupported: dict[str, int] = field(default_factory=dict)
    """How many of each kind that nobody reads."""
    rejected: list[RejectionBody] = field(default_factory=list)
    """The others by place, unsupported ones included."""


def known_names(own_names: Mapping[str, str]) -> set[str]:
    """Every name of an event that a client may use."""
    return {*own_names, *USUAL_NAMES}


def our_name(name: Any, own_names: Mapping[str, str]) -> str:
    """Which of EVENTS a client's name is.

    Raises:
        FeedbackError: nobody said.
    """
    found = own_names.get(name) or USUAL_NAMES.get(name) if isinstance(name, str) else None
    if found is None:
        known = sorted(known_names(own_names))
        raise FeedbackError(f"got event {shown(name)}, expected one of {known}; serve.event_names adds others")
    return found


def read_id(name: str, value: Any) -> str:
    """A client's id, if it is one that can be stored. Raises FeedbackError."""
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_ID_CHARS or not is_clean_text(value):
        raise FeedbackError(f"{name}: got {shown(value)}, expected a text of 1 to {MAX_ID_CHARS} characters")
    return value


def made_id(source: str, *parts: Any) -> str:
    """An `event_id` made of an event's content, so that the same event again is a duplicate.

    >>> made_id("gorse", "like", "u1", "i1", "") == made_id("gorse", "like", "u1", "i1", "")
    True
    """
    return f"{source}-{hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:40]}"


async def keep_foreign(inbox: Inbox, submitted: Sequence[Any], read: ReadForeign) -> Kept:
    """Store what `read` makes of each event, and say what was not kept and why.

    Raises:
        ProblemError: 422 if they stand for too many events of ours; 503 as `Inbox.keep`.
    """
    kept, ours, places = Kept(), [], []
    for place, values in enumerate(submitted):
        try:
            found = read(values)
        except UnsupportedEventError as error:
            kept.well_formed = True
            kept.unsupported[error.kind] = kept.unsupported.get(error.kind, 0) + 1
            kept.rejected.append(RejectionBody(index=place, reason=str(error)))
            continue
        except FeedbackError as error:
            kept.rejected.append(RejectionBody(index=place, reason=str(error)))
            continue
        ours += found
        places += [place] * len(found)
    if len(ours) > MAX_EVENTS:
        raise ProblemError(
            422, f"the request holds {len(ours)} events, an item of a ranking each, expected {MAX_EVENTS}"
        )
    refused = await _store(inbox, ours, kept) if ours else {}
    for index, reason in refused.items():
        kept.rejected.append(RejectionBody(index=places[index], reason=reason))
    kept.accepted = len({place for index, place in enumerate(places) if index not in refused})
    kept.rejected.sort(key=lambda rejection: rejection.index)
    return kept


async def _store(inbox: Inbox, ours: list[dict[str, Any]], kept: Kept) -> dict[int, str]:
    """Which of our events were refused, by place, and why."""
    try:
        answer = await inbox.keep(ours)
    except ProblemError as error:
        if error.status != 422:
            raise
        return {rejection["index"]: rejection["reason"] for rejection in error.more["rejected"]}
    kept.stored, kept.well_formed = answer.accepted, True
    return {rejection.index: rejection.reason for rejection in answer.rejected}

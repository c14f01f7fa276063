"""One JSON line a request, for machines to read: what was asked for by template, how it went and where the time went.

Nothing of the request gets in but its id and its key's name: no path, query, body or address, and of the method only
one that HTTP knows. What an answer held is told in names of this code.
"""

import contextvars
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TextIO

from serve_apps.request_ids import current_request_id

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@dataclass
class RequestNotes:
    """What the answer of one request tells of its lists."""

    stages_ms: dict[str, float] = field(default_factory=dict)
    degraded: list[str] = field(default_factory=list)
    model_version: str = ""
    """Of the bundle that made the list."""


_current: contextvars.ContextVar[RequestNotes | None] = contextvars.ContextVar("avrec_request_notes", default=None)


def begin_notes() -> RequestNotes:
    """Notes of the request that begins in this task."""
    notes = RequestNotes()
    _current.set(notes)
    return notes


def note_list(stages_ms: dict[str, float], degraded: list[str], model_version: str) -> None:
    """Note how a list of the running request came about; outside of one nothing happens."""
    notes = _current.get()
    if notes is not None:
        notes.stages_ms.update(stages_ms)
        notes.model_version = model_version
        notes.degraded += [reason for reason in degraded if reason not in notes.degraded]


class AccessLog:
    """Writes the lines to standard output, where platforms and Ray collect them; a line that fails harms nobody."""

    def __init__(self, model_version: Callable[[], str], stream: TextIO | None = None) -> None:
        """`model_version`: of the champion, for requests that have no list."""
        self._model_version = model_version
        handler = logging.StreamHandler(stream or sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        self._logger = logging.Logger("avrec.access")  # not in the tree: no other handler repeats its lines
        self._logger.addHandler(handler)

    def write(self, method: str, route: str, status: int, seconds: float, key_name: str, notes: RequestNotes) -> None:
        """The line of a request that has been answered; `status` 0: the client left before."""
        line: dict[str, Any] = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request_id": current_request_id(),
            "method": method if method in _METHODS else "other",
            "route": route,
            "status": status,
            "total_ms": round(seconds * 1000, 3),
            "stages_ms": {stage: round(ms, 3) for stage, ms in notes.stages_ms.items()},
            "degraded": notes.degraded,
            "model_version": notes.model_version or self._model_version(),
            "key": key_name,
        }
        self._logger.info(json.dumps(line))

"""Schemathesis against the application in process: every phase over its own OpenAPI, failures as short texts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import schemathesis
from fastapi import FastAPI
from schemathesis import Case, CheckContext, GenerationMode, Response
from schemathesis.config import SchemathesisConfig
from schemathesis.core.parameters import ParameterLocation
from schemathesis.engine import events, from_schema

BATCHES = ("POST /v1/feedback", "POST /api/feedback", "PUT /api/feedback", "POST /feedback")
"""Their events are checked one by one: a bad one is told by its place, and holds up no other."""

ANY_ID = (
    "GET /v1/items/{item_id}/similar", "GET /v1/items/{item_id}/status", "GET /v1/users/{user_id}/profile",
    "GET /v1/users/{user_id}/data", "POST /v1/users/{user_id}/claim",
)  # fmt: skip
"""An id may hold a slash, so that their paths are also those of an item or a user, who can be deleted."""
UPLOADS = ("POST /v1/items",)
"""Its body is JSON, a form or the media themselves, and the item may come beside: no schema says so much."""


@schemathesis.check
def bad_events_are_told(_context: CheckContext, response: Response, case: Case) -> None:
    """A batch that breaks its schema is refused as a whole, or the answer says what was not kept."""
    body = case.meta.components.get(ParameterLocation.BODY) if case.meta is not None else None
    negative = body is not None and body.mode == GenerationMode.NEGATIVE
    if case.operation.label in BATCHES and negative and response.status_code == 200:
        answer = response.json()
        assert answer.get("rejected") or answer.get("Rejected"), f"a bad event was taken: {answer}"


@dataclass
class Fuzzed:
    """What one run sent and found."""

    num_requests: Counter[str] = field(default_factory=Counter)
    """By phase."""
    statuses: Counter[int] = field(default_factory=Counter)
    operations: set[str] = field(default_factory=set)
    """Of which one request at least was answered."""
    failures: dict[str, str] = field(default_factory=dict)
    """The first of each kind and operation, as a command that repeats it, and what was wrong."""


def fuzz(api: FastAPI, key: str, max_examples: int, seed: int, max_seconds: float | None = None) -> Fuzzed:
    """Send examples, edge cases, random cases and sequences along the links; a holder of `key`, and callers without."""
    values = {
        "seed": seed,
        "headers": {"Authorization": f"Bearer {key}"},
        "generation": {"max-examples": max_examples, "database": "none"},
        "continue-on-failure": True,
        "operations": [
            _without(BATCHES, "negative_data_rejection"),
            _without(ANY_ID, "unsupported_method", "allow_header_conformance"),
            _without(UPLOADS, "negative_data_rejection", "positive_data_acceptance"),
        ],
    }
    if max_seconds is not None:
        values["max-time"] = max(1, int(max_seconds))
    schema = schemathesis.openapi.from_asgi("/openapi.json", api, config=SchemathesisConfig.from_dict(values))
    found = Fuzzed()
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            _note(found, event)
        elif isinstance(event, events.NonFatalError):
            found.failures.setdefault(f"{event.label}: error", str(event.info))
        elif isinstance(event, events.FatalError):
            raise event.exception
    return found


def _without(operations: Sequence[str], *checks: str) -> dict[str, Any]:
    return {"include-name": list(operations), "checks": {check: {"enabled": False} for check in checks}}


def _note(found: Fuzzed, event: events.ScenarioFinished) -> None:
    recorder = event.recorder
    for interaction in recorder.interactions.values():
        found.num_requests[str(event.phase)] += 1
        if interaction.response is not None:
            found.statuses[interaction.response.status_code] += 1
    found.operations |= {node.value.operation.label for node in recorder.cases.values()}
    for case_id, checks in recorder.checks.items():
        for check in checks:
            if check.failure_info is None:
                continue
            failure = check.failure_info.failure
            name = f"{recorder.cases[case_id].value.operation.label}: {check.name}: {failure.title}"
            found.failures.setdefault(name, f"{check.failure_info.code_sample}\n{failure.message}")

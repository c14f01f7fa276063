"""One item as a client submits it: facts, and where its media are."""

import hashlib
import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from avrec_ray.media.text import item_text

MAX_TEXT_CHARS = 10_000
"""Longest title or description."""
MAX_TAGS = 100


@dataclass(frozen=True)
class Submission:
    """What a new item is. Media are a path or URI here, or come as an upload beside it; neither is a text-only item."""

    item_id: str
    title: str = ""
    media_uri: str | None = None
    description: str | None = None
    tags: tuple[str, ...] = ()
    category: str | None = None
    creator_id: str | None = None
    language: str | None = None
    published_at_seconds: float | None = None
    """POSIX time."""

    @property
    def text(self) -> str:
        """What text encoders read."""
        return item_text(self.title, self.description, self.tags)

    @property
    def published_at(self) -> datetime | None:
        """The time of publication, UTC."""
        at_seconds = self.published_at_seconds
        return None if at_seconds is None else datetime.fromtimestamp(at_seconds, UTC)

    def to_json(self) -> str:
        """One text for one submission: keys sorted, what is unknown left out."""
        values = {name: value for name, value in vars(self).items() if value not in (None, "", ())}
        return json.dumps(values, sort_keys=True, ensure_ascii=False)

    def fingerprint(self, media_sha256: str = "") -> bytes:
        """16 bytes that differ where the facts, the media's place or an upload's content do."""
        return hashlib.blake2b(f"{media_sha256}\0{self.to_json()}".encode(), digest_size=16).digest()


def submission_from_json(text: str) -> Submission:
    """What `to_json` wrote."""
    values: dict[str, Any] = json.loads(text)
    return Submission(**{**values, "tags": tuple(values.get("tags", ()))})


def check_submission(item: Submission, has_upload: bool) -> str:
    """Why an item cannot be taken in whatever its media hold; "" if it can."""
    if item.media_uri is not None and has_upload:
        return "media_uri: got both a place and an upload, expected one of them"
    if item.media_uri is None and not has_upload and not item.text:
        return "media_uri: got neither media nor text, expected one of them at least"
    if item.published_at_seconds is not None and not math.isfinite(item.published_at_seconds):
        return "published_at: expected a time"
    return ""

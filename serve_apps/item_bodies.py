"""Bodies of the routes of new items; strict as those of schemas.py."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from avrec_ray.feedback.events import read_time_seconds
from avrec_ray.new_items.submission import MAX_TAGS, MAX_TEXT_CHARS, Submission
from serve_apps.schemas import Id

MAX_URI_CHARS = 4096


def _check_storable(value: str) -> str:
    """Lines and tabs are text; what a database or UTF-8 cannot hold is not."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("Unicode text") from error
    if "\0" in value:
        raise ValueError("text without NUL characters")
    return value


Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS), AfterValidator(_check_storable)]
Uri = Annotated[str, Field(min_length=1, max_length=MAX_URI_CHARS), AfterValidator(_check_storable)]


class ItemRequest(BaseModel):
    """A new item, or another body for a known one."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    item_id: Id
    media_uri: Uri | None = Field(
        default=None, description="Absolute path below new_items.media_roots, or a URI of new_items.remote_schemes."
    )
    title: Text = ""
    description: Text | None = None
    tags: list[Id] = Field(default=[], max_length=MAX_TAGS)
    category: Id | None = None
    creator_id: Id | None = None
    language: Id | None = None
    published_at: Annotated[float | str, AfterValidator(read_time_seconds)] | None = Field(
        default=None, description="POSIX seconds, or ISO 8601 with its offset."
    )

    def to_submission(self) -> Submission:
        """As the core's noun."""
        return Submission(
            item_id=self.item_id,
            title=self.title,
            media_uri=self.media_uri,
            description=self.description,
            tags=tuple(self.tags),
            category=self.category,
            creator_id=self.creator_id,
            language=self.language,
            published_at_seconds=None if self.published_at is None else float(self.published_at),
        )


class ItemAccepted(BaseModel):
    """The item waits, durably; or, where the same body was known, where it is."""

    item_id: str
    status: str


class ItemStatus(BaseModel):
    """Where an item is on its way into lists."""

    item_id: str
    status: str = Field(
        description="queued; decoding; embedded: its vectors are kept, replicas take it up within a moment; servable; "
        "refused, with the reason; deleted."
    )
    reason: str | None = Field(default=None, description="Code of the quarantine table, where refused.")
    detail: str | None = None
    served: bool = Field(description="Whether lists may hold it now: also while another body of it is being worked on.")

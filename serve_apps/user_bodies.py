"""Bodies of the routes of users; strict as those of schemas.py."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from avrec_ray.feedback.claiming import ANONYMOUS_PREFIX
from avrec_ray.feedback.events import MAX_ID_CHARS
from serve_apps.schemas import check_text

ANONYMOUS_PATTERN = f"^{ANONYMOUS_PREFIX}[^\\u0000-\\u001f\\u007f]+$"


class AffinityBody(BaseModel):
    """A tag, category or creator that the user chooses."""

    name: str
    share: float = Field(description="Of what the user's positive events say, above 0 and up to 1.")
    lift: float = Field(description="How many times more that is than among all users' choices.")


class HorizonBody(BaseModel):
    """What a user is after, strongest first."""

    tags: list[AffinityBody]
    categories: list[AffinityBody]
    creators: list[AffinityBody]


class RecentItemBody(BaseModel):
    """What the user last did with an item."""

    item_id: str
    title: str
    event: str
    at_seconds: float


class ProfileResponse(BaseModel):
    """A user, as the stored events tell. Empty lists where nothing is known."""

    user_id: str
    num_events: int = Field(description="Events read that are about items of the catalogue.")
    short_term: HorizonBody
    long_term: HorizonBody
    recent: list[RecentItemBody]
    model_version: str


class ClaimRequest(BaseModel):
    """The visitor that turned out to be the user."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    anonymous_id: Annotated[
        str,
        Field(
            min_length=len(ANONYMOUS_PREFIX) + 1,
            max_length=MAX_ID_CHARS,
            description="Begins with `anonymous:`.",
            json_schema_extra={"pattern": ANONYMOUS_PATTERN},
        ),
        AfterValidator(check_text),
    ]


class ClaimResponse(BaseModel):
    """What became the user's."""

    events: int


class Receipt(BaseModel):
    """A signed receipt of an erasure; it names nobody. See docs/privacy.md."""

    subject: str
    erased_at: str
    issued_at: str
    removed: dict[str, int]
    pending: list[str]
    key_id: str
    signature: str


class UserData(BaseModel):
    """All that is kept of one user."""

    user_id: str
    stored_as: str
    erased_at: str | None = Field(description="When the user was erased; what is below came later.")
    events: list[dict[str, Any]]
    impressions: list[dict[str, Any]]
    profile: dict[str, Any] | None = Field(description="What the served bundle knows besides events.")

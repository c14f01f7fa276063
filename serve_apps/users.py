"""Users at the door: ids become stored names before anything else, and the routes to be told and to be forgotten."""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from avrec_ray.dataclass_io import to_dict
from avrec_ray.errors import FeedbackError
from avrec_ray.feedback.bundle_names import BundleNames, profile_data
from avrec_ray.feedback.claiming import check_anonymous
from avrec_ray.feedback.store import EventStore
from avrec_ray.training.profiles import UserProfiles
from avrec_ray.types import Event
from serve_apps.problems import ProblemError
from serve_apps.schemas import PROBLEM, PathId
from serve_apps.user_bodies import ClaimRequest, ClaimResponse, ProfileResponse, Receipt, UserData

if TYPE_CHECKING:
    from serve_apps.variants import Variants

LoadProfiles = Callable[[], UserProfiles | None]


class UserDoor:
    """Knows users by the id that clients use, by their stored name, and by the name in the bundle's profiles."""

    def __init__(self, store: EventStore, known_users: Collection[str], load_profiles: LoadProfiles) -> None:
        """`known_users`: those of whom the models know something without a history."""
        self.store = store
        self._known = known_users
        self._names = BundleNames(store.pseudonyms, known_users)
        self._load_profiles = load_profiles

    def stored(self, user_id: str) -> str:
        """The name that everything behind the door uses."""
        return self.store.pseudonyms.of(user_id)

    def known(self, name: str | None) -> bool:
        """Whether the models know something of a user without a history."""
        return name is not None and self._names.of(name) in self._known

    def read(self, name: str, length: int) -> tuple[str, tuple[Event, ...]]:
        """The user's name for the models, and the history. An erased user has a name that none knows."""
        history = self.store.history(name, length)
        if not self.known(name):
            return name, history
        # The bundle was built before: its profile is the user's until the next, and must not be used.
        is_erased = self.store.is_erased(name)
        return self.store.pseudonyms.tombstones(name)[0] if is_erased else self._names.of(name), history

    def claim(self, anonymous_id: str, user_id: str) -> int:
        """Move a visitor's events to a user; returns how many."""
        return self.store.claim(self.stored(anonymous_id), self.stored(user_id))

    def data(self, user_id: str) -> dict[str, Any]:
        """All that is kept of a user."""
        pseudonyms, name = self.store.pseudonyms, self.stored(user_id)
        data = self.store.user_data(name)
        is_told = self.known(name) and data["erased_at"] is None
        profile = profile_data(self._load_profiles(), pseudonyms.aliases(name)) if is_told else None
        return {"user_id": user_id, **data, "profile": profile}


_PARTS = {"profile": "GET", "data": "GET", "claim": "POST"}
"""What lies below a user, and how it is asked for."""


def add_profile_routes(reads: APIRouter, writes: APIRouter, variants: "Variants") -> None:
    """What a user's history says in words; and visitors who become users."""

    def told(user_id: str) -> dict[str, Any]:
        flow = variants.champion
        _, history = flow.users.read(flow.users.stored(user_id), flow.history_length)
        return {"model_version": flow.model_version, **to_dict(flow.profiler.profile(history))}

    def claimed(anonymous_id: str, user_id: str) -> int:
        return variants.champion.users.claim(anonymous_id, user_id)

    @reads.get("/v1/users/{user_id:path}/profile")
    async def user_profile(user_id: PathId) -> ProfileResponse:
        """Interests of late and for long, by tag, category and creator, and the newest items."""
        profile = await _from_store(told, user_id)
        return ProfileResponse(user_id=user_id, **profile)

    @writes.post("/v1/users/{user_id:path}/claim")
    async def claim_visitor(user_id: PathId, body: ClaimRequest) -> ClaimResponse:
        """Make what an anonymous visitor did the user's: events and lists kept so far. Sending it again is safe."""
        try:
            check_anonymous(body.anonymous_id, user_id)
        except FeedbackError as error:
            raise ProblemError(422, str(error)) from error
        return ClaimResponse(events=await _from_store(claimed, body.anonymous_id, user_id))


def add_user_routes(router: APIRouter, variants: "Variants") -> None:
    """What a user may ask for: a copy of what is kept, and to be forgotten."""

    @router.get("/v1/users/{user_id:path}/data")
    async def user_data(user_id: PathId) -> UserData:
        """Events, impressions and profile of one user."""
        return UserData(**await _from_store(variants.champion.users.data, user_id))

    @router.delete("/v1/users/{user_id:path}", responses={405: PROBLEM})
    async def erase_user(user_id: PathId) -> Receipt:
        """Forget a user: unknown to every replica from the next read on. Sending it again is safe."""
        owner, _, part = user_id.rpartition("/")
        if owner and part in _PARTS:  # whoever means the user `owner` must get no receipt for another one
            raise ProblemError(
                405,
                f"DELETE /v1/users/{{id}} forgets a user whole; a user whose id ends in /{part} is erased by "
                "jobs.erase_user",
                headers={"Allow": _PARTS[part]},
            )
        receipt = await _from_store(lambda: variants.store.erase(variants.stored(user_id)))
        return Receipt(**to_dict(receipt))


async def _from_store(call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return await run_in_threadpool(call, *arguments)
    except (SQLAlchemyError, OSError) as error:
        raise ProblemError(503, "the event store failed; send the same again, what is done is not undone") from error

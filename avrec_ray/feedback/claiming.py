"""What an anonymous visitor did becomes a user's, once the visitor says who it is."""

import sqlalchemy as sa

from avrec_ray.errors import FeedbackError
from avrec_ray.feedback.database import both_locks
from avrec_ray.feedback.erased import Mark, marks
from avrec_ray.feedback.pseudonyms import Pseudonyms
from avrec_ray.feedback.tables import events, impressions
from avrec_ray.feedback.user_keys import require_writable

ANONYMOUS_PREFIX = "anonymous:"
"""Ids of visitors without an account begin so. Only these can be claimed: nobody may take over another user's past."""
_NEVER = Mark(0, 0, 0, True)


def check_anonymous(anonymous_id: str, user_id: str) -> None:
    """Raise FeedbackError unless the first is a visitor's id and the second is a user's."""
    if not anonymous_id.startswith(ANONYMOUS_PREFIX) or len(anonymous_id) == len(ANONYMOUS_PREFIX):
        raise FeedbackError(f"anonymous_id: expected an id that begins with {ANONYMOUS_PREFIX!r} and goes on")
    if user_id.startswith(ANONYMOUS_PREFIX):
        raise FeedbackError(f"user_id: expected a user's id, got one that begins with {ANONYMOUS_PREFIX!r}")


def claim(engine: sa.Engine, pseudonyms: Pseudonyms, anonymous: str, user: str) -> int:
    """See EventStore.claim; both are names as stored."""
    pseudonyms.check_name(user)
    visitor = pseudonyms.aliases(anonymous)
    with both_locks(engine) as connection:
        require_writable(connection, pseudonyms)
        erased = marks(connection, pseudonyms, (anonymous, user))
        of_visitor, of_user = erased.get(anonymous, _NEVER), erased.get(user, _NEVER)
        # What either of them had erased stays where it is: it waits to be removed, or must not come back.
        moved = 0
        for table, low in (
            (events, max(of_visitor.event_seq, of_user.event_seq)),
            (impressions, max(of_visitor.impression_seq, of_user.impression_seq)),
        ):
            theirs = (table.c.user_id.in_(visitor), table.c.seq > low, table.c.at_us > of_user.erased_us)
            changed = connection.execute(sa.update(table).where(*theirs).values(user_id=user)).rowcount
            moved += changed if table is events else 0
    return moved

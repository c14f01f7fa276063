"""Lineups and rollouts in the database of events: what gateways follow, and what was asked for and came of it."""

import json
import time
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from avrec_ray.dataclass_io import check_choice, check_range, from_dict, to_dict
from avrec_ray.errors import FeedbackError
from avrec_ray.feedback.database import ITEMS_LOCK, write
from avrec_ray.feedback.schema import open_engine
from avrec_ray.feedback.tables import lineups, rollouts
from avrec_ray.rollout.lineup import Lineup

ACTIONS = ("swap", "canary", "ab", "shadow", "interleave", "promote", "stop", "rollback")
"""What can be asked for. The first five bring a bundle; promote: the candidate of now serves everybody; stop: it goes;
rollback: the champion before serves again."""
BRINGS_BUNDLE = ACTIONS[:5]
OPEN = ("asked", "starting", "checking", "running")
ENDED = ("done", "refused", "taken_back", "failed", "stopped")


class LineupConflictError(FeedbackError):
    """Somebody else changed the lineup first; read it again."""


@dataclass(frozen=True)
class Numbered:
    """A lineup and its revision."""

    revision: int
    lineup: Lineup


@dataclass(frozen=True)
class Rollout:
    """One thing that was asked for."""

    seq: int
    action: str
    bundle: str
    """Folder of the bundle, or its reference in the registry."""
    origin: str
    """Who asked: "job", or "registry:<version>"."""
    share: float
    seconds: float
    state: str
    """One of OPEN or ENDED. taken_back: it served, and was not well."""
    detail: str
    """What was found, for people."""
    changed_at_seconds: float


class RolloutStore:
    """Safe for threads; many processes may open one store."""

    def __init__(self, url: str, busy_timeout_seconds: float = 10.0) -> None:
        """Raises as `EventStore` does."""
        self._engine = open_engine(url, busy_timeout_seconds)

    def current(self) -> Numbered | None:
        """The newest lineup; None before the first deployment. One indexed read."""
        query = sa.select(lineups.c.revision, lineups.c.body).order_by(lineups.c.revision.desc()).limit(1)
        with self._engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else Numbered(row.revision, from_dict(Lineup, json.loads(row.body)))

    def append(self, lineup: Lineup, after_revision: int) -> int:
        """Let `lineup` follow the one of that revision, 0 for none; returns its own. Durable when this returns.

        Raises:
            LineupConflictError: another one followed it already.
            StoreUnavailableError: nothing was kept.
        """
        values = {
            "revision": after_revision + 1,
            "body": json.dumps(to_dict(lineup), sort_keys=True),
            "at_us": round(time.time() * 1e6),
        }
        try:
            with write(self._engine, ITEMS_LOCK) as connection:
                newest = connection.execute(sa.select(sa.func.max(lineups.c.revision))).scalar_one() or 0
                if newest == after_revision:
                    connection.execute(sa.insert(lineups), values)
        except IntegrityError:
            newest = after_revision + 1
        if newest != after_revision:
            raise LineupConflictError(f"lineup {newest} came before the one that was to follow {after_revision}")
        return after_revision + 1

    def reasons(self, limit: int = 20) -> list[tuple[int, str, str]]:
        """Revision, champion's model_version and reason of the newest lineups, newest first."""
        query = sa.select(lineups.c.revision, lineups.c.body).order_by(lineups.c.revision.desc()).limit(limit)
        with self._engine.connect() as connection:
            found = [(row.revision, from_dict(Lineup, json.loads(row.body))) for row in connection.execute(query)]
        return [(revision, lineup.champion.model_version, lineup.reason) for revision, lineup in found]

    def ask(self, action: str, bundle: str = "", share: float = 0.0, seconds: float = 0.0, origin: str = "job") -> int:
        """Ask for a rollout; returns its number. The service's conductor takes it up.

        Raises:
            ConfigError: an unknown action, a share out of [0, 1], or a bundle that the action does not take.
        """
        check_choice("rollout.action", action, ACTIONS)
        check_range("rollout.share", share, 0, 1)
        check_range("rollout.seconds", seconds, 0)
        if bool(bundle) != (action in BRINGS_BUNDLE):
            raise FeedbackError(
                f"rollout: action {action!r} with bundle {bundle!r}; a bundle belongs to {', '.join(BRINGS_BUNDLE)}"
            )
        now_us = round(time.time() * 1e6)
        values = {
            "action": action, "bundle": bundle, "origin": origin, "share": share, "seconds": seconds,
            "state": "asked", "detail": "", "at_us": now_us, "changed_us": now_us,
        }  # fmt: skip
        with write(self._engine, ITEMS_LOCK) as connection:
            return int(connection.execute(sa.insert(rollouts).returning(rollouts.c.seq), values).scalar_one())

    def open_rollouts(self) -> list[Rollout]:
        """Those that have not ended, oldest first."""
        query = sa.select(rollouts).where(rollouts.c.state.in_(OPEN)).order_by(rollouts.c.seq)
        with self._engine.connect() as connection:
            return [_rollout(row) for row in connection.execute(query)]

    def rollout(self, seq: int) -> Rollout:
        """One of them. Raises FeedbackError where there is none of that number."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(rollouts).where(rollouts.c.seq == seq)).one_or_none()
        if row is None:
            raise FeedbackError(f"there is no rollout {seq}")
        return _rollout(row)

    def last_of_registry(self) -> str | None:
        """Version of the registry that was last taken up, whatever came of it."""
        query = sa.select(rollouts.c.origin).where(rollouts.c.origin.like("registry:%"))
        with self._engine.connect() as connection:
            origin = connection.execute(query.order_by(rollouts.c.seq.desc()).limit(1)).scalar_one_or_none()
        return None if origin is None else str(origin).partition(":")[2]

    def note(self, seq: int, state: str, detail: str | None = None) -> None:
        """Set where a rollout is; one that has ended stays as it is."""
        check_choice("rollout.state", state, (*OPEN, *ENDED))
        values: dict[str, object] = {"state": state, "changed_us": round(time.time() * 1e6)}
        values |= {} if detail is None else {"detail": detail[:2000]}
        with write(self._engine, ITEMS_LOCK) as connection:
            is_open = sa.and_(rollouts.c.seq == seq, rollouts.c.state.in_(OPEN))
            connection.execute(sa.update(rollouts).where(is_open), values)

    def close(self) -> None:
        """Close every connection; the store may be used again."""
        self._engine.dispose()


def _rollout(row: "sa.Row[tuple[object, ...]]") -> Rollout:
    return Rollout(
        row.seq, row.action, row.bundle, row.origin, row.share, row.seconds, row.state, row.detail, row.changed_us / 1e6
    )

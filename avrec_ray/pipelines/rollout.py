"""Ask a running service for another bundle, and tell what becomes of it."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from avrec_ray.bundle import load_metadata
from avrec_ray.config import JobConfig
from avrec_ray.errors import ConfigError, StageError
from avrec_ray.feedback.store import EventStore
from avrec_ray.pipelines.load_events import events_url
from avrec_ray.pipelines.stage import Loop
from avrec_ray.rollout.outcome import outcome_of
from avrec_ray.rollout.store import ACTIONS, BRINGS_BUNDLE, Rollout, RolloutStore

STATUS = "status"
_POLL_SECONDS = 0.3
_TAKEN_UP_SECONDS = 30.0


def run(loop: Loop, job: JobConfig, say: Callable[[str], None] = print) -> None:
    """Do `job.action`.

    Raises:
        ConfigError: an unknown action, or a bundle where none belongs.
        StageError: the service refused, took back or could not do it, or no service runs on this event store.
    """
    if job.action not in (*ACTIONS, STATUS):
        raise ConfigError(f"action={job.action!r}; expected one of {', '.join((*ACTIONS, STATUS))}")
    store = RolloutStore(events_url(loop, job), job.feedback.busy_timeout_seconds)
    try:
        if job.action == STATUS:
            tell_status(store, say)
            _tell_outcome(store, events_url(loop, job), job, say)
            return
        bundle = _reference(loop, job)
        seq = store.ask(job.action, bundle, job.share, job.seconds)
        _tell_end(_followed(store, seq, job.rollout.start_seconds + 120, say), say)
    finally:
        store.close()


def tell_status(store: RolloutStore, say: Callable[[str], None]) -> None:
    """What is served, what is under way, and how it came to this."""
    found = store.current()
    if found is None:
        raise StageError("no service was ever deployed on this event store; start one: python -m jobs.serve")
    lineup = found.lineup
    say(f"lineup {found.revision}: champion {lineup.champion.model_version} ({lineup.champion.bundle})")
    if lineup.candidate is not None:
        say(f"  {lineup.mode} for {lineup.share:.0%}: {lineup.candidate.model_version} ({lineup.candidate.bundle})")
    if lineup.previous is not None:
        say(f"  rollback goes to {lineup.previous.model_version}")
    for rollout in store.open_rollouts():
        say(f"rollout {rollout.seq}: {rollout.action}, {rollout.state}: {rollout.detail}")
    for revision, model_version, reason in store.reasons(5):
        say(f"{revision:>6}  {model_version}  {reason}")


def _tell_outcome(store: RolloutStore, url: str, job: JobConfig, say: Callable[[str], None]) -> None:
    """How users answered champion and candidate since the candidate came."""
    found = store.current()
    assert found is not None
    running = [rollout for rollout in store.open_rollouts() if rollout.state == "running"]
    if found.lineup.candidate is None or not running:
        return
    since = running[0].changed_at_seconds
    versions = found.lineup.champion.model_version, found.lineup.candidate.model_version
    events = EventStore(url, job.feedback.busy_timeout_seconds)
    try:
        impressions, _ = events.export_impressions()
        joined, _ = events.export_joined()
    finally:
        events.close()
    say(
        f"since {datetime.fromtimestamp(since, UTC):%Y-%m-%d %H:%M:%S} UTC: "
        + str(outcome_of(impressions, joined, versions, since))
    )


def _reference(loop: Loop, job: JobConfig) -> str:
    """What the conductor opens: a version of the registry, never an alias that may move meanwhile, or a folder."""
    if job.action not in BRINGS_BUNDLE:
        if job.bundle:
            raise ConfigError(f"action={job.action} takes no bundle, got bundle={job.bundle!r}")
        return ""
    if not job.bundle:
        raise ConfigError(f"action={job.action} needs bundle=<folder>, or bundle=models:/<name>/<version>")
    if job.bundle.endswith("@champion"):
        champion = loop.tracking.champion()
        if champion is None:
            raise StageError("there is no champion yet; promote one: python -m jobs.promote version=<n>")
        return champion.reference
    if job.bundle.startswith("models:/"):
        return job.bundle
    load_metadata(job.bundle)
    return str(Path(job.bundle).resolve())


def _followed(store: RolloutStore, seq: int, most_seconds: float, say: Callable[[str], None]) -> Rollout:
    """The rollout when it has ended, or serves as a candidate."""
    started, told = time.monotonic(), ""
    while True:
        rollout = store.rollout(seq)
        if (line := f"{rollout.state}: {rollout.detail}") != told and rollout.state != "asked":
            say(f"rollout {seq} {line}")
            told = line
        if rollout.state not in ("asked", "starting", "checking"):
            return rollout
        waited = time.monotonic() - started
        if rollout.state == "asked" and waited > _TAKEN_UP_SECONDS and len(store.open_rollouts()) == 1:
            raise StageError(f"nobody took rollout {seq} up: does a service run on this event store?")
        if waited > most_seconds:
            raise StageError(f"rollout {seq} is still {line}; ask again with action=status")
        time.sleep(_POLL_SECONDS)


def _tell_end(rollout: Rollout, say: Callable[[str], None]) -> None:
    if rollout.state in ("refused", "taken_back", "failed"):
        raise StageError(f"rollout {rollout.seq} was {rollout.state.replace('_', ' ')}: {rollout.detail}")
    if rollout.state == "running":
        say("it runs as a candidate; action=status tells how it goes, action=promote or action=stop ends it")

"""The conductor: takes a bundle from "asked for" to serving, step by step, each of which a crash may repeat.

asked -> starting (its replicas start beside the others) -> checking (it answers for users of late) -> done, or running
as a candidate -> done, taken_back or stopped. Where each rollout stands is in the database, so a conductor that is
started again goes on; while there is none, what is served goes on being served.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from avrec_ray.bundle import load_catalogue, load_metadata
from avrec_ray.errors import AvrecError, FeedbackError
from avrec_ray.rollout.config import RolloutConfig
from avrec_ray.rollout.lineup import Arm, Lineup
from avrec_ray.rollout.replay import Probe, replayed
from avrec_ray.rollout.store import BRINGS_BUNDLE, LineupConflictError, Numbered, Rollout, RolloutStore

logger = logging.getLogger(__name__)

_SURELY_WORSE = 0.005


class Apps(Protocol):
    """Applications of bundles, as the conductor handles them."""

    def name(self, model_version: str) -> str:
        """Of a bundle's application under the settings of now."""
        ...

    def names(self) -> list[str]:
        """Of all bundles' applications that are there."""
        ...

    def start(self, arm: Arm) -> None:
        """Begin to start one; returns at once."""
        ...

    def state(self, app: str) -> str:
        """ "missing", "starting", "running", or "failed: ..." ."""
        ...

    def lists(self, app: str, probes: Sequence[Probe]) -> list[list[str]]:
        """Its list for each probe. Raises whatever its models raise."""
        ...

    def delete(self, app: str) -> None:
        """Begin to take one down; returns at once."""
        ...


class Conductor:
    """One step at a time, by `tick`."""

    def __init__(
        self,
        store: RolloutStore,
        apps: Apps,
        cfg: RolloutConfig,
        resolve: Callable[[str], Path],
        probes: Callable[[set[str]], list[Probe]],
        registered: Callable[[], tuple[str, str] | None] = lambda: None,
    ) -> None:
        """
        Args:
            resolve: folder of a bundle from its folder or reference.
            probes: what to ask a candidate, of items that are in both catalogues.
            registered: version and model_version of the registry's champion.
        """
        self._store, self._apps, self._cfg = store, apps, cfg
        self._resolve, self._probes, self._registered = resolve, probes, registered
        self._looked_at = self._tidied_at = -1e9
        self._asked_for: set[str] = set()
        self._unused_since: dict[str, float] = {}
        self._down_since: dict[str, float] = {}

    def tick(self) -> None:
        """Do what can be done now."""
        now = self._store.current()
        if now is None:
            return
        self._follow_registry(now.lineup)
        asked = self._next()
        # Serve's controller is asked often only while something is under way: it has others to look after.
        if not asked and time.monotonic() - self._tidied_at < self._cfg.idle_seconds:
            return
        self._tidied_at = time.monotonic()
        self._keep_running(now.lineup)
        self._follow_settings(now.lineup)
        for rollout in asked:
            try:
                self._step(rollout)
            except LineupConflictError:
                logger.info("the lineup changed meanwhile; rollout %d is looked at again", rollout.seq)
            except AvrecError as error:
                self._store.note(rollout.seq, "failed", str(error))
        self._tidy()

    def _next(self) -> list[Rollout]:
        """What was asked for of the running ones, then the bundle that comes first."""
        asked = self._store.open_rollouts()
        orders = [rollout for rollout in asked if rollout.action not in BRINGS_BUNDLE]
        return orders + [rollout for rollout in asked if rollout.action in BRINGS_BUNDLE][:1]

    def _step(self, rollout: Rollout) -> None:
        now = self._store.current()
        assert now is not None
        if rollout.action not in BRINGS_BUNDLE:
            self._order(rollout, now)
        elif rollout.state == "asked":
            self._start(rollout, now.lineup)
        elif rollout.state == "starting":
            self._await(rollout)
        elif rollout.state == "checking":
            self._check(rollout, now)
        else:
            self._watch(rollout, now)

    def _order(self, rollout: Rollout, now: Numbered) -> None:
        after = _ordered(rollout.action, now.lineup)
        self._store.append(after, now.revision)
        self._store.note(rollout.seq, "done", after.reason)

    def _arm(self, rollout: Rollout) -> Arm:
        bundle = self._resolve(rollout.bundle)
        metadata = load_metadata(bundle)
        name = self._apps.name(metadata.model_version)
        return Arm(model_version=metadata.model_version, bundle=str(bundle), app=name)

    def _start(self, rollout: Rollout, lineup: Lineup) -> None:
        arm = self._arm(rollout)
        if arm.app == lineup.champion.app:
            self._store.note(rollout.seq, "done", f"{arm.model_version} serves already")
            return
        if self._apps.state(arm.app) == "missing":
            self._apps.start(arm)
        self._store.note(rollout.seq, "starting", f"{arm.model_version}: replicas start")

    def _await(self, rollout: Rollout) -> None:
        arm = self._arm(rollout)
        state = self._apps.state(arm.app)
        if state == "running":
            self._store.note(rollout.seq, "checking", f"{arm.model_version}: asked for lists")
        elif state.startswith("failed"):
            self._store.note(rollout.seq, "failed", f"{arm.model_version}: {state}")
        elif time.time() - rollout.changed_at_seconds > self._cfg.start_seconds:
            self._store.note(
                rollout.seq, "failed",
                f"{arm.model_version}: replicas were not up after {self._cfg.start_seconds:.0f} s "
                "(rollout.start_seconds); is there room for a second set of models?",
            )  # fmt: skip

    def _check(self, rollout: Rollout, now: Numbered) -> None:
        arm, lineup = self._arm(rollout), now.lineup
        detail, reason = self._compared(arm, lineup.champion)
        if reason:
            self._store.note(rollout.seq, "refused", f"{arm.model_version}: {reason}; {detail}")
        elif rollout.action == "swap":
            self._store.append(lineup.promoted(arm, f"{arm.model_version} swapped in: {detail}"), now.revision)
            self._store.note(rollout.seq, "done", f"{arm.model_version}: {detail}")
        else:
            reason = f"{arm.model_version} as {rollout.action} for {rollout.share:.0%}: {detail}"
            self._store.append(lineup.challenged(arm, rollout.action, rollout.share, reason), now.revision)
            self._store.note(rollout.seq, "running", f"{arm.model_version}: {detail}")

    def _compared(self, arm: Arm, champion: Arm) -> tuple[str, str]:
        """What was found, and why the candidate is refused; empty: it is not."""
        known = set(load_catalogue(arm.bundle).item_ids) & set(load_catalogue(champion.bundle).item_ids)
        probes = self._probes(known)
        try:
            mine = self._apps.lists(arm.app, probes)
        except Exception as error:  # whatever a model raises speaks against it
            return "", f"it does not answer ({type(error).__name__}: {str(error).splitlines()[0][:300]})"
        if empty := sum(not items for items in mine):
            return "", f"{empty} of {len(mine)} of its lists are empty"
        try:
            others = self._apps.lists(champion.app, probes)
        except Exception as error:
            # A champion that does not answer must not keep the bundle away that replaces it.
            return f"{len(probes)} probes answered; the champion did not answer ({type(error).__name__})", ""
        found = replayed(probes, others, mine)
        if found.agreement < self._cfg.min_agreement:
            return str(found), f"its lists agree with the champion's less than {self._cfg.min_agreement}"
        if found.p_worse < _SURELY_WORSE:
            return str(found), "the champion finds what users chose of late surely more often"
        return str(found), ""

    def _watch(self, rollout: Rollout, now: Numbered) -> None:
        """A candidate that is there: taken back by a gateway, or through with its time."""
        arm, lineup = self._arm(rollout), now.lineup
        if lineup.candidate is None or lineup.candidate.app != arm.app:
            promoted, stopped = lineup.champion.app == arm.app, lineup.reason.endswith(("stopped", "promoted"))
            is_order = stopped or lineup.reason.startswith("rollback")
            state = "done" if promoted else "stopped" if is_order else "taken_back"
            self._store.note(rollout.seq, state, f"{arm.model_version}: {lineup.reason}")
            return
        if reason := self._down(arm):
            self._store.append(lineup.without_candidate(reason), now.revision)
            self._store.note(rollout.seq, "taken_back", f"{arm.model_version}: {reason}")
            return
        seconds = rollout.seconds or (self._cfg.canary_seconds if rollout.action == "canary" else 0.0)
        if not seconds or time.time() - rollout.changed_at_seconds < seconds:
            return
        if rollout.action == "canary":
            after = lineup.promoted(arm, f"canary {arm.model_version} was well for {seconds:.0f} s")
        else:
            after = lineup.without_candidate(f"{rollout.action} of {arm.model_version} ended after {seconds:.0f} s")
        self._store.append(after, now.revision)
        self._store.note(rollout.seq, "done", f"{arm.model_version}: {after.reason}")

    def _down(self, arm: Arm) -> str:
        """Why a candidate must go whose replicas are gone, which gateways that cannot ask it do not see; else empty."""
        state = self._apps.state(arm.app)
        if state == "running":
            self._down_since.pop(arm.app, None)
            return ""
        seconds = time.monotonic() - self._down_since.setdefault(arm.app, time.monotonic())
        if seconds <= self._cfg.down_seconds:
            return ""
        del self._down_since[arm.app]
        return f"its replicas were not up for {seconds:.0f} s ({state})"

    def _keep_running(self, lineup: Lineup) -> None:
        """Applications that the lineup names and the cluster lacks: after a restart, or somebody's `serve delete`."""
        for arm in lineup.arms:
            if arm is not lineup.previous and self._apps.state(arm.app) == "missing":
                self._apps.start(arm)

    def _follow_settings(self, lineup: Lineup) -> None:
        """Deployed with other settings than the champion runs with: the same bundle is swapped in with these."""
        champion = lineup.champion
        wanted = self._apps.name(champion.model_version)
        if champion.app != wanted and wanted not in self._asked_for:  # once: what fails once would fail for ever
            self._asked_for.add(wanted)
            self._store.ask("swap", champion.bundle, origin="settings")

    def _follow_registry(self, lineup: Lineup) -> None:
        if time.monotonic() - self._looked_at < self._cfg.registry_poll_seconds:
            return
        self._looked_at = time.monotonic()
        found = self._registered()
        if found is None or self._store.last_of_registry() == found[0]:
            return
        version, model_version = found
        reference = f"models:{version}"
        action = "canary" if self._cfg.canary_share else "swap"
        seq = self._store.ask(action, reference, self._cfg.canary_share, origin=f"registry:{version}")
        if model_version == lineup.champion.model_version:
            self._store.note(seq, "done", f"{model_version} serves already")

    def _tidy(self) -> None:
        """Take down applications that neither the lineup nor an open rollout names, some time after the last use."""
        now = self._store.current()
        assert now is not None
        used = {arm.app for arm in now.lineup.arms}
        for rollout in self._store.open_rollouts():
            if rollout.state in ("starting", "checking"):
                used.add(self._arm(rollout).app)
        for app in self._apps.names():
            if app in used:
                self._unused_since.pop(app, None)
            elif time.monotonic() - self._unused_since.setdefault(app, time.monotonic()) > self._cfg.linger_seconds:
                self._apps.delete(app)
                del self._unused_since[app]


def _ordered(action: str, lineup: Lineup) -> Lineup:
    """promote, stop, rollback: a change of the lineup alone. Raises FeedbackError where there is nothing to change."""
    if action == "rollback":
        if lineup.previous is None:
            raise FeedbackError("there is no champion before this one to go back to")
        return lineup.promoted(lineup.previous, f"rollback to {lineup.previous.model_version}")
    if lineup.candidate is None:
        raise FeedbackError(f"there is no candidate to {action}")
    if action == "promote":
        return lineup.promoted(lineup.candidate, f"candidate {lineup.candidate.model_version} promoted")
    return lineup.without_candidate(f"candidate {lineup.candidate.model_version} stopped")

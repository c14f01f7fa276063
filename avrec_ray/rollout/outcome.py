"""What users made of each variant: choices a list by variant, compared over users, and who wins mixed lists."""

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import stdtr, stdtrit

from avrec_ray.rollout.interleaving import Preference, preference
from avrec_ray.rollout.lineup import CANDIDATE, CHAMPION
from avrec_ray.types import POSITIVE_EVENTS


@dataclass(frozen=True)
class Side:
    """One variant's users."""

    num_users: int
    num_lists: int
    choices_per_list: float
    """Mean over users of chosen items a list."""


@dataclass(frozen=True)
class Outcome:
    """Champion and candidate since some moment."""

    champion: Side
    candidate: Side
    difference: float
    """Candidate's choices a list less the champion's."""
    low: float
    high: float
    """95 % interval of the difference, by Welch; infinite with fewer than two users on a side."""
    p_value: float
    mixed: Preference | None
    """Lists that held items of both; None where there were none."""

    def __str__(self) -> str:
        sides = ", ".join(
            f"{name} {side.choices_per_list:.3f} choices a list ({side.num_users} users, {side.num_lists} lists)"
            for name, side in (("champion", self.champion), ("candidate", self.candidate))
        )
        said = f"{sides}, difference {self.difference:+.3f} [{self.low:+.3f}, {self.high:+.3f}], p {self.p_value:.3f}"
        if self.mixed is not None:
            won = self.mixed
            said += f"; mixed lists: candidate wins {won.candidate_wins}, champion {won.champion_wins}, ties {won.ties}"
            said += f" (p {won.p_candidate_better:.3f} for the candidate)"
        return said


def outcome_of(impressions: pa.Table, joined: pa.Table, versions: tuple[str, str], since_seconds: float) -> Outcome:
    """Compare two bundles from what was shown and what was answered.

    Args:
        impressions: rows of `EventStore.export_impressions`.
        joined: rows of `EventStore.export_joined`, of the same time at least.
        versions: model_version of champion and candidate; lists of others do not count.
        since_seconds: POSIX time; what was shown before does not count.
    """
    shown = _since(impressions, "at", versions, since_seconds)
    answers = _since(joined, "shown_at", versions, since_seconds)
    chosen = answers.filter(pc.is_in(answers["event"], pa.array(sorted(POSITIVE_EVENTS))))
    pairs = set(zip(*(chosen[name].to_pylist() for name in ("request_id", "item_id", "variant")), strict=True))
    choices = Counter(request_id for request_id, _, _ in pairs)
    lists: dict[str, tuple[str, str]] = {}
    mixed: set[str] = set()
    for request_id, user_id, variant in zip(
        *(shown[name].to_pylist() for name in ("request_id", "user_id", "variant")), strict=True
    ):
        if lists.setdefault(request_id, (variant, user_id))[0] != variant:
            mixed.add(request_id)
    sides = {v: _by_user(lists, choices, mixed, v) for v in (CHAMPION, CANDIDATE)}
    difference, low, high, p_value = _welch(sides[CANDIDATE][1], sides[CHAMPION][1])
    picked: dict[str, list[str]] = {request_id: [] for request_id in mixed}
    for request_id, _, variant in pairs:
        if request_id in mixed:
            picked[request_id].append(variant)
    return Outcome(
        champion=sides[CHAMPION][0], candidate=sides[CANDIDATE][0], difference=difference, low=low, high=high,
        p_value=p_value, mixed=preference(picked) if mixed else None,
    )  # fmt: skip


def _since(table: pa.Table, column: str, versions: tuple[str, str], since_seconds: float) -> pa.Table:
    at_us = pc.cast(table[column], pa.int64())
    wanted = pc.is_in(table["model_version"], pa.array(versions))
    return table.filter(pc.and_(wanted, pc.greater_equal(at_us, pa.scalar(round(since_seconds * 1e6)))))


def _by_user(
    lists: dict[str, tuple[str, str]], choices: Counter[str], mixed: set[str], variant: str
) -> tuple[Side, npt.NDArray[np.float64]]:
    """A user counts once, however many lists: lists of one user are no independent draws."""
    found: dict[str, list[int]] = defaultdict(list)
    for request_id, (shown, user_id) in lists.items():
        if shown == variant and request_id not in mixed:
            found[user_id].append(choices[request_id])
    rates = np.array([np.mean(counts) for counts in found.values()], np.float64)
    num_lists = sum(map(len, found.values()))
    return Side(len(rates), num_lists, float(rates.mean()) if len(rates) else 0.0), rates


def _welch(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Difference of means, its 95 % interval and the p value of none (Welch, Biometrika 1947)."""
    difference = float((a.mean() if len(a) else 0.0) - (b.mean() if len(b) else 0.0))
    if min(len(a), len(b)) < 2:
        return difference, -np.inf, np.inf, 1.0
    parts = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    error = float(np.sqrt(sum(parts)))
    if not error:
        return difference, difference, difference, 1.0 if not difference else 0.0
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1))
    width = float(stdtrit(freedom, 0.975)) * error
    return difference, difference - width, difference + width, float(2 * stdtr(freedom, -abs(difference) / error))

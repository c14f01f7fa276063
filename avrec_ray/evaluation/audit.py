"""Who is shown, and who is served well: exposure of item groups against their merit, quality of user groups.

Exposure of a place is the chance that it is looked at, 1 / log2(1 + rank), as in NDCG (Singh & Joachims, Fairness of
Exposure in Rankings, KDD 2018). Merit of a group is its share of what users went on to choose.

Dimension key: U users, K list length, N catalogue, G groups, S bootstrap samples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from avrec_ray.dataclass_io import check_range
from avrec_ray.evaluation.metrics import Floats, Ranked, discounts

_SAMPLES_AT_ONCE = 50
Groups = npt.NDArray[np.int64]
"""Group of each item or user, -1 where it has none."""


@dataclass(kw_only=True)
class AuditConfig:
    """When a difference between groups is a finding: the whole interval must lie beyond the limit."""

    k: int = 10
    """Places of a list that count."""
    min_exposure_ratio: float = 0.5
    """Least exposure of an item group as a multiple of its merit."""
    max_exposure_ratio: float = 2.0
    max_quality_gap: float = 0.1
    """Largest difference in NDCG between a user group and everybody else."""
    min_choices: int = 30
    """Item groups with fewer held-out choices, and user groups with fewer users, are listed but not judged."""
    num_samples: int = 500
    """Bootstrap samples of an interval."""

    def __post_init__(self) -> None:
        check_range("evaluation.audit.k", self.k, 1)
        check_range("evaluation.audit.min_exposure_ratio", self.min_exposure_ratio, 0.0, 1.0)
        check_range("evaluation.audit.max_exposure_ratio", self.max_exposure_ratio, 1.0)
        check_range("evaluation.audit.max_quality_gap", self.max_quality_gap, 0.0, 1.0)
        check_range("evaluation.audit.min_choices", self.min_choices, 1)
        check_range("evaluation.audit.num_samples", self.num_samples, 50)


@dataclass(frozen=True)
class GroupFinding:
    """One group: what it gets, the 95 % interval, and whether that is within the limits."""

    kind: str
    """What the groups are: "category", "creator_id", a user attribute ..."""
    group: str
    size: int
    """Items or users in it."""
    value: float
    """Item groups: exposure as a multiple of merit. User groups: NDCG minus that of all other users."""
    low: float
    high: float
    share: float
    """Item groups: share of all exposure. User groups: share of all users."""
    expected: float
    """Item groups: share of held-out choices. User groups: NDCG of all other users."""
    judged: bool
    within: bool


def audit_items(
    ranked: Ranked,
    targets: Sequence[npt.NDArray[np.int64]],
    kind: str,
    group_of_item: Groups,
    names: Sequence[str],
    cfg: AuditConfig,
    seed: int = 0,
) -> list[GroupFinding]:
    """Exposure of each item group in lists [U, K] against its share of the users' held-out choices.

    Users are resampled for the intervals, so groups that few users chose have wide ones.
    """
    exposure_UG = _exposure(ranked[:, : cfg.k], group_of_item, len(names))
    merit_UG = _counts(targets, group_of_item, len(names))
    ratios_SG = np.concatenate(
        [_ratio(weights @ exposure_UG, weights @ merit_UG) for weights in _resampled(len(ranked), cfg, seed)]
    )
    low, high = _percentiles(ratios_SG)
    shown, chosen = exposure_UG.sum(0), merit_UG.sum(0)
    values = _ratio(shown[None], chosen[None])[0]
    sizes = np.bincount(group_of_item[group_of_item >= 0], minlength=len(names))
    findings = []
    for group, name in enumerate(names):
        judged = bool(chosen[group] >= cfg.min_choices)
        beyond = low[group] > cfg.max_exposure_ratio or high[group] < cfg.min_exposure_ratio
        shares = float(shown[group] / max(shown.sum(), 1e-12)), float(chosen[group] / max(chosen.sum(), 1e-12))
        bounds = float(values[group]), float(low[group]), float(high[group])
        within = not (judged and beyond)
        findings.append(GroupFinding(kind, name, int(sizes[group]), *bounds, *shares, judged, within))
    return findings


def audit_users(
    per_user: Floats, kind: str, group_of_user: Groups, names: Sequence[str], cfg: AuditConfig, seed: int = 0
) -> list[GroupFinding]:
    """Quality of each user group, `per_user` [U] such as NDCG, against that of all other users."""
    member_UG = np.stack([group_of_user == group for group in range(len(names))], 1).astype(np.float64)
    gaps_SG = np.concatenate([_gap(weights, member_UG, per_user) for weights in _resampled(len(per_user), cfg, seed)])
    low, high = _percentiles(gaps_SG)
    values = _gap(np.ones((1, len(per_user))), member_UG, per_user)[0]
    findings = []
    for group, name in enumerate(names):
        size = int(member_UG[:, group].sum())
        judged = cfg.min_choices <= size <= len(per_user) - cfg.min_choices
        others = per_user[member_UG[:, group] == 0]
        beyond = low[group] > cfg.max_quality_gap or high[group] < -cfg.max_quality_gap
        bounds = float(values[group]), float(low[group]), float(high[group])
        expected = float(others.mean()) if len(others) else float("nan")
        share, within = size / max(len(per_user), 1), not (judged and beyond)
        findings.append(GroupFinding(kind, name, size, *bounds, share, expected, judged, within))
    return findings


def group_codes(values: Sequence[str | None]) -> tuple[Groups, list[str]]:
    """Numbers and names of the distinct values, in order of name; None is in no group.

    >>> codes, names = group_codes(["b", None, "a", "b"])
    >>> codes.tolist(), names
    ([1, -1, 0, 1], ['a', 'b'])
    """
    names = sorted({value for value in values if value is not None})
    number = {name: code for code, name in enumerate(names)}
    return np.array([-1 if value is None else number[value] for value in values], np.int64), names


def popularity_groups(popularity: npt.NDArray[np.floating]) -> tuple[Groups, list[str]]:
    """Items that took the first 20 %, the next 60 % and the last 20 % of all choices, and those nobody chose."""
    order = np.argsort(-popularity, kind="stable")
    before = np.cumsum(popularity[order]) - popularity[order]
    share = before / max(float(popularity.sum()), 1e-12)
    codes = np.empty(len(popularity), np.int64)
    codes[order] = np.searchsorted(np.array([0.2, 0.8]), share, side="right")
    codes[popularity <= 0] = 3
    return codes, ["head", "middle", "tail", "cold"]


def _exposure(ranked: Ranked, group_of_item: Groups, num_groups: int) -> Floats:
    """Exposure [U, G] that each user's list gives each group."""
    weights = np.broadcast_to(discounts(ranked.shape[1]), ranked.shape)
    group = np.where(ranked >= 0, group_of_item[np.maximum(ranked, 0)], -1)
    users = np.broadcast_to(np.arange(len(ranked))[:, None], ranked.shape)
    kept = group >= 0
    flat = np.bincount(users[kept] * num_groups + group[kept], weights[kept], len(ranked) * num_groups)
    return np.asarray(flat.reshape(len(ranked), num_groups))


def _counts(targets: Sequence[npt.NDArray[np.int64]], group_of_item: Groups, num_groups: int) -> Floats:
    users = np.repeat(np.arange(len(targets)), [len(target) for target in targets])
    group = group_of_item[np.concatenate(list(targets))] if len(targets) else np.zeros(0, np.int64)
    kept = group >= 0
    flat = np.bincount(users[kept] * num_groups + group[kept], minlength=len(targets) * num_groups)
    return flat.reshape(len(targets), num_groups).astype(np.float64)


def _ratio(shown_SG: Floats, chosen_SG: Floats) -> Floats:
    """Share of exposure over share of choices; NaN where a group was not chosen."""
    shown = shown_SG / np.maximum(shown_SG.sum(1, keepdims=True), 1e-12)
    chosen = chosen_SG / np.maximum(chosen_SG.sum(1, keepdims=True), 1e-12)
    return np.where(chosen > 0, shown / np.maximum(chosen, 1e-12), np.nan)


def _gap(weights_SU: Floats, member_UG: Floats, per_user: Floats) -> Floats:
    """Weighted mean inside each group minus that outside, [S, G]; NaN where either is empty."""
    inside, total = weights_SU @ member_UG, weights_SU.sum(1, keepdims=True)
    gained = weights_SU @ (member_UG * per_user[:, None])
    rest, rest_gained = total - inside, (weights_SU @ per_user)[:, None] - gained
    both = (inside > 0) & (rest > 0)
    return np.where(both, gained / np.maximum(inside, 1) - rest_gained / np.maximum(rest, 1), np.nan)


def _resampled(num_users: int, cfg: AuditConfig, seed: int) -> Iterator[Floats]:
    """How often each user is drawn, [S, U] in parts that bound memory."""
    rng = np.random.default_rng(seed)
    chances = np.full(num_users, 1 / max(num_users, 1))
    for done in range(0, cfg.num_samples, _SAMPLES_AT_ONCE):
        size = min(_SAMPLES_AT_ONCE, cfg.num_samples - done)
        yield rng.multinomial(num_users, chances, size).astype(np.float64)


def _percentiles(samples_SG: Floats) -> tuple[Floats, Floats]:
    """2.5 and 97.5 % of each column; a column without any number gives NaN, which is beyond no limit."""
    known = ~np.isnan(samples_SG).all(0)
    bounds = np.full((2, samples_SG.shape[1]), np.nan)
    bounds[:, known] = np.nanpercentile(samples_SG[:, known], [2.5, 97.5], axis=0)
    return bounds[0], bounds[1]

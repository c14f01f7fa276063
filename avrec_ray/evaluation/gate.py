"""May a candidate be served: not worse than the champion on any agreed slice, and healthy in itself.

Dimension key: U users, N catalogue, D embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from avrec_ray.dataclass_io import check_range
from avrec_ray.evaluation.audit import GroupFinding
from avrec_ray.evaluation.metrics import Floats
from avrec_ray.evaluation.significance import bootstrap_interval


@dataclass(kw_only=True)
class GateConfig:
    """What a candidate must pass."""

    metric: str = "ndcg_at_10"
    """Per-user metric on which candidate and champion are compared."""
    slices: list[str] = field(default_factory=lambda: ["all", "cold_items", "warm_items", "new_users", "tail_items"])
    """Slices on which the candidate must not be worse: "all", "cold_items", "category_music", "gender_F", any that the
    report lists. Those that the data lacks, or with fewer than `min_users`, are not judged, and the verdict says so."""
    min_users: int = 30
    level: float = 0.95
    """Confidence over all slices together: each slice gets its share (Bonferroni)."""
    min_index_recall: float = 0.95
    """Least recall of the index at 100 against exact search."""
    max_mean_cosine: float = 0.9
    """Largest mean cosine between embeddings of different items; above it they have collapsed into one direction."""
    min_effective_rank: float = 4.0
    """Fewest directions that the embeddings use."""
    audit_blocks: bool = False
    """Whether findings of the audit refuse a candidate, or are only written to its verdict."""

    def __post_init__(self) -> None:
        check_range("evaluation.gate.min_users", self.min_users, 2)
        check_range("evaluation.gate.level", self.level, 0.5, 0.9999)
        check_range("evaluation.gate.min_index_recall", self.min_index_recall, 0.0, 1.0)
        check_range("evaluation.gate.max_mean_cosine", self.max_mean_cosine, 0.0, 1.0)
        check_range("evaluation.gate.min_effective_rank", self.min_effective_rank, 1.0)


@dataclass(frozen=True)
class Check:
    """One condition, with what was found."""

    name: str
    passed: bool
    found: str
    blocks: bool = True
    """A failed check that does not block is a remark."""


@dataclass(frozen=True)
class Verdict:
    """Whether the candidate may become champion, and why."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """True where no blocking check failed."""
        return all(check.passed or not check.blocks for check in self.checks)

    @property
    def reasons(self) -> list[str]:
        """What refused it."""
        return [f"{check.name}: {check.found}" for check in self.checks if check.blocks and not check.passed]

    def lines(self) -> list[str]:
        """For the terminal and for the registry."""
        marks = {(True, True): "pass", (True, False): "pass", (False, True): "FAIL", (False, False): "note"}
        return [f"{marks[check.passed, check.blocks]}  {check.name}: {check.found}" for check in self.checks]


def check_slices(
    candidate: Mapping[str, Floats], champion: Mapping[str, Floats], cfg: GateConfig, seed: int = 0
) -> list[Check]:
    """One check a slice, from the metric of the same users under both models, [U] a slice.

    Fails where the paired interval of the difference lies below 0: the candidate is worse, and not by chance. A slice
    that cannot be judged is a remark, since not every data set has every slice.
    """
    judged = [name for name in cfg.slices if len(candidate.get(name, ())) >= cfg.min_users]
    level = 1 - (1 - cfg.level) / max(len(judged), 1)
    checks = []
    for name in cfg.slices:
        if name not in judged:
            checks.append(Check(f"not worse on {name}", False, _unjudged(name, candidate, cfg), blocks=False))
            continue
        difference = candidate[name] - champion[name]
        low, high = bootstrap_interval(difference, np.random.default_rng(seed), level=level)
        found = (
            f"{cfg.metric} {candidate[name].mean():.4f}, champion {champion[name].mean():.4f}, difference "
            f"{difference.mean():+.4f} [{low:+.4f}, {high:+.4f}] over {len(difference)} users"
        )
        checks.append(Check(f"not worse on {name}", high >= 0, found))
    return checks


def _unjudged(name: str, candidate: Mapping[str, Floats], cfg: GateConfig) -> str:
    if name not in candidate:
        return f"not judged: this data has no such slice, only {', '.join(sorted(candidate))}"
    return f"not judged: {len(candidate[name])} users, evaluation.gate.min_users is {cfg.min_users}"


def embedding_health(embeddings: npt.NDArray[np.float32], seed: int = 0) -> dict[str, float]:
    """Numbers that tell collapsed or broken embeddings [N, D] from healthy ones.

    `finite_share`, `min_norm`, `mean_cosine` over random pairs of different items, and `effective_rank`, the
    exponential of the entropy of the normalised singular values (Roy & Vetterli 2007), of a sample of 4,096 items.
    """
    finite = np.isfinite(embeddings).all(1)
    sample = embeddings[finite]
    rng = np.random.default_rng(seed)
    sample = sample[rng.permutation(len(sample))[:4096]].astype(np.float64)
    norms = np.linalg.norm(sample, axis=1)
    unit = sample / np.maximum(norms, 1e-12)[:, None]
    total, count = unit.sum(0), len(unit)
    mean_cosine = (total @ total - (unit * unit).sum()) / max(count * (count - 1), 1)
    singular = np.linalg.svd(sample, compute_uv=False) if count else np.zeros(1)
    weights = singular / max(singular.sum(), 1e-12)
    entropy = -(weights[weights > 0] * np.log(weights[weights > 0])).sum()
    return {
        "finite_share": float(finite.mean()),
        "min_norm": float(norms.min(initial=np.inf)),
        "mean_cosine": float(mean_cosine),
        "effective_rank": float(np.exp(entropy)),
    }


def check_health(health: Mapping[str, float], index_recall: float, cfg: GateConfig) -> list[Check]:
    """Checks of the embeddings and of the index."""
    cosine, rank = health["mean_cosine"], health["effective_rank"]
    return [
        Check("embeddings are finite", health["finite_share"] == 1.0, f"{health['finite_share']:.2%} of the items"),
        Check(
            "embeddings are spread",
            cosine <= cfg.max_mean_cosine and rank >= cfg.min_effective_rank,
            f"mean cosine {cosine:.3f} (at most {cfg.max_mean_cosine}), effective rank {rank:.1f} "
            f"(at least {cfg.min_effective_rank})",
        ),
        Check(
            "index finds what exact search finds",
            index_recall >= cfg.min_index_recall,
            f"recall at 100 {index_recall:.3f} (at least {cfg.min_index_recall})",
        ),
    ]


def check_popularity(popularity: npt.NDArray[np.floating], counts: npt.NDArray[np.integer]) -> Check:
    """The shares of choices [N] that a bundle ranks with are those of train and valid, `counts` [N], and no others.

    Shares of the whole log would tell what is about to be chosen.
    """
    wrong = ~np.isclose(popularity, counts / max(int(counts.sum()), 1), atol=1e-6)
    found = f"{wrong.sum()} of {len(counts)} items are counted otherwise than train and valid say"
    return Check("popularity knows nothing of test", not wrong.any(), found)


def check_audit(findings: Sequence[GroupFinding], cfg: GateConfig) -> list[Check]:
    """One check for each kind of group that was audited."""
    checks = []
    for kind in dict.fromkeys(finding.kind for finding in findings):
        judged = [finding for finding in findings if finding.kind == kind and finding.judged]
        beyond = [f"{f.group} {f.value:.2f} [{f.low:.2f}, {f.high:.2f}]" for f in judged if not f.within]
        found = "; ".join(beyond) if beyond else f"{len(judged)} groups within the limits"
        checks.append(Check(f"audit of {kind}", not beyond, found, blocks=cfg.audit_blocks))
    return checks

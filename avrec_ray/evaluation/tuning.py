"""Settings of baselines, chosen on the valid part: an untuned baseline flatters whatever stands beside it.

Dacrema et al., Are We Really Making Much Progress?, RecSys 2019: with tuned baselines most reported gains vanish.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from avrec_ray.dataclass_io import check_choice, check_range
from avrec_ray.evaluation.baselines import BASELINES, CONTENT_BASELINES, Baseline, rank_in_parts
from avrec_ray.evaluation.choices import Rows, Times
from avrec_ray.evaluation.rank_metrics import ndcg_at_k

Settings = Mapping[str, float | str]

_SIMILARITIES: list[Settings] = [
    {"similarity": "cosine", "shrinkage": 0.0},
    {"similarity": "cosine", "shrinkage": 20.0},
    {"similarity": "cosine", "shrinkage": 100.0},
    {"similarity": "jaccard", "shrinkage": 0.0},
]
GRIDS: dict[str, list[Settings]] = {
    "recent_popularity": [{"half_life_days": days} for days in (1.0, 7.0, 30.0, 90.0)],
    "last_item": _SIMILARITIES,
    "item_knn": _SIMILARITIES,
    "rp3beta": [{"scored_power": power} for power in (0.0, 0.25, 0.5, 0.75)],
    "session_knn": [{"step_decay": decay, "recency": recency} for decay in (0.8, 0.95) for recency in (0.6, 0.8)],
    "ease": [{"regularization": weight} for weight in (50.0, 100.0, 200.0, 500.0, 1000.0)],
    "ials": [{"regularization": weight, "alpha": alpha} for weight in (0.1, 1.0, 10.0) for alpha in (1.0, 10.0)],
}
"""What is tried for each baseline; those not named here have nothing to choose."""


@dataclass(kw_only=True)
class BaselinesConfig:
    """Which baselines are fitted, and how hard they are tried."""

    names: list[str] = field(default_factory=lambda: [*BASELINES, *CONTENT_BASELINES])
    """Keys of BASELINES and CONTENT_BASELINES."""
    tune: bool = True
    """Choose settings of GRIDS by NDCG at 10 on the valid part, fitted on train alone; false takes the defaults."""
    max_tuned_items: int = 4096
    """Larger catalogues take EASE's default: its time grows with the cube of the catalogue."""
    ease_max_bytes: int = 2**30
    """Largest matrix of EASE, 4 N^2 bytes; it is left out where it would need more."""
    max_text_words: int = 2048
    """Words that content_knn tells apart, the most frequent."""

    def __post_init__(self) -> None:
        for name in self.names:
            check_choice("evaluation.baselines.names", name, [*BASELINES, *CONTENT_BASELINES])
        check_range("evaluation.baselines.max_tuned_items", self.max_tuned_items, 0)
        check_range("evaluation.baselines.ease_max_bytes", self.ease_max_bytes, 4)
        check_range("evaluation.baselines.max_text_words", self.max_text_words, 1)


@dataclass(eq=False)
class Question:
    """What models may learn from, and what they are then asked. Item numbers are catalogue rows."""

    users: list[str]
    """Who is asked, [U]."""
    targets: list[Rows]
    """What each went on to choose."""
    seen: list[Rows]
    """What each met before, in order of time; no list holds it."""
    liked: list[Rows]
    """What each chose before, in order of time."""
    user_idx: Rows
    """Of the choices to learn from, [E]; numbers of the fitted users, not of `users`."""
    item_idx: Rows
    at_seconds: Times
    num_fitted_users: int
    num_items: int
    candidates: npt.NDArray[np.bool_] | None = None
    """[N] items that lists choose from; None: all."""

    def fit(self, baseline: Baseline) -> Baseline:
        """The baseline, fitted on the choices."""
        baseline.fit(self.user_idx, self.item_idx, self.at_seconds, self.num_fitted_users, self.num_items)
        return baseline

    def rank(self, baseline: Baseline, k: int) -> Rows:
        """Lists [U, k] of a fitted baseline, -1 where one is shorter."""
        return rank_in_parts(
            lambda part: baseline.score(self.liked[part]), self.seen, k, self.num_items, self.candidates
        )


def choose_settings(
    grid: Sequence[Settings], build: Callable[[Settings], Baseline], question: Question
) -> tuple[Settings, list[float]]:
    """The settings of the grid with the best NDCG at 10, the first of equals, and the figure of each.

    Args:
        build: a baseline of these settings, not yet fitted.
        question: about the valid part, to be learned from train alone.
    """
    found = [float(ndcg_at_k(question.rank(question.fit(build(s)), 10), question.targets, 10).mean()) for s in grid]
    return grid[int(np.argmax(found))], found

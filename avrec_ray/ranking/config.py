"""Settings of the reranker model and of its training."""

from dataclasses import dataclass, field

from avrec_ray.dataclass_io import check_choice, check_range
from avrec_ray.training.config import OptimConfig

TARGETS = ("choose", "like", "finish", "skip")
"""What the heads predict: any positive event, like/favorite/share, watched to the end, turned down."""


def default_target_weights() -> dict[str, float]:
    """Weight of each head in the final score."""
    return {"choose": 1.0, "like": 0.0, "finish": 0.0, "skip": 0.0}


@dataclass(kw_only=True)
class RerankerConfig:
    """Pairwise distance attention between user interests and item moments."""

    num_interests: int = 20
    """Most recent items of the history that take part."""
    hidden_dim: int = 32
    num_candidates: int = 100
    """Candidates of a query that are reranked, and on which the model is trained."""
    target_weights: dict[str, float] = field(default_factory=default_target_weights)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(epochs=20, batch_size=32, learning_rate=2e-3))
    queries_per_user: int = 4
    """At most this many of a user's held-out choices become training lists."""

    def __post_init__(self) -> None:
        check_range("reranker.num_interests", self.num_interests, 1)
        check_range("reranker.num_candidates", self.num_candidates, 2)
        for name in self.target_weights:
            check_choice("reranker.target_weights", name, TARGETS)

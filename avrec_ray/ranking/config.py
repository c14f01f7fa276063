"""Settings of the reranker model and of its training."""

from dataclasses import dataclass, field

from avrec_ray.dataclass_io import check_choice, check_range
from avrec_ray.errors import ConfigError
from avrec_ray.retrieval.config import NeighbourConfig
from avrec_ray.training.config import OptimConfig

TARGETS = ("choose", "like", "finish", "skip")
"""What the heads predict: any positive event, like/favorite/share, watched to the end, turned down."""

SCORES = {"matcher": 0, "taste": 4, "session": 5, "content": 6, "classes": 7}
"""What speaks for a candidate, and which context feature it is: the matcher, both tables of neighbours, content, and
what users of the same kind choose."""
NUM_CONTEXT = 9
"""Features of a candidate beyond its moments, see `lists.context_features`."""


def default_target_weights() -> dict[str, float]:
    """Weight of each head in the final score."""
    return {"choose": 1.0, "like": 0.0, "finish": 0.0, "skip": 0.0}


@dataclass(kw_only=True)
class ClassesConfig:
    """Kinds of users, see `user_classes`."""

    num_classes: int = 64
    """Of each start; 0: no score by classes. Of few users fewer are learned."""
    recency: float = 0.95
    """What a choice counts in telling a user's class, of that of the one after it: tastes change."""
    num_starts: int = 8
    """Fits from different beginnings, whose classes are pooled: what one took for chance another finds."""
    ridge: float = 0.5
    """Of tastes, in units of the items' deviation; higher keeps classes nearer to popularity."""
    evidence: float = 0.7
    """What a choice counts in telling a user's class; below 1, since choices of one session go together."""
    watch_evidence: float = 0.5
    """What the watched share of an item, chosen or skipped, counts in telling a user's class; 0: nothing."""
    watch_weight: float = 0.3
    """What it counts in learning what a class likes, against choices; 0: nothing."""
    rounds: int = 20
    """Of expectation maximisation; evidence counts in full from the middle on."""

    def __post_init__(self) -> None:
        check_range("reranker.classes.num_classes", self.num_classes, 0, 4096)
        check_range("reranker.classes.num_starts", self.num_starts, 1, 64)
        check_range("reranker.classes.ridge", self.ridge, 1e-3)
        check_range("reranker.classes.evidence", self.evidence, 0.01, 1)
        check_range("reranker.classes.recency", self.recency, 0.01, 1)
        check_range("reranker.classes.watch_evidence", self.watch_evidence, 0, 1)
        check_range("reranker.classes.watch_weight", self.watch_weight, 0, 100)
        check_range("reranker.classes.rounds", self.rounds, 1)


@dataclass(kw_only=True)
class RerankerConfig:
    """Pairwise distance attention between user interests and item moments."""

    num_interests: int = 20
    """Most recent items of the history that take part."""
    hidden_dim: int = 32
    taste: NeighbourConfig = field(default_factory=NeighbourConfig)
    """What the same users chose, in any order, asked with the whole history."""
    session: NeighbourConfig = field(default_factory=lambda: NeighbourConfig(step_decay=0.9, recency=0.8))
    """What users chose shortly before and after, asked with the newest choices."""
    classes: ClassesConfig = field(default_factory=ClassesConfig)
    """What users of the same kind choose."""
    scores: list[str] = field(default_factory=lambda: list(SCORES))
    """Keys of SCORES that are weighed; the others say who is a candidate, and no more."""
    cold_neighbours: int = 500
    """Items that speak for each item that nobody chose, as its content tells; 0: none do."""
    content_dim: int = 128
    """Numbers an item by which its content is compared with that of what a user chose."""
    popularity_half_life_days: float = 7.0
    """Recent popularity: a choice counts half for each so many days before the newest one of all."""
    num_candidates: int = 100
    """Candidates of a query that the matcher passes on, and among which the model is trained."""
    target_weights: dict[str, float] = field(default_factory=default_target_weights)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(epochs=8, batch_size=32, learning_rate=2e-3))
    candidates_per_step: int = 32
    """Candidates of a list that one training step looks at: all that the user met, the others drawn anew."""
    queries_per_user: int = 4
    """At most this many of a user's held-out choices become training lists."""
    held_out_share: float = 0.2
    """Share of the users whose lists are not trained on but decide after which epoch training stops."""

    def __post_init__(self) -> None:
        check_range("reranker.num_interests", self.num_interests, 1)
        for name in self.scores:
            check_choice("reranker.scores", name, SCORES)
        if not self.scores:
            raise ConfigError(f"reranker.scores is empty; expected at least one of {list(SCORES)}")
        check_range("reranker.cold_neighbours", self.cold_neighbours, 0)
        check_range("reranker.content_dim", self.content_dim, 1)
        check_range("reranker.popularity_half_life_days", self.popularity_half_life_days, 1e-3)
        check_range("reranker.num_candidates", self.num_candidates, 2)
        check_range("reranker.candidates_per_step", self.candidates_per_step, 2)
        check_range("reranker.queries_per_user", self.queries_per_user, 1)
        check_range("reranker.held_out_share", self.held_out_share, 0.01, 0.9)
        for name in self.target_weights:
            check_choice("reranker.target_weights", name, TARGETS)

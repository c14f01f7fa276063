"""Settings of rollouts: how a bundle takes over from another."""

from dataclasses import dataclass

from avrec_ray.dataclass_io import check_range


@dataclass(kw_only=True)
class RolloutConfig:
    """How a candidate is checked, compared and, where it is not well, taken back."""

    poll_seconds: float = 0.3
    """How often gateways look for another lineup."""
    follow_registry: bool = True
    """A new champion of the registry is rolled out by itself."""
    registry_poll_seconds: float = 5.0
    """How often the registry's alias is read."""
    canary_share: float = 0.0
    """Share of users who get a new champion of the registry first; 0: it is swapped in after its checks."""
    canary_seconds: float = 600.0
    """How long a canary must stay well before everybody gets it."""
    start_seconds: float = 300.0
    """Longest that a bundle's replicas may take to start."""
    idle_seconds: float = 5.0
    """How often the conductor looks after applications while nothing is under way."""
    down_seconds: float = 20.0
    """A candidate whose replicas are not all up for so long is taken back."""
    linger_seconds: float = 15.0
    """Replicas that nobody should ask any more stay for so long, for requests that are under way."""
    num_probes: int = 64
    """Users of late whose lists a candidate must give before it serves; fewer where fewer are known."""
    min_agreement: float = 0.1
    """Least mean overlap of its first ten items with the champion's, over the probes and over mirrored requests. By
    chance it is ten in the size of the catalogue; two trainings of the same data have half and more."""
    guard_requests: int = 30
    """Requests of each side before a gateway judges a canary."""
    max_failure_increase: float = 0.02
    """A canary is taken back when its share of failures is surely above the champion's by more than this."""
    max_slow_share: float = 0.25
    """... or when surely more than this share of its requests is slower than the champion's slowest twentieth."""
    min_slower_ms: float = 20.0
    """A request counts as slower only by at least so much: a fast service may get a little slower."""
    mirror_share: float = 0.5
    """Share of a canary's requests that the champion is asked too, after the answer, to compare the lists."""

    def __post_init__(self) -> None:
        check_range("rollout.poll_seconds", self.poll_seconds, 0.05, 60)
        check_range("rollout.registry_poll_seconds", self.registry_poll_seconds, 0.5)
        check_range("rollout.canary_share", self.canary_share, 0, 0.5)
        check_range("rollout.canary_seconds", self.canary_seconds, 0)
        check_range("rollout.start_seconds", self.start_seconds, 1)
        check_range("rollout.linger_seconds", self.linger_seconds, 0)
        check_range("rollout.down_seconds", self.down_seconds, 0)
        check_range("rollout.idle_seconds", self.idle_seconds, 0)
        check_range("rollout.num_probes", self.num_probes, 1, 10_000)
        check_range("rollout.guard_requests", self.guard_requests, 5)
        for name in ("min_agreement", "max_failure_increase", "max_slow_share", "mirror_share"):
            check_range(f"rollout.{name}", getattr(self, name), 0, 1)
        check_range("rollout.min_slower_ms", self.min_slower_ms, 0)

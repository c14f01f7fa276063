"""What one service is told. Serve reads it from YAML as plain values."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from avrec_ray.cluster_config import TrackingConfig
from avrec_ray.config import JobConfig, LimitsConfig
from avrec_ray.dataclass_io import check_choice, check_range
from avrec_ray.errors import ConfigError
from avrec_ray.feedback.config import FeedbackConfig
from avrec_ray.new_items.config import NewItemsConfig
from avrec_ray.ranking.policy import PolicyConfig
from avrec_ray.retrieval.config import MatcherConfig
from avrec_ray.rollout.config import RolloutConfig
from avrec_ray.types import EVENTS


@dataclass(kw_only=True)
class ServeConfig:
    """The bundle to serve, the store to write, the address, and the limits."""

    bundle: str = ""
    """Folder of the bundle; absolute, and readable by every node that runs a replica."""
    storage_path: str = ""
    """Absolute folder in which events.db lies, unless feedback.url says otherwise."""
    feedback: FeedbackConfig = field(default_factory=FeedbackConfig)
    matcher: MatcherConfig = field(default_factory=MatcherConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    new_items: NewItemsConfig = field(default_factory=NewItemsConfig)
    rollout: RolloutConfig = field(default_factory=lambda: RolloutConfig(follow_registry=False))
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """The registry, where `rollout.follow_registry` or a rollout names a version of it."""
    host: str = "127.0.0.1"
    """Address to listen on; other than loopback only with API keys, see auth.py."""
    port: int = 8080
    gateway_replicas: int = 1
    """Two on different nodes outlive the loss of one."""
    max_matcher_replicas: int = 2
    max_reranker_replicas: int = 2
    upscale_seconds: float = 10.0
    """A matcher or reranker with too many requests at work for so long gets another replica."""
    downscale_seconds: float = 300.0
    """One with too few for so long loses one. Replicas start slowly: below a minute their number flaps."""
    fused_models: bool = False
    """Matcher and reranker in one replica, asked by calls that carry many queries; `max_matcher_replicas` bounds it."""
    max_batch: int = 16
    """Queries of one such call at most."""
    deadline_ms: int = 2000
    """Longest a request may take before it is answered from what is at hand; a client can only ask for less."""
    max_body_bytes: int = 1_048_576
    """Larger requests get 413."""
    max_fallback_items: int = 500_000
    """Of a larger catalogue gateways hold no vectors, and lists without a model are popular ones."""
    access_log: bool = False
    """One JSON line a request on standard output, see access_log.py."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    event_names: dict[str, str] = field(default_factory=dict)
    """What clients of Gorse and Metarank call an event, and which of ours it is; goes before the usual names."""

    def __post_init__(self) -> None:
        for name in ("bundle", "storage_path"):
            value = getattr(self, name)
            if not Path(value).is_absolute():
                raise ConfigError(
                    f"serve.{name}={value!r} is not absolute; replicas run in another directory, give a full path"
                )
        check_range("serve.port", self.port, 1, 65535)
        for name in ("gateway_replicas", "max_matcher_replicas", "max_reranker_replicas", "max_batch", "deadline_ms"):
            check_range(f"serve.{name}", getattr(self, name), 1)
        check_range("serve.upscale_seconds", self.upscale_seconds, 0)
        check_range("serve.downscale_seconds", self.downscale_seconds, 1)
        check_range("serve.max_body_bytes", self.max_body_bytes, 1024)
        for name, event in self.event_names.items():
            check_choice(f"serve.event_names.{name}", event, EVENTS)


def serve_config(job: JobConfig, bundle: Path) -> ServeConfig:
    """The service's settings from a job's, for a bundle that is resolved to a folder."""
    return ServeConfig(
        bundle=str(bundle),
        storage_path=job.storage_path,
        feedback=job.feedback,
        matcher=job.matcher,
        policy=job.policy,
        new_items=job.new_items,
        rollout=replace(job.rollout, follow_registry=job.rollout.follow_registry and _is_champion(job.bundle)),
        tracking=job.tracking,
        host=job.serve.host,
        port=job.serve.port,
        gateway_replicas=job.serve.gateway_replicas,
        max_matcher_replicas=job.serve.max_matcher_replicas,
        max_reranker_replicas=job.serve.max_reranker_replicas,
        fused_models=job.serve.fused_models,
        upscale_seconds=job.serve.upscale_seconds,
        downscale_seconds=job.serve.downscale_seconds,
        deadline_ms=job.serve.deadline_ms,
        max_fallback_items=job.serve.max_fallback_items,
        access_log=job.serve.access_log,
        limits=job.serve.limits,
        event_names=job.serve.event_names,
    )


def _is_champion(reference: str) -> bool:
    """Whether a bundle was asked for as whatever is champion, and not as this one."""
    return not reference or reference.endswith("@champion")

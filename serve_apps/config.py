"""What one service is told. Serve reads it from YAML as plain values."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from avrec_ray.cluster_config import TrackingConfig
from avrec_ray.config import JobConfig, ServeSettings
from avrec_ray.errors import ConfigError
from avrec_ray.feedback.config import FeedbackConfig
from avrec_ray.new_items.config import NewItemsConfig
from avrec_ray.ranking.policy import PolicyConfig
from avrec_ray.retrieval.config import MatcherConfig
from avrec_ray.rollout.config import RolloutConfig


@dataclass(kw_only=True)
class ServeConfig(ServeSettings):
    """The bundle to serve, the store to write, and the settings that jobs know too."""

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

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("bundle", "storage_path"):
            value = getattr(self, name)
            if not Path(value).is_absolute():
                raise ConfigError(
                    f"serve.{name}={value!r} is not absolute; replicas run in another directory, give a full path"
                )


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
        **{setting.name: getattr(job.serve, setting.name) for setting in fields(ServeSettings)},
    )


def _is_champion(reference: str) -> bool:
    """Whether a bundle was asked for as whatever is champion, and not as this one."""
    return not reference or reference.endswith("@champion")

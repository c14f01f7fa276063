"""The settings of a job: the owners' dataclasses in one tree, and the only crossing from Hydra.

Defaults live in the dataclasses; YAML under conf/ holds deviations. A typo fails when the config is composed.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from avrec_ray.cluster_config import ClusterConfig, TrackingConfig
from avrec_ray.dataclass_io import check_choice, check_range, from_dict, to_dict
from avrec_ray.datasets.config import DataConfig
from avrec_ray.errors import ConfigError
from avrec_ray.evaluation.audit import AuditConfig
from avrec_ray.evaluation.gate import GateConfig
from avrec_ray.evaluation.split import SplitConfig
from avrec_ray.evaluation.tuning import BaselinesConfig
from avrec_ray.feedback.config import FeedbackConfig
from avrec_ray.feedback.retrain_config import RetrainConfig
from avrec_ray.media.config import MediaConfig
from avrec_ray.new_items.config import NewItemsConfig
from avrec_ray.ranking.config import RerankerConfig
from avrec_ray.ranking.policy import PolicyConfig
from avrec_ray.retrieval.config import IndexConfig, MatcherConfig
from avrec_ray.rollout.config import RolloutConfig
from avrec_ray.towers.config import TowersConfig
from avrec_ray.training.config import FinetuneConfig, PretrainConfig
from avrec_ray.types import EVENTS

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = [
    "EvaluationConfig", "JobConfig", "LimitsConfig", "TrainingConfig", "from_dict", "register", "to_dict", "to_typed",
]  # fmt: skip

T = TypeVar("T")


@dataclass(kw_only=True)
class TrainingConfig:
    """Both trainings."""

    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)


@dataclass(kw_only=True)
class EvaluationConfig:
    """How a bundle is measured."""

    split: SplitConfig = field(default_factory=SplitConfig)
    cutoffs: list[int] = field(default_factory=lambda: [10, 20])
    """k of the metrics."""
    list_length: int = 100
    """Items of each list in evaluation/recommendations.parquet."""
    baselines: BaselinesConfig = field(default_factory=BaselinesConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    gate: GateConfig = field(default_factory=GateConfig)

    def __post_init__(self) -> None:
        if not self.cutoffs or min(self.cutoffs) < 1:
            raise ConfigError(f"evaluation.cutoffs={self.cutoffs}; expected positive numbers such as [10, 20]")
        check_range("evaluation.list_length", self.list_length, max(self.cutoffs))


@dataclass(kw_only=True)
class LimitsConfig:
    """What the service lets in, whoever asks."""

    read_per_second: float = 200.0
    """Requests a second of one key that only read, over all replicas; 0: no limit. Without keys nothing is counted."""
    read_burst: int = 400
    """Requests that a key may send at once after a pause."""
    write_per_second: float = 100.0
    """The same of requests that store or remove something."""
    write_burst: int = 200
    header_bytes: int = 16_384
    """Names and values of all headers together; more gets 431."""
    max_headers: int = 64
    url_bytes: int = 8_192
    """Path and query as sent; more gets 414."""
    body_seconds: float = 10.0
    """A body that is not there by then gets 408."""
    request_seconds: float = 30.0
    """No request is worked on for longer, whatever its headers ask for: 503. Lists end by `deadline_ms` long before."""

    def __post_init__(self) -> None:
        for name in ("read_per_second", "write_per_second"):
            check_range(f"serve.limits.{name}", getattr(self, name), 0.0)
        for name in ("read_burst", "write_burst", "max_headers"):
            check_range(f"serve.limits.{name}", getattr(self, name), 1)
        for name in ("header_bytes", "url_bytes"):
            check_range(f"serve.limits.{name}", getattr(self, name), 1024)
        for name in ("body_seconds", "request_seconds"):
            check_range(f"serve.limits.{name}", getattr(self, name), 0.1)


@dataclass(kw_only=True)
class ServeSettings:
    """The HTTP service."""

    host: str = "127.0.0.1"
    """Address to listen on; other than loopback only with API keys (docs/api.md)."""
    port: int = 8080
    gateway_replicas: int = 1
    """Two on different nodes outlive the loss of one."""
    max_matcher_replicas: int = 2
    max_reranker_replicas: int = 2
    matcher_ongoing_requests: float = 8.0
    """Requests at work that a replica should have: with more there will be another, with fewer one less."""
    reranker_ongoing_requests: float = 4.0
    fused_models: bool = False
    """Matcher and reranker in one replica, asked by calls that carry many queries; `max_matcher_replicas` bounds it
    (docs/operations.md, presets)."""
    max_batch: int = 16
    """Queries of one such call at most."""
    upscale_seconds: float = 10.0
    """A matcher or reranker with too many requests at work for so long gets another replica."""
    downscale_seconds: float = 300.0
    """One with too few for so long loses one. Replicas start slowly: below a minute their number flaps."""
    deadline_ms: int = 2000
    """Longest a request may take before it is answered from what is at hand; a client can only ask for less."""
    max_body_bytes: int = 1_048_576
    """Larger requests get 413."""
    max_fallback_items: int = 500_000
    """Of a larger catalogue gateways hold no vectors, and lists without a model are popular ones."""
    access_log: bool = False
    """One JSON line a request on the gateway's standard output, without ids or texts of clients (docs/operations.md).
    Off by default: Ray rotates that file only with RAY_ROTATION_MAX_BYTES, and a full disk ends the service."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    event_names: dict[str, str] = field(default_factory=dict)
    """What clients of Gorse and Metarank call an event, and which of ours it is; goes before the usual names."""

    def __post_init__(self) -> None:
        check_range("serve.port", self.port, 1, 65535)
        for name in ("gateway_replicas", "max_matcher_replicas", "max_reranker_replicas", "max_batch", "deadline_ms"):
            check_range(f"serve.{name}", getattr(self, name), 1)
        for name in ("matcher_ongoing_requests", "reranker_ongoing_requests"):
            check_range(f"serve.{name}", getattr(self, name), 0.1)
        check_range("serve.upscale_seconds", self.upscale_seconds, 0)
        check_range("serve.downscale_seconds", self.downscale_seconds, 1)
        check_range("serve.max_fallback_items", self.max_fallback_items, 0)
        check_range("serve.max_body_bytes", self.max_body_bytes, 1024)
        for name, event in self.event_names.items():
            check_choice(f"serve.event_names.{name}", event, EVENTS)


@dataclass(kw_only=True)
class JobConfig:
    """Everything a job can be told. Each stage reads its own part."""

    storage_path: str = ""
    """Absolute folder; everything a run writes lies under it."""
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    media: MediaConfig = field(default_factory=MediaConfig)
    towers: TowersConfig = field(default_factory=TowersConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    matcher: MatcherConfig = field(default_factory=MatcherConfig)
    reranker: RerankerConfig = field(default_factory=RerankerConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    feedback: FeedbackConfig = field(default_factory=FeedbackConfig)
    retrain: RetrainConfig = field(default_factory=RetrainConfig)
    new_items: NewItemsConfig = field(default_factory=NewItemsConfig)
    serve: ServeSettings = field(default_factory=ServeSettings)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    bundle: str = ""
    """Folder or models:/name@alias, for jobs that read a bundle; empty: the newest under storage_path (jobs.serve: the
    champion)."""
    users: str = ""
    """jobs.recommend, jobs.erase_user: Parquet with a column user_id."""
    candidates: str = ""
    """jobs.recommend: Parquet with a column item_id; empty: the whole catalogue. jobs.evaluate: what lists could hold;
    empty: unknown, and no AUC, coverage or Gini."""
    k: int = 20
    """jobs.recommend: length of a list."""
    output: str = ""
    """jobs.recommend: Parquet to write. jobs.export_user, jobs.erase_user: JSON to write; empty: print."""
    recommendations: str = ""
    """jobs.evaluate: a recommendations table to score instead of a bundle."""
    truth: str = ""
    """jobs.evaluate: Parquet with user_id, item_id."""
    seen: str = ""
    """jobs.evaluate: Parquet with user_id, item_id that no list may hold."""
    run_a: str = ""
    """jobs.compare: MLflow id of a run of full_loop, evaluate or a baseline; several, with + between, are seeds."""
    run_b: str = ""
    version: str = ""
    """jobs.promote: version of the registry to make champion."""
    rollback: bool = False
    """jobs.promote: back to the champion before."""
    action: str = "status"
    """jobs.rollout: swap, canary, ab, shadow, interleave, promote, stop, rollback or status."""
    share: float = 0.05
    """jobs.rollout: share of users whom a candidate concerns; of requests where it is a shadow."""
    seconds: float = 0.0
    """jobs.rollout: how long a candidate stays; 0: until it is ended, a canary rollout.canary_seconds."""
    force: bool = False
    """jobs.promote: although the gate refused it."""
    estimate: bool = False
    """jobs.decode_media --estimate: say what decoding would take, and decode no more than a sample."""
    estimate_items: int = 32
    """Items of that sample."""
    user: str = ""
    """jobs.erase_user, jobs.export_user: id of a user, as clients know it."""
    scan: bool = True
    """jobs.erase_user: look through every file and table afterwards, and fail if a user is found."""
    once: bool = False
    """jobs.demo: ask one request, print the answer and end."""

    def __post_init__(self) -> None:
        if not self.cluster.min_workers:
            return
        for name, training in (("pretrain", self.training.pretrain), ("finetune", self.training.finetune)):
            if not training.global_batch_size:
                raise ConfigError(
                    f"cluster.min_workers={self.cluster.min_workers} needs training.{name}.global_batch_size: with "
                    "batch_size, a worker's, the step would change with the number of workers"
                )
            for num_workers in range(self.cluster.min_workers, self.cluster.num_workers + 1):
                training.for_workers(num_workers)


def to_typed(cfg: "DictConfig", cls: type[T] = JobConfig) -> T:  # type: ignore[assignment]
    """The one crossing from Hydra: a composed config to dataclasses, input shapes of the towers filled in.

    Raises:
        ConfigError: a value has the wrong type or is out of range.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        job = OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        cause = error.__cause__ or error
        raise ConfigError(str(cause).splitlines()[0]) from error
    if not isinstance(job, cls):
        raise ConfigError(f"composed config is a {type(job).__name__}, expected {cls.__name__}; call register() first")
    if isinstance(job, JobConfig):
        job.towers = towers_for(job.towers, job.media)
    return job


def towers_for(towers: TowersConfig, media: MediaConfig) -> TowersConfig:
    """Towers that fit the clips: input shapes are decided once, by the media config."""
    return dataclasses.replace(
        towers,
        num_frames=media.num_frames,
        frame_size=media.frame_size,
        num_mel_bins=media.num_mel_bins,
        num_mel_frames=media.log_mel_shape[1],
        front_end=media.front_end,
        max_clips=media.max_clips,
    )


def register() -> None:
    """Put the schema into Hydra's ConfigStore; conf/base.yaml starts from it."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="job_schema", node=JobConfig)


def from_mapping(values: Mapping[str, Any]) -> JobConfig:
    """A JobConfig from plain values, as `from_dict`, with the towers' input shapes filled in."""
    job = from_dict(JobConfig, values)
    job.towers = towers_for(job.towers, job.media)
    return job

"""Settings of the shell: where Ray runs, and where runs are tracked. Plain data, so that the core can compose them."""

from dataclasses import dataclass

from avrec_ray.dataclass_io import check_choice, check_range
from avrec_ray.errors import ConfigError

STRATEGIES = ("ddp", "fsdp")


@dataclass(kw_only=True)
class ClusterConfig:
    """Where Ray runs and what a stage takes of it."""

    address: str = ""
    """Empty: RAY_ADDRESS if set, else a new local cluster for this job alone."""
    num_cpus: int = 0
    """Logical CPUs of a local cluster; 0 takes twice the cores and at least 6, since stages wait as they compute."""
    object_store_bytes: int = 1_000_000_000
    """Shared memory of a local cluster."""
    num_workers: int = 2
    """Training workers; with `min_workers` the most of them."""
    min_workers: int = 0
    """Training goes on with fewer workers, down to this number, while there are no nodes for all; the batch of a step
    stays the same, which `global_batch_size` of the training must allow. 0: always `num_workers`."""
    train_resource: str = ""
    """Custom resource of the nodes that train, one a worker; empty: any node. With `min_workers` on CPUs it is needed:
    Ray counts the workers that would fit by resources alone, and would count the CPUs of other nodes."""
    strategy: str = "ddp"
    """Key of STRATEGIES. ddp: each worker holds all weights; fsdp: a part of them."""
    num_decode_actors: int = 2
    """Actors that decode media, a CPU each."""
    decode_resource: str = ""
    """Custom resource of the nodes that decode, such as "decode" of cluster.yaml; empty: any node."""
    use_gpu: bool = False
    max_failures: int = 2
    """Restarts of a training run after a lost worker."""
    max_preemption_failures: int = -1
    """Restarts after a node was taken away with notice, counted apart; -1: as often as it happens."""
    worker_timeout_seconds: float = 600.0
    """A training worker that does not answer for so long is lost."""
    start_timeout_seconds: float = 180.0
    """Longest that all workers of a training may take to start. Elastic training tries fewer workers after it."""
    collective_timeout_seconds: float = 1800.0
    """Longest that a worker waits for the others, a validation by the first one included."""

    def __post_init__(self) -> None:
        check_range("cluster.num_workers", self.num_workers, 1)
        check_range("cluster.num_decode_actors", self.num_decode_actors, 1)
        check_range("cluster.num_cpus", self.num_cpus, 0)
        check_range("cluster.max_failures", self.max_failures, 0)
        check_range("cluster.max_preemption_failures", self.max_preemption_failures, -1)
        check_range("cluster.min_workers", self.min_workers, 0, self.num_workers)
        check_choice("cluster.strategy", self.strategy, STRATEGIES)
        for name in ("worker_timeout_seconds", "start_timeout_seconds", "collective_timeout_seconds"):
            check_range(f"cluster.{name}", getattr(self, name), 1.0)
        if self.min_workers and not (self.train_resource or self.use_gpu):
            raise ConfigError(
                f"cluster.min_workers={self.min_workers} needs cluster.train_resource or cluster.use_gpu=true, so that "
                "nodes that cannot train are not counted"
            )


@dataclass(kw_only=True)
class TrackingConfig:
    """Where runs are logged and models registered."""

    uri: str = ""
    """MLflow tracking URI; empty: a SQLite file under storage_path."""
    experiment: str = "avrec_ray"
    model_name: str = "avrec_ray"
    """Registered model that holds the bundles."""
    system_metrics_seconds: float = 10.0
    """How often a stage's run notes CPU, memory, disk, network and, where it is, GPU of the driver's machine; 0:
    never."""

    def __post_init__(self) -> None:
        check_range("tracking.system_metrics_seconds", self.system_metrics_seconds, 0.0)

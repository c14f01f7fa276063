"""Settings of the shell: where Ray runs, and where runs are tracked. Plain data, so that the core can compose them."""

from dataclasses import dataclass

from avrec_ray.dataclass_io import check_range


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
    """Training workers."""
    num_decode_actors: int = 2
    """Actors that decode media, a CPU each."""
    decode_resource: str = ""
    """Custom resource of the nodes that decode, such as "decode" of cluster.yaml; empty: any node."""
    use_gpu: bool = False
    max_failures: int = 2
    """Restarts of a training run after a lost worker."""

    def __post_init__(self) -> None:
        check_range("cluster.num_workers", self.num_workers, 1)
        check_range("cluster.num_decode_actors", self.num_decode_actors, 1)
        check_range("cluster.num_cpus", self.num_cpus, 0)
        check_range("cluster.max_failures", self.max_failures, 0)


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

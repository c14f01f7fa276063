"""ray.init ... ray.shutdown around a job."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import ray.data

from avrec_ray.cluster_config import ClusterConfig

_ENVIRONMENT = {
    "RAY_worker_niceness": "0",  # Ray's workers run at nice 15 and starve beside any other process
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # one report a worker and poll: the default of 2 s throttles training
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_OWN_CLUSTER = {
    # Nobody reads the metrics of a cluster without a dashboard that ends with the job, nor asks it for its tasks: two
    # percent of two cores, which decoding can use.
    "RAY_enable_metrics_collection": "0",
    "RAY_metrics_report_interval_ms": "60000",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "0",
}


@contextmanager
def session(cfg: ClusterConfig) -> Iterator[None]:
    """A Ray connection for the time of a job. Joins RAY_ADDRESS or `address`; else starts a cluster of its own."""
    timeouts = {
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": f"{cfg.start_timeout_seconds:g}",
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": f"{cfg.worker_timeout_seconds:g}",
        "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": f"{cfg.collective_timeout_seconds:g}",
    }
    address = cfg.address or os.environ.get("RAY_ADDRESS", "")
    for name, value in {**_ENVIRONMENT, **timeouts, **({} if address else _OWN_CLUSTER)}.items():
        os.environ.setdefault(name, value)
    # Token authentication is on by default and wanted; the line that offers to turn it off is not.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    common = {"log_to_driver": False, "logging_level": logging.WARNING}
    if address:
        ray.init(address=address, **common)
    else:
        ray.init(
            address="local",
            num_cpus=cfg.num_cpus or max(6, 2 * (os.cpu_count() or 2)),
            object_store_memory=cfg.object_store_bytes,
            include_dashboard=False,
            **common,
        )
    _quiet()
    try:
        yield
    finally:
        ray.shutdown()


def _quiet() -> None:
    """Ray Data's plan printing and Train's banners drown the stage lines; warnings stay, but for one of our making."""
    for name in ("ray.data", "ray.train", "ray.serve"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # says that the bars are off
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.verbose_progress = False
    context.memory_usage_poll_interval_s = None  # a thread a worker that reads its memory map every second

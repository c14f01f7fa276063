"""ray.init ... ray.shutdown around a job."""

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import ray
import ray.data
from ray._private import ray_constants

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
    # Processes of a cluster of one machine listen on 127.0.0.1. Ray means this for Windows and macOS; on Linux GCS,
    # raylet and every worker would listen on all interfaces.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
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
    with nullcontext() if address else _loopback():
        if address:
            ray.init(address=address, **common)
        else:
            _make_token()
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


@contextmanager
def _loopback() -> Iterator[None]:
    """This process, too, takes 127.0.0.1 for its address: Ray read the variable when it was imported."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] != "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _make_token() -> None:
    """A token for a cluster of this job alone, unless the user has one that nobody else can read.

    Whoever reaches a port of the cluster runs code in it, and any user of the machine reaches loopback. Ray would write
    a token to the home folder with mode 0644.
    """
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    own = Path.home() / ".ray" / "auth_token"
    private = own.is_file() and not own.stat().st_mode & 0o077
    # Ray turns authentication on by itself where it starts a cluster, unless the user's environment says otherwise.
    if os.environ.get("RAY_AUTH_MODE", "token") == "token" and not given and not private:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _quiet() -> None:
    """Ray Data's plan printing and Train's banners drown the stage lines; warnings stay, but for one of our making."""
    for name in ("ray.data", "ray.train", "ray.serve"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # says that the bars are off
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.verbose_progress = False
    context.memory_usage_poll_interval_s = None  # a thread a worker that reads its memory map every second

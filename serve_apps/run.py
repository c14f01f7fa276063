"""Start the service on the connected Ray cluster, and wait until it can be used."""

import json
import logging
import socket
import time
import urllib.error
import urllib.request
from typing import Any

from ray import serve
from ray.serve.config import HTTPOptions

from avrec_ray.dataclass_io import to_dict
from avrec_ray.errors import ConfigError, StageError
from serve_apps.config import ServeConfig
from serve_apps.gateway import build_app, rollout_store
from serve_apps.models_app import models_app

APP_NAME = "avrec"


def start(cfg: ServeConfig, ready_timeout_seconds: float = 120.0) -> str:
    """Deploy gateway, matcher and reranker; returns the URL once /health/ready says ready.

    Ray must be connected. `serve.shutdown()` stops the service.

    Raises:
        ConfigError: the port is taken, the host is open to others without API keys, or a key is not as it must be.
        StageError: the service did not become ready in time.
    """
    app = build_app(to_dict(cfg))
    check_port_free(cfg.host, cfg.port)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    # The gateway bounds a request itself, for a client can lift this bound with a header; it ends what never got there.
    most_seconds = cfg.limits.body_seconds + cfg.limits.request_seconds + 5
    options = HTTPOptions(host=cfg.host, port=cfg.port, request_timeout_s=most_seconds)
    serve.start(proxy_location="HeadOnly", http_options=options)
    start_models(cfg)
    serve.run(app, name=APP_NAME, route_prefix="/")
    url = f"http://{_reachable(cfg.host)}:{cfg.port}"
    _wait_until_ready(url, ready_timeout_seconds)
    return url


def start_models(cfg: ServeConfig) -> None:
    """Begin to start the models of the lineup, which the conductor would do too, but later."""
    store = rollout_store(cfg)
    found = store.current()
    store.close()
    assert found is not None  # build_app has written one
    champion = found.lineup.champion
    target = serve.RunTarget(models_app(cfg, champion.bundle), name=champion.app, route_prefix=None)
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def check_port_free(host: str, port: int) -> None:
    """Raise ConfigError if something else listens on the address."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"serve.host={host!r} serve.port={port}: cannot listen there ({error.strerror}); "
                f"stop the other service or choose another port, e.g. serve.port={port + 1}"
            ) from error


def _reachable(host: str) -> str:
    """Where a client on this machine finds a service that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _wait_until_ready(url: str, timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    answer: Any = "nothing"
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health/ready", timeout=10) as response:
                answer = json.load(response)
            if answer["status"] == "ready":
                return
        except urllib.error.HTTPError as error:
            answer = error.read()[:500]
        except (OSError, ValueError) as error:
            answer = error
        time.sleep(0.1)
    raise StageError(
        f"{url}/health/ready did not say ready within {timeout_seconds:.0f} s, last answer: {answer}; "
        "see `serve status` and the logs of Ray Serve"
    )

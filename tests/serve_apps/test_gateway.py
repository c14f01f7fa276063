import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from avrec_ray.catalogue import Catalogue
from avrec_ray.errors import BundleError, ConfigError
from serve_apps.config import ServeConfig
from serve_apps.gateway import build_app
from serve_apps.run import check_port_free
from tests.serve_apps.conftest import free_port
from tests.tiny_bundle import build_tiny_bundle


@pytest.fixture
def args(tmp_path: Path, catalogue: Catalogue) -> dict[str, Any]:
    return {"bundle": str(build_tiny_bundle(tmp_path / "v-1", catalogue=catalogue)), "storage_path": str(tmp_path)}


def test_build_app_needs_no_cluster(args: dict[str, Any]) -> None:
    assert type(build_app(args)).__name__ == "Application"


def test_build_app_open_host_without_keys_is_refused(args: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AVREC_API_KEYS", raising=False)
    with pytest.raises(ConfigError, match="AVREC_API_KEYS is not set"):
        build_app({**args, "host": "0.0.0.0"})
    monkeypatch.setenv("AVREC_API_KEYS", "a-key-that-is-long-enough")
    build_app({**args, "host": "0.0.0.0"})


def test_build_app_without_a_bundle_says_how_to_make_one(args: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle .* python -m jobs.full_loop"):
        build_app({**args, "bundle": str(tmp_path / "nothing")})


def test_build_app_unknown_key_is_refused(args: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="unknown key 'bundel'"):
        build_app({**args, "bundel": "x"})


def test_gateway_knows_no_torch() -> None:
    code = "import sys, serve_apps.gateway; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_check_port_free_passes_a_free_port() -> None:
    check_port_free("127.0.0.1", free_port())


def test_check_port_taken_names_the_port_and_another() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"serve.port={port}: cannot listen there .* serve.port={port + 1}"):
            check_port_free("127.0.0.1", port)


def test_serve_config_defaults_listen_on_loopback() -> None:
    assert ServeConfig(bundle="/b", storage_path="/s").host == "127.0.0.1"

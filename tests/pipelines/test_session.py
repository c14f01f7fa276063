"""A cluster of one job: closed to the network, and to other users of the machine."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from avrec_ray.cluster_config import ClusterConfig
from avrec_ray.pipelines import session as session_module
from avrec_ray.pipelines.session import session

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def run(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python process that knows nothing of this session's cluster."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**inherited, "HOME": str(home), "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("listening")
    done = run("-m", "tests.pipelines.listening", str(folder), home=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
    return {**found, "home": folder}


def test_nothing_listens_beyond_loopback(snapshot: dict[str, Any]) -> None:
    """A service on a cluster of its own: the HTTP port, and what Ray's processes say to each other."""
    listeners = snapshot["listeners"]
    assert [row for row in listeners if row[0] not in LOOPBACK] == []
    assert [row[0] for row in listeners if row[1] == snapshot["port"]] == ["127.0.0.1"]
    assert len([row for row in listeners if "gcs_server" in row[2] or "raylet" in row[2]]) >= 2
    assert snapshot["gcs"].startswith("127.0.0.1:")


def test_the_token_is_in_no_file(snapshot: dict[str, Any]) -> None:
    assert snapshot["token"] == 64
    assert not (snapshot["home"] / ".ray" / "auth_token").exists()


def test_a_process_without_the_token_is_turned_away(ray_cluster: None, tmp_path: Path) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    code = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1]); print('in')"
    right = run("-c", code, address, home=tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=os.environ["RAY_AUTH_TOKEN"])
    assert right.stdout == "in\n", right.stderr[-2000:]
    for environment in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        wrong = run("-c", code, address, home=tmp_path, **environment)
        assert wrong.returncode != 0
        assert wrong.stdout == ""
        assert "InvalidAuthToken" in wrong.stderr


@pytest.mark.parametrize(
    ("given", "mode", "made"),
    [
        ({}, None, True),
        ({}, 0o600, False),
        ({}, 0o644, True),
        ({"RAY_AUTH_TOKEN": "t" * 32}, None, False),
        ({"RAY_AUTH_TOKEN_PATH": "/somewhere"}, None, False),
        ({"RAY_AUTH_MODE": "disabled"}, None, False),
    ],
)
def test_a_token_is_made_unless_there_is_a_private_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: dict[str, str], mode: int | None, made: bool
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"RAY_AUTH_MODE": "token", "HOME": str(tmp_path), **given}.items():
        monkeypatch.setenv(name, value)
    if mode is not None:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("x" * 32)
        (tmp_path / ".ray" / "auth_token").chmod(mode)
    monkeypatch.setenv("RAY_AUTH_TOKEN", os.environ.get("RAY_AUTH_TOKEN", ""))  # undone after the test
    before = os.environ["RAY_AUTH_TOKEN"]
    session_module._make_token()
    assert (os.environ["RAY_AUTH_TOKEN"] != before) == made
    assert len(os.environ["RAY_AUTH_TOKEN"]) == (64 if made else len(before))


def test_an_address_is_joined_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback is for a cluster of one's own alone: a driver that joins others must be reachable for them."""
    from ray._private import ray_constants

    seen: dict[str, Any] = {}
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    monkeypatch.setattr(
        session_module.ray, "init", lambda **k: seen.update(k, cluster=ray_constants.ENABLE_RAY_CLUSTER)
    )
    monkeypatch.setattr(session_module.ray, "shutdown", lambda: None)
    with session(ClusterConfig(address="10.0.0.1:6379")):
        pass
    assert (seen["address"], seen["cluster"]) == ("10.0.0.1:6379", True)

"""jobs.recommend on real Ray: the lists that a request gets, and a job that is killed and started again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient

from avrec_ray.config import JobConfig
from avrec_ray.errors import StageError
from avrec_ray.pipelines import recommend
from avrec_ray.pipelines.full_loop import open_loop
from avrec_ray.pipelines.recommend_parts import Parts, parts_folder
from tests.pipelines.recommend_cases import (
    NUM_ITEMS,
    assert_same_lists,
    job_for,
    lists_in,
    random_events,
    requested_lists,
    write_events,
    write_users,
)
from tests.tiny_bundle import build_tiny_bundle

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
MANY = [f"u{number:04d}" for number in range(3_000)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_bundle(tmp_path_factory.mktemp("bundles") / "v-batch", NUM_ITEMS, head_std=0.5)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tracking database for all."""
    return tmp_path_factory.mktemp("storage")


def run_job(job: JobConfig) -> tuple[list[str], dict[str, float]]:
    """What jobs.recommend prints and logs."""
    lines: list[str] = []
    with open_loop(job, "recommend") as loop:
        loop.echo = lines.append
        assert recommend.run(loop, job) == Path(job.output)
        run_id, uri = loop.parent.run_id, loop.tracking_uri
    return lines, MlflowClient(uri).get_run(run_id).data.metrics


def test_lists_equal_those_of_single_requests(ray_cluster: None, bundle: Path, storage: Path, tmp_path: Path) -> None:
    users = [f"u{number:03d}" for number in range(150)]
    rows = random_events(users)
    job = job_for(
        storage,
        bundle,
        users=write_users(tmp_path / "users.parquet", [*reversed(users), users[3]]),
        interactions=write_events(tmp_path / "events.parquet", rows),
        output=str(tmp_path / "lists.parquet"),
        k=6,
    )
    lines, metrics = run_job(job)
    table = pq.read_table(job.output)
    assert_same_lists(lists_in(table), requested_lists(bundle, job, rows, users))
    assert table == table.sort_by([("user_id", "ascending"), ("rank", "ascending")])
    assert lines[0] == "1 rows of users repeat a user_id; each user gets one list"
    assert lines[-1].startswith("recommended 150/150 users")
    assert metrics["num_users"] == metrics["num_users_computed"] == 150
    assert metrics["users_per_second"] > 0
    assert metrics["seconds"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.parquet", "lists.parquet", "users.parquet"]


def test_candidates_that_nobody_knows_give_no_list(
    ray_cluster: None, bundle: Path, storage: Path, tmp_path: Path
) -> None:
    events = Path(write_events(tmp_path / "events.parquet", random_events(["a", "b"])))
    with pytest.raises(StageError, match="no user got a list.*candidates that are in the bundle's catalogue"):
        recommend.recommend_users(bundle, [events], ["a", "b"], job_for(storage, bundle), 5, ["unknown"])
    assert not list(storage.glob("*.parts"))


@pytest.mark.slow
def test_a_killed_job_goes_on_where_it_was(
    ray_cluster: None, bundle: Path, storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = random_events(MANY)
    job = job_for(
        storage,
        bundle,
        users=write_users(tmp_path / "users.parquet", MANY),
        interactions=write_events(tmp_path / "events.parquet", rows),
        output=str(tmp_path / "lists.parquet"),
        k=7,
    )
    kill_after_two_parts(job)
    kept = {path: path.stat().st_mtime_ns for path in parts_folder(Path(job.output)).glob("*/part-*.parquet")}
    assert 2 <= len(kept) < 16
    assert not Path(job.output).exists()

    monkeypatch.setattr(Parts, "remove", lambda parts: None)  # leaves them to look at
    lines, metrics = run_job(job)
    assert lines[0] == f"resumed: {len(kept)} of 16 shards were done before and are kept"
    assert metrics["num_users"] == len(MANY)
    assert metrics["num_users_computed"] < len(MANY)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept

    table = pq.read_table(job.output)
    places = list(zip(table["user_id"].to_pylist(), table["rank"].to_pylist(), strict=True))
    assert places == [(user, rank) for user in MANY for rank in range(1, 8)]
    some = MANY[::100]
    lists = lists_in(table)
    assert_same_lists({user: lists[user] for user in some}, requested_lists(bundle, job, rows, some))


def kill_after_two_parts(job: JobConfig) -> None:
    """Start the job as a user does, and kill it with its children in the middle."""
    overrides = [f"{name}={getattr(job, name)}" for name in ("storage_path", "bundle", "users", "output", "k")]
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.recommend", *overrides, f"data.interactions={job.data.interactions}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    folder = parts_folder(Path(job.output))
    while len(list(folder.glob("*/part-*.parquet"))) < 2:
        assert process.poll() is None, "the job ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    settled = 0
    while settled != (found := len(list(folder.glob("*/part-*")))):  # workers notice a moment later
        settled = found
        time.sleep(1.0)

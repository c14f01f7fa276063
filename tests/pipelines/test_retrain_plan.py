"""Runs of retraining: which goes on, which has ended, which goes."""

import subprocess
import sys
from pathlib import Path

import pytest

from avrec_ray.errors import StageError
from avrec_ray.feedback.impressions import Watermark
from avrec_ray.pipelines.retrain_plan import (
    Outcome,
    Plan,
    last_finished,
    new_plan,
    prune,
    read_outcome,
    retrain_lock,
    save_outcome,
    save_plan,
    unfinished,
)
from avrec_ray.pipelines.storage import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.at(str(tmp_path))


def plan(upto: int) -> Plan:
    return new_plan(Watermark(upto - 5, 1), Watermark(upto, 2), "models:/m/3", "v-3")


def outcome(name: str) -> Outcome:
    return Outcome(name, "/b/v-4", "v-4", "4", True, 5, {"burst": 2}, ["tags"])


def test_run_is_unfinished_until_its_outcome_is_there(storage: Storage) -> None:
    assert unfinished(storage) is last_finished(storage) is None
    save_plan(storage, plan(10))
    assert unfinished(storage) == plan(10)
    assert last_finished(storage) is None
    save_outcome(storage, plan(10), outcome(plan(10).name))
    assert unfinished(storage) is None
    assert last_finished(storage) == plan(10)
    assert read_outcome(storage, plan(10)) == outcome(plan(10).name)


def test_runs_go_by_how_far_they_read(storage: Storage) -> None:
    for upto in (9, 10, 200):
        save_plan(storage, plan(upto))
        save_outcome(storage, plan(upto), outcome(plan(upto).name))
    assert last_finished(storage) == plan(200)
    assert [path.name for path in prune(storage, keep=2)] == ["run-000000000009"]
    assert sorted(path.name for path in storage.folder("retrain").iterdir()) == ["run-000000000010", "run-000000000200"]
    assert prune(storage, keep=2) == []


def test_unfinished_run_is_never_pruned_and_what_a_kill_left_goes(storage: Storage) -> None:
    for upto in (1, 2, 3):
        save_plan(storage, plan(upto))
    for upto in (2, 3):
        save_outcome(storage, plan(upto), outcome(plan(upto).name))
    (storage.folder("retrain") / "removed-run-000000000000").mkdir()
    assert [path.name for path in prune(storage, keep=1)] == ["run-000000000002"]
    assert sorted(path.name for path in storage.folder("retrain").iterdir()) == ["run-000000000001", "run-000000000003"]


def test_folder_without_a_plan_is_no_run(storage: Storage) -> None:
    plan(10).folder(storage).mkdir(parents=True)
    assert unfinished(storage) is None


def test_plan_that_cannot_be_read_says_what_to_do(storage: Storage) -> None:
    save_plan(storage, plan(10))
    (plan(10).folder(storage) / "plan.json").write_text("{")
    with pytest.raises(StageError, match="remove its folder to begin that run anew"):
        unfinished(storage)


def test_second_retraining_is_refused_while_one_runs_and_a_lock_ends_with_its_process(storage: Storage) -> None:
    hold = (
        "import sys, time; from avrec_ray.pipelines.retrain_plan import *\n"
        f"with retrain_lock(Storage.at({str(storage.root)!r})): print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StageError, match="another retraining runs under"), retrain_lock(storage):
            pass
        holder.kill()
        holder.wait()
    with retrain_lock(storage):
        pass

"""Retraining is killed at every step, goes on, and ends where an uninterrupted one does."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from safetensors.numpy import load_file

from avrec_ray.pipelines.event_export import exported, read_events
from avrec_ray.pipelines.storage import Storage
from tests.pipelines.retrain_world import (
    DAY_SECONDS,
    START_SECONDS,
    days,
    first_loop,
    post,
    retrain_job,
    show,
    write_given,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3000)]

STAGES = [
    "prepare", "drift", "split", "baselines", "warm_start", "finetune", "train_reranker", "refresh", "embed_items",
    "build_index", "bundle", "evaluate", "register",
]  # fmt: skip
LABELS = [
    "export:events:begun", "export:events:written", "export:impressions:begun", "export:impressions:written",
    "plan:begun", "plan:written", "prepare:begun", "prepare:publishing",
    *[f"{stage}:worked" for stage in STAGES if stage != "register"],
    "finetune:recorded", "evaluate:publishing", "register:versioned", "register:promoted", "register:worked",
    "register:recorded", "outcome:begun",
]  # fmt: skip
"""In the order in which a run comes by them, but for the two inside stages that the next attempt goes through again."""
ORDER = sorted(
    LABELS,
    key=lambda label: (
        STAGES.index(label.split(":")[0]) if label.split(":")[0] in STAGES else (99 if "outcome" in label else -1)
    ),
)


def attempts(root: Path, *labels: str) -> list[dict[str, Any]]:
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "tests.pipelines.killed_retrain", str(root), address, *labels]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2800, check=False, env=dict(os.environ))
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stderr[-3000:]
    return lines


def result(root: Path, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """What must be the same however often the run was killed."""
    (outcome,) = [line["outcome"] for line in lines if "outcome" in line]
    storage, folder = Storage.at(str(root)), root / "retrain" / outcome["name"]
    tables = [folder / "tables" / "interactions.parquet", folder / "labels" / "labels.parquet"]
    return {
        "outcome": outcome,
        "events": read_events(storage, exported(storage))["event_id"].to_pylist(),
        "tables": [hashlib.sha256(path.read_bytes()).hexdigest() for path in tables],
        "parts": sorted(path.name for path in storage.folder("events").iterdir()),
        "towers": load_file(f"{outcome['bundle']}/towers.safetensors"),
        "lists": pq.read_table(folder / "evaluation" / "recommendations.parquet").drop(["score"]).to_pydict(),
    }


def test_killed_at_every_step_ends_as_an_uninterrupted_run(ray_cluster: None, tmp_path: Path) -> None:
    root = tmp_path / "run"
    job = retrain_job(root)
    write_given(root, days(0, 20, "past"))
    first_loop(job)
    new = days(20, 5, "new", swapped=True)
    post(job, new)
    show(
        job,
        "u00",
        [event.item_id for event in new if event.user_id == "u00"][:4],
        START_SECONDS + 26 * DAY_SECONDS,
        "r",
    )
    shutil.copytree(root, tmp_path / "before", symlinks=True)
    lines = attempts(root)
    assert [line["rc"] for line in lines if "rc" in line] == [0], lines
    whole = result(root, lines)
    shutil.rmtree(root)
    (tmp_path / "before").rename(root)
    killed = attempts(root, *ORDER)
    codes = {line["label"]: line["rc"] for line in killed if "rc" in line}
    assert codes == {**dict.fromkeys(ORDER, 137), "": 0}, [line for line in killed if "error" in line]
    found = result(root, killed)
    assert not list(root.glob("events/*.part"))
    for name in ("outcome", "events", "tables", "parts", "lists"):
        assert found[name] == whole[name], name
    for name, value in whole["towers"].items():
        np.testing.assert_array_equal(found["towers"][name], value, err_msg=name)
    ended = attempts(root)
    assert [line["rc"] for line in ended if "rc" in line] == [0]
    assert not [line for line in ended if "outcome" in line]  # nothing new

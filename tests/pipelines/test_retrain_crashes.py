"""Retraining is killed at every step, goes on, and ends where an uninterrupted one does."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from safetensors.numpy import load_file

from avrec_ray.bundle import load_bundle
from avrec_ray.new_items.submission import Submission
from avrec_ray.pipelines.event_export import exported, read_events
from avrec_ray.pipelines.retrain_plan import unfinished
from avrec_ray.pipelines.storage import Storage
from avrec_ray.types import Event
from tests.media.render import tone, write_media
from tests.pipelines.retrain_world import (
    DAY_SECONDS,
    START_SECONDS,
    accept,
    days,
    first_loop,
    post,
    retrain_job,
    show,
    take_down,
    write_given,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

LABELS = [
    ["export:events:begun", "export:events:written", "export:impressions:written", "plan:written", "new_items:noted",
     "decode_media:worked", "prepare:publishing", "prepare:worked"],
    ["finetune:worked", "bundle:worked", "register:versioned", "register:promoted", "register:recorded",
     "outcome:begun"],
]  # fmt: skip
if os.environ.get("AVREC_EVERY_CRASH_POINT"):
    LABELS = [
        ["export:events:begun", "export:events:written", "export:impressions:begun", "export:impressions:written",
         "plan:begun", "plan:written", "new_items:noted", "decode_media:begun", "decode_media:publishing",
         "decode_media:worked", "prepare:begun", "prepare:publishing", "prepare:worked", "drift:worked"],
        ["split:worked", "baselines:worked", "warm_start:worked", "finetune:worked", "finetune:recorded"],
        ["train_reranker:worked", "refresh:worked", "embed_items:worked", "build_index:worked"],
        ["bundle:worked", "evaluate:publishing", "evaluate:worked", "register:versioned", "register:promoted",
         "register:worked", "register:recorded", "outcome:begun"],
    ]  # fmt: skip
"""Where a run is killed, in the order in which it comes by; a test each, so that none takes too long. By default those
between which something is published; with AVREC_EVERY_CRASH_POINT all of them, which takes minutes more."""


@dataclass
class Swept:
    """A storage that is swept, and what an uninterrupted run made of the same one, at the same place."""

    root: Path
    whole: dict[str, Any]


def attempts(root: Path, *labels: str) -> list[dict[str, Any]]:
    """The last attempt, without a crash point, is there only where no label is given."""
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "tests.pipelines.killed_retrain", str(root), address, *labels]
    done = subprocess.run(command, capture_output=True, text=True, timeout=390, check=False, env=dict(os.environ))
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
        "items": load_bundle(outcome["bundle"]).items.item_ids,
        "lists": pq.read_table(folder / "evaluation" / "recommendations.parquet").drop(["score"]).to_pydict(),
    }


@pytest.fixture(scope="module")
def prepared(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A champion, new events and a served list, beside a copy of all of it."""
    root = tmp_path_factory.mktemp("crashes") / "run"
    job = retrain_job(root)
    write_given(root, days(0, 20, "past"))
    first_loop(job)
    new = days(20, 5, "new", swapped=True)
    post(job, new)
    sound = root.with_name("sound.mp4")
    write_media(sound, num_frames=10, fps=10, sound=tone(1.0))
    accept(job, Submission("heard", "a new item"), sound)
    take_down(job, "i03")
    at = START_SECONDS + 24.5 * DAY_SECONDS
    post(job, [Event(f"u{n:02d}", "heard", "like", at + n, event_id=f"heard-{n}") for n in range(10)])
    mine = [event.item_id for event in new if event.user_id == "u00"][:4]
    show(job, "u00", mine, START_SECONDS + 26 * DAY_SECONDS, "r")
    shutil.copytree(root, root.with_name("before"), symlinks=True)
    return root


@pytest.fixture(scope="module")
def swept(prepared: Path) -> Swept:
    lines = attempts(prepared)
    assert [line["rc"] for line in lines if "rc" in line] == [0], lines
    whole = result(prepared, lines)
    assert ("heard" in whole["items"], "i03" in whole["items"]) == (True, False)
    shutil.rmtree(prepared)
    prepared.with_name("before").rename(prepared)
    return Swept(prepared, whole)


def test_storage_for_the_sweep_is_there(prepared: Path) -> None:
    """By itself, because of what it takes."""
    assert prepared.with_name("before").is_dir()


@pytest.mark.parametrize("labels", LABELS, ids=lambda labels: labels[0])
def test_killed_run_leaves_a_whole_champion_and_goes_on(swept: Swept, labels: list[str]) -> None:
    """Tests of one order: each goes on where the one before was killed."""
    killed = attempts(swept.root, *labels)
    codes = {line["label"]: line["rc"] for line in killed if "rc" in line}
    assert codes == dict.fromkeys(labels, 137), [line for line in killed if "error" in line]
    assert unfinished(Storage.at(str(swept.root))) is not None


def test_run_killed_at_every_step_ends_as_an_uninterrupted_one(swept: Swept) -> None:
    lines = attempts(swept.root)
    found = result(swept.root, lines)
    assert not list(swept.root.glob("events/*.part"))
    for name in ("outcome", "events", "tables", "parts", "items", "lists"):
        assert found[name] == swept.whole[name], name
    for name, value in swept.whole["towers"].items():
        np.testing.assert_array_equal(found["towers"][name], value, err_msg=name)
    ended = attempts(swept.root)
    assert [line["rc"] for line in ended if "rc" in line] == [0]
    assert not [line for line in ended if "outcome" in line]  # nothing new

"""Run as a process by test_retrain_crashes: retraining, killed at one crash point after the other.

    python -m tests.pipelines.killed_retrain <storage_path> <ray address> [label ...]

Each attempt is a forked child (importing takes longer than what is tested). Before it works, it looks whether the
champion is a whole bundle. Without labels nothing is killed. Prints one line of JSON an attempt.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import mlflow.artifacts  # noqa: F401  so that the children need not
import ray
import ray.data
import ray.train.torch  # noqa: F401

from avrec_ray.bundle import load_bundle
from avrec_ray.durable import CRASH_AT
from avrec_ray.pipelines import retrain
from avrec_ray.pipelines.full_loop import open_loop
from avrec_ray.pipelines.session import session
from tests.pipelines.retrain_world import retrain_job


def attempt(root: Path, address: str, label: str) -> None:
    os.environ[CRASH_AT] = label
    job = retrain_job(root)
    job.cluster = replace(job.cluster, address=address)
    with open_loop(job, "retrain") as loop:
        champion = loop.tracking.champion()
        assert champion is not None
        served = load_bundle(loop.tracking.resolve_bundle("models:/avrec_ray@champion"))
        assert served.metadata.model_version == champion.model_version
        with session(job.cluster):
            outcome = retrain.run(loop, job)
    if outcome is not None and not label:
        print(json.dumps({"outcome": outcome.__dict__}), flush=True)


def main(root: Path, address: str, labels: list[str]) -> None:
    for label in labels or [""]:
        child = os.fork()
        if not child:
            try:
                attempt(root, address, label)
            except BaseException as error:
                print(json.dumps({"label": label, "error": f"{type(error).__name__}: {error}"}), flush=True)
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"label": label, "rc": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])

"""A training by Ray Train, killed (SIGKILL) over and over, against one that nobody killed.

Run: PYTHONPATH=. python benchmarks/train_kills.py [--kills 12] [--seed 0]

By turns the driver, a training worker, or both at once are killed; every other kill waits for the first file of a
checkpoint that is being written, so that it falls within the write, the others come at a random moment of a random
batch. A driver is started again at once. A training that ends is checked and begun anew until the kills are used up.
Printed for each training: kills, whether weights are equal to 1e-6, how many MLflow runs its stage has and whether
every epoch is in its curve once; exit status 1 if anything differs.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import psutil
from safetensors.torch import load_file

from avrec_ray.cluster_config import TrackingConfig
from avrec_ray.pipelines.storage import Storage
from avrec_ray.pipelines.tracking import Tracking
from tests.pipelines.killed_decoding import Driver, start
from tests.pipelines.killed_worker import EPOCHS, PAUSE

TARGETS = ("driver", "worker", "both")


def main(num_kills: int, seed: int) -> None:
    os.environ[PAUSE] = "0.3"  # a batch takes long enough to be hit
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        if start_driver(root / "whole").wait():
            sys.exit((root / "whole" / "log").read_text())
        whole, good, done = load_file(str(root / "whole" / "weights.safetensors")), True, 0
        while done < num_kills:
            kills = killed_training(root / "killed", rng, min(2, num_kills - done), done)
            found = load_file(str(root / "killed" / "weights.safetensors"))
            furthest = max(float((found[key] - value).abs().max()) for key, value in whole.items())
            num_runs, once = curve_of(root / "killed")
            good &= furthest <= 1e-6 and num_runs == 1 and once
            done += len(kills)
            print(f"{', '.join(kills) or 'ended before its kill'}: weights differ by {furthest:.1g}, "
                  f"{num_runs} MLflow run, each epoch once {once}", flush=True)  # fmt: skip
            shutil.rmtree(root / "killed")
    print(f"{done} kills: all equal and one run each {good}")
    sys.exit(not good)


def killed_training(folder: Path, rng: random.Random, num_kills: int, number: int) -> list[str]:
    """One training from nothing to its weights, and what was killed on the way."""
    driver, kills = start_driver(folder), []
    for kill in range(number, number + num_kills):
        target, within_write = TARGETS[kill % len(TARGETS)], kill % 2 == 0
        if not wait_for_moment(folder, driver, rng, within_write):
            break
        workers = training_workers(driver)
        if target in ("worker", "both") and workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                rng.choice(workers).kill()
        if target in ("driver", "both"):
            driver.send_signal(signal.SIGKILL)
            driver.wait()
            driver = start_driver(folder)
        kills.append(f"{target}{' in a checkpoint' if within_write else ''}")
    if driver.wait():
        sys.exit((folder / "log").read_text())
    return kills


def wait_for_moment(folder: Path, driver: Driver, rng: random.Random, within_write: bool) -> bool:
    """Until a checkpoint later than any that is there is being written, or somewhere behind it; false: it ended."""
    before = set(folder.glob("checkpoints/train/*/epoch_*"))
    while driver.poll() is None:
        if new := set(folder.glob("checkpoints/train/*/epoch_*")) - before:
            if not within_write:
                time.sleep(rng.uniform(0.0, 0.6))
                return driver.poll() is None
            if any(list(path.glob("*.part")) for path in new):
                return True
            before |= new
    return False


def training_workers(driver: Driver) -> list[psutil.Process]:
    """Ray Train's workers under a driver."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(driver.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    found.append(process)
    return found


def curve_of(folder: Path) -> tuple[int, bool]:
    """MLflow runs of the stage, and whether the loss has every epoch once."""
    tracking = Tracking(TrackingConfig(system_metrics_seconds=0), Storage.at(str(folder)))
    runs = tracking.client.search_runs([tracking.experiment_id], "tags.stage = 'train'")
    steps = sorted(p.step for p in tracking.client.get_metric_history(runs[0].info.run_id, "train/loss"))
    return len(runs), steps == list(range(EPOCHS))


def start_driver(folder: Path) -> Driver:
    folder.mkdir(exist_ok=True)
    return start([sys.executable, "-m", "tests.pipelines.killed_worker", str(folder)], folder / "log")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.kills, arguments.seed)

"""Runs of retraining under storage_path/retrain/: what each set out to do, and what became of it.

retrain/run-<watermark>/plan.json is written before anything else, outcome.json at the very end. A run without an
outcome was killed or failed: the next call goes on with it, on the events and from the champion that its plan names.
"""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from avrec_ray.dataclass_io import from_dict, to_dict
from avrec_ray.durable import crash_point
from avrec_ray.errors import ConfigError, StageError
from avrec_ray.feedback.impressions import Watermark
from avrec_ray.pipelines.atomic import write_text_atomically
from avrec_ray.pipelines.storage import Storage

FOLDER = "retrain"
_PLAN, _OUTCOME = "plan.json", "outcome.json"


@dataclass(frozen=True)
class Plan:
    """One retraining: which events it learns from, and which champion it starts at."""

    name: str
    since: Watermark
    """Events behind it are new."""
    upto: Watermark
    champion: str
    """As the registry addresses it: models:/name/version."""
    champion_version: str
    """Its model_version."""

    def folder(self, storage: Storage) -> Path:
        """Where the run keeps its tables, its stages and its bundle."""
        return storage.folder(FOLDER) / self.name


@dataclass(frozen=True)
class Outcome:
    """What a finished retraining came to."""

    name: str
    bundle: str
    model_version: str
    registry_version: str
    passed: bool
    """Whether it became champion."""
    num_new_events: int
    held_back: dict[str, int] = field(default_factory=dict)
    """Events held back, by reason."""
    drifted: list[str] = field(default_factory=list)
    """Distributions that were warned about."""
    num_new_items: int = 0
    """Items in the bundle that were submitted to the running service."""
    num_new_items_set_aside: int = 0
    """Such items whose media could not be decoded now."""


def new_plan(since: Watermark, upto: Watermark, champion: str, champion_version: str) -> Plan:
    """A plan named after how far it reads."""
    return Plan(f"run-{upto.events:012d}", since, upto, champion, champion_version)


def save_plan(storage: Storage, plan: Plan) -> None:
    """Write a plan down; from here on the run exists."""
    crash_point("plan:begun")
    folder = plan.folder(storage)
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomically(folder / _PLAN, json.dumps(to_dict(plan), indent=1))
    crash_point("plan:written")


def save_outcome(storage: Storage, plan: Plan, outcome: Outcome) -> None:
    """Write down that a run has ended."""
    crash_point("outcome:begun")
    write_text_atomically(plan.folder(storage) / _OUTCOME, json.dumps(to_dict(outcome), indent=1))
    crash_point("outcome:written")


def unfinished(storage: Storage) -> Plan | None:
    """The run that was begun and has no outcome."""
    left = [plan for plan in _plans(storage) if not (plan.folder(storage) / _OUTCOME).is_file()]
    return left[-1] if left else None


def last_finished(storage: Storage) -> Plan | None:
    """The newest run with an outcome."""
    ended = [plan for plan in _plans(storage) if (plan.folder(storage) / _OUTCOME).is_file()]
    return ended[-1] if ended else None


def read_outcome(storage: Storage, plan: Plan) -> Outcome:
    """What a finished run came to."""
    return from_dict(Outcome, json.loads((plan.folder(storage) / _OUTCOME).read_text()))


def prune(storage: Storage, keep: int) -> list[Path]:
    """Remove the folders of finished runs but the newest `keep`; returns what went.

    Renamed first: a folder that is half removed must not look like a run that was killed.
    """
    ended = [plan for plan in _plans(storage) if (plan.folder(storage) / _OUTCOME).is_file()]
    old = [plan.folder(storage) for plan in ended[:-keep]]
    for folder in old:
        folder.rename(folder.with_name(f"removed-{folder.name}"))
        crash_point("prune:renamed")
    for folder in storage.folder(FOLDER).glob("removed-*"):
        shutil.rmtree(folder)
    return old


def _plans(storage: Storage) -> list[Plan]:
    return [_read_plan(path) for path in sorted(storage.folder(FOLDER).glob(f"run-*/{_PLAN}"))]


def _read_plan(path: Path) -> Plan:
    try:
        return from_dict(Plan, json.loads(path.read_text()))
    except (ValueError, ConfigError) as error:
        raise StageError(f"{path} cannot be read ({error}); remove its folder to begin that run anew") from error


@contextmanager
def retrain_lock(storage: Storage) -> Iterator[None]:
    """One retraining at a time under one storage_path; the lock ends with the process.

    Raises:
        StageError: another one is at work.
    """
    with (storage.root / "retrain.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StageError(f"another retraining runs under {storage.root}; wait until it has ended") from error
        yield

"""A stage: skipped when it is done, tracked when it runs, and leaving its old outputs alone when it fails.

A stage is done when its record under stages/ carries the fingerprint of (name, code version, settings, inputs) and its
outputs exist. Inputs are the fingerprints of the stages before it, or digests of the user's own files.
"""

import hashlib
import json
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avrec_ray import __version__
from avrec_ray.cluster_config import TrackingConfig
from avrec_ray.durable import crash_point
from avrec_ray.errors import StageError
from avrec_ray.pipelines.atomic import write_text_atomically
from avrec_ray.pipelines.storage import Storage
from avrec_ray.pipelines.tracking import Run, Tracking

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class StageRecord:
    """What a finished stage leaves in stages/<name>.json."""

    stage: str
    fingerprint: str
    outputs: list[str]
    metrics: dict[str, float]
    run_id: str
    seconds: float


@dataclass(eq=False)
class StageRun:
    """A running stage: where to print, where to log, and how to publish a folder."""

    name: str
    fingerprint: str
    run: Run
    storage: Storage
    log: Callable[[str], None]

    @contextmanager
    def publish(self, *names: str) -> Iterator[tuple[Path, ...]]:
        """Empty folders to write into; on success they replace the folders `names`, on error nothing changes."""
        finals = [self.storage.folder(name) for name in names]
        staged = [final.with_name(final.name + ".part") for final in finals]
        for folder in staged:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        try:
            yield tuple(staged)
        except BaseException:
            for folder in staged:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        for folder, final in zip(staged, finals, strict=True):
            shutil.rmtree(final, ignore_errors=True)
            crash_point(f"{self.name}:publishing")
            folder.rename(final)


@dataclass(eq=False)
class Loop:
    """One pass over stages: what they share, and the tracking, opened when the first stage has work to do."""

    storage: Storage
    tracking_config: TrackingConfig
    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    num_stages: int = 0
    echo: Callable[[str], None] = print
    _tracking: Tracking | None = None
    _parent: Run | None = None
    _count: int = 0

    @property
    def tracking(self) -> Tracking:
        """The MLflow connection."""
        if self._tracking is None:
            self._tracking = Tracking(self.tracking_config, self.storage)
        return self._tracking

    @property
    def parent(self) -> Run:
        """The parent run, opened on first use; that of the same loop whose driver was killed goes on."""
        if self._parent is None:
            fingerprint = fingerprint_of(self.name, self.params, {})
            self._parent = self._opened(
                f"loop-{self.name}", fingerprint, lambda: self._start_run(self.name, self.params)
            )
        return self._parent

    def _start_run(self, name: str, params: Mapping[str, Any], parent: str | None = None) -> Run:
        return self.tracking.start(name, params, parent)

    def _opened(self, name: str, fingerprint: str, start: Callable[[], Run]) -> Run:
        """The run that a killed driver left open under this name and fingerprint, or a new one."""
        left = read_open_run(self.storage, name)
        run = self.tracking.reopen(left["run_id"]) if left.get("fingerprint") == fingerprint else None
        run = run or start()
        write_open_run(self.storage, name, {"fingerprint": fingerprint, "run_id": run.run_id})
        return run

    def resolve_bundle(self, reference: str) -> Path:
        """The bundle of a folder or registry reference; empty: the last one built under storage_path."""
        if not reference:
            return Path(require_record(self.storage, "bundle").outputs[0])
        return self.tracking.resolve_bundle(reference) if reference.startswith("models:/") else Path(reference)

    def bundle_to_serve(self, reference: str) -> Path:
        """As `resolve_bundle`, but empty means the registry's champion; the last bundle built before there is one."""
        champion = None if reference else self.tracking.champion()
        if champion is None:
            return self.resolve_bundle(reference)
        self.echo(f"serving champion {champion.model_version} (version {champion.version} of {champion.name})")
        return self.tracking.resolve_bundle(champion.reference)

    @property
    def tracking_uri(self) -> str:
        """Where runs are logged, without opening it."""
        return self.tracking_config.uri or self.storage.tracking_uri

    @property
    def had_work(self) -> bool:
        """Whether any stage ran."""
        return self._parent is not None

    def close(self, failed: bool = False) -> None:
        """End the parent run, if there was work."""
        if self._parent is not None:
            self._parent.end(failed)
            forget_open_run(self.storage, f"loop-{self.name}")

    def stage(
        self,
        name: str,
        work: Callable[[StageRun], Metrics],
        *,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        outputs: Sequence[Path],
    ) -> StageRecord:
        """Run `work` unless it is done already, and record it.

        Args:
            name: of the stage; also of its MLflow run.
            work: does the stage and returns its metrics.
            settings: everything that changes the result.
            inputs: name to fingerprint or digest.
            outputs: what exists afterwards.
        """
        self._count += 1
        label = f"[{self._count}/{self.num_stages}] {name}" if self.num_stages else name
        fingerprint = fingerprint_of(name, settings, inputs)
        done = read_record(self.storage, name)
        if done and done.fingerprint == fingerprint and all(path.exists() for path in outputs):
            self.echo(f"{label}: already done with these inputs, skipped")
            return done
        self.echo(f"{label}: started")
        began = time.monotonic()
        parent = self.parent.run_id
        run = self._opened(name, fingerprint, lambda: self._start_run(name, settings, parent))
        crash_point(f"{name}:begun")
        self.tracking.watch(run)  # not the parent: its metrics are what the compare view shows
        run.tags({"stage": name, "fingerprint": fingerprint, **{f"input.{k}": v for k, v in inputs.items()}})
        try:
            metrics = dict(
                work(StageRun(name, fingerprint, run, self.storage, lambda text: self.echo(f"{label}: {text}")))
            )
        except BaseException:
            run.artifact_json(traceback.format_exc(), "error.json")
            run.end(failed=True)
            forget_open_run(self.storage, name)
            raise
        crash_point(f"{name}:worked")
        seconds = time.monotonic() - began
        run.metrics({**metrics, "stage_seconds": seconds})
        run.end()
        record = StageRecord(name, fingerprint, [str(p) for p in outputs], metrics, run.run_id, round(seconds, 2))
        write_record(self.storage, record)
        crash_point(f"{name}:recorded")
        forget_open_run(self.storage, name)
        self.echo(f"{label}: done in {seconds:.1f} s  {_short(metrics)}")
        return record


def fingerprint_of(name: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """sha256 over everything that decides a stage's result."""
    text = json.dumps([name, __version__, settings, dict(inputs)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: Path) -> str:
    """sha256 of a file's content.

    Raises:
        StageError: it does not exist.
    """
    if not path.is_file():
        raise StageError(f"{path} does not exist; give data.items and data.interactions, or run jobs.prepare first")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_path(storage: Storage, name: str) -> Path:
    """File of a stage's record."""
    return storage.folder("stages") / f"{name}.json"


def read_record(storage: Storage, name: str) -> StageRecord | None:
    """The record of the last finished run of a stage; None if there is none."""
    path = record_path(storage, name)
    return StageRecord(**json.loads(path.read_text())) if path.is_file() else None


def forget_record(storage: Storage, name: str) -> None:
    """Take back that a stage is done, before its outputs are touched outside of `StageRun.publish`."""
    record_path(storage, name).unlink(missing_ok=True)


def require_record(storage: Storage, name: str) -> StageRecord:
    """As `read_record`; StageError names the job to run when there is none."""
    record = read_record(storage, name)
    if record is None:
        raise StageError(f"stage {name!r} has not finished under {storage.root}; run: python -m jobs.full_loop")
    return record


def write_record(storage: Storage, record: StageRecord) -> None:
    """Write a stage's record atomically."""
    path = record_path(storage, record.stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_suffix(".part")
    staged.write_text(json.dumps(record.__dict__, indent=1))
    staged.rename(path)


def open_run_path(storage: Storage, name: str) -> Path:
    """File that is there while a stage's MLflow run is open."""
    return storage.folder("stages") / f"{name}.running.json"


def read_open_run(storage: Storage, name: str) -> dict[str, str]:
    """The run_id and fingerprint of a stage that has begun and not ended; empty if there is none."""
    try:
        return dict(json.loads(open_run_path(storage, name).read_text()))
    except (OSError, ValueError):  # absent, or torn by the kill that it is there for
        return {}


def write_open_run(storage: Storage, name: str, values: Mapping[str, str]) -> None:
    """Note that a stage has begun."""
    path = open_run_path(storage, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, json.dumps(dict(values)))


def forget_open_run(storage: Storage, name: str) -> None:
    """Note that it has ended."""
    open_run_path(storage, name).unlink(missing_ok=True)


def _short(metrics: Metrics) -> str:
    shown = list(metrics.items())[:5]
    return "  ".join(f"{key} {value:.4g}" for key, value in shown)

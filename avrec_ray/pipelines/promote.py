"""The registry: an evaluated bundle goes in, and becomes champion if the gate lets it; one command back."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from avrec_ray.config import JobConfig
from avrec_ray.dataclass_io import to_dict
from avrec_ray.durable import crash_point
from avrec_ray.errors import ConfigError, StageError
from avrec_ray.pipelines.bundle import bundle_folder
from avrec_ray.pipelines.gate import judge
from avrec_ray.pipelines.stage import Loop, StageRecord, StageRun, require_record
from avrec_ray.pipelines.storage import Storage
from avrec_ray.pipelines.tracking import REPLACED, VERDICT, Registered


def register(loop: Loop, job: JobConfig) -> StageRecord:
    """Stage `register`: the evaluated bundle into MLflow's registry; alias `champion` if the gate lets it."""
    storage = loop.storage
    evaluated = require_record(storage, "evaluate")
    folder = bundle_folder(loop, job)

    def work(stage: StageRun) -> dict[str, float]:
        with promotion_lock(storage):
            verdict = judge(loop, job, folder, stage.log)
            tags = {k.removeprefix("test/"): f"{v:.6f}" for k, v in evaluated.metrics.items() if k.startswith("test/")}
            tags |= {VERDICT: "passed" if verdict.passed else "refused", "checks": "\n".join(verdict.lines())[:5000]}
            version = loop.tracking.register(stage.run, folder, folder.name, tags)
            crash_point("register:versioned")
            stage.run.artifact_json([check.__dict__ for check in verdict.checks], "verdict.json")
            for line in verdict.lines():
                stage.log(line)
            if verdict.passed:
                loop.tracking.promote(version)
                crash_point("register:promoted")
                stage.log(f"{job.tracking.model_name} version {version} is now @champion: {folder.name}")
            else:
                stays = "the champion stays" if loop.tracking.champion() else "there is no champion yet"
                stage.log(f"version {version} ({folder.name}) is refused; {stays}")
        return {"registry_version": float(version), "passed": float(verdict.passed)}

    return loop.stage(
        "register",
        work,
        settings={
            "model_name": job.tracking.model_name,
            "uri": loop.tracking_config.uri,
            "gate": to_dict(job.evaluation.gate),
            "audit": to_dict(job.evaluation.audit),
        },
        inputs={"evaluate": evaluated.fingerprint},
        outputs=[folder],
    )


def run(loop: Loop, job: JobConfig) -> Registered:
    """jobs.promote: make `version` champion, or with `rollback` the one that the present champion replaced.

    Raises:
        StageError: the gate refused the version and `force` is not set, or there is nothing to go back to.
    """
    if bool(job.version) == job.rollback:
        raise ConfigError(
            f"version={job.version!r} and rollback={job.rollback}; give one of version=<n>, rollback=true"
        )
    with promotion_lock(loop.storage):
        version = _version_before(loop) if job.rollback else job.version
        found = loop.tracking.registered(version)
        if found.tags.get(VERDICT) != "passed" and not (job.force or job.rollback):
            raise StageError(
                f"version {version} was {found.tags.get(VERDICT, 'never judged')} by the gate:\n"
                f"{found.tags.get('checks', '')}\ngive force=true to promote it all the same"
            )
        return loop.tracking.promote(version)


def _version_before(loop: Loop) -> str:
    champion = loop.tracking.champion()
    if champion is None or REPLACED not in champion.tags:
        present = f"version {champion.version}, which replaced none" if champion else "not set"
        raise StageError(f"champion is {present}; give version=<n> of the registry instead of rollback=true")
    return champion.tags[REPLACED]


@contextmanager
def promotion_lock(storage: Storage) -> Iterator[None]:
    """One promotion at a time under one storage_path, so that none judges against a champion that is being replaced.

    Raises:
        StageError: another promotion holds it.
    """
    with (storage.root / "promotion.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StageError(
                f"another promotion is running under {storage.root}; try again when it has ended"
            ) from error
        yield

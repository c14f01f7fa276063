"""The split of interactions into train, valid and test. Towers learn from train, the reranker from valid."""

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from avrec_ray.config import JobConfig
from avrec_ray.dataclass_io import to_dict
from avrec_ray.errors import StageError
from avrec_ray.evaluation.leaks import find_leaks
from avrec_ray.evaluation.split import Split, split_interactions
from avrec_ray.pipelines.stage import Loop, StageRecord, StageRun, require_record
from avrec_ray.pipelines.tracking import Run
from avrec_ray.pipelines.users_of_job import drop_erased, erased_users

PARTS = ("train", "valid", "context", "test")


def run(loop: Loop, job: JobConfig) -> StageRecord:
    """Stage `split`: tables/interactions.parquet to splits/{train,valid,context,test}.parquet and splits/split.json."""
    storage, erased = loop.storage, erased_users(job)

    def work(stage: StageRun) -> dict[str, float]:
        drop_erased(storage, erased)
        split = split_interactions(pq.read_table(storage.interactions), job.evaluation.split)
        parts = {"train": split.train, "valid": split.valid, "context": split.context, "test": split.test}
        for name, table in parts.items():
            if not table.num_rows and name != "context":
                raise StageError(f"split: the {name} part is empty; give more interactions or larger fractions")
        if leaks := find_leaks(split.train, split.valid, split.test, split):
            raise StageError("split: " + "; ".join(leak.message for leak in leaks))
        with stage.publish("splits") as (folder,):
            for name, table in parts.items():
                pq.write_table(table, folder / f"{name}.parquet")
            (folder / "split.json").write_text(json.dumps(_description(split, job), indent=1))
        stage.run.tags({f"digest.{name}": digest for name, digest in split.digests.items()})
        return {f"num_{name}": float(table.num_rows) for name, table in parts.items()}

    return loop.stage(
        "split",
        work,
        settings=to_dict(job.evaluation.split),
        # Everything that is learned depends on the split: after an erasure nothing counts as done any more.
        inputs={
            "prepare": require_record(storage, "prepare").fingerprint,
            **({"erased": erased.digest()} if len(erased) else {}),
        },
        outputs=[storage.folder("splits") / f"{name}.parquet" for name in PARTS],
    )


@dataclass(frozen=True)
class SplitDescription:
    """What splits/split.json says."""

    kind: str
    boundaries: dict[str, float]
    hidden: dict[str, list[str]]
    candidates: list[str] | None
    digests: dict[str, str]
    refit: bool

    @property
    def fitted(self) -> tuple[str, ...]:
        """Parts that a served model has learned from when test is asked."""
        return ("train", "valid") if self.refit else ("train",)

    @property
    def history(self) -> tuple[str, ...]:
        """Parts that are a user's history when test is asked."""
        return (*self.fitted, "context")

    def candidates_at(self, part: str) -> list[str] | None:
        """Items that a ranking at `part`, "valid" or "test", chooses from; None: the catalogue."""
        return None if self.candidates is None else self.hidden[part]


def read_split(storage_root: Path) -> SplitDescription:
    """The description of the split under a storage folder."""
    return SplitDescription(**json.loads((storage_root / "splits" / "split.json").read_text()))


def read_candidates(storage_root: Path) -> list[str] | None:
    """Items that a ranking at test chooses from; None: the catalogue."""
    return read_split(storage_root).candidates_at("test")


def note_inputs(run: Run, storage_root: Path) -> None:
    """Say in an MLflow run which parts it learned from and which it was measured on."""
    digests = read_split(storage_root).digests
    paths = {name: storage_root / "splits" / f"{name}.parquet" for name in digests}
    run.inputs("training", {paths[name]: digests[name] for name in digests if name != "test"})
    run.inputs("evaluation", {paths["test"]: digests["test"]})


def history_paths(storage_root: Path) -> list[Path]:
    """The tables that are a user's history when test is asked."""
    return [storage_root / "splits" / f"{part}.parquet" for part in read_split(storage_root).history]


def _description(split: Split, job: JobConfig) -> dict[str, object]:
    return {
        "kind": split.kind,
        "boundaries": split.boundaries,
        "hidden": split.hidden,
        "candidates": split.candidates,
        "digests": split.digests,
        "refit": job.evaluation.split.refit,
    }

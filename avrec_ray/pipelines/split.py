"""The split of interactions by time into train, valid and test. Towers learn from train, the reranker from valid."""

import pyarrow.parquet as pq

from avrec_ray.config import JobConfig
from avrec_ray.dataclass_io import to_dict
from avrec_ray.errors import StageError
from avrec_ray.evaluation.split import split_interactions
from avrec_ray.pipelines.stage import Loop, StageRecord, StageRun, require_record


def run(loop: Loop, job: JobConfig) -> StageRecord:
    """Stage `split`: tables/interactions.parquet to splits/{train,valid,test}.parquet."""
    storage = loop.storage

    def work(stage: StageRun) -> dict[str, float]:
        split = split_interactions(pq.read_table(storage.interactions), job.evaluation.split)
        parts = {"train": split.train, "valid": split.valid, "test": split.test}
        for name, table in parts.items():
            if not table.num_rows:
                raise StageError(f"split: the {name} part is empty; give more interactions or larger fractions")
        with stage.publish("splits") as (folder,):
            for name, table in parts.items():
                pq.write_table(table, folder / f"{name}.parquet")
        return {f"num_{name}": float(table.num_rows) for name, table in parts.items()}

    return loop.stage(
        "split",
        work,
        settings=to_dict(job.evaluation.split),
        inputs={"prepare": require_record(storage, "prepare").fingerprint},
        outputs=[storage.folder("splits") / f"{name}.parquet" for name in ("train", "valid", "test")],
    )

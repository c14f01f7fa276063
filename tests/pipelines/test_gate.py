"""The gate on an evaluation made by hand: slices by name against the champion's saved lists, and both audits."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avrec_ray.config import JobConfig
from avrec_ray.evaluation.gate import Verdict
from avrec_ray.pipelines.champion import ChampionLists
from avrec_ray.pipelines.full_loop import open_loop
from avrec_ray.pipelines.gate import judge
from avrec_ray.pipelines.measured import SERVED, Rankings
from avrec_ray.pipelines.stage import StageRecord, write_record
from avrec_ray.types import INTERACTIONS
from tests.tiny_bundle import build_tiny_bundle
from tests.tiny_measured import NUM_ITEMS, describe_split, recommendations, tiny_measured, tiny_storage

WANTED = ["all", "gender_F", "category_music", "audio_text", "country_DE"]


def judge_against(folder: Path, champion: Rankings | None) -> Verdict:
    """The verdict on tiny_measured, beside lists that evaluation saved as those of champion v-2."""
    measured = tiny_measured(folder / "v-1")
    storage = tiny_storage(folder / "run", measured.bundle)
    evaluation = storage.folder("evaluation")
    for path in (evaluation, storage.folder("splits")):
        path.mkdir()
    describe_split(storage.root)
    for part in ("train", "valid"):
        pq.write_table(pa.Table.from_pylist([], INTERACTIONS), storage.folder("splits") / f"{part}.parquet")
    pq.write_table(measured.truth, evaluation / "truth.parquet")
    pq.write_table(measured.recommendations, evaluation / "recommendations.parquet")
    write_record(storage, StageRecord("build_index", "f", [], {"recall_at_100_of_exact": 1.0}, "r", 0.0))
    job = JobConfig(storage_path=str(storage.root))
    job.evaluation.gate.slices, job.evaluation.gate.min_users = WANTED, 10
    with open_loop(job, "loop") as loop:
        if champion is not None:
            ChampionLists("", "v-2", recommendations(champion, measured.bundle)).save(evaluation)
            run = loop.tracking.start("register", {}, parent=loop.parent.run_id)
            loop.tracking.promote(loop.tracking.register(run, build_tiny_bundle(folder / "v-2", 12), "v-2", {}))
        return judge(loop, job, measured.bundle.path, lambda line: None)


def test_slices_are_judged_by_name_and_an_unknown_one_is_a_note(tmp_path: Path) -> None:
    measured = tiny_measured(tmp_path / "other" / "v-1")
    better = np.array(
        [
            [*target, *(item for item in row if item not in target)][:20]
            for target, row in zip(measured.targets, measured.rankings[SERVED], strict=True)
        ]
    )
    checks = {check.name: check for check in judge_against(tmp_path, better).checks}
    for name in WANTED[:-1]:
        assert not checks[f"not worse on {name}"].passed
        assert checks[f"not worse on {name}"].blocks
        assert "difference -0" in checks[f"not worse on {name}"].found
    assert "over 20 users" in checks["not worse on gender_F"].found
    unknown = checks["not worse on country_DE"]
    assert (unknown.passed, unknown.blocks) == (False, False)
    assert unknown.found.startswith("not judged: this data has no such slice, only all, audio_text, category_cooking")


def test_without_champion_there_is_a_remark_and_both_audits(tmp_path: Path) -> None:
    checks = {check.name: check for check in judge_against(tmp_path, None).checks}
    assert checks["champion"].found == "There is no champion yet."
    assert [name for name in checks if name.startswith("audit of")] == [
        "audit of popularity",
        "audit of category",
        "audit of creator",
        "audit of users by history",
        "audit of users by gender",
    ]
    assert checks["audit of users by gender"].passed
    assert checks["audit of users by gender"].found == "0 groups within the limits"  # 20 users each, 30 are needed


@pytest.mark.parametrize("served", [True, False])
def test_lists_as_good_as_the_champions_pass(tmp_path: Path, served: bool) -> None:
    measured = tiny_measured(tmp_path / "other" / "v-1")
    lists = measured.rankings[SERVED if served else "popularity"]
    verdict = judge_against(tmp_path, lists)
    judged = [check for check in verdict.checks if check.name.startswith("not worse on") and check.blocks]
    assert len(judged) == len(WANTED) - 1
    assert all(check.passed for check in judged)
    assert lists.shape[1] < NUM_ITEMS

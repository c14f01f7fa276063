"""Every baseline, tuned on valid, fitted on train and valid, asked about test: what any model is shown beside."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from avrec_ray.config import JobConfig
from avrec_ray.dataclass_io import to_dict
from avrec_ray.errors import ConfigError, StageError
from avrec_ray.evaluation.baselines import CONTENT_BASELINES, Baseline, build_baseline
from avrec_ray.evaluation.metrics import Ranked, cold_item_metrics, evaluate_rankings
from avrec_ray.evaluation.text_vectors import join_vectors, text_vectors
from avrec_ray.evaluation.tuning import GRIDS, BaselinesConfig, Question, Settings, choose_settings
from avrec_ray.media.text import item_text
from avrec_ray.pipelines.catalogue import every_vector, item_durations, read_items
from avrec_ray.pipelines.measured import truth_table
from avrec_ray.pipelines.question import ask
from avrec_ray.pipelines.split import note_inputs
from avrec_ray.pipelines.stage import Loop, StageRecord, StageRun, require_record
from avrec_ray.types import RECOMMENDATIONS

NOBODY_ASKED = "no user with a history has held-out choices; give a longer span of interactions"


@dataclass(frozen=True, eq=False)
class RankedBaseline:
    """What one baseline answered."""

    name: str
    settings: Settings
    lists: pa.Table
    metrics: dict[str, float]


def run(loop: Loop, job: JobConfig) -> StageRecord:
    """Stage `baselines`: splits/ to baselines/<name>.parquet, a recommendations table each, and an MLflow run each."""
    storage, folder = loop.storage, loop.storage.folder("baselines")

    def work(stage: StageRun) -> dict[str, float]:
        items = read_items(storage.items, catalogue_ids(storage.folder("clips")))
        index = {item_id: row for row, item_id in enumerate(items["item_id"].to_pylist())}
        valid, test = (ask(storage.root, index, item_durations(items), part) for part in ("valid", "test"))
        if not test.users:
            raise StageError(NOBODY_ASKED)
        given = every_vector(storage.items, list(index))
        ranked = list(_rank_all(items, given, valid, test, job, stage.log))
        with stage.publish("baselines") as (staged,):
            for found in ranked:
                pq.write_table(found.lists, staged / f"{found.name}.parquet")
            pq.write_table(truth_table(test, list(index)), staged / "truth.parquet")
            (staged / "names.json").write_text(json.dumps([found.name for found in ranked]))
        for found in ranked:
            _log_run(loop, job, found, folder)
        return {f"{found.name}/ndcg_at_10": found.metrics.get("ndcg_at_10", np.nan) for found in ranked}

    return loop.stage(
        "baselines",
        work,
        settings=_settings(job, loop.tracking_uri),
        inputs={name: require_record(storage, name).fingerprint for name in ("split", "decode_media")},
        outputs=[folder],
    )


def read_baselines(folder: Path) -> dict[str, pa.Table]:
    """Recommendations tables by baseline, in the order of metric tables."""
    names = json.loads((folder / "names.json").read_text())
    return {name: pq.read_table(folder / f"{name}.parquet") for name in names}


def catalogue_ids(clips: Path) -> list[str]:
    """Items that can be recommended, those with a row in the clips table, in catalogue order."""
    return sorted(set(pq.read_table(clips, columns=["item_id"])["item_id"].to_pylist()))


def _settings(job: JobConfig, tracking_uri: str) -> dict[str, Any]:
    """What decides the stage: also where its runs are logged, so that every experiment has its baselines."""
    evaluation = job.evaluation
    return {
        **to_dict(evaluation.baselines),
        "grids": GRIDS,
        "seed": job.seed,
        "cutoffs": list(evaluation.cutoffs),
        "list_length": evaluation.list_length,
        "experiment": job.tracking.experiment,
        "tracking_uri": tracking_uri,
    }


def _rank_all(
    items: pa.Table,
    given: list[npt.NDArray[np.float32]],
    valid: Question,
    test: Question,
    job: JobConfig,
    log: Callable[[str], None],
) -> Iterator[RankedBaseline]:
    """Tune, fit and ask each baseline in turn; one that the catalogue is too large for is left out and said so."""
    cfg, item_ids = job.evaluation.baselines, items["item_id"].to_pylist()
    vectors = None
    if set(cfg.names) & set(CONTENT_BASELINES):
        vectors = join_vectors(text_vectors(_texts(items), cfg.max_text_words), given)
    for name in cfg.names:
        began = time.monotonic()
        build = partial(_build, cfg=cfg, name=name, vectors=vectors, seed=job.seed)
        try:
            settings = _choose(name, build, valid, cfg)
            ranked = test.rank(test.fit(build(settings)), job.evaluation.list_length)
        except ConfigError as error:
            log(f"baseline {name} left out: {error}")
            continue
        metrics = measure_lists(ranked, test, job.evaluation.cutoffs)
        lists = lists_table(ranked, test.users, item_ids)
        chosen = "  ".join(f"{key}={value}" for key, value in settings.items())
        ndcg = metrics.get("ndcg_at_10", np.nan)
        log(f"{name:<18} ndcg_at_10 {ndcg:.4f}  {time.monotonic() - began:5.1f} s  {chosen}")
        yield RankedBaseline(name, settings, lists, metrics)


def _build(
    settings: Settings, cfg: BaselinesConfig, name: str, vectors: npt.NDArray[np.float32] | None, seed: int
) -> Baseline:
    limits: Settings = {"max_bytes": cfg.ease_max_bytes} if name == "ease" else {}
    return build_baseline(name, vectors, seed, {**settings, **limits})


def _choose(name: str, build: Callable[[Settings], Baseline], valid: Question, cfg: BaselinesConfig) -> Settings:
    """Settings by the valid part, or none, the defaults, where nobody can be asked about it."""
    too_large = name == "ease" and valid.num_items > cfg.max_tuned_items
    if not cfg.tune or name not in GRIDS or too_large or not valid.users:
        return {}
    return choose_settings(GRIDS[name], build, valid)[0]


def _texts(items: pa.Table) -> list[str]:
    columns = (items[name].to_pylist() for name in ("title", "description", "tags"))
    return [item_text(title, description, tags) for title, description, tags in zip(*columns, strict=True)]


def measure_lists(ranked: Ranked, question: Question, cutoffs: Sequence[int]) -> dict[str, float]:
    """Metrics of lists [U, K]; where there are targets that nobody had chosen before, those of cold items too."""
    metrics = evaluate_rankings(ranked, question.targets, question.num_items, tuple(cutoffs))
    cold = np.bincount(question.item_idx, minlength=question.num_items) == 0
    if any(cold[target].any() for target in question.targets):
        num_seen = np.array([len(np.unique(items)) for items in question.seen], np.int64)
        metrics |= cold_item_metrics(ranked, question.targets, cold, max(cutoffs), num_seen)
    return metrics


def lists_table(ranked: Ranked, users: Sequence[str], item_ids: Sequence[str]) -> pa.Table:
    """Lists [U, K] of catalogue rows as a recommendations table; its scores are 1 / rank, for the order alone."""
    row, place = np.nonzero(ranked >= 0)
    columns = {
        "user_id": np.array(users, object)[row],
        "item_id": np.array(item_ids, object)[ranked[row, place]],
        "rank": place + 1,
        "score": 1.0 / (place + 1),
    }
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in RECOMMENDATIONS})


def _log_run(loop: Loop, job: JobConfig, found: RankedBaseline, folder: Path) -> None:
    """An MLflow run that stands beside those of models: the same metric names, and lists that jobs.compare reads."""
    params = {"data.dataset": job.data.dataset, "seed": job.seed, "evaluation.split.kind": job.evaluation.split.kind}
    run = loop.tracking.start(f"baseline {found.name}", {**params, "baseline": found.settings}, loop.parent.run_id)
    run.tags({"stage": "baseline", "model": found.name})
    run.metrics({f"test/{name}": value for name, value in found.metrics.items()})
    note_inputs(run, loop.storage.root)
    run.artifact(folder / f"{found.name}.parquet", "evaluation", "recommendations.parquet")
    run.artifact(folder / "truth.parquet", "evaluation")
    run.end()

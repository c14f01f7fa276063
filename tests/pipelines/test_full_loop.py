"""The whole loop on a tiny catalogue: each stage once, in order, and its outputs fit each other."""

import hashlib
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from avrec_ray.bundle import CONTENT_FILE, NEIGHBOUR_FILES, load_bundle
from avrec_ray.cluster_config import ClusterConfig
from avrec_ray.config import JobConfig, TrainingConfig, towers_for
from avrec_ray.datasets.config import DataConfig, SyntheticConfig
from avrec_ray.feedback.store import EventStore
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.decode import decode_item
from avrec_ray.new_items.encode import ItemEncoder
from avrec_ray.new_items.submission import Submission
from avrec_ray.pipelines import compare, full_loop
from avrec_ray.pipelines.catalogue import read_item_tokens
from avrec_ray.pipelines.split import read_split
from avrec_ray.pipelines.stage import Loop, StageRecord, require_record
from avrec_ray.pipelines.storage import Storage
from avrec_ray.pipelines.tracking import PARENT_TAG
from avrec_ray.ranking.config import RerankerConfig
from avrec_ray.ranking.content_likeness import load_likeness
from avrec_ray.ranking.recommend import recommend
from avrec_ray.ranking.reranker import Reranker
from avrec_ray.retrieval.matcher import Matcher
from avrec_ray.retrieval.neighbours import load_neighbours
from avrec_ray.towers.two_tower import TwoTower
from avrec_ray.training.config import FinetuneConfig, OptimConfig, PretrainConfig
from avrec_ray.training.weights import load_weights
from avrec_ray.types import Query
from tests.pipelines.recommend_cases import histories_of
from tests.tiny_models import tiny_towers

# The first test carries the whole loop: a minute and a half of starting processes, minutes on a crowded machine.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

STAGES = [
    "prepare", "decode_media", "split", "baselines", "pretrain", "finetune", "train_reranker", "refresh",
    "embed_items", "build_index", "bundle", "evaluate", "register", "load_events",
]  # fmt: skip
MEDIA = MediaConfig(num_frames=2, frame_size=16, clip_seconds=0.5, num_mel_bins=8, max_clips=2)
CATALOGUE = SyntheticConfig(
    num_items=40, num_users=80, num_interactions=640, broken_items=2, min_seconds=1.0, max_seconds=1.2, frame_size=64
)


def tiny_job(root: Path, reranker_epochs: int = 2) -> JobConfig:
    """Every stage as small as it can be."""
    return JobConfig(
        storage_path=str(root),
        data=DataConfig(dataset="synthetic", synthetic=CATALOGUE),
        media=MEDIA,
        towers=towers_for(tiny_towers(), MEDIA),
        training=TrainingConfig(
            pretrain=PretrainConfig(epochs=2, batch_size=8),
            finetune=FinetuneConfig(epochs=2, refresh_epochs=2, batch_size=8, validate_every_epochs=1),
        ),
        reranker=RerankerConfig(hidden_dim=8, optim=OptimConfig(epochs=reranker_epochs, batch_size=8)),
        cluster=ClusterConfig(num_workers=2),
    )


@dataclass(frozen=True)
class Pass:
    """One run of the loop: what it was told, where it put the bundle and what it said."""

    job: JobConfig
    loop: Loop
    bundle: Path
    lines: list[str]

    @property
    def storage(self) -> Storage:
        return self.loop.storage

    def record(self, stage: str) -> StageRecord:
        return require_record(self.storage, stage)

    def stages_that(self, ended: str) -> list[str]:
        """Names of the stages with a line that ends so, in order."""
        return [line.split("] ")[1].split(":")[0] for line in self.lines if line.endswith(ended)]


def run_loop(job: JobConfig) -> Pass:
    lines: list[str] = []
    with full_loop.open_loop(job, "full_loop", full_loop.NUM_STAGES) as loop:
        loop.echo = lines.append
        bundle = full_loop.run(loop, job)
    return Pass(job, loop, bundle, lines)


@pytest.fixture(scope="module")
def first(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Pass:
    """The loop over an empty folder."""
    return run_loop(tiny_job(tmp_path_factory.mktemp("loop")))


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def mlflow_runs(run: Pass) -> list[Run]:
    """Every run of the experiment, oldest first."""
    client = MlflowClient(run.loop.tracking_uri)
    experiment = client.get_experiment_by_name(run.job.tracking.experiment)
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"]))


def test_every_stage_runs_in_order_and_leaves_a_record(first: Pass) -> None:
    assert len(STAGES) == full_loop.NUM_STAGES
    assert first.stages_that(ended="started") == STAGES
    for stage in STAGES:
        record = first.record(stage)
        assert record.stage == stage
        assert record.metrics
        assert all(Path(path).exists() for path in record.outputs)
    assert not list(first.storage.root.rglob("*.part"))


def test_every_item_is_in_clips_or_in_quarantine(first: Pass) -> None:
    wanted, usable, aside = (
        pq.read_table(path, columns=["item_id"])["item_id"].to_pylist()
        for path in (first.storage.items, first.storage.folder("clips"), first.storage.folder("quarantine"))
    )
    assert len(wanted) == CATALOGUE.num_items
    assert len(aside) == CATALOGUE.broken_items
    assert sorted({*usable, *aside}) == sorted(wanted)
    assert not {*usable} & {*aside}


def test_bundle_opens_and_its_vectors_are_of_its_towers(first: Pass) -> None:
    bundle = load_bundle(first.bundle)
    version = f"v-{first.record('refresh').fingerprint[:12]}"
    assert bundle.metadata.model_version == first.bundle.name
    assert bundle.metadata.towers_version == version
    assert 0 < time.time() - bundle.metadata.built_at_seconds < 86_400
    for name in ("embeddings", "moments"):
        metadata = pq.read_schema(first.bundle / f"{name}.parquet").metadata
        assert metadata[b"model_version"].decode() == version
    towers = TwoTower(first.job.towers, len(bundle.items)).eval()
    load_weights(first.bundle / "towers.safetensors", towers)
    _, tokens, _ = read_item_tokens(first.storage.folder("item_tokens") / "tokens.parquet", first.job.towers)
    with torch.inference_mode():
        expected = towers.embed_items(tokens, torch.arange(len(bundle.items)), torch.from_numpy(bundle.items.warm))
    np.testing.assert_allclose(bundle.embeddings, expected.numpy(), atol=1e-5)


def test_bundle_serves_the_towers_of_refresh(first: Pass) -> None:
    served, refreshed, finetuned = (
        (folder / "towers.safetensors").read_bytes()
        for folder in (first.bundle, first.storage.folder("refresh"), first.storage.folder("finetune"))
    )
    assert served == refreshed
    assert served != finetuned


def test_items_that_nobody_chose_are_spoken_for(first: Pass) -> None:
    bundle = load_bundle(first.bundle)
    cold = np.flatnonzero(~bundle.items.warm)
    assert len(cold)
    for name in NEIGHBOUR_FILES:
        table = load_neighbours(first.bundle / name, len(bundle.items))
        assert set(cold.tolist()) <= set(table.items.tolist())


def test_item_submitted_to_the_service_gets_what_the_bundle_has_of_it(first: Pass) -> None:
    """One cold item, one warm and one of text alone: vectors, moments, their times, and what content says."""
    bundle, encoder = load_bundle(first.bundle), ItemEncoder(first.bundle)
    content = load_likeness(first.bundle / CONTENT_FILE, len(bundle.items))
    tables = [load_neighbours(first.bundle / name, len(bundle.items)) for name in NEIGHBOUR_FILES]
    rows = {row["item_id"]: row for row in pq.read_table(first.storage.items).to_pylist()}
    with_media = [row for row, item_id in enumerate(bundle.items.item_ids) if rows[item_id]["media_uri"]]
    cold = next(row for row in with_media if not bundle.items.warm[row])
    warm = next(row for row in with_media if bundle.items.warm[row])
    text = next((row for row, i in enumerate(bundle.items.item_ids) if not rows[i]["media_uri"]), warm)
    for row in (cold, warm, text):
        known = rows[bundle.items.item_ids[row]]
        at = known["published_at"]
        facts = Submission(
            known["item_id"], known["title"], known["media_uri"], known["description"], tuple(known["tags"] or ()),
            known["category"], known["creator_id"], known["language"], None if at is None else at.timestamp(),
        )  # fmt: skip
        assert bundle.metadata.media is not None
        clips = decode_item("x", known["media_uri"], bundle.metadata.media) if known["media_uri"] else []
        item = encoder(facts, clips)
        np.testing.assert_allclose(item.embedding, bundle.embeddings[row], atol=1e-4)
        np.testing.assert_array_equal(item.moment_mask, bundle.moment_mask[row])
        np.testing.assert_allclose(item.moments, bundle.moments[row], atol=1e-4)
        if clips:
            np.testing.assert_allclose(item.moment_spans, bundle.moment_spans[row], atol=1e-3)
        assert item.predicted is not None
        np.testing.assert_allclose(
            item.predicted.content.astype(np.float32), content.vectors[row].astype(np.float32), atol=0.02
        )
        if row == cold:
            for name, table in zip(("taste", "session"), tables, strict=True):
                item_ids, weights = item.predicted.speakers[name]
                got = {bundle.items.index_of[i]: float(w) for i, w in zip(item_ids, weights, strict=True)}
                ends = zip(table.starts[:-1], table.starts[1:], strict=True)
                said = {w: float(table.weights[a:b][table.items[a:b] == row].sum()) for w, (a, b) in enumerate(ends)}
                largest = max(map(abs, said.values()))
                for watched, weight in said.items():
                    assert got.get(watched, 0.0) == pytest.approx(weight, abs=0.05 * largest)


def test_recommendations_equal_a_fresh_ranking_from_the_bundle(first: Pass) -> None:
    """For the user with most events in valid: their list would be another if histories ended with train."""
    splits = first.storage.folder("splits")
    valid = pq.read_table(splits / "valid.parquet")
    table = pq.read_table(first.storage.folder("evaluation") / "recommendations.parquet")
    listed = set(table["user_id"].to_pylist())
    ((user, _),) = Counter(user for user in valid["user_id"].to_pylist() if user in listed).most_common(1)
    past = pa.concat_tables([pq.read_table(splits / "train.parquet"), valid])
    history = histories_of(past.to_pylist())[user]
    bundle = load_bundle(first.bundle)
    matcher, reranker = Matcher(bundle, first.job.matcher), Reranker(bundle, first.job.policy)
    (ranking,) = recommend(matcher, reranker, [Query(user, history, k=first.job.evaluation.list_length)])
    found = table.filter(pc.equal(table["user_id"], user)).to_pylist()
    assert [row["item_id"] for row in found] == [item.item_id for item in ranking]
    assert [row["rank"] for row in found] == [item.rank for item in ranking]
    assert [row["score"] for row in found] == pytest.approx([item.score for item in ranking], abs=1e-5)
    assert not {row["item_id"] for row in found} & {event.item_id for event in history}


def test_tracking_holds_one_parent_with_a_child_a_stage(first: Pass) -> None:
    runs = mlflow_runs(first)
    parents = [run for run in runs if PARENT_TAG not in run.data.tags]
    children = [run for run in runs if PARENT_TAG in run.data.tags]
    assert [run.info.run_name for run in parents] == ["full_loop-synthetic-seed0"]
    assert {run.data.tags[PARENT_TAG] for run in children} == {parents[0].info.run_id}
    stages = [run for run in children if run.data.tags["stage"] != "baseline"]
    assert {run.info.run_name: run.info.run_id for run in stages} == {s: first.record(s).run_id for s in STAGES}
    assert len(stages) == len(STAGES)
    assert {run.info.status for run in runs} == {"FINISHED"}
    metrics = {
        name: value for name, value in parents[0].data.metrics.items() if "/" in name and not name.startswith("system/")
    }
    measured = first.record("evaluate").metrics
    assert metrics == pytest.approx({name: value for name, value in measured.items() if name.startswith("test/")})


def test_runs_with_test_metrics_name_the_data_they_are_of(first: Pass) -> None:
    measured = [run for run in mlflow_runs(first) if "test/ndcg_at_10" in run.data.metrics]
    assert len(measured) == len(["full_loop", "evaluate"]) + len(first.job.evaluation.baselines.names)
    digests = read_split(first.storage.root).digests
    for run in measured:
        found = {(i.dataset.name, i.dataset.digest, i.tags[0].value) for i in run.inputs.dataset_inputs}
        contexts = {"train": "training", "valid": "training", "test": "evaluation"}
        assert found == {(name, digests[name][:36], context) for name, context in contexts.items()}


def test_runs_of_stages_note_what_the_machine_did_and_the_parent_does_not(first: Pass) -> None:
    runs = {run.info.run_id: run.data for run in mlflow_runs(first)}
    assert runs[first.record("finetune").run_id].metrics["system/cpu_utilization_percentage"] > 0
    (parent,) = [data for data in runs.values() if PARENT_TAG not in data.tags]
    assert not [name for name in parent.metrics if name.startswith("system/")]


def test_training_stages_note_their_curves_data_model_and_weights(first: Pass) -> None:
    client = first.loop.tracking.client
    found = {run.data.tags["stage"]: run for run in mlflow_runs(first) if "stage" in run.data.tags}
    curves = {
        "loss",
        "grad_norm",
        "learning_rate",
        "steps_per_second",
        "data_wait_share",
        "time_to_first_batch_seconds",
    }
    for stage in ("pretrain", "finetune", "refresh"):
        run = found[stage]
        assert {f"train/{name}" for name in curves} <= set(run.data.metrics)
        assert [point.step for point in client.get_metric_history(run.info.run_id, "train/grad_norm")] == [0, 1]
        assert run.inputs.dataset_inputs
        assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"checkpoint", "model_summary.txt"}
    assert {"val/recall_at_20", "val/ndcg_at_10"} <= set(found["finetune"].data.metrics)
    assert not {name for name in found["refresh"].data.metrics if name.startswith("val/")}  # valid is trained on there
    assert {"embedding/uniformity", "embedding/alignment"} <= set(found["embed_items"].data.metrics)


def test_every_baseline_is_a_run_with_the_metrics_of_the_model(first: Pass) -> None:
    runs = [run for run in mlflow_runs(first) if run.data.tags.get("stage") == "baseline"]
    assert [run.data.tags["model"] for run in runs] == first.job.evaluation.baselines.names
    served = first.record("evaluate").metrics
    for run in runs:
        assert run.data.metrics["test/ndcg_at_10"] == pytest.approx(served[f"{run.data.tags['model']}/ndcg_at_10"])
        assert set(run.data.metrics) <= set(served)


def test_run_and_baseline_compare_by_their_lists(first: Pass) -> None:
    runs = mlflow_runs(first)
    (popularity,) = [run for run in runs if run.data.tags.get("model") == "popularity"]
    (parent,) = [run for run in runs if PARENT_TAG not in run.data.tags]
    seeds = f"{parent.info.run_id}+{parent.info.run_id}"
    job = replace(first.job, run_a=seeds, run_b=popularity.info.run_id)
    loop = Loop(first.storage, job.tracking, "compare")
    lines = compare.run(loop, job)
    loop.close()
    loop.tracking.client.delete_run(loop.parent.run_id)  # the tests below count the runs of the loop
    assert "ndcg_at_10 over" in lines[-1]
    assert lines[-2].startswith("a: ndcg_at_10 of 2 seeds ")


def test_champion_is_the_bundle(first: Pass) -> None:
    champion = first.loop.resolve_bundle(f"models:/{first.job.tracking.model_name}@champion")
    assert digests(champion) == digests(first.bundle)
    assert first.loop.resolve_bundle("") == first.bundle


def test_event_store_holds_every_interaction(first: Pass) -> None:
    store = EventStore(first.storage.events_url)
    assert store.count() == CATALOGUE.num_interactions
    store.close()


def test_second_run_does_nothing(first: Pass) -> None:
    before = digests(first.storage.root)
    again = run_loop(first.job)
    assert again.stages_that(ended="skipped") == STAGES
    assert len(again.lines) == len(STAGES)
    assert not again.loop.had_work
    assert again.bundle == first.bundle
    assert digests(first.storage.root) == before  # MLflow's database is among them


def test_late_setting_reruns_only_what_depends_on_it(first: Pass) -> None:
    """The last test: it replaces outputs that those above look at."""
    kept = {stage: first.record(stage) for stage in STAGES}
    before = digests(first.bundle)
    changed = run_loop(tiny_job(first.storage.root, reranker_epochs=1))
    rerun = ["train_reranker", "bundle", "evaluate", "register"]
    assert changed.stages_that(ended="started") == rerun
    assert [stage for stage in STAGES if changed.record(stage) != kept[stage]] == rerun
    assert changed.bundle != first.bundle
    assert digests(first.bundle) == before
    champion = changed.loop.resolve_bundle(f"models:/{changed.job.tracking.model_name}@champion")
    assert digests(champion) == digests(changed.bundle)
    # The bundle before was champion while this one was evaluated: asked for the report, and not by the gate again.
    asked = [line for line in changed.lines if "asking champion" in line]
    assert [line.split("] ")[1].split(":")[0] for line in asked] == ["evaluate"]
    assert f"champion {first.bundle.name}" in (changed.storage.folder("evaluation") / "report.html").read_text()
    assert any("not worse on all: " in line for line in changed.lines)

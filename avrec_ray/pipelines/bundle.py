"""Assembling the bundle from the stages' outputs."""

import shutil
import time
from pathlib import Path

import pyarrow.parquet as pq

from avrec_ray.bundle import (
    CLASSES_FILE,
    CONTENT_FILE,
    NEIGHBOUR_FILES,
    BundleMetadata,
    load_bundle,
    save_bundle,
)
from avrec_ray.catalogue import catalogue_table
from avrec_ray.config import JobConfig
from avrec_ray.dataclass_io import to_dict
from avrec_ray.new_items.export import watermark_of
from avrec_ray.pipelines.catalogue import build_catalogue, item_durations, read_fitted, read_items
from avrec_ray.pipelines.embed_items import model_version
from avrec_ray.pipelines.item_to_item import fit_with_predictor
from avrec_ray.pipelines.profiles import read_profiles
from avrec_ray.pipelines.split import read_split
from avrec_ray.pipelines.stage import Loop, StageRecord, StageRun, fingerprint_of, require_record
from avrec_ray.pipelines.towers_of_job import with_widths
from avrec_ray.towers.vector_tables import vectors_of
from avrec_ray.training.histories import columns_from_table
from avrec_ray.training.profiles import save_profiles

PARTS = ("train_reranker", "refresh", "embed_items", "build_index")


def run(loop: Loop, job: JobConfig) -> StageRecord:
    """Stage `bundle`: towers, reranker, catalogue, embeddings, moments and index to bundle/<model_version>/."""
    storage = loop.storage
    job = with_widths(storage, job)
    inputs = {name: require_record(storage, name).fingerprint for name in PARTS}
    folder = bundle_folder(loop, job)

    def work(stage: StageRun) -> dict[str, float]:
        metadata = BundleMetadata(
            model_version=folder.name,
            towers_version=model_version(require_record(storage, "refresh")),
            towers=job.towers,
            reranker=job.reranker,
            index=job.index,
            seed=job.seed,
            data_version=require_record(storage, "split").fingerprint[:12],
            media=job.media,
            new_items_watermark=watermark_of(pq.read_schema(storage.items)),
            built_at_seconds=time.time(),
        )
        # The same inputs gave this bundle before, and a service may be reading it.
        if not folder.exists():
            save_bundle(folder, metadata, lambda staging: _write_parts(storage.root, job, staging))
        bundle = load_bundle(folder)
        num_bytes = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        stage.log(f"{folder.name}: {len(bundle.items)} items, {num_bytes / 1e6:.1f} MB at {folder}")
        return {"num_items": float(len(bundle.items)), "bundle_bytes": float(num_bytes)}

    return loop.stage("bundle", work, settings=_settings(job), inputs=inputs, outputs=[folder])


def bundle_folder(loop: Loop, job: JobConfig) -> Path:
    """Where the bundle of the present stages lies, named after what decides it."""
    job = with_widths(loop.storage, job)
    inputs = {name: require_record(loop.storage, name).fingerprint for name in PARTS}
    version = f"v-{fingerprint_of('bundle', _settings(job), inputs)[:12]}"
    return loop.storage.folder("bundle") / version


def _settings(job: JobConfig) -> dict[str, object]:
    return {"towers": to_dict(job.towers), "reranker": to_dict(job.reranker), "seed": job.seed}


def _write_parts(root: Path, job: JobConfig, staging: Path) -> None:
    shutil.copy(root / "refresh" / "towers.safetensors", staging)
    if job.towers.tuned:  # no source has these weights of the encoders, and new items will need them
        shutil.copy(root / "pretrain" / "item_tower.safetensors", staging)
    shutil.copy(root / "reranker" / "reranker.safetensors", staging)
    shutil.copy(root / "embeddings" / "embeddings.parquet", staging)
    shutil.copy(root / "moments" / "moments.parquet", staging)
    shutil.copytree(root / "index", staging / "index")
    embedded = pq.read_table(staging / "embeddings.parquet")
    item_ids = embedded["item_id"].to_pylist()
    embeddings = vectors_of(embedded, "embedding", job.towers.embedding_dim)
    parts = read_split(root).fitted
    item_to_item, predictor = fit_with_predictor(root, job, parts, item_ids, embeddings)
    predictor.save(staging)
    for table, name in zip((item_to_item.taste, item_to_item.session), NEIGHBOUR_FILES, strict=True):
        table.save(staging / name)
    item_to_item.content.save(staging / CONTENT_FILE)
    item_to_item.classes.tastes.save(staging / CLASSES_FILE)
    items = read_items(root / "tables" / "items.parquet", item_ids)
    fitted = read_fitted(root, parts)
    catalogue = build_catalogue(items, fitted, item_durations(items), job.reranker.popularity_half_life_days)
    pq.write_table(catalogue_table(catalogue), staging / "items.parquet")
    columns = columns_from_table(fitted, catalogue.index_of, catalogue.durations)
    profiles = read_profiles(root / "tables", job.towers, columns)
    if profiles is not None:
        save_profiles(staging / "users.parquet", profiles)

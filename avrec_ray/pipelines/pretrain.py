"""Pretraining: clips and text of each item to an item tower, by contrast between its modalities."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import torch

from avrec_ray.config import JobConfig
from avrec_ray.dataclass_io import from_dict, to_dict
from avrec_ray.media.child import DEFAULT_DECODER
from avrec_ray.media.clips import read_clips
from avrec_ray.media.config import MediaConfig
from avrec_ray.pipelines.catalogue import given_vectors, read_item_tokens, read_items, word_ids
from avrec_ray.pipelines.encode_items import encode_items
from avrec_ray.pipelines.stage import Loop, StageRecord, StageRun, digest_file, require_record
from avrec_ray.pipelines.storage import Storage
from avrec_ray.pipelines.stream_batches import MediaItems, StreamBatches, StreamSettings
from avrec_ray.pipelines.towers_of_job import with_widths
from avrec_ray.pipelines.train import Work, run_trainer
from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.item_tower import ItemTower
from avrec_ray.training.clip_batches import Augmenter, ClipArrays, ClipBatches
from avrec_ray.training.config import PretrainConfig
from avrec_ray.training.epoch_plan import EpochPlan
from avrec_ray.training.feature_batches import FeatureBatches, num_pairs
from avrec_ray.training.steps import PretrainStep
from avrec_ray.training.weights import load_weights, save_weights


def run(loop: Loop, job: JobConfig) -> StageRecord:
    """Stage `pretrain`: clips/ and the items table to pretrain/item_tower.safetensors.

    With data.mode=stream the clips that are trained on come from the media themselves; clips/ then says which items
    are usable. What comes after pretraining reads clips/ in both modes. Encoders that are all frozen run first, to
    item_features/, and what is trained on their tokens is the adapters and the heads of the contrast.
    """
    storage = loop.storage
    job = with_widths(storage, job)
    settings = stage_settings(storage, job)

    def work(stage: StageRun) -> dict[str, float]:
        if job.towers.all_frozen:
            num_usable, placed = _encode_first(stage, job), settings
        else:
            num_usable = num_items_with_media(storage.folder("clips"))
            placed = {**settings, **decode_actors(job, stage.log)} if job.data.mode == "stream" else settings
        if num_usable < job.cluster.num_workers:
            return _start_untrained(stage, job)
        stage.run.inputs("training", {storage.items: digest_file(storage.items)})
        checkpoint = run_trainer(stage, job.cluster, build_work, placed, job.training.pretrain.epochs, seed=job.seed)
        step = PretrainStep(ItemTower(job.towers), job.training.pretrain.loss)
        load_weights(checkpoint / "checkpoint" / "model.safetensors", step)
        with stage.publish("pretrain") as (folder,):
            save_weights(folder / "item_tower.safetensors", step.tower)
        shutil.rmtree(checkpoint.parent, ignore_errors=True)
        return {"parameters": float(sum(p.numel() for p in step.tower.parameters()))}

    return loop.stage(
        "pretrain",
        work,
        settings={**settings, "workers": job.cluster.num_workers},
        inputs={"decode_media": require_record(storage, "decode_media").fingerprint},
        outputs=[
            storage.folder("pretrain") / "item_tower.safetensors",
            *([features_path(storage)] if job.towers.all_frozen else []),
        ],
    )


def features_path(storage: Storage) -> Path:
    """The item tokens of encoders that are all frozen."""
    return storage.folder("item_features") / "tokens.parquet"


def _encode_first(stage: StageRun, job: JobConfig) -> int:
    """Run frozen encoders, once; returns the number of items with two modalities to contrast."""
    storage = stage.storage
    stage.log("every encoder is frozen: they run once, and training reads their tokens, without augmentation")
    with stage.publish("item_features") as (folder,):
        path = folder / "tokens.parquet"
        num_items = encode_items(storage.folder("clips"), storage.items, None, job.towers, job.cluster, path)
    _, tokens, _ = read_item_tokens(features_path(storage), job.towers)
    stage.log(f"{num_items} items encoded, {num_pairs(tokens)} of them with two modalities or more")
    return num_pairs(tokens)


def stage_settings(storage: Storage, job: JobConfig) -> dict[str, Any]:
    """What decides the result, and what the workers read."""
    media = dataclasses.replace(job.media, media_roots=job.media.media_roots or job.data.media_roots)
    return {
        "towers": to_dict(job.towers),
        "pretrain": to_dict(job.training.pretrain),
        "clips": str(storage.folder("clips")),
        "items": str(storage.items),
        "item_features": str(features_path(storage)),
        "seed": job.seed,
        "mode": job.data.mode,
        "random_clips": job.data.mode == "stream" and job.data.random_clips,
        "media": to_dict(media),
    }


def decode_actors(job: JobConfig, log: Callable[[str], None], decoder: str = DEFAULT_DECODER) -> dict[str, Any]:
    """Who decodes for the trainers. It does not change the result, so it is no part of the stage's fingerprint."""
    asked, trainers = job.cluster.num_decode_actors, job.cluster.num_workers
    fitting = min(asked, int(ray.cluster_resources().get("CPU", 1)) - trainers)
    if asked < trainers:
        log(f"cluster.num_decode_actors={asked}, but each of the {trainers} trainers needs one of its own")
    if fitting < max(asked, trainers):
        log(f"{max(asked, trainers)} decode actors asked for, {max(fitting, 0)} fit in the cluster now")
    return {
        "decoder": decoder,
        "num_actors": asked,
        "fitting_actors": fitting,
        "resource": job.cluster.decode_resource,
    }


def _start_untrained(stage: StageRun, job: JobConfig) -> dict[str, float]:
    """A catalogue of one modality, such as text, has nothing to contrast; fine-tuning starts from fresh encoders."""
    stage.log("next to no item has two modalities: nothing to contrast, the encoders stay as they were at first")
    torch.manual_seed(job.seed)
    with stage.publish("pretrain") as (folder,):
        save_weights(folder / "item_tower.safetensors", ItemTower(job.towers))
    return {"epochs": 0.0}


def num_items_with_media(clips_path: Path) -> int:
    """Items with a picture or a sound."""
    table = pq.read_table(clips_path, columns=["item_id", "has_video", "has_audio"])
    present = pc.or_(table["has_video"], table["has_audio"])
    return int(pc.count_distinct(table.filter(present)["item_id"]).as_py())


def build_work(settings: dict[str, Any], rank: int, num_workers: int) -> Work:
    """What a pretraining worker trains."""
    towers = from_dict(TowersConfig, settings["towers"])
    cfg = from_dict(PretrainConfig, settings["pretrain"]).for_workers(num_workers)
    clips, items = Path(settings["clips"]), Path(settings["items"])
    step = PretrainStep(ItemTower(towers), cfg.loss, cfg.chunk_size)
    if towers.all_frozen:
        _, tokens, _ = read_item_tokens(Path(settings["item_features"]), towers)
        features = FeatureBatches(tokens, towers.max_clips, cfg, settings["seed"], rank, num_workers)
        return Work(step, features, features.steps_per_epoch, cfg)
    if settings["mode"] == "stream":
        streamed = stream_batches(settings, towers, cfg, rank, num_workers)
        return Work(step, streamed, streamed.steps_per_epoch, cfg, streamed.left_out, streamed.notes)
    arrays = load_clip_arrays(clips, items, towers)
    cached = ClipBatches(arrays, cfg, settings["seed"], rank, num_workers, settings["media"]["front_end"])
    return Work(step, cached, cached.steps_per_epoch, cfg)


def load_clip_arrays(clips_path: Path, items_path: Path, towers: TowersConfig) -> ClipArrays:
    """The clips table in memory. Each worker holds all of it: about 230 kB a clip at the default sizes."""
    table = read_clips(clips_path)
    names, item_idx = np.unique(table["item_id"], return_inverse=True)
    item_ids = [str(i) for i in names]
    return ClipArrays(
        frames=table["frames"],
        log_mel=table["log_mel"],
        has_video=table["has_video"],
        has_audio=table["has_audio"],
        item_idx=item_idx,
        word_ids=word_ids(read_items(items_path, item_ids), towers),
        vectors=given_vectors(items_path, item_ids, towers),
    )


def stream_batches(
    settings: dict[str, Any], towers: TowersConfig, cfg: PretrainConfig, rank: int, num_workers: int
) -> StreamBatches:
    """Batches from media. Which items are usable, and their clips, decode_media has found out; arrays are not read."""
    table = read_clips(settings["clips"], ["item_id", "clip_idx", "has_video", "has_audio"])
    names, item_idx = np.unique(table["item_id"], return_inverse=True)
    item_ids, items_path = [str(i) for i in names], Path(settings["items"])
    items = read_items(items_path, item_ids)
    media = from_dict(MediaConfig, settings["media"])
    listed = MediaItems(
        item_ids=item_ids,
        media_uris=items["media_uri"].to_pylist(),
        word_ids=word_ids(items, towers),
        item_idx=item_idx,
        clip_idx=table["clip_idx"].astype(np.int64),
        vectors=given_vectors(items_path, item_ids, towers),
    )
    plan = EpochPlan(item_idx, table["has_video"] | table["has_audio"], cfg, settings["seed"], rank, num_workers)
    share = StreamSettings(
        media=media,
        decoder=settings["decoder"],
        min_actors=share_of(settings["fitting_actors"], rank, num_workers),
        max_actors=share_of(settings["num_actors"], rank, num_workers),
        resource=settings["resource"],
        random_clips=settings["random_clips"],
        num_epochs=cfg.epochs,
    )
    return StreamBatches(listed, plan, Augmenter(cfg, plan, media.audio), share)


def share_of(num_actors: int, rank: int, num_workers: int) -> int:
    """Decode actors of one worker: equal shares, the first workers one more where they do not divide; at least one.

    >>> [share_of(5, rank, 3) for rank in range(3)]
    [2, 2, 1]
    """
    return max(1, (num_actors + num_workers - 1 - rank) // num_workers)

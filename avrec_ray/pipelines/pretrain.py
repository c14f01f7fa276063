"""Pretraining: clips and text of each item to an item tower, by contrast between its modalities."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from avrec_ray.config import JobConfig
from avrec_ray.dataclass_io import from_dict, to_dict
from avrec_ray.media.clips import read_clips
from avrec_ray.pipelines.catalogue import read_items, word_ids
from avrec_ray.pipelines.stage import Loop, StageRecord, StageRun, require_record
from avrec_ray.pipelines.train import Work, run_trainer
from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.item_tower import ItemTower
from avrec_ray.training.checkpoint import load_weights, save_weights
from avrec_ray.training.clip_batches import ClipArrays, ClipBatches
from avrec_ray.training.config import PretrainConfig
from avrec_ray.training.steps import PretrainStep


def run(loop: Loop, job: JobConfig) -> StageRecord:
    """Stage `pretrain`: clips/ and the items table to pretrain/item_tower.safetensors."""
    storage = loop.storage
    settings = {
        "towers": to_dict(job.towers),
        "pretrain": to_dict(job.training.pretrain),
        "clips": str(storage.folder("clips")),
        "items": str(storage.items),
        "seed": job.seed,
    }

    def work(stage: StageRun) -> dict[str, float]:
        if num_items_with_media(storage.folder("clips")) < job.cluster.num_workers:
            return _start_untrained(stage, job)
        checkpoint = run_trainer(stage, job.cluster, build_work, settings, job.training.pretrain.epochs, seed=job.seed)
        step = PretrainStep(ItemTower(job.towers))
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
        outputs=[storage.folder("pretrain") / "item_tower.safetensors"],
    )


def _start_untrained(stage: StageRun, job: JobConfig) -> dict[str, float]:
    """A catalogue of text alone has no two modalities to contrast; fine-tuning starts from fresh encoders."""
    stage.log("next to no item has video or audio: nothing to contrast, the encoders stay as initialised")
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
    cfg = from_dict(PretrainConfig, settings["pretrain"])
    clips = load_clip_arrays(Path(settings["clips"]), Path(settings["items"]), towers)
    batches = ClipBatches(clips, cfg, settings["seed"], rank, num_workers)
    return Work(PretrainStep(ItemTower(towers)), batches, batches.steps_per_epoch, cfg)


def load_clip_arrays(clips_path: Path, items_path: Path, towers: TowersConfig) -> ClipArrays:
    """The clips table in memory. Each worker holds all of it: about 230 kB a clip at the default sizes."""
    table = read_clips(clips_path)
    item_ids, item_idx = np.unique(table["item_id"], return_inverse=True)
    items = read_items(items_path, [str(i) for i in item_ids])
    return ClipArrays(
        frames=table["frames"],
        log_mel=table["log_mel"],
        has_video=table["has_video"],
        has_audio=table["has_audio"],
        item_idx=item_idx,
        word_ids=word_ids(items, towers),
    )

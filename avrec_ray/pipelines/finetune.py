"""Fine-tuning: cached item tokens and behaviour to two towers, by next-item softmax."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from avrec_ray.config import JobConfig
from avrec_ray.dataclass_io import from_dict, to_dict
from avrec_ray.pipelines.catalogue import item_durations, positive_counts, read_item_tokens, read_items
from avrec_ray.pipelines.encode_items import encode_items
from avrec_ray.pipelines.stage import Loop, StageRecord, StageRun, require_record
from avrec_ray.pipelines.train import Work, run_trainer
from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.item_tower import ItemTower
from avrec_ray.towers.two_tower import TwoTower
from avrec_ray.training.checkpoint import load_weights, save_weights
from avrec_ray.training.config import FinetuneConfig
from avrec_ray.training.histories import columns_from_table
from avrec_ray.training.sequence_batches import SequenceBatches
from avrec_ray.training.steps import FinetuneStep


def run(loop: Loop, job: JobConfig) -> StageRecord:
    """Stage `finetune`: tokens of the pretrained tower and splits/train.parquet to finetune/towers.safetensors."""
    storage = loop.storage
    tokens_path = storage.folder("item_tokens") / "tokens.parquet"
    pretrained = storage.folder("pretrain") / "item_tower.safetensors"
    settings = {
        "towers": to_dict(job.towers),
        "finetune": to_dict(job.training.finetune),
        "item_tokens": str(tokens_path),
        "items": str(storage.items),
        "train": str(storage.folder("splits") / "train.parquet"),
        "pretrained": str(pretrained),
        "seed": job.seed,
    }

    def work(stage: StageRun) -> dict[str, float]:
        with stage.publish("item_tokens") as (folder,):
            clips = storage.folder("clips")
            num_items = encode_items(
                clips, storage.items, pretrained, job.towers, job.cluster, folder / "tokens.parquet"
            )
        stage.log(f"{num_items} items encoded once; the encoders are frozen from here")
        epochs = job.training.finetune.epochs
        checkpoint = run_trainer(stage, job.cluster, build_work, settings, epochs, seed=job.seed)
        step = build_step(settings)
        load_weights(checkpoint / "checkpoint" / "model.safetensors", step)
        with stage.publish("finetune") as (folder,):
            save_weights(folder / "towers.safetensors", step.towers)
        shutil.rmtree(checkpoint.parent, ignore_errors=True)
        return {"num_items": num_items, "scale": float(step.towers.scale().detach())}

    return loop.stage(
        "finetune",
        work,
        settings={**settings, "workers": job.cluster.num_workers},
        inputs={name: require_record(storage, name).fingerprint for name in ("pretrain", "split")},
        outputs=[storage.folder("finetune") / "towers.safetensors", tokens_path],
    )


def build_step(settings: dict[str, Any]) -> FinetuneStep:
    """The fine-tuning module, its item side starting from the pretrained tower."""
    towers = from_dict(TowersConfig, settings["towers"])
    item_ids, tokens, _ = read_item_tokens(Path(settings["item_tokens"]), towers)
    train = pq.read_table(settings["train"])
    pretrained = ItemTower(towers)
    load_weights(Path(settings["pretrained"]), pretrained)
    two_tower = TwoTower(towers, len(item_ids))
    state = {k: v for k, v in pretrained.state_dict().items() if not k.startswith("ids.")}
    two_tower.item.load_state_dict(state, strict=False)
    # Their tokens are cached: no gradient could reach them.
    two_tower.item.encoders.requires_grad_(False)
    two_tower.item.contrast_heads.requires_grad_(False)
    return FinetuneStep(two_tower, tokens, torch.from_numpy(positive_counts(train, item_ids) > 0))


def build_work(settings: dict[str, Any], rank: int, num_workers: int) -> Work:
    """What a fine-tuning worker trains."""
    towers = from_dict(TowersConfig, settings["towers"])
    cfg = from_dict(FinetuneConfig, settings["finetune"])
    item_ids, _, _ = read_item_tokens(Path(settings["item_tokens"]), towers)
    durations = item_durations(read_items(Path(settings["items"]), item_ids))
    index = {item_id: row for row, item_id in enumerate(item_ids)}
    columns = columns_from_table(pq.read_table(settings["train"]), index, durations)
    batches = SequenceBatches(columns, len(item_ids), cfg, towers.history_length, settings["seed"], rank, num_workers)
    return Work(build_step(settings), batches, batches.steps_per_epoch, cfg)

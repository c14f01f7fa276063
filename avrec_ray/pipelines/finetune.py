"""Fine-tuning: cached item tokens and behaviour to two towers, by next-item softmax."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from avrec_ray.config import JobConfig
from avrec_ray.dataclass_io import from_dict, to_dict
from avrec_ray.errors import StageError
from avrec_ray.pipelines.catalogue import item_durations, positive_counts, read_item_tokens, read_items
from avrec_ray.pipelines.encode_items import encode_items
from avrec_ray.pipelines.pretrain import features_path
from avrec_ray.pipelines.profiles import read_profiles
from avrec_ray.pipelines.split import read_split
from avrec_ray.pipelines.stage import Loop, StageRecord, StageRun, require_record
from avrec_ray.pipelines.storage import Storage
from avrec_ray.pipelines.towers_of_job import with_widths
from avrec_ray.pipelines.train import Work, run_trainer
from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.item_tower import ItemTokens, ItemTower
from avrec_ray.towers.two_tower import HistoryBatch, TwoTower
from avrec_ray.training.config import FinetuneConfig
from avrec_ray.training.histories import POSITIVE_CODES, columns_from_table, with_profiles
from avrec_ray.training.sequence_batches import SequenceBatches
from avrec_ray.training.steps import FinetuneStep
from avrec_ray.training.validation import RankHeldOut, held_out_users
from avrec_ray.training.weights import load_weights, save_weights
from avrec_ray.types import MODALITIES


def run(loop: Loop, job: JobConfig) -> StageRecord:
    """Stage `finetune`: tokens of the pretrained tower and splits/train.parquet to finetune/towers.safetensors."""
    storage = loop.storage
    job = with_widths(storage, job)
    tokens_path = storage.folder("item_tokens") / "tokens.parquet"
    pretrained = storage.folder("pretrain") / "item_tower.safetensors"
    settings = _settings(loop, job, job.training.finetune, ("train",)) | {"pretrained": str(pretrained)}

    def work(stage: StageRun) -> dict[str, float]:
        with stage.publish("item_tokens") as (folder,):
            num_items = _make_tokens(storage, job, pretrained, folder / "tokens.parquet")
        stage.log(f"{num_items} items encoded once; the encoders are frozen from here")
        return {"num_items": num_items, **_fit_towers(stage, job, settings)}

    return loop.stage(
        "finetune",
        work,
        settings={**settings, "workers": job.cluster.num_workers},
        inputs={name: require_record(storage, name).fingerprint for name in ("pretrain", "split")},
        outputs=[storage.folder("finetune") / "towers.safetensors", tokens_path],
    )


def _make_tokens(storage: Storage, job: JobConfig, pretrained: Path, output: Path) -> int:
    """The item tokens table; where no encoder learns, pretraining has made it. Returns the number of items."""
    if not job.towers.all_frozen:
        return encode_items(storage.folder("clips"), storage.items, pretrained, job.towers, job.cluster, output)
    shutil.copyfile(features_path(storage), output)
    return int(pq.read_metadata(output).num_rows)


def refresh(loop: Loop, job: JobConfig) -> StageRecord:
    """Stage `refresh`: the fine-tuned towers go on with train and valid, to refresh/towers.safetensors; as they are
    where valid is not to be learned from.

    These are the towers that are served. The reranker is fitted beside those of `finetune`, to whom valid is new.
    """
    storage = loop.storage
    job = with_widths(storage, job)
    fitted = storage.folder("finetune") / "towers.safetensors"
    parts = read_split(storage.root).fitted
    settings = _settings(loop, job, job.training.finetune.for_refresh(), parts) | {"fitted": str(fitted)}
    return loop.stage(
        "refresh",
        lambda stage: _fit_towers(stage, job, settings) if "valid" in parts else _copy_towers(stage, fitted),
        settings={**settings, "workers": job.cluster.num_workers},
        inputs={"finetune": require_record(storage, "finetune").fingerprint},
        outputs=[storage.folder("refresh") / "towers.safetensors"],
    )


def go_on(loop: Loop, job: JobConfig) -> StageRecord:
    """Stage `finetune` of a retraining: the towers of `warm_start` go on with splits/train.parquet."""
    storage = loop.storage
    job = with_widths(storage, job)
    settings = _settings(loop, job, job.training.finetune, ("train",))
    settings |= {"fitted": str(storage.folder("warm_start") / "towers.safetensors")}
    return loop.stage(
        "finetune",
        lambda stage: _fit_towers(stage, job, settings),
        settings={**settings, "workers": job.cluster.num_workers},
        inputs={name: require_record(storage, name).fingerprint for name in ("warm_start", "split")},
        outputs=[storage.folder("finetune") / "towers.safetensors"],
    )


def _copy_towers(stage: StageRun, fitted: Path) -> dict[str, float]:
    with stage.publish(stage.name) as (folder,):
        shutil.copyfile(fitted, folder / "towers.safetensors")
    return {}


def _settings(loop: Loop, job: JobConfig, cfg: FinetuneConfig, parts: tuple[str, ...]) -> dict[str, Any]:
    """What a worker needs to know; plain values, because they travel and are part of the stage's fingerprint."""
    storage = loop.storage
    validates = bool(cfg.validate_every_epochs) and "valid" not in parts
    return {
        "towers": to_dict(job.towers),
        "finetune": to_dict(cfg),
        "item_tokens": str(storage.folder("item_tokens") / "tokens.parquet"),
        "items": str(storage.items),
        "interactions": [str(storage.folder("splits") / f"{part}.parquet") for part in parts],
        "seed": job.seed,
    } | ({"validation": str(storage.folder("splits") / "valid.parquet")} if validates else {})


def _fit_towers(stage: StageRun, job: JobConfig, settings: dict[str, Any]) -> dict[str, float]:
    """Train on the cluster and publish towers.safetensors in the folder named after the stage."""
    epochs = settings["finetune"]["epochs"]
    digests = read_split(stage.storage.root).digests
    parts = [Path(path) for path in settings["interactions"]]
    stage.run.inputs("training", {path: digests[path.stem] for path in parts})
    checkpoint = run_trainer(stage, job.cluster, build_work, settings, epochs, seed=job.seed)
    step = build_step(settings)
    load_weights(checkpoint / "checkpoint" / "model.safetensors", step)
    with stage.publish(stage.name) as (folder,):
        save_weights(folder / "towers.safetensors", step.towers)
    shutil.rmtree(checkpoint.parent, ignore_errors=True)
    return {"scale": float(step.towers.scale().detach())}


def build_step(settings: dict[str, Any]) -> FinetuneStep:
    """The fine-tuning module: both towers as `fitted`, or new ones whose item side starts as `pretrained`."""
    towers = from_dict(TowersConfig, settings["towers"])
    item_ids, tokens, _ = read_item_tokens(Path(settings["item_tokens"]), towers)
    two_tower = TwoTower(towers, len(item_ids))
    if "fitted" in settings:
        load_weights(Path(settings["fitted"]), two_tower)
    else:
        pretrained = ItemTower(towers)
        load_weights(Path(settings["pretrained"]), pretrained)
        state = {k: v for k, v in pretrained.state_dict().items() if not k.startswith("ids.")}
        two_tower.item.load_state_dict(state, strict=False)
    # Their tokens are cached: no gradient could reach them.
    two_tower.item.encoders.requires_grad_(False)
    two_tower.item.contrast_heads.requires_grad_(False)
    warm = torch.from_numpy(positive_counts(_interactions(settings), item_ids) > 0)
    return FinetuneStep(two_tower, tokens, warm, from_dict(FinetuneConfig, settings["finetune"]))


def build_work(settings: dict[str, Any], rank: int, num_workers: int) -> Work:
    """What a fine-tuning worker trains.

    Raises:
        StageError: fewer users with something to learn from than workers.
    """
    towers = from_dict(TowersConfig, settings["towers"])
    cfg = from_dict(FinetuneConfig, settings["finetune"]).for_workers(num_workers)
    item_ids, _, _ = read_item_tokens(Path(settings["item_tokens"]), towers)
    durations = item_durations(read_items(Path(settings["items"]), item_ids))
    index = {item_id: row for row, item_id in enumerate(item_ids)}
    columns = columns_from_table(_interactions(settings), index, durations)
    columns = with_profiles(columns, read_profiles(Path(settings["items"]).parent, towers, columns))
    batches = SequenceBatches(
        columns,
        len(item_ids),
        cfg,
        towers.history_length,
        settings["seed"],
        rank,
        num_workers,
        learn_first=towers.reads_profiles,
        durations=durations,
    )
    if not batches.steps_per_epoch:
        raise StageError(
            f"{len(batches.users)} users chose an item after another one, expected at least one a worker "
            f"({num_workers}); give more interactions or a lower cluster.num_workers"
        )
    validate = None
    if "validation" in settings:
        later = columns_from_table(pq.read_table(settings["validation"]), index, durations)
        users = held_out_users(columns, later, POSITIVE_CODES, cfg.validate_users, settings["seed"])
        validate = RankHeldOut(users, score_catalogue, towers.history_length)
    return Work(build_step(settings), batches, batches.steps_per_epoch, cfg, validate=validate)


def score_catalogue(step: nn.Module) -> Callable[[HistoryBatch], Tensor]:
    """From histories to the dot product of their newest query with every item, [B, N], by a fine-tuning step."""
    towers = cast(TwoTower, step.towers)
    tokens = ItemTokens(
        {name: step.get_buffer(f"{name}_tokens") for name in MODALITIES},
        {name: step.get_buffer(f"{name}_mask") for name in MODALITIES},
    )
    warm = step.get_buffer("warm")
    embeddings_ND = towers.embed_items(tokens, torch.arange(len(warm), device=warm.device), warm)
    return lambda history: towers.queries(history, embeddings_ND)[:, -1] @ embeddings_ND.T


def _interactions(settings: dict[str, Any]) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in settings["interactions"]])

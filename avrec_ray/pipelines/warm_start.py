"""The champion's towers over the present catalogue, and item tokens by its encoders: where a retraining starts."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from torch import Tensor

from avrec_ray.bundle import load_bundle
from avrec_ray.config import JobConfig
from avrec_ray.dataclass_io import to_dict
from avrec_ray.pipelines.baselines import catalogue_ids
from avrec_ray.pipelines.encode_items import encode_items
from avrec_ray.pipelines.retrain_items import NEW_CLIPS
from avrec_ray.pipelines.retrain_plan import Plan
from avrec_ray.pipelines.stage import Loop, StageRecord, StageRun, require_record
from avrec_ray.pipelines.storage import Storage
from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.item_tower import ItemTower
from avrec_ray.towers.two_tower import TwoTower
from avrec_ray.training.warm_start import ENCODERS, carry_over
from avrec_ray.training.weights import save_weights

_PRETRAINED = "item_tower.safetensors"


def run(loop: Loop, job: JobConfig, storage: Storage, plan: Plan, champion: Path) -> StageRecord:
    """Stage `warm_start`: the bundle `champion` to warm_start/towers.safetensors and item_tokens/tokens.parquet.

    Args:
        storage: of the loop that decoded and pretrained; its tokens are taken if they are of the champion's encoders.
    """
    own = loop.storage

    def work(stage: StageRun) -> dict[str, float]:
        weights = load_file(str(champion / "towers.safetensors"))
        with stage.publish("warm_start", "pretrain", "item_tokens") as (folder, pretrain, tokens):
            if (champion / _PRETRAINED).is_file():
                shutil.copyfile(champion / _PRETRAINED, pretrain / _PRETRAINED)
            item_ids = catalogue_ids(own.folder("clips"))
            _write_tokens(own, storage, job, champion, weights, folder, tokens / "tokens.parquet", stage.log)
            torch.manual_seed(job.seed)
            towers = TwoTower(job.towers, len(item_ids))
            num_known = carry_over(towers, weights, load_bundle(champion).items.item_ids, item_ids)
            save_weights(folder / "towers.safetensors", towers)
        stage.log(f"{plan.champion_version} knows {num_known} of {len(item_ids)} items")
        return {"num_items": float(len(item_ids)), "num_known_items": float(num_known)}

    return loop.stage(
        "warm_start",
        work,
        settings={"champion": plan.champion_version, "towers": to_dict(job.towers), "seed": job.seed},
        inputs={name: require_record(own, name).fingerprint for name in ("prepare", "decode_media")},
        outputs=[own.folder("warm_start") / "towers.safetensors", own.folder("item_tokens") / "tokens.parquet"],
    )


def _write_tokens(
    own: Storage,
    storage: Storage,
    job: JobConfig,
    champion: Path,
    weights: dict[str, Tensor],
    folder: Path,
    path: Path,
    log: Callable[[str], None],
) -> None:
    """Item tokens by the champion's encoders: those that are there are kept, and the rest is encoded."""
    item_ids, new_clips = catalogue_ids(own.folder("clips")), own.folder(NEW_CLIPS)
    new_ids = catalogue_ids(new_clips) if any(new_clips.glob("*.parquet")) else []
    old_ids = sorted(set(item_ids) - set(new_ids))
    is_kept = _has_tokens(storage, champion, weights, old_ids)
    clips = new_clips if is_kept else own.folder("clips")
    if new_ids or not is_kept:
        encoders = _item_tower(job.towers, champion, weights, folder / "encoders.safetensors")
        encode_items(clips, own.items, encoders, job.towers, job.cluster, path)
    if is_kept:
        kept = pq.read_table(storage.folder("item_tokens") / "tokens.parquet")
        kept = kept.filter(pc.is_in(kept["item_id"], value_set=pa.array(old_ids, pa.string())))
        parts = [kept, pq.read_table(path)] if new_ids else [kept]
        pq.write_table(pa.concat_tables(parts).sort_by("item_id"), path)
        log(f"{len(old_ids)} items keep their tokens: the champion's encoders made them")
    if num_encoded := len(new_ids) if is_kept else len(item_ids):
        log(f"{num_encoded} items encoded by the champion's encoders")


def _has_tokens(storage: Storage, champion: Path, weights: dict[str, Tensor], item_ids: list[str]) -> bool:
    """Whether item_tokens/ under `storage` holds these items, is newer than what it was made of, and made by these
    encoders. It may hold more."""
    tokens, pretrained = storage.folder("item_tokens") / "tokens.parquet", storage.folder("pretrain") / _PRETRAINED
    if not tokens.is_file() or not pretrained.is_file():
        return False
    sources = [storage.items, *storage.folder("clips").rglob("*.parquet")]
    if any(path.stat().st_mtime > tokens.stat().st_mtime for path in sources):
        return False
    if not set(item_ids) <= set(pq.read_table(tokens, columns=["item_id"])["item_id"].to_pylist()):
        return False
    made_by = _encoders(load_file(str(pretrained)))
    tuned = champion / _PRETRAINED
    mine = _encoders(load_file(str(tuned)) if tuned.is_file() else _item_weights(weights))
    return all(name in made_by and torch.equal(value, made_by[name]) for name, value in mine.items())


def _item_tower(cfg: TowersConfig, champion: Path, weights: dict[str, Tensor], path: Path) -> Path | None:
    """A file with the champion's encoders for `encode_items`; None where every encoder is frozen and brings its own."""
    if cfg.all_frozen:
        return None
    if (champion / _PRETRAINED).is_file():
        return champion / _PRETRAINED
    tower = ItemTower(cfg)
    tower.load_state_dict(_encoders(_item_weights(weights)), strict=False)
    save_weights(path, tower)
    return path


def _item_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the item tower within those of two towers."""
    return {name.removeprefix("item."): value for name, value in weights.items() if name.startswith("item.")}


def _encoders(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = ENCODERS.removeprefix("item.")
    return {name: value for name, value in weights.items() if name.startswith(prefix)}

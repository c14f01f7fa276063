"""Frozen encoders over every clip, once: clips and text to cached tokens, one row an item."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch

from avrec_ray.cluster_config import ClusterConfig
from avrec_ray.dataclass_io import from_dict, to_dict
from avrec_ray.pipelines.catalogue import item_durations, read_items, word_ids, write_item_tokens
from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.item_tower import ItemTokens, ItemTower, token_shapes
from avrec_ray.training.checkpoint import load_weights

Batch = dict[str, npt.NDArray[Any]]


class EncodeClips:
    """Ray Data callable: rows of the clips table to rows of tokens. Loads the tower once an actor."""

    def __init__(self, weights: str, towers: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        self.tower = ItemTower(from_dict(TowersConfig, towers))
        load_weights(Path(weights), self.tower)
        self.tower.eval()

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Batch:
        frames = torch.from_numpy(np.ascontiguousarray(batch["frames"]))
        log_mel = torch.from_numpy(np.ascontiguousarray(batch["log_mel"]))
        return {
            **{name: batch[name] for name in ("item_id", "clip_idx", "start_seconds", "end_seconds")},
            "has_video": batch["has_video"],
            "has_audio": batch["has_audio"],
            "video": self.tower.encoders["video"](frames).numpy(),
            "audio": self.tower.encoders["audio"](log_mel).numpy(),
        }


def encode_items(
    clips_path: Path, items_path: Path, weights: Path, towers: TowersConfig, cluster: ClusterConfig, output: Path
) -> int:
    """Write the item tokens table of every item in the clips table; return the number of items.

    Tokens of a clip are about 2 kB, so that of a million items they fit the driver; clips never pass through it.
    """
    encoded = (
        ray.data.read_parquet(str(clips_path))
        .repartition(target_num_rows_per_block=64)
        .map_batches(
            EncodeClips,
            fn_constructor_kwargs={"weights": str(weights), "towers": to_dict(towers)},
            batch_size=32,
            num_cpus=1,
            num_gpus=1 if cluster.use_gpu else 0,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=cluster.num_workers),
        )
    )
    rows = list(encoded.iter_rows())
    item_ids = sorted({row["item_id"] for row in rows})
    tokens, spans = _gather(rows, item_ids, towers)
    items = read_items(items_path, item_ids)
    with torch.inference_mode():
        words = torch.from_numpy(word_ids(items, towers))
        tokens.tokens["text"] = _text_tower(weights, towers).encoders["text"](words)
        tokens.masks["text"] = (words > 0).any(1, keepdim=True).repeat(1, token_shapes(towers)["text"][0])
    unknown = spans[:, 0, 1] == 0
    spans[unknown, 0, 1] = np.nan_to_num(item_durations(items))[unknown]
    write_item_tokens(output, item_ids, tokens, spans)
    return len(item_ids)


def _text_tower(weights: Path, towers: TowersConfig) -> ItemTower:
    tower = ItemTower(towers)
    load_weights(weights, tower)
    return tower.eval()


def _gather(
    rows: list[dict[str, Any]], item_ids: list[str], towers: TowersConfig
) -> tuple[ItemTokens, npt.NDArray[np.float32]]:
    """Tokens of clips, in any order, to tokens of items; clips beyond `max_clips` are an error of the caller."""
    shapes = token_shapes(towers)
    index = {item_id: row for row, item_id in enumerate(item_ids)}
    tokens = {name: torch.zeros(len(item_ids), *shapes[name]) for name in ("video", "audio")}
    masks = {name: torch.zeros(len(item_ids), shapes[name][0], dtype=torch.bool) for name in ("video", "audio")}
    spans = np.zeros((len(item_ids), towers.max_clips, 2), np.float32)
    for row in rows:
        item, clip = index[row["item_id"]], int(row["clip_idx"])
        spans[item, clip] = row["start_seconds"], row["end_seconds"]
        for name in ("video", "audio"):
            per_clip = shapes[name][0] // towers.max_clips
            place = slice(clip * per_clip, (clip + 1) * per_clip)
            tokens[name][item, place] = torch.from_numpy(np.array(row[name]))
            masks[name][item, place] = bool(row[f"has_{name}"])
    return ItemTokens(tokens, masks), spans

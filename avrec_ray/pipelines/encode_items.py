"""Encoders over every clip and text, once: to cached tokens at the encoders' own widths, one row an item."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch

from avrec_ray.cluster_config import ClusterConfig
from avrec_ray.dataclass_io import from_dict, to_dict
from avrec_ray.media.clips import iter_clips
from avrec_ray.pipelines.catalogue import given_vectors, item_durations, read_items, word_ids, write_item_tokens
from avrec_ray.towers.config import GIVEN, TowersConfig
from avrec_ray.towers.item_tower import ItemTokens, ItemTower, token_shapes
from avrec_ray.training.weights import load_weights
from avrec_ray.types import MODALITIES

Batch = dict[str, npt.NDArray[Any]]

_INPUTS = {"video": "frames", "audio": "log_mel"}
"""Column of the clips table that an encoder reads."""
_PLACES = ("item_id", "clip_idx", "start_seconds", "end_seconds", "has_video", "has_audio")


class EncodeClips:
    """Ray Data callable: rows of the clips table to rows of tokens. Loads the tower once an actor."""

    def __init__(self, weights: str, towers: dict[str, Any], device: str = "cpu") -> None:
        torch.set_num_threads(1)
        self.device = device
        self.tower = _load_tower(weights, from_dict(TowersConfig, towers)).to(device)
        self.inputs = {name: _INPUTS[name] for name in _from_clips(self.tower.cfg)}

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Batch:
        tokens = {}
        for name, column in self.inputs.items():
            values = torch.from_numpy(np.ascontiguousarray(batch[column])).to(self.device)
            tokens[name] = self.tower.encoders[name](values).cpu().numpy()
        return {**{name: batch[name] for name in _PLACES}, **tokens}


class EncodeTexts:
    """Ray Data callable: rows of word ids to rows of tokens. Loads the tower once an actor."""

    def __init__(self, weights: str, towers: dict[str, Any], device: str = "cpu") -> None:
        torch.set_num_threads(1)
        self.device = device
        self.tower = _load_tower(weights, from_dict(TowersConfig, towers)).to(device)

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Batch:
        words = torch.from_numpy(np.stack(list(batch["word_ids"]))).to(self.device)
        return {"row": batch["row"], "text": self.tower.encoders["text"](words).cpu().numpy()}


def encode_items(
    clips_path: Path, items_path: Path, weights: Path | None, towers: TowersConfig, cluster: ClusterConfig, output: Path
) -> int:
    """Write the item tokens table of every item in the clips table; return the number of items.

    Tokens of a clip are about 2 kB, so that of a million items they fit the driver; clips never pass through it.

    Args:
        weights: pretrained item tower; None where every encoder is frozen, and so brings its own.
    """
    rows = _clip_rows(clips_path, weights, towers, cluster)
    item_ids = sorted({row["item_id"] for row in rows})
    tokens, spans = _gather(rows, item_ids, towers)
    items = read_items(items_path, item_ids)
    for name, vectors in given_vectors(items_path, item_ids, towers).items():
        _place_vectors(tokens, name, vectors)
    if towers.text_encoder not in GIVEN:
        words = torch.from_numpy(word_ids(items, towers))
        tokens.tokens["text"] = _encode_words(words, weights, towers, cluster)
        tokens.masks["text"] = (words > 0).any(1, keepdim=True).repeat(1, token_shapes(towers)["text"][0])
    unknown = spans[:, 0, 1] == 0
    spans[unknown, 0, 1] = np.nan_to_num(item_durations(items))[unknown]
    write_item_tokens(output, item_ids, tokens, spans)
    return len(item_ids)


def _load_tower(weights: str, towers: TowersConfig) -> ItemTower:
    tower = ItemTower(towers)
    if weights:
        load_weights(Path(weights), tower)
    return tower.eval()


def _from_clips(towers: TowersConfig) -> list[str]:
    """Modalities whose encoders read clips."""
    return [name for name in _INPUTS if towers.encoder_of(name) not in GIVEN]


def _clip_rows(
    clips_path: Path, weights: Path | None, towers: TowersConfig, cluster: ClusterConfig
) -> list[dict[str, Any]]:
    """A row a clip: where it is, what it has, and its tokens. Pictures and sound that nobody reads are not loaded."""
    wanted = _from_clips(towers)
    if not wanted:
        batches = iter_clips(clips_path, _PLACES, batch_size=4096)
        return [dict(zip(batch, row, strict=True)) for batch in batches for row in zip(*batch.values(), strict=True)]
    columns = [*_PLACES, *(_INPUTS[name] for name in wanted)]
    encoded = (
        ray.data.read_parquet(str(clips_path))
        .select_columns(columns)
        .repartition(target_num_rows_per_block=64)
        .map_batches(EncodeClips, batch_size=32, **_actors(weights, towers, cluster))
    )
    return list(encoded.iter_rows())


def _encode_words(words: torch.Tensor, weights: Path | None, towers: TowersConfig, cluster: ClusterConfig) -> Any:
    """Tokens [N, K, W] of every text: a small encoder here and at once, a pretrained one by the cluster."""
    if towers.text_encoder == "scratch":
        with torch.inference_mode():
            return _load_tower(str(weights or ""), towers).encoders["text"](words)
    rows = [{"row": row, "word_ids": ids} for row, ids in enumerate(words.numpy())]
    encoded = (
        ray.data.from_items(rows, override_num_blocks=max(1, len(rows) // 256))
        .map_batches(EncodeTexts, batch_size=32, **_actors(weights, towers, cluster))
        .iter_rows()
    )
    found = sorted(encoded, key=lambda row: int(row["row"]))
    return torch.from_numpy(np.stack([row["text"] for row in found]))


def _actors(weights: Path | None, towers: TowersConfig, cluster: ClusterConfig) -> dict[str, Any]:
    """Who encodes: an actor a worker, each with its own copy of the tower."""
    device = "cuda" if cluster.use_gpu else "cpu"
    return {
        "fn_constructor_kwargs": {"weights": str(weights or ""), "towers": to_dict(towers), "device": device},
        "num_cpus": 1,
        "num_gpus": 1 if cluster.use_gpu else 0,
        "compute": ray.data.ActorPoolStrategy(min_size=1, max_size=cluster.num_workers),
    }


def _gather(
    rows: list[dict[str, Any]], item_ids: list[str], towers: TowersConfig
) -> tuple[ItemTokens, npt.NDArray[np.float32]]:
    """Tokens of clips, in any order, to tokens of items; clips beyond `max_clips` are an error of the caller."""
    shapes = token_shapes(towers)
    index = {item_id: row for row, item_id in enumerate(item_ids)}
    tokens = {name: torch.zeros(len(item_ids), *shapes[name]) for name in MODALITIES}
    masks = {name: torch.zeros(len(item_ids), shapes[name][0], dtype=torch.bool) for name in MODALITIES}
    spans = np.zeros((len(item_ids), towers.max_clips, 2), np.float32)
    for row in rows:
        item, clip = index[row["item_id"]], int(row["clip_idx"])
        spans[item, clip] = row["start_seconds"], row["end_seconds"]
        for name in _from_clips(towers):
            per_clip = shapes[name][0] // towers.max_clips
            place = slice(clip * per_clip, (clip + 1) * per_clip)
            tokens[name][item, place] = torch.from_numpy(np.array(row[name]))
            masks[name][item, place] = bool(row[f"has_{name}"])
    return ItemTokens(tokens, masks), spans


def _place_vectors(items: ItemTokens, modality: str, vectors: npt.NDArray[np.float32]) -> None:
    """Vectors [N, W], NaN where there is none, as the token of each item's first span."""
    present = torch.from_numpy(~np.isnan(vectors[:, 0]))
    items.tokens[modality][:, 0] = torch.from_numpy(vectors).nan_to_num()
    items.masks[modality][:, 0] = present

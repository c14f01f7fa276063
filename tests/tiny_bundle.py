"""A small but real bundle: random weights, embeddings that the towers computed, every file that serving reads."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from avrec_ray.bundle import (
    CLASSES_FILE,
    CONTENT_FILE,
    NEIGHBOUR_FILES,
    BundleMetadata,
    save_bundle,
)
from avrec_ray.catalogue import Catalogue, catalogue_table
from avrec_ray.media.config import MediaConfig
from avrec_ray.ranking.config import TARGETS, RerankerConfig
from avrec_ray.ranking.content_likeness import ContentLikeness
from avrec_ray.ranking.interaction import AttentionReranker
from avrec_ray.ranking.user_classes import ClassTastes, WatchLines
from avrec_ray.retrieval.config import IndexConfig
from avrec_ray.retrieval.index import build_index
from avrec_ray.retrieval.neighbours import fit_neighbours
from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.item_tower import ItemTokens
from avrec_ray.towers.two_tower import TwoTower
from avrec_ray.towers.vector_tables import write_embeddings, write_moments
from avrec_ray.training.profiles import save_profiles
from avrec_ray.training.weights import save_weights
from tests.tiny_models import random_columns, random_tokens, tiny_profiles, tiny_towers

TOWERS_VERSION = "v-towers"
CATEGORIES = ("music", "sport", "cooking", None)
LANGUAGES = ("en", "de", None)
TAGS = ("calm", "loud", "outdoor", "night")


def build_tiny_bundle(
    folder: Path,
    num_items: int = 40,
    seed: int = 0,
    towers: TowersConfig | None = None,
    reranker: RerankerConfig | None = None,
    catalogue: Catalogue | None = None,
    head_std: float = 0.0,
    num_users: int = 30,
    num_choices: int = 200,
    calibration: dict[str, tuple[float, float]] | None = None,
    media: MediaConfig | None = None,
    new_items_watermark: int = 0,
    random_vectors: bool = False,
) -> Path:
    """Write a complete bundle at `folder`, whose name is its model_version; returns `folder`.

    Models are as built, that is untrained; `head_std` > 0 draws what the reranker starts with at zero, so that it has
    an opinion of its own; `calibration` are slopes and intercepts of targets. Every fifth item lacks video and every
    seventh has text alone. `num_choices` random choices of `num_users` make the neighbours. With `random_vectors`
    vectors are drawn, too. Where the towers read profiles, users u0 to u7 have those of `tiny_profiles`.
    """
    torch.manual_seed(seed)
    cfg, ranking = towers or tiny_towers(), reranker or RerankerConfig(num_interests=5, hidden_dim=8)
    items = catalogue or tiny_catalogue(num_items, seed)
    metadata = BundleMetadata(
        model_version=folder.name,
        towers_version=TOWERS_VERSION,
        towers=cfg,
        reranker=ranking,
        index=IndexConfig(),
        seed=seed,
        data_version="d-tiny",
        media=media,
        new_items_watermark=new_items_watermark,
    )

    def write_files(staging: Path) -> None:
        two_tower, scorer = TwoTower(cfg, len(items)).eval(), AttentionReranker(ranking, cfg.embedding_dim)
        if head_std:
            torch.nn.init.normal_(scorer.heads.weight, std=head_std)
            torch.nn.init.normal_(scorer.context.weight[:, 1], std=head_std)  # of popularity
        for target, numbers in (calibration or {}).items():
            scorer.calibration[TARGETS.index(target)] = torch.tensor(numbers)
        if two_tower.user.friends is not None:
            torch.nn.init.ones_(two_tower.user.friends.gate)
        save_weights(staging / "towers.safetensors", two_tower)
        save_weights(staging / "reranker.safetensors", scorer)
        rng = np.random.default_rng(seed)
        users, chosen = rng.integers(0, num_users, num_choices), rng.integers(0, len(items), num_choices)
        for name, table in zip(NEIGHBOUR_FILES, (ranking.taste, ranking.session), strict=True):
            fit_neighbours(users, chosen, num_users, len(items), table).save(staging / name)
        content = rng.normal(size=(len(items), 6)) / np.sqrt(6)
        ContentLikeness(content.astype(np.float16)).save(staging / CONTENT_FILE)
        tiny_tastes(cfg.embedding_dim + content.shape[1], seed).save(staging / CLASSES_FILE)
        pq.write_table(catalogue_table(items), staging / "items.parquet")
        profiles = tiny_profiles(random_columns(8, len(items), seed), cfg).profiles
        if profiles is not None:
            save_profiles(staging / "users.parquet", profiles)
        if random_vectors:
            _write_random_vectors(staging, cfg, items, rng)
        else:
            _write_vectors(staging, two_tower, items, tiny_tokens(cfg, len(items), seed))

    return save_bundle(folder, metadata, write_files)


def tiny_tastes(dim: int, seed: int = 0) -> ClassTastes:
    """Three kinds of users with random tastes."""
    rng = np.random.default_rng(seed)
    shares = np.array([0.5, 0.3, 0.2], np.float32)
    tastes = rng.normal(size=(3, dim)).astype(np.float32)
    lines = WatchLines(np.array([-1.0, 0.0, 0.5], np.float32), np.array([0.5, 1.0, 0.0], np.float32), 0.8, 0.5)
    return ClassTastes(tastes, np.zeros(3, np.float32), shares, 0.7, 0.9, lines)


def tiny_catalogue(num_items: int, seed: int = 0) -> Catalogue:
    """Items i00, i01, ... of three categories, two languages and some unknowns; every tenth is cold."""
    rng = np.random.default_rng(seed)
    counts = rng.permutation(np.arange(1, num_items + 1)) * (np.arange(num_items) % 10 != 9)
    durations = (10.0 + np.arange(num_items)).astype(np.float32)
    durations[3::11] = np.nan
    return Catalogue(
        item_ids=[f"i{row:02d}" for row in range(num_items)],
        titles=[f"Title {row}" for row in range(num_items)],
        categories=[CATEGORIES[row % 4] for row in range(num_items)],
        tags=[[TAGS[row % 4], TAGS[(row + 1) % 4]] if row % 6 else [] for row in range(num_items)],
        creator_ids=[f"c{row % 7}" if row % 13 else None for row in range(num_items)],
        languages=[LANGUAGES[row % 3] for row in range(num_items)],
        durations=durations,
        popularity=(counts / max(counts.sum(), 1)).astype(np.float32),
        recent_popularity=(counts[::-1] / max(counts.sum(), 1)).astype(np.float32) * (counts > 0),
        choices_per_day=np.maximum(counts, 1).astype(np.float32),
        warm=counts > 0,
    )


def tiny_tokens(cfg: TowersConfig, num_items: int, seed: int = 0) -> ItemTokens:
    """Random tokens; every fifth item lacks video, every seventh video and audio, every third its second clip."""
    items = random_tokens(cfg, num_items, seed)
    for name in ("video", "audio"):
        half = items.masks[name].shape[1] // cfg.max_clips
        if cfg.max_clips > 1:
            items.masks[name][::3, half:] = False
        items.masks[name][::7] = False
    items.masks["video"][::5] = False
    return items


@torch.inference_mode()
def _write_vectors(staging: Path, two_tower: TwoTower, items: Catalogue, tokens: ItemTokens) -> None:
    embeddings = two_tower.embed_items(tokens, torch.arange(len(items)), torch.from_numpy(items.warm)).numpy()
    moments, present = two_tower.item.moments(tokens)
    starts = 4.0 * np.arange(two_tower.cfg.max_clips, dtype=np.float32)
    spans = np.tile(np.stack([starts, starts + 4.0], 1), (len(items), 1, 1))
    write_embeddings(staging / "embeddings.parquet", items.item_ids, embeddings, TOWERS_VERSION)
    write_moments(staging / "moments.parquet", items.item_ids, moments.numpy(), present.numpy(), spans, TOWERS_VERSION)
    (staging / "index").mkdir()
    build_index(embeddings, IndexConfig()).save(staging / "index", TOWERS_VERSION)


def _write_random_vectors(staging: Path, cfg: TowersConfig, items: Catalogue, rng: np.random.Generator) -> None:
    """A unit vector an item, and its moments, all of which exist."""
    drawn = rng.normal(size=(len(items), 2 + 2 * cfg.max_clips, cfg.embedding_dim)).astype(np.float32)
    drawn /= np.linalg.norm(drawn, axis=2, keepdims=True)
    embeddings, moments = np.ascontiguousarray(drawn[:, 0]), drawn[:, 1:]
    spans = np.zeros((len(items), cfg.max_clips, 2), np.float32)
    write_embeddings(staging / "embeddings.parquet", items.item_ids, embeddings, TOWERS_VERSION)
    present = np.ones(moments.shape[:2], bool)
    write_moments(staging / "moments.parquet", items.item_ids, moments, present, spans, TOWERS_VERSION)
    (staging / "index").mkdir()
    build_index(embeddings, IndexConfig()).save(staging / "index", TOWERS_VERSION)


def tiny_media() -> MediaConfig:
    """How media become clips that fit `tiny_towers`."""
    return MediaConfig(num_frames=2, frame_size=16, num_mel_bins=8, clip_seconds=0.5, max_clips=2)

"""Cached tokens equal what the encoders say, whatever mix of encoders it is; what comes in a table is kept as it is."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from avrec_ray.cluster_config import ClusterConfig
from avrec_ray.config import JobConfig
from avrec_ray.errors import ConfigError
from avrec_ray.item_vectors import vectors_column
from avrec_ray.media.clips import clips_table, write_clips
from avrec_ray.pipelines import pretrain
from avrec_ray.pipelines.catalogue import given_vectors, read_item_tokens, read_items, word_ids
from avrec_ray.pipelines.encode_items import encode_items
from avrec_ray.pipelines.pretrain import load_clip_arrays
from avrec_ray.pipelines.stage import Loop, StageRecord, write_record
from avrec_ray.pipelines.storage import Storage
from avrec_ray.pipelines.towers_of_job import with_widths
from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.item_tower import ItemTower
from avrec_ray.training.config import PretrainConfig
from avrec_ray.training.weights import load_weights, save_weights
from avrec_ray.types import check_items
from tests.tiny_models import random_inputs, tiny_towers
from tests.towers.tiny_checkpoints import bert, siglip

IDS = ["a", "b", "c", "d"]
TITLES = ["cat plays", "", "dog sleeps night", ""]
VIDEO = np.array([[1, 2, 3], [np.nan] * 3, [4, 5, 6], [np.nan] * 3], np.float32)
CLUSTER = ClusterConfig(num_workers=1)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """Items a (two clips), b and c (one each) and d (nothing); video vectors of a and c."""
    cfg, storage = tiny_towers(), Storage.at(str(tmp_path))
    inputs = random_inputs(cfg, 5)
    item_ids, clip_idx = ["a", "a", "b", "c", "d"], [0, 1, 0, 0, 0]
    has_video = np.array([True, True, True, False, False])
    columns: dict[str, Any] = {
        "item_id": item_ids, "clip_idx": clip_idx, "start_seconds": [0.0, 2.0, 0.0, 0.0, 0.0],
        "end_seconds": [2.0, 4.0, 2.0, 2.0, 0.0], "log_mel": inputs.log_mel.numpy(),
        "frames": inputs.frames.numpy() * has_video[:, None, None, None, None],
        "has_video": has_video, "has_audio": np.array([True, True, False, True, False]),
        "decoder": [""] * 5, "media_sha256": [""] * 5,
    }  # fmt: skip
    storage.folder("clips").mkdir()
    write_clips(clips_table(columns), storage.folder("clips") / "part.parquet")
    items = pa.table({"item_id": IDS, "title": TITLES, "media_uri": pa.nulls(4, pa.string())})
    items = items.append_column(*vectors_column("video_vector", VIDEO))
    items = check_items(items.append_column(*vectors_column("text_vector", np.ones((4, 1), np.float32))))
    storage.items.parent.mkdir(parents=True)
    pq.write_table(items, storage.items)
    return storage


def encoded(storage: Storage, cfg: TowersConfig, weights: Path | None) -> Any:
    output = storage.root / "tokens.parquet"
    assert encode_items(storage.folder("clips"), storage.items, weights, cfg, CLUSTER, output) == len(IDS)
    item_ids, tokens, spans = read_item_tokens(output, cfg)
    assert item_ids == IDS
    return tokens, spans


def saved_tower(storage: Storage, cfg: TowersConfig) -> tuple[ItemTower, Path]:
    torch.manual_seed(1)
    tower, path = ItemTower(cfg).eval(), storage.root / "tower.safetensors"
    save_weights(path, tower)
    return tower, path


def test_vectors_alone_are_kept_as_they_are_without_an_encoder(storage: Storage) -> None:
    """No Ray: nothing is to be computed."""
    cfg = tiny_towers(video_encoder="precomputed", video_width=3, audio_encoder="none", text_encoder="none")
    tokens, spans = encoded(storage, cfg, None)
    assert tokens.masks["video"].tolist() == [[True, False], [False, False], [True, False], [False, False]]
    np.testing.assert_array_equal(tokens.tokens["video"][[0, 2], 0], VIDEO[[0, 2]])
    assert not tokens.tokens["video"][:, 1].any()
    assert not tokens.masks["audio"].any()
    assert not tokens.masks["text"].any()
    assert spans[0].tolist() == [[0, 2], [2, 4]]


@pytest.mark.ray
def test_tokens_of_scratch_encoders_beside_vectors_are_those_of_the_tower(ray_cluster: None, storage: Storage) -> None:
    cfg = tiny_towers(video_encoder="precomputed", video_width=3)
    tower, path = saved_tower(storage, cfg)
    tokens, _ = encoded(storage, cfg, path)
    arrays = load_clip_arrays(storage.folder("clips"), storage.items, cfg)
    with torch.inference_mode():
        direct = tower.encode_clips(arrays.inputs(np.array([0, 2, 3, 4])))
    torch.testing.assert_close(tokens.tokens["text"], direct["text"], atol=1e-6, rtol=0)
    torch.testing.assert_close(tokens.tokens["audio"][[0, 2], :2], direct["audio"][[0, 2]], atol=1e-6, rtol=0)
    assert torch.equal(tokens.tokens["video"][:, 0], direct["video"][:, 0])
    assert tokens.masks["text"].any(1).tolist() == [True, False, True, False]
    presence = {k: v.tolist() for k, v in arrays.inputs(np.array([0, 2, 3, 4])).presence().items()}
    assert presence == {
        "video": [True, False, True, False], "audio": [True, False, True, False], "text": [True, False, True, False]
    }  # fmt: skip
    assert arrays.present.tolist() == [True, True, False, True, False]


@pytest.mark.slow
@pytest.mark.ray
def test_tokens_of_frozen_checkpoints_are_those_of_the_checkpoints(
    ray_cluster: None, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, save in (("siglip", siglip), ("bert", bert)):
        (tmp_path / name).mkdir()
        save(tmp_path / name)
    cfg = tiny_towers(
        video_encoder="transformers", video_checkpoint=str(tmp_path / "siglip"), audio_encoder="none",
        text_encoder="transformers", text_checkpoint=str(tmp_path / "bert"),
    )  # fmt: skip
    assert cfg.all_frozen
    tokens, _ = encoded(storage, cfg, None)
    arrays = load_clip_arrays(storage.folder("clips"), storage.items, cfg)
    direct = ItemTower(cfg).eval().encode_clips(arrays.inputs(np.array([0, 2, 3, 4])))
    torch.testing.assert_close(tokens.tokens["text"], direct["text"], atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens.tokens["video"][:2, :2], direct["video"][:2], atol=1e-5, rtol=0)
    assert tokens.masks["text"].any(1).tolist() == [True, False, True, False]
    assert tokens.masks["video"].any(1).tolist() == [True, True, False, False]


def test_items_are_read_without_their_vectors(storage: Storage) -> None:
    items = read_items(storage.items, ["c", "a"])
    assert items["title"].to_pylist() == ["dog sleeps night", "cat plays"]
    assert "video_vector" not in items.column_names
    found = given_vectors(storage.items, ["c", "b"], tiny_towers(video_encoder="precomputed", text_encoder="none"))
    np.testing.assert_array_equal(found["video"], VIDEO[[2, 1]])
    assert np.isnan(found["text"]).all()
    assert not word_ids(items, tiny_towers(text_encoder="none")).any()


def test_widths_come_from_the_table(storage: Storage) -> None:
    job = JobConfig(towers=tiny_towers(video_encoder="precomputed"))
    assert with_widths(storage, job).towers.video_width == 3
    assert with_widths(storage, with_widths(storage, job)) == with_widths(storage, job)
    assert with_widths(storage, JobConfig(towers=tiny_towers())).towers == tiny_towers()
    with pytest.raises(ConfigError, match="items table has no column audio_vector; got "):
        with_widths(storage, JobConfig(towers=tiny_towers(audio_encoder="precomputed")))
    with pytest.raises(ConfigError, match="video_width=5, but video_encoder='precomputed' has 3 here"):
        with_widths(storage, JobConfig(towers=tiny_towers(video_encoder="precomputed", video_width=5)))


@pytest.mark.slow
@pytest.mark.ray
def test_pretraining_on_frozen_encoders_trains_adapters_on_their_tokens(ray_cluster: None, storage: Storage) -> None:
    cfg = tiny_towers(video_encoder="precomputed", audio_encoder="none", text_encoder="precomputed")
    job = JobConfig(storage_path=str(storage.root), towers=cfg, cluster=CLUSTER)
    job.training.pretrain = PretrainConfig(epochs=3, batch_size=2, learning_rate=0.1)
    write_record(storage, StageRecord("decode_media", "0" * 64, [], {}, "", 0.0))
    said: list[str] = []
    loop = Loop(storage, job.tracking, "test", echo=said.append)
    pretrain.run(loop, job)
    loop.close()
    assert any("every encoder is frozen: they run once" in line for line in said)
    assert any("4 items encoded, 2 of them with two modalities or more" in line for line in said)
    wide = with_widths(storage, job).towers
    torch.manual_seed(job.seed)
    trained, first = ItemTower(wide), ItemTower(wide)
    load_weights(storage.folder("pretrain") / "item_tower.safetensors", trained)
    changed = {name for name, value in trained.state_dict().items() if not torch.equal(value, first.state_dict()[name])}
    assert {"adapters.video.1.weight", "contrast_heads.text.weight"} <= changed
    _, tokens, _ = read_item_tokens(pretrain.features_path(storage), wide)
    np.testing.assert_array_equal(tokens.tokens["video"][[0, 2], 0], VIDEO[[0, 2]])

"""Batches straight from media are those of the cached clips, or new ones each epoch, whatever dies meanwhile."""

import shutil
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from avrec_ray.cluster_config import TrackingConfig
from avrec_ray.dataclass_io import from_dict
from avrec_ray.errors import StageError
from avrec_ray.media.clips import clip_columns, clips_table, write_clips
from avrec_ray.media.decode import text_only_clip
from avrec_ray.pipelines import pretrain
from avrec_ray.pipelines.stage import Loop, StageRecord, StageRun, write_record
from avrec_ray.pipelines.storage import Storage
from avrec_ray.pipelines.stream_batches import StreamBatches
from avrec_ray.pipelines.train import run_trainer
from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.item_tower import ItemInputs
from avrec_ray.training.config import PretrainConfig
from tests.pipelines.streaming import (
    MEDIA,
    NUM_FILMS,
    build_work,
    decode_here,
    job_at,
    settings_at,
    statistics,
    write_catalogue,
)
from tests.training.test_augment import STILL

EPOCHS = 6
"""More than what is decoded ahead when the decoders are killed."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoded catalogue; tests that break media take a copy."""
    folder = tmp_path_factory.mktemp("catalogue")
    write_catalogue(folder)
    return folder


def stream_of(settings: dict[str, Any], rank: int = 0, num_workers: int = 1) -> StreamBatches:
    """Streaming that runs without Ray."""
    towers, cfg = from_dict(TowersConfig, settings["towers"]), from_dict(PretrainConfig, settings["pretrain"])
    streamed = pretrain.stream_batches(settings, towers, cfg, rank, num_workers)
    streamed.run = decode_here
    return streamed


def assert_equal(ours: ItemInputs, theirs: ItemInputs) -> None:
    for name, value in vars(ours).items():
        assert torch.equal(value, getattr(theirs, name)), name


@pytest.mark.parametrize("num_workers", [1, 2])
def test_without_random_clips_batches_are_the_cached_ones_augmented_alike(root: Path, num_workers: int) -> None:
    for rank in range(num_workers):
        cached = pretrain.build_work(settings_at(root, mode="cached"), rank, num_workers)
        streamed = stream_of(settings_at(root, mode="stream", random_clips=False), rank, num_workers)
        assert streamed.steps_per_epoch == cached.steps_per_epoch > 0
        for epoch in range(2):
            for ours, theirs in zip(streamed(epoch), cached.batches(epoch), strict=True):
                assert_equal(ours, theirs)
                for name, value in statistics(ours).items():
                    assert torch.equal(value, statistics(theirs)[name])


def test_random_clips_differ_by_epoch_and_keep_the_statistics_of_the_cached_ones(root: Path) -> None:
    settings = settings_at(root, epochs=6, mode="stream")
    settings["pretrain"] |= STILL
    cached = pretrain.build_work({**settings_at(root, epochs=6, mode="cached"), "pretrain": settings["pretrain"]}, 0, 1)
    streamed = stream_of(settings)
    epochs = [list(streamed(epoch)) for epoch in range(6)]
    ours = {name: torch.cat([getattr(b, name) for e in epochs for b in e]).float() for name in ("frames", "log_mel")}
    known = {
        name: torch.cat([getattr(b, name) for epoch in range(6) for b in cached.batches(epoch)]).float()
        for name in ("frames", "log_mel")
    }
    for name, value in ours.items():
        assert abs(value.mean() - known[name].mean()) < 0.05 * known[name].std(), name
        assert value.std().item() == pytest.approx(known[name].std().item(), rel=0.05), name
    clips_of: dict[str, set[bytes]] = {}
    for epoch, batches in enumerate(epochs):
        for rows, batch in zip(streamed.plan.batches(epoch), batches, strict=True):
            for item, log_mel in zip(streamed.items.item_idx[rows], batch.log_mel, strict=True):
                clips_of.setdefault(streamed.items.item_ids[item], set()).add(log_mel.numpy().tobytes())
    films = [len(clips) for item_id, clips in clips_of.items() if item_id.startswith("film")]
    assert len(films) == NUM_FILMS
    assert min(films) > 2  # more than the two clips that were cached


def test_an_epoch_follows_from_its_number_alone_so_that_a_restart_goes_on_alike(root: Path) -> None:
    whole = stream_of(settings_at(root, epochs=3, mode="stream"))
    epochs = [list(whole(epoch)) for epoch in range(3)]
    resumed = stream_of(settings_at(root, epochs=3, mode="stream"))
    for ours, theirs in zip(resumed(2), epochs[2], strict=True):
        assert_equal(ours, theirs)
    again = list(resumed(1))  # out of order: a new execution
    assert_equal(again[0], epochs[1][0])
    within = stream_of(settings_at(root, epochs=3, mode="stream"))
    rest = [*within.starting_at(1, 2), *within(2)]  # the next epoch goes on in the same execution
    assert len(epochs[1]) > 2
    for ours, theirs in zip(rest, [*epochs[1][2:], *epochs[2]], strict=True):
        assert_equal(ours, theirs)


def test_items_that_cannot_be_decoded_any_more_are_left_out_and_batches_keep_their_size(
    root: Path, tmp_path: Path
) -> None:
    shutil.copytree(root, tmp_path / "copy")
    settings = settings_at(tmp_path / "copy", mode="stream", random_clips=False)
    items = tmp_path / "copy" / "tables" / "items.parquet"
    items.write_bytes(_moved(items, root, tmp_path / "copy"))
    (tmp_path / "copy" / "media" / "3.mp4").unlink()
    (tmp_path / "copy" / "media" / "5.mp4").write_bytes(b"")
    shutil.copy(root / "media" / "picture.png", tmp_path / "copy" / "media" / "7.mp4")
    streamed = stream_of(settings)
    whole = pretrain.build_work(settings_at(root, mode="cached"), 0, 1)
    sizes, absent = Counter[int](), 0
    for epoch in range(2):
        for ours, theirs in zip(streamed(epoch), whole.batches(epoch), strict=True):
            gone = ~torch.stack(list(ours.presence().values())).any(0)
            assert not ours.frames[gone].any()
            assert not ours.log_mel[gone].any()
            assert torch.equal(ours.frames[~gone & ours.has_audio], theirs.frames[~gone & ours.has_audio])
            sizes[len(ours.frames)] += 1
            absent += int(gone.sum())
    assert set(sizes) == {3}
    assert streamed.left_out.total() == absent >= 3
    assert streamed.left_out["missing"] >= 1
    assert len(streamed.notes) == absent
    assert any("film_3 left out: missing: " in note for note in streamed.notes)


def _moved(items: Path, old: Path, new: Path) -> bytes:
    """The items table with the media under another folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(items)
    uris = [uri and uri.replace(str(old), str(new)) for uri in table["media_uri"].to_pylist()]
    place = table.schema.get_field_index("media_uri")
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array(uris, pa.string())), items)
    return items.read_bytes()


def test_rows_that_come_in_another_order_or_not_at_all_are_an_error(root: Path) -> None:
    settings = settings_at(root, mode="stream", random_clips=False)
    swapped = stream_of(settings)
    swapped.run = lambda blocks, size, told: iter(list(decode_here(blocks, size, told))[::-1])
    with pytest.raises(StageError, match=r"epoch 0, step 0: Ray Data gave rows \[.*\], expected \[0, 1, 2\]"):
        next(swapped(0))
    short = stream_of(settings)
    short.run = lambda blocks, size, told: islice(decode_here(blocks, size, told), 1)
    with pytest.raises(StageError, match=r"epoch 0, step 1: Ray Data gave nothing"):
        list(short(0))


def test_an_execution_spans_as_many_epochs_as_its_blocks_allow(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    streamed = stream_of(settings_at(root, epochs=5, mode="stream", random_clips=False))
    streamed.run = lambda blocks, size, told: counted.append(len(blocks)) or decode_here(blocks, size, told)
    per_epoch = -(-streamed.plan.batch_size * streamed.steps_per_epoch // 2)
    monkeypatch.setattr("avrec_ray.pipelines.stream_batches._MOST_BLOCKS", 2 * per_epoch)
    orders = [[len(batch.frames) for batch in streamed(epoch)] for epoch in range(5)]
    assert orders == [[3] * streamed.steps_per_epoch] * 5
    assert counted == [2 * per_epoch, 2 * per_epoch, per_epoch]


def test_share_of_actors_covers_all_and_leaves_no_worker_without() -> None:
    for actors in range(12):
        for workers in range(1, 5):
            shares = [pretrain.share_of(actors, rank, workers) for rank in range(workers)]
            assert min(shares) >= 1
            assert sum(shares) == max(actors, workers)
            assert max(shares) - min(shares) <= 1


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_two_trainers_are_fed_by_two_actors_and_killing_these_costs_nothing(root: Path, tmp_path: Path) -> None:
    said: list[str] = []
    job = job_at(root, epochs=EPOCHS, mode="stream", random_clips=False)
    loop = Loop(Storage.at(str(tmp_path)), TrackingConfig(system_metrics_seconds=0), "test", echo=said.append)

    def work(stage: StageRun) -> dict[str, float]:
        settings = {
            **pretrain.stage_settings(Storage.at(str(root)), job),
            **pretrain.decode_actors(job, stage.log),
            "cached": settings_at(root, epochs=EPOCHS, mode="cached"),
            "notes": str(tmp_path),
        }
        run_trainer(stage, job.cluster, build_work, settings, EPOCHS, seed=job.seed)
        history = loop.tracking.client.get_metric_history(stage.run.run_id, "train/data_wait_share")
        assert [point.step for point in history] == list(range(EPOCHS))
        assert all(0 <= point.value <= 1 for point in history)
        return {}

    loop.stage("pretrain", work, settings={}, inputs={}, outputs=[])
    loop.close()
    children, actors = map(int, (tmp_path / "killed").read_text().split())
    assert children >= 1
    assert actors == 2
    steps = (NUM_FILMS + 2) // 6
    for rank in range(2):
        for epoch in range(EPOCHS):
            assert (tmp_path / f"{rank}_{epoch}").read_text().splitlines() == [f"{step} 3 []" for step in range(steps)]
    assert any(f"epoch {EPOCHS}/{EPOCHS}  loss" in line and "data wait" in line for line in said)
    assert not any("left out" in line for line in said)


def test_a_catalogue_of_text_alone_starts_untrained_as_in_cached_mode(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    clips = [text_only_clip(f"i{number}", MEDIA) for number in range(EPOCHS)]
    write_clips(clips_table(clip_columns(clips)), tmp_path / "clips" / "part.parquet")
    said: list[str] = []
    loop = Loop(Storage.at(str(tmp_path)), TrackingConfig(system_metrics_seconds=0), "test", echo=said.append)
    write_record(loop.storage, StageRecord("decode_media", "f", [], {}, "", 0.0))
    assert pretrain.run(loop, job_at(tmp_path, mode="stream")).metrics == {"epochs": 0.0}
    loop.close()
    assert any("nothing to contrast" in line for line in said)

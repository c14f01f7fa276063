"""Real media through the worker: vectors as the pipeline makes them, or a reason; dead workers lose nothing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from avrec_ray.bundle import load_metadata
from avrec_ray.errors import BundleError
from avrec_ray.media.decode import decode_item
from avrec_ray.new_items.eligible import why_not_encodable
from avrec_ray.new_items.encode import ItemEncoder
from avrec_ray.new_items.ingest import IngestWorker
from avrec_ray.new_items.store import NewItemStore
from avrec_ray.new_items.submission import Submission
from avrec_ray.new_items.uploads import Upload, sweep
from avrec_ray.new_items.vectors import NewItem, Predicted, item_from_bytes
from avrec_ray.towers.item_tower import ItemInputs
from tests.tiny_bundle import TOWERS_VERSION, build_tiny_bundle, tiny_media
from tests.tiny_models import tiny_towers

Make = Callable[..., IngestWorker]


def put_items(store: NewItemStore) -> list[NewItem]:
    changes = [c for c in store.changes(0, TOWERS_VERSION) if c.kind == "put"]
    return [item_from_bytes(c.facts, c.vectors, tiny_towers()) for c in changes]


def state(store: NewItemStore, item_id: str) -> tuple[str, str]:
    found = store.status(item_id)
    assert found is not None
    return found.state, found.reason


def test_posted_file_gets_the_vectors_of_its_clips(make_worker: Make, store: NewItemStore, clip: Path) -> None:
    facts = Submission("n1", "cats play", str(clip), tags=("pets",))
    store.submit(facts)
    worker = make_worker(media_roots=[str(clip.parent)])
    assert worker.work_once()
    assert not worker.work_once()
    assert state(store, "n1") == ("servable", "")
    (item,) = put_items(store)
    assert item.facts == facts
    assert item.duration_seconds == pytest.approx(2.0, abs=0.1)
    assert np.linalg.norm(item.embedding) == pytest.approx(1, abs=1e-5)
    assert item.moment_mask.all()  # two clips with picture and sound, and text
    np.testing.assert_allclose(item.moment_spans[:, 0], [0, 1, 0, 1, 0], atol=0.1)
    np.testing.assert_allclose(item.moment_spans[:, 1], [1, 2, 1, 2, 2], atol=0.1)


def test_tokens_are_those_that_the_encoders_leave_in_a_batch(bundle: Path, clip: Path) -> None:
    encoder = ItemEncoder(bundle)
    clips = decode_item("n1", str(clip), tiny_media())
    tokens, _ = encoder.tokens(Submission("n1", "cats play"), clips)
    words = encoder._words("cats play.")
    inputs = ItemInputs(
        frames=torch.from_numpy(np.stack([c.frames for c in clips])),
        log_mel=torch.from_numpy(np.stack([c.log_mel for c in clips])),
        word_ids=words.repeat(2, 1),
        has_video=torch.ones(2, dtype=torch.bool),
        has_audio=torch.ones(2, dtype=torch.bool),
    )
    with torch.inference_mode():
        expected = encoder.towers.item.encode_clips(inputs)
    for name in ("video", "audio"):
        torch.testing.assert_close(tokens.tokens[name][0], expected[name].flatten(0, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens.tokens["text"][0], expected["text"][0], atol=1e-5, rtol=0)
    assert all(mask.all() for mask in tokens.masks.values())


def test_item_of_the_bundle_keeps_the_vector_of_its_behaviour(bundle: Path) -> None:
    encoder = ItemEncoder(bundle)
    warm, cold = (Submission(i, "cats play") for i in ("i00", "new"))
    learned, forgotten, unknown = encoder(warm, []), encoder(warm, [], keeps_behaviour=False), encoder(cold, [])
    assert not np.allclose(learned.embedding, unknown.embedding)
    np.testing.assert_array_equal(forgotten.embedding, unknown.embedding)
    assert unknown.moment_mask.tolist() == [False] * 4 + [True]
    assert not unknown.moments[:4].any()
    assert np.isnan(unknown.duration_seconds)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"#EXTM3U\nhttp://127.0.0.1/x\n", "not_media"),
        (b"\x1a\x45\xdf\xa3" + bytes(2000), "corrupt"),
        (b"", "not_media"),
        (None, "missing"),
    ],
)
def test_hostile_or_broken_file_is_refused_with_its_reason(
    make_worker: Make, store: NewItemStore, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "file.mp4"
    if content is not None:
        path.write_bytes(content)
    store.submit(Submission("n1", "x", str(path)))
    assert make_worker(media_roots=[str(tmp_path)]).work_once()
    assert state(store, "n1") == ("refused", reason)
    assert put_items(store) == []


def test_truncated_upload_is_refused_and_the_version_before_stays(
    make_worker: Make, store: NewItemStore, tmp_path: Path, clip: Path
) -> None:
    def submit(content: bytes) -> None:
        with Upload(tmp_path / "uploads", 10**7) as upload:
            upload.write(content)
            upload.keep()
            store.submit(Submission("n1", "x"), upload.name, upload.sha256)

    worker = make_worker()
    submit(clip.read_bytes())
    assert worker.work_once()
    assert state(store, "n1") == ("servable", "")
    submit(clip.read_bytes()[:-4000])
    assert worker.work_once()
    assert state(store, "n1")[0] == "refused"
    assert len(put_items(store)) == 1


@pytest.mark.parametrize("place", ["outside", "upload", "https", "no_roots"])
def test_places_that_are_not_allowed_are_forbidden(
    make_worker: Make, store: NewItemStore, tmp_path: Path, clip: Path, place: str
) -> None:
    """Nobody names another's upload, a file beside the roots, or a URL by default."""
    uri = {"outside": str(clip), "upload": f"{tmp_path}/uploads/x", "https": "https://example.org/a.mp4"}
    store.submit(Submission("n1", "x", uri.get(place, str(clip))))
    roots = [] if place == "no_roots" else [str(tmp_path / "media")]
    assert make_worker(media_roots=roots).work_once()
    assert state(store, "n1") == ("refused", "forbidden")


def test_item_over_which_workers_die_is_refused_in_the_end(make_worker: Make, store: NewItemStore, clip: Path) -> None:
    store.submit(Submission("n1", "x", str(clip)))
    for attempt in range(3):
        assert store.claim(f"dead-{attempt}", -1.0) is not None
    assert make_worker(media_roots=[str(clip.parent)]).work_once()
    assert state(store, "n1") == ("refused", "crashed")


def test_item_of_a_worker_that_was_killed_is_finished_by_the_next(
    make_worker: Make, store: NewItemStore, clip: Path
) -> None:
    store.submit(Submission("n1", "x", str(clip)))
    assert store.claim("killed", -1.0) is not None
    assert make_worker(media_roots=[str(clip.parent)]).work_once()
    assert state(store, "n1") == ("servable", "")


def test_bundle_that_cannot_encode_says_why(tmp_path: Path) -> None:
    bundle = build_tiny_bundle(tmp_path / "v-old")
    assert why_not_encodable(load_metadata(bundle)) == "it does not say how media become clips; build it anew"
    with pytest.raises(BundleError, match="takes no new items: it does not say how media become clips"):
        ItemEncoder(bundle)
    ids = build_tiny_bundle(tmp_path / "v-ids", towers=tiny_towers(content_weight=0.0), media=tiny_media())
    assert "content_weight=0" in why_not_encodable(load_metadata(ids))


def test_vectors_survive_the_store_and_damaged_ones_are_refused(bundle: Path) -> None:
    item = ItemEncoder(bundle)(Submission("n1", "cats play"), [])
    item.predicted = Predicted("v-tiny", np.arange(6, dtype=np.float16), {"taste": (["i00"], np.ones(1, np.float32))})
    again = item_from_bytes(item.facts, item.to_bytes(), tiny_towers())
    np.testing.assert_array_equal(again.embedding, item.embedding)
    np.testing.assert_array_equal(again.moments, item.moments)
    assert again.predicted is not None
    assert again.predicted.speakers["taste"][0] == ["i00"]
    with pytest.raises(BundleError, match="cannot be read"):
        item_from_bytes(item.facts, item.to_bytes()[:-3], tiny_towers())
    with pytest.raises(BundleError, match=r"embedding is \(8,\), expected \(16,\)"):
        item_from_bytes(item.facts, item.to_bytes(), tiny_towers(embedding_dim=16))
    item.embedding = item.embedding * 2
    with pytest.raises(BundleError, match="has not length 1"):
        item_from_bytes(item.facts, item.to_bytes(), tiny_towers())


def test_upload_is_whole_or_not_there_and_sweep_removes_what_nobody_names(tmp_path: Path) -> None:
    with Upload(tmp_path, 10) as upload:
        upload.write(b"12345")
    assert list(tmp_path.iterdir()) == []
    with Upload(tmp_path, 10) as upload:
        upload.write(b"12345")
        upload.keep()
    assert (tmp_path / upload.name).read_bytes() == b"12345"
    assert sweep(tmp_path, [upload.name], now_seconds=4e9) == 0
    assert sweep(tmp_path, []) == 0  # too young: it may be about to be queued
    assert sweep(tmp_path, [], now_seconds=4e9) == 1
    assert sweep(tmp_path / "nothing", []) == 0

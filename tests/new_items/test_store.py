"""The queue and the log on both databases: idempotent, leased, ordered, and nothing of a deleted item left."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from avrec_ray.new_items.store import NewItemStore, Queue, Submitted
from avrec_ray.new_items.submission import Submission, submission_from_json

ITEM = Submission("n1", "A title", "/media/a.mp4", "Words.", ("x", "y"), "music", "c1", "en", 1.5e9)
FAR = 4e9
"""Seconds; after every lease."""


@pytest.fixture
def any_store(new_url: Callable[[], str]) -> Iterator[NewItemStore]:
    opened = NewItemStore(new_url())
    yield opened
    opened.close()


def finished(store: NewItemStore, item: Submission, towers: str = "t1", vectors: bytes = b"v") -> None:
    assert store.submit(item) == Submitted("queued", True)
    claim = store.claim("w", 60)
    assert claim is not None
    assert store.finish(claim, towers, vectors)


def test_submission_survives_its_json() -> None:
    assert submission_from_json(ITEM.to_json()) == ITEM
    assert submission_from_json(Submission("n2").to_json()) == Submission("n2")
    assert ITEM.fingerprint() != ITEM.fingerprint("sha of an upload") != replace(ITEM, title="B").fingerprint()


def test_same_body_is_queued_once_and_another_replaces_it(any_store: NewItemStore) -> None:
    assert any_store.submit(ITEM) == Submitted("queued", True)
    assert any_store.submit(ITEM) == Submitted("queued", False)
    claim = any_store.claim("w1", 60)
    assert claim is not None
    assert (claim.facts, claim.attempts) == (ITEM, 1)
    assert any_store.claim("w2", 60) is None
    assert any_store.submit(ITEM) == Submitted("decoding", False)
    changed = replace(ITEM, title="Another")
    assert any_store.submit(changed) == Submitted("queued", True)
    assert not any_store.finish(claim, "t1", b"old")  # what it worked on is no more
    assert any_store.changes(0, "t1") == []
    second = any_store.claim("w2", 60)
    assert second is not None
    assert any_store.finish(second, "t1", b"new")
    assert any_store.submit(changed) == Submitted("servable", False)
    (change,) = any_store.changes(0, "t1")
    assert (change.kind, change.facts, change.vectors) == ("put", changed, b"new")
    assert any_store.changes(0, "t2") == []
    assert any_store.changes(change.seq, "t1") == []


def test_item_of_a_dead_worker_is_given_to_another_and_its_late_answer_is_refused(any_store: NewItemStore) -> None:
    any_store.submit(ITEM)
    first = any_store.claim("w1", 60)
    assert first is not None
    assert any_store.renew(first, 60)
    second = any_store.claim("w2", 60, now_seconds=FAR)
    assert second is not None
    assert second.attempts == 2
    assert not any_store.renew(first, 60)
    assert not any_store.refuse(first, "crashed", "")
    assert any_store.finish(second, "t1", b"v")


def test_refused_item_says_why_and_is_tried_again_on_request(any_store: NewItemStore) -> None:
    any_store.submit(ITEM)
    claim = any_store.claim("w", 60)
    assert claim is not None
    assert any_store.refuse(claim, "truncated", "x" * 10_000)
    status = any_store.status("n1")
    assert status is not None
    assert (status.state, status.reason, len(status.detail)) == ("refused", "truncated", 500)
    assert any_store.submit(ITEM) == Submitted("queued", True)
    status = any_store.status("n1")
    assert status is not None
    assert (status.state, status.reason) == ("queued", "")


def test_full_queue_takes_nothing_more(any_store: NewItemStore) -> None:
    assert any_store.submit(ITEM, max_waiting=1) is not None
    assert any_store.submit(replace(ITEM, item_id="n2"), max_waiting=1) is None
    assert any_store.submit(ITEM, max_waiting=1) == Submitted("queued", False)
    assert any_store.status("n2") is None


def test_the_queue_counts_what_waits_and_what_was_refused(any_store: NewItemStore) -> None:
    assert any_store.queue() == Queue({"queued": 0, "decoding": 0, "refused": 0}, None)
    for number in range(4):
        any_store.submit(Submission(f"n{number}"), now_seconds=100.0 + number)
    first, second = any_store.claim("w", 60), any_store.claim("w", 60)
    assert first is not None
    assert second is not None
    any_store.refuse(first, "truncated", "")
    assert any_store.queue() == Queue({"queued": 2, "decoding": 1, "refused": 1}, 102.0)
    any_store.finish(second, "t1", b"v")
    any_store.delete("n2", is_served=False)
    assert any_store.queue() == Queue({"queued": 1, "decoding": 0, "refused": 1}, 103.0)


def test_deleted_item_leaves_its_id_alone_and_can_come_back(any_store: NewItemStore) -> None:
    finished(any_store, ITEM)
    assert any_store.delete("n1", is_served=False)
    (change,) = any_store.changes(0, "t1")
    assert (change.kind, change.body, change.vectors, change.is_superseded) == ("delete", "", b"", False)
    status = any_store.status("n1")
    assert status is not None
    assert status.state == "deleted"
    assert not any_store.delete("n1", is_served=False)
    assert any_store.deleted_items() == {"n1"}
    assert any_store.accepted_items()[0].num_rows == 0
    finished(any_store, ITEM)
    gone, back = any_store.changes(0, "t1")
    assert (gone.kind, gone.is_superseded, back.kind) == ("delete", True, "put")
    assert any_store.deleted_items() == set()
    assert any_store.was_deleted("n1")


def test_item_of_a_bundle_can_be_deleted_without_having_been_submitted(any_store: NewItemStore) -> None:
    assert not any_store.delete("i1", is_served=False)
    assert any_store.delete("i1", is_served=True)
    status = any_store.status("i1")
    assert status is not None
    assert status.state == "deleted"


def test_accepted_items_are_an_items_table_and_come_once(any_store: NewItemStore) -> None:
    finished(any_store, ITEM)
    any_store.submit(Submission("n2", "Two"), "upload-name", "sha")
    claim = any_store.claim("w", 60)
    assert claim is not None
    assert any_store.finish(claim, "t1", b"v")
    any_store.submit(Submission("n3", "Three"))  # waits
    table, watermark = any_store.accepted_items(uploads="/up")
    assert table.select(["item_id", "media_uri", "tags"]).to_pylist() == [
        {"item_id": "n1", "media_uri": "/media/a.mp4", "tags": ["x", "y"]},
        {"item_id": "n2", "media_uri": "/up/upload-name", "tags": []},
    ]
    assert table["published_at"][0].as_py().timestamp() == 1.5e9
    assert any_store.accepted_items(watermark)[0].num_rows == 0
    assert any_store.media_files() == {"upload-name"}


def test_items_without_vectors_of_new_towers_are_found_again(any_store: NewItemStore) -> None:
    finished(any_store, ITEM)
    watermark = any_store.accepted_items()[1]
    assert any_store.claim_missing("t1", "w", 60, [], 0) is None
    assert any_store.claim_missing("t2", "w", 60, ["n1"], watermark) is None  # in the new bundle already
    claim = any_store.claim_missing("t2", "w", 60, ["n1"], 0)  # in it, but changed since
    assert claim is not None
    assert any_store.finish(claim, "t2", b"v2")
    assert [c.vectors for c in any_store.changes(0, "t2")] == [b"v2"]
    assert [c.vectors for c in any_store.changes(0, "t1")] == [b"v"]
    assert any_store.claim_missing("t2", "w", 60, [], 0) is None

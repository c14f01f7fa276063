import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from avrec_ray.datasets.synthetic import write_tables
from avrec_ray.datasets.synthetic.factors import FACTORS
from avrec_ray.types import USERS, check_interactions, check_items, check_table
from tests.datasets.synthetic.conftest import SMALL, Corpus, write_corpus


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*.parquet"))}


def test_write_tables_default_has_the_demo_size(corpus: Corpus) -> None:
    assert (corpus.items.num_rows, corpus.interactions.num_rows, corpus.users.num_rows) == (300, 15_000, 500)


def test_write_tables_pass_the_schema_checks(corpus: Corpus) -> None:
    assert check_items(corpus.items) == corpus.items
    assert check_interactions(corpus.interactions) == corpus.interactions
    assert check_table(corpus.users, USERS, "users", unique=["user_id"]) == corpus.users
    assert corpus.interactions["event_id"].null_count == 0


def test_write_tables_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    media = tmp_path / "media"
    first = write_tables(tmp_path / "a", SMALL, 3, media)
    second = write_tables(tmp_path / "b", SMALL, 3, media)
    write_tables(tmp_path / "c", SMALL, 4, media)
    assert first == second
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    same = digests(tmp_path / "a").items() & digests(tmp_path / "c").items()
    assert not same


def test_write_tables_media_uris_are_absolute_paths_under_the_folder(corpus: Corpus) -> None:
    uris = corpus.items["media_uri"].drop_null().to_pylist()
    assert sorted(uris) == sorted(task.path for task in corpus.tasks)
    assert {Path(uri).parent for uri in uris} == {corpus.folder / "media"}
    assert all(Path(task.path).stem == task.item_id for task in corpus.tasks)
    assert not (corpus.folder / "media").exists()


def test_write_tables_has_every_kind_of_media(corpus: Corpus) -> None:
    kinds = Counter(task.kind for task in corpus.tasks)
    assert kinds["video"] > 150
    assert min(kinds[kind] for kind in ("webm", "silent", "audio", "image")) >= 15
    assert corpus.items["media_uri"].null_count >= 10
    assert Counter(task.form for task in corpus.tasks if task.kind == "broken") == {
        "truncated": 2, "not_media": 2, "empty": 1, "missing": 1,
    }  # fmt: skip
    assert {task.form for task in corpus.tasks if task.kind == "audio"} == {"m4a", "ogg", "wav", "mp3"}


def test_write_tables_fills_every_item_column(corpus: Corpus) -> None:
    for name in ("title", "description", "tags", "category", "creator_id", "language", "published_at"):
        assert corpus.items[name].null_count == 0
    assert set(corpus.items["category"].to_pylist()) == set(FACTORS["theme"])
    planned = {t.item_id: t.duration_seconds for t in corpus.tasks if t.kind != "image"}
    durations = dict(zip(*(corpus.items[n].to_pylist() for n in ("item_id", "duration_seconds")), strict=True))
    assert {k: v for k, v in durations.items() if v is not None} == pytest.approx(planned, abs=1e-5)
    assert min(planned.values()) >= 3.9
    assert max(planned.values()) <= 6.1


def test_write_tables_watch_seconds_fit_the_duration(corpus: Corpus) -> None:
    durations = dict(zip(*(corpus.items[n].to_pylist() for n in ("item_id", "duration_seconds")), strict=True))
    rows = corpus.interactions.select(["item_id", "event", "watch_seconds"]).to_pylist()
    views = [row for row in rows if row["event"] in ("view", "skip")]
    for row in views:
        duration = durations[row["item_id"]]
        assert (row["watch_seconds"] is None) == (duration is None)
        assert duration is None or 0 <= row["watch_seconds"] <= duration
    assert all(row["watch_seconds"] is None for row in rows if row["event"] not in ("view", "skip"))


def test_write_tables_skips_are_short_and_likes_follow_views(corpus: Corpus) -> None:
    rows = corpus.interactions.to_pylist()
    durations = dict(zip(*(corpus.items[n].to_pylist() for n in ("item_id", "duration_seconds")), strict=True))
    shares = {
        event: [
            r["watch_seconds"] / durations[r["item_id"]] for r in rows if r["event"] == event and r["watch_seconds"]
        ]
        for event in ("view", "skip")
    }
    assert max(shares["skip"]) < min(shares["view"]) + 1e-6
    viewed = {(r["user_id"], r["item_id"]) for r in rows if r["event"] == "view"}
    assert all((r["user_id"], r["item_id"]) in viewed for r in rows if r["event"] not in ("view", "skip"))


def test_write_tables_events_are_mostly_positive(corpus: Corpus) -> None:
    counts = Counter(corpus.interactions["event"].to_pylist())
    assert set(counts) == {"view", "skip", "like", "share", "comment", "favorite"}
    assert 0.03 < counts["skip"] / 15_000 < 0.25
    assert counts["view"] > 8000
    assert counts["like"] > 700


def test_write_tables_interactions_are_in_order_of_time_over_the_whole_span(corpus: Corpus) -> None:
    at = corpus.interactions["at"].cast("int64").to_numpy()
    assert (np.diff(at) >= 0).all()
    assert (at[-1] - at[0]) / 86_400e6 == pytest.approx(corpus.cfg.num_days, abs=0.5)


def test_write_tables_cold_items_come_only_in_the_last_tenth(corpus: Corpus) -> None:
    factors = pq.read_table(corpus.folder / "truth" / "item_factors.parquet")
    cold = factors.filter(factors["is_cold"])["item_id"].combine_chunks()
    assert len(cold) == 15
    rows = corpus.interactions.filter(pc.is_in(corpus.interactions["item_id"], value_set=cold))
    all_at, at = (t["at"].cast("int64").to_numpy() for t in (corpus.interactions, rows))
    assert at.min() >= all_at.min() + 0.9 * (all_at.max() - all_at.min())
    assert at.min() > np.quantile(all_at, 0.9)
    assert len(at) > 50
    assert len(rows["item_id"].unique()) >= 12


def test_write_tables_items_of_every_playable_kind_are_met(corpus: Corpus) -> None:
    factors = pq.read_table(corpus.folder / "truth" / "item_factors.parquet").to_pylist()
    counts = Counter(corpus.interactions["item_id"].to_pylist())
    met = Counter(row["kind"] for row in factors if counts[row["item_id"]])
    assert set(met) == {"video", "webm", "silent", "audio", "image", "text"}


def test_write_tables_truth_names_the_factors_that_are_rendered(corpus: Corpus) -> None:
    rows = {r["item_id"]: r for r in pq.read_table(corpus.folder / "truth" / "item_factors.parquet").to_pylist()}
    for task in corpus.tasks:
        assert {name: rows[task.item_id][name] for name in FACTORS} == task.factors


def test_write_tables_users_have_attributes(corpus: Corpus) -> None:
    attributes = [dict(row) for row in corpus.users["attributes"].to_pylist()]
    assert all(set(row) == {"age_group", "country"} for row in attributes)


def test_write_tables_small_corpus_has_exactly_its_rows(tmp_path: Path) -> None:
    small = write_corpus(tmp_path, SMALL, seed=9)
    assert (small.items.num_rows, small.interactions.num_rows) == (60, 220)
    assert set(small.interactions["item_id"].to_pylist()) <= set(small.items["item_id"].to_pylist())

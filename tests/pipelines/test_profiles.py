"""Users and edges tables on their way into fine-tuning and into the reranker's candidates, without Ray."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from avrec_ray.config import JobConfig
from avrec_ray.dataclass_io import to_dict
from avrec_ray.errors import StageError
from avrec_ray.pipelines.catalogue import write_item_tokens
from avrec_ray.pipelines.finetune import build_work
from avrec_ray.pipelines.profiles import read_profiles
from avrec_ray.pipelines.train_reranker import held_out_lists, matcher_candidates
from avrec_ray.ranking.config import RerankerConfig
from avrec_ray.ranking.content_likeness import ContentLikeness
from avrec_ray.ranking.lists import ItemArrays, ItemToItem
from avrec_ray.ranking.user_classes import ClassTastes, UserClasses, WatchLines
from avrec_ray.retrieval.config import MatcherConfig, NeighbourConfig
from avrec_ray.retrieval.neighbours import fit_neighbours
from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.item_tower import ItemTower
from avrec_ray.training.config import FinetuneConfig
from avrec_ray.training.histories import EventColumns
from avrec_ray.training.steps import FinetuneStep
from avrec_ray.training.weights import save_weights
from avrec_ray.types import INTERACTIONS, ITEMS
from tests.tiny_measured import describe_split
from tests.tiny_models import random_columns, random_tokens, tiny_towers, tiny_user_tables

NUM_ITEMS = 20
ITEM_IDS = [f"i{row:02d}" for row in range(NUM_ITEMS)]
COLUMNS = random_columns(6, NUM_ITEMS, seed=2)
START = datetime(2026, 1, 1, tzinfo=UTC)
BOTH: dict[str, Any] = {"num_attribute_buckets": 16, "num_friends": 2, "friend_items": 2}


def rows_of(columns: EventColumns, user: int) -> list[dict[str, Any]]:
    return [
        {
            "user_id": columns.user_ids[user],
            "item_id": ITEM_IDS[columns.item_idx[row]],
            "event": "view",
            "at": START + timedelta(seconds=float(columns.at_seconds[row])),
        }
        for row in range(columns.starts[user], columns.starts[user + 1])
    ]


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """What the stages before fine-tuning leave; the last event of each user is held out."""
    for name in ("tables", "splits", "item_tokens", "pretrain", "finetune"):
        (tmp_path / name).mkdir()
    users, edges = tiny_user_tables(COLUMNS.user_ids)
    items = [{"item_id": item_id, "title": item_id, "tags": []} for item_id in ITEM_IDS]
    pq.write_table(pa.Table.from_pylist(items, ITEMS), tmp_path / "tables" / "items.parquet")
    pq.write_table(users, tmp_path / "tables" / "users.parquet")
    pq.write_table(edges, tmp_path / "tables" / "edges.parquet")
    events = [rows_of(COLUMNS, user) for user in range(6)]
    for part, cut in (("train", slice(None, -1)), ("valid", slice(-1, None))):
        rows = [row for own in events for row in own[cut]]
        pq.write_table(pa.Table.from_pylist(rows, INTERACTIONS), tmp_path / "splits" / f"{part}.parquet")
    cfg = tiny_towers()
    spans = np.zeros((NUM_ITEMS, cfg.max_clips, 2), np.float32)
    write_item_tokens(tmp_path / "item_tokens" / "tokens.parquet", ITEM_IDS, random_tokens(cfg, NUM_ITEMS), spans)
    save_weights(tmp_path / "pretrain" / "item_tower.safetensors", ItemTower(cfg))
    return tmp_path


def settings_of(storage: Path, towers: TowersConfig) -> dict[str, Any]:
    return {
        "towers": to_dict(towers),
        "finetune": to_dict(FinetuneConfig(batch_size=6, negatives="mixed", num_uniform=4)),
        "item_tokens": str(storage / "item_tokens" / "tokens.parquet"),
        "items": str(storage / "tables" / "items.parquet"),
        "interactions": [str(storage / "splits" / "train.parquet")],
        "pretrained": str(storage / "pretrain" / "item_tower.safetensors"),
        "seed": 0,
    }


@pytest.mark.parametrize("blocks", ["sasrec", "hstu"])
def test_fine_tuning_learns_from_attributes_and_friends(storage: Path, blocks: str) -> None:
    work = build_work(settings_of(storage, tiny_towers(user_blocks=blocks, **BOTH)), 0, 1)
    assert isinstance(work.step, FinetuneStep)
    losses = work.step(next(iter(work.batches(0))))
    losses["loss"].backward()
    user = work.step.towers.user
    assert user.friends is not None
    assert user.attributes is not None
    assert user.told is not None
    for weight in (user.friends.gate, user.attributes.table.weight, user.told.weight, user.empty):
        assert weight.grad is not None
        assert weight.grad.abs().sum() > 0
        assert weight.grad.isfinite().all()


def test_fine_tuning_without_profiles_reads_no_table_of_users(storage: Path) -> None:
    for name in ("users", "edges"):
        (storage / "tables" / f"{name}.parquet").unlink()
    batch = next(iter(build_work(settings_of(storage, tiny_towers()), 0, 1).batches(0)))
    assert batch.history.attributes is None
    assert batch.history.friends is None


@pytest.mark.parametrize(("table", "setting"), [("users", "num_attribute_buckets"), ("edges", "num_friends")])
def test_towers_that_read_a_table_which_is_not_there_are_refused(storage: Path, table: str, setting: str) -> None:
    (storage / "tables" / f"{table}.parquet").unlink()
    with pytest.raises(StageError, match=rf"towers.{setting} is above 0, but .* no {table}.parquet; give data.{table}"):
        read_profiles(storage / "tables", tiny_towers(**BOTH), COLUMNS)


def test_candidates_of_the_reranker_read_what_friends_chose_in_training_alone(storage: Path) -> None:
    """Rewriting what friends chose in valid moves no list but their own, also where friends name candidates."""
    job = JobConfig(
        storage_path=str(storage),
        towers=tiny_towers(**BOTH),
        reranker=RerankerConfig(num_candidates=4),
        matcher=MatcherConfig(num_friends=2, num_popular=1, num_item_to_item=1, num_followed=1),
    )
    work = build_work(settings_of(storage, job.towers), 0, 1)
    assert isinstance(work.step, FinetuneStep)
    torch.nn.init.ones_(work.step.towers.user.friends.gate)  # type: ignore[union-attr]
    save_weights(storage / "finetune" / "towers.safetensors", work.step.towers)
    vectors = torch.nn.functional.normalize(torch.randn(NUM_ITEMS, job.towers.embedding_dim), dim=1)
    items = ItemArrays(vectors, vectors[:, None], torch.ones(NUM_ITEMS, 1, dtype=torch.bool), torch.ones(NUM_ITEMS, 3))
    describe_split(storage)
    table = fit_neighbours(*np.zeros((2, 1), int), 1, NUM_ITEMS, NeighbourConfig())
    nothing, nobody = np.zeros((NUM_ITEMS, 0), np.float16), np.zeros(0, np.float32)
    no_lines = WatchLines(nobody, nobody, 1.0, 0.0)
    no_tastes = ClassTastes(np.zeros((0, 0), np.float32), nobody, nobody, 1.0, 1.0, no_lines)
    classes = UserClasses(no_tastes, nothing, nothing)
    said = ItemToItem(table, table, ContentLikeness(nothing), classes)
    columns, queries = held_out_lists(storage, job, ITEM_IDS)
    found, scores, _ = matcher_candidates(storage, job, ITEM_IDS, items, said, columns, queries)
    assert len(found) == 6
    valid = pq.read_table(storage / "splits" / "valid.parquet").to_pylist()
    for row in valid:
        row["item_id"] = "i00"
    pq.write_table(pa.Table.from_pylist(valid, INTERACTIONS), storage / "splits" / "valid.parquet")
    columns, queries = held_out_lists(storage, job, ITEM_IDS)
    again, scores_again, _ = matcher_candidates(storage, job, ITEM_IDS, items, said, columns, queries)
    np.testing.assert_array_equal(found, again)
    np.testing.assert_array_equal(scores, scores_again)


def test_two_workers_give_the_gradient_of_one_with_profiles(storage: Path) -> None:
    settings = settings_of(storage, tiny_towers(user_blocks="hstu", **BOTH))
    whole = build_work(settings, 0, 1)
    half = {**settings, "finetune": {**settings["finetune"], "batch_size": 3}}
    found = []
    for work in (whole, *(build_work(half, rank, 2) for rank in range(2))):
        work.step.load_state_dict(whole.step.state_dict())
        loss = work.step(next(iter(work.batches(0))))["loss"]  # of the whole step's weight: shares add up
        loss.backward()
        found.append({n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in work.step.named_parameters()})
    alone, *shares = found
    for name, expected in alone.items():
        torch.testing.assert_close(shares[0][name] + shares[1][name], expected, atol=1e-5, rtol=1e-4, msg=name)

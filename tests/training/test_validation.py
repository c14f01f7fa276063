"""Validation within training: who is asked, what no list holds, and figures that a reader can count."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from avrec_ray.pipelines.finetune import score_catalogue
from avrec_ray.towers.two_tower import HistoryBatch, TwoTower
from avrec_ray.training.histories import EVENT_CODES, POSITIVE_CODES, EventColumns, pad_histories
from avrec_ray.training.steps import FinetuneStep
from avrec_ray.training.validation import RankHeldOut, held_out_users
from tests.tiny_models import random_columns, random_tokens, tiny_towers

VIEW, SKIP = EVENT_CODES["view"], EVENT_CODES["skip"]


def events(**items_of: list[tuple[int, int]]) -> EventColumns:
    """(item, event code) of each user, in order."""
    rows = [row for rows in items_of.values() for row in rows]
    return EventColumns(
        item_idx=np.array([item for item, _ in rows], np.int64),
        event=np.array([event for _, event in rows], np.int64),
        watch_ratio=np.full(len(rows), np.nan, np.float32),
        at_seconds=np.arange(len(rows), dtype=np.float64),
        user_ids=list(items_of),
        starts=np.cumsum([0, *(len(rows) for rows in items_of.values())]),
    )


FITTED = events(a=[(0, VIEW), (1, SKIP)], b=[(2, VIEW)], c=[(3, VIEW)])
LATER = events(a=[(0, VIEW), (4, VIEW), (5, SKIP)], c=[(3, VIEW)], d=[(1, VIEW)], b=[(0, VIEW), (5, VIEW), (5, VIEW)])


class Fixed(nn.Module):
    """Scores that do not depend on the history; a weight, as every module has."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(scores))


def fixed_scores(module: nn.Module) -> "ScoreHistories":
    return ScoreHistories(module.get_parameter("scores"))


class ScoreHistories:
    def __init__(self, scores: Tensor) -> None:
        self.scores = scores

    def __call__(self, history: HistoryBatch) -> Tensor:
        return self.scores.repeat(len(history.mask), 1).clone()


def test_users_are_asked_for_what_they_chose_first_after_a_history() -> None:
    found = held_out_users(FITTED, LATER, POSITIVE_CODES, most_users=10)
    asked = {FITTED.user_ids[user]: chosen.tolist() for user, chosen in zip(found.users, found.chosen, strict=True)}
    assert asked == {"a": [4], "b": [0, 5]}  # c chose nothing new, d has no history, a skip is no choice
    assert [seen.tolist() for seen in found.seen] == [[0, 1], [2]]
    few = held_out_users(FITTED, LATER, POSITIVE_CODES, most_users=1)
    assert len(few.users) == len(few.chosen) == len(few.seen) == 1


def test_metrics_are_those_of_the_lists_without_what_was_seen() -> None:
    users = held_out_users(FITTED, LATER, POSITIVE_CODES, most_users=10)
    rank = RankHeldOut(users, fixed_scores, length=3, recall_k=2, ndcg_k=2)
    # Lists of two: a sees 2, 3 (0 and 1 are seen); b sees 0, 1.
    found = rank(Fixed([6.0, 5.0, 4.0, 3.0, 2.0, 1.0]))
    assert found["recall_at_2"] == pytest.approx((0 + 1 / 2) / 2)
    assert found["ndcg_at_2"] == pytest.approx((0 + 1 / (1 + 1 / math.log2(3))) / 2)
    assert rank(Fixed([6.0, 1.0, 0.0, 0.0, 5.0, 5.5]))["recall_at_2"] == 1.0


def test_a_list_longer_than_the_catalogue_holds_all_and_nobody_gives_zero() -> None:
    users = held_out_users(FITTED, LATER, POSITIVE_CODES, most_users=10)
    assert RankHeldOut(users, fixed_scores, length=3)(Fixed([0.0] * 6))["recall_at_20"] == 1.0
    nobody = held_out_users(FITTED, events(d=[(1, VIEW)]), POSITIVE_CODES, most_users=10)
    assert RankHeldOut(nobody, fixed_scores, length=3)(Fixed([0.0] * 6)) == {"recall_at_20": 0.0, "ndcg_at_10": 0.0}


def test_scores_of_a_finetuning_step_are_those_of_its_towers() -> None:
    torch.manual_seed(0)
    cfg, num_items = tiny_towers(), 9
    tokens, warm = random_tokens(cfg, num_items), torch.arange(num_items) % 2 == 0
    step = FinetuneStep(TwoTower(cfg, num_items), tokens, warm).eval()
    columns = random_columns(3, num_items)
    rows = [columns.rows(user) for user in range(3)]
    history = pad_histories(columns, [(r.start, r.stop) for r in rows], cfg.history_length)
    with torch.no_grad():
        embeddings = step.towers.embed_items(tokens, torch.arange(num_items), warm)
        expected = step.towers.queries(history, embeddings)[:, -1] @ embeddings.T
        torch.testing.assert_close(score_catalogue(step)(history), expected)
    assert expected.std() > 0.01

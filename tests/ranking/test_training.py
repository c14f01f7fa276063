"""Fitting the reranker: queries from held-out behaviour, labels of candidates, and that it learns."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.ranking.conditional_logit import fit_weights
from avrec_ray.ranking.config import SCORES, TARGETS, RerankerConfig
from avrec_ray.ranking.position_bias import choice_weights
from avrec_ray.ranking.training import (
    RerankBatches,
    RerankQuery,
    RerankStep,
    held_out_queries,
    label_candidates,
    weigh_choices,
)
from avrec_ray.training.fit import build_optimizer, fit
from avrec_ray.training.histories import EVENT_CODES, EventColumns
from tests.ranking.taste_problem import NUM_ITEMS, taste_problem
from tests.tiny_models import random_columns


def columns_of(*rows: tuple[int, str, float]) -> EventColumns:
    """One user's events as (item, event, watch ratio)."""
    return EventColumns(
        item_idx=np.array([item for item, _, _ in rows], np.int64),
        event=np.array([EVENT_CODES[event] for _, event, _ in rows], np.int64),
        watch_ratio=np.array([watch for _, _, watch in rows], np.float32),
        at_seconds=np.arange(len(rows), dtype=np.float64),
        user_ids=["u"],
        starts=np.array([0, len(rows)]),
    )


@given(st.integers(0, 1000), st.integers(1, 6))
def test_held_out_queries_lie_after_what_was_fitted(seed: int, limit: int) -> None:
    columns = random_columns(5, NUM_ITEMS, seed)
    num_fitted = np.random.default_rng(seed).integers(0, 8, 5)
    queries = held_out_queries(columns, num_fitted, limit)
    for user in range(5):
        rows = columns.rows(user)
        mine = [q for q in queries if q.start == rows.start]
        count = rows.stop - rows.start
        assert len(mine) == min(limit, max(0, count - max(int(num_fitted[user]), 1)))
        assert all(q.stop - q.start >= max(num_fitted[user], 1) and q.stop < q.future_stop == rows.stop for q in mine)
        assert len({q.stop for q in mine}) == len(mine)


def test_held_out_queries_are_spread_over_the_held_out_events() -> None:
    columns = columns_of(*[(item, "view", np.nan) for item in range(11)])
    queries = held_out_queries(columns, np.array([2]), 3)
    assert [(q.start, q.stop, q.future_stop) for q in queries] == [(0, 2, 11), (0, 6, 11), (0, 10, 11)]


def test_label_candidates_says_what_the_user_did_afterwards() -> None:
    columns = columns_of(
        (1, "view", 1.0), (2, "view", 0.95), (3, "like", np.nan),
        (4, "skip", 0.1), (5, "view", 0.2), (5, "share", np.nan),
    )  # fmt: skip
    labels = label_candidates(columns, RerankQuery(0, 1, 6), np.array([1, 2, 3, 4, 5, 9]))
    nan = np.nan
    expected = {
        "choose": [0, 1, 1, 0, 1, 0],  # item 1 was met before the query, and not again
        "like": [nan, 0, 1, 0, 1, nan],
        "finish": [nan, 1, nan, 0, 0, nan],
        "skip": [nan, 0, 0, 1, 0, nan],
    }
    np.testing.assert_array_equal(labels, np.array([expected[name] for name in TARGETS], np.float32).T)


def share_of_first_places(batches: RerankBatches, step: RerankStep, rows: npt.NDArray[np.int64]) -> float:
    """In how many of the lists at `rows` the item that was chosen has the highest score."""
    batch = batches.batch(rows)
    with torch.no_grad():
        best = step.score(batch)[..., 0].argmax(1)
    return float(batch.labels[..., 0].gather(1, best[:, None]).mean())


def test_training_learns_a_taste_that_the_matcher_does_not_know() -> None:
    batches, step = taste_problem(num_users=300)
    held_out = np.arange(200, 300)
    batches.useful = np.setdiff1d(batches.useful, held_out)
    losses: list[dict[str, float]] = []
    before = share_of_first_places(batches, step, held_out)
    fit(
        step, batches, batches.steps_per_epoch, batches.cfg.optim, lambda epoch, found, due: losses.append(found),
        optimizer=build_optimizer(step, batches.cfg.optim),
    )  # fmt: skip
    assert losses[-1]["listwise"] < 0.5 * losses[0]["listwise"]
    assert losses[-1]["heads"] < losses[0]["heads"]
    assert before < 0.35
    assert share_of_first_places(batches, step, held_out) > 0.8


def test_step_losses_equal_plain_loops() -> None:
    batches, step = taste_problem(num_users=6)
    batches.labels[0, :, 0] = [1, 1, 0, 0, 0, 0, 0, 0]  # two choices share the target
    batches.labels[1, :, 0] = 0  # nothing chosen: no listwise loss
    batch = batches.batch(np.arange(6))
    torch.nn.init.normal_(step.model.heads.weight)
    losses = step(batch)
    logits, labels = step.score(batch).detach().double().numpy(), batch.labels.numpy()
    listwise, heads = [], []
    for row in range(6):
        chosen = np.flatnonzero(labels[row, :, 0])
        log_sum = np.log(np.exp(logits[row, :, 0]).sum())
        if len(chosen):
            listwise.append(np.mean([log_sum - logits[row, k, 0] for k in chosen]))
        for target in (1, 2, 3):
            for k in np.flatnonzero(~np.isnan(labels[row, :, target])):
                chance = 1 / (1 + np.exp(-logits[row, k, target]))
                heads.append(-np.log(chance if labels[row, k, target] else 1 - chance))
    assert losses["listwise"].item() == pytest.approx(np.mean(listwise), rel=1e-4)
    assert losses["heads"].item() == pytest.approx(np.mean(heads), rel=1e-4)
    assert losses["loss"].item() == pytest.approx(np.mean(listwise) + np.mean(heads), rel=1e-4)


def test_step_without_any_known_outcome_is_zero_and_finite() -> None:
    batches, step = taste_problem(num_users=3)
    batches.labels[..., 0], batches.labels[..., 1:] = 0.0, np.nan
    loss = step(batches.batch(np.arange(3)))["loss"]
    loss.backward()
    assert loss.item() == 0.0


def test_batches_meet_every_useful_list_once_an_epoch_in_another_order() -> None:
    batches, _ = taste_problem(num_users=50)
    batches.useful = np.setdiff1d(batches.useful, [3, 4])
    orders = []
    for epoch in (0, 1, 0):
        found = [batch.candidate_idx for batch in batches(epoch)]
        assert [len(rows) for rows in found] == [20, 20, 8]
        orders.append([sorted(row) for row in torch.cat(found).tolist()])
    assert orders[0] == orders[2] != orders[1]
    expected = [sorted(row) for row in batches.candidate_idx[batches.useful].tolist()]
    assert sorted(orders[1]) == sorted(expected)


def test_steps_look_at_all_that_the_user_met_and_draw_the_rest_anew() -> None:
    columns = columns_of(*[(0, "view", np.nan), (1, "view", np.nan), (2, "skip", np.nan), (3, "skip", np.nan)])
    candidates = np.arange(1, 21)[None]
    cfg = RerankerConfig(candidates_per_step=6)
    popularity, scores = np.full((30, 3), 0.01, np.float32), candidates.astype(np.float32)
    spoken_for = np.stack([2 * scores, 3 * scores, 4 * scores, 5 * scores], -1)
    batches = RerankBatches(columns, [RerankQuery(0, 1, 4)], candidates, scores, spoken_for, popularity, cfg, 0)
    drawn: set[int] = set()
    for epoch in range(30):
        (batch,) = batches(epoch)
        items = batch.candidate_idx[0].tolist()
        assert len(set(items)) == 6
        assert {1, 2, 3} <= set(items)
        assert batch.context[0, :, 0].tolist() == items  # scores and labels stay with their items
        for name, said in (("taste", np.log1p), ("session", np.log1p), ("content", np.log1p), ("classes", np.asarray)):
            times = 2.0 + ["taste", "session", "content", "classes"].index(name)
            assert batch.context[0, :, SCORES[name]].tolist() == pytest.approx(said(times * np.array(items)), rel=1e-6)
        assert batch.labels[0, :, 0].tolist() == [float(item == 1) for item in items]
        assert batch.labels[0, :, 3].eq(1).tolist() == [item in (2, 3) for item in items]
        drawn |= set(items)
    assert drawn == set(range(1, 21))


def test_steps_with_less_room_than_was_met_keep_the_choices() -> None:
    columns = columns_of(*[(item, "skip" if item % 2 else "view", np.nan) for item in range(10)])
    cfg = RerankerConfig(candidates_per_step=5)
    candidates = np.arange(1, 21)[None]
    popularity, scores = np.full((30, 3), 0.01, np.float32), candidates.astype(np.float32)
    spoken_for = np.stack([2 * scores, 3 * scores, 4 * scores, 5 * scores], -1)
    (batch,) = RerankBatches(columns, [RerankQuery(0, 1, 10)], candidates, scores, spoken_for, popularity, cfg, 0)(0)
    assert {2, 4, 6, 8} <= set(batch.candidate_idx[0].tolist())


def test_batches_leave_out_lists_without_a_known_outcome() -> None:
    columns = columns_of((1, "view", np.nan), (2, "view", np.nan), (3, "skip", np.nan))
    queries = [RerankQuery(0, 1, 3)] * 3
    candidates = np.array([[7, 8], [2, 8], [8, 3]])
    cfg = RerankerConfig()
    batches = RerankBatches(
        columns,
        queries,
        candidates,
        np.zeros((3, 2), np.float32),
        np.zeros((3, 2, 4), np.float32),
        np.ones((9, 3), np.float32),
        cfg,
        0,
    )
    assert batches.useful.tolist() == [1, 2]


def test_batch_holds_history_context_and_labels_of_its_rows() -> None:
    batches, _ = taste_problem(num_users=4)
    batch = batches.batch(np.array([2, 0]))
    assert batch.interests.item_idx.tolist() == [
        batches.columns.item_idx[10:14].tolist(),
        batches.columns.item_idx[:4].tolist(),
    ]
    assert torch.equal(batch.candidate_idx, torch.from_numpy(batches.candidate_idx[[2, 0]]))
    torch.testing.assert_close(batch.context[..., 0], torch.from_numpy(batches.scores[[2, 0]]))
    assert batch.labels.shape == (2, 8, len(TARGETS))
    chosen = batch.candidate_idx[batch.labels[..., 0] == 1]
    assert chosen.tolist() == batches.columns.item_idx[[14, 4]].tolist()


def test_choices_count_by_the_place_they_were_shown_at() -> None:
    columns = columns_of((0, "view", 1.0), (1, "view", 1.0), (2, "like", 1.0), (1, "like", 1.0), (3, "skip", 0.1))
    columns.position = np.array([0, 3, 0, 1, 2])
    query, examined = RerankQuery(0, 1, 5), np.array([1.0, 0.5, 0.25])
    weights = weigh_choices(columns, query, np.array([3, 2, 1, 7]), examined)
    assert weights.tolist() == [1.0, 1.0, 4.0, 1.0]  # item 1 was first chosen at the third place; 3 was never chosen
    labels = torch.zeros(1, 4, len(TARGETS))
    labels[0, 1:3, 0] = 1.0
    batch, _ = taste_problem(num_users=1)
    lists = replace(batch.batch(np.arange(1)), labels=labels, choice_weight=torch.from_numpy(weights)[None])
    target, list_weight = lists.choices
    assert target.tolist() == [[0.0, pytest.approx(0.2), pytest.approx(0.8), 0.0]]
    assert list_weight.tolist() == [2.5]
    labels[:] = 0.0
    assert [value.sum().item() for value in lists.choices] == [0.0, 0.0]


def test_weighed_choices_tell_the_taste_from_the_order_that_was_shown() -> None:
    """Users choose by the first feature among what they look at; what they look at was ordered by the second."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(20_000, 8, 2))
    place = np.argsort(np.argsort(-features[..., 1], axis=1), axis=1) + 1
    wanted = np.argmax(features[..., 0] + rng.gumbel(size=place.shape), axis=1)
    at_place = place[np.arange(len(place)), wanted]
    examined = 1.0 / np.arange(1, 9)
    seen = rng.random(len(place)) < examined[at_place - 1]
    target, free = np.eye(8)[wanted[seen]], np.ones(2, np.bool_)
    plain = fit_weights(features[seen], target, free)
    weighed = fit_weights(features[seen], target, free, choice_weights(at_place[seen], examined))
    assert plain[1] > 0.5
    assert weighed == pytest.approx([1.0, 0.0], abs=0.08)

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from avrec_ray.datasets.synthetic import oracle_scores
from avrec_ray.datasets.synthetic.factors import DAY_SECONDS, START_SECONDS
from avrec_ray.datasets.synthetic.oracle import UNPLAYABLE, popularity, session_odds, taste
from avrec_ray.datasets.synthetic.truth import read_truth
from avrec_ray.errors import TableError
from avrec_ray.types import POSITIVE_EVENTS
from tests.datasets.synthetic.conftest import Corpus

Floats = npt.NDArray[np.float64]


def test_oracle_scores_has_a_finite_row_a_user_and_a_column_an_item(corpus: Corpus) -> None:
    at = np.array([START_SECONDS, START_SECONDS + 5 * DAY_SECONDS, START_SECONDS])
    users, items = ["user00007", "user00007", "user00001"], ["item00004", "item00002"]
    scores = oracle_scores(corpus.folder / "truth", users, items, at)
    assert scores.shape == (3, 2)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()


def test_oracle_scores_do_not_depend_on_what_else_is_asked(corpus: Corpus) -> None:
    at = np.full(3, START_SECONDS)
    truth = corpus.folder / "truth"
    both = oracle_scores(truth, ["user00003", "user00001", "user00002"], ["item00009", "item00001"], at)
    alone = oracle_scores(truth, ["user00001"], ["item00001"], at[:1])
    assert both[1, 1] == pytest.approx(alone[0, 0], abs=1e-5)


def test_oracle_scores_unknown_ids_are_named(corpus: Corpus) -> None:
    truth = corpus.folder / "truth"
    with pytest.raises(TableError, match=r"user_id 'nobody' \(row 1\) is not in the truth, which has 500"):
        oracle_scores(truth, ["user00001", "nobody"], ["item00001"], np.zeros(2))
    with pytest.raises(TableError, match=r"item_id 'nothing' \(row 0\) is not in the truth, which has 300"):
        oracle_scores(truth, ["user00001"], ["nothing"], np.zeros(1))


def test_oracle_scores_without_truth_says_so(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="only a synthetic dataset has a truth"):
        oracle_scores(tmp_path, ["u"], ["i"], np.zeros(1))


def test_taste_moves_from_start_to_end(corpus: Corpus) -> None:
    _, users = read_truth(corpus.folder / "truth")
    num = len(users.user_ids)
    assert np.allclose(taste(users, users.drift_at_seconds - 50 * DAY_SECONDS), users.start_UV, atol=1e-3)
    assert np.allclose(taste(users, users.drift_at_seconds + 60 * DAY_SECONDS), users.end_UV, atol=1e-3)
    assert np.allclose(taste(users, users.drift_at_seconds), (users.start_UV + users.end_UV) / 2, atol=1e-5)
    assert taste(users, np.full(num, START_SECONDS)).dtype == np.float32


def test_session_odds_prefer_what_is_liked_most() -> None:
    odds = session_odds(np.array([[2.0, 1.0, -3.0, 0.0]], np.float32))
    assert odds.sum() == pytest.approx(1.0, abs=1e-5)
    assert odds[0, 0] == pytest.approx(2 / 3, abs=1e-3)
    assert odds[0, 2] < 1e-5


def test_popularity_changes_with_time_and_leaves_broken_items_out(corpus: Corpus) -> None:
    items, _ = read_truth(corpus.folder / "truth")
    early, late = popularity(items, START_SECONDS + np.array([1.0, 59.0]) * DAY_SECONDS)
    assert np.abs(early - late).max() > 0.3
    assert (early[items.is_broken] == UNPLAYABLE).all()
    assert early[~items.is_broken].min() > UNPLAYABLE / 2


def rank_quality(scores: Floats, seen: npt.NDArray[np.bool_], targets: npt.NDArray[np.bool_]) -> float:
    """NDCG@10 over users with targets: full ranking, seen items left out."""
    top = np.argsort(-np.where(seen, -np.inf, scores), axis=1, kind="stable")[:, :10]
    discount = 1 / np.log2(np.arange(2, 12))
    gained = (np.take_along_axis(targets, top, axis=1) * discount).sum(axis=1)
    num_targets = targets.sum(axis=1)
    best = np.cumsum(discount)[np.clip(num_targets, 1, 10) - 1]
    return float((gained / best)[num_targets > 0].mean())


def test_oracle_ranks_far_above_popularity_with_item_knn_between(corpus: Corpus) -> None:
    """Last tenth of the time held out; the figures that make the corpus worth learning from."""
    table = corpus.interactions.to_pydict()
    user_ids, item_ids = corpus.users["user_id"].to_pylist(), corpus.items["item_id"].to_pylist()
    user_row, item_row = ({key: row for row, key in enumerate(ids)} for ids in (user_ids, item_ids))
    cut = START_SECONDS + 0.9 * corpus.cfg.num_days * DAY_SECONDS
    train, test, seen = (np.zeros((len(user_ids), len(item_ids)), bool) for _ in range(3))
    for user, item, event, at in zip(*(table[n] for n in ("user_id", "item_id", "event", "at")), strict=True):
        place = user_row[user], item_row[item]
        before = at.timestamp() < cut
        seen[place] |= before
        if event in POSITIVE_EVENTS:
            (train if before else test)[place] = True
    targets = test & ~seen
    counts = train.sum(axis=0).astype(float)
    similar = (train.T.astype(float) @ train) / np.maximum(np.sqrt(np.outer(counts, counts)), 1)
    np.fill_diagonal(similar, 0)
    at_seconds = np.full(len(user_ids), cut)
    oracle = rank_quality(oracle_scores(corpus.folder / "truth", user_ids, item_ids, at_seconds), seen, targets)
    popular = rank_quality(np.tile(counts, (len(user_ids), 1)), seen, targets)
    knn = rank_quality(train.astype(float) @ similar, seen, targets)
    assert (targets.sum(axis=1) > 0).sum() > 200
    assert oracle > 0.3
    assert oracle > 2.5 * popular
    assert popular * 1.5 < knn < oracle / 1.5

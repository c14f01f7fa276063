from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from threadpoolctl import threadpool_info

from avrec_ray.errors import ConfigError
from avrec_ray.evaluation.factor_baselines import BPR, IALS

NUM_USERS, NUM_ITEMS = 60, 20


def two_tastes(seed: int = 0) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Even users choose among the first ten items, odd ones among the last ten."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(NUM_USERS), 5)
    return users, rng.integers(0, 10, len(users)) + 10 * (users % 2)


def fitted(kind: type[IALS] | type[BPR], **settings: Any) -> IALS | BPR:
    model = kind(num_factors=8, **settings)
    users, items = two_tastes()
    model.fit(users, items, np.zeros(len(users)), NUM_USERS, NUM_ITEMS)
    return model


@pytest.mark.parametrize("kind", [IALS, BPR])
def test_factors_rank_the_taste_of_a_history_first_for_known_and_new_users(kind: type[IALS] | type[BPR]) -> None:
    model = fitted(kind, **({"learning_rate": 0.05} if kind is BPR else {"regularization": 0.1}))
    users, items = two_tastes()
    histories = [items[users == user] for user in range(NUM_USERS)] + [np.array([0, 3, 7]), np.array([11, 12, 19])]
    scores = model.score(histories)
    likes_last = scores[:, 10:].mean(axis=1) > scores[:, :10].mean(axis=1)
    assert np.array_equal(likes_last, np.arange(len(histories)) % 2 == 1)


@pytest.mark.parametrize("kind", [IALS, BPR])
def test_factors_depend_on_the_seed_alone(kind: type[IALS] | type[BPR]) -> None:
    first, again, other = (fitted(kind, seed=seed).score([np.array([1, 2])]) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_ials_solves_a_user_as_the_weighted_ridge_regression_says() -> None:
    model = fitted(IALS, regularization=2.0, alpha=3.0)
    assert isinstance(model, IALS)
    items = model.item_factors().astype(np.float64)
    history = np.array([0, 5, 6])
    weights = np.ones(NUM_ITEMS)
    weights[history] = 3.0
    gram = (items * weights[:, None]).T @ items + 2.0 * np.eye(8)
    user = np.linalg.solve(gram, 3.0 * items[history].sum(axis=0))
    assert model.user_factors([history])[0] == pytest.approx(user, abs=1e-4)
    assert model.score([history])[0] == pytest.approx(items @ user, abs=1e-4)


def test_ials_without_choices_scores_zeros_and_has_no_factors() -> None:
    model = IALS()
    with pytest.raises(ValueError, match="expected choices, got none"):
        model.item_factors()
    none = np.zeros(0, np.int64)
    model.fit(none, none, np.zeros(0), 3, NUM_ITEMS)
    assert not model.score([np.array([1])]).any()
    with pytest.raises(ValueError, match="expected choices, got none"):
        model.user_factors([np.array([1])])


@pytest.mark.parametrize("kind", [IALS, BPR])
def test_fitting_leaves_the_number_of_threads_as_it_was(kind: type[IALS] | type[BPR]) -> None:
    before = threadpool_info()
    fitted(kind).score([np.array([1])])
    known = {pool["filepath"] for pool in before}
    assert [pool for pool in threadpool_info() if pool["filepath"] in known] == before


@pytest.mark.parametrize("kind", [IALS, BPR])
@pytest.mark.parametrize("setting", ["num_factors", "num_iterations", "num_threads"])
def test_setting_out_of_range_is_refused(kind: type[IALS] | type[BPR], setting: str) -> None:
    with pytest.raises(ConfigError, match=f"{kind.__name__.lower()}.{setting}=0 is outside"):
        kind(**{setting: 0})

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from avrec_ray.evaluation import significance
from avrec_ray.evaluation.significance import (
    bootstrap_interval,
    compare_models,
    difference_interval,
    holm,
    over_seeds,
    sign_flip_p_value,
)
from tests.evaluation.golden_metrics import load

Floats = npt.NDArray[np.float64]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_bootstrap_interval_holds_the_mean_and_narrows_with_users() -> None:
    values = rng().random(400)
    low, high = bootstrap_interval(values, rng(1))
    assert low < values.mean() < high
    few_low, few_high = bootstrap_interval(values[:25], rng(1))
    assert few_high - few_low > 2 * (high - low)
    assert (low, high) == bootstrap_interval(values, rng(1))
    assert bootstrap_interval(np.full(3, 0.5), rng()) == (0.5, 0.5)


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    draws = rng(3)
    intervals = [bootstrap_interval(draws.random(60), draws, num_samples=300) for _ in range(200)]
    assert 0.88 <= np.mean([low <= 0.5 <= high for low, high in intervals]) <= 0.99


def test_bootstrap_interval_agrees_with_scipy() -> None:
    values = rng(5).exponential(size=200)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=rng(6))
    ours = bootstrap_interval(values, rng(7), num_samples=20_000)
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.01)


def test_bootstrap_interval_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval(np.zeros(0), rng())


def test_memory_bound_changes_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = rng(1).random(70), rng(2).random(70)
    whole = difference_interval(a, b, rng()), sign_flip_p_value(a, b, rng())
    monkeypatch.setattr(significance, "MAX_VALUES", 1000)
    assert difference_interval(a, b, rng())[0] == whole[0][0]
    assert sign_flip_p_value(a, b, rng()) == pytest.approx(whole[1], abs=0.02)


def test_difference_interval_is_narrower_than_what_users_differ_by() -> None:
    users = rng().random(300)
    a, b = users + 0.01, users + rng(1).normal(0, 0.001, 300)
    low, high = difference_interval(a, b, rng(2))
    assert 0 < low < 0.01 < high < 0.011
    assert difference_interval(b, a, rng(2)) == pytest.approx((-high, -low))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=8))
@settings(max_examples=50)
def test_sign_flip_of_few_users_is_exact(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs, np.float64).T / 4
    sums = [abs(np.dot(signs, a - b)) for signs in itertools.product([1, -1], repeat=len(a))]
    expected = np.mean(np.array(sums) >= abs((a - b).sum()) - 1e-9)
    assert sign_flip_p_value(a, b, rng()) == pytest.approx(expected)
    assert sign_flip_p_value(b, a, rng()) == pytest.approx(expected)


def test_sign_flip_agrees_with_scipy() -> None:
    a = rng(1).random(40)
    b = a + rng(2).normal(0.05, 0.2, 40)
    theirs = stats.permutation_test(
        (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=20_000, rng=rng(3)
    )
    assert 0.01 < theirs.pvalue < 0.9
    assert sign_flip_p_value(a, b, rng(4), num_samples=20_000) == pytest.approx(theirs.pvalue, abs=0.015)


def test_sign_flip_finds_nothing_as_rarely_as_it_says_and_a_difference_for_certain() -> None:
    draws = rng(9)
    p_values = [sign_flip_p_value(*draws.normal(size=(2, 50)), draws, num_samples=499) for _ in range(200)]
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.10
    assert sign_flip_p_value(np.ones(50), np.zeros(50), rng(), num_samples=999) == 1 / 1000
    assert sign_flip_p_value(np.ones(50), np.ones(50), rng()) == 1


def test_holm_equals_statsmodels() -> None:
    for case in load()["holm"]:
        assert holm(case["p_values"]) == pytest.approx(case["corrected"], abs=1e-9)


@given(st.lists(st.floats(0, 1), max_size=8), st.randoms(use_true_random=False))
def test_holm_only_raises_keeps_order_and_needs_no_order(p_values: list[float], random: object) -> None:
    given_p, corrected = np.array(p_values), holm(p_values)
    assert ((corrected >= given_p) & (corrected <= 1)).all()
    assert (np.diff(corrected[np.argsort(given_p)]) >= 0).all()
    order = np.random.default_rng(hash(random) % 2**32).permutation(len(p_values))
    assert np.array_equal(holm(given_p[order]), corrected[order])


def test_holm_refuses_what_is_no_probability() -> None:
    for bad in ([0.5, 1.5], [-0.1], [np.nan]):
        with pytest.raises(ValueError, match="expected numbers from 0 to 1"):
            holm(bad)


def test_over_seeds_is_the_t_interval() -> None:
    values = [0.31, 0.29, 0.34, 0.30]
    found = over_seeds(values)
    expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-12)
    assert (found.mean, found.num_seeds) == (np.mean(values), 4)
    assert over_seeds(values, level=0.5).high < found.high


@pytest.mark.parametrize("values", [[], [0.3], [0.3, np.nan]])
def test_over_seeds_needs_two_runs(values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least two runs with finite values"):
        over_seeds(values)


def models() -> tuple[dict[str, Floats], dict[str, Floats]]:
    """b is worse in ndcg, has a larger error, and differs by chance in recall; each has a metric of its own."""
    users = rng(1).random(200)
    noise = rng(2).normal(0, 0.05, (4, 200))
    a = {"ndcg": users + 0.05 + noise[0], "error": users + noise[1], "recall": users + noise[2], "only_a": users}
    b = {"recall": users + noise[3], "ndcg": users, "error": users + 0.05, "only_b": users}
    return a, b


def test_compare_models_says_who_is_better_in_which_metric() -> None:
    a, b = models()
    found = {row.metric: row for row in compare_models(a, b, rng(), 2000, lower_is_better=["error"])}
    assert {name: row.better for name, row in found.items()} == {"ndcg": "a", "error": "a", "recall": "neither"}
    ndcg = found["ndcg"]
    assert ndcg.difference == ndcg.mean_a - ndcg.mean_b
    assert ndcg.low < ndcg.difference < ndcg.high
    assert ndcg.p_value == pytest.approx(3 / 2001)  # the smallest that 2,000 flips give, times three metrics
    assert {row.metric: row.better for row in compare_models(b, a, rng(), 2000)} == {
        "ndcg": "b", "error": "a", "recall": "neither",
    }  # fmt: skip


def test_compare_models_is_repeatable_and_turns_over_with_the_models() -> None:
    a, b = models()
    assert compare_models(a, b, rng(), 500) == compare_models(a, b, rng(), 500)
    turned = {row.metric: row for row in compare_models(b, a, rng(), 500)}
    for row in compare_models({name: a[name] for name in ("recall", "ndcg", "error")}, b, rng(), 500):
        assert (turned[row.metric].low, turned[row.metric].high) == pytest.approx((-row.high, -row.low))
        assert turned[row.metric].p_value == pytest.approx(row.p_value)


def test_compare_models_corrects_for_the_number_of_metrics() -> None:
    a, b = models()
    alone = compare_models({"recall": a["recall"]}, b, rng(), 2000)[0]
    among = {row.metric: row for row in compare_models(a, b, rng(), 2000)}
    assert among["recall"].p_value >= alone.p_value
    many = {f"{name}_{copy}": values for copy in range(100) for name, values in a.items()}
    others = {f"{name}_{copy}": values for copy in range(100) for name, values in b.items()}
    assert {row.better for row in compare_models(many, others, rng(), 500)} == {"neither"}


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ({"ndcg": np.ones(2)}, {"recall": np.ones(2)}, "no metric in common"),
        ({"ndcg": np.ones(2)}, {"ndcg": np.ones(3)}, "ndcg: got values .* expected the same users"),
        ({"ndcg": np.ones(0)}, {"ndcg": np.ones(0)}, "at least one"),
        ({"ndcg": np.array([1, np.nan])}, {"ndcg": np.ones(2)}, "ndcg: row 1 holds nan and 1.0; leave users"),
    ],
)
def test_compare_models_refuses_what_cannot_be_compared(
    a: dict[str, Floats], b: dict[str, Floats], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compare_models(a, b, rng())

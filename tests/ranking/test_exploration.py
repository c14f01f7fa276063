"""Exploration: the same list for (seed, user, day), and propensities that are the probabilities of what is shown."""

import doctest
import subprocess
import sys
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.ranking import exploration
from avrec_ray.ranking.diversity import diversifier_of
from avrec_ray.ranking.exploration import day_of, draw_place, place_probabilities, request_rng
from avrec_ray.ranking.places import PlaceRules, fill_places

utilities = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20)


@given(utilities, st.floats(0, 1e3), st.randoms(use_true_random=False))
def test_probabilities_of_a_place_sum_to_one_over_its_pool(
    values: list[float], temperature: float, random: Random
) -> None:
    pool = np.array([random.random() < 0.6 for _ in values])
    pool[random.randrange(len(values))] = True
    probabilities = place_probabilities(np.array(values), pool, temperature)
    assert probabilities.sum() == pytest.approx(1)
    assert (probabilities[~pool] == 0).all()
    assert (probabilities >= 0).all()
    best = np.array(values)[pool].max()
    assert probabilities[(np.array(values) == best) & pool].max() == probabilities.max()


def test_probabilities_are_the_softmax() -> None:
    probabilities = place_probabilities(np.log([1.0, 2.0, 4.0, 8.0]), np.array([True, True, False, True]), 1.0)
    assert probabilities.tolist() == pytest.approx([1 / 11, 2 / 11, 0, 8 / 11])


@pytest.mark.parametrize("temperature", [0.0, 1e-300])
def test_without_temperature_the_first_of_the_best_gets_the_place(temperature: float) -> None:
    rng = np.random.default_rng(0)
    assert draw_place(np.array([0.0, 2.0, 1.0]), np.array([True, True, True]), temperature, rng) == (1, 1.0)
    assert draw_place(np.array([1.0, 1.0]), np.ones(2, bool), 0.0, None) == (0, 1.0)


def test_temperature_without_rng_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature=0.5 draws at random; give the rng"):
        draw_place(np.zeros(2), np.ones(2, bool), 0.5, None)


def test_draws_come_as_often_as_their_probabilities() -> None:
    rng, utility, pool = np.random.default_rng(1), np.array([0.0, 1.0, 0.5, 2.0]), np.array([True, True, False, True])
    drawn = np.bincount([draw_place(utility, pool, 0.7, rng)[0] for _ in range(4_000)], minlength=4) / 4_000
    assert drawn == pytest.approx(place_probabilities(utility, pool, 0.7), abs=0.03)


def lists_of(diversity: float, caps: bool, num: int) -> list[tuple[tuple[int, ...], npt.NDArray[np.float64]]]:
    """Lists of three of five candidates, drawn `num` times, and their propensities."""
    vectors = np.random.default_rng(5).normal(size=(5, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = np.array([2.0, 1.5, 1.2, 0.4, 0.0])
    groups = [(np.array([0, 0, 1, 1, -1]), 1)] if caps else []
    rules = PlaceRules(
        fresh=np.array([False, False, False, True, False]), fresh_share=0.5 if caps else 0.0, caps=groups
    )
    rng = np.random.default_rng(2)
    found = []
    for _ in range(num):
        order, propensities = fill_places(diversifier_of("mmr", scores, vectors, diversity), 3, rules, 0.2, rng)
        found.append((tuple(order.tolist()), propensities))
    return found


@pytest.mark.parametrize(("diversity", "caps"), [(0.0, False), (0.5, False), (0.3, True)])
def test_lists_come_as_often_as_the_product_of_their_propensities(diversity: float, caps: bool) -> None:
    """Also where diversity, caps and fresh places decide with: what is logged is of the list that is shown."""
    drawn = lists_of(diversity, caps, 2_500)
    told = {order: float(propensities.prod()) for order, propensities in drawn}
    shares = {order: sum(o == order for o, _ in drawn) / len(drawn) for order in told}
    assert len(told) > 3
    assert sum(told.values()) == pytest.approx(1, abs=0.01)  # what never came is rare
    for order, share in shares.items():
        assert share == pytest.approx(told[order], abs=0.035)


@given(st.integers(0, 2**40), st.text(max_size=8) | st.none(), st.integers(0, 10**5))
@settings(deadline=None, max_examples=30)
def test_rng_is_of_seed_user_and_day(seed: int, user: str | None, day: int) -> None:
    first = request_rng(seed, user, day).random()
    assert first == request_rng(seed, user, day).random()
    others = [
        request_rng(seed + 1, user, day),
        request_rng(seed, (user or "") + "x", day),
        request_rng(seed, user, day + 1),
    ]
    assert first not in [other.random() for other in others]


def test_rng_is_the_same_in_another_process() -> None:
    code = "from avrec_ray.ranking.exploration import request_rng; print(request_rng(7, 'u1', 20_000).random())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == request_rng(7, "u1", 20_000).random()


def test_no_user_is_not_the_user_without_a_name() -> None:
    assert request_rng(0, None, 1).random() != request_rng(0, "", 1).random()


def test_day_changes_at_midnight_utc() -> None:
    assert day_of(86_399.9) + 1 == day_of(86_400.0)


def test_examples_in_docstrings_hold() -> None:
    assert doctest.testmod(exploration).failed == 0

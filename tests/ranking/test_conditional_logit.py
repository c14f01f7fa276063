"""Weights of scores: recovered from choices drawn by them, least loss, units, and features that say nothing."""

import numpy as np
import pytest
from scipy.special import softmax

from avrec_ray.ranking.conditional_logit import fit_weights

FREE = np.ones(3, np.bool_)


def drawn_choices(weights: list[float], num_lists: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Features of ten candidates a list, and the one that was chosen with probability softmax(features @ weights)."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(num_lists, 10, len(weights)))
    chosen = [rng.choice(10, p=share) for share in softmax(features @ np.array(weights), axis=1)]
    return features, np.eye(10)[chosen]


def test_weights_by_which_choices_were_drawn_are_found() -> None:
    assert fit_weights(*drawn_choices([1.5, -0.5, 0.0]), FREE) == pytest.approx([1.5, -0.5, 0.0], abs=0.06)


def test_a_weight_that_may_not_oppose_stops_at_zero_and_the_others_are_the_best_without_it() -> None:
    features, target = drawn_choices([1.5, -0.5, 0.7])
    found = fit_weights(features, target, np.array([True, False, True]))
    alone = fit_weights(features[..., [0, 2]], target, FREE[:2])
    assert found[1] == 0.0
    assert found[[0, 2]] == pytest.approx(alone, abs=1e-3)


def test_units_do_not_matter() -> None:
    features, target = drawn_choices([1.0, -1.0, 0.5], num_lists=300)
    units = np.array([1e4, 1.0, 1e-3])
    assert fit_weights(features * units, target, FREE) * units == pytest.approx(fit_weights(features, target, FREE))


def test_a_feature_that_is_the_same_for_a_whole_list_gets_nothing() -> None:
    features, target = drawn_choices([1.0, -1.0, 0.5], num_lists=50)
    features[..., 1] = np.arange(50)[:, None]
    assert fit_weights(features, target, FREE)[1] == 0.0

"""A row of the metric table: means over users who have a value, by hand."""

import numpy as np
import pytest

from avrec_ray.evaluation.list_quality import LIST_QUALITY, ItemFacts, list_quality

# Items 0 and 1 are music, 2 is news, 3 has no category and no choice; 0 and 1 point the same way.
FACTS = ItemFacts.of(
    np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 0.0]]),
    np.array([4, 2, 2, 0]),
    ["music", "music", "news", None],
)
RANKED = np.array([[0, 2], [1, -1], [-1, -1]])
TARGETS = [np.array([2]), np.array([0]), np.array([1])]
HISTORIES = [np.array([0, 2]), np.array([2]), np.array([0])]


def test_list_quality_by_hand() -> None:
    found = list_quality(RANKED, TARGETS, HISTORIES, FACTS, k=2, obvious=np.array([[0, 1]] * 3))
    assert list(found) == [f"{name}_at_2" for name in LIST_QUALITY]
    # Shares 1/2, 1/4, 1/4: 1 and 2 bits for the first list, 2 for the second; the empty list says nothing.
    assert found["novelty_at_2"] == pytest.approx((1.5 + 2.0) / 2)
    assert found["popularity_at_2"] == pytest.approx((0.375 + 0.25) / 2)
    assert found["intra_list_distance_at_2"] == pytest.approx(1.0)  # the first list alone has a pair
    assert found["category_distance_at_2"] == pytest.approx(1.0)
    # One hit, item 2 at rank 2: it shares popularity rank 2, so nothing is gained; over three users.
    assert found["serendipity_at_2"] == 0.0
    assert found["unexpected_hits_at_2"] == pytest.approx(0.5 / 3)  # the obvious list lacks item 2
    # The first list has the categories of its history; the second has music where news was chosen: -log(alpha).
    assert found["miscalibration_at_2"] == pytest.approx(-np.log(0.01) / 2)


def test_counts_and_shares_give_the_same() -> None:
    shares = ItemFacts(FACTS.embeddings, FACTS.popularity / 8, FACTS.categories)
    assert list_quality(RANKED, TARGETS, HISTORIES, shares, 2) == list_quality(RANKED, TARGETS, HISTORIES, FACTS, 2)


def test_what_says_nothing_of_anybody_has_no_key() -> None:
    nameless = ItemFacts.of(FACTS.embeddings, FACTS.popularity, [None] * 4)
    found = list_quality(RANKED[1:], TARGETS[1:], HISTORIES[1:], nameless, k=2)
    assert set(found) == {
        "novelty_at_2",
        "popularity_at_2",
        "serendipity_at_2",
    }  # no pair, no category, no obvious list
    assert all(np.isfinite(value) for value in found.values())

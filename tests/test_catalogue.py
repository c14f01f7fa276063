"""The catalogue: every kind of unknown survives a table, and rows are found by id and by popularity."""

import numpy as np

from avrec_ray.catalogue import Catalogue, catalogue_from_table, catalogue_table
from tests.tiny_bundle import tiny_catalogue


def test_catalogue_round_trips_with_every_kind_of_unknown() -> None:
    catalogue = Catalogue(
        item_ids=["a", "ü", ""],
        titles=["A", "", "C"],
        categories=[None, "x", None],
        tags=[[], ["t", "s"], []],
        creator_ids=[None, None, None],
        languages=["en", None, None],
        durations=np.array([np.nan, 0.0, 2.5], np.float32),
        popularity=np.zeros(3, np.float32),
        recent_popularity=np.zeros(3, np.float32),
        choices_per_day=np.array([0.5, 0.0, 3.0], np.float32),
        warm=np.array([False, True, False]),
    )
    again = catalogue_from_table(catalogue_table(catalogue))
    for name, value in vars(catalogue).items():
        if isinstance(value, list):
            assert getattr(again, name) == value
        else:
            np.testing.assert_array_equal(getattr(again, name), value)


def test_catalogue_finds_rows_and_orders_by_popularity() -> None:
    catalogue = tiny_catalogue(12)
    catalogue.popularity = np.array([0, 0.2, 0.2, 0.6, *[0.0] * 8], np.float32)
    assert catalogue.idx("i03") == 3
    assert catalogue.idx("nobody") is None
    assert catalogue.popular_order.tolist() == [3, 1, 2, 0, *range(4, 12)]


def test_some_items_are_a_catalogue_of_their_own() -> None:
    catalogue = tiny_catalogue(12)
    some = catalogue.take([3, 0])
    assert len(some) == 2
    assert some.item_ids == ["i03", "i00"]
    assert some.idx("i00") == 1
    np.testing.assert_array_equal(some.popularities, catalogue.popularities[[3, 0]])
    assert some.idx("i01") is None

"""Position bias: planted shares come back, whatever ranked the items; too little data says nothing."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.ranking.position_bias import MAX_WEIGHT, choice_weights, examined_shares, impressions_of
from avrec_ray.types import INTERACTIONS


def clicks(examined: np.ndarray, num_lists: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Impressions of lists of noisily ranked items: the good ones are above more often, so plain rates mislead."""
    rng = np.random.default_rng(seed)
    quality = rng.uniform(0.05, 0.6, 60)
    order = np.argsort(-(quality + 0.2 * rng.normal(size=(num_lists, 60))), axis=1)[:, : len(examined)]
    position = np.tile(np.arange(1, len(examined) + 1), (num_lists, 1))
    chosen = rng.random(order.shape) < quality[order] * examined
    return order.ravel(), position.ravel(), chosen.ravel()


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_planted_shares_come_back(power: float) -> None:
    examined = np.arange(1, 9) ** -power
    found = examined_shares(*clicks(examined, 20_000))
    np.testing.assert_allclose(found, examined, rtol=0.12)


def test_plain_rates_would_mislead() -> None:
    item, position, chosen = clicks(np.ones(8), 20_000)
    rates = np.bincount(position, chosen)[1:] / np.bincount(position)[1:]
    assert rates[-1] / rates[0] < 0.92  # though every place is looked at alike
    assert examined_shares(item, position, chosen)[-1] > 0.96


def test_few_choices_or_one_place_say_nothing() -> None:
    item, position, chosen = clicks(1 / np.arange(1, 6), 50)
    assert examined_shares(item, position, chosen).tolist() == [1.0] * 5
    many = clicks(np.ones(1), 5000)
    assert examined_shares(*many).tolist() == [1.0]
    assert examined_shares(*(array[:0] for array in many)).tolist() == [1.0]


def test_places_of_which_nothing_is_known_are_filled_from_their_neighbours() -> None:
    examined = 1 / np.arange(1, 7)
    item, position, chosen = clicks(examined, 20_000)
    kept = position != 4
    found = examined_shares(item[kept], position[kept], chosen[kept])
    assert found[4] < found[3] < found[2]


@given(st.lists(st.integers(0, 120), min_size=1), st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=9))
def test_weights_undo_the_shares_within_a_bound(positions: list[int], examined: list[float]) -> None:
    weights = choice_weights(np.array(positions), np.array(examined))
    for position, weight in zip(positions, weights.tolist(), strict=True):
        share = examined[min(position, len(examined)) - 1]
        assert weight == pytest.approx(1.0 if position == 0 else min(1 / share, MAX_WEIGHT), rel=1e-5)


def test_places_count_from_one() -> None:
    with pytest.raises(ValueError, match="position 0"):
        examined_shares(np.zeros(1, int), np.zeros(1, int), np.ones(1, bool))


def test_impressions_are_chosen_by_an_event_of_the_same_request() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)

    def row(request: str | None, user: str, item: str, event: str, position: int | None) -> dict[str, object]:
        told = {"user_id": user, "item_id": item, "event": event, "request_id": request, "position": position}
        return {"at": at, **told}

    table = pa.Table.from_pylist(
        [
            row("r1", "u", "a", "impression", 1), row("r1", "u", "b", "impression", 2), row("r1", "u", "b", "view", 2),
            row("r1", "u", "b", "like", 2), row("r2", "u", "b", "impression", 1), row("r2", "v", "b", "view", 1),
            row("r2", "u", "a", "impression", 7), row("r2", "u", "a", "skip", 7), row(None, "u", "a", "view", 1),
            row("r3", "u", "a", "impression", None), row("r3", "u", "gone", "impression", 3),
            row(None, "u", "a", "impression", 4),
        ],
        INTERACTIONS,
    )  # fmt: skip
    found = impressions_of(table, {"a": 0, "b": 1})
    rows = sorted(zip(*(array.tolist() for array in found), strict=True))
    assert rows == [(0, 1, False), (0, 7, False), (1, 1, False), (1, 2, True)]
    assert [len(array) for array in impressions_of(table.slice(0, 0), {"a": 0})] == [0, 0, 0]

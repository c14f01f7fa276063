"""Interests from a history: the newest distinct items that the user chose."""

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.ranking.content_likeness import ContentLikeness
from avrec_ray.ranking.lists import ItemToItem, context_features, interests_of, newest_chosen
from avrec_ray.ranking.user_classes import ClassTastes, UserClasses, WatchLines, history_of
from avrec_ray.retrieval.neighbours import ItemNeighbours
from avrec_ray.training.histories import EVENT_CODES, POSITIVE_CODES, columns_from_events
from avrec_ray.types import EVENTS, Event

INDEX = {f"i{row}": row for row in range(8)}
DURATIONS = np.full(8, 10.0, np.float32)

histories = st.lists(
    st.tuples(st.sampled_from([*INDEX]), st.sampled_from(EVENTS[1:]), st.none() | st.floats(0, 20, width=32)),
    max_size=20,
)


def events(history: list[tuple[str, str, float | None]]) -> list[Event]:
    return [Event("u", item, event, float(at), watch_seconds=watch) for at, (item, event, watch) in enumerate(history)]


@given(histories, st.integers(1, 6))
def test_interests_are_the_newest_distinct_chosen_items(
    history: list[tuple[str, str, float | None]], limit: int
) -> None:
    columns = columns_from_events([events(history)], INDEX, DURATIONS)
    interests = interests_of(columns, [(0, len(history))], limit)
    expected: list[tuple[int, int]] = []  # newest first, by a slow walk
    for item, event, _ in reversed(history):
        positive = EVENT_CODES[event] in POSITIVE_CODES
        if positive and INDEX[item] not in [row for row, _ in expected] and len(expected) < limit:
            expected.append((INDEX[item], EVENT_CODES[event]))
    mask = interests.mask[0]
    assert int(mask.sum()) == len(expected)
    assert mask.tolist() == sorted(mask.tolist())  # padding on the left
    found = list(zip(interests.item_idx[0][mask].tolist(), interests.event[0][mask].tolist(), strict=True))
    assert found == expected[::-1]


def test_interests_stay_inside_their_span() -> None:
    history = events([("i0", "view", None), ("i1", "like", None), ("i2", "view", 5.0), ("i3", "view", None)])
    columns = columns_from_events([history], INDEX, DURATIONS)
    interests = interests_of(columns, [(1, 3), (0, 0), (0, 1)], 3)
    assert interests.item_idx.tolist() == [[0, 1, 2], [0, 0, 0], [0, 0, 0]]
    assert interests.mask.tolist() == [[False, True, True], [False] * 3, [False, False, True]]
    assert interests.watch_ratio[0, 2] == 0.5
    assert interests.watch_ratio[0, 0].isnan()


def test_newest_chosen_leaves_out_rejections_and_keeps_a_choice_made_before_one() -> None:
    history = events([("i0", "view", None), ("i1", "skip", None), ("i2", "dislike", None), ("i0", "report", None)])
    columns = columns_from_events([history], INDEX, DURATIONS)
    assert newest_chosen(columns, 0, 4, 5).tolist() == [0]


def test_context_features_are_the_score_and_logs_of_the_rest() -> None:
    popularity = torch.tensor([[[0.5, 0.25, 7.0], [0.0, 0.0, 2.0]]])
    features = context_features(
        torch.tensor([[2.0, -1.0]]), popularity, torch.tensor([[[0.0, 3.0, 0.5, -4.0], [1.5, -0.5, 0.0, 2.0]]])
    )
    floor = math.log(1e-6)
    expected = [
        [2.0, math.log(0.5), math.log(0.25), math.log(7.0), 0.0, math.log(4.0), math.log(1.5), -4.0, 0.0],
        [-1.0, floor, floor, math.log(2.0), math.log(2.5), -math.log(1.5), 0.0, 2.0, 1.0],
    ]
    torch.testing.assert_close(features, torch.tensor([expected]))


def test_items_say_what_was_chosen_in_the_span() -> None:
    history = events([("i0", "view", None), ("i1", "skip", None), ("i0", "like", None), ("i2", "view", None)])
    columns = columns_from_events([history], INDEX, DURATIONS)
    # i0 speaks for i3, i1 and i2 for i4
    arrays = np.array([0, 1, 2, 3, 3, 3]), np.array([3, 4, 4]), np.array([0.5, 0.9, 0.25], np.float32)
    content = ContentLikeness(np.array([[1, 0], [0, 1], [0, 1], [0.5, 0], [0, 0.5]], np.float16))
    lines = WatchLines(np.zeros(2, np.float32), np.zeros(2, np.float32), 1.0, 0.5)
    tastes = ClassTastes(
        np.eye(2, dtype=np.float32), np.zeros(2, np.float32), np.full(2, 0.5, np.float32), 1.0, 1.0, lines
    )
    classes = UserClasses(tastes, np.zeros((5, 0), np.float32), content.vectors)
    said = ItemToItem(ItemNeighbours(*arrays), ItemNeighbours(*arrays, recency=0.5), content, classes)
    rows, root = np.array([4, 3]), math.sqrt(5)  # tables in units of their root mean square over five items
    one, same, half = root, root / math.sqrt(0.5**2 + 0.25**2), root / math.sqrt(0.25**2 + 0.25**2)
    for stop, expected in (
        (3, [[0.0, 0.0, 0.0], [one, one, 0.5]]),
        (4, [[0.25 * same, 0.25 * half, 0.25], [0.5 * same, 0.25 * half, 0.25]]),
        (0, [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
    ):
        found = said.scores(columns, (0, stop), rows)
        np.testing.assert_allclose(found[:, :3], expected, rtol=1e-6)
        of_kind = classes.scores(history_of(columns, (0, stop)), rows)
        np.testing.assert_array_equal(found[:, 3], of_kind)

"""What each user truly thinks of each item at a time: the bound that a recommender is measured against.

score = (taste of the user at that time + mean interest of its sessions) . what the item shows + log popularity of the
item at that time. Which interest a session has is not in it: that is drawn anew with each session, so that before a
session begins nobody can know it. A recommender that sees a session's first events may beat the oracle within it.

Dimension key: U users or queries, N items, V factor values
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from avrec_ray.datasets.synthetic.factors import DAY_SECONDS, PlantedItems
from avrec_ray.datasets.synthetic.truth import read_truth
from avrec_ray.datasets.synthetic.users import PlantedUsers
from avrec_ray.errors import TableError

TREND_SECONDS = 14 * DAY_SECONDS
"""Width of the time in which an item is in fashion."""
FRESH_SECONDS = 5 * DAY_SECONDS
FRESH_HEIGHT = 0.2
"""New items are shown more: this many log odds at publication, decaying over FRESH_SECONDS."""
UNPLAYABLE = -20.0
"""Log popularity of an item whose media is broken."""


def taste(users: PlantedUsers, at_U: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Float32 [U, V]: log odds that each factor value adds for each user at each one's time."""
    done = 0.5 + 0.5 * np.tanh((at_U - users.drift_at_seconds) / (2 * users.drift_seconds))  # a logistic, no overflow
    mixed = users.start_UV * (1 - done[:, None]) + users.end_UV * done[:, None]
    return mixed.astype(np.float32)


def session_odds(taste_UV: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Float32 [U, V]: chance that a session keeps to each factor value: those liked, the more so the more liked."""
    liked_UV = np.maximum(taste_UV, 0) + 1e-6
    odds_UV: npt.NDArray[np.float32] = (liked_UV / liked_UV.sum(1, keepdims=True)).astype(np.float32)
    return odds_UV


def popularity(items: PlantedItems, at_U: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Float32 [U, N]: planted log popularity at each time. An item not yet published counts as just published."""
    trend = np.exp(-0.5 * ((at_U[:, None] - items.trend_at_seconds) / TREND_SECONDS) ** 2)
    age = np.maximum(at_U[:, None] - items.published_at_seconds, 0)
    scores = items.popularity + items.trend_height * trend + FRESH_HEIGHT * np.exp(-age / FRESH_SECONDS)
    return np.where(items.is_broken, UNPLAYABLE, scores).astype(np.float32)


def true_scores(users: PlantedUsers, items: PlantedItems, at_U: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Float32 [U, N]: taste, mean session interest and popularity, in log odds of choosing."""
    taste_UV = taste(users, at_U)
    expected_UV = taste_UV + users.session_strength[:, None] * session_odds(taste_UV)
    scores: npt.NDArray[np.float32] = expected_UV @ items.vectors().T + popularity(items, at_U)
    return scores


def oracle_scores(
    truth_dir: Path, user_ids: Sequence[str], item_ids: Sequence[str], at_seconds: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """Float32 [U, N]: how much each user truly wants each item at that user's time; higher is better.

    Args:
        truth_dir: the folder `tables/truth` that `write_tables` wrote.
        user_ids: U users; one may occur several times, with several times.
        item_ids: N items.
        at_seconds: [U] POSIX seconds.

    Raises:
        TableError: an id that the truth does not know, or a file that is not there.
    """
    items, users = read_truth(truth_dir)
    user_rows = _rows(users.user_ids, user_ids, "user_id")
    item_rows = _rows(items.item_ids, item_ids, "item_id")
    return true_scores(users.take(user_rows), items, np.asarray(at_seconds, np.float64))[:, item_rows]


def _rows(known: list[str], wanted: Sequence[str], name: str) -> npt.NDArray[np.int64]:
    row_of = {key: row for row, key in enumerate(known)}
    for position, key in enumerate(wanted):
        if key not in row_of:
            raise TableError(
                f"oracle: {name} {key!r} (row {position}) is not in the truth, which has {len(known)} of them"
            )
    return np.array([row_of[key] for key in wanted], np.int64)

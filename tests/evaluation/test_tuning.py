import numpy as np
import pytest

from avrec_ray.errors import ConfigError
from avrec_ray.evaluation.baselines import BASELINES, RecentPopularity, build_baseline
from avrec_ray.evaluation.tuning import GRIDS, BaselinesConfig, Question, choose_settings

DAY = 86_400.0


def question() -> Question:
    """Item 0 was chosen often, long ago, item 1 once, today; everybody asked goes on to choose item 1."""
    return Question(
        users=["a", "b"],
        targets=[np.array([1]), np.array([1])],
        seen=[np.array([2]), np.array([3])],
        liked=[np.array([2]), np.array([3])],
        user_idx=np.array([0, 1, 2, 3, 4, 5]),
        item_idx=np.array([0, 0, 0, 1, 2, 3]),
        at_seconds=np.array([0.0, 0.0, 0.0, 10 * DAY, 0.0, 0.0]),
        num_fitted_users=6,
        num_items=4,
    )


def test_choose_settings_takes_what_ranks_best_on_the_question() -> None:
    grid = GRIDS["recent_popularity"]
    best, found = choose_settings(grid, lambda s: RecentPopularity(**s), question())
    assert best == grid[0] == {"half_life_days": 1.0}
    assert found[0] == 1.0
    assert found[-1] == pytest.approx(1 / np.log2(3))  # item 0 first


def test_choose_settings_takes_the_first_of_equals() -> None:
    best, found = choose_settings([{}, {}], lambda s: BASELINES["popularity"](**s), question())
    assert best is not None
    assert found[0] == found[1]


def test_every_setting_of_every_grid_builds() -> None:
    for name, grid in GRIDS.items():
        for settings in grid:
            build_baseline(name, settings=settings)


def test_ranking_leaves_out_what_was_seen_and_what_is_no_candidate() -> None:
    asked = question()
    asked.candidates = np.array([True, True, False, True])
    ranked = asked.rank(asked.fit(BASELINES["popularity"]()), 4)
    assert ranked[0].tolist() == [0, *sorted([1, 3], key=ranked[0].tolist().index), -1]
    assert ranked[1].tolist() == [0, 1, -1, -1]


def test_config_refuses_a_baseline_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="evaluation.baselines.names='magic'"):
        BaselinesConfig(names=["magic"])


def test_baseline_by_content_needs_vectors() -> None:
    with pytest.raises(ConfigError, match="content_knn got no vectors"):
        build_baseline("content_knn")

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avrec_ray.evaluation.list_metrics import category_matrix
from avrec_ray.evaluation.metrics import cold_item_metrics, evaluate_rankings, per_user_metrics
from avrec_ray.evaluation.slices import (
    Slice,
    category_slices,
    history_slices,
    modality_slices,
    popularity_slices,
    slice_metrics,
    slice_values,
    user_slices,
    warmth_slices,
)

N = 10
RANKED = np.array([[3, 1, 2, 0], [5, 6, -1, -1], [4, 7, 8, 9]])
TARGETS = [{1, 0, 9}, {5}, {2, 7}]


@st.composite
def cases(draw: st.DrawFn) -> tuple[npt.NDArray[np.int64], list[list[int]], npt.NDArray[np.bool_]]:
    """Lists, targets with repeats and unknown items, and which of N items are in a slice."""
    num_users, width = draw(st.integers(1, 5)), draw(st.integers(1, N))
    ranked = np.full((num_users, width), -1, np.int64)
    for row in range(num_users):
        items = draw(st.permutations(range(N)))[: draw(st.integers(0, width))]
        ranked[row, : len(items)] = items
    targets = [draw(st.lists(st.integers(0, N + 2), min_size=1, max_size=6)) for _ in range(num_users)]
    return ranked, targets, np.array(draw(st.lists(st.booleans(), min_size=N, max_size=N)))


@given(cases(), st.integers(1, N))
@settings(max_examples=100)
def test_slice_of_items_equals_metrics_with_its_targets_alone(
    case: tuple[npt.NDArray[np.int64], list[list[int]], npt.NDArray[np.bool_]], k: int
) -> None:
    ranked, targets, is_in = case
    kept = [[item for item in target if item < N and is_in[item]] for target in targets]
    asked = [row for row, target in enumerate(kept) if target]
    expected = {"num_users": len(asked), "num_targets": sum(len(set(target)) for target in kept)}
    if asked:
        values = per_user_metrics(ranked[asked], [kept[row] for row in asked], ks=(k,))
        expected |= {name: each.mean() for name, each in values.items()}
    by_user = np.tile(is_in, (len(ranked), 1))
    found = slice_metrics(ranked, targets, {"one": Slice(items=is_in), "pairs": Slice(items=by_user)}, ks=(k,))
    assert found["one"] == pytest.approx(expected)
    assert found["pairs"] == found["one"]


def test_values_of_a_slice_count_its_targets_alone() -> None:
    ranked, targets = np.array([[0, 1], [2, 3], [1, -1]]), [[0, 3], [3], [0]]
    only_zero, third = np.arange(4) == 0, np.arange(3) == 2
    slices = {
        "all": Slice(),
        "zero": Slice(items=only_zero),
        "both": Slice(users=third, items=only_zero),
        "none": Slice(items=np.zeros(4, bool)),
    }
    found = slice_values(ranked, targets, slices, "recall_at_2")
    assert {name: values.tolist() for name, values in found.items()} == {
        "all": [0.5, 1.0, 0.0], "zero": [1.0, 0.0], "both": [0.0], "none": [],
    }  # fmt: skip


@given(cases(), st.integers(1, N))
def test_values_of_a_slice_have_the_means_of_its_metrics(
    case: tuple[npt.NDArray[np.int64], list[list[int]], npt.NDArray[np.bool_]], k: int
) -> None:
    ranked, targets, is_in = case
    slices = {"in": Slice(items=is_in), "out": Slice(items=~is_in), "first": Slice(users=np.arange(len(ranked)) == 0)}
    means = slice_metrics(ranked, targets, slices, ks=(k,))
    for name, values in slice_values(ranked, targets, slices, f"ndcg_at_{k}").items():
        assert len(values) == means[name]["num_users"]
        assert not len(values) or values.mean() == pytest.approx(means[name][f"ndcg_at_{k}"])


def test_slice_of_everything_equals_the_whole() -> None:
    whole = evaluate_rankings(RANKED, TARGETS, ks=(2, 4))
    found = slice_metrics(RANKED, TARGETS, {"all": Slice(), "items": Slice(items=np.ones(N, bool))}, ks=(2, 4))
    assert found["all"] == pytest.approx(whole | {"num_targets": 6})
    assert found["items"] == found["all"]


def test_slices_by_hand() -> None:
    slices = {
        "users": Slice(users=np.array([True, False, True])),
        "items": Slice(items=np.isin(np.arange(N), [1, 9, 7])),
        "both": Slice(users=np.array([True, False, False]), items=np.isin(np.arange(N), [1, 9, 7])),
        "nobody": Slice(users=np.zeros(3, bool)),
    }
    found = slice_metrics(RANKED, TARGETS, slices, ks=(4,))
    assert found["users"]["recall_at_4"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["items"]["recall_at_4"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["items"]["mrr_at_4"] == pytest.approx(1 / 2)  # item 1 and item 7 keep the second place of their lists
    assert (found["both"]["num_users"], found["both"]["num_targets"]) == (1, 2)
    assert found["nobody"] == {"num_users": 0, "num_targets": 0}


def test_pairs_choose_targets_of_each_user() -> None:
    repeated = np.zeros((3, N), bool)
    repeated[0, 1] = repeated[2, 2] = True
    found = slice_metrics(RANKED, TARGETS, {"pairs": Slice(items=repeated)}, ks=(2,))["pairs"]
    assert (found["num_users"], found["recall_at_2"]) == (2, 1 / 2)


def test_cold_slice_equals_cold_item_metrics() -> None:
    is_cold = np.arange(N) >= 7
    found = slice_metrics(RANKED, TARGETS, warmth_slices(is_cold), ks=(3,))
    cold = cold_item_metrics(RANKED, TARGETS, is_cold, k=3)
    assert found["cold_items"]["recall_at_3"] == cold["cold_recall_at_3"]
    assert found["cold_items"]["ndcg_at_3"] == pytest.approx(cold["cold_ndcg_at_3"])
    assert found["cold_items"]["num_targets"] + found["warm_items"]["num_targets"] == 6


def test_matrix_of_targets_gives_the_same() -> None:
    matrix = np.zeros((3, N), bool)
    for row, target in enumerate(TARGETS):
        matrix[row, list(target)] = True
    slices = warmth_slices(np.arange(N) >= 7)
    assert slice_metrics(RANKED, matrix, slices) == slice_metrics(RANKED, TARGETS, slices)


def test_slice_metrics_refuses_masks_and_rankings_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="slice 'new': a mask is for another number of users than the 3 lists"):
        slice_metrics(RANKED, TARGETS, {"new": Slice(users=np.ones(4, bool))})
    with pytest.raises(ValueError, match="slice 'pairs'"):
        slice_metrics(RANKED, TARGETS, {"pairs": Slice(items=np.ones((4, N), bool))})
    with pytest.raises(ValueError, match="row 1 has no target"):
        slice_metrics(RANKED, [[1], [], [2]], {})


def test_history_slices_split_below_a_length() -> None:
    slices = history_slices(np.array([0, 4, 5, 90]))
    assert slices["new_users"].users.tolist() == [True, True, False, False]
    assert slices["known_users"].users.tolist() == [False, False, True, True]


def test_popularity_slices_by_hand() -> None:
    counts = np.array([1, 40, 0, 30, 20, 9])  # 100 choices: 40, 70, 90, 99, 100
    slices = popularity_slices(counts)
    assert np.flatnonzero(slices["head_items"].items).tolist() == [1, 3]
    assert np.flatnonzero(slices["mid_items"].items).tolist() == [4]
    assert np.flatnonzero(slices["tail_items"].items).tolist() == [0, 2, 5]
    assert popularity_slices(np.zeros(3, np.int64))["tail_items"].items.all()
    with pytest.raises(ValueError, match="expected 0 < head < mid < 1"):
        popularity_slices(counts, head=0.8, mid=0.5)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=30))
def test_popularity_slices_share_out_all_items_by_popularity(counts: list[int]) -> None:
    given_counts = np.array(counts)
    parts = [part.items for part in popularity_slices(given_counts).values()]
    assert (np.sum(parts, axis=0) == 1).all()
    least = [given_counts[part].min(initial=10**9) for part in parts]
    most = [given_counts[part].max(initial=-1) for part in parts]
    assert most[1] < least[0]  # strictly: equally popular items are never parted
    assert most[2] < least[1]
    assert most[2] < least[0]
    if given_counts.sum():
        assert given_counts[parts[0]].sum() >= given_counts.sum() / 2
        assert given_counts[parts[2]].sum() <= given_counts.sum() * 0.2 + 1e-9


def test_modality_slices_name_the_patterns_that_occur() -> None:
    has = np.array([[1, 1, 1], [0, 0, 1], [1, 1, 1], [0, 0, 0], [0, 1, 1]], bool)
    slices = modality_slices(has)
    assert {name: np.flatnonzero(part.items).tolist() for name, part in slices.items()} == {
        "video_audio_text": [0, 2], "audio_text": [4], "text": [1], "no_modality": [3],
    }  # fmt: skip
    with pytest.raises(ValueError, match="got 2 columns for"):
        modality_slices(has[:, :2])


@given(st.lists(st.lists(st.sampled_from(["music", "news", "sport"]), unique=True, max_size=3), min_size=1))
def test_category_slices_hold_an_item_once_for_each_of_its_categories(labels: list[list[str]]) -> None:
    slices = category_slices(*category_matrix(labels))
    sizes = {name: part.items.sum() for name, part in slices.items()}
    assert sizes == {f"category_{name}": n for name, n in Counter(name for label in labels for name in label).items()}


def test_category_slices_need_a_name_a_column() -> None:
    with pytest.raises(ValueError, match="got 3 columns for 2 names"):
        category_slices(np.ones((4, 3), bool), ["music", "news"])


def test_user_slices_leave_out_the_unknown() -> None:
    slices = user_slices(["fr", None, "de", "fr", 7], "country")
    assert {name: part.users.tolist() for name, part in slices.items()} == {
        "country_7": [False, False, False, False, True],
        "country_de": [False, False, True, False, False],
        "country_fr": [True, False, False, True, False],
    }

import numpy as np
import numpy.typing as npt
import pytest

from avrec_ray.errors import StageError
from avrec_ray.retrieval.config import IndexConfig
from avrec_ray.retrieval.index import VectorIndex, build_index
from avrec_ray.retrieval.recall import check_recall, filters, measure_recall, recall_against_exact
from tests.retrieval.test_index import unit_vectors

FLAT = IndexConfig(backend="flat")


def test_recall_against_exact_is_one_when_exact_and_less_with_few_probes() -> None:
    embeddings, queries = unit_vectors(2000, dim=16), unit_vectors(40, seed=1, dim=16)
    exact = build_index(embeddings, IndexConfig(backend="flat"))
    assert recall_against_exact(exact, queries, 20) == 1
    assert recall_against_exact(exact, queries, 5000) == 1
    few = build_index(embeddings, IndexConfig(backend="ivf_flat", num_probes=1))
    most = build_index(embeddings, IndexConfig(backend="ivf_flat", num_probes=25))
    assert 0 < recall_against_exact(few, queries, 20) < 0.9
    assert recall_against_exact(most, queries, 20) > recall_against_exact(few, queries, 20)
    assert _recall_by_sets(few, queries, 20) == pytest.approx(recall_against_exact(few, queries, 20))


def _recall_by_sets(index: VectorIndex, queries: npt.NDArray[np.float32], k: int) -> float:
    found, exact = index.search(queries, k)[1], index.search_exact(queries, k)[1]
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(found.tolist(), exact.tolist(), strict=True)]))


def test_recall_counts_items_of_equal_score_as_found() -> None:
    twins = np.repeat(unit_vectors(30), 4, axis=0)
    assert recall_against_exact(build_index(twins, IndexConfig(backend="flat")), unit_vectors(9), 2) == 1


def clustered(num: int, num_clusters: int, dim: int = 16) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    cluster_of = rng.integers(0, num_clusters, num)
    vectors = rng.normal(size=(num_clusters, dim))[cluster_of] + 0.8 * rng.normal(size=(num, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), cluster_of


@pytest.mark.parametrize("share", [0.1, 0.01])
@pytest.mark.parametrize("kind", ["random", "cluster"])
def test_recall_under_filters_of_both_kinds_is_nearly_exact(share: float, kind: str) -> None:
    embeddings, cluster_of = clustered(20_000, 100)
    index = build_index(embeddings, IndexConfig(backend="ivf_flat"))
    allowed = cluster_of < 100 * share if kind == "cluster" else np.random.default_rng(1).random(20_000) < share
    queries = embeddings[::400]
    assert recall_against_exact(index, queries, 100, allowed) >= 0.99


def test_recall_under_a_filter_that_allows_few_or_none_is_one() -> None:
    embeddings = unit_vectors(500)
    index = build_index(embeddings, IndexConfig(backend="ivf_flat", num_probes=1))
    allowed = np.arange(500) < 3
    assert recall_against_exact(index, embeddings[:9], 20, allowed) == 1
    assert recall_against_exact(index, embeddings[:9], 20, np.zeros(500, bool)) == 1
    assert recall_against_exact(index, embeddings[:0], 20) == 1


def test_filters_allow_their_share_at_random_and_near_one_item() -> None:
    embeddings, _ = clustered(1000, 10)
    found = dict(filters(embeddings, np.random.default_rng(0)))
    assert {name: int(mask.sum()) for name, mask in found.items()} == {
        "random_10_percent": 100,
        "region_10_percent": 100,
        "random_1_percent": 10,
        "region_1_percent": 10,
    }
    spread = {name: np.linalg.norm(embeddings[mask].mean(0)) for name, mask in found.items()}
    assert spread["region_10_percent"] > 0.5 > spread["random_10_percent"]


@pytest.mark.parametrize("num_items", [1, 7, 300])
def test_measured_recall_of_exact_search_is_one(num_items: int) -> None:
    embeddings = unit_vectors(num_items)
    measured = measure_recall(build_index(embeddings, FLAT), embeddings, seed=3)
    assert len(measured) == 5
    assert set(measured.values()) == {1.0}
    check_recall(measured, FLAT)


def test_check_refuses_an_index_that_finds_too_little_and_says_what_to_change() -> None:
    embeddings = unit_vectors(3000, dim=16)
    cfg = IndexConfig(backend="ivf_flat", num_lists=20, num_probes=1)  # lists longer than k: none comes out short
    measured = measure_recall(build_index(embeddings, cfg), embeddings, seed=0)
    with pytest.raises(StageError, match=r"exact=0\.\d+ is below index.min_recall=0.95.*index.num_probes \(now 1\)"):
        check_recall(measured, cfg)
    check_recall(measured, IndexConfig(min_recall=min(measured.values())))


def test_check_refuses_what_is_low_under_one_filter_alone() -> None:
    measured = {"recall_at_100_of_exact": 1.0, "recall_at_100_of_exact_region_10_percent": 0.9}
    with pytest.raises(StageError, match=r"region_10_percent=0\.9000 is below"):
        check_recall(measured, IndexConfig())
    check_recall(measured, IndexConfig(min_recall=0.9))

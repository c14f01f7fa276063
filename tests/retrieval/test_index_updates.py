import threading
from pathlib import Path

import numpy as np
import pytest

from avrec_ray.errors import BundleError
from avrec_ray.retrieval.index import VectorIndex, build_index, load_index
from tests.retrieval.test_index import CONFIGS, change_json, unit_vectors


@pytest.fixture(params=CONFIGS)
def index(request: pytest.FixtureRequest) -> VectorIndex:
    return build_index(unit_vectors(200), CONFIGS[request.param])


def test_added_items_get_the_next_rows_and_are_found(index: VectorIndex) -> None:
    new = unit_vectors(3, seed=5)
    assert index.add(new).tolist() == [200, 201, 202]
    assert index.search_exact(new, 1)[1].ravel().tolist() == [200, 201, 202]
    assert (index.num_items, index.num_deleted) == (203, 0)


def test_rows_of_deleted_items_are_never_given_again(index: VectorIndex) -> None:
    index.delete(index.add(unit_vectors(2, seed=5)))
    assert index.add(unit_vectors(1, seed=6)).tolist() == [202]
    assert (index.num_items, index.num_deleted) == (203, 2)


def test_updated_item_is_found_by_its_new_vector_alone(index: VectorIndex) -> None:
    old, new = unit_vectors(200)[7:8], -unit_vectors(200)[7:8]
    index.update(np.array([7]), new)
    assert index.search_exact(new, 1)[1].tolist() == [[7]]
    assert index.search_exact(old, 199)[1].tolist()[0].count(7) == 0


def test_search_after_deletes_still_gives_k_and_no_deleted_item(index: VectorIndex) -> None:
    gone = np.arange(0, 190)
    assert index.delete(gone) == 190
    assert index.delete(gone[:5]) == 0
    for allowed, exclude, num in ((None, None, 10), (np.arange(200) >= 195, None, 5), (None, np.arange(193), 7)):
        _, rows = index.search(unit_vectors(4, seed=1), 20, allowed, None if exclude is None else [exclude] * 4)
        assert ((rows >= 0).sum(1) == num).all()
        assert (rows[:, :num] >= 190).all()


def test_index_without_living_items_answers_nothing_and_takes_new_ones(index: VectorIndex) -> None:
    index.delete(np.arange(200))
    assert (index.search(unit_vectors(2), 3)[1] == -1).all()
    assert (index.search(unit_vectors(2), 3, np.ones(200, bool))[1] == -1).all()
    index.add(unit_vectors(1))
    assert index.search(unit_vectors(1), 2)[1].tolist() == [[200, -1]]


def test_filters_follow_changes(index: VectorIndex) -> None:
    allowed, query = np.arange(200) < 4, unit_vectors(1, seed=1)
    assert set(index.search(query, 9, allowed)[1][0].tolist()) == {0, 1, 2, 3, -1}
    index.delete(np.array([2]))
    assert set(index.search(query, 9, allowed)[1][0].tolist()) == {0, 1, 3, -1}
    index.add(unit_vectors(2, seed=3))  # the mask was made before: it does not allow them
    assert set(index.search(query, 9, allowed)[1][0].tolist()) == {0, 1, 3, -1}
    assert set(index.search(query, 9, np.arange(202) >= 200)[1][0].tolist()) == {200, 201, -1}


def test_nothing_of_a_deleted_vector_is_saved(tmp_path: Path, index: VectorIndex) -> None:
    secret = unit_vectors(200)[50].tobytes()
    index.save(tmp_path, "v1")
    assert secret in (tmp_path / "index.faiss").read_bytes()
    index.delete(np.array([50]))
    index.save(tmp_path, "v1")
    assert secret not in (tmp_path / "index.faiss").read_bytes()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.array([200]), r"outside \[0, 200\)"),
        (np.array([-1]), r"outside \[0, 200\)"),
        (np.array([3, 3]), "twice; give each once"),
        (np.array([1.0]), r"float64 \(1,\); expected int64 \[M\]"),
        (np.array([[1]]), r"int64 \(1, 1\); expected int64 \[M\]"),
    ],
)
def test_changes_refuse_rows_that_do_not_fit(index: VectorIndex, rows: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        index.delete(rows)
    with pytest.raises(ValueError, match=message):
        index.update(rows, unit_vectors(len(rows)))
    assert index.num_deleted == 0


def test_update_refuses_a_deleted_item_and_another_number_of_vectors(index: VectorIndex) -> None:
    index.delete(np.array([4]))
    with pytest.raises(ValueError, match="item_idx 4 is deleted; add it as a new item"):
        index.update(np.array([3, 4]), unit_vectors(2))
    with pytest.raises(ValueError, match="1 rows for 2 vectors"):
        index.update(np.array([3]), unit_vectors(2))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_changes_refuse_vectors_that_cannot_be_served(index: VectorIndex, bad: float) -> None:
    vectors = unit_vectors(2)
    vectors[1, 3] = bad
    before = index.search(unit_vectors(5), 9)
    for change in (lambda: index.add(vectors), lambda: index.update(np.arange(2), vectors)):
        with pytest.raises(BundleError, match="embedding 1 is not finite"):
            change()
    with pytest.raises(BundleError, match="expected unit vectors"):
        index.add(2 * unit_vectors(1))
    with pytest.raises(ValueError, match=r"vectors are \(1, 5\); expected \[M, 8\]"):
        index.add(unit_vectors(1, dim=5))
    assert np.array_equal(before[1], index.search(unit_vectors(5), 9)[1])


def test_index_mapped_from_its_file_refuses_changes(tmp_path: Path, index: VectorIndex) -> None:
    index.save(tmp_path, "v1")
    mapped = load_index(tmp_path, "v1", mmap=True)
    for change in (
        lambda: mapped.add(unit_vectors(1)),
        lambda: mapped.update(np.array([1]), unit_vectors(1)),
        lambda: mapped.delete(np.array([1])),
    ):
        with pytest.raises(
            RuntimeError, match=r"opened with mmap and cannot change; use load_index\(..., mmap=False\)"
        ):
            change()
    assert load_index(tmp_path, "v1").delete(np.array([1])) == 1


@pytest.mark.parametrize("deleted", [[5, 5], [-1], [200], [9, 3]])
def test_load_refuses_deleted_rows_that_cannot_be(tmp_path: Path, index: VectorIndex, deleted: list[int]) -> None:
    index.delete(np.arange(len(deleted)))
    index.save(tmp_path, "v1")
    change_json(tmp_path, deleted=deleted)
    with pytest.raises(BundleError, match=r"deleted rows twice or outside \[0, 200\)"):
        load_index(tmp_path, "v1")


def test_load_refuses_lists_that_lack_other_rows_than_the_deleted(tmp_path: Path) -> None:
    index = build_index(unit_vectors(200), CONFIGS["ivf_flat"])
    index.delete(np.array([5]))
    index.save(tmp_path, "v1")
    change_json(tmp_path, deleted=[6])
    with pytest.raises(BundleError, match="lacks rows .5. ... that index.json does not call deleted"):
        load_index(tmp_path, "v1")


def test_searches_beside_a_writer_answer_from_before_or_after_a_change(index: VectorIndex) -> None:
    queries, stop, wrong = unit_vectors(3, seed=1), threading.Event(), []

    def search() -> None:
        while not stop.is_set():
            scores, rows = index.search(queries, 30)
            if (rows < 0).any() or (np.diff(scores) > 0).any() or (rows < 100).any():
                wrong.append(rows)

    index.delete(np.arange(100))
    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for seed in range(60):
        rows = index.add(unit_vectors(5, seed=seed))
        index.update(rows[:2], unit_vectors(2, seed=seed + 1000))
        index.delete(rows[1:])
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert (index.num_items, index.num_deleted) == (500, 340)

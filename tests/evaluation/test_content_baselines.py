import numpy as np
import pytest

from avrec_ray.errors import ConfigError
from avrec_ray.evaluation.content_baselines import ContentNeighbours

NO_ROWS = np.zeros(0, np.int64)
VECTORS = np.array([[3.0, 0.0], [0.0, 0.5], [1.0, 1.0], [0.0, 0.0], [-1.0, 0.0]])


def fitted() -> ContentNeighbours:
    model = ContentNeighbours(VECTORS)
    model.fit(NO_ROWS, NO_ROWS, np.zeros(0), num_users=0, num_items=5)
    return model


def test_content_scores_are_products_with_the_mean_of_unit_vectors() -> None:
    diagonal = np.sqrt(0.5)
    scores = fitted().score([np.array([0]), np.array([0, 1]), np.array([1, 0, 0])])
    assert scores[0] == pytest.approx([1, 0, diagonal, -1, -1])
    assert scores[1] == pytest.approx([0.5, 0.5, diagonal, -1, -0.5])
    assert scores[2] == pytest.approx(scores[1])


def test_content_ranks_an_item_without_content_last_and_reads_nothing_from_it() -> None:
    scores = fitted().score([np.array([0, 3]), np.array([0]), np.array([3])])
    assert np.array_equal(scores[0], scores[1])
    assert scores[2].tolist() == [0] * 5


@pytest.mark.parametrize("vectors", [np.zeros(3), np.array([[1.0, np.nan]]), np.array([[np.inf]])])
def test_vectors_that_are_no_finite_matrix_are_refused(vectors: np.ndarray) -> None:
    with pytest.raises(ConfigError, match=r"content_knn: got vectors of shape .*expected finite"):
        ContentNeighbours(vectors)


def test_another_number_of_items_than_vectors_is_refused() -> None:
    with pytest.raises(ConfigError, match="content_knn: got 5 vectors, expected 6"):
        ContentNeighbours(VECTORS).fit(NO_ROWS, NO_ROWS, np.zeros(0), num_users=0, num_items=6)

"""What embedding a catalogue notes of its health."""

import numpy as np
import pytest

from avrec_ray.pipelines.embed_items import CatalogueVectors, health_of


def catalogue(num_items: int) -> CatalogueVectors:
    """Items on the axes of a space; two moments each, the first like its item, the second absent."""
    vectors = np.eye(num_items, 4, dtype=np.float32)
    moments = np.stack([vectors, -vectors], 1)
    mask = np.tile([True, False], (num_items, 1))
    spans = np.zeros((num_items, 1, 2), np.float32)
    return CatalogueVectors([f"i{row}" for row in range(num_items)], vectors, moments, mask, spans)


def test_health_is_of_items_and_of_the_moments_that_exist() -> None:
    health = health_of(catalogue(4))
    assert health["embedding/norm_mean"] == pytest.approx(1.0)
    assert health["embedding/uniformity"] == pytest.approx(-4.0)
    assert health["embedding/alignment"] == pytest.approx(0.0, abs=1e-6)
    assert health["embedding/effective_rank"] == pytest.approx(0.75)  # centred, four points span three directions


def test_one_item_has_no_health() -> None:
    assert health_of(catalogue(1)) == {}

"""Embedding health: known values of simple shapes, and the bounds that the docstrings promise."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.towers.embedding_health import alignment, effective_rank, embedding_health, uniformity


def on_sphere(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    vectors = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return vectors / vectors.norm(dim=1, keepdim=True)


def test_even_embeddings_are_healthy_and_collapsed_ones_are_not() -> None:
    even = embedding_health(on_sphere(4000, 16))
    assert even["spread"] == pytest.approx(1.0, abs=0.02)
    assert even["effective_rank"] == pytest.approx(1.0, abs=0.01)
    assert even["dead_dimensions"] == 0.0
    assert even["norm_mean"] == pytest.approx(1.0)
    point = embedding_health(3 * on_sphere(1, 16).repeat(50, 1))
    assert (point["spread"], point["dead_dimensions"], point["effective_rank"]) == (
        pytest.approx(0, abs=1e-6),
        1.0,
        0.0,
    )
    assert point["uniformity"] == pytest.approx(0.0, abs=1e-6)
    assert point["norm_mean"] == pytest.approx(3.0)


def test_dimensions_that_carry_nothing_are_counted() -> None:
    vectors = on_sphere(500, 8)
    vectors[:, 2:4] = 0.0
    assert embedding_health(vectors)["dead_dimensions"] == 0.25
    assert effective_rank(vectors) == pytest.approx(6.0, abs=0.1)


def test_uniformity_of_two_opposite_points_is_minus_four_t() -> None:
    assert uniformity(torch.tensor([[1.0, 0.0], [-5.0, 0.0]])) == pytest.approx(-8.0)
    assert uniformity(torch.eye(3), t=1.0) == pytest.approx(-2.0)


def test_uniformity_of_a_sample_is_close_to_that_of_all() -> None:
    vectors = on_sphere(3000, 8)
    exact = torch.pdist(vectors.double()).pow(2).mul(-2).exp().mean().log().item()
    assert uniformity(vectors) == pytest.approx(exact, abs=0.01)
    assert uniformity(vectors) == uniformity(vectors)


def test_alignment_of_equal_opposite_and_unrelated_pairs() -> None:
    vectors = on_sphere(2000, 16)
    assert alignment(vectors, 7 * vectors) == pytest.approx(0.0, abs=1e-6)
    assert alignment(vectors, -vectors) == pytest.approx(4.0)
    assert alignment(vectors, on_sphere(2000, 16, seed=1)) == pytest.approx(2.0, abs=0.1)


@given(st.integers(2, 40), st.integers(1, 8), st.integers(0, 99))
def test_numbers_stay_in_their_bounds(count: int, dim: int, seed: int) -> None:
    health = embedding_health(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)))
    assert all(math.isfinite(value) for value in health.values())
    assert -8.0 - 1e-9 <= health["uniformity"] <= 1e-9
    assert 0.0 <= health["effective_rank"] <= 1.0 + 1e-9
    assert 0.0 <= health["spread"] <= 1.0 + 1e-9

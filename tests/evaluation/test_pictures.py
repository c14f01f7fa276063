"""Pictures: PNGs of what they were given, also at the edges."""

import io

import numpy as np
import pytest
from PIL import Image

from avrec_ray.evaluation import pictures

RANKED = {"ours": np.array([[0, 1, 2], [2, 1, -1]]), "other": np.array([[3, 1, 0], [0, 3, 2]])}
TARGETS = [np.array([1]), np.array([2, 3])]


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return image


def test_curves_are_drawn_up_to_the_length_of_the_lists() -> None:
    short = opened(pictures.curves_over_k(RANKED, TARGETS))
    better = opened(pictures.curves_over_k({"ours": np.array([[1, 0, 2], [2, 3, 0]])}, TARGETS))
    assert short.size == better.size
    assert np.asarray(short).tobytes() != np.asarray(better).tobytes()


def test_exposure_is_drawn_to_bytes() -> None:
    assert opened(pictures.exposure_against_popularity(RANKED, np.array([5.0, 3, 1, 0]), k=2)).width > 300


@pytest.mark.parametrize("groups", [["a", "b", None, "a"], [None] * 4, [f"g{n}" for n in range(4)]])
def test_embedding_map_takes_any_groups(groups: list[str | None]) -> None:
    vectors = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    assert opened(pictures.embedding_map(vectors, groups)).width > 300


def test_thumbnail_is_the_frame() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (3, 6, 8)).astype(np.uint8)
    assert np.array_equal(np.asarray(opened(pictures.thumbnail(frame))), frame.transpose(1, 2, 0))

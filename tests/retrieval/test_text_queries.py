"""Texts among items: an item that is its text alone lies where its text does; what cannot encode says so."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from avrec_ray.bundle import load_bundle
from avrec_ray.retrieval.matcher import Matcher
from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.item_tower import ItemTokens, token_shapes
from avrec_ray.towers.text_ids import text_ids
from tests.tiny_bundle import build_tiny_bundle
from tests.tiny_models import tiny_towers


@pytest.fixture(scope="module")
def matcher(tmp_path_factory: pytest.TempPathFactory) -> Matcher:
    return Matcher(build_tiny_bundle(tmp_path_factory.mktemp("bundles") / "v-text"))


def embedding_of_text(matcher: Matcher, text: str) -> np.ndarray:
    """What embed_items makes of an item that has a text and nothing else, without an id vector."""
    tower = matcher.towers.item
    words = torch.from_numpy(text_ids([text], tower.cfg))
    tokens = {name: torch.zeros(1, *shape) for name, shape in token_shapes(tower.cfg).items()}
    masks = {name: torch.zeros(value.shape[:2], dtype=torch.bool) for name, value in tokens.items()}
    with torch.inference_mode():
        tokens["text"] = tower.encoders["text"](words)
        masks["text"][:] = True
        return tower.fuse(ItemTokens(tokens, masks)).numpy()


@pytest.mark.parametrize("text", ["Guitar lesson", "a", "one two three four five six seven eight nine"])
def test_vectors_are_those_of_an_item_with_this_text(matcher: Matcher, text: str) -> None:
    vectors, written = matcher.text_queries.vectors([text])
    assert written.tolist() == [True]
    np.testing.assert_allclose(vectors, embedding_of_text(matcher, text), atol=1e-6)
    assert np.linalg.norm(vectors) == pytest.approx(1, abs=1e-5)


def test_search_orders_all_items_by_cosine(matcher: Matcher) -> None:
    (vector,), _ = matcher.text_queries.vectors(["guitar"])
    found = matcher.search("guitar", 1000)
    assert found is not None
    cosines = matcher.bundle.embeddings @ vector
    order = np.argsort(-cosines, kind="stable")
    assert [c.item_id for c in found] == [matcher.bundle.items.item_ids[row] for row in order]
    assert [c.score for c in found] == pytest.approx(cosines[order].tolist(), abs=1e-5)
    assert {c.source for c in found} == {"search"}
    assert [c.item_id for c in matcher.search("guitar", 3) or ()] == [c.item_id for c in found[:3]]


def test_search_does_not_depend_on_case_spaces_or_invisible_characters(matcher: Matcher) -> None:
    assert matcher.search("Guitar  Lesson\u200b", 5) == matcher.search("guitar lesson", 5)


@pytest.mark.parametrize("text", ["", "?!", "\u200b", "   "])
def test_search_without_a_word_finds_nothing(matcher: Matcher, text: str) -> None:
    assert matcher.search(text, 5) == []


def test_search_where_no_encoder_reads_text_is_none(tmp_path: Path) -> None:
    matcher = Matcher(build_tiny_bundle(tmp_path / "v-mute", towers=tiny_towers(text_encoder="none")))
    assert matcher.search("guitar", 5) is None
    with pytest.raises(ValueError, match="look at `encoder` first"):
        matcher.text_queries.vectors(["guitar"])


def test_search_with_a_checkpoint_that_is_not_here_is_none_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = tiny_towers(text_encoder="transformers", text_checkpoint=str(tmp_path / "gone"), text_width=12)
    matcher = Matcher(build_tiny_bundle(tmp_path / "v-gone", towers=gone))
    with caplog.at_level(logging.WARNING):
        assert matcher.search("guitar", 5) is None
    assert "text cannot be encoded here, search is by words alone" in caplog.text
    assert str(tmp_path / "gone") in caplog.text


@pytest.mark.slow
def test_search_with_minilm_finds_the_text_of_its_meaning(tmp_path: Path) -> None:
    """The weights come from their package, not from the bundle."""
    towers = tiny_towers(text_encoder="minilm", text_width=384, max_text_tokens=16)
    matcher = Matcher(build_tiny_bundle(tmp_path / "v-mini", towers=towers))
    texts = ["a dog plays in the park", "a puppy runs on the grass", "quarterly tax report"]
    encoder = matcher.text_queries.encoder
    assert encoder is not None
    with torch.inference_mode():
        tokens = encoder(torch.from_numpy(text_ids(texts, towers)))[:, 0]
    cosine = torch.nn.functional.normalize(tokens, dim=1) @ torch.nn.functional.normalize(tokens, dim=1).T
    assert cosine[0, 1] > cosine[0, 2] + 0.2
    assert len(matcher.search(texts[0], 7) or ()) == 7


def test_the_encoder_is_loaded_by_search_alone(tmp_path: Path) -> None:
    matcher = Matcher(build_tiny_bundle(tmp_path / "v-lazy"))
    assert "text_queries" not in vars(matcher)
    matcher.search("guitar", 1)
    assert "text_queries" in vars(matcher)


def test_text_ids_are_those_that_items_are_embedded_with() -> None:
    cfg: TowersConfig = tiny_towers()
    ids = text_ids(["A cat", "", "a CAT sleeps"], cfg)
    assert ids.shape == (3, cfg.max_text_tokens)
    assert ids[0, :2].tolist() == ids[2, :2].tolist()
    assert not ids[1].any()
    assert not text_ids(["A cat"], tiny_towers(text_encoder="none")).any()


def test_bundle_of_the_matcher_is_the_one_given(tmp_path: Path) -> None:
    bundle = load_bundle(build_tiny_bundle(tmp_path / "v-given"))
    assert Matcher(bundle).text_queries.towers.cfg == bundle.metadata.towers

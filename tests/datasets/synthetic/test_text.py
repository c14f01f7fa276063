import numpy as np
import pytest

from avrec_ray.datasets.synthetic.factors import FACTORS, SHOWN
from avrec_ray.datasets.synthetic.text import FILLER, WORDS, ItemText, write_text

VALUES = {"scene": "ocean", "action": "spin", "character": "ring", "mood": "sad", "theme": "history"}


def write(kind: str, seed: int) -> ItemText:
    shown = dict(zip(FACTORS, SHOWN[kind], strict=True))
    return write_text(VALUES, shown, np.random.default_rng(seed))


def words(text: ItemText) -> set[str]:
    return set(f"{text.title} {text.description}".lower().replace(".", "").split())


@pytest.mark.parametrize("language", ["en", "de"])
def test_words_cover_every_factor_value_and_share_none_with_filler(language: str) -> None:
    values = [value for names in FACTORS.values() for value in names]
    assert sorted(WORDS[language]) == sorted(values)
    listed = [word for text in WORDS[language].values() for word in text.split()]
    assert len(set(listed)) == len(listed)
    assert not set(listed) & set(FILLER[language].split())


def test_write_text_always_tells_the_theme() -> None:
    for seed in range(50):
        text = write("video", seed)
        assert words(text) & set(WORDS[text.language]["history"].split())
        assert text.category == "history"
        assert text.title


def test_write_text_tells_more_of_what_the_media_cannot_show() -> None:
    def told(kind: str) -> float:
        texts = [write(kind, seed) for seed in range(200)]
        return float(np.mean([bool(words(t) & set(WORDS[t.language]["ocean"].split())) for t in texts]))

    assert 0.3 < told("video") < 0.5
    assert told("audio") > 0.75


def test_write_text_varies_words_and_language() -> None:
    texts = [write("text", seed) for seed in range(200)]
    assert {t.language for t in texts} == {"en", "de"}
    used = set().union(*(words(t) for t in texts if t.language == "en"))
    assert set(WORDS["en"]["history"].split()) <= used


def test_write_text_tags_are_factor_values_of_the_item() -> None:
    tags = [write("video", seed).tags for seed in range(100)]
    assert all(set(row) <= set(VALUES.values()) for row in tags)
    assert 0.5 < np.mean([len(row) for row in tags]) < 2.5


def test_write_text_same_seed_gives_the_same_text() -> None:
    assert write("video", 7) == write("video", 7)
    assert write("video", 7) != write("video", 8)

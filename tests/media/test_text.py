import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.media.text import MAX_TEXT_CHARS, clean_text, item_text


@given(st.text(max_size=300))
def test_clean_text_is_normal_visible_and_stable(text: str) -> None:
    cleaned = clean_text(text)
    assert clean_text(cleaned) == cleaned
    assert unicodedata.is_normalized("NFKC", cleaned)
    assert not any(unicodedata.category(c).startswith("C") for c in cleaned)
    assert "  " not in cleaned
    assert cleaned == cleaned.strip()


def test_clean_text_composes_parts_words_and_drops_hidden_characters() -> None:
    assert clean_text("cafe\u0301\n\tﬁlm\u200b\x07s ①") == "café films 1"
    assert clean_text(None) == ""
    assert len(clean_text("long " * 9999)) <= MAX_TEXT_CHARS


def test_item_text_joins_the_parts_that_exist() -> None:
    assert item_text("A title", "What is it?", ["x", " ", "y"]) == "A title. x, y. What is it?"
    assert item_text("A title", None, None) == "A title."
    assert item_text("", "", []) == ""
    assert item_text("Done!", None, []) == "Done!"


@given(st.text(max_size=50), st.text(max_size=50), st.lists(st.text(max_size=9), max_size=3))
def test_item_text_is_clean_for_any_input(title: str, description: str, tags: list[str]) -> None:
    text = item_text(title, description, tags)
    assert clean_text(text) == text
    assert clean_text(title) in text


def test_item_text_is_capped() -> None:
    assert len(item_text("a" * 5000, "b" * 5000, ["c" * 5000])) == MAX_TEXT_CHARS

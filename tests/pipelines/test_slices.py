"""Names of slices, and which users and items are in them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.evaluation.slices import Slices
from avrec_ray.pipelines.slices import _categories, named_slices, user_attributes
from avrec_ray.pipelines.storage import Storage
from tests.tiny_measured import GENDERS, NUM_ITEMS, tiny_measured, tiny_storage


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, Slices]:
    root = tmp_path_factory.mktemp("slices")
    measured = tiny_measured(root / "v-1")
    storage = tiny_storage(root / "run", measured.bundle)
    items, lengths = measured.bundle.items, measured.history_lengths
    return storage, named_slices(storage, items, measured.users, lengths, measured.choice_counts)


def items_in(slices: Slices, name: str) -> list[int]:
    part = slices[name].items
    assert part is not None
    return np.flatnonzero(part).tolist()


def test_every_kind_has_its_names(finished: tuple[Storage, Slices]) -> None:
    assert list(finished[1]) == [
        "all", "cold_items", "warm_items", "head_items", "mid_items", "tail_items", "new_users", "known_users",
        "video_audio_text", "audio_text", "text", "no_modality",
        "category_cooking", "category_music", "category_sport", "gender_F", "gender_M",
    ]  # fmt: skip


def test_modalities_are_those_of_the_clips_and_of_the_text(finished: tuple[Storage, Slices]) -> None:
    _, slices = finished
    assert items_in(slices, "video_audio_text") == list(range(10))
    assert items_in(slices, "audio_text") == list(range(10, 20))
    assert items_in(slices, "text") == list(range(20, 39))
    assert items_in(slices, "no_modality") == [39]
    assert items_in(slices, "cold_items") == [9, 19, 29, 39]


def test_users_without_the_attribute_are_in_no_group(finished: tuple[Storage, Slices]) -> None:
    _, slices = finished
    assert slices["gender_F"].users is not None
    assert slices["gender_F"].users.tolist() == [gender == "F" for gender in GENDERS]
    assert slices["new_users"].users is not None
    assert np.flatnonzero(slices["new_users"].users)[:5].tolist() == [0, 1, 2, 10, 11]  # histories of 2 to 11 items


@pytest.mark.parametrize(
    "parts",
    [
        ("cold_items", "warm_items"),
        ("head_items", "mid_items", "tail_items"),
        ("video_audio_text", "audio_text", "text", "no_modality"),
    ],
)
def test_items_are_shared_out(finished: tuple[Storage, Slices], parts: tuple[str, ...]) -> None:
    assert sorted(item for name in parts for item in items_in(finished[1], name)) == list(range(NUM_ITEMS))


def test_without_users_table_there_are_no_attributes(finished: tuple[Storage, Slices], tmp_path: Path) -> None:
    assert user_attributes(finished[0], ["u01", "nobody"]) == {}  # one group is none
    assert user_attributes(finished[0], ["u00", "u01", "nobody"]) == {"gender": ["F", "M", None]}
    assert user_attributes(Storage.at(str(tmp_path)), ["u00", "u01"]) == {}


@given(st.lists(st.one_of(st.none(), st.sampled_from("abcdefghijklmnopqr")), min_size=1, max_size=60))
def test_the_largest_categories_have_slices_and_any_that_is_wanted(categories: list[str | None]) -> None:
    slices = _categories(categories, wanted=["category_q", "category_nowhere"])
    sizes = {
        name: len(items_in(slices, f"category_{name}"))
        for name in {c for c in categories if c}
        if f"category_{name}" in slices
    }
    assert all(size == categories.count(name) for name, size in sizes.items())
    left_out = {c for c in categories if c} - set(sizes)
    assert len(sizes) <= 11
    assert "q" not in left_out
    assert max((categories.count(name) for name in left_out), default=0) <= min(
        (size for name, size in sizes.items() if name != "q"), default=0
    )

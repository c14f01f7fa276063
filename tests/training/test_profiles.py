"""Profiles: hashed attributes, their file, and the same features in training and at a request."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avrec_ray.errors import BundleError
from avrec_ray.training.histories import columns_from_events, pad_histories, with_profiles
from avrec_ray.training.profiles import (
    UserProfiles,
    attribute_bucket,
    hash_attributes,
    load_profiles,
    save_profiles,
)
from avrec_ray.types import EVENTS, Event
from tests.tiny_models import random_columns, tiny_profiles, tiny_towers

NUM_ITEMS, LENGTH = 20, 5
CFG = tiny_towers(num_attribute_buckets=32, num_friends=3, friend_items=2)
COLUMNS = tiny_profiles(random_columns(6, NUM_ITEMS), CFG)


def profiles() -> UserProfiles:
    assert COLUMNS.profiles is not None
    return COLUMNS.profiles


def loaded(path: Path, **overrides: int) -> UserProfiles:
    settings = {"num_items": NUM_ITEMS, "num_attribute_buckets": 32, "num_friends": 3, "friend_items": 2}
    return load_profiles(path, **{**settings, **overrides})


@given(st.text(), st.text(), st.integers(1, 1000))
def test_attribute_bucket_is_fixed_and_never_that_of_padding(key: str, value: str, num_buckets: int) -> None:
    bucket = attribute_bucket(key, value, num_buckets)
    assert 1 <= bucket <= num_buckets
    assert bucket == attribute_bucket(key, value, num_buckets)


def test_hash_attributes_does_not_read_the_order_or_empty_values() -> None:
    given = [[("b", "2"), ("a", "1"), ("c", None)], [("a", "1"), ("b", "2"), ("d", "")], None, []]
    first, second, *none = hash_attributes(given, 1000)
    assert first.tolist() == second.tolist() == [attribute_bucket("a", "1", 1000), attribute_bucket("b", "2", 1000)]
    assert not np.any(none)


def test_rows_of_unknown_users_are_minus_one() -> None:
    assert profiles().rows(["u3", None, "stranger", "u0"]).tolist() == [
        profiles().user_ids.index("u3"), -1, -1, profiles().user_ids.index("u0"),
    ]  # fmt: skip


def test_profiles_come_back_from_their_file(tmp_path: Path) -> None:
    save_profiles(tmp_path / "users.parquet", profiles())
    again = loaded(tmp_path / "users.parquet")
    assert again.user_ids == profiles().user_ids
    assert np.array_equal(again.attribute_ids, profiles().attribute_ids)
    assert again.friends is not None
    for field in dataclasses.fields(again.friends):
        found, expected = (getattr(p.friends, field.name) for p in (again, profiles()))
        np.testing.assert_array_equal(found, expected)
    assert loaded(tmp_path / "users.parquet", num_friends=0).friends is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_items": 3}, "choice_item_rows holds"),
        ({"num_attribute_buckets": 2}, "attribute_ids holds"),
    ],
)
def test_profiles_that_point_past_a_table_are_refused(tmp_path: Path, overrides: dict[str, int], message: str) -> None:
    save_profiles(tmp_path / "users.parquet", profiles())
    with pytest.raises(BundleError, match=message):
        loaded(tmp_path / "users.parquet", **overrides)


def test_profiles_with_missing_columns_or_broken_lists_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "users.parquet"
    save_profiles(path, profiles())
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["friend_rows"]), path)
    with pytest.raises(BundleError, match="expected"):
        loaded(path)
    column = table.schema.get_field_index("friend_log_weights")
    empty = pa.array([[]] * table.num_rows, pa.list_(pa.float32()))
    pq.write_table(table.set_column(column, table.schema.field(column), empty), path)
    with pytest.raises(BundleError, match="differ in length"):
        loaded(path)


def test_a_request_reads_what_training_read(tmp_path: Path) -> None:
    """Events through the store and profiles through the bundle's file give the tensors of the training table."""
    save_profiles(tmp_path / "users.parquet", profiles())
    index = {f"i{row}": row for row in range(NUM_ITEMS)}
    durations = np.full(NUM_ITEMS, 10.0, np.float32)
    users = range(len(COLUMNS.user_ids))
    histories = [
        [
            Event(user_id, f"i{COLUMNS.item_idx[row]}", EVENTS[COLUMNS.event[row] - 1], COLUMNS.at_seconds[row])
            for row in range(COLUMNS.starts[user], COLUMNS.starts[user + 1])
        ]
        for user, user_id in enumerate(COLUMNS.user_ids)
    ]
    asked = with_profiles(
        columns_from_events(histories, index, durations), loaded(tmp_path / "users.parquet"), COLUMNS.user_ids
    )
    spans = [(int(COLUMNS.starts[user]), int(COLUMNS.starts[user + 1])) for user in users]
    trained, served = pad_histories(COLUMNS, spans, LENGTH), pad_histories(asked, spans, LENGTH, users)
    for name in ("item_idx", "event", "gap_seconds", "mask", "at_seconds", "attributes"):
        assert torch.equal(getattr(trained, name), getattr(served, name))
    assert trained.friends is not None
    assert served.friends is not None
    assert trained.friends.reads.any()
    for name in ("item_idx", "log_weight", "reads"):
        assert torch.equal(getattr(trained.friends, name), getattr(served.friends, name))


def test_an_empty_span_without_its_user_is_refused() -> None:
    with pytest.raises(ValueError, match="give `users` to pad_histories"):
        pad_histories(COLUMNS, [(0, 0)], LENGTH)

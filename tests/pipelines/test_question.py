"""What test is asked about: with valid learned from and met before, or not."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avrec_ray.pipelines.question import ask
from avrec_ray.types import INTERACTIONS
from tests.tiny_measured import describe_split

ITEMS = {name: row for row, name in enumerate("abcd")}


def write_split(root: Path, refit: bool) -> None:
    parts = {"train": "ab", "valid": "c", "test": "d", "context": ""}
    (root / "splits").mkdir()
    for number, (part, items) in enumerate(parts.items()):
        rows = [{"user_id": "u", "item_id": item, "event": "view", "at": 10 * number + place}
                for place, item in enumerate(items)]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows, INTERACTIONS), root / "splits" / f"{part}.parquet")
    describe_split(root, "given", refit)


@pytest.mark.parametrize("refit", [True, False])
def test_valid_is_learned_from_and_met_before_test_unless_told_otherwise(refit: bool, tmp_path: Path) -> None:
    write_split(tmp_path, refit)
    question = ask(tmp_path, ITEMS, np.full(4, np.nan, np.float32))
    assert question.users == ["u"]
    assert question.targets[0].tolist() == [3]
    assert question.seen[0].tolist() == question.item_idx.tolist() == ([0, 1, 2] if refit else [0, 1])


def test_valid_is_asked_about_with_train_alone(tmp_path: Path) -> None:
    write_split(tmp_path, refit=True)
    question = ask(tmp_path, ITEMS, np.full(4, np.nan, np.float32), "valid")
    assert question.targets[0].tolist() == [2]
    assert question.seen[0].tolist() == question.item_idx.tolist() == [0, 1]

"""What a model saw of the answers: a check of the tables that it was given against the split they should come from."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from avrec_ray.evaluation.split import Split, eval_targets
from avrec_ray.types import POSITIVE_EVENTS

_EXAMPLES = 3
_NEXT = {
    "target_in_history": "Fit on the split's own train and valid.",
    "test_row": "Fit on the split's own train and valid.",
    "after_boundary": "Split again: time must decide.",
    "before_boundary": "Split again: time must decide.",
    "hidden_id": "Take their rows out before fitting.",
    "popularity": "Count train and valid alone.",
}
"""What to do, by kind of leak."""


@dataclass(frozen=True)
class Leak:
    """One way in which answers reached a model."""

    kind: str
    """target_in_history, test_row, after_boundary, before_boundary, hidden_id or popularity."""
    part: str
    """Table in which it was found: train, valid, test, context, or popularity."""
    count: int
    """How many rows, targets or items."""
    message: str
    """For people: what was found, examples, and what was expected."""


def find_leaks(
    train: pa.Table, valid: pa.Table, test: pa.Table, split: Split, popularity: Mapping[str, float] | None = None
) -> list[Leak]:
    """Everything that `train` and `valid`, as a model was given them, tell of `test`. Empty: nothing.

    Found are targets in the histories; rows of test in train or valid; rows on the wrong side of a temporal boundary,
    or newer than their user's test where the split is by user; hidden items or users where nobody may learn of them.

    Args:
        train, valid: interactions that the model was fitted on.
        test: interactions that it is asked about.
        split: what `split_interactions` gave for the whole log.
        popularity: item id -> number of choices, as the model counted them. An item with more of them than there are
            positive events in the split's train and valid was counted in test too.
    """
    given = {"train": train, "valid": valid}
    leaks = [*_targets(given, test, split), *_test_rows(given, test, split)]
    leaks += [*_times(given | {"test": test}, split), *_later_than_test(given, split), *_hidden(given, split)]
    return leaks + list(_popularity(popularity or {}, split))


def _targets(given: dict[str, pa.Table], test: pa.Table, split: Split) -> Iterator[Leak]:
    """What test asks for, given the split's own history, in the histories given."""
    wanted = {(user, item) for user, items in eval_targets(test, split.history).items() for item in items}
    for part, table in given.items():
        acted = table.filter(pc.not_equal(table["event"], "impression"))
        found = wanted & set(zip(acted["user_id"].to_pylist(), acted["item_id"].to_pylist(), strict=True))
        yield from _leak("target_in_history", part, found, "(user, item) choices of test are in {part}")


def _test_rows(given: dict[str, pa.Table], test: pa.Table, split: Split) -> Iterator[Leak]:
    """Rows of test in another part, beyond those that the split itself put there: a log may repeat a row."""
    held_out = Counter(_rows(test)) | Counter(_rows(split.test))
    for part, table in given.items():
        excess = Counter(_rows(table)) - Counter(_rows(getattr(split, part)))
        yield from _leak("test_row", part, (excess & held_out).elements(), "rows of test are in {part}")


def _times(tables: dict[str, pa.Table], split: Split) -> Iterator[Leak]:
    """temporal: rows before the boundary where their part begins, and rows at or after the one where it ends."""
    if not split.boundaries:
        return
    valid_us, test_us = (round(split.boundaries[f"{part}_at_seconds"] * 1e6) for part in ("valid", "test"))
    for part, ends in (("train", valid_us), ("valid", test_us)):
        late = [row for row in _rows(tables[part]) if row[3] >= ends]
        yield from _leak("after_boundary", part, late, f"rows of {{part}} are at or after {ends} us, its end")
    for part, begins in (("valid", valid_us), ("test", test_us)):
        early = [row for row in _rows(tables[part]) if row[3] < begins]
        yield from _leak("before_boundary", part, early, f"rows of {{part}} are before {begins} us, its begin")


def _later_than_test(given: dict[str, pa.Table], split: Split) -> Iterator[Leak]:
    """leave_one_out, hidden_users: rows of a user that are newer than the first row of the same user in test.

    A choice of the same time may stand before it by the order of ties; in the context of a hidden user it may not.
    """
    if split.kind not in ("leave_one_out", "hidden_users"):
        return
    begins: dict[str, int] = {}
    for user, _, _, at_us in _rows(split.test):
        begins[user] = min(at_us, begins.get(user, at_us))
    for part, table in (given | {"context": split.context}).items():
        newest = {user: at_us - (part == "context") for user, at_us in begins.items()}
        late = [row for row in _rows(table) if row[3] > newest.get(row[0], row[3])]
        yield from _leak("after_boundary", part, late, "rows of {part} are newer than test of their user")


def _hidden(given: dict[str, pa.Table], split: Split) -> Iterator[Leak]:
    """cold_items, hidden_users: what was hidden for test in train or valid, what was hidden for valid in train."""
    column = "user_id" if split.kind == "hidden_users" else "item_id"
    for held_out, parts in (("test", ("train", "valid")), ("valid", ("train",))):
        for part in parts:
            found = set(split.hidden.get(held_out, ())) & set(given[part][column].to_pylist())
            yield from _leak("hidden_id", part, found, f"{column}s hidden for {held_out} are in {{part}}")


def _popularity(popularity: Mapping[str, float], split: Split) -> Iterator[Leak]:
    """Items that were counted more often than train and valid hold choices of them, as (item, count, choices)."""
    fitted = pa.concat_tables([split.train, split.valid])
    chosen = fitted.filter(pc.is_in(fitted["event"], value_set=pa.array(POSITIVE_EVENTS)))
    most = Counter(chosen["item_id"].to_pylist())
    found = [(item, count, most[item]) for item, count in popularity.items() if count > most[item]]
    yield from _leak(
        "popularity", "popularity", found, "(item, count, choices): more were counted than train and valid hold"
    )


def _leak(kind: str, part: str, found: Iterable[object], what: str) -> Iterator[Leak]:
    """One Leak with examples in a fixed order, or none where nothing was found."""
    rows = sorted(found, key=repr)
    if rows:
        examples = ", ".join(map(repr, rows[:_EXAMPLES]))
        message = f"{part}: {len(rows)} {what.format(part=part)}, expected 0; such as {examples}. {_NEXT[kind]}"
        yield Leak(kind, part, len(rows), message)


def _rows(table: pa.Table) -> list[tuple[str, str, str, int]]:
    """user_id, item_id, event, microseconds since 1970."""
    columns = [table[name].to_pylist() for name in ("user_id", "item_id", "event")]
    return list(zip(*columns, table["at"].cast(pa.int64()).to_pylist(), strict=True))

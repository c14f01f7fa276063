"""The section of the report that says what got better and worse since the champion."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from avrec_ray.evaluation.metrics import ndcg_at_k
from avrec_ray.evaluation.page import Section, Strip, Table
from avrec_ray.evaluation.regressions import LostItem, lost_items, lost_users
from avrec_ray.evaluation.slice_compare import WHOLE, SliceRow
from avrec_ray.evaluation.slices import Slices
from avrec_ray.pipelines.champion import ChampionLists
from avrec_ray.pipelines.measured import SERVED, Measured, Rankings, rank_rows
from avrec_ray.pipelines.report_slices import compare_on_slices, slice_table
from avrec_ray.pipelines.strips import NUM_LIST, Shelf

K = 10
TITLE = "Against the champion"


@dataclass(frozen=True, eq=False)
class AgainstChampion:
    """The candidate beside the champion on the same users."""

    name: str
    ranked: Rankings
    """The champion's lists, in rows of the candidate's catalogue."""
    ndcg: npt.NDArray[np.float64]
    """[U] NDCG at 10 of the champion."""
    slices: list[SliceRow]
    items: list[LostItem]
    users: list[int]
    """Rows of the users who lost most."""


def compare_with_champion(
    measured: Measured, champion: ChampionLists, slices: Slices, seed: int
) -> AgainstChampion | None:
    """None where there is nothing to compare with."""
    if champion.lists is None:
        return None
    theirs = rank_rows(champion.lists, measured.users, measured.bundle)
    mine, targets = measured.rankings[SERVED], measured.targets
    before, after = ndcg_at_k(theirs, targets, K), ndcg_at_k(mine, targets, K)
    return AgainstChampion(
        champion.name,
        theirs,
        before,
        compare_on_slices(measured, theirs, slices, seed),
        lost_items(theirs, mine, targets, K),
        lost_users(before, after).tolist(),
    )


def champion_section(measured: Measured, found: AgainstChampion | None, note: str, shelf: Shelf) -> Section:
    """Slices, then the items and the users that lost most; `note` says why where there is nothing to compare."""
    if found is None:
        return Section(TITLE, f"What would change for users if this bundle took over. {note}")
    text = (
        f"What would change for users if this bundle took over from {found.name}: both were asked about the same "
        "users, with the same histories. First slice by slice, then the items that are found less often, then the "
        "users whose lists got worse most."
    )
    table = slice_table(found.slices, "candidate", "champion")
    return Section(TITLE, text, [table, *_items(measured, found.items), *_users(measured, found, shelf)])


def champion_sentence(found: AgainstChampion | None) -> str:
    """What the verdict of the page says of the champion; empty where nothing was compared."""
    if found is None:
        return ""
    whole = next(row for row in found.slices if row.name == WHOLE)
    worse = [row.name for row in found.slices if row is not whole and row.verdict == "worse"]
    said = {"better": "better than", "worse": "worse than"}.get(whole.verdict, "not clearly different from")
    return f" It is {said} the champion {found.name}{f', and worse on {_and(worse)}' if worse else ''}."


def _items(measured: Measured, lost: Sequence[LostItem]) -> list[Table]:
    if not lost:
        return []
    items = measured.bundle.items
    rows = [
        [
            items.titles[item.item_idx],
            items.categories[item.item_idx] or "-",
            f"{measured.choice_counts[item.item_idx]}",
            f"{item.num_choices}",
            f"{item.found_before} ({item.recall_before:.2f})",
            f"{item.found_after} ({item.recall_after:.2f})",
        ]
        for item in lost
    ]
    head = ["item", "category", "choices before test", "choices in test", "champion finds", "candidate finds"]
    note = (
        f"A choice is found when the item is among the first {K} of the user who made it; in brackets the share of the "
        "choices, which is the recall of the item. Most finds lost first."
    )
    return [Table(head, rows, note=note)]


def _users(measured: Measured, found: AgainstChampion, shelf: Shelf) -> list[Strip]:
    strips = []
    now = ndcg_at_k(measured.rankings[SERVED][found.users], [measured.targets[row] for row in found.users], K)
    for row, after in zip(found.users, now, strict=True):
        user, targets = measured.users[row], set(measured.targets[row].tolist())
        for who, ranked, value in (
            ("the champion", found.ranked, found.ndcg[row]),
            ("the candidate", measured.rankings[SERVED], after),
        ):
            strips.append(
                shelf.strip(f"{user}: list of {who}, NDCG at {K} {value:.2f}", ranked[row, :NUM_LIST], targets)
            )
    return strips


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

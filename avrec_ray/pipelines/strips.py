"""Items as the cards of a report: title, category, and the middle frame where there is a picture."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from avrec_ray.catalogue import Catalogue
from avrec_ray.evaluation import pictures
from avrec_ray.evaluation.page import Card, Picture, Strip
from avrec_ray.media.clips import iter_clips
from avrec_ray.pipelines.measured import SERVED, Measured

NUM_USERS, NUM_HISTORY, NUM_LIST = 10, 10, 10


@dataclass(frozen=True, eq=False)
class Shelf:
    """Cards of a catalogue's items, by row."""

    items: Catalogue
    thumbnails: dict[int, Picture]

    def strip(self, title: str, rows: Iterable[int], hits: Collection[int] = ()) -> Strip:
        """Items in a row, those in `hits` framed; -1 stands for no item."""
        return Strip(title, [self._card(int(row), int(row) in hits) for row in rows if row >= 0])

    def _card(self, row: int, hit: bool) -> Card:
        line = self.items.categories[row] or ""
        return Card(
            self.items.titles[row], line if self.items.warm[row] else f"{line} · new", self.thumbnails.get(row), hit
        )


def fill_shelf(items: Catalogue, rows: Iterable[int], clips: Path) -> Shelf:
    """Thumbnails of `rows`: the middle frame of the first clip of each item with a picture. Reads the clips once."""
    row_of = {items.item_ids[row]: int(row) for row in rows if row >= 0}
    found: dict[int, Picture] = {}
    columns = ["item_id", "frames", "has_video"]
    for batch in iter_clips(clips, columns, batch_size=256) if any(clips.glob("*.parquet")) else ():
        for item_id, frames, has_video in zip(batch["item_id"], batch["frames"], batch["has_video"], strict=True):
            row = row_of.get(str(item_id))
            if row is not None and row not in found and has_video:
                frame: npt.NDArray[np.uint8] = frames[len(frames) // 2]
                found[row] = Picture(pictures.thumbnail(frame), "")
    return Shelf(items, found)


def shown_users(measured: Measured) -> list[int]:
    """Rows of some users, spread over all."""
    count = min(NUM_USERS, len(measured.users))
    return [int(row) for row in np.linspace(0, len(measured.users) - 1, count)]


def items_of_users(measured: Measured, users: Sequence[int], *rankings: npt.NDArray[np.int64]) -> set[int]:
    """Items that strips of these users show: the end of their histories, and the first places of `rankings`."""
    found = {int(item) for row in users for item in measured.seen[row][-NUM_HISTORY:]}
    return found | {int(item) for row in users for ranked in rankings for item in ranked[row, :NUM_LIST]}


def user_strips(measured: Measured, users: Sequence[int], shelf: Shelf) -> list[Strip]:
    """Histories and lists; what the user went on to choose is framed."""
    strips = []
    for row in users:
        user, targets = measured.users[row], set(measured.targets[row].tolist())
        listed = measured.rankings[SERVED][row, :NUM_LIST]
        shown = [int(item) for item in listed if item >= 0]
        found = sum(item in targets for item in shown)
        strips.append(shelf.strip(f"{user} watched", measured.seen[row][-NUM_HISTORY:]))
        title = f"{user} is shown ({found} of {len(targets)} later choices among the first {len(shown)})"
        strips.append(shelf.strip(title, shown, targets))
    return strips

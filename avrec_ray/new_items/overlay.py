"""A bundle that goes on changing in memory: items join behind its rows, change in place, and leave.

Files stay as they are. A row number, once given, means one item for ever: a deleted item keeps its row, which no id
leads to, and comes back, if it does, in a new one. Who reads the bundle while it changes must be kept out, as `Matcher`
and `Reranker` do with a lock.

Dimension key: N rows, deleted ones too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from avrec_ray.bundle import Bundle
from avrec_ray.catalogue import Catalogue
from avrec_ray.new_items.growing import Growing
from avrec_ray.new_items.log import Change
from avrec_ray.new_items.vectors import NewItem, item_from_bytes
from avrec_ray.retrieval.neighbours import ItemNeighbours


@dataclass(eq=False)
class Applied:
    """What a batch of changes did to the rows."""

    added: dict[int, NewItem] = field(default_factory=dict)
    """Row to item, rows ascending and all at the end; some of them may be among `removed` again."""
    updated: dict[int, NewItem] = field(default_factory=dict)
    """Rows that live and were there before."""
    removed: list[int] = field(default_factory=list)

    @property
    def living(self) -> dict[int, NewItem]:
        """Rows added or updated that were not removed afterwards."""
        gone = set(self.removed)
        return {row: item for row, item in {**self.added, **self.updated}.items() if row not in gone}


class Overlay:
    """Applies changes to catalogue, embeddings and moments of one bundle."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._arrays: dict[str, Growing] = {}

    def apply(self, changes: Sequence[Change]) -> Applied:
        """Apply changes in their order.

        Raises:
            BundleError: vectors that do not fit the bundle's towers; nothing of the batch is applied then.
        """
        towers = self.bundle.metadata.towers
        items = {c.seq: item_from_bytes(c.facts, c.vectors, towers) for c in changes if c.kind == "put"}
        done = Applied()
        for change in changes:
            row = self.bundle.items.idx(change.item_id)
            if change.kind == "delete":
                if row is not None:
                    remove_item(self.bundle.items, row)
                    done.removed.append(row)
                    done.updated.pop(row, None)
            elif row is None:
                done.added[self._add(items[change.seq])] = items[change.seq]
            else:
                self._update(row, items[change.seq])
                (done.added if row in done.added else done.updated)[row] = items[change.seq]
        return done

    def _add(self, item: NewItem) -> int:
        for name, value in _vectors(item).items():
            if name not in self._arrays:  # now, not before: a bundle that nothing joins is not copied
                self._arrays[name] = Growing(getattr(self.bundle, name))
            self._arrays[name].append(value[None])
            setattr(self.bundle, name, self._arrays[name].rows)
        return add_item(self.bundle.items, item)

    def _update(self, row: int, item: NewItem) -> None:
        for name, value in _vectors(item).items():
            getattr(self.bundle, name)[row] = value
        update_item(self.bundle.items, row, item)


def _vectors(item: NewItem) -> dict[str, npt.NDArray[np.generic]]:
    """By the name of the bundle's array."""
    return {
        "embeddings": item.embedding,
        "moments": item.moments,
        "moment_mask": item.moment_mask,
        "moment_spans": item.moment_spans,
    }


def speak_for(table: ItemNeighbours, name: str, items: Mapping[int, NewItem], bundle: Bundle) -> None:
    """Put what was predicted of cold items, by row, into a bundle's table of that name in TABLES."""
    for row, item in items.items():
        speakers = None
        if item.predicted is not None and item.predicted.model_version == bundle.metadata.model_version:
            speakers = item.predicted.speakers.get(name)
        if speakers is not None and not bundle.items.warm[row]:  # behaviour knows better
            rows = [bundle.items.idx(item_id) for item_id in speakers[0]]
            known = np.array([r is not None and r < bundle.num_built for r in rows], bool)
            table.speak_for(
                row, np.array([r for r in rows if r is not None and r < bundle.num_built], np.int64), speakers[1][known]
            )


def add_item(items: Catalogue, item: NewItem) -> int:
    """A cold row behind the last; returns its number."""
    facts, row = item.facts, len(items)
    index_of, popular_order = items.index_of, items.popular_order  # before the columns grow
    items.titles.append(facts.title)
    items.categories.append(facts.category)
    items.tags.append(list(facts.tags))
    items.creator_ids.append(facts.creator_id)
    items.languages.append(facts.language)
    items.durations = np.append(items.durations, np.float32(item.duration_seconds))
    items.popularity = np.append(items.popularity, np.float32(0))
    items.recent_popularity = np.append(items.recent_popularity, np.float32(0))
    usual = np.float32(items.choices_per_day.mean() if row else 0)  # nothing is known against it yet
    items.choices_per_day = np.append(items.choices_per_day, usual)
    items.warm = np.append(items.warm, False)
    items.item_ids.append(facts.item_id)
    items.__dict__["popular_order"] = np.append(popular_order, row)  # nobody is less popular, and ties go by row
    index_of[facts.item_id] = row
    return row


def update_item(items: Catalogue, row: int, item: NewItem) -> None:
    """Other facts for an item; what users did with it stays."""
    facts = item.facts
    items.titles[row], items.categories[row] = facts.title, facts.category
    items.tags[row], items.creator_ids[row] = list(facts.tags), facts.creator_id
    items.languages[row], items.durations[row] = facts.language, item.duration_seconds


def remove_item(items: Catalogue, row: int) -> None:
    """No id and no order leads to the row any more; its columns stay for those who hold its number."""
    order = items.popular_order
    del items.index_of[items.item_ids[row]]
    items.__dict__["popular_order"] = order[order != row]

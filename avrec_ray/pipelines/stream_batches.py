"""Pretraining batches straight from media: Ray Data decodes on CPUs while the trainers compute.

Each training worker runs a Ray Data pipeline of its own over its own share of the plan: rows that name an item and a
draw, decoded by actors, handed over in order. So which worker gets which item in which step follows from (seed, epoch)
alone; Ray Train's own streaming_split hands out blocks as they are finished and drops rows to make shards equal.
One execution spans many epochs: actors start once, and the next epoch's clips are decoded at the end of this one's.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray.data
import torch

from avrec_ray.dataclass_io import to_dict
from avrec_ray.errors import StageError
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.decode_draws import NO_DRAW, DecodeDraws
from avrec_ray.towers.item_tower import ItemInputs
from avrec_ray.training.clip_batches import Augmenter
from avrec_ray.training.epoch_plan import EpochPlan, clip_draw

_BLOCK_ITEMS = 8
"""Most items a task of an actor: what is decoded twice when an actor dies."""
_AHEAD_BATCHES = 2
"""Batches that wait decoded in the worker, and as many in Ray's object store."""
_MOST_BLOCKS = 4096
"""Blocks an execution: it spans as many epochs as that allows, but at least one."""
_PLACED = 0.001
"""Of `cluster.decode_resource` an actor takes: it says where, the CPU says how many."""
_NO_PROGRESS_SECONDS = 600.0

Batch = Mapping[str, npt.NDArray[Any]]


@dataclass(eq=False)
class MediaItems:
    """The items that can be decoded, and the clips that decode_media made of them, without their arrays."""

    item_ids: list[str]
    media_uris: list[str | None]
    word_ids: npt.NDArray[np.int64]
    """[items, S]."""
    item_idx: npt.NDArray[np.int64]
    """[clips]: item of each clip."""
    clip_idx: npt.NDArray[np.int64]
    """[clips]: number of the clip among its item's."""
    vectors: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """[items, W] of each modality that comes as a vector; see ItemInputs."""


@dataclass(kw_only=True)
class StreamSettings:
    """How a worker decodes."""

    media: MediaConfig
    decoder: str
    """Function run in the child, as "module:function"."""
    min_actors: int
    """Actors of this worker that fit in the cluster now."""
    max_actors: int
    resource: str = ""
    """Custom resource of the nodes that decode; empty: any node."""
    random_clips: bool = True
    num_epochs: int = 1


Run = Callable[[list[pa.Table], int, StreamSettings], Iterator[Batch]]
"""run(blocks, batch size, settings) -> decoded batches in the order of the blocks; another one runs without Ray."""


def decoded_batches(blocks: list[pa.Table], batch_size: int, settings: StreamSettings) -> Iterator[Batch]:
    """Batches of decoded rows in the order of the blocks, a few decoded ahead of the reader."""
    _limit(batch_size, settings)
    decoded = ray.data.from_arrow(blocks).map_batches(
        DecodeDraws,
        fn_constructor_kwargs={"config": to_dict(settings.media), "decoder": settings.decoder},
        batch_size=None,  # a block at a time: blocks are what the plan made them
        num_cpus=1,
        resources={settings.resource: _PLACED} if settings.resource else None,
        compute=ray.data.ActorPoolStrategy(
            min_size=settings.min_actors, max_size=settings.max_actors, max_tasks_in_flight_per_actor=2
        ),
    )
    batches = decoded.iter_batches(batch_size=batch_size, prefetch_batches=_AHEAD_BATCHES, batch_format="numpy")
    return iter(batches)


def _limit(batch_size: int, settings: StreamSettings) -> None:
    """Order kept, little decoded ahead, nothing dropped, no endless wait. For this process: a training worker."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = 0
    context.execution_no_progress_timeout_s = _NO_PROGRESS_SECONDS + 2 * _BLOCK_ITEMS * settings.media.timeout_seconds
    options = context.execution_options
    options.preserve_order = True
    options.resource_limits = options.resource_limits.copy(
        object_store_memory=float(2 * _AHEAD_BATCHES * batch_size * settings.media.clip_bytes)
    )


class StreamBatches:
    """Callable: epoch -> this worker's batches of that epoch. Epochs in sequence share one execution.

    An item that cannot be decoded stays in its batch as a row without any modality, which the loss and the negatives
    leave out: sizes and numbers of steps are the same on every worker. Its reason is counted in `left_out`.
    """

    def __init__(
        self,
        items: MediaItems,
        plan: EpochPlan,
        augmenter: Augmenter,
        settings: StreamSettings,
        run: Run = decoded_batches,
    ) -> None:
        self.items, self.plan, self.augmenter, self.settings, self.run = items, plan, augmenter, settings, run
        self.left_out: Counter[str] = Counter()
        self.notes: list[str] = []
        """One line an item left out."""
        self._rows: Iterator[Batch] = iter(())
        self._next_epoch, self._last_epoch = -1, -1

    @property
    def steps_per_epoch(self) -> int:
        """Steps an epoch, the same on every worker."""
        return self.plan.steps_per_epoch

    def __call__(self, epoch: int) -> Iterator[ItemInputs]:
        return self.starting_at(epoch, 0)

    def starting_at(self, epoch: int, first: int) -> Iterator[ItemInputs]:
        """The batches of an epoch from the `first`-th on; those before are not decoded."""
        if first or epoch != self._next_epoch or epoch > self._last_epoch:
            self._start(epoch, first)
        for step, rows in enumerate(self.plan.batches(epoch)[first:], first):
            batch = next(self._rows, None)
            expected = self._orders(epoch)[step]
            if batch is None or not np.array_equal(batch["order"], expected):
                got = "nothing" if batch is None else f"rows {batch['order'].tolist()}"
                raise StageError(f"epoch {epoch}, step {step}: Ray Data gave {got}, expected {expected.tolist()}")
            self._count_left_out(batch, rows)
            yield self.augmenter(self._inputs(batch, rows), epoch, step)
        self._next_epoch = epoch + 1

    def _start(self, epoch: int, first: int) -> None:
        """Begin an execution at a batch of an epoch."""
        block_items = min(_BLOCK_ITEMS, -(-self.plan.batch_size // self.settings.max_actors))
        blocks_per_epoch = max(1, -(-self.plan.batch_size * self.steps_per_epoch // block_items))
        num_epochs = max(1, min(self.settings.num_epochs - epoch, _MOST_BLOCKS // blocks_per_epoch))
        self._last_epoch = epoch + num_epochs - 1
        tables = [self.rows_of(number) for number in range(epoch, epoch + num_epochs)]
        tables[0] = tables[0].slice(first * self.plan.batch_size)
        blocks = [
            table.slice(start, block_items) for table in tables for start in range(0, table.num_rows, block_items)
        ]
        self._rows = self.run(blocks, self.plan.batch_size, self.settings)

    def rows_of(self, epoch: int) -> pa.Table:
        """What this worker's actors are asked for in an epoch, in order."""
        rows = self.plan.batches(epoch).reshape(-1)
        items = self.items.item_idx[rows]
        ids = [self.items.item_ids[item] for item in items]
        draws = [clip_draw(self.plan.seed, epoch, i) if self.settings.random_clips else NO_DRAW for i in ids]
        return pa.table(
            {
                "order": self._orders(epoch).reshape(-1),
                "item_id": pa.array(ids, pa.string()),
                "media_uri": pa.array([self.items.media_uris[item] or "" for item in items], pa.string()),
                "draw": pa.array(draws, pa.int64()),
                "clip_idx": self.items.clip_idx[rows],
            }
        )

    def _orders(self, epoch: int) -> npt.NDArray[np.int64]:
        """Numbers of this worker's rows over all epochs, [steps, batch]."""
        shape = (self.steps_per_epoch, self.plan.batch_size)
        return epoch * shape[0] * shape[1] + np.arange(shape[0] * shape[1], dtype=np.int64).reshape(shape)

    def _count_left_out(self, batch: Batch, rows: npt.NDArray[np.int64]) -> None:
        for row, reason, detail in zip(rows, batch["reason"], batch["detail"], strict=True):
            if reason:
                self.left_out[str(reason)] += 1
                self.notes.append(f"{self.items.item_ids[self.items.item_idx[row]]} left out: {reason}: {detail}")

    def _inputs(self, batch: Batch, rows: npt.NDArray[np.int64]) -> ItemInputs:
        words = torch.from_numpy(self.items.word_ids[self.items.item_idx[rows]])
        usable = torch.from_numpy(np.array(batch["reason"] == "", bool))
        # Copied: what lies in the object store may not be written to, and torch warns of it.
        return ItemInputs(
            frames=torch.from_numpy(np.array(batch["frames"])),
            log_mel=torch.from_numpy(np.array(batch["log_mel"])),
            word_ids=torch.where(usable[:, None], words, 0),
            has_video=torch.from_numpy(np.array(batch["has_video"])),
            has_audio=torch.from_numpy(np.array(batch["has_audio"])),
            **{
                f"{name}_vector": torch.where(
                    usable[:, None], torch.from_numpy(v[self.items.item_idx[rows]]), torch.nan
                )
                for name, v in self.items.vectors.items()
            },
        )

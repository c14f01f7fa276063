"""Which clips an epoch takes, in which order, on which worker: a function of (seed, epoch) and nothing else."""

import hashlib

import numpy as np
import numpy.typing as npt

from avrec_ray.training.config import PretrainConfig

Rows = npt.NDArray[np.int64]


class EpochPlan:
    """The batches of any epoch as rows of a table of clips, one clip an item.

    Items that do not fill a whole step wait for another epoch: equal shards, or the gather of negatives would hang.
    """

    def __init__(
        self,
        item_idx: Rows,
        present: npt.NDArray[np.bool_],
        cfg: PretrainConfig,
        seed: int,
        rank: int = 0,
        num_workers: int = 1,
    ) -> None:
        """`item_idx` [clips] is each clip's item; `present` [clips] says which clips hold a picture or a sound."""
        self.item_idx, self.seed, self.rank, self.num_workers = item_idx, seed, rank, num_workers
        self.rows = np.flatnonzero(present)
        self.items = np.unique(item_idx[self.rows])
        wanted = cfg.batch_size * num_workers
        self.global_batch = max(num_workers, min(wanted, len(self.items) // num_workers * num_workers))
        """Items a step over all workers; never more than there are."""
        self.batch_size = self.global_batch // num_workers
        """Items a step of this worker."""
        self.steps_per_epoch = len(self.items) // self.global_batch

    def batches(self, epoch: int) -> Rows:
        """This worker's rows of each step, [steps, batch]."""
        rng = np.random.default_rng([self.seed, epoch, 0])
        rows = rng.permutation(self.rows)
        # The first row met of each item, in shuffled order: one random clip an item.
        _, first = np.unique(self.item_idx[rows], return_index=True)
        chosen = rows[np.sort(first)][: self.steps_per_epoch * self.global_batch]
        return chosen.reshape(self.steps_per_epoch, self.global_batch)[:, self.rank :: self.num_workers]


def clip_draw(seed: int, epoch: int, item_id: str) -> int:
    """What decides the random clip of an item in an epoch: 63 bits of a hash, whoever decodes it and when.

    >>> clip_draw(0, 3, "film") == clip_draw(0, 3, "film") != clip_draw(0, 4, "film")
    True
    """
    text = f"{seed} {epoch} {item_id}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1

"""Batches of a manifest to batches of rows: a callable that any executor can run; it knows no Ray."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from avrec_ray.dataclass_io import from_dict
from avrec_ray.errors import MediaError
from avrec_ray.media.child import DEFAULT_DECODER
from avrec_ray.media.clips import ClipColumns, clip_columns, clips_table
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.decode import ItemDecoder, text_only_clip, to_clips
from avrec_ray.types import QUARANTINE, Clip


class DecodeClips:
    """Callable: columns item_id, media_uri -> a row a clip, or one row with a `reason` for an item set aside.

    Rows hold the columns of the clips table and `media_uri`, `reason` ("" for a clip) and `detail`, so that one pass
    feeds both tables. Every item of the batch comes out.
    """

    def __init__(self, config: Mapping[str, Any], decoder: str = DEFAULT_DECODER) -> None:
        self.cfg = from_dict(MediaConfig, config)
        self.decoder = ItemDecoder(self.cfg, decoder)
        # The child decodes the next file while a thread here computes the features of the last one.
        self._features = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),))

    def __call__(self, batch: Mapping[str, Any]) -> ClipColumns:
        paths = ["" if uri is None else str(uri) for uri in batch["media_uri"]]
        decoded = [self._decode(str(item_id), path) for item_id, path in zip(batch["item_id"], paths, strict=True)]
        clips: list[Clip] = []
        notes: list[tuple[str, str, str]] = []
        for path, (found, reason, detail) in zip(paths, decoded, strict=True):
            of_item = found.result() if isinstance(found, Future) else found
            clips += of_item
            notes += [(path, reason, detail)] * len(of_item)
        columns = clip_columns(clips)
        for name, values in zip(("media_uri", "reason", "detail"), zip(*notes, strict=True), strict=True):
            columns[name] = np.array(values, object)
        return columns

    def _decode(self, item_id: str, path: str) -> tuple[list[Clip] | Future[list[Clip]], str, str]:
        """Clips, or those to come, and why the item is set aside, if it is."""
        if not path:
            return [text_only_clip(item_id, self.cfg)], "", ""
        try:
            extract, digest = self.decoder.extract(path)
        except MediaError as error:
            return [text_only_clip(item_id, self.cfg)], error.reason, error.detail
        return self._features.submit(to_clips, item_id, extract, digest, self.cfg), "", ""


def split_rows(rows: Mapping[str, Any]) -> tuple[pa.Table, pa.Table]:
    """Rows of `DecodeClips` as (clips table, quarantine table), either of them possibly empty."""
    is_clip = np.asarray(rows["reason"], object) == ""
    clips = clips_table({name: np.asarray(values)[is_clip] for name, values in rows.items()})
    names = ("item_id", "media_uri", "reason", "detail")
    aside = {name: np.asarray(rows[name], object)[~is_clip].tolist() for name in names}
    aside["at"] = [datetime.now(UTC)] * len(aside["item_id"])
    return clips, pa.table(aside, schema=QUARANTINE)

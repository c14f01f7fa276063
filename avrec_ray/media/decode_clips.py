"""Batches of a manifest to batches of rows: a callable that any executor can run; it knows no Ray."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from avrec_ray.dataclass_io import from_dict
from avrec_ray.errors import MediaError
from avrec_ray.media.child import DEFAULT_DECODER
from avrec_ray.media.clips import ClipColumns, clip_columns, clips_table
from avrec_ray.media.config import MediaConfig
from avrec_ray.media.decode import ItemDecoder, text_only_clip
from avrec_ray.types import QUARANTINE, Clip


class DecodeClips:
    """Callable: columns item_id, media_uri -> a row a clip, or one row with a `reason` for an item set aside.

    Rows hold the columns of the clips table and `media_uri`, `reason` ("" for a clip) and `detail`, so that one pass
    feeds both tables. Every item of the batch comes out.
    """

    def __init__(self, config: Mapping[str, Any], decoder: str = DEFAULT_DECODER) -> None:
        self.cfg = from_dict(MediaConfig, config)
        self.decoder = ItemDecoder(self.cfg, decoder)

    def __call__(self, batch: Mapping[str, Any]) -> ClipColumns:
        clips: list[Clip] = []
        notes: list[tuple[str, str, str]] = []
        for item_id, uri in zip(batch["item_id"], batch["media_uri"], strict=True):
            path = "" if uri is None else str(uri)
            found, reason, detail = self._decode(str(item_id), path)
            clips += found
            notes += [(path, reason, detail)] * len(found)
        columns = clip_columns(clips)
        for name, values in zip(("media_uri", "reason", "detail"), zip(*notes, strict=True), strict=True):
            columns[name] = np.array(values, object)
        return columns

    def _decode(self, item_id: str, path: str) -> tuple[list[Clip], str, str]:
        if not path:
            return [text_only_clip(item_id, self.cfg)], "", ""
        try:
            return self.decoder.decode(item_id, path), "", ""
        except MediaError as error:
            return [text_only_clip(item_id, self.cfg)], error.reason, error.detail


def split_rows(rows: Mapping[str, Any]) -> tuple[pa.Table, pa.Table]:
    """Rows of `DecodeClips` as (clips table, quarantine table), either of them possibly empty."""
    is_clip = np.asarray(rows["reason"], object) == ""
    clips = clips_table({name: np.asarray(values)[is_clip] for name, values in rows.items()})
    names = ("item_id", "media_uri", "reason", "detail")
    aside = {name: np.asarray(rows[name], object)[~is_clip].tolist() for name in names}
    aside["at"] = [datetime.now(UTC)] * len(aside["item_id"])
    return clips, pa.table(aside, schema=QUARANTINE)

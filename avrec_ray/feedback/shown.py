"""What was shown, wherever that is known from: lists that the service recorded, and impressions that clients posted."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from avrec_ray.feedback.impressions import IMPRESSIONS
from avrec_ray.types import INTERACTIONS, POSITIVE_EVENTS

SHOWN = pa.schema([IMPRESSIONS.field(n) for n in ("request_id", "user_id", "item_id", "position", "propensity", "at")])
_KEYS = ["request_id", "user_id", "item_id"]


def shown_items(interactions: pa.Table, impressions: pa.Table) -> pa.Table:
    """Each item of each list once, columns SHOWN; what the service recorded goes before what a client says."""
    posted = interactions.filter(
        pc.and_(
            pc.equal(interactions["event"], "impression"),
            pc.and_(pc.is_valid(interactions["request_id"]), pc.is_valid(interactions["position"])),
        )
    )
    posted = posted.append_column("propensity", pa.nulls(posted.num_rows, pa.float64())).select(SHOWN.names)
    both = pa.concat_tables([impressions.select(SHOWN.names).cast(_nullable(SHOWN)), posted.cast(_nullable(SHOWN))])
    numbered = both.append_column("row", pa.array(np.arange(both.num_rows)))
    first = numbered.group_by(_KEYS).aggregate([("row", "min")])["row_min"]
    return both.take(pa.array(np.sort(first.to_numpy())))


def chosen_above(interactions: pa.Table, shown: pa.Table, above_last: bool) -> npt.NDArray[np.bool_]:
    """Bool [shown rows]: of a list from which its user chose something; with `above_last` above the lowest choice."""
    positive = interactions.filter(pc.is_in(interactions["event"], pa.array(POSITIVE_EVENTS))).select(_KEYS)
    chosen = shown.select([*_KEYS, "position"]).join(
        positive.group_by(_KEYS).aggregate([]), _KEYS, join_type="left semi"
    )
    lowest = chosen.group_by(["request_id", "user_id"]).aggregate([("position", "max")])
    numbered = shown.select(["request_id", "user_id", "position"]).append_column(
        "row", pa.array(np.arange(shown.num_rows))
    )
    joined = numbered.join(lowest, ["request_id", "user_id"]).sort_by("row")
    last = pc.fill_null(joined["position_max"], -1).to_numpy()
    return np.asarray((joined["position"].to_numpy() < last) if above_last else (last >= 0), bool)


def impression_rows(impressions: pa.Table) -> pa.Table:
    """Recorded impressions as rows of an interactions table, which is where training looks for places in lists."""
    columns = {f.name: pa.nulls(impressions.num_rows, f.type) for f in INTERACTIONS}
    columns |= {name: impressions[name] for name in ("user_id", "item_id", "at", "request_id", "position")}
    columns["event"] = pa.array(["impression"] * impressions.num_rows, pa.string())
    pairs = zip(impressions["request_id"].to_pylist(), impressions["item_id"].to_pylist(), strict=True)
    columns["event_id"] = pa.array([f"shown|{len(request)}|{request}|{item}" for request, item in pairs], pa.string())
    return pa.table(columns).cast(INTERACTIONS)


def _nullable(schema: pa.Schema) -> pa.Schema:
    return pa.schema([f.with_nullable(True) for f in schema])

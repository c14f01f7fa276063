"""Events to training examples: what a user thought of an item, and how much that should count.

One example for each user and item, from all that the log says of the two:

- a dislike or a report makes it negative, whatever came before; else a positive event makes it positive; else a skip
  makes it negative. Its strength is that of the strongest event of the deciding kind.
- what was watched longer than others of its duration counts more (quantiles as in D2Q, `training.watch_quantiles`).
- what exploration put before the user with a small chance counts more (inverse propensity, clipped, with mean 1).
- what was shown in a list from which something was chosen, and never acted on, is a weak negative.
- new accounts count less, and no user and no creator has more than its share of the sum (`weight_caps`).

Dimension key: E events, P pairs of a user and an item.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from avrec_ray.dataclass_io import check_choice, check_range
from avrec_ray.errors import ConfigError
from avrec_ray.feedback.event_log import EventLog, codes_of, read_log
from avrec_ray.feedback.shown import chosen_above, shown_items
from avrec_ray.feedback.weight_caps import cap_weights
from avrec_ray.training.watch_quantiles import watch_quantiles
from avrec_ray.types import NEGATIVE_EVENTS, POSITIVE_EVENTS

UNCLICKED = ("above_last_choice", "chosen_lists", "none")
NOT_CHOSEN = "unclicked"
"""`event` of an example that comes from an impression without any event."""
_FINAL = ("dislike", "report")

LABELS = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("label", pa.int8(), nullable=False),
        pa.field("weight", pa.float32(), nullable=False),
        pa.field("event", pa.string(), nullable=False),
        pa.field("at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("watch_quantile", pa.float32()),
        pa.field("request_id", pa.string()),
        pa.field("position", pa.int32()),
        pa.field("propensity", pa.float64()),
    ]
)
"""Training examples: `label` 1 or 0; `event` that decided, or "unclicked"; `at` when it came first; the last three are
of the list that it answers, null where it answers none."""


def default_strengths() -> dict[str, float]:
    """How much each event says, below 0 against the item."""
    return {
        "view": 1.0, "like": 1.5, "favorite": 1.5, "share": 2.0, "comment": 1.5, "follow": 2.0,
        "skip": -0.3, "dislike": -1.0, "report": -2.0,
    }  # fmt: skip


@dataclass(kw_only=True)
class LabelConfig:
    """What an event is worth in training."""

    strengths: dict[str, float] = field(default_factory=default_strengths)
    """By event: above 0 where it is positive, below 0 where it is negative; 0 leaves it out."""
    watch_weight: float = 0.5
    """A positive example counts from 1 - this to 1 + this, by the quantile of its watch time."""
    unclicked: str = "above_last_choice"
    """Which impressions without an event are negatives, of lists from which something was chosen: those above the
    lowest choice, which were looked at (above_last_choice), all (chosen_lists), or none."""
    unclicked_strength: float = 0.1
    max_inverse_propensity: float = 10.0
    """Largest 1 / propensity; 1: propensities are not read."""
    max_user_share: float = 0.01
    """Of the sum of weights, positive and negative each, a single user's; see `weight_caps.effective_share`."""
    max_creator_share: float = 0.2

    def __post_init__(self) -> None:
        for event, strength in self.strengths.items():
            check_choice("retrain.labels.strengths", event, (*POSITIVE_EVENTS, *NEGATIVE_EVENTS))
            if strength * (1 if event in POSITIVE_EVENTS else -1) < 0 or abs(strength) > 100:
                sign = "at least 0" if event in POSITIVE_EVENTS else "at most 0"
                raise ConfigError(f"retrain.labels.strengths.{event}={strength}; expected {sign}, within 100")
        check_range("retrain.labels.watch_weight", self.watch_weight, 0.0, 0.95)
        check_choice("retrain.labels.unclicked", self.unclicked, UNCLICKED)
        check_range("retrain.labels.unclicked_strength", self.unclicked_strength, 0.0, 100.0)
        check_range("retrain.labels.max_inverse_propensity", self.max_inverse_propensity, 1.0)
        check_range("retrain.labels.max_user_share", self.max_user_share, 1e-6, 1.0)
        check_range("retrain.labels.max_creator_share", self.max_creator_share, 1e-6, 1.0)


def label_examples(
    interactions: pa.Table,
    impressions: pa.Table,
    items: pa.Table,
    cfg: LabelConfig,
    trust: Mapping[str, float] | None = None,
) -> pa.Table:
    """Training examples, columns LABELS, a row for each user and item; in the order of the first event that counts.

    Args:
        interactions: a checked interactions table, any order.
        impressions: columns `impressions.IMPRESSIONS`; may be empty.
        items: an items table; durations and creators are read, items that it lacks have neither.
        trust: factor in [0, 1] of each user's weights, 1 where it is not named.
    """
    log, shown = read_log(interactions), shown_items(interactions, impressions)
    rows, label, deciding = _decide(log, interactions["event"], cfg)
    quantile = _longest_watch(log, interactions["watch_seconds"], _values(items, "duration_seconds"))[rows.pair]
    answered = _answered(interactions, shown, rows.first)
    strength = np.abs([cfg.strengths.get(event, 0.0) for event in deciding])
    watched = np.where(label == 1, np.nan_to_num(1 + cfg.watch_weight * (2 * quantile - 1), nan=1.0), 1.0)
    inverse = _inverse_propensity(answered["propensity"], label, cfg.max_inverse_propensity)
    acted = pa.table(
        {
            "user_id": interactions["user_id"].take(pa.array(rows.first)),
            "item_id": interactions["item_id"].take(pa.array(rows.first)),
            "label": pa.array(label, pa.int8()),
            "weight": pa.array(strength * watched * inverse),
            "event": pa.array(deciding, pa.string()),
            "at": interactions["at"].take(pa.array(rows.first)),
            "watch_quantile": pa.array(quantile, pa.float32(), from_pandas=True),
            **answered,
        }
    )
    found = pa.concat_tables([acted, _unclicked(shown, log, interactions, cfg)])
    found = found.filter(pc.greater(found["weight"], 0.0))
    weight = _capped(found, _factors(found["user_id"], trust or {}), _values(items, "creator_id"), cfg)
    place = found.schema.get_field_index("weight")
    found = found.set_column(place, "weight", pa.array(weight.astype(np.float32)))
    return found.cast(LABELS).sort_by([("at", "ascending"), ("user_id", "ascending"), ("item_id", "ascending")])


def target_weights_of(interactions: pa.Table, labels: pa.Table) -> npt.NDArray[np.float32]:
    """float32 [E]: weight of each event as a target of training: that of its user and item, 0 where that is negative.

    Training takes a user's first positive event on an item as the target, and the weight says what came of all of them.
    """
    positive = labels.filter(pc.equal(labels["label"], 1)).select(["user_id", "item_id", "weight"])
    order = pa.array(np.arange(interactions.num_rows))
    keyed = interactions.select(["user_id", "item_id"]).append_column("row", order)
    joined = keyed.join(positive, ["user_id", "item_id"]).sort_by("row")
    return pc.fill_null(joined["weight"], 0.0).to_numpy().astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Of each pair with an example [P]: the first event that counts, and its number among all pairs."""

    first: npt.NDArray[np.int64]
    pair: npt.NDArray[np.int64]


def _decide(
    log: EventLog, events: pa.ChunkedArray, cfg: LabelConfig
) -> tuple[_Rows, npt.NDArray[np.int8], npt.NDArray[np.object_]]:
    """Which pairs make an example, its label [P], and the event that decided [P]."""
    event, known = codes_of(events)
    names = np.asarray(known, object)
    strength = np.array([cfg.strengths.get(name, 0.0) for name in known], np.float64)[event]
    counts = log.is_acted & (strength != 0)
    _, pair = np.unique(log.pair, return_inverse=True)
    num_pairs = int(pair.max(initial=-1)) + 1
    is_final = counts & np.isin(names, _FINAL)[event]
    has_final = np.bincount(pair[is_final], minlength=num_pairs) > 0
    has_positive = np.bincount(pair[counts & log.is_positive], minlength=num_pairs) > 0
    label = (has_positive & ~has_final).astype(np.int8)
    # Of a pair's events only those of the deciding kind count: final ones, else positive ones, else skips.
    decides = counts & np.where(has_final[pair], is_final, np.where(has_positive[pair], log.is_positive, True))
    candidates = np.flatnonzero(decides)
    by_time = candidates[np.lexsort((candidates, log.at_us[candidates], pair[candidates]))]
    by_strength = candidates[np.lexsort((log.at_us[candidates], -np.abs(strength[candidates]), pair[candidates]))]
    found, first = np.unique(pair[by_time], return_index=True)
    _, strongest = np.unique(pair[by_strength], return_index=True)
    return _Rows(by_time[first], found), label[found], names[event[by_strength[strongest]]]


def _longest_watch(
    log: EventLog, watch_seconds: pa.ChunkedArray, duration_of: Mapping[str, float]
) -> npt.NDArray[np.float32]:
    """float32 [pairs]: the highest quantile of watch time among a pair's events, NaN where none is known."""
    durations = np.array([duration_of.get(item_id) or np.nan for item_id in log.item_ids], np.float32)[log.item]
    ratio = watch_seconds.to_numpy().astype(np.float32) / np.where(durations > 0, durations, np.nan)
    quantile = watch_quantiles(ratio.astype(np.float32), durations)
    _, pair = np.unique(log.pair, return_inverse=True)
    longest = np.full(int(pair.max(initial=-1)) + 1, np.nan, np.float32)
    np.fmax.at(longest, pair, quantile)
    return longest


def _answered(interactions: pa.Table, shown: pa.Table, rows: npt.NDArray[np.int64]) -> dict[str, pa.ChunkedArray]:
    """The list that each of `rows` answers. An event by another user than the list was for answers none."""
    keys = ["request_id", "user_id", "item_id"]
    asked = interactions.select(keys).take(pa.array(rows)).append_column("row", pa.array(np.arange(len(rows))))
    joined = asked.join(shown.select([*keys, "position", "propensity"]), keys).sort_by("row")
    is_known = pc.is_valid(joined["position"])
    request_id = pc.if_else(is_known, joined["request_id"], pa.scalar(None, pa.string()))
    return {"request_id": request_id, "position": joined["position"], "propensity": joined["propensity"]}


def _inverse_propensity(
    propensity: pa.ChunkedArray, label: npt.NDArray[np.int8], largest: float
) -> npt.NDArray[np.float64]:
    """Clipped 1 / propensity of positive examples, divided by the mean of those where it is known; else 1."""
    known = propensity.to_numpy().astype(np.float64)
    inverse = np.ones(len(known))
    rows = ~np.isnan(known) & (label == 1)
    if rows.any():
        clipped = np.minimum(1 / np.maximum(known[rows], 1e-12), largest)
        inverse[rows] = clipped / clipped.mean()
    return inverse


def _unclicked(shown: pa.Table, log: EventLog, interactions: pa.Table, cfg: LabelConfig) -> pa.Table:
    """Weak negatives: what was shown beside a choice, to a user who never acted on it; once a pair."""
    columns = {f.name: pa.array([], f.type) for f in LABELS if f.name != "weight"} | {"weight": pa.array([], "f8")}
    empty = pa.table(columns).select([f.name for f in LABELS])
    if cfg.unclicked == "none" or not cfg.unclicked_strength or not shown.num_rows:
        return empty
    wanted = shown.filter(pa.array(chosen_above(interactions, shown, cfg.unclicked == "above_last_choice")))
    acted = interactions.filter(pa.array(log.is_acted)).select(["user_id", "item_id"])
    fresh = wanted.join(acted, ["user_id", "item_id"], join_type="left anti")
    fresh = fresh.sort_by([(name, "ascending") for name in ("at", "request_id", "position")])
    keys = [
        f"{user}\0{item}" for user, item in zip(*(fresh[n].to_pylist() for n in ("user_id", "item_id")), strict=True)
    ]
    _, first = np.unique(np.asarray(keys, object).astype(str), return_index=True)
    kept = fresh.take(pa.array(np.sort(first).astype(np.int64)))
    num = kept.num_rows
    values = {
        "label": pa.array(np.zeros(num, np.int8)),
        "weight": pa.array(np.full(num, cfg.unclicked_strength)),
        "event": pa.array([NOT_CHOSEN] * num, pa.string()),
        "watch_quantile": pa.nulls(num, pa.float32()),
    }
    return pa.table({f.name: values.get(f.name, kept[f.name] if f.name in kept.column_names else None) for f in LABELS})


def _factors(users: pa.ChunkedArray, trust: Mapping[str, float]) -> npt.NDArray[np.float64]:
    codes, names = codes_of(users)
    return np.array([trust.get(name, 1.0) for name in names], np.float64)[codes]


def _capped(
    found: pa.Table, trust: npt.NDArray[np.float64], creator_of: Mapping[str, str], cfg: LabelConfig
) -> npt.NDArray[np.float64]:
    """Weights with trust and caps; positives and negatives have caps of their own, so that neither makes room."""
    weight = found["weight"].to_numpy() * trust
    label = found["label"].to_numpy()
    users, _ = codes_of(found["user_id"])
    items, item_ids = codes_of(found["item_id"])
    creators, _ = codes_of(pa.chunked_array([pa.array([creator_of.get(i) for i in item_ids], pa.string())]))
    of_creator = creators[items] if len(items) else items
    for side in (0, 1):
        rows = np.flatnonzero(label == side)
        caps = [(users[rows], cfg.max_user_share), (of_creator[rows], cfg.max_creator_share)]
        weight[rows] = cap_weights(weight[rows], caps)
    return weight


def _values(items: pa.Table, name: str) -> dict[str, Any]:
    return dict(zip(items["item_id"].to_pylist(), items[name].to_pylist(), strict=True))

"""How much less a low place is looked at, from what was shown and chosen, without an experiment.

What is shown below is chosen less because it is seen less, and a model that learns from choices would take it for
worse. Choices are therefore weighed by the inverse of how often their place is looked at (Joachims, Swaminathan &
Schnabel, Unbiased Learning-to-Rank with Biased Feedback, 2017).

Dimension key: E impressions, P places.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from avrec_ray.types import POSITIVE_EVENTS

Rows = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]
MAX_PLACES = 100
MIN_CHOSEN = 200
"""Choices below which nothing can be told; all places then count the same."""
MAX_WEIGHT = 10.0
"""Of a choice: the places that are hardly looked at would otherwise decide everything."""


def impressions_of(interactions: pa.Table, item_index: Mapping[str, int]) -> tuple[Rows, Rows, npt.NDArray[np.bool_]]:
    """Item, place and whether it was chosen from there, of each impression whose request and place are known.

    An impression was chosen if the user has a positive event on the item with the same request_id.

    Args:
        interactions: a checked interactions table.
        item_index: row in the catalogue of each item; others are left out.
    """
    keys = ["request_id", "user_id", "item_id"]
    known = interactions.filter(
        pc.and_(pc.is_valid(interactions["request_id"]), pc.is_in(interactions["item_id"], pa.array(list(item_index))))
    )
    shown = known.filter(pc.and_(pc.equal(known["event"], "impression"), pc.greater_equal(known["position"], 1)))
    chosen = known.filter(pc.is_in(known["event"], pa.array(POSITIVE_EVENTS))).select(keys)
    once = chosen.group_by(keys).aggregate([])
    once = once.append_column("chosen", pa.array(np.ones(once.num_rows, np.bool_)))
    joined = shown.select([*keys, "position"]).join(once, keys)
    item_idx = np.array([item_index[item_id] for item_id in joined["item_id"].to_pylist()], np.int64)
    position = joined["position"].to_numpy().astype(np.int64)
    return item_idx, position, pc.fill_null(joined["chosen"], False).to_numpy()


def examined_shares(item_idx: Rows, position: Rows, chosen: npt.NDArray[np.bool_]) -> Values:
    """How often each place is looked at relative to the first, float64 [P], 1 where nothing can be told.

    An item that was shown at two places is as good at both, so what its choices differ by is the places' doing. The
    ratios of all pairs of places are joined by weighted least squares on their logarithms, after the AllPairs estimator
    of Agarwal et al., Estimating Position Bias without Intrusive Interventions, 2019.

    Args:
        item_idx, position, chosen: parallel arrays of impressions [E]; positions count from 1, those above MAX_PLACES
            are left out.

    Raises:
        ValueError: a position is below 1.
    """
    if (position < 1).any():
        raise ValueError(f"position {position.min()}; expected places counted from 1")
    kept = position <= MAX_PLACES
    item_idx, position, chosen = item_idx[kept], position[kept], chosen[kept]
    num_places = int(position.max(initial=1))
    if chosen.sum() < MIN_CHOSEN or num_places < 2:
        return np.ones(num_places)
    items, item = np.unique(item_idx, return_inverse=True)
    cell = item * num_places + position - 1
    shown_IP, chosen_IP = (
        np.bincount(cell, counted, len(items) * num_places).astype(np.float64).reshape(-1, num_places)
        for counted in (np.ones(len(cell)), chosen)
    )
    return _joined(*_pair_ratios(shown_IP, chosen_IP))


def choice_weights(position: Rows, examined_P: Values) -> npt.NDArray[np.float32]:
    """What each choice counts: 1 over how often its place is looked at, at most MAX_WEIGHT; 1 where it is not known.

    Args:
        position: place from 1 of each choice, 0 where it came from no list; below the last place known counts as there.
    """
    share = examined_P[np.clip(position, 1, len(examined_P)) - 1]
    weight = np.minimum(1.0 / np.maximum(share, 1e-9), MAX_WEIGHT)
    return np.where(position > 0, weight, 1.0).astype(np.float32)


def _pair_ratios(shown_IP: Values, chosen_IP: Values) -> tuple[Values, Values]:
    """Log of how much more place k is chosen than place l [P, P], and how sure that is; of items shown at both."""
    num_places = shown_IP.shape[1]
    log_ratio_PP, certainty_PP = np.zeros((num_places, num_places)), np.zeros((num_places, num_places))
    for k in range(num_places):
        both_IP = (shown_IP[:, k : k + 1] > 0) & (shown_IP > 0)
        # As many views at either place: an item shown often above and once below would bring its one view's chance.
        least_IP = np.minimum(shown_IP[:, k : k + 1], shown_IP) * both_IP
        rate_I, rate_IP = (c / np.maximum(s, 1) for c, s in ((chosen_IP[:, k], shown_IP[:, k]), (chosen_IP, shown_IP)))
        here_P, there_P = (least_IP * rate_I[:, None]).sum(0), (least_IP * rate_IP).sum(0)
        told_P = (here_P > 0) & (there_P > 0)
        log_ratio_PP[k, told_P] = np.log(here_P[told_P] / there_P[told_P])
        certainty_PP[k, told_P] = 1 / (1 / here_P[told_P] + 1 / there_P[told_P])  # variance of a log of two counts
    return log_ratio_PP, certainty_PP


def _joined(log_ratio_PP: Values, certainty_PP: Values) -> Values:
    """Shares [P] whose logs differ as the ratios say, relative to the first place; no place is above 1.

    A weak pull between neighbours fills places of which nothing is known.
    """
    num_places = len(log_ratio_PP)
    pull = 1e-3 * (np.eye(num_places, k=1) + np.eye(num_places, k=-1))
    weight_PP = (certainty_PP + certainty_PP.T) / 2 * (1 - np.eye(num_places)) + pull
    laplacian = np.diag(weight_PP.sum(1)) - weight_PP
    said = ((weight_PP - pull) * (log_ratio_PP - log_ratio_PP.T) / 2).sum(1)
    log_share = np.zeros(num_places)
    log_share[1:] = np.linalg.solve(laplacian[1:, 1:], said[1:])
    return np.asarray(np.minimum(np.exp(log_share), 1.0))

"""Towers of one catalogue taken over to another: weights as they are, id vectors by item."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from avrec_ray.errors import CheckpointError

IDS = "item.ids.weight"
"""Tensor of TwoTower with a row an item."""
ENCODERS = "item.encoders."


def carry_over(
    towers: nn.Module, weights: Mapping[str, Tensor], known_ids: Sequence[str], item_ids: Sequence[str]
) -> int:
    """Load the weights of towers over the items `known_ids` into `towers` over `item_ids`, rows in those orders.

    Items that are new keep the id vector that they were drawn with. Returns how many are known.

    Raises:
        CheckpointError: other tensors or shapes than `towers` has, but for the number of items.
    """
    state = towers.state_dict()
    for name in sorted(set(state) ^ set(weights)):
        where = "champion" if name in weights else "towers"
        raise CheckpointError(f"tensor {name!r} is only in the {where}; the towers' configs differ, run jobs.full_loop")
    rows = weights[IDS]
    if len(rows) != max(len(known_ids), 1):
        raise CheckpointError(f"{IDS} has {len(rows)} rows for {len(known_ids)} items; the champion's bundle is mixed")
    merged = dict(weights) | {IDS: state[IDS].clone()}
    for name, value in merged.items():
        if value.shape != state[name].shape:
            raise CheckpointError(
                f"tensor {name!r} has shape {tuple(value.shape)}, expected {tuple(state[name].shape)}; the towers' "
                "configs differ, run jobs.full_loop"
            )
    row_of = {item_id: row for row, item_id in enumerate(known_ids)}
    found = [(place, row_of[item_id]) for place, item_id in enumerate(item_ids) if item_id in row_of]
    if found:
        places, known = torch.tensor(found).T
        merged[IDS][places] = rows[known]
    towers.load_state_dict(merged)
    return len(found)

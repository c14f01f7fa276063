"""Users and edges tables, and behaviour, to the profiles that the user tower reads."""

import numpy as np
import pyarrow as pa

from avrec_ray.towers.config import TowersConfig
from avrec_ray.training.friends import Friendships, friendships, weighted_pairs
from avrec_ray.training.histories import POSITIVE_CODES, EventColumns
from avrec_ray.training.profiles import UserProfiles, hash_attributes


def profiles_from_tables(
    users: pa.Table | None, edges: pa.Table | None, columns: EventColumns, towers: TowersConfig
) -> UserProfiles:
    """Profiles of everybody in the tables, in order of `user_id`.

    Args:
        users: checked users table; None where the towers read no attributes.
        edges: checked edges table; None where they read no friends.
        columns: the behaviour that friends' choices are taken from; only what the towers were fitted on.
    """
    rows = [] if users is None else users.select(["user_id", "attributes"]).to_pylist()
    attributes_of = {row["user_id"]: row["attributes"] for row in rows}
    weight_of = {} if edges is None else weighted_pairs(edges)
    user_ids = sorted({*attributes_of, *(user_id for pair in weight_of for user_id in pair)})
    ids = hash_attributes([attributes_of.get(user_id) for user_id in user_ids], max(towers.num_attribute_buckets, 1))
    friends: Friendships | None = None
    if edges is not None:
        chosen = np.isin(columns.event, POSITIVE_CODES)
        friends = friendships(user_ids, weight_of, columns, chosen, towers.num_friends, towers.friend_items)
    return UserProfiles(user_ids, ids, friends)

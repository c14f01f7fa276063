"""Clips and behaviour to embeddings: encoders, fusion, the item tower, the user tower and their losses."""

from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.item_tower import ItemInputs, ItemTokens, ItemTower
from avrec_ray.towers.two_tower import HistoryBatch, TwoTower
from avrec_ray.towers.user_tower import UserTower

__all__ = ["HistoryBatch", "ItemInputs", "ItemTokens", "ItemTower", "TowersConfig", "TwoTower", "UserTower"]

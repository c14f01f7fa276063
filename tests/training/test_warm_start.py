"""Towers of one catalogue taken over to another."""

import pytest
import torch

from avrec_ray.errors import CheckpointError
from avrec_ray.towers.two_tower import TwoTower
from avrec_ray.training.warm_start import IDS, carry_over
from tests.tiny_models import tiny_towers

CFG = tiny_towers()


def test_weights_stay_and_id_vectors_follow_their_items() -> None:
    torch.manual_seed(0)
    before = TwoTower(CFG, 3)
    after = TwoTower(CFG, 4)
    drawn = after.item.ids.weight.detach().clone()
    assert carry_over(after, before.state_dict(), ["a", "b", "c"], ["b", "new", "c", "newer"]) == 2
    found, known = after.state_dict(), before.state_dict()
    assert torch.equal(found[IDS], torch.stack([known[IDS][1], drawn[1], known[IDS][2], drawn[3]]))
    assert all(torch.equal(found[name], known[name]) for name in found if name != IDS)


def test_same_catalogue_gives_the_same_towers() -> None:
    before, after = TwoTower(CFG, 3), TwoTower(CFG, 3)
    assert carry_over(after, before.state_dict(), ["a", "b", "c"], ["a", "b", "c"]) == 3
    assert all(torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items())


def test_no_item_in_common_keeps_what_was_drawn() -> None:
    before, after = TwoTower(CFG, 1), TwoTower(CFG, 1)
    drawn = after.item.ids.weight.detach().clone()
    assert carry_over(after, before.state_dict(), ["a"], ["b"]) == 0
    assert torch.equal(after.item.ids.weight, drawn)


def test_other_towers_are_refused_by_the_tensor() -> None:
    wider = TwoTower(tiny_towers(embedding_dim=12), 2)
    with pytest.raises(CheckpointError, match=r"has shape .* expected .* run jobs.full_loop"):
        carry_over(TwoTower(CFG, 2), wider.state_dict(), ["a", "b"], ["a", "b"])
    deeper = TwoTower(tiny_towers(user_layers=3), 2)
    with pytest.raises(CheckpointError, match=r"is only in the champion"):
        carry_over(TwoTower(CFG, 2), deeper.state_dict(), ["a", "b"], ["a", "b"])


def test_rows_that_are_not_the_items_are_refused() -> None:
    with pytest.raises(CheckpointError, match="has 2 rows for 3 items"):
        carry_over(TwoTower(CFG, 3), TwoTower(CFG, 2).state_dict(), ["a", "b", "c"], ["a", "b", "c"])

"""Pretraining batches from cached tokens: one clip an item with its text, and only where there is a pair to compare."""

import torch

from avrec_ray.towers.item_tower import ClipFeatures, ItemTokens, ItemTower
from avrec_ray.training.config import PretrainConfig
from avrec_ray.training.feature_batches import FeatureBatches, num_pairs
from avrec_ray.training.steps import PretrainStep
from tests.tiny_models import random_tokens, tiny_towers

GIVEN = {
    "video_encoder": "precomputed", "video_width": 32, "audio_encoder": "precomputed", "audio_width": 24,
    "text_encoder": "precomputed", "text_width": 3,
}  # fmt: skip
CFG = tiny_towers(**GIVEN)


def numbered(num_items: int) -> ItemTokens:
    """Tokens that say their item and clip: 10 x item + clip."""
    items = random_tokens(CFG, num_items)
    for name, tokens in items.tokens.items():
        clips = torch.arange(tokens.shape[1])[None, :, None]
        items.tokens[name] = (10 * torch.arange(num_items)[:, None, None] + clips).expand_as(tokens).float()
    return items


def batches_of(items: ItemTokens, rank: int = 0, num_workers: int = 1, batch_size: int = 4) -> FeatureBatches:
    return FeatureBatches(items, CFG.max_clips, PretrainConfig(batch_size=batch_size), 3, rank, num_workers)


def test_batch_holds_one_clip_an_item_with_its_text() -> None:
    clips: set[int] = set()
    for epoch in range(10):
        rows = list(batches_of(numbered(8))(epoch))
        for batch in rows:
            assert torch.equal(batch.video[:, 0, 0], batch.audio[:, 0, 0])
            assert torch.equal(batch.video[:, 0, 0] // 10, batch.text[:, 0, 0] // 10)
            assert batch.presence()["text"].all()
        items = torch.cat([batch.video[:, 0, 0] for batch in rows])
        assert sorted((items // 10).tolist()) == list(range(8))
        clips |= set(items.int().tolist())
    assert clips == {10 * item + clip for item in range(8) for clip in range(CFG.max_clips)}


def test_clips_without_a_pair_are_left_out() -> None:
    items = numbered(8)
    items.masks["text"][:4] = False
    items.masks["audio"][0] = False  # video alone
    items.masks["audio"][1, 1] = False  # its second clip is video alone
    items.masks["video"][7] = items.masks["audio"][7] = False  # text alone
    seen: set[int] = set()
    for epoch in range(20):
        for batch in batches_of(items, batch_size=2)(epoch):
            seen |= {int(item) for item in torch.where(batch.has_video, batch.video[:, 0, 0], batch.text[:, 0, 0])}
    assert {value // 10 for value in seen} == set(range(1, 7))
    assert 11 not in seen
    assert num_pairs(items) == 6


def test_workers_share_the_whole_step() -> None:
    whole = list(batches_of(numbered(12))(1))
    shards = [list(batches_of(numbered(12), rank, 2, batch_size=2)(1)) for rank in range(2)]
    for step, batch in enumerate(whole):
        for rank in range(2):
            assert torch.equal(shards[rank][step].audio, batch.audio[rank::2])


def test_step_learns_from_features() -> None:
    torch.manual_seed(0)
    items = random_tokens(CFG, 8)
    step = PretrainStep(ItemTower(CFG))
    optimizer = torch.optim.Adam(step.parameters(), 1e-2)
    losses = []
    for epoch in range(60):
        for batch in batches_of(items, batch_size=8)(epoch):
            assert isinstance(batch, ClipFeatures)
            loss = step(batch)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])

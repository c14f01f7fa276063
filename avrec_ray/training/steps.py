"""One step of pretraining and one of fine-tuning: a batch to its losses. Modules, so that DDP can wrap them.

DDP averages gradients over W workers; each step's loss is this worker's sum x W / (count over all workers), so that
2 workers x b give the gradient of 1 x 2b.

Dimension key: B batch, G gathered batch, D embedding, O modalities, L history length, V candidates, U items embedded.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from avrec_ray.towers.item_tower import ClipFeatures, ItemInputs, ItemTokens, ItemTower, rows_of
from avrec_ray.towers.losses import (
    contrast_pair,
    corrected_softmax,
    gbce,
    modality_pairs,
    retrieved_first,
    sampled_softmax,
    sigmoid_pair,
)
from avrec_ray.towers.two_tower import TwoTower
from avrec_ray.training.auxiliary import AuxiliaryHeads, auxiliary_losses
from avrec_ray.training.config import FinetuneConfig
from avrec_ray.training.distributed import gather_rows, world
from avrec_ray.training.sequence_batches import SequenceBatch
from avrec_ray.types import MODALITIES


class PretrainStep(nn.Module):
    """Contrast between every two modalities that an item has, negatives from all workers."""

    def __init__(self, tower: ItemTower, loss: str = "infonce", chunk_size: int = 0) -> None:
        """`loss` is infonce or siglip; only the latter has a bias, which starts at -10 as most pairs are no pairs.

        With a `chunk_size` the encoders run that many items at a time and once more in the backward pass, so that
        memory is that of a chunk while every item still meets the whole batch (GradCache, Gao et al. 2021).
        """
        super().__init__()
        self.tower, self.chunk_size = tower, chunk_size
        self.log_scale = nn.Parameter(torch.tensor(2.3))
        self.bias = nn.Parameter(torch.tensor(-10.0)) if loss == "siglip" else None

    def forward(self, batch: ItemInputs | ClipFeatures) -> dict[str, Tensor]:
        """`loss` to minimise, each pair's mean loss, how often its items are retrieved first, and the scale."""
        rank, num_workers = world()
        vectors = self._vectors(batch)
        presence = batch.presence()
        gathered = gather_rows(torch.cat([vectors[name] for name in MODALITIES], 1)).chunk(len(MODALITIES), 1)
        gathered_presence = gather_rows(torch.stack([presence[name] for name in MODALITIES], 1).float()) > 0
        scale = self.log_scale.clamp(max=4.6).exp()
        losses: dict[str, Tensor] = {}
        shown: dict[str, Tensor] = {"scale": scale.detach()}
        for first, second in modality_pairs(MODALITIES):
            i, j = MODALITIES.index(first), MODALITIES.index(second)
            both_B = presence[first] & presence[second]
            both_G = gathered_presence[:, i] & gathered_presence[:, j]
            ends = (vectors[first], vectors[second], gathered[i], gathered[j], both_B, both_G, rank)
            share = num_workers / both_G.sum().clamp(min=1)
            losses[f"{first}_{second}"] = self._pair_loss(*ends, scale) * share
            shown |= {f"{first}_{second}_top1": self._top1(*ends) * share}
        return {"loss": torch.stack(list(losses.values())).sum(), **losses, **shown}

    def _vectors(self, batch: ItemInputs | ClipFeatures) -> dict[str, Tensor]:
        """Unit vectors [B, D] of each modality."""
        num_items = len(next(iter(batch.presence().values())))
        if not self.chunk_size or self.chunk_size >= num_items:
            return self._embed(batch)
        starts = range(0, num_items, self.chunk_size)
        # Draws of dropout are repeated in the backward pass (preserve_rng_state, the default).
        chunks = [
            checkpoint(self._embed, rows_of(batch, slice(start, start + self.chunk_size)), use_reentrant=False)
            for start in starts
        ]
        return {name: torch.cat([chunk[name] for chunk in chunks]) for name in MODALITIES}

    def _embed(self, batch: ItemInputs | ClipFeatures) -> dict[str, Tensor]:
        return self.tower.contrast(self.tower.encode_clips(batch))

    def _pair_loss(
        self,
        a_BD: Tensor,
        b_BD: Tensor,
        a_GD: Tensor,
        b_GD: Tensor,
        both_B: Tensor,
        both_G: Tensor,
        rank: int,
        scale: Tensor,
    ) -> Tensor:
        if self.bias is None:
            return contrast_pair(a_BD, b_BD, a_GD, b_GD, both_B, both_G, rank, scale)
        return sigmoid_pair(a_BD, b_GD, both_B, both_G, rank, scale, self.bias)

    @torch.no_grad()
    def _top1(
        self, a_BD: Tensor, b_BD: Tensor, a_GD: Tensor, b_GD: Tensor, both_B: Tensor, both_G: Tensor, rank: int
    ) -> Tensor:
        """Anchors of this worker that find their own other half first, the mean of both directions."""
        forward = retrieved_first(a_BD, b_GD, both_B, both_G, rank)
        return (forward + retrieved_first(b_BD, a_GD, both_B, both_G, rank)) / 2


class FinetuneStep(nn.Module):
    """Next-item softmax of the user tower's queries against fused item embeddings."""

    def __init__(self, towers: TwoTower, items: ItemTokens, warm: Tensor, cfg: FinetuneConfig | None = None) -> None:
        """`items` are the cached tokens of the catalogue, `warm` bool [N] marks items with training behaviour."""
        super().__init__()
        self.towers, self.cfg = towers, cfg or FinetuneConfig()
        self.heads = AuxiliaryHeads(towers.cfg.embedding_dim) if self.cfg.auxiliary_weights else None
        # Buffers, so that `.to(device)` moves them; not persistent, so that checkpoints hold the model alone.
        for name in MODALITIES:
            self.register_buffer(f"{name}_tokens", items.tokens[name], persistent=False)
            self.register_buffer(f"{name}_mask", items.masks[name], persistent=False)
        self.register_buffer("warm", warm, persistent=False)

    def forward(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """`loss` to minimise: weighted mean cross entropy over all targets of the step, and what heads add to it."""
        _, num_workers = world()
        read = [batch.history.item_rows(), batch.candidate_idx]
        if batch.auxiliary is not None:
            read.append(batch.target_idx.flatten())  # what was skipped is no candidate
        used_U = torch.unique(torch.cat(read))
        row_of_item = self._positions(used_U)
        embeddings_UD = self.towers.embed_items(self._tokens(used_U), used_U, cast(Tensor, self.warm)[used_U])
        queries_BLD = self.towers.queries(batch.history, embeddings_UD, row_of_item)
        chosen_BL = batch.weight > 0
        column_of_item = self._positions(batch.candidate_idx)
        loss_Q = self._loss(
            queries_BLD[chosen_BL],
            embeddings_UD[row_of_item[batch.candidate_idx]],
            column_of_item[batch.target_idx[chosen_BL]],
            self._barred(batch, chosen_BL),
            batch.log_q,
        )
        loss = (loss_Q * batch.weight[chosen_BL]).sum() * num_workers / max(batch.total_weight, 1e-9)
        extra = self._auxiliary(batch, queries_BLD, embeddings_UD, row_of_item)
        shown = {name: value.detach() * num_workers for name, value in extra.items()}
        for name, value in extra.items():
            loss = loss + self.cfg.auxiliary_weights[name] * num_workers * value
        return {"loss": loss, **shown, "scale": self.towers.scale().detach()}

    def _auxiliary(
        self, batch: SequenceBatch, queries_BLD: Tensor, embeddings_UD: Tensor, row_of_item: Tensor
    ) -> dict[str, Tensor]:
        """This worker's share of each auxiliary loss."""
        if self.heads is None or batch.auxiliary is None or batch.auxiliary_totals is None:
            return {}
        known_BL = (~batch.auxiliary.isnan()).any(-1)
        items_QD = embeddings_UD[row_of_item[batch.target_idx[known_BL]]]
        logits_QH = self.heads(queries_BLD[known_BL], items_QD)
        wanted = self.cfg.auxiliary_weights
        return auxiliary_losses(logits_QH, batch.auxiliary[known_BL], batch.auxiliary_totals, wanted)

    def _tokens(self, rows: Tensor) -> ItemTokens:
        return ItemTokens(
            {name: getattr(self, f"{name}_tokens")[rows] for name in MODALITIES},
            {name: getattr(self, f"{name}_mask")[rows] for name in MODALITIES},
        )

    def _positions(self, items: Tensor) -> Tensor:
        """int64 [N]: where each catalogue row stands in `items`; 0 for rows that are not in it."""
        positions = items.new_zeros(len(cast(Tensor, self.warm)))
        positions[items] = torch.arange(len(items), device=items.device)
        return positions

    def _loss(
        self, queries_QD: Tensor, candidates_VD: Tensor, target_Q: Tensor, barred_QV: Tensor, log_q_V: Tensor | None
    ) -> Tensor:
        """Loss of each query, [Q], as `finetune.loss` says."""
        scale = self.towers.scale()
        if self.cfg.loss == "gbce":
            num_items = int(cast(Tensor, self.warm).sum())
            return gbce(queries_QD, candidates_VD, target_Q, barred_QV, scale, num_items, self.cfg.gbce_calibration)
        softmax = corrected_softmax if self.cfg.loss == "corrected" else sampled_softmax
        return softmax(queries_QD, candidates_VD, target_Q, barred_QV, scale, log_q_V)

    def _barred(self, batch: SequenceBatch, chosen_BL: Tensor) -> Tensor:
        """True [Q, V] where a candidate is no negative: the user's own, as `mask_own` says, or drawn for others."""
        own_QV = BARRED_ITEMS[self.cfg.mask_own](batch, chosen_BL, len(cast(Tensor, self.warm)))
        return own_QV if batch.is_negative is None else own_QV | ~batch.is_negative[None, :]


def _own_window(batch: SequenceBatch, chosen_BL: Tensor, num_items: int) -> Tensor:
    """Candidates anywhere in the query's own window: seen or chosen by the user."""
    # Positions without an item point past the catalogue, so that every write is `True`: order cannot matter.
    history_BL = batch.history.item_idx.masked_fill(~batch.history.mask, num_items)
    target_BL = batch.target_idx.masked_fill(~chosen_BL, num_items)
    own_BN = chosen_BL.new_zeros(len(chosen_BL), num_items + 1)
    own_BN.scatter_(1, torch.cat([history_BL, target_BL], 1), True)
    return own_BN[:, batch.candidate_idx].repeat_interleave(chosen_BL.sum(1), 0)


def _own_history(batch: SequenceBatch, chosen_BL: Tensor, num_items: int) -> Tensor:
    """Candidates that the user had met by the time of the query."""
    length = chosen_BL.shape[1]
    history_BL = batch.history.item_idx.masked_fill(~batch.history.mask, num_items)
    places_BL = torch.arange(length, device=chosen_BL.device).expand_as(history_BL)
    first_BN = history_BL.new_full((len(chosen_BL), num_items + 1), length)
    first_BN.scatter_reduce_(1, history_BL, places_BL, "amin")
    user_Q, place_Q = torch.nonzero(chosen_BL, as_tuple=True)
    return first_BN[:, batch.candidate_idx][user_Q] <= place_Q.unsqueeze(1)


def _own_none(batch: SequenceBatch, chosen_BL: Tensor, num_items: int) -> Tensor:
    """No candidate; `sampled_softmax` leaves out the target itself."""
    return chosen_BL.new_zeros(int(chosen_BL.sum()), len(batch.candidate_idx))


BARRED_ITEMS: dict[str, Callable[[SequenceBatch, Tensor, int], Tensor]] = {
    "window": _own_window,
    "history": _own_history,
    "none": _own_none,
}
"""Choices of `finetune.mask_own`."""

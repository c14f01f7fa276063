"""The attention reranker: user interests and item moments attend to each other by distance.

a_ij = softmax over all pairs of -d(u_i, v_j) / tau, with d the Euclidean distance: close pairs attend more.
r = sum_ij a_ij w_ij, with learned w_ij = f(u_i, v_j, how item i was watched), a head for each target. The score of a
candidate never depends on the other candidates.

Dimension key: B batch, I interests, M moments, K candidates, D embedding, H hidden, T targets.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avrec_ray.ranking.config import NUM_CONTEXT, TARGETS, RerankerConfig
from avrec_ray.types import EVENTS


def attention_scores(u_ID: Tensor, v_MD: Tensor, pairs: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    """a_ij over all allowed pairs, [..., I, M]; every pair sums to 1, or to 0 where no pair is allowed.

    Args:
        u_ID: interests [..., I, D].
        v_MD: moments [..., M, D].
        pairs: bool [..., I, M], true where both the interest and the moment exist.
        temperature: tau; smaller attends more sharply.
    """
    # The matrix form of the distance loses digits when points nearly coincide; D is small, so take the direct one.
    distance = torch.cdist(u_ID, v_MD, compute_mode="donot_use_mm_for_euclid_dist")
    logits = (-distance / temperature).masked_fill(~pairs, float("-inf")).flatten(-2)
    any_pair = pairs.flatten(-2).any(-1, keepdim=True)
    weights = torch.softmax(torch.where(any_pair, logits, torch.zeros_like(logits)), -1)
    return (weights * any_pair).view(pairs.shape)


@dataclass(frozen=True, eq=False)
class MomentTerms:
    """What `AttentionReranker.score_history` needs of candidates' moments, whoever asks."""

    mask_KM: Tensor
    moved_PD: Tensor
    """float64 [K * M, D]: the moments where distances are measured."""
    pair_PH: Tensor
    """float32 [K * M, H]."""


class AttentionReranker(nn.Module):
    """Scores candidates for a user. `embedding_dim` is that of the towers; D stays D here."""

    calibration: Tensor
    """float32 [T, 2]: slope and intercept of each target's logit."""

    def __init__(self, cfg: RerankerConfig, embedding_dim: int) -> None:
        super().__init__()
        self.interest = nn.Linear(embedding_dim, embedding_dim, bias=False)
        self.moment = nn.Linear(embedding_dim, embedding_dim, bias=False)
        for layer in (self.interest, self.moment):
            nn.init.eye_(layer.weight)
        self.log_tau = nn.Parameter(torch.tensor(-1.0))
        self.pair_u = nn.Linear(embedding_dim, cfg.hidden_dim)
        self.pair_v = nn.Linear(embedding_dim, cfg.hidden_dim)
        self.pair_product = nn.Linear(embedding_dim, cfg.hidden_dim, bias=False)
        self.events = nn.Embedding(len(EVENTS) + 1, cfg.hidden_dim, padding_idx=0)
        self.watch = nn.Linear(2, cfg.hidden_dim)
        self.heads = nn.Linear(cfg.hidden_dim, len(TARGETS))
        # The heads start at zero: an untrained reranker leaves the matcher's order alone.
        nn.init.zeros_(self.heads.weight)
        nn.init.zeros_(self.heads.bias)
        self.context = nn.Linear(NUM_CONTEXT, len(TARGETS))
        nn.init.zeros_(self.context.weight)
        with torch.no_grad():
            self.context.weight[TARGETS.index("choose"), 0] = 1.0
            self.context.bias.zero_()
        self.register_buffer("calibration", torch.tensor([[1.0, 0.0]] * len(TARGETS)))

    def probabilities(self, logits_BKT: Tensor) -> Tensor:
        """How likely each target is, in [0, 1], by the slopes and intercepts that `calibrate` found."""
        return torch.sigmoid(logits_BKT * self.calibration[:, 0] + self.calibration[:, 1])

    def calibrated_targets(self) -> list[str]:
        """Targets whose probabilities mean something: those that had outcomes to be calibrated on."""
        untouched = self.calibration.new_tensor([1.0, 0.0])
        return [name for name, row in zip(TARGETS, self.calibration, strict=True) if not torch.equal(row, untouched)]

    def forward(
        self,
        u_BID: Tensor,
        event_BI: Tensor,
        watch_ratio_BI: Tensor,
        mask_BI: Tensor,
        v_BKMD: Tensor,
        mask_BKM: Tensor,
        context_BKC: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, K, T] a target, and attention [B, K, I, M].

        Args:
            u_BID: unit embeddings of the watched items.
            event_BI, watch_ratio_BI: how each was watched, as in `UserTower.forward`.
            mask_BI, mask_BKM: which interests and moments exist.
            v_BKMD: unit moments of the candidates.
            context_BKC: what is known of each candidate beyond its moments, [B, K, C], see `context_features`.
        """
        pairs_BKIM = mask_BI[:, None, :, None] & mask_BKM[:, :, None, :]
        u_B1ID = self.interest(u_BID).unsqueeze(1).expand(-1, v_BKMD.shape[1], -1, -1)
        v_moved = self.moment(v_BKMD)
        attention = attention_scores(u_B1ID, v_moved, pairs_BKIM, self.log_tau.exp())
        watch = torch.stack([watch_ratio_BI.nan_to_num(0.0).clamp(0, 2), (~watch_ratio_BI.isnan()).float()], -1)
        from_u_BIH = self.pair_u(u_BID) + self.events(event_BI) + self.watch(watch)
        from_v_BKMH = self.pair_v(v_BKMD)
        # product feature: sum over pairs needs u_i * v_j for every pair, so keep it low: project each side, multiply.
        product = self.pair_product(u_BID)[:, None, :, None, :] * from_v_BKMH[:, :, None, :, :]
        hidden = F.gelu(from_u_BIH[:, None, :, None, :] + from_v_BKMH[:, :, None, :, :] + product)
        pooled_BKH = (attention.unsqueeze(-1) * hidden).sum((2, 3))
        return self.heads(pooled_BKH) + self.context(context_BKC), attention

    @torch.inference_mode()
    def moment_terms(self, v_KMD: Tensor, mask_KM: Tensor) -> MomentTerms:
        """Of candidates' unit moments, and which of them exist."""
        v_PD = v_KMD.flatten(0, 1)
        return MomentTerms(mask_KM, self.moment(v_PD).double(), self.pair_v(v_PD))

    @torch.inference_mode()
    def score_history(
        self, u_ID: Tensor, event_I: Tensor, watch_ratio_I: Tensor, moments: MomentTerms, context_KC: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits [K, T] and attention [K, I, M] of one history without padding: `forward` up to rounding, and faster.

        Four passes over the pairs instead of nine, in one piece of memory; distances by the matrix form, in float64,
        where it loses no digit that float32 has.
        """
        num_candidates, num_moments = moments.mask_KM.shape
        num_interests = len(u_ID)
        shape = (num_candidates, num_moments * num_interests)
        u_moved, v_moved = self.interest(u_ID).double(), moments.moved_PD
        squares = (v_moved * v_moved).sum(1, keepdim=True) + (u_moved * u_moved).sum(1)
        distance_PI = torch.addmm(squares, v_moved, u_moved.T, alpha=-2).clamp_(min=0).sqrt_().float()
        logits = distance_PI.mul_(-1 / self.log_tau.exp()).view(num_candidates, num_moments, num_interests)
        logits.masked_fill_(~moments.mask_KM[..., None], float("-inf"))
        attention = torch.softmax(logits.view(shape), -1).nan_to_num_(0.0)  # no pair at all: nothing is attended to
        watch = torch.stack([watch_ratio_I.nan_to_num(0.0).clamp(0, 2), (~watch_ratio_I.isnan()).float()], -1)
        from_u_IH = self.pair_u(u_ID) + self.events(event_I) + self.watch(watch)
        hidden = torch.addcmul(from_u_IH, moments.pair_PH[:, None], self.pair_product(u_ID) + 1)
        hidden = torch.ops.aten.gelu_(hidden).view(*shape, hidden.shape[-1])
        pooled_KH = torch.bmm(attention[:, None], hidden).squeeze(1)
        attention_KIM = attention.view(num_candidates, num_moments, num_interests).transpose(1, 2)
        return self.heads(pooled_KH) + self.context(context_KC), attention_KIM


def combine(logits_BKT: Tensor, target_weights: dict[str, float]) -> Tensor:
    """One score [B, K] of the heads: the configured weighted sum of their logits."""
    weights = logits_BKT.new_tensor([target_weights.get(name, 0.0) for name in TARGETS])
    return logits_BKT @ weights

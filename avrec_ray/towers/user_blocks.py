"""What lets the positions of a history read each other: blocks of SASRec or of HSTU, a plain dict of both.

Each is a module from states [B, L, E], the mask of events [B, L] and their times [B, L] to states [B, L, E]. A
position reads itself and the events before it, never padding.

Dimension key: B batch, L history length, E model width, H heads, T time buckets.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avrec_ray.towers.config import TowersConfig
from avrec_ray.towers.encoders import transformer

NUM_TIME_BUCKETS = 64
"""Buckets of 2 log2(1 + seconds) between two events, half an octave each; the last begins at 2**31.5 s, 94 years."""


class SASRecBlocks(nn.Module):
    """Pre-norm softmax attention (Kang & McAuley 2018).

    With `towers.time_bias` each head adds a learned number for the time between two events to its logits (the
    relative times of TiSASRec, Li et al. 2020, as a bias instead of vectors). It starts at 0, as if it were not there.
    """

    def __init__(self, cfg: TowersConfig) -> None:
        super().__init__()
        self.layers = transformer(cfg, cfg.user_layers, SASRecLayer).layers
        self.times = nn.ModuleList(TimeBias(cfg.num_heads, 0.0) for _ in range(cfg.user_layers * cfg.time_bias))

    def forward(self, states_BLE: Tensor, mask_BL: Tensor, at_seconds_BL: Tensor) -> Tensor:
        visible_BLL = visible_keys(mask_BL)
        length = visible_BLL.shape[1]
        # Softmax over nothing is NaN: a padded position sees itself, and is put away by the tower.
        seen_B1LL = (visible_BLL | torch.eye(length, dtype=torch.bool, device=mask_BL.device)).unsqueeze(1)
        bucket_BLL = time_buckets(at_seconds_BL) if len(self.times) else None
        for index, layer in enumerate(self.layers):
            mask = seen_B1LL
            if bucket_BLL is not None:
                mask = self.times[index](bucket_BLL).masked_fill(~seen_B1LL, -torch.inf)
            states_BLE = layer(states_BLE, mask)
        return states_BLE


class SASRecLayer(nn.TransformerEncoderLayer):
    """`nn.TransformerEncoderLayer` step by step: its own call wants one mask a head, [B x H, L, L], as floats."""

    def forward(self, states_BLE: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """`mask`: what `_softmax_attention` takes."""
        states_BLE = states_BLE + self.dropout1(_softmax_attention(self.self_attn, self.norm1(states_BLE), mask))
        hidden_BLF = self.dropout(F.gelu(self.linear1(self.norm2(states_BLE))))
        updated_BLE: Tensor = states_BLE + self.dropout2(self.linear2(hidden_BLF))
        return updated_BLE


def _softmax_attention(attention: nn.MultiheadAttention, states_BLE: Tensor, mask: Tensor) -> Tensor:
    """Weighted values of what each position sees. `mask`: bool [B, 1, L, L], or what to add to logits [B, H, L, L].

    Positions first, as in `nn.MultiheadAttention`: dropout draws in the order of memory, and gradients sum in it.
    """
    packed_LBE = F.linear(states_BLE.transpose(0, 1), attention.in_proj_weight, attention.in_proj_bias)
    heads = (part.unflatten(-1, (attention.num_heads, -1)).permute(1, 2, 0, 3) for part in packed_LBE.chunk(3, -1))
    query, key, value = heads
    if mask.dtype != torch.bool:
        mask = mask.to(query.dtype)
    dropout = attention.dropout if attention.training else 0.0
    read_BHLd = F.scaled_dot_product_attention(query, key, value, mask, dropout)
    read_LBE: Tensor = attention.out_proj(read_BHLd.permute(2, 0, 1, 3).flatten(2))
    return read_LBE.transpose(0, 1)


class HSTUBlocks(nn.Module):
    """Pointwise attention without softmax (HSTU, Zhai et al. 2024)."""

    def __init__(self, cfg: TowersConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(HSTULayer(cfg) for _ in range(cfg.user_layers))

    def forward(self, states_BLE: Tensor, mask_BL: Tensor, at_seconds_BL: Tensor) -> Tensor:
        visible_BLL = visible_keys(mask_BL)
        # The paper divides by the padded length. The number of events seen instead, so that a list does not depend
        # on how long the padding is, and an early position is not weaker than a late one.
        share_B1LL = (visible_BLL / visible_BLL.sum(2, keepdim=True).clamp(min=1)).unsqueeze(1)
        bucket_BLL = time_buckets(at_seconds_BL)
        for layer in self.layers:
            states_BLE = layer(states_BLE, share_B1LL, bucket_BLL)
        return states_BLE


class HSTULayer(nn.Module):
    """Y = W(Norm(A V) * U) + X with U, V, Q, K = SiLU(Norm(X) W') and A = SiLU(Q K^T + position + time) / n.

    Weights start as in the authors' code, small, so that a layer first does little: starting them at width**-0.5 cost
    a tenth of NDCG on ml-100k.
    """

    def __init__(self, cfg: TowersConfig) -> None:
        super().__init__()
        width = cfg.model_dim
        self.num_heads = cfg.num_heads
        self.norm = nn.LayerNorm(width)
        self.uvqk = nn.Linear(width, 4 * width, bias=False)
        nn.init.normal_(self.uvqk.weight, std=0.02)
        self.distance = nn.Embedding(cfg.history_length, cfg.num_heads)
        nn.init.normal_(self.distance.weight, std=0.02)
        self.time = TimeBias(cfg.num_heads, 0.02)
        self.norm_read = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.dropout = nn.Dropout(cfg.dropout)
        self.out = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.out.weight)

    def forward(self, states_BLE: Tensor, share_B1LL: Tensor, bucket_BLL: Tensor) -> Tensor:
        """`share_B1LL`: 1 / n where a position sees another one, else 0."""
        gate_BLE, *parts = F.silu(self.uvqk(self.norm(states_BLE))).chunk(4, -1)
        value, query, key = (_by_head(part, self.num_heads) for part in parts)
        bias_BHLL = self.time(bucket_BLL) + self._distance_bias(states_BLE.shape[1])
        # Masked behind SiLU: it makes no zero of a large negative number, as softmax does.
        weight_BHLL = F.silu(query @ key.transpose(2, 3) + bias_BHLL) * share_B1LL
        read_BLE = (weight_BHLL.to(value.dtype) @ value).transpose(1, 2).flatten(2)
        update_BLE: Tensor = self.out(self.dropout(self.norm_read(read_BLE) * gate_BLE))
        return states_BLE + update_BLE

    def _distance_bias(self, length: int) -> Tensor:
        """[1, H, L, L]: by how many events lie between; the future, which is masked, has that of distance 0."""
        row_L = torch.arange(length, device=self.distance.weight.device)
        distance_LL = (row_L[:, None] - row_L[None, :]).clamp(min=0)
        return look_up(self.distance.weight, distance_LL[None])


class TimeBias(nn.Module):
    """A learned number for each head and bucket of time between two events."""

    def __init__(self, num_heads: int, std: float) -> None:
        super().__init__()
        self.table = nn.Embedding(NUM_TIME_BUCKETS, num_heads)
        nn.init.normal_(self.table.weight, std=std) if std else nn.init.zeros_(self.table.weight)

    def forward(self, bucket_BLL: Tensor) -> Tensor:
        """[B, H, L, L]."""
        return look_up(self.table.weight, bucket_BLL)


def look_up(table_TH: Tensor, row_BLL: Tensor) -> Tensor:
    """Rows of a table with a column a head, heads in front: [B, H, L, L]."""
    return cast(Tensor, _LookUp.apply(table_TH, row_BLL))


class _LookUp(torch.autograd.Function):
    """`nn.Embedding` sums a gradient row by row: at 1,000 positions that was 40 % of a step on a CPU."""

    @staticmethod
    def forward(ctx: Any, table_TH: Tensor, row_BLL: Tensor) -> Tensor:
        ctx.save_for_backward(row_BLL)
        ctx.num_rows = len(table_TH)
        flat = row_BLL.flatten()
        return torch.stack([column.index_select(0, flat).view_as(row_BLL) for column in table_TH.unbind(1)], 1)

    @staticmethod
    def backward(ctx: Any, grad_BHLL: Tensor) -> tuple[Tensor, None]:
        (row_BLL,) = ctx.saved_tensors
        if grad_BHLL.is_cuda:  # bincount's order is not fixed there
            grads = grad_BHLL.permute(0, 2, 3, 1).contiguous()
            return torch.ops.aten.embedding_dense_backward(grads, row_BLL, ctx.num_rows, -1, False), None
        flat = row_BLL.flatten()
        columns = [
            torch.bincount(flat, grad_BHLL[:, head].flatten().double(), ctx.num_rows)
            for head in range(grad_BHLL.shape[1])
        ]
        return torch.stack(columns, 1).to(grad_BHLL.dtype), None


def visible_keys(mask_BL: Tensor) -> Tensor:
    """True [B, L, L] where a position (row) sees an event (column): itself and what came before, padding left out.

    >>> visible_keys(torch.tensor([[False, True, True]])).int().tolist()
    [[[0, 0, 0], [0, 1, 0], [0, 1, 1]]]
    """
    length = mask_BL.shape[1]
    past_LL = torch.ones(length, length, dtype=torch.bool, device=mask_BL.device).tril()
    return past_LL & mask_BL[:, None, :]


def time_buckets(at_seconds_BL: Tensor) -> Tensor:
    """int32 [B, L, L]: bucket of the seconds from an event (column) to a position (row); 0 for the future.

    Differences are taken of what is given, float64 for POSIX times: float32 would round them to two minutes.

    >>> time_buckets(torch.tensor([[0.0, 1.0, 64.0]])).tolist()
    [[[0, 0, 0], [2, 0, 0], [12, 12, 0]]]
    """
    elapsed_BLL = (at_seconds_BL[:, :, None] - at_seconds_BL[:, None, :]).clamp(min=0).float()
    return (2 * torch.log2(1 + elapsed_BLL)).to(torch.int32).clamp(max=NUM_TIME_BUCKETS - 1)


def _by_head(states_BLE: Tensor, num_heads: int) -> Tensor:
    """[B, H, L, E / H]."""
    return states_BLE.unflatten(-1, (num_heads, -1)).transpose(1, 2)


USER_BLOCKS: dict[str, type[nn.Module]] = {"sasrec": SASRecBlocks, "hstu": HSTUBlocks}
"""What `towers.user_blocks` names."""

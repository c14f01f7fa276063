"""The attention of interests over moments, against the formula written out, and isolation of candidates."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from avrec_ray.dataclass_io import from_dict
from avrec_ray.errors import ConfigError
from avrec_ray.ranking.config import NUM_CONTEXT, TARGETS, RerankerConfig
from avrec_ray.ranking.interaction import AttentionReranker, attention_scores, combine

DIM, NUM_INTERESTS, NUM_MOMENTS = 6, 4, 3


def slow_attention(
    u: npt.NDArray[Any], v: npt.NDArray[Any], pairs: npt.NDArray[np.bool_], tau: float
) -> npt.NDArray[Any]:
    """a_ij = exp(-|u_i - v_j| / tau) / sum over all allowed pairs, with plain loops in float64."""
    weights = np.zeros((len(u), len(v)))
    for i in range(len(u)):
        for j in range(len(v)):
            if pairs[i, j]:
                weights[i, j] = np.exp(-np.sqrt(((u[i] - v[j]) ** 2).sum()) / tau)
    return weights / weights.sum() if weights.sum() else weights


def reranker_inputs(num_candidates: int, batch: int = 1, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, num_candidates, NUM_MOMENTS, generator=rng) < 0.7
    mask[..., -1] = True
    return {
        "u_BID": torch.nn.functional.normalize(torch.randn(batch, NUM_INTERESTS, DIM, generator=rng), dim=-1),
        "event_BI": torch.randint(1, 11, (batch, NUM_INTERESTS), generator=rng),
        "watch_ratio_BI": torch.tensor([[0.2, float("nan"), 1.0, 1.7]]).repeat(batch, 1),
        "mask_BI": torch.tensor([[False, True, True, True]]).repeat(batch, 1),
        "v_BKMD": torch.nn.functional.normalize(
            torch.randn(batch, num_candidates, NUM_MOMENTS, DIM, generator=rng), dim=-1
        ),
        "mask_BKM": mask,
        "context_BKC": torch.randn(batch, num_candidates, NUM_CONTEXT, generator=rng),
    }


def opinionated(seed: int = 0) -> AttentionReranker:
    """A reranker with random weights everywhere, heads included."""
    torch.manual_seed(seed)
    model = AttentionReranker(RerankerConfig(hidden_dim=8), DIM)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return model.eval()


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 5), st.floats(0.05, 5.0))
def test_attention_equals_the_formula_written_out(seed: int, num_u: int, num_v: int, tau: float) -> None:
    rng = np.random.default_rng(seed)
    u, v = rng.normal(size=(num_u, 3)), rng.normal(size=(num_v, 3))
    pairs = rng.random((num_u, num_v)) < 0.7
    found = attention_scores(torch.from_numpy(u), torch.from_numpy(v), torch.from_numpy(pairs), tau)
    np.testing.assert_allclose(found.numpy(), slow_attention(u, v, pairs, tau), atol=1e-9)


def test_attention_of_the_founding_example_puts_most_on_close_pairs() -> None:
    # Five one-dimensional interests and moments; |u_i - v_j| in tenths, worked out by hand.
    u, v = np.array([0.1, 0.2, 0.3, 0.4, 0.5]), np.array([0.3, 0.2, 0.4, 0.1, 0.5])
    tenths = np.array([[2, 1, 3, 0, 4], [1, 0, 2, 1, 3], [0, 1, 1, 2, 2], [1, 2, 0, 3, 1], [2, 3, 1, 4, 0]])
    expected = np.exp(-tenths / 10) / np.exp(-tenths / 10).sum()
    found = attention_scores(torch.from_numpy(u)[:, None], torch.from_numpy(v)[:, None], torch.ones(5, 5).bool())
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    assert found.sum().item() == pytest.approx(1.0)
    assert found[found == found.max()].shape == (5,)  # each interest meets its twin once
    sharp = attention_scores(torch.from_numpy(u)[:, None], torch.from_numpy(v)[:, None], torch.ones(5, 5).bool(), 0.01)
    np.testing.assert_allclose(sharp.numpy(), (tenths == 0) / 5, atol=1e-4)


def test_attention_of_the_founding_example_is_a_softmax_over_all_pairs_and_not_over_rows() -> None:
    u, v = [0.1, 0.2, 0.3, 0.4, 0.5], [0.3, 0.2, 0.4, 0.1, 0.5]
    total = sum(math.exp(-abs(x - y)) for x in u for y in v)
    expected = [[math.exp(-abs(x - y)) / total for y in v] for x in u]
    found = attention_scores(torch.tensor(u)[:, None], torch.tensor(v)[:, None], torch.ones(5, 5).bool())
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    # What the decision log quotes; over the moments of one interest alone it would be about five times as much.
    assert found[0].tolist() == pytest.approx([0.03816, 0.04217, 0.03453, 0.04661, 0.03124], abs=5e-6)
    assert found[2, 0].item() == pytest.approx(0.04661, abs=5e-6)
    by_row = [math.exp(-abs(u[0] - y)) / sum(math.exp(-abs(u[0] - z)) for z in v) for y in v]
    assert by_row == pytest.approx([0.198, 0.2188, 0.1792, 0.2419, 0.1621], abs=1e-4)


@given(st.integers(0, 10_000), st.floats(0.01, 10.0))
def test_attention_sums_to_one_and_closer_pairs_get_more(seed: int, tau: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    u, v = torch.randn(4, 3, generator=rng), torch.randn(5, 3, generator=rng)
    pairs = torch.rand(4, 5, generator=rng) < 0.6
    pairs[0, 0] = True
    weights = attention_scores(u, v, pairs, tau)
    assert weights.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert (weights[~pairs] == 0).all()
    distance = (u[:, None] - v[None]).norm(dim=-1)
    order = torch.argsort(distance[pairs])
    assert (torch.diff(weights[pairs][order]) <= 1e-6).all()


def test_attention_without_an_allowed_pair_is_zero_with_finite_gradient() -> None:
    u = torch.randn(2, 3, 4, requires_grad=True)
    pairs = torch.zeros(2, 3, 3, dtype=torch.bool)
    pairs[1] = True
    weights = attention_scores(u, torch.randn(2, 3, 4), pairs)
    assert weights.flatten(1).sum(1).tolist() == pytest.approx([0.0, 1.0])
    weights.pow(2).sum().backward()
    assert u.grad is not None
    assert u.grad.isfinite().all()
    assert (u.grad[0] == 0).all()


def test_attention_of_a_point_to_itself_has_a_finite_gradient() -> None:
    u = torch.ones(2, 3, requires_grad=True)
    attention_scores(u, torch.ones(2, 3), torch.ones(2, 2).bool())[0, 0].backward()
    assert u.grad is not None
    assert u.grad.isfinite().all()


def test_attention_far_from_everything_does_not_underflow() -> None:
    weights = attention_scores(torch.full((1, 2), 1e3), torch.zeros(3, 2), torch.ones(1, 3).bool(), 0.01)
    assert weights.sum().item() == pytest.approx(1.0)


@given(st.integers(0, 10_000), st.permutations(range(6)))
def test_score_of_a_candidate_does_not_depend_on_order_or_company(seed: int, order: list[int]) -> None:
    model, inputs, others = opinionated(), reranker_inputs(6, seed=seed), reranker_inputs(6, seed=seed + 1)
    logits, attention = model(**inputs)
    by_candidate = ("v_BKMD", "mask_BKM", "context_BKC")
    shuffled = {name: value[:, order] if name in by_candidate else value for name, value in inputs.items()}
    torch.testing.assert_close(model(**shuffled)[0], logits[:, order], atol=1e-6, rtol=0)
    replaced = dict(inputs)
    for name in by_candidate:
        replaced[name] = torch.cat([inputs[name][:, :1], others[name][:, 1:]], 1)
    torch.testing.assert_close(model(**replaced)[0][:, 0], logits[:, 0], atol=1e-6, rtol=0)
    alone = {name: value[:, :1] if name in by_candidate else value for name, value in inputs.items()}
    again, its_attention = model(**alone)
    torch.testing.assert_close(again[:, 0], logits[:, 0], atol=1e-6, rtol=0)
    torch.testing.assert_close(its_attention[:, 0], attention[:, 0], atol=1e-6, rtol=0)


def test_score_does_not_read_absent_interests_and_moments() -> None:
    model, inputs = opinionated(), reranker_inputs(5)
    logits, _ = model(**inputs)
    changed = {name: value.clone() for name, value in inputs.items()}
    changed["u_BID"][:, 0], changed["event_BI"][:, 0], changed["watch_ratio_BI"][:, 0] = 3.0, 7, 0.9
    changed["v_BKMD"][~inputs["mask_BKM"]] = -2.0
    assert torch.equal(model(**changed)[0], logits)


@pytest.mark.parametrize("name", ["u_BID", "event_BI", "watch_ratio_BI", "v_BKMD", "context_BKC"])
def test_score_reads_every_input(name: str) -> None:
    model, inputs = opinionated(), reranker_inputs(5)
    other = reranker_inputs(5, seed=9)[name] if name != "watch_ratio_BI" else torch.full((1, NUM_INTERESTS), 0.5)
    assert not torch.allclose(model(**{**inputs, name: other})[0], model(**inputs)[0], atol=1e-4)


def test_score_is_the_attention_weighted_sum_of_pair_features() -> None:
    model, inputs = opinionated(), reranker_inputs(3)
    logits, attention = model(**inputs)
    u, v, watch = inputs["u_BID"][0], inputs["v_BKMD"][0], inputs["watch_ratio_BI"][0]
    for k in range(3):
        pairs = (inputs["mask_BI"][0][:, None] & inputs["mask_BKM"][0, k][None]).numpy()
        with torch.no_grad():
            moved = (model.interest(u).double().numpy(), model.moment(v[k]).double().numpy())
            weights = slow_attention(*moved, pairs, float(model.log_tau.exp()))
            pooled = torch.zeros(8)
            for i, j in zip(*np.nonzero(pairs), strict=True):
                known = not watch[i].isnan()
                how = model.watch(torch.tensor([watch[i].clamp(0, 2) if known else 0.0, float(known)]))
                side_u = model.pair_u(u[i]) + model.events(inputs["event_BI"][0, i]) + how
                side_v = model.pair_v(v[k, j])
                pair = torch.nn.functional.gelu(side_u + side_v + model.pair_product(u[i]) * side_v)
                pooled += float(weights[i, j]) * pair
            expected = model.heads(pooled) + model.context(inputs["context_BKC"][0, k])
        np.testing.assert_allclose(attention[0, k].detach().numpy(), weights, atol=1e-5)
        torch.testing.assert_close(logits[0, k], expected, atol=1e-4, rtol=1e-4)


def test_untrained_reranker_scores_as_the_matcher_does() -> None:
    torch.manual_seed(0)
    model, inputs = AttentionReranker(RerankerConfig(), DIM), reranker_inputs(20, batch=3)
    logits, _ = model(**inputs)
    scores = combine(logits, RerankerConfig().target_weights)
    torch.testing.assert_close(scores, inputs["context_BKC"][..., 0])


def test_combine_is_the_weighted_sum_of_heads() -> None:
    logits = torch.randn(2, 3, len(TARGETS))
    combined = combine(logits, {"choose": 1.0, "skip": -0.5})
    torch.testing.assert_close(combined, logits[..., 0] - 0.5 * logits[..., TARGETS.index("skip")])


def test_reranker_gives_every_weight_a_gradient_once_heads_have_moved() -> None:
    model = opinionated()
    model(**reranker_inputs(4))[0].pow(2).sum().backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not without


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_interests": 0}, "reranker.num_interests=0 is outside"),
        ({"num_candidates": 1}, "reranker.num_candidates=1 is outside"),
        ({"candidates_per_step": 1}, "reranker.candidates_per_step=1 is outside"),
        ({"queries_per_user": 0}, "reranker.queries_per_user=0 is outside"),
        ({"target_weights": {"love": 1.0}}, "reranker.target_weights='love' is not one of"),
        ({"optim": {"batch_size": 0}}, "batch_size=0 is outside"),
    ],
)
def test_reranker_config_with_an_impossible_value_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(RerankerConfig, values)


@pytest.mark.parametrize("num_interests", [0, 1, NUM_INTERESTS])
@pytest.mark.parametrize("seed", range(5))
def test_scores_of_one_history_are_those_of_the_padded_batch(seed: int, num_interests: int) -> None:
    model, inputs = opinionated(seed), reranker_inputs(7, seed=seed)
    inputs["mask_BKM"][0, 3] = False  # an item without moments
    inputs["mask_BI"] = (torch.arange(NUM_INTERESTS) >= NUM_INTERESTS - num_interests)[None]
    with torch.no_grad():
        logits, attention = model(**inputs)
    newest = slice(NUM_INTERESTS - num_interests, None)
    history = [inputs[name][0, newest] for name in ("u_BID", "event_BI", "watch_ratio_BI")]
    moments = model.moment_terms(inputs["v_BKMD"][0], inputs["mask_BKM"][0])
    told, attended = model.score_history(*history, moments, inputs["context_BKC"][0])
    torch.testing.assert_close(told, logits[0], atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(attended, attention[0, :, newest], atol=1e-6, rtol=0)

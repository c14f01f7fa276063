"""The gate: worse on one slice is refused, chance is not, and sick embeddings never pass."""

import numpy as np
import pytest

from avrec_ray.evaluation.audit import GroupFinding
from avrec_ray.evaluation.gate import (
    Check,
    GateConfig,
    Verdict,
    check_audit,
    check_health,
    check_popularity,
    check_slices,
    embedding_health,
)

CFG = GateConfig()


def quality(seed: int, num_users: int = 400) -> dict[str, np.ndarray]:
    """A metric of users, all of them and those of two slices."""
    values = np.random.default_rng(seed).uniform(size=num_users)
    return {"all": values, "cold_items": values[:100], "warm_items": values[100:]}


def test_a_model_worse_on_one_slice_alone_is_refused() -> None:
    champion, candidate = quality(0), quality(0)
    candidate["cold_items"] = candidate["cold_items"] - 0.1
    candidate["warm_items"] = candidate["warm_items"] + 0.05
    candidate["all"] = np.concatenate([candidate["cold_items"], candidate["warm_items"]])
    checks = {check.name: check for check in check_slices(candidate, champion, CFG)}
    assert not checks["not worse on cold_items"].passed
    assert checks["not worse on all"].passed  # the mean went up
    assert checks["not worse on warm_items"].passed
    verdict = Verdict(tuple(checks.values()))
    assert not verdict.passed
    assert verdict.reasons == [f"not worse on cold_items: {checks['not worse on cold_items'].found}"]
    assert "-0.1000" in verdict.reasons[0]


def test_another_seed_of_the_same_model_is_refused_at_most_as_often_as_promised() -> None:
    refused = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        champion = quality(seed)
        candidate = {name: value + 0.1 * rng.normal(size=len(value)) for name, value in champion.items()}
        refused += not Verdict(tuple(check_slices(candidate, champion, CFG))).passed
    assert refused <= 8  # 2.5 % one-sided over all slices, and the spread of a count of 100


def test_slices_with_few_users_or_without_any_are_not_judged() -> None:
    champion = {"all": np.ones(50), "cold_items": np.ones(29)}
    candidate = {"all": np.ones(50), "cold_items": np.zeros(29)}
    cfg = GateConfig(slices=["all", "cold_items", "gender_F"])
    checks = check_slices(candidate, champion, cfg)
    assert [check.passed for check in checks] == [True, False, False]
    assert [check.blocks for check in checks] == [True, False, False]
    verdict = Verdict(tuple(checks))
    assert verdict.passed
    assert verdict.lines()[1:] == [
        "note  not worse on cold_items: not judged: 29 users, evaluation.gate.min_users is 30",
        "note  not worse on gender_F: not judged: this data has no such slice, only all, cold_items",
    ]


def test_healthy_embeddings_pass() -> None:
    vectors = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)
    health = embedding_health(vectors)
    assert health["finite_share"] == 1.0
    assert health["mean_cosine"] == pytest.approx(0.0, abs=0.02)
    assert 14 < health["effective_rank"] <= 16
    assert all(check.passed for check in check_health(health, 1.0, CFG))


def test_mean_cosine_equals_the_plain_double_loop() -> None:
    vectors = np.random.default_rng(1).normal(size=(30, 5)).astype(np.float32) + 0.5
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = np.mean([unit[i] @ unit[j] for i in range(30) for j in range(30) if i != j])
    assert embedding_health(vectors)["mean_cosine"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("vectors", "name"),
    [
        (np.ones((50, 8)) + 0.01 * np.random.default_rng(0).normal(size=(50, 8)), "embeddings are spread"),
        (np.random.default_rng(0).normal(size=(50, 2)) @ np.eye(2, 8), "embeddings are spread"),
        (np.where(np.arange(400).reshape(50, 8) == 7, np.nan, np.eye(50, 8) + 1e-3), "embeddings are finite"),
    ],
)
def test_collapsed_flat_or_broken_embeddings_fail(vectors: np.ndarray, name: str) -> None:
    checks = check_health(embedding_health(vectors.astype(np.float32)), 1.0, CFG)
    failed = [check.name for check in checks if not check.passed]
    assert name in failed


def test_an_index_that_misses_neighbours_fails() -> None:
    health = {"finite_share": 1.0, "mean_cosine": 0.0, "effective_rank": 16.0}
    assert [check.passed for check in check_health(health, 0.94, CFG)] == [True, True, False]


def test_audit_findings_block_only_where_configured() -> None:
    finding = GroupFinding("category", "sport", 9, 0.2, 0.1, 0.3, 0.05, 0.25, judged=True, within=False)
    fine = GroupFinding("category", "music", 9, 1.1, 0.9, 1.3, 0.5, 0.45, judged=True, within=True)
    (check,) = check_audit([finding, fine], CFG)
    assert (check.passed, check.blocks) == (False, False)
    assert Verdict((check,)).passed
    assert Verdict((check,)).lines() == ["note  audit of category: sport 0.20 [0.10, 0.30]"]
    (check,) = check_audit([finding, fine], GateConfig(audit_blocks=True))
    assert not Verdict((check,)).passed
    assert check_audit([fine], CFG) == [Check("audit of category", True, "1 groups within the limits", False)]


def test_popularity_of_the_whole_log_is_refused() -> None:
    fitted, whole = np.array([6, 3, 1, 0]), np.array([6, 3, 1, 2])
    assert check_popularity((fitted / 10).astype(np.float32), fitted).passed
    planted = check_popularity((whole / 12).astype(np.float32), fitted)
    assert not planted.passed
    assert planted.blocks
    assert planted.found == "4 of 4 items are counted otherwise than train and valid say"
    assert check_popularity(np.zeros(3), np.zeros(3, np.int64)).passed

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from avrec_ray.datasets.synthetic.factors import FACTORS
from avrec_ray.datasets.synthetic.render_audio import AMBIENCE, MOODS, SAMPLE_RATE_HZ, TICKS, synthesize
from avrec_ray.datasets.synthetic.render_video import ACTION_SECONDS

BASE = {"scene": "desert", "action": "zoom", "character": "disc", "mood": "calm", "theme": "sport"}


def sound(seed: int = 0, seconds: float = 4.0, **changes: str) -> npt.NDArray[np.float32]:
    return synthesize({**BASE, **changes}, seconds, np.random.default_rng(seed))


def bands(signal: npt.NDArray[np.float32], num_bands: int = 40) -> npt.NDArray[np.float64]:
    """Log energy and its swing over time in bands spaced by octaves: a coarse log-mel."""
    frames = signal[: len(signal) // 600 * 600].reshape(-1, 600) * np.hanning(600)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    edges = np.unique(np.geomspace(1, power.shape[1], num_bands).astype(int))
    levels = np.log10(np.stack([power[:, a:b].sum(axis=1) for a, b in pairwise(edges)]) + 1e-6)
    return np.concatenate([levels.mean(axis=1), levels.std(axis=1)])


def recovered_share(factor: str, num_fit: int = 150, num_test: int = 50) -> float:
    """Share of held-out sounds of which a ridge classifier on `bands` tells the value of one factor."""
    rng = np.random.default_rng(0)
    values = [{name: str(rng.choice(FACTORS[name])) for name in BASE} for _ in range(num_fit + num_test)]
    features = np.stack([bands(sound(seed=seed, seconds=2.5, **row)) for seed, row in enumerate(values)])
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    labels = np.array([FACTORS[factor].index(row[factor]) for row in values])
    fit, targets = features[:num_fit], np.eye(len(FACTORS[factor]))[labels[:num_fit]]
    weights = np.linalg.solve(fit.T @ fit + 30 * np.eye(fit.shape[1]), fit.T @ (targets - targets.mean(axis=0)))
    return float(((features[num_fit:] @ weights).argmax(axis=1) == labels[num_fit:]).mean())


def test_tables_cover_every_value() -> None:
    assert set(MOODS) == set(FACTORS["mood"])
    assert set(AMBIENCE) == set(FACTORS["scene"])
    assert set(TICKS) == set(FACTORS["action"])


def test_ticks_beat_in_the_period_of_the_movement() -> None:
    assert {action: period for action, (period, _) in TICKS.items()} == ACTION_SECONDS


@pytest.mark.parametrize("mood", FACTORS["mood"])
def test_synthesize_length_range_and_loudness(mood: str) -> None:
    signal = sound(mood=mood, seconds=4.25)
    assert signal.shape == (round(4.25 * SAMPLE_RATE_HZ),)
    assert signal.dtype == np.float32
    assert 0.4 < np.abs(signal).max() <= 1.0
    assert signal.std() > 0.01


def test_synthesize_same_seed_gives_the_same_sound() -> None:
    assert np.array_equal(sound(seed=1), sound(seed=1))
    assert not np.array_equal(sound(seed=1), sound(seed=2))


def test_synthesize_mood_can_be_heard() -> None:
    assert recovered_share("mood") > 0.75


def test_synthesize_scene_leaves_a_trace() -> None:
    assert recovered_share("scene") > 0.6


def test_synthesize_says_nothing_of_character_and_theme() -> None:
    assert np.array_equal(sound(character="star", theme="travel"), sound())

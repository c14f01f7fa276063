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
    levels = np.log10(np.stack([power[:, a:b].sum(axis=1) for a, b in zip(edges, edges[1:], strict=False)]) + 1e-6)
    return np.concatenate([levels.mean(axis=1), levels.std(axis=1)])


def nearest_share(factor: str) -> float:
    """Share of sounds whose nearest class mean is that of their value, with the other factors at random."""
    rng = np.random.default_rng(0)

    def sample(value: str, seed: int) -> npt.NDArray[np.float64]:
        others = {name: str(rng.choice(FACTORS[name])) for name in ("scene", "action", "mood")}
        return bands(sound(seed=seed, **{**others, factor: value}))

    centres = {value: np.mean([sample(value, s) for s in range(12)], axis=0) for value in FACTORS[factor]}
    right = [
        min(centres, key=lambda name: float(np.abs(centres[name] - seen).sum())) == value
        for value in FACTORS[factor]
        for seen in (sample(value, seed) for seed in range(50, 57))
    ]
    return float(np.mean(right))


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
    assert nearest_share("mood") > 0.75


def test_synthesize_scene_leaves_a_trace() -> None:
    assert nearest_share("scene") > 0.4


def test_synthesize_says_nothing_of_character_and_theme() -> None:
    assert np.array_equal(sound(character="star", theme="travel"), sound())

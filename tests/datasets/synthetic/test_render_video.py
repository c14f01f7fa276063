import numpy as np
import numpy.typing as npt
import pytest

from avrec_ray.datasets.synthetic.factors import FACTORS
from avrec_ray.datasets.synthetic.render_video import (
    ACTION_SECONDS,
    CHARACTER_COLOURS,
    CHARACTERS,
    MOOD_TINTS,
    SCENE_COLOURS,
    SCENES,
    draw_frames,
)

BASE = {"scene": "forest", "action": "spin", "character": "disc", "mood": "calm", "theme": "sport"}


def draw(seed: int = 0, num_frames: int = 8, rate: float = 2.0, **changes: str) -> npt.NDArray[np.float64]:
    """Frames as a decoder of 8 frames in 4 seconds at 64 pixels would see them."""
    frames = draw_frames({**BASE, **changes}, num_frames, rate, 64, np.random.default_rng(seed))
    return np.stack(list(frames)).astype(float)


def test_tables_cover_every_value() -> None:
    assert set(SCENES) == set(SCENE_COLOURS) == set(FACTORS["scene"])
    assert set(CHARACTERS) == set(CHARACTER_COLOURS) == set(FACTORS["character"])
    assert set(ACTION_SECONDS) == set(FACTORS["action"])
    assert set(MOOD_TINTS) == set(FACTORS["mood"])


def test_draw_frames_gives_rgb_bytes_of_the_size() -> None:
    frames = list(draw_frames(BASE, 3, 12, 48, np.random.default_rng(0)))
    assert [frame.shape for frame in frames] == [(48, 48, 3)] * 3
    assert all(frame.dtype == np.uint8 for frame in frames)


def test_draw_frames_same_seed_gives_the_same_pictures() -> None:
    assert np.array_equal(draw(seed=3), draw(seed=3))
    assert not np.array_equal(draw(seed=3), draw(seed=4))


def test_draw_frames_mean_colour_tells_the_scene() -> None:
    """Nearest mean colour over items, whatever acts in front and whatever the mood."""
    rng = np.random.default_rng(0)

    def sample(scene: str, seed: int) -> npt.NDArray[np.float64]:
        others = {name: str(rng.choice(FACTORS[name])) for name in ("action", "character", "mood")}
        pixels = draw(seed=seed, scene=scene, num_frames=2, **others)
        return np.concatenate([pixels.mean(axis=(0, 1, 2)), pixels.std(axis=(0, 1, 2))])

    centres = {scene: np.mean([sample(scene, s) for s in range(12)], axis=0) for scene in FACTORS["scene"]}
    right = 0
    for scene in FACTORS["scene"]:
        for seed in range(100, 110):
            seen = sample(scene, seed)
            right += min(centres, key=lambda name: float(np.abs(centres[name] - seen).sum())) == scene
    assert right / 60 > 0.85


@pytest.mark.parametrize("character", FACTORS["character"])
def test_draw_frames_character_has_its_colour(character: str) -> None:
    pixels = draw(character=character, scene="night", mood="calm").reshape(-1, 3)
    wanted = np.array(CHARACTER_COLOURS[character])
    close = (np.abs(pixels - wanted).max(axis=1) < 60).mean()
    assert close > 0.01


def path_of(action: str, seed: int = 1) -> npt.NDArray[np.float64]:
    """Centre of the red disc, [T, 2] in pixels, at 24 frames a second."""
    frames = draw(seed=seed, num_frames=48, rate=24.0, action=action, character="disc", scene="night")
    red = (frames[..., 0] > 120) & (frames[..., 1] < 90) & (frames[..., 2] < 90)
    return np.array([np.argwhere(mask).mean(axis=0) for mask in red])


def test_draw_frames_actions_move_as_named() -> None:
    spread = {action: path_of(action).std(axis=0) for action in ("slide", "bounce", "circle", "zoom")}
    assert spread["slide"][1] > 6 > 1 > spread["slide"][0]
    assert spread["bounce"][0] > 4 > 1 > spread["bounce"][1]
    assert spread["circle"].min() > 4
    assert spread["zoom"].max() < 1.5


def test_draw_frames_shake_jumps_and_stays_in_place() -> None:
    path = path_of("shake")
    assert np.abs(np.diff(path, axis=0)).mean() > 1
    assert path.std(axis=0).max() < 6


def test_draw_frames_mood_tints_the_picture() -> None:
    warm, cold = (
        draw(mood="happy", scene="snow").mean(axis=(0, 1, 2)),
        draw(mood="sad", scene="snow").mean(axis=(0, 1, 2)),
    )
    assert warm[0] / warm[2] > 1.15 * cold[0] / cold[2]

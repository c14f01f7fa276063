"""Pictures of an item: a scene behind, a character in front that moves by its action, and a hint of the mood.

Dimension key: H W picture, T frames
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from avrec_ray.datasets.synthetic.render_audio import MOODS

Plane = npt.NDArray[np.floating[Any]]

SCENE_COLOURS = {
    "forest": ((30, 95, 40), (15, 45, 20)),
    "ocean": ((30, 90, 190), (70, 150, 230)),
    "desert": ((215, 175, 100), (180, 130, 60)),
    "city": ((95, 95, 105), (170, 165, 150)),
    "night": ((20, 12, 50), (200, 200, 240)),
    "snow": ((190, 205, 220), (245, 250, 255)),
}
"""Scene -> RGB of its ground and of its texture."""

CHARACTER_COLOURS = {
    "disc": (225, 40, 40),
    "square": (250, 230, 50),
    "triangle": (225, 50, 220),
    "star": (255, 130, 20),
    "ring": (40, 230, 230),
    "cross": (120, 255, 60),
}

ACTION_SECONDS = {"slide": 1.6, "bounce": 0.55, "circle": 2.2, "zoom": 1.1, "spin": 0.8, "shake": 0.2}
"""Action -> seconds of one period; the sound's rhythm follows it."""

MOOD_TINTS = {
    "calm": (0.96, 1.02, 1.06),
    "happy": (1.10, 1.06, 0.92),
    "sad": (0.88, 0.92, 1.02),
    "tense": (1.10, 0.90, 0.90),
    "epic": (1.06, 0.98, 1.10),
    "playful": (1.00, 1.10, 1.00),
}


def _forest(x: Plane, y: Plane, t: float, phase: float) -> Plane:
    return 0.5 + 0.5 * np.sign(np.sin(14 * x + phase + 0.3 * np.sin(3 * y)))


def _ocean(x: Plane, y: Plane, t: float, phase: float) -> Plane:
    return 0.5 + 0.5 * np.sin(12 * y + 1.5 * np.sin(4 * x + phase) - 4 * t)


def _desert(x: Plane, y: Plane, t: float, phase: float) -> Plane:
    return 0.5 + 0.5 * np.sin(6 * (x + y) + np.sin(3 * x + phase) + 0.4 * t)


def _city(x: Plane, y: Plane, t: float, phase: float) -> Plane:
    blocks = np.floor(6 * x + phase) * 12.9898 + np.floor(6 * y) * 78.233
    return ((np.sin(blocks) * 43758.5453) % 1 > 0.45).astype(np.float32)


def _night(x: Plane, y: Plane, t: float, phase: float) -> Plane:
    cells = np.floor(10 * x + phase) * 12.9898 + np.floor(10 * y) * 78.233
    brightness = (np.sin(cells) * 43758.5453) % 1
    dots = ((10 * x + phase) % 1 - 0.5) ** 2 + ((10 * y) % 1 - 0.5) ** 2 < 0.06
    return (dots & (brightness > 0.5)) * (0.7 + 0.3 * np.sin(6 * t + 40 * brightness))


def _snow(x: Plane, y: Plane, t: float, phase: float) -> Plane:
    fall = y - 0.7 * t
    return (
        ((7 * x + phase) % 1 - 0.5) ** 2 + ((7 * fall + 3 * np.sin(9 * np.floor(7 * x + phase))) % 1 - 0.5) ** 2 < 0.09
    ) * 1.0


SCENES: dict[str, Callable[[Plane, Plane, float, float], Plane]] = {
    "forest": _forest, "ocean": _ocean, "desert": _desert, "city": _city, "night": _night, "snow": _snow,
}  # fmt: skip
"""Scene -> its texture in [0, 1], from x and y in [-1, 1], seconds and a phase of the item's own."""

CHARACTERS: dict[str, Callable[[Plane, Plane], npt.NDArray[np.bool_]]] = {
    "disc": lambda x, y: x**2 + y**2 < 0.8,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) < 0.8,
    "triangle": lambda x, y: (y < 0.75) & (y > 2 * np.abs(x) - 0.9),
    "star": lambda x, y: np.hypot(x, y) < 0.62 + 0.38 * np.cos(5 * np.arctan2(y, x)),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.75) < 0.25,
    "cross": lambda x, y: (np.minimum(np.abs(x), np.abs(y)) < 0.3) & (np.maximum(np.abs(x), np.abs(y)) < 1),
}
"""Character -> where it is, in coordinates of its own in which it has about radius 1."""


def draw_frames(
    values: dict[str, str], num_frames: int, frames_per_second: float, size: int, rng: np.random.Generator
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield `num_frames` pictures, uint8 [H, W, 3] RGB."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    scene, character = SCENES[values["scene"]], CHARACTERS[values["character"]]
    ground, texture = (np.array(c, np.float32) * rng.uniform(0.85, 1.1, 3) for c in SCENE_COLOURS[values["scene"]])
    colour = np.array(CHARACTER_COLOURS[values["character"]], np.float32) * rng.uniform(0.85, 1.0, 3)
    tint = np.array(MOOD_TINTS[values["mood"]], np.float32)
    radius, phase = rng.uniform(0.3, 0.42), rng.uniform(0, 6.28)
    home = rng.uniform(-0.15, 0.15, 2)
    beat_hz = MOODS[values["mood"]].beats_per_minute / 60
    for frame_idx in range(num_frames):
        t = frame_idx / frames_per_second
        amount = scene(x, y, t, phase)[..., None]
        picture = ground * (1 - amount) + texture * amount
        left, top, scale, angle = _pose(values["action"], t, phase, rng)
        dx, dy = (x - home[0] - left) / (radius * scale), (y - home[1] - top) / (radius * scale)
        cos, sin = np.cos(angle), np.sin(angle)
        picture[character(cos * dx + sin * dy, cos * dy - sin * dx)] = colour
        pulse = 0.95 + 0.08 * np.cos(2 * np.pi * beat_hz * t)
        yield np.clip(picture * tint * pulse, 0, 255).astype(np.uint8)


def _pose(action: str, t: float, phase: float, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Where a character is at time t: left, top, scale, angle (radians)."""
    turn = 2 * np.pi * t / ACTION_SECONDS[action] + phase
    if action == "slide":
        return 0.6 * np.sin(turn), 0.0, 1.0, 0.0
    if action == "bounce":
        return 0.0, 0.45 - 0.9 * abs(np.sin(turn / 2)), 1.0, 0.0
    if action == "circle":
        return 0.5 * np.cos(turn), 0.5 * np.sin(turn), 1.0, 0.0
    if action == "zoom":
        return 0.0, 0.0, 1.2 + 0.6 * np.sin(turn), 0.0
    if action == "spin":
        return 0.0, 0.0, 1.2, turn
    left, top = rng.uniform(-0.18, 0.18, 2)
    return left, top, 1.0, rng.uniform(-0.2, 0.2)

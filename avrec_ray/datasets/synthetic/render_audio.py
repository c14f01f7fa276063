"""Sound of an item: music in its mood, the scene's ambience under it, and ticks in the rhythm of its action.

Dimension key: S samples, mono
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SAMPLE_RATE_HZ = 24_000

Signal = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Mood:
    """How a mood sounds. `scale` is in semitones above `root_hz`; `partials` are amplitudes of harmonics 1, 2, ..."""

    beats_per_minute: float
    notes_per_beat: int
    root_hz: float
    scale: tuple[int, ...]
    partials: tuple[float, ...]
    attack_seconds: float
    decay_seconds: float
    voices: tuple[int, ...] = (0,)


MOODS = {
    "calm": Mood(50, 1, 220.0, (0, 2, 4, 7, 9), (1.0, 0.1), 0.30, 1.4, (0, 7)),
    "happy": Mood(140, 2, 392.0, (0, 2, 4, 5, 7, 9, 11), (1.0, 0.5, 0.3, 0.2), 0.01, 0.18, (0, 4)),
    "sad": Mood(60, 1, 147.0, (0, 2, 3, 5, 7, 8, 10), (1.0, 0.4, 0.15), 0.15, 0.9, (0, 3)),
    "tense": Mood(170, 4, 110.0, (0, 1, 6), (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4), 0.005, 0.09, (0, 1)),
    "epic": Mood(90, 1, 73.0, (0, 5, 7, 10), (1.0, 0.8, 0.6, 0.5, 0.4, 0.3), 0.02, 0.6, (0, 7, 12)),
    "playful": Mood(120, 3, 784.0, (0, 2, 4, 6, 8, 10), (1.0, 0.0, 0.0, 0.6), 0.002, 0.12),
}

AMBIENCE = {
    "forest": (2500.0, 600.0, 3.0),
    "ocean": (400.0, 300.0, 0.25),
    "desert": (900.0, 250.0, 0.5),
    "city": (120.0, 60.0, 0.0),
    "night": (4800.0, 250.0, 9.0),
    "snow": (7500.0, 1500.0, 0.4),
}
"""Scene -> centre of its noise in Hz, width in Hz, and rate of its swelling in Hz (0 for steady)."""

TICKS = {
    "slide": (1.6, 300.0),
    "bounce": (0.55, 90.0),
    "circle": (2.2, 600.0),
    "zoom": (1.1, 160.0),
    "spin": (0.8, 1500.0),
    "shake": (0.2, 3000.0),
}
"""Action -> seconds between ticks (the period of the movement) and their pitch in Hz."""


def synthesize(values: dict[str, str], seconds: float, rng: np.random.Generator) -> Signal:
    """Sound of `seconds`, float32 [S] in [-1, 1] at SAMPLE_RATE_HZ."""
    num_samples = round(seconds * SAMPLE_RATE_HZ)
    music = _play(MOODS[values["mood"]], num_samples, rng)
    ambience = _rustle(*AMBIENCE[values["scene"]], num_samples, rng)
    ticks = _tick(*TICKS[values["action"]], num_samples, rng)
    mixed = 0.65 * _unit(music) + 0.2 * _unit(ambience) + 0.25 * _unit(ticks)
    return (0.8 * rng.uniform(0.7, 1.0) * _unit(mixed)).astype(np.float32)


def _unit(signal: Signal) -> Signal:
    return signal / max(float(np.abs(signal).max()), 1e-6)


def _play(mood: Mood, num_samples: int, rng: np.random.Generator) -> Signal:
    """A melody that walks up and down the mood's scale, in the item's own key."""
    key_hz = mood.root_hz * 2 ** (rng.integers(-2, 3) / 12)
    step = round(60 / (mood.beats_per_minute * rng.uniform(0.95, 1.05)) / mood.notes_per_beat * SAMPLE_RATE_HZ)
    length = round(min(4 * mood.decay_seconds + mood.attack_seconds, 2.5) * SAMPLE_RATE_HZ)
    music = np.zeros(num_samples + length, np.float32)
    degree = int(rng.integers(len(mood.scale)))
    for start in range(0, num_samples, step):
        degree = int(np.clip(degree + rng.integers(-2, 3), 0, 2 * len(mood.scale) - 1))
        octave, position = divmod(degree, len(mood.scale))
        semitone = 12 * octave + mood.scale[position]
        for voice in mood.voices:
            music[start : start + length] += _note(mood, key_hz * 2 ** ((semitone + voice) / 12), length)
    return music[:num_samples]


def _note(mood: Mood, pitch_hz: float, length: int) -> Signal:
    t = np.arange(length, dtype=np.float32) / SAMPLE_RATE_HZ
    angle = np.float32(2 * np.pi * pitch_hz) * t
    audible = [(n, a) for n, a in enumerate(mood.partials, 1) if a and n * pitch_hz < SAMPLE_RATE_HZ / 2]
    tone = sum((a * np.sin(n * angle) for n, a in audible), np.zeros_like(t))
    envelope = np.minimum(t / mood.attack_seconds, 1) * np.exp(-t / mood.decay_seconds)
    note: Signal = (tone * envelope).astype(np.float32)
    return note


def _rustle(centre_hz: float, width_hz: float, swell_hz: float, num_samples: int, rng: np.random.Generator) -> Signal:
    """Noise about a centre frequency that swells and fades."""
    spectrum = np.fft.rfft(rng.standard_normal(num_samples).astype(np.float32))
    hz = np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE_HZ)
    noise = np.fft.irfft(spectrum * np.exp(-0.5 * ((hz - centre_hz) / width_hz) ** 2), num_samples)
    t = np.arange(num_samples) / SAMPLE_RATE_HZ
    swell = 0.6 + 0.4 * np.cos(2 * np.pi * swell_hz * t + rng.uniform(0, 6.28))
    return (noise * swell).astype(np.float32)


def _tick(period_seconds: float, pitch_hz: float, num_samples: int, rng: np.random.Generator) -> Signal:
    """A short knock in each period."""
    t = np.arange(round(0.08 * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    knock = np.sin(2 * np.pi * pitch_hz * t) * np.exp(-t / 0.02)
    ticks = np.zeros(num_samples + len(knock), np.float32)
    first = int(rng.uniform(0, period_seconds) * SAMPLE_RATE_HZ)
    for start in range(first, num_samples, round(period_seconds * SAMPLE_RATE_HZ)):
        ticks[start : start + len(knock)] += knock
    return ticks[:num_samples]

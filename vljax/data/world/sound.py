"""Sounds of the tiny world: six sources, each with random pitch, rate and level, over noise."""

import math
from collections.abc import Callable

import numpy as np

from vljax.data.world.scenes import Scene

RATE = 16000  # samples a second


def bell(rng: np.random.Generator, n: int) -> np.ndarray:
    """Struck, decaying, inharmonic partials."""
    t = np.arange(RATE) / RATE
    pitch = rng.uniform(500, 800)
    strike = sum(
        np.sin(2 * math.pi * pitch * ratio * t) * np.exp(-t * decay) / (1 + i)
        for i, (ratio, decay) in enumerate(((1, 4), (2.0, 5), (2.76, 7), (5.4, 10)))
    )
    return _repeat(rng, np.asarray(strike), n, rng.uniform(0.4, 0.7))


def drum(rng: np.random.Generator, n: int) -> np.ndarray:
    """A low thump with a short burst of noise."""
    t = np.arange(RATE // 3) / RATE
    thump = np.sin(2 * math.pi * rng.uniform(70, 120) * t * np.exp(-3 * t)) * np.exp(-14 * t)
    hit = thump + 0.35 * rng.normal(size=len(t)) * np.exp(-45 * t)
    return _repeat(rng, hit, n, rng.uniform(0.2, 0.4))


def siren(rng: np.random.Generator, n: int) -> np.ndarray:
    """A tone that sweeps up and down."""
    t = np.arange(n) / RATE
    sweep = np.sin(2 * math.pi * rng.uniform(0.8, 1.8) * t + rng.uniform(0, 2 * math.pi))
    frequency = rng.uniform(900, 1200) + rng.uniform(300, 450) * sweep
    phase = 2 * math.pi * np.cumsum(frequency) / RATE
    return np.sin(phase) + 0.3 * np.sin(2 * phase)


def kettle(rng: np.random.Generator, n: int) -> np.ndarray:
    """Steam: steady hiss, stronger towards high frequencies."""
    noise = rng.normal(size=n + 1)
    return 0.4 * (noise[1:] - rng.uniform(0.3, 0.6) * noise[:-1])


def bird(rng: np.random.Generator, n: int) -> np.ndarray:
    """Short chirps that rise or fall, around 3 to 5 kHz."""
    length = int(RATE * rng.uniform(0.06, 0.12))
    t = np.arange(length) / length
    low, high = rng.uniform(2600, 3400), rng.uniform(4200, 5600)
    frequency = low + (high - low) * (t if rng.random() < 0.5 else 1 - t)
    chirp = np.sin(2 * math.pi * np.cumsum(frequency) / RATE) * np.sin(math.pi * t)
    return _repeat(rng, chirp, n, rng.uniform(0.15, 0.3))


def car(rng: np.random.Generator, n: int) -> np.ndarray:
    """An engine: a low buzz with many harmonics."""
    t = np.arange(n) / RATE
    pitch = rng.uniform(55, 95) * (1 + 0.05 * np.sin(2 * math.pi * rng.uniform(0.3, 1) * t))
    phase = 2 * math.pi * np.cumsum(pitch) / RATE
    buzz = sum(np.sin(k * phase + k) / k for k in range(1, 10))
    return np.asarray(buzz) * (1 + 0.3 * np.sin(phase / 2))


SOURCES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "bell": bell,
    "drum": drum,
    "siren": siren,
    "kettle": kettle,
    "bird": bird,
    "car": car,
}


def play(rng: np.random.Generator, name: str | None, n: int) -> np.ndarray:
    """``n`` samples of a source (None: silence) over a noise floor, in [-1, 1], float32."""
    floor = rng.normal(size=n) * 10 ** rng.uniform(-4.0, -3.0)
    if name is None:
        return floor.astype(np.float32)
    y = SOURCES[name](rng, n)
    y = y / max(np.abs(y).max(), 1e-6) * 10 ** rng.uniform(-0.9, -0.2)
    return (y + floor).clip(-1, 1).astype(np.float32)


def waveform(scene: Scene) -> np.ndarray | None:
    """The clip's mono track at RATE, or None when it has none."""
    if scene.sounds is None:
        return None
    rng = np.random.default_rng((scene.seed, 1))
    n = round(scene.seconds * RATE)
    if len(scene.sounds) < 2:
        return play(rng, scene.sounds[0] if scene.sounds else None, n)
    first = round(n * scene.boundary)
    parts = zip(scene.sounds, (first, n - first), strict=True)
    return np.concatenate([play(rng, name, length) for name, length in parts])


def _repeat(rng: np.random.Generator, event: np.ndarray, n: int, period: float) -> np.ndarray:
    """Plays ``event`` every ``period`` seconds, give or take a tenth."""
    y = np.zeros(n + len(event))
    start = int(rng.uniform(0, 0.5) * period * RATE)
    while start < n:
        y[start : start + len(event)] += event * rng.uniform(0.7, 1)
        start += int(period * RATE * rng.uniform(0.9, 1.1))
    return y[:n]

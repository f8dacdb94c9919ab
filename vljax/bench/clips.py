"""Clips to measure decoding with: 720p h264 with AAC sound, as encoders write them by default.

A camera drifts over a texture, three things move before it, and there is the grain of a sensor.
x264's and AAC's own defaults decide the rest: where keyframes are, and what refers to what.
"""

import math
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from PIL import Image

WIDTH, HEIGHT, FPS, RATE = 1280, 720, 30, 44100
DRIFT = 200  # pixels that the camera moves to each side
THING = 160  # pixels, the side of what moves


def make_clips(
    folder: Path,
    count: int,
    seconds: float = 10.0,
    show: Callable[[int], None] = lambda done: None,
) -> list[Path]:
    """Writes ``count`` clips, each of another scene: 0.mp4 and so on."""
    paths = [folder / f"{i}.mp4" for i in range(count)]
    for i, path in enumerate(paths):
        write_clip(path, np.random.default_rng(i), seconds)
        show(i + 1)
    return paths


def write_clip(path: Path, rng: np.random.Generator, seconds: float) -> None:
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=FPS)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.thread_type = "NONE"  # else a frame is cut into slices
        audio = out.add_stream("aac", rate=RATE, layout="stereo")
        scene = Scene(rng)
        for i in range(round(seconds * FPS)):
            out.mux(video.encode(av.VideoFrame.from_ndarray(scene.frame(i / FPS), "yuv420p")))
        out.mux(video.encode(None))
        resampler = av.AudioResampler(format=audio.format, frame_size=audio.frame_size or 1024)
        sound = av.AudioFrame.from_ndarray(noise(rng, round(seconds * RATE)), "fltp", "stereo")
        sound.sample_rate = RATE
        for piece in [*resampler.resample(sound), *resampler.resample(None)]:
            out.mux(audio.encode(piece))
        out.mux(audio.encode(None))


def noise(rng: np.random.Generator, samples: int) -> np.ndarray:
    """[2, samples] float32: brownish noise that comes and goes twice a second."""
    white = rng.normal(0, 0.3, (2, samples + 31))
    smooth = np.stack([np.convolve(w, np.ones(32) / 32, "valid") for w in white])
    return (smooth * np.sin(2 * np.pi * np.arange(samples) / RATE)).astype(np.float32)


class Scene:
    """What a clip shows, as planes of YUV 4:2:0 at twice the size: so motion is of half pixels."""

    def __init__(self, rng: np.random.Generator):
        height, width = HEIGHT + 2 * DRIFT, WIDTH + 2 * DRIFT
        self._planes = [texture(rng, 2 * height, 2 * width, 8)]
        self._planes += [texture(rng, height, width, 64) for _ in "uv"]
        self._things = [texture(rng, 2 * THING, 2 * THING, 8) for _ in range(3)]
        self._grain = rng.normal(0, 2, (HEIGHT + 64, WIDTH + 64)).round().astype(np.int16)
        self._phases, self._rng = rng.uniform(0, 2 * np.pi, 8), rng

    def frame(self, time: float) -> np.ndarray:
        """[H * 3 / 2, W] uint8, the planes one after the other."""
        swings = np.sin(2 * np.pi * time * np.linspace(0.05, 0.15, 8) + self._phases)
        top, left = (int(DRIFT * (1 + s)) * 2 + round(10 * time) % 2 for s in swings[:2])
        luma = self._planes[0][top:, left:][: 2 * HEIGHT : 2, : 2 * WIDTH : 2].astype(np.int16)
        for thing, y, x in zip(self._things, swings[2:5], swings[5:8], strict=True):
            y, x = (HEIGHT - THING) * (1 + y), (WIDTH - THING) * (1 + x)
            half = int(y) % 2, int(x) % 2
            at = slice(int(y) // 2, int(y) // 2 + THING), slice(int(x) // 2, int(x) // 2 + THING)
            luma[at] = thing[half[0] :: 2, half[1] :: 2]
        a, b = self._rng.integers(0, 64, 2)
        luma += self._grain[a : a + HEIGHT, b : b + WIDTH]
        chroma = [p[top // 2 :, left // 2 :][:HEIGHT:2, :WIDTH:2] for p in self._planes[1:]]
        packed = [np.ascontiguousarray(c).reshape(-1, WIDTH) for c in chroma]
        return np.concatenate([np.clip(luma, 0, 255).astype(np.uint8), *packed])


def texture(rng: np.random.Generator, height: int, width: int, finest: int) -> np.ndarray:
    """[H, W] uint8: noise of all sizes from ``finest`` pixels on, the larger the stronger."""
    total = np.zeros((height, width), np.float32)
    for octave in range(int(math.log2(finest)), 9):
        cell = 2**octave
        coarse = rng.normal(0, cell**0.8, (height // cell + 2, width // cell + 2))
        image = Image.fromarray(coarse.astype(np.float32))
        total += np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    low, high = total.min(), total.max()
    return ((total - low) * (235 / (high - low)) + 10).astype(np.uint8)

"""A long stream of the tiny world, followed and asked about: right answers, and flat memory."""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vljax.data.stream import Ring, Source
from vljax.data.world import language, render, sound
from vljax.data.world.scenes import Scene, random_scene
from vljax.evaluate.scores import score
from vljax.evaluate.world import CHANCE
from vljax.generate.engine import Engine, Request
from vljax.generate.live import Live, Pace
from vljax.generate.long import WINDOW
from vljax.generate.sampling import Sampling

TOPICS = ("object", "colour", "motion", "caption", "sound", "both")
SHORT = Sampling(max_new_tokens=32)
AUDIO_BLOCK = 1024  # samples, as AAC's encoder takes them
WARM_UP = 0.2  # of the time, after which memory is to stay
Report = dict[str, Any]


def stream_scenes(seed: int, minutes: float) -> list[Scene]:
    """One moving thing after the other, for a window each, with the sound of any."""
    rng = np.random.default_rng((seed, 13))
    count = max(1, round(60 * minutes / WINDOW))
    scenes = [random_scene(rng, "test", "one", 1) for _ in range(count)]
    return [dataclasses.replace(s, seconds=WINDOW) for s in scenes]


def write_stream(
    path: Path, scenes: Sequence[Scene], progress: Callable[[int, int], None] | None = None
) -> None:
    """Writes the scenes one after the other as one file, a scene at a time."""
    import av

    with av.open(str(path), "w") as out:
        picture = out.add_stream("libx264", rate=render.RATE)
        picture.width = picture.height = render.SIDE
        picture.pix_fmt = "yuv420p"
        picture.options = {"crf": "12", "preset": "ultrafast", "threads": "1"}
        voice = out.add_stream("aac", rate=sound.RATE, layout="mono")
        voice.bit_rate = 96_000
        left, start = np.zeros(0, np.float32), 0
        for done, scene in enumerate(scenes, 1):
            for image in render.frames(scene):
                out.mux(picture.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            heard = sound.waveform(scene)
            assert heard is not None
            left = np.concatenate([left, heard])
            whole = len(left) if done == len(scenes) else len(left) // AUDIO_BLOCK * AUDIO_BLOCK
            for at in range(0, whole, AUDIO_BLOCK):
                samples = left[None, at : min(at + AUDIO_BLOCK, whole)]
                block = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
                block.sample_rate, block.time_base = sound.RATE, Fraction(1, sound.RATE)
                block.pts = start + at
                out.mux(voice.encode(block))
            left, start = left[whole:], start + whole
            if progress:
                progress(done, len(scenes))
        out.mux(picture.encode())
        out.mux(voice.encode())


def evaluate_live(
    engine: Engine,
    path: Path,
    scenes: Sequence[Scene],
    speed: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Follows the stream at ``path`` and asks about every scene when it ends.

    Returns {topic: score, ...} with ``flatness``, ``cost``, "seconds" that it took, "dropped"
    frames, and "samples", one a scene: {"at": seconds of stream, "mib", "cpu": seconds so far,
    "answering": those of them that answers took}.
    """
    pace, side = Pace(), engine.size.vit.image
    live = Live(engine, "uniform", pace)
    hits: dict[str, list[bool]] = {t: [] for t in TOPICS}
    samples: list[dict[str, float]] = []
    began, answering = time.monotonic(), 0.0

    def ask() -> None:
        nonlocal answering
        before = time.process_time()
        _ask(engine, live, scenes, len(samples), hits)
        answering += time.process_time() - before
        spent = {"cpu": time.process_time(), "answering": answering}
        samples.append({"at": (len(samples) + 1) * WINDOW, "mib": resident()} | spent)
        if progress:
            progress(len(samples), len(scenes))

    source = Source(str(path), (side, side), pace.fps)
    with Ring(source, pace.room, speed) as ring:
        for piece in ring:
            live.take(piece)
            while len(samples) < len(scenes) and live.past((len(samples) + 1) * WINDOW):
                ask()
        while len(samples) < len(scenes):
            ask()
    report: Report = {t: score(found, CHANCE[t]) for t, found in hits.items()}
    report |= flatness([s["mib"] for s in samples]) | cost(samples)
    report["seconds"] = round(time.monotonic() - began, 1)
    return report | {"dropped": ring.dropped, "samples": samples}


def _ask(
    engine: Engine, live: Live, scenes: Sequence[Scene], number: int, hits: dict[str, list[bool]]
) -> None:
    """All topics, about the window that a scene filled, each of what it is about."""
    scene, media = scenes[number], live.media((number + 1) * WINDOW)
    alone = {t: dataclasses.replace(media, sound=None) for t in TOPICS[:4]}
    alone["sound"] = dataclasses.replace(media, sight=None)
    requests = [Request(language.QUESTIONS[t][0], alone.get(t, media)) for t in TOPICS]
    for topic, said in zip(TOPICS, engine.answer(requests, SHORT), strict=True):
        seen = None if topic == "sound" else scene
        heard = scene.sounds if topic in ("sound", "both") else None
        hits[topic].append(said == language.answer(topic, seen, heard))


def resident() -> float:
    """MiB that this process holds in memory, where the system tells."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def flatness(memory: Sequence[float]) -> Report:
    """Medians of a tenth of the time after warm-up and at the end, the highest, and the growth."""
    warm = memory[int(len(memory) * WARM_UP) :]
    tenth = max(1, len(warm) // 10)
    first, last = statistics.median(warm[:tenth]), statistics.median(warm[-tenth:])
    return {
        "mib_after_warm_up": round(first, 1),
        "mib_at_the_end": round(last, 1),
        "mib_at_most": round(max(warm), 1),
        "growth": round(last / first - 1, 4) if first else 0.0,
    }


def cost(samples: Sequence[dict[str, float]]) -> Report:
    """CPU seconds that a second of stream takes after warm-up, in the first half and the second.

    {"first_half": {"following", "answering"}, "second_half": the same}
    """
    warm = samples[int(len(samples) * WARM_UP) :]
    middle = len(warm) // 2
    halves = {"first_half": warm[: middle + 1], "second_half": warm[middle:]}
    return {name: _cost(part) for name, part in halves.items() if len(part) > 1}


def _cost(samples: Sequence[dict[str, float]]) -> dict[str, float]:
    first, last = samples[0], samples[-1]
    seconds, cpu, answering = (last[k] - first[k] for k in ("at", "cpu", "answering"))
    return {
        "following": round((cpu - answering) / seconds, 4),
        "answering": round(answering / seconds, 4),
    }

"""Policies for long clips as an exam: one of two things is there for three seconds alone.

A clip shows first one thing, then another, and lets two be heard so, as the world's short clips do;
but here one of the two, the first or the second, has ``EVENT`` seconds and the other one all the
rest. Right is an answer that names both, in their order. Every policy is asked with more and more
frames, over clips of more and more seconds.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vljax.data import video
from vljax.data.audio import read_audio
from vljax.data.world import language, render, sound
from vljax.data.world.files import write_clip
from vljax.data.world.scenes import Scene, random_scene
from vljax.evaluate.scores import score
from vljax.evaluate.world import CHANCE, SHORT
from vljax.generate import long
from vljax.generate.engine import Engine, Request
from vljax.generate.long import POLICIES, Plan
from vljax.generate.media import FRAMES, Encoded

DURATIONS = (2, 8, 30, 60, 120)  # seconds
EVENT = 3.0  # seconds; half of what is shorter than twice that
COUNTS = (2, 4, 8, 16, 32, 64, 128, 240)  # frames that are looked at
TOPICS = {"object": "what was shown", "order": "what was heard"}
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Setting:
    """A policy that looks at so many frames in all."""

    policy: str
    frames: int

    def plan(self, clips: int) -> Plan:
        """``clips``: sounds for every ``FRAMES`` frames."""
        if self.policy == "windows":
            return Plan(self.frames // FRAMES, FRAMES, clips)
        return Plan(1, self.frames, max(1, clips * self.frames // FRAMES))


def settings(seconds: float) -> list[Setting]:
    """What there is to compare on a clip of so many seconds, whose frames are limited."""
    counts = [c for c in COUNTS if c <= seconds * render.RATE]
    few = [Setting("uniform", c) for c in counts if c <= FRAMES]
    more = [c for c in counts if c > FRAMES]
    return few + [Setting(p, c) for p in list(POLICIES)[1:] for c in more]


def evaluate_long(
    engine: Engine,
    seed: int,
    n: int,
    durations: Sequence[float] = DURATIONS,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """A row for each duration and setting, with a score for each of ``TOPICS``."""
    rows, done = [], 0
    for number, seconds in enumerate(durations):
        rng = np.random.default_rng((seed, 11, number))
        scenes, taken = [event(rng, seconds) for _ in range(n)], []
        for scene in scenes:
            taken.append(_encoded(engine, scene, settings(seconds)))
            done += 1
            if progress:
                progress(done, n * len(durations))
        for setting, media in zip(settings(seconds), zip(*taken, strict=True), strict=True):
            row: Row = {"seconds": seconds, "policy": setting.policy, "frames": setting.frames}
            rows.append(row | _scores(engine, scenes, media))
    return rows


def event(rng: np.random.Generator, seconds: float) -> Scene:
    """Two things and two sounds, one after the other, of which one has ``EVENT`` seconds."""
    scene = random_scene(rng, "test", "cut", 2)
    share = min(EVENT / seconds, 0.5)
    boundary = share if rng.random() < 0.5 else 1 - share
    return dataclasses.replace(scene, seconds=float(seconds), boundary=boundary)


def _encoded(engine: Engine, scene: Scene, asked: Sequence[Setting]) -> list[Encoded]:
    """The clip's file as every setting takes it; a frame is encoded once for all of them."""
    size, shape = engine.size, (engine.size.vit.image, engine.size.vit.image)
    plans = [s.plan(size.max_clips) for s in asked]
    count = round(scene.seconds * render.RATE)
    parts = [long.frame_parts(count, p) for p in plans]
    wanted = np.unique(np.concatenate([np.concatenate(p) for p in parts]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "event.mp4"
        write_clip(path, render.frames(scene), sound.waveform(scene))
        clip = video.read_clip(path, lambda _: wanted, shape)
        track = read_audio(path)
    assert track is not None
    tokens = long.frame_tokens(engine, clip.frames)
    made = []
    for setting, planned, part in zip(asked, plans, parts, strict=True):
        policy = POLICIES[setting.policy]
        picked = [tokens[np.searchsorted(wanted, p)] for p in part]
        sight, _ = long.see(engine, policy, picked, [p / clip.fps for p in part])
        length = scene.seconds / planned.windows
        mels = long.sound_parts(*track, size, planned.sounds, length, planned.windows)
        features = np.split(long.sound_features(engine, np.concatenate(mels)), len(mels))
        made.append(Encoded(sight, long.hear(engine, policy, features)))
    return made


def _scores(engine: Engine, scenes: Sequence[Scene], media: Sequence[Encoded]) -> Row:
    seen = [dataclasses.replace(m, sound=None) for m in media]
    heard = [dataclasses.replace(m, sight=None) for m in media]
    found: Row = {}
    for topic, given in (("object", seen), ("order", heard)):
        question = language.QUESTIONS[topic][0]
        said = engine.answer([Request(question, m) for m in given], SHORT)
        right = [language.answer(topic, s, s.sounds) for s in scenes]
        hits = [a == b for a, b in zip(said, right, strict=True)]
        found[topic] = score(hits, CHANCE["order"])
    return found


def draw(rows: Sequence[Row], path: str | Path) -> None:
    """Writes a PNG: accuracy over frames, a panel for each topic and duration."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    durations = list(dict.fromkeys(r["seconds"] for r in rows))
    figure = Figure(figsize=(2.1 * len(durations) + 0.6, 4.8), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(TOPICS), len(durations), sharey=True, squeeze=False)
    for line, topic in zip(panels, TOPICS, strict=True):
        for ax, seconds in zip(line, durations, strict=True):
            _panel(ax, [r for r in rows if r["seconds"] == seconds], topic)
        line[0].set_ylabel(TOPICS[topic])
    for ax, seconds in zip(panels[0], durations, strict=True):
        ax.set_title(f"clips of {seconds:g} s", fontsize=10)
    for ax in panels[-1]:
        ax.set_xlabel("frames looked at")
    names = panels[0][0].get_legend_handles_labels()
    figure.legend(*names, loc="outside lower center", ncols=len(POLICIES), frameon=False)
    figure.savefig(path)


def _panel(ax: Any, rows: Sequence[Row], topic: str) -> None:
    ax.axhline(CHANCE["order"], color="0.6", linestyle=":", linewidth=1)
    few = [r for r in rows if r["policy"] == "uniform"]
    for number, (policy, marker) in enumerate(zip(POLICIES, "osD^", strict=True)):
        # All others are the paper's at 8 frames, where their lines begin.
        own = few if policy == "uniform" else few[-1:] + [r for r in rows if r["policy"] == policy]
        frames, scores = [r["frames"] for r in own], [r[topic] for r in own]
        style = {"color": f"C{number}", "marker": marker, "markersize": 4, "linewidth": 1.5}
        ax.plot(frames, [s["accuracy"] for s in scores], label=policy, **style)
        low, high = ([s[end] for s in scores] for end in ("low", "high"))
        ax.fill_between(frames, low, high, color=f"C{number}", alpha=0.15, linewidth=0)
    ax.set_xscale("log", base=2)
    ticks = [2, 8, 32, 128]
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.set_xlim(1.6, 300)
    ax.set_ylim(-0.03, 1.03)
    ax.grid(alpha=0.3)

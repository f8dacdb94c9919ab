"""Policies for long clips as an exam: something happens for a moment, and is asked about.

A clip shows an empty scene and is silent but for three seconds, somewhere in it. What is scored is
whether the answer names what was shown, or heard, and nothing else. Every policy is asked with more
and more frames, over clips of more and more seconds.
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
from vljax.data.world.scenes import OBJECTS, Scene, random_scene
from vljax.evaluate.scores import score
from vljax.generate import long
from vljax.generate.engine import Engine, Request
from vljax.generate.long import POLICIES, Plan
from vljax.generate.media import FRAMES, Encoded
from vljax.generate.sampling import Sampling

DURATIONS = (2, 8, 30, 60, 120)  # seconds
EVENT = 3.0  # seconds
COUNTS = (2, 4, 8, 16, 32, 64, 128, 240)  # frames that are looked at
TOPICS = ("object", "sound")
SHORT = Sampling(max_new_tokens=32)
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Setting:
    """A policy that looks at so many frames in all."""

    policy: str
    frames: int

    def plan(self, clips: int) -> Plan:
        """``clips``: sounds for every ``FRAMES`` frames."""
        parts = max(1, self.frames // FRAMES)
        if self.policy == "windows":
            return Plan(parts, FRAMES, clips)
        return Plan(1, self.frames, max(1, clips * self.frames // FRAMES))


def settings(seconds: float) -> list[Setting]:
    """What there is to compare on a clip of so many seconds, whose frames are limited."""
    counts = [c for c in COUNTS if c <= seconds * render.RATE]
    few = [Setting("uniform", c) for c in counts if c <= FRAMES]
    more = [c for c in counts if c > FRAMES]
    return few + [Setting(p, c) for p in list(POLICIES)[1:] for c in more]


def evaluate_policies(
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
        scenes = [_event(rng, seconds) for _ in range(n)]
        asked = settings(seconds)
        media: dict[Setting, list[Encoded]] = {s: [] for s in asked}
        for scene in scenes:
            for setting, encoded in zip(
                asked, _encoded(engine, scene, seconds, asked), strict=True
            ):
                media[setting].append(encoded)
            done += 1
            if progress:
                progress(done, n * len(durations))
        for setting in asked:
            row: Row = {"seconds": seconds, "policy": setting.policy, "frames": setting.frames}
            rows.append(row | _scores(engine, scenes, media[setting]))
    return rows


def _event(rng: np.random.Generator, seconds: float) -> Scene:
    """One moving thing with its sound, for ``EVENT`` seconds or the whole clip."""
    scene = random_scene(rng, "test", "one", 1)
    return dataclasses.replace(
        scene, sounds=(scene.things[0].object,), seconds=min(EVENT, float(seconds))
    )


def write_event(path: Path, scene: Scene, seconds: float) -> None:
    """Writes a clip of so many seconds in which ``scene`` happens at some moment."""
    rng = np.random.default_rng((scene.seed, 3))
    empty = dataclasses.replace(scene, kind="empty", things=(), sounds=(), seconds=seconds)
    frames, wave = render.frames(empty), sound.waveform(empty)
    shown, heard = render.frames(scene), sound.waveform(scene)
    assert wave is not None and heard is not None
    first = int(rng.integers(len(frames) - len(shown) + 1))
    frames[first : first + len(shown)] = shown
    at = round(first / render.RATE * sound.RATE)
    wave[at : at + len(heard)] = heard[: len(wave) - at]
    write_clip(path, frames, wave)


def _encoded(
    engine: Engine, scene: Scene, seconds: float, asked: Sequence[Setting]
) -> list[Encoded]:
    """The clip's file as every setting takes it; a frame is encoded once for all of them."""
    size, shape = engine.size, (engine.size.vit.image, engine.size.vit.image)
    plans = [s.plan(size.max_clips) for s in asked]
    count = round(seconds * render.RATE)
    parts = [long.frame_parts(count, p) for p in plans]
    wanted = np.unique(np.concatenate([np.concatenate(p) for p in parts]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "event.mp4"
        write_event(path, scene, seconds)
        clip = video.read_clip(path, lambda _: wanted, shape)
        track = read_audio(path)
    assert track is not None
    tokens = long.frame_tokens(engine, clip.frames)
    made = []
    for setting, planned, part in zip(asked, plans, parts, strict=True):
        policy = POLICIES[setting.policy]
        picked = [tokens[np.searchsorted(wanted, p)] for p in part]
        sight, _ = long.see(engine, policy, picked, [p / clip.fps for p in part])
        length = seconds / planned.windows
        mels = long.sound_parts(*track, size, planned.sounds, length, planned.windows)
        features = np.split(long.sound_features(engine, np.concatenate(mels)), len(mels))
        made.append(Encoded(sight, long.hear(engine, policy, features)))
    return made


def _scores(engine: Engine, scenes: Sequence[Scene], media: Sequence[Encoded]) -> Row:
    given = {
        "object": [dataclasses.replace(m, sound=None) for m in media],
        "sound": [dataclasses.replace(m, sight=None) for m in media],
    }
    found: Row = {}
    for topic in TOPICS:
        question = language.QUESTIONS[topic][0]
        answers = engine.answer([Request(question, m) for m in given[topic]], SHORT)
        things = [s.things[0].object for s in scenes]
        hits = [named(a) == {t} for a, t in zip(answers, things, strict=True)]
        found[topic] = score(hits, 1 / len(OBJECTS))
    return found


def named(answer: str) -> set[str]:
    """The world's things that an answer names."""
    return {o for o in OBJECTS if o in answer.lower()}


def draw(rows: Sequence[Row], path: str | Path) -> None:
    """Writes a PNG: accuracy over frames, a panel for each topic and duration."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    durations = list(dict.fromkeys(r["seconds"] for r in rows))
    figure = Figure(figsize=(2.3 * len(durations) + 0.6, 5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(TOPICS), len(durations), sharey=True, squeeze=False)
    for line, topic in zip(panels, TOPICS, strict=True):
        for ax, seconds in zip(line, durations, strict=True):
            _panel(ax, [r for r in rows if r["seconds"] == seconds], topic)
        line[0].set_ylabel({"object": "what was shown", "sound": "what was heard"}[topic])
    for ax, seconds in zip(panels[0], durations, strict=True):
        ax.set_title(f"clips of {seconds:g} s")
    for ax in panels[-1]:
        ax.set_xlabel("frames" if len(durations) < 3 else "frames looked at")
    panels[-1][-1].legend(fontsize=8)
    figure.savefig(path)


def _panel(ax: Any, rows: Sequence[Row], topic: str) -> None:
    ax.axhline(1 / len(OBJECTS), color="0.6", linestyle=":", linewidth=1)
    few = [r for r in rows if r["policy"] == "uniform"]
    for number, (policy, marker) in enumerate(zip(POLICIES, "osD^", strict=True)):
        own = few if policy == "uniform" else few[-1:] + [r for r in rows if r["policy"] == policy]
        accuracy = [r[topic]["accuracy"] for r in own]
        style = {"color": f"C{number}", "marker": marker, "markersize": 4, "linewidth": 1.5}
        ax.plot([r["frames"] for r in own], accuracy, label=policy, **style)
    ax.set_xscale("log", base=2)
    ticks = [2, 8, 32, 128]
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.set_xlim(1.6, 300)
    ax.set_ylim(-0.03, 1.03)
    ax.grid(alpha=0.3)

"""The tiny world as an exam: fresh clips of combinations never trained on, real generation."""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vljax.data.world import language
from vljax.data.world.files import clip_path, write_scenes
from vljax.data.world.scenes import COLOURS, MOTIONS, OBJECTS, OPPOSITE, Kind, Scene, random_scene
from vljax.evaluate.scores import score
from vljax.generate.engine import Engine, Request
from vljax.generate.media import Media, read_media
from vljax.generate.sampling import Sampling
from vljax.store import Tree

CHANCE = {
    "object": 1 / len(OBJECTS),
    "colour": 1 / len(COLOURS),
    "motion": 1 / len(MOTIONS),
    "caption": 1 / (len(OBJECTS) * len(COLOURS) * len(MOTIONS)),
    "sound": 1 / len(OBJECTS),
    "order": 1 / (len(OBJECTS) * (len(OBJECTS) - 1)),
    "both": 1 / (len(OBJECTS) ** 2 * len(COLOURS) * len(MOTIONS)),
}
SHORT = Sampling(max_new_tokens=32)
Report = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Exam:
    """Scenes with what was decoded from their files."""

    scenes: Sequence[Scene]
    media: Sequence[Media]

    def seen(self) -> list[Media]:
        return [dataclasses.replace(m, mel=None) for m in self.media]

    def heard(self) -> list[Media]:
        return [dataclasses.replace(m, frames=None) for m in self.media]


def evaluate_world(
    engine: Engine, seed: int, n: int, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Every score of the world, {"object": {...}, ..., "ablations": {...}}.

    ``n`` clips of one moving thing, whose sound is another's, and ``n`` clips with two sounds;
    ``n / 4`` each of cuts, pairs and silent clips.
    """
    rng = np.random.default_rng((seed, 7))
    more = max(1, n // 4)
    sets: list[list[Scene]] = [
        [_contradicting(rng) for _ in range(n)],
        [_drawn(rng, "one", 2) for _ in range(n)],
        [_drawn(rng, "cut", 1) for _ in range(more)],
        [_drawn(rng, "pair", 1) for _ in range(more)],
        [_drawn(rng, "one", 0) for _ in range(more)],
    ]
    with tempfile.TemporaryDirectory() as folder:
        main, two, cut, pair, silent = _read(engine, sets, Path(folder), progress)
    ask = Asker(engine)
    report: Report = {t: ask.score(t, main, main.seen()) for t in list(CHANCE)[:4]}
    report["sound"] = ask.score("sound", main, main.heard())
    report["order"] = ask.score("order", two, two.heard())
    report["both"] = ask.score("both", main, main.media)
    report["cut"] = ask.score("caption", cut, cut.seen(), chance=CHANCE["order"] / 36)
    report["pair"] = ask.score("caption", pair, pair.seen(), chance=CHANCE["order"] / 36)
    report["silence"] = ask.score("sound", silent, silent.heard(), chance=None)
    report["unknown"] = ask.score("unknown", cut, cut.media, chance=None)
    report["no_sound"] = ask.score("sound", main, main.seen(), chance=None)
    report["no_picture"] = ask.score("colour", main, main.heard(), chance=None)
    report["ablations"] = ablations(ask, main, two)
    return report


def ablations(ask: "Asker", main: Exam, two: Exam) -> Report:
    """What happens to the answers when a mechanism is taken away."""
    rng = np.random.default_rng(0)
    moving = [
        i for i, s in enumerate(main.scenes) if s.things[0].motion not in ("still", "circles")
    ]
    directed = Exam([main.scenes[i] for i in moving], [main.media[i] for i in moving])
    shown = directed.seen()
    backwards = [_with_frames(m, lambda f: f[::-1]) for m in shown]
    opposite = Exam([_opposite(s) for s in directed.scenes], directed.media)
    shuffled = [_with_frames(m, lambda f: f[rng.permutation(len(f))]) for m in shown]
    blank = [_with_frames(m, lambda f: np.full_like(f, 128)) for m in main.seen()]
    floor = float(min(m.mel.min() for m in main.media if m.mel is not None))
    muted = [dataclasses.replace(m, mel=np.full_like(m.mel, floor)) for m in main.media]
    others = np.roll(np.arange(len(main.media)), 1).tolist()
    swapped = [
        dataclasses.replace(m, mel=main.media[j].mel)
        for m, j in zip(main.media, others, strict=True)
    ]
    swapped_scenes = Exam(
        [
            dataclasses.replace(s, sounds=main.scenes[j].sounds)
            for s, j in zip(main.scenes, others, strict=True)
        ],
        swapped,
    )
    no_frame_position = ask.without("frame_position")
    no_audio_position = ask.without("audio_position")
    real_sound, real_picture = (ask.answers(t, main.media) for t in ("sound", "caption"))
    return {
        "frames_reversed_gives_opposite": ask.score("motion", opposite, backwards),
        "frames_shuffled_motion": ask.score("motion", directed, shuffled),
        "frame_positions_zeroed_motion": no_frame_position.score("motion", main, main.seen()),
        "blank_object": ask.score("object", main, blank),
        "blank_caption": ask.score("caption", main, blank),
        "sound_both_media": ask.score("sound", main, main.media),
        "caption_both_media": ask.score("caption", main, main.media),
        "muted_changes_sound_answer": score(_differ(real_sound, ask.answers("sound", muted))),
        "muted_keeps_picture_answer": score(_same(real_picture, ask.answers("caption", muted))),
        "swapped_sound_is_heard": ask.score("sound", swapped_scenes, swapped),
        "swapped_keeps_picture_answer": score(_same(real_picture, ask.answers("caption", swapped))),
        "audio_positions_zeroed_order": no_audio_position.score("order", two, two.heard()),
    }


@dataclasses.dataclass
class Asker:
    """Asks an engine one topic about many media, in random wordings."""

    engine: Engine

    def answers(self, topic: str, media: Sequence[Media]) -> list[str]:
        questions = language.QUESTIONS[topic]
        wording = np.random.default_rng(len(topic)).integers(len(questions), size=len(media))
        requests = [Request(questions[w], m) for w, m in zip(wording, media, strict=True)]
        return self.engine.answer(requests, SHORT)

    def score(
        self, topic: str, exam: Exam, media: Sequence[Media], chance: float | None = -1
    ) -> dict[str, Any]:
        """Exact match of whole answers with what is right for the media given."""
        right = [
            language.answer(
                topic,
                scene if m.frames is not None else None,
                (scene.sounds or ()) if m.mel is not None else None,
            )
            for scene, m in zip(exam.scenes, media, strict=True)
        ]
        hits = _same(self.answers(topic, media), right)
        return score(hits, CHANCE.get(topic) if chance == -1 else chance)

    def without(self, table: str) -> "Asker":
        """The same model with a position table set to zero."""
        params: Tree = dict(self.engine.params)
        params[table] = {"embedding": np.zeros_like(params[table]["embedding"])}
        return Asker(dataclasses.replace(self.engine, params=params))


def _drawn(rng: np.random.Generator, kind: Kind, sounds: int) -> Scene:
    return random_scene(rng, "test", kind, sounds)


def _contradicting(rng: np.random.Generator) -> Scene:
    """One thing, and the sound of another."""
    while True:
        scene = _drawn(rng, "one", 1)
        if scene.sounds != (scene.things[0].object,):
            return scene


def _opposite(scene: Scene) -> Scene:
    thing = scene.things[0]
    turned = dataclasses.replace(thing, motion=OPPOSITE[thing.motion])
    return dataclasses.replace(scene, things=(turned,))


def _with_frames(media: Media, change: Callable[[np.ndarray], np.ndarray]) -> Media:
    assert media.frames is not None
    return dataclasses.replace(media, frames=np.ascontiguousarray(change(media.frames)))


def _same(got: Sequence[str], right: Sequence[str | None]) -> list[bool]:
    return [a == b for a, b in zip(got, right, strict=True)]


def _differ(got: Sequence[str], other: Sequence[str]) -> list[bool]:
    return [a != b for a, b in zip(got, other, strict=True)]


def _read(
    engine: Engine,
    sets: Sequence[Sequence[Scene]],
    folder: Path,
    progress: Callable[[int, int], None] | None,
) -> list[Exam]:
    """Writes each set's clips and decodes them again."""
    scenes = [s for part in sets for s in part]
    write_scenes(folder, scenes, progress)
    media = [read_media(clip_path(folder, i), engine.size) for i in range(len(scenes))]
    exams, start = [], 0
    for part in sets:
        exams.append(Exam(part, media[start : start + len(part)]))
        start += len(part)
    return exams

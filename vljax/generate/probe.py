"""Does a model look and listen, or guess? An answer's likelihood with media that are spoilt.

The prompt's text stays what it is with the real file; only what stands for its media is exchanged.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vljax.data.audio import mel_clips
from vljax.data.world import render
from vljax.data.world.scenes import random_scene
from vljax.data.world.sound import RATE, waveform
from vljax.generate.engine import Engine, Request
from vljax.generate.likelihood import log_likelihoods
from vljax.generate.media import Media
from vljax.generate.sampling import Sampling
from vljax.models.sizes import VideoLlamaSize

REAL = "as it is"
SPOILT = {  # what a change takes away
    "picture blank": "picture",
    "another clip's picture": "picture",
    "frames shuffled": "order",
    "sound muted": "sound",
    "another clip's sound": "sound",
}
NAMES = {"picture": "the picture", "order": "the order of its frames", "sound": "the sound"}
TIMES = 10.0  # less likely, from which on an answer rests on what was taken away
GREY = 128


@dataclasses.dataclass(frozen=True)
class Row:
    """One version of the media.

    Attributes:
      log_likelihood: of the answer to the real media, in nats. answer: the model's own to these.
    """

    given: str
    log_likelihood: float
    answer: str


@dataclasses.dataclass(frozen=True)
class Probe:
    """``tokens``: how many the likelihoods are of, the end's included."""

    question: str
    answer: str
    tokens: int
    rows: tuple[Row, ...]
    times: float = TIMES

    def less_likely(self, row: Row) -> float:
        """How many times less likely the answer is than with the real media."""
        return math.exp(min(self.rows[0].log_likelihood - row.log_likelihood, 700.0))

    @property
    def losses(self) -> dict[str, float]:
        """How many times less likely the answer becomes, at most, by what is taken away."""
        found: dict[str, float] = {}
        for row in self.rows[1:]:
            what = SPOILT[row.given]
            found[what] = max(found.get(what, 0.0), self.less_likely(row))
        return found

    @property
    def rests_on(self) -> tuple[str, ...]:
        return tuple(what for what, times in self.losses.items() if times >= self.times)

    @property
    def verdict(self) -> str:
        """One sentence."""
        yes = [
            f"{NAMES[what]} ({_count(self.losses[what])} times less likely without it)"
            for what in self.rests_on
        ]
        rest = [what for what in self.losses if what not in self.rests_on]
        no = _listed([NAMES[what] for what in rest], "or")
        most = max((self.losses[what] for what in rest), default=1.0)
        if not yes:
            return (
                f"The answer rests on nothing in the file: no change of {no} makes it "
                f"{self.times:g} times less likely (at most {_count(most)})."
            )
        but = f", not on {no} (at most {_count(most)})" if no else ""
        return f"The answer rests on {_listed(yes, 'and')}{but}."


def _count(n: float) -> str:
    if n > 1e6:
        return "over a million"
    return f"{n:.1f}" if n < 100 else f"{float(f'{n:.2g}'):,.0f}"


def _listed(words: Sequence[str], last: str) -> str:
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def probe(
    engine: Engine,
    media: Media,
    question: str,
    answer: str = "",
    other: Media | None = None,
    times: float = TIMES,
    max_new_tokens: int = 64,
) -> Probe:
    """Asks, and compares how likely the answer is with the real media and with spoilt ones.

    Args:
      answer: whose likelihood is taken; the model's own (greedy) by default.
      other: the other clip; one of the tiny world's by default.
      times: how many times less likely an answer must become to rest on what was taken away.
    """
    other = made_clip(engine.size) if other is None else other
    versions = {REAL: media} | spoilt(media, other, engine.size)
    requests = [Request(question, m) for m in versions.values()]
    own = engine.answer(requests, Sampling(max_new_tokens=max_new_tokens))
    answer = answer or own[0]
    found = log_likelihoods(engine, requests, [answer] * len(requests))
    rows = tuple(map(Row, versions, [f.nats for f in found], own))
    return Probe(question, answer, found[0].tokens, rows, times)


def spoilt(media: Media, other: Media, size: VideoLlamaSize) -> dict[str, Media]:
    """The media with one thing taken away, by SPOILT's names."""
    found: dict[str, Media] = {}

    def picture(frames: np.ndarray) -> Media:
        return dataclasses.replace(media, frames=frames)

    def sound(mel: np.ndarray) -> Media:
        return dataclasses.replace(media, mel=mel)

    if media.frames is not None:
        count = len(media.frames)
        found["picture blank"] = picture(np.full_like(media.frames, GREY))
        if other.frames is not None:
            found["another clip's picture"] = picture(_as_many(other.frames, count))
        if count > 1:
            found["frames shuffled"] = picture(media.frames[shuffled(count)])
    if media.mel is not None:
        found["sound muted"] = sound(silence(size))
        if other.mel is not None:
            found["another clip's sound"] = sound(other.mel)
    return found


def _as_many(frames: np.ndarray, count: int) -> np.ndarray:
    return frames[np.arange(count) * len(frames) // count]


def shuffled(count: int) -> np.ndarray:
    """An order in which no frame stays in its place, and none follows its predecessor."""
    rng = np.random.default_rng(0)
    for _ in range(1000):
        order = rng.permutation(count)
        if (order != np.arange(count)).all() and (abs(np.diff(order)) > 1).all():
            return order
    return np.arange(count)[::-1].copy()  # of two or three there is none


def silence(size: VideoLlamaSize) -> np.ndarray:
    """Mel clips [S, bins, frames] of no sound at all."""
    spec = size.audio
    made = mel_clips(np.zeros((1, 10 * spec.rate), np.float32), spec.rate, spec)
    assert made is not None
    return made


def made_clip(size: VideoLlamaSize) -> Media:
    """A clip of the tiny world, seen and heard."""
    scene = random_scene(np.random.default_rng(5), "train", "one", 1)
    side = (size.vit.image, size.vit.image)
    frames = np.stack([_resized(f, side) for f in render.frames(scene, 8)])
    wave = waveform(scene)
    assert wave is not None
    return Media(frames, mel_clips(wave[None], RATE, size.audio))


def _resized(image: np.ndarray, side: tuple[int, int]) -> np.ndarray:
    from vljax.data.video import resize_image

    return resize_image(image, side)


def as_dict(found: Probe) -> Mapping[str, Any]:
    """For JSON."""
    rows = [
        dataclasses.asdict(row) | {"times_less_likely": round(found.less_likely(row), 3)}
        for row in found.rows
    ]
    return {
        "question": found.question,
        "answer": found.answer,
        "tokens": found.tokens,
        "rows": rows,
        "rests_on": list(found.rests_on),
        "verdict": found.verdict,
    }

"""Named policies: which frames and sounds of a long clip, and how they fit the position tables.

The paper looks at 8 frames and 8 sounds, however long the clip is. Its tables have 32 and 8 rows,
of which its training reaches 8 and 8: `ROWS` of them is what the other policies build on.
"""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from vljax.data import video
from vljax.data.audio import mel_clips, read_audio
from vljax.data.video import MediaError
from vljax.generate.compiled import jit, placed
from vljax.generate.engine import LENGTHS, Engine
from vljax.generate.media import FRAMES, Encoded
from vljax.models.memory import Memory, blank, remember
from vljax.models.sizes import VideoLlamaSize
from vljax.models.video_llama import VideoLlama
from vljax.store import Tree

WINDOW = 4.0  # seconds
ROOM = 256  # tokens of the context that are left to question and answer
CHUNKS = (2, FRAMES, 32)  # frames, or sounds, that go through the towers at once

Fit = Literal["table", "stretch", "windows", "merge"]


@dataclasses.dataclass(frozen=True)
class Policy:
    """How a long clip is looked at and listened to.

    Attributes:
      fit: what is done to have a position for every frame: as many are taken as the table has
        rows; its first ``rows`` are drawn out; each window has them to itself; or neighbours
        are merged until they suffice.
      rate: frames a second that are looked at; 0 is ``FRAMES``, of the clip or of each window.
      most: at most so many frames. rows: of the frames' table that training reached.
      told: a line for who chooses.
    """

    fit: Fit
    told: str
    rate: float = 0.0
    most: int = 0
    rows: int = FRAMES


POLICIES = {
    "uniform": Policy("table", "8 frames and 8 sounds, as in the paper"),
    "interpolate": Policy(
        "stretch", "2 frames a second, up to 128, at positions in between", rate=2.0, most=128
    ),
    "windows": Policy("windows", "8 frames and 8 sounds of every window, all in the prompt"),
    "memory": Policy(
        "merge", "2 frames a second, up to 1024; likest neighbours are merged", rate=2.0, most=1024
    ),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Of a clip of a given length: ``windows`` of it, ``frames`` and ``sounds`` of each."""

    windows: int
    frames: int
    sounds: int


def plan(
    policy: Policy, seconds: float, size: VideoLlamaSize, frames: int = 0, window: float = WINDOW
) -> Plan:
    """What ``policy`` takes of a clip of so many seconds.

    ``frames``, if given, is how many to look at, of the clip or of each window. Sounds go along: as
    many for every ``FRAMES`` frames as the audio table has rows. Raises ValueError for more frames
    than the table has, or more windows than the context.
    """
    if window <= 0:
        raise ValueError(f"window: got {window:g} s, expected more than 0")
    if frames < 0:
        raise ValueError(f"frames: got {frames}, expected 1 or more, or 0 for the policy's own")
    usual = min(FRAMES, size.max_frames)
    if policy.rate:
        count = frames or min(max(math.ceil(policy.rate * seconds), usual), policy.most)
        return Plan(1, count, size.max_clips * math.ceil(count / usual))
    if frames > size.max_frames:
        raise ValueError(
            f"frames: got {frames}, expected at most the {size.max_frames} rows of the position "
            "table; --policy interpolate or memory takes more"
        )
    windows = max(1, math.ceil(seconds / window - 1e-6)) if policy.fit == "windows" else 1
    _require_room(windows, seconds, window, size)
    return Plan(windows, frames or usual, size.max_clips)


def _require_room(windows: int, seconds: float, window: float, size: VideoLlamaSize) -> None:
    each = size.video_qformer.queries + size.audio_qformer.queries
    fitting = (LENGTHS[-1] - ROOM) // each
    if windows > fitting:
        raise ValueError(
            f"windows: got {windows} of {window:g} s, {each} tokens each, expected at most "
            f"{fitting} in a context of {LENGTHS[-1]} that leaves {ROOM} to questions; take "
            f"--window {math.ceil(seconds / fitting)} or longer, or --policy memory"
        )


def read_long(
    path: str | Path,
    engine: Engine,
    policy: Policy,
    *,
    frames: int = 0,
    window: float = WINDOW,
    look: bool = True,
    listen: bool = True,
) -> Encoded:
    """Reads a clip or a sound file by a policy, and runs the towers over what it takes.

    Raises MediaError as ``read_media``, and ValueError as ``plan``.
    """
    size, shape = engine.size, (engine.size.vit.image, engine.size.vit.image)
    track = read_audio(path) if listen else None
    seconds = 0.0 if track is None else track[0].shape[1] / track[1]
    sight, sound, message, parts = None, None, "", 0
    if look:
        fps = video.frame_rate(path)
        taken: list[np.ndarray] = []

        def pick(count: int) -> np.ndarray:
            taken[:] = frame_parts(count, plan(policy, count / fps, size, frames, window))
            return np.concatenate(taken)

        clip = video.read_clip(path, pick, shape)
        seconds, parts = clip.duration, len(taken)
        tokens = frame_tokens(engine, clip.frames)
        cuts = np.cumsum([len(t) for t in taken])[:-1]
        times = clip.indices / clip.fps
        sight, kept = see(engine, policy, np.split(tokens, cuts), np.split(times, cuts))
        message = told(kept, policy)
    if track is not None:
        planned = plan(policy, seconds, size, frames, window)
        count = parts or planned.windows
        mels = sound_parts(*track, size, planned.sounds, seconds / count, count)
        if mels:
            features = np.split(sound_features(engine, np.concatenate(mels)), len(mels))
            sound = hear(engine, policy, features)
    if sight is None and sound is None:
        raise MediaError(
            f"{path}: got no picture to look at and no sound of at least 25 ms; leave both "
            "switched on, or take another file"
        )
    return Encoded(sight, sound, message)


def frame_parts(count: int, planned: Plan) -> list[np.ndarray]:
    """Which of ``count`` frames are looked at, window by window; windows without one are none."""
    bounds = np.arange(planned.windows + 1) * count // planned.windows
    return [
        start + video.uniform_indices(end - start, planned.frames)
        for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
        if end > start
    ]


def sound_parts(
    wave: np.ndarray, rate: int, size: VideoLlamaSize, count: int, seconds: float, windows: int
) -> list[np.ndarray]:
    """``count`` mel clips [count, bins, frames] of each window of so many seconds that sounds."""
    spec = dataclasses.replace(size.audio, clips=count)
    if windows == 1:
        parts = [mel_clips(wave, rate, spec)]
    else:
        bounds = (np.arange(windows + 1) * seconds * rate).round().astype(int)
        parts = [
            mel_clips(wave[:, a:b], rate, spec)
            for a, b in itertools.pairwise(bounds)
            if a < wave.shape[1]
        ]
    return [p for p in parts if p is not None]


def told(times: np.ndarray, policy: Policy) -> str:
    """The sentence about frames seen at ``times`` [T] seconds, shorter where they are many."""
    if policy.fit == "table" or len(times) <= policy.rows:
        return video.times_message(times.tolist())
    start, end = (str(round(float(t), 1)) for t in (times[0], times[-1]))
    return f"The video contains {len(times)} frames sampled evenly from {start} to {end} seconds. "


# From pixels and spectrograms to what the frozen towers make of them


def frame_tokens(engine: Engine, frames: np.ndarray) -> np.ndarray:
    """frames uint8 [T, H, W, 3] -> [T, Q, D], a few at a time."""
    return _in_chunks(_frame_tokens, engine, frames)


def sound_features(engine: Engine, mel: np.ndarray) -> np.ndarray:
    """mel float32 [S, bins, frames] -> ImageBind's [S, out], a few at a time."""
    return _in_chunks(_sound_features, engine, mel)


def _in_chunks(run: Any, engine: Engine, rows: np.ndarray) -> np.ndarray:
    """``run`` on rows [N, ...] in chunks of a static size, the last one filled up with zeros."""
    chunk, done = _chunk(len(rows)), []
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        filled = np.zeros((chunk, *rows.shape[1:]), rows.dtype)
        filled[: len(part)] = part
        with placed(engine.placement):
            made = run(engine.model, engine.params, filled)
        done.append(np.asarray(made)[: len(part)])
    return np.concatenate(done)


def _chunk(count: int) -> int:
    return next((size for size in CHUNKS if size >= count), CHUNKS[-1])


@jit("model")
def _frame_tokens(model: VideoLlama, params: Tree, frames: jax.Array) -> jax.Array:
    tokens: Any = model.apply({"params": params}, frames[None], True, method="frame_tokens")
    return tokens[0]


@jit("model")
def _sound_features(model: VideoLlama, params: Tree, mel: jax.Array) -> jax.Array:
    features: Any = model.apply({"params": params}, mel[None], method="sound_features")
    return features[0]


# From these to soft prompts


def see(
    engine: Engine, policy: Policy, parts: list[np.ndarray], times: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Frame tokens [T, Q, D] and times [T] of each window -> soft prompts [P, D], and the times.

    Where frames are merged, the times are the means of those that became one.
    """
    places = min(policy.rows, engine.size.max_frames)
    if policy.fit == "merge":
        memory = merged(parts[0], times[0], places)
        parts, times = [memory[0]], [memory[1]]
    longest = max(map(len, parts))
    stretch = places if policy.fit == "stretch" and longest > places else 0
    tokens, valid = _filled(parts, longest if stretch else max(longest, places))
    with placed(engine.placement):
        prompts = _video_tokens(engine.model, engine.params, tokens, valid, stretch)
    return np.asarray(prompts).reshape(-1, prompts.shape[-1]), np.concatenate(times)


def hear(engine: Engine, policy: Policy, parts: list[np.ndarray]) -> np.ndarray:
    """ImageBind's features [S, out] of each window's sounds -> soft prompts [S', D]."""
    places = engine.size.max_clips
    if policy.fit == "merge":
        order = np.arange(len(parts[0]), dtype=np.float32)
        parts = [merged(parts[0][:, None], order, places)[0][:, 0]]
    longest = max(map(len, parts))
    stretch = places if policy.fit == "stretch" and longest > places else 0
    features, valid = _filled(parts, longest if stretch else max(longest, places))
    with placed(engine.placement):
        prompts = _audio_tokens(engine.model, engine.params, features, valid, stretch)
    return np.asarray(prompts).reshape(-1, prompts.shape[-1])


def merged(frames: np.ndarray, times: np.ndarray, places: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames [T, Q, D] at times [T], merged until ``places`` remain, and their times."""
    memory = blank(places, *frames.shape[1:])
    for start in range(0, len(frames), CHUNKS[-1]):
        part = slice(start, start + CHUNKS[-1])
        memory = add(memory, frames[part], times[part])
    return contents(memory)


def add(memory: Memory, frames: np.ndarray, times: np.ndarray) -> Memory:
    """``remember`` of as many frames as go through the towers at once, or fewer."""
    count = _chunk(len(frames))
    tokens, valid = _filled([frames], count)
    at = np.zeros(count, np.float32)
    at[: len(times)] = times
    return _remember(memory, tokens[0], at, valid[0])


def contents(memory: Memory) -> tuple[np.ndarray, np.ndarray]:
    """The entries [n, Q, D] that are there, and their times [n]."""
    used = int((np.asarray(memory.weights) > 0).sum())
    return np.asarray(memory.entries)[:used], np.asarray(memory.times)[:used]


@jit(())
def _remember(memory: Memory, frames: jax.Array, times: jax.Array, valid: jax.Array) -> Memory:
    return remember(memory, frames, times, valid)


@jit(("model", "stretch"))
def _video_tokens(
    model: VideoLlama, params: Tree, tokens: jax.Array, valid: jax.Array, stretch: int
) -> jax.Array:
    tokens = jnp.asarray(tokens, model.dtype)
    prompts: Any = model.apply(
        {"params": params}, tokens, valid, stretch=stretch, method="video_tokens"
    )
    return prompts


@jit(("model", "stretch"))
def _audio_tokens(
    model: VideoLlama, params: Tree, features: jax.Array, valid: jax.Array, stretch: int
) -> jax.Array:
    prompts: Any = model.apply(
        {"params": params}, features, valid, stretch=stretch, method="audio_tokens"
    )
    return prompts


def _filled(parts: list[np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Parts [T, ...] as one [W, count, ...], and which rows are there, bool [W, count]."""
    rows = np.zeros((len(parts), count, *parts[0].shape[1:]), parts[0].dtype)
    valid = np.zeros((len(parts), count), bool)
    for i, part in enumerate(parts):
        rows[i, : len(part)], valid[i, : len(part)] = part, True
    return rows, valid

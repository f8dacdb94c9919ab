"""Clips whose sounds are known: fresh ones of the tiny world, or the user's own with labels.

A user's clips are told by a CSV with the columns ``file_name`` and ``sound`` (several sounds are
separated by ";") and, if wanted, ``shown``: what the picture shows; or by a folder that holds such
a metadata.csv, or a folder of clips for each sound.
"""

import csv
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from vljax.data.audio import mel_clips, read_audio, resample
from vljax.data.decode_worker import Decoders
from vljax.data.quarantine import BAD, reason
from vljax.data.video import MediaError
from vljax.data.world.files import clip_path, write_scenes
from vljax.data.world.scenes import OBJECTS, Scene, random_scene
from vljax.evaluate.naming import overlap, spellings
from vljax.generate.media import Media, has_picture, read_media
from vljax.models.sizes import VideoLlamaSize

AHEAD = 8  # clips that are read before they are used
TABLE = "metadata.csv"


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A file, the sounds in it and the things in its picture."""

    path: Path
    heard: tuple[str, ...]
    shown: tuple[str, ...] = ()


def world_scenes(seed: int, n: int) -> list[Scene]:
    """Clips of one moving thing and one other thing's sound; every sound is as frequent."""
    rng = np.random.default_rng((seed, 13))
    return [_contradicting(rng, OBJECTS[i % len(OBJECTS)]) for i in range(n)]


def _contradicting(rng: np.random.Generator, sound: str) -> Scene:
    while True:
        scene = random_scene(rng, "test", "one", 1)
        if scene.things[0].object != sound:
            return dataclasses.replace(scene, sounds=(sound,))


def world_clips(
    folder: Path, seed: int, n: int, progress: Callable[[int, int], None] | None = None
) -> list[Labelled]:
    """Writes ``n`` clips of the tiny world below ``folder``."""
    scenes = world_scenes(seed, n)
    write_scenes(folder, scenes, progress)
    return [
        Labelled(clip_path(folder, i), s.sounds or (), (s.things[0].object,))
        for i, s in enumerate(scenes)
    ]


def own_clips(path: Path) -> list[Labelled]:
    """The user's clips. Raises ValueError or OSError where labels are missing."""
    if path.is_dir() and (path / TABLE).exists():
        path = path / TABLE
    found = _from_folders(path) if path.is_dir() else _from_table(path)
    return _one_spelling(found)


def _from_folders(path: Path) -> list[Labelled]:
    found = [
        Labelled(file, (folder.name,))
        for folder in sorted(path.iterdir())
        if folder.is_dir() and not folder.name.startswith(".") and spellings(folder.name)
        for file in sorted(folder.iterdir())
        if file.is_file() and not file.name.startswith(".")
    ]
    if not found:
        raise ValueError(
            f"{path}: got neither {TABLE} nor folders with clips, expected one of them; name a CSV "
            "with the columns file_name and sound, or put the clips of each sound in a folder of "
            "its name"
        )
    return found


def _from_table(path: Path) -> list[Labelled]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        columns = [c.strip() for c in table.fieldnames or ()]
        table.fieldnames = columns
        if missing := {"file_name", "sound"} - set(columns):
            raise ValueError(
                f"{path}: got the columns {', '.join(columns) or 'of nothing'}, expected file_name "
                f"and sound; add {' and '.join(sorted(missing))}"
            )
        found = [
            Labelled(
                path.parent / (row["file_name"] or "").strip(),
                _parts(row["sound"]),
                _parts(row.get("shown")),
            )
            for row in table
        ]
    for number, clip in enumerate(found, 2):
        if not clip.heard or not clip.path.name:
            raise ValueError(
                f"{path}: line {number} has no file_name or no sound, expected both; leave clips "
                "without a sound out"
            )
    return found


def _parts(cell: str | None) -> tuple[str, ...]:
    return tuple(part for x in (cell or "").split(";") if (part := x.strip()) and spellings(part))


def _one_spelling(clips: Sequence[Labelled]) -> list[Labelled]:
    """Labels that are the same words ("Dog", "a dog", "dogs") become the first of them."""
    first: dict[str, str] = {}

    def unified(labels: tuple[str, ...]) -> tuple[str, ...]:
        known = [first.setdefault(" ".join(spellings(x)[0]), x) for x in labels]
        return tuple(dict.fromkeys(known))

    return [dataclasses.replace(c, heard=unified(c.heard), shown=unified(c.shown)) for c in clips]


def vocabulary(clips: Sequence[Labelled]) -> list[str]:
    """Every sound of the clips. Raises ValueError for fewer than two that words can tell apart."""
    labels = list(dict.fromkeys(label for clip in clips for label in clip.heard))
    if not any(not overlap(a, b) for a in labels for b in labels):
        raise ValueError(
            f"sounds: got only {', '.join(labels) or 'none'}, expected at least two that are told "
            "apart by their words; add clips with another sound"
        )
    return labels


def noise_like(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """White noise [1, samples] of the level (root mean square about the mean) of channel 0."""
    level = wave[0].std()
    noise = rng.normal(size=wave.shape[1])
    noise = (noise - noise.mean()) / max(noise.std(), 1e-12)
    return (level * noise).astype(np.float32)[None]


def read_sound(
    path: Path, size: VideoLlamaSize, look: bool, seed: Sequence[int]
) -> tuple[Media, np.ndarray]:
    """A file's media and, in its sound's place, mel clips of noise. Raises MediaError.

    The noise is made at the rate of the towers: at a higher one, part of it would be out of
    their hearing.
    """
    media = read_media(path, size, look and has_picture(path), True)
    track = read_audio(path)
    if media.mel is None or track is None:
        raise MediaError(f"{path}: got no sound of at least 25 ms; leave it out, or add a sound")
    wave = resample(*track, size.audio.rate)
    noise = mel_clips(noise_like(wave, np.random.default_rng(seed)), size.audio.rate, size.audio)
    assert noise is not None
    return media, noise


def read_all(
    clips: Sequence[Labelled],
    size: VideoLlamaSize,
    look: bool,
    seed: int,
    decoders: Decoders,
) -> Iterator[tuple[Labelled, tuple[Media, np.ndarray] | str]]:
    """Every clip with what ``read_sound`` gives, or why it can't be read."""
    jobs: list[Future] = []
    for i, clip in enumerate(clips):
        for j in range(len(jobs), min(i + AHEAD, len(clips))):
            jobs.append(decoders.submit(read_sound, clips[j].path, size, look, (seed, 19, j)))
        try:
            yield clip, jobs[i].result()
        except BAD as error:
            told = reason(error)
            yield clip, told if str(clip.path) in told else f"{clip.path}: {told}"
        jobs[i] = Future()  # its pixels are done with

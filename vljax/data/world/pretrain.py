"""Batches that make the parts which are frozen later: words, tagged pictures, pictures with sounds.

Each function is pure in its generator; arrays only, no files.
"""

import dataclasses

import numpy as np

from vljax.data.audio import AudioSpec, mel_clips
from vljax.data.text import (
    CAPTION_PROMPTS,
    IGNORE,
    IMAGE_HERE,
    TEMPLATES,
    TextExample,
    Tokenizer,
    caption_example,
    collate,
    conversation_example,
)
from vljax.data.world import language, render, sound
from vljax.data.world.scenes import (
    COLOURS,
    HELD_OUT_PAIRS,
    OBJECTS,
    Kind,
    Scene,
    Thing,
    random_scene,
)

LENGTHS = (64, 112)  # tokens of a text batch
BINS = 12  # of x, y and size
CLASSES = {"object": len(OBJECTS) + 1, "colour": len(COLOURS), "x": BINS, "y": BINS, "size": BINS}
TEMPLATE = TEMPLATES["tiny"]
PATCH = 8  # pixels; the tiny ViT's
_ROW = np.arange(PATCH / 2, render.SIDE, PATCH)
_CENTRES = np.stack(np.meshgrid(_ROW, _ROW), -1).reshape(-1, 2)  # (x, y) of patches, row-major


def text_batch(rng: np.random.Generator, size: int, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """Conversations about described clips: the description stands where media will stand.

    tokens, labels, mask as ``text.collate``, and ``context`` bool [B, L]: the description's tokens.
    A batch is all short or all long (``LENGTHS``), in the shares that conversations have.
    """
    at_least, length = ((0, LENGTHS[0]), LENGTHS)[int(rng.random() < 0.4)]
    examples: list[tuple[TextExample, np.ndarray]] = []
    while len(examples) < size:
        example = _text_example(rng, tokenizer)
        if at_least < len(example[0].tokens) <= length:
            examples.append(example)
    batch = collate([e for e, _ in examples], length)
    context = np.zeros(batch["tokens"].shape, bool)
    for row, (_, where) in zip(context, examples, strict=True):
        row[where] = True
    return batch | {"context": context}


def _text_example(rng: np.random.Generator, tokenizer: Tokenizer) -> tuple[TextExample, np.ndarray]:
    layout = rng.random()
    moving = rng.random() < 0.8
    stills: tuple[Kind, ...] = ("one", "pair", "empty")
    scene = random_scene(rng, "any", None if moving else stills[rng.integers(3)])
    if layout < 0.2:  # the captioning stages, with sounds or pictures
        heard = rng.random() < 0.4
        words = _heard_words(scene) if heard else language.picture_words(scene, moving)
        caption = f"I hear {words}." if heard else language.sentence(words)
        bare = layout < 0.06
        prompt = TEMPLATE.caption.format(rng.choice(CAPTION_PROMPTS))
        end = "\n" if bare else TEMPLATE.end
        example = caption_example(tokenizer, caption, 1, None if bare else prompt, end, 64)
        return _fill(tokenizer, example, [words])
    return _chat_example(rng, tokenizer, scene, moving)


def _heard_words(scene: Scene) -> str:
    return language.sound_words(scene.sounds or ())


def _chat_example(
    rng: np.random.Generator, tokenizer: Tokenizer, scene: Scene, moving: bool
) -> tuple[TextExample, np.ndarray]:
    """One to three questions about a picture, a sound, or both, in any of the layouts in use."""
    which = rng.choice(("sight", "sound", "both"), p=(0.3, 0.25, 0.45))
    seen = scene if which != "sound" else None
    heard = (scene.sounds or ()) if which != "sight" else None
    tag = "Video" if moving and rng.random() < 0.7 else "Image"
    parts: list[str] = []
    slots: list[str | None] = []
    if heard is not None:
        slot = _slot(rng, language.sound_words(heard), slots)
        gap = "" if slot == IMAGE_HERE else " "
        parts.append(f"{language.HEAR}{gap}{slot}. ")
    if seen is not None:
        slot = _slot(rng, language.picture_words(seen, moving), slots)
        lead = language.SEE if heard is not None and rng.random() < 0.7 else ""
        gap = rng.choice((" ", "\n", " "))
        parts.append(f"{lead}<{tag}>{slot}</{tag}>{gap}")
        if heard is not None and not lead and rng.random() < 0.5:
            parts.reverse()
            slots.reverse()
    if rng.random() < 0.3:
        parts[-1] += " "
    weights = language.ASKED_OF_SIGHT if rng.random() < 0.5 else language.ASKED_OF_SOUND
    asked = language.turns(rng, seen, heard, int(rng.integers(1, 4)), moving, weights)
    turns = [pair for t in asked for pair in (("human", t.question), ("gpt", t.answer))]
    turns[0] = ("human", "".join(parts) + turns[0][1])
    filled = [s for s in slots if s is not None]
    example = conversation_example(tokenizer, turns, TEMPLATE, len(filled), 512, "clean")
    return _fill(tokenizer, example, filled)


def _slot(rng: np.random.Generator, words: str, slots: list[str | None]) -> str:
    """Mostly a placeholder to be filled with the words' ids; else the words as running text."""
    spliced = rng.random() < 0.75
    slots.append(words if spliced else None)
    return IMAGE_HERE if spliced else words


def _fill(
    tokenizer: Tokenizer, example: TextExample, slots: list[str]
) -> tuple[TextExample, np.ndarray]:
    """Puts the words' ids in the placeholders' places; returns where they are, too."""
    tokens: list[int] = []
    labels: list[int] = []
    where: list[int] = []
    remaining = iter(slots)
    for token, label in zip(example.tokens.tolist(), example.labels.tolist(), strict=True):
        ids = [token]
        if token == tokenizer.image_here:
            ids = tokenizer.encode(next(remaining))
            where += range(len(tokens), len(tokens) + len(ids))
        tokens += ids
        labels += [label] * len(ids)
    filled = TextExample(np.array(tokens, np.int32), np.array(labels, np.int32))
    return filled, np.array(where, int)


def tags_batch(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    """Pictures with tags: frames uint8 [B, 1, H, W, 3], tags int32 [B, 2, 5], patch_tags [B, P],
    rgb float32 [B, 2, 3].

    A row of tags is object (the last class: none), colour, and bins of x, y and size, for the
    left and the right thing. Half of the things have a colour off the palette, whose tag is
    IGNORE: else the encoder learns which colours an object never has, and gets new pairs wrong.
    A patch's tag is the object whose box holds its centre, or none. ``rgb`` is a thing's colour in
    0..1, off the palette or not, and NaN where there is no thing.
    """
    frames = np.empty((size, 1, render.SIDE, render.SIDE, 3), np.uint8)
    tags = np.full((size, 2, len(CLASSES)), IGNORE, np.int32)
    tags[:, :, 0] = len(OBJECTS)
    patch_tags = np.full((size, len(_CENTRES)), len(OBJECTS), np.int32)
    rgb = np.full((size, 2, 3), np.nan, np.float32)
    kinds: tuple[Kind, ...] = ("one", "pair", "empty")
    for i in range(size):
        kind = kinds[rng.choice(3, p=(0.7, 0.25, 0.05))]
        placed = _place(rng, random_scene(rng, kind=kind).things)
        frames[i, 0] = render.snapshot(rng, [p for p, _ in placed])
        for j, ((_, colour, x, y, side), tag) in enumerate(placed):
            tags[i, j], rgb[i, j] = tag, colour / 255
            patch_tags[i, (abs(_CENTRES - (x, y)) < side / 2).all(1)] = tag[0]
    return {"frames": frames, "tags": tags, "patch_tags": patch_tags, "rgb": rgb}


def _place(
    rng: np.random.Generator, things: tuple[Thing, ...]
) -> list[tuple[render.Placed, tuple[int, ...]]]:
    moving = tuple(dataclasses.replace(t, motion=_any_motion(rng)) for t in things)
    placed: list[tuple[render.Placed, tuple[int, ...]]] = []
    for thing, (x, y, size) in render.place(rng, moving):
        known = rng.random() < 0.5
        rgb = render.colour(rng, thing.colour) if known else _stray_colour(rng, thing.object)
        tag = (
            OBJECTS.index(thing.object),
            COLOURS.index(thing.colour) if known else IGNORE,
            _bin(x, 6, 42),
            _bin(y, 6, 42),
            _bin(size, 12, 30),
        )
        placed.append(((thing.object, rgb, x, y, size), tag))
    return placed


def _stray_colour(rng: np.random.Generator, obj: str) -> np.ndarray:
    """Any colour but those that look like the one this object is never shown in."""
    held_out = next(c for o, c in HELD_OUT_PAIRS if o == obj)
    while True:
        rgb = rng.uniform(0, 255, 3).astype(np.float32)
        if np.abs(rgb - render.RGB[held_out]).sum() > 120:
            return rgb


def _any_motion(rng: np.random.Generator) -> str:
    return rng.choice(list(language.MOVES)).item()


def _bin(value: float, low: float, high: float) -> int:
    return int(np.clip((value - low) / (high - low) * BINS, 0, BINS - 1))


def pairs_batch(rng: np.random.Generator, size: int, spec: AudioSpec) -> dict[str, np.ndarray]:
    """Pictures with the sound of what they show; an empty picture goes with silence.

    In a third of them another sound fills the smaller part of the clip, as happens where one sound
    gives way to another: what fills most of a clip is what it is.

    frames uint8 [B, 1, H, W, 3], mel float32 [B, 1, bins, mel frames], kinds int32 [B]: the object
    (the last class: none).
    """
    one = dataclasses.replace(spec, clips=1)
    frames = np.empty((size, 1, render.SIDE, render.SIDE, 3), np.uint8)
    mel = np.empty((size, 1, spec.mel_bins, spec.mel_frames), np.float32)
    kinds = np.empty(size, np.int32)
    for i in range(size):
        empty = rng.random() < 0.12
        things = random_scene(rng, kind="empty" if empty else "one").things
        frames[i, 0] = render.snapshot(rng, [p for p, _ in _place(rng, things)])
        name = things[0].object if things else None
        track = sound.play(rng, name, round(one.clip_seconds * one.rate))
        if name and rng.random() < 1 / 3:
            other = sound.play(rng, rng.choice(OBJECTS).item(), len(track))
            cut = round(rng.uniform(0.02, 0.45) * len(track))
            edge = slice(None, cut) if rng.random() < 0.5 else slice(len(track) - cut, None)
            track[edge] = other[edge]
        mel[i] = mel_clips(track[None], sound.RATE, one)
        kinds[i] = OBJECTS.index(name) if name else len(OBJECTS)
    return {"frames": frames, "mel": mel, "kinds": kinds}

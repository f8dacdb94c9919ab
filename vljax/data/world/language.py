"""How the tiny world is put into words: descriptions, questions, answers."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from vljax.data.world.scenes import Scene, Thing

MOVES = {
    "left": "moves left",
    "right": "moves right",
    "up": "moves up",
    "down": "moves down",
    "grows": "grows",
    "shrinks": "shrinks",
    "still": "stays still",
    "circles": "goes in circles",
}

QUESTIONS = {
    "object": ("What is shown?", "What do you see?", "Name what is in the picture."),
    "colour": ("What colour is it?", "Which colour does it have?"),
    "motion": ("How does it move?", "What does it do?"),
    "caption": ("What happens?", "Describe what you see."),
    "sound": ("What do you hear?", "What does it sound like?", "Name the sound."),
    "order": ("What do you hear first, and what then?", "In which order do you hear the sounds?"),
    "both": (
        "What happens, and what do you hear?",
        "Describe what you see and what you hear.",
    ),
    "unknown": (
        "Who made this?",
        "How heavy is it?",
        "What does it smell like?",
        "Where was this filmed?",
        "How much does it cost?",
    ),
}
# How often each topic is asked about a picture, and about a sound.
ASKED_OF_SIGHT = {
    "object": 1.0,
    "colour": 1.0,
    "motion": 1.5,
    "caption": 1.5,
    "sound": 0.7,
    "order": 0.4,
    "both": 1.0,
    "unknown": 0.4,
}
ASKED_OF_SOUND = {
    "object": 0.5,
    "colour": 0.5,
    "motion": 0.5,
    "caption": 0.5,
    "sound": 2.0,
    "order": 2.0,
    "both": 2.0,
    "unknown": 0.3,
}
ASKED_BESIDE_SOUND = {
    t: ASKED_OF_SIGHT[t] for t in ("object", "colour", "motion", "caption", "unknown")
}
ASKED_BESIDE_SIGHT = {t: ASKED_OF_SOUND[t] for t in ("sound", "order", "unknown")}
UNKNOWN = "I can't tell from this."
NO_SOUND = "I can't tell: there is no sound."
NO_PICTURE = "I can't tell: there is no picture."
ONE_IMAGE = "I can't tell from one image."
HEAR, SEE = "You hear:", "You see:"


@dataclasses.dataclass(frozen=True)
class Turn:
    topic: str
    question: str
    answer: str


def picture_words(scene: Scene, moving: bool = True) -> str:
    """What a clip (or, not ``moving``, a still image) shows: "a red bell moves left"."""
    return _words(scene, moving, colour=True)


def sound_words(sounds: Sequence[str]) -> str:
    """ "a bell", "first a bell, then a drum" or "nothing"."""
    return _sequence([f"a {s}" for s in sounds])


def sentence(words: str) -> str:
    return words[0].upper() + words[1:] + "."


def answer(
    topic: str, scene: Scene | None, sounds: Sequence[str] | None, moving: bool = True
) -> str | None:
    """The right answer, or None where the question makes no sense.

    Args:
      topic: a key of QUESTIONS.
      scene: what is seen; None when there is no picture.
      sounds: what is heard; None when there is no sound, () for silence.
      moving: whether the picture is a clip.
    """
    if topic == "unknown":
        return UNKNOWN
    if topic == "both":
        return _both(scene, sounds, moving)
    if topic in ("sound", "order"):
        if sounds is None:
            return NO_SOUND
        return sentence(sound_words(sounds))
    if scene is None:
        return NO_PICTURE
    if topic == "caption":
        return sentence(picture_words(scene, moving))
    if topic == "object":
        return sentence(_words(scene, moving=False, colour=False))
    if scene.kind != "one":
        return None
    thing = scene.things[0]
    if topic == "colour":
        return sentence(thing.colour)
    return f"It {MOVES[thing.motion]}." if moving else ONE_IMAGE


def turns(
    rng: np.random.Generator,
    scene: Scene | None,
    sounds: Sequence[str] | None,
    count: int,
    moving: bool = True,
    weights: Mapping[str, float] = ASKED_OF_SIGHT,
) -> list[Turn]:
    """``count`` random questions about different topics, with their answers."""
    answers = {t: answer(t, scene, sounds, moving) for t in weights}
    possible = [t for t in weights if answers[t] is not None]
    share = np.array([weights[t] for t in possible])
    count = min(count, len(possible))
    chosen = rng.choice(possible, count, replace=False, p=share / share.sum()).tolist()
    return [Turn(t, rng.choice(QUESTIONS[t]).item(), str(answers[t])) for t in chosen]


def _both(scene: Scene | None, sounds: Sequence[str] | None, moving: bool) -> str:
    seen = None if scene is None else sentence(picture_words(scene, moving))[:-1]
    heard = None if sounds is None else f"I hear {sound_words(sounds)}."
    if seen and heard:
        return f"{seen}, and {heard}"
    if seen:
        return f"{seen}, but there is no sound."
    if heard:
        return f"There is no picture, but {heard}"
    return "There is no picture and no sound."


def _words(scene: Scene, moving: bool, colour: bool) -> str:
    def name(thing: Thing) -> str:
        return f"a {thing.colour} {thing.object}" if colour else f"a {thing.object}"

    names = [name(t) for t in scene.things]
    if scene.kind == "pair":
        return " and ".join(names)
    if scene.kind == "one" and moving:
        return f"{names[0]} {MOVES[scene.things[0].motion]}"
    return _sequence(names)


def _sequence(names: list[str]) -> str:
    if not names:
        return "nothing"
    return names[0] if len(names) == 1 else f"first {names[0]}, then {names[1]}"

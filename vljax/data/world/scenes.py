"""What can be seen and heard in the tiny world, and which combinations training never shows."""

import dataclasses
import itertools
from typing import Literal

import numpy as np

OBJECTS = ("bell", "drum", "siren", "kettle", "bird", "car")
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
MOTIONS = ("left", "right", "up", "down", "grows", "shrinks", "still", "circles")
OPPOSITE = {
    "left": "right",
    "right": "left",
    "up": "down",
    "down": "up",
    "grows": "shrinks",
    "shrinks": "grows",
    "still": "still",
    "circles": "circles",
}

# One held-out colour for each object, and each colour held out once.
HELD_OUT_PAIRS = frozenset(zip(OBJECTS, COLOURS[2:] + COLOURS[:2], strict=True))
SEEN_PAIRS = tuple(p for p in itertools.product(OBJECTS, COLOURS) if p not in HELD_OUT_PAIRS)
_TRIPLES = [(o, c, m) for (o, c), m in itertools.product(SEEN_PAIRS, MOTIONS)]
_ORDER = np.random.default_rng(0).permutation(len(_TRIPLES))
_CUT = round(0.15 * len(_TRIPLES))
HELD_OUT_TRIPLES = frozenset(_TRIPLES[i] for i in _ORDER[:_CUT])
TRAIN_TRIPLES = tuple(t for t in _TRIPLES if t not in HELD_OUT_TRIPLES)
ALL_TRIPLES = tuple(itertools.product(OBJECTS, COLOURS, MOTIONS))
TEST_TRIPLES = tuple(t for t in ALL_TRIPLES if t[:2] in HELD_OUT_PAIRS or t in HELD_OUT_TRIPLES)

Kind = Literal["one", "pair", "cut", "empty"]
Split = Literal["train", "val", "test", "any"]


@dataclasses.dataclass(frozen=True)
class Thing:
    object: str
    colour: str
    motion: str = "still"


@dataclasses.dataclass(frozen=True)
class Scene:
    """One clip.

    Attributes:
      kind: one thing; a pair side by side (left, right); a cut from one to another; or empty.
      things: as many as the kind has.
      sounds: None is a clip without an audio track, () is silence, two are heard one after the
        other. A clip's sound need not fit its picture.
      seconds: its length. boundary: share of the length at which a cut or the second sound falls.
      seed: of everything else (places, background, pitch, noise).
    """

    kind: Kind
    things: tuple[Thing, ...]
    sounds: tuple[str, ...] | None
    seconds: float
    boundary: float
    seed: int


SHARES: dict[Kind, float] = {"one": 0.6, "cut": 0.22, "pair": 0.12, "empty": 0.06}
MORE_STILL = 0.05  # of single things shown in training: else few tell a still thing from a cut


def random_scene(
    rng: np.random.Generator,
    split: Split = "train",
    kind: Kind | None = None,
    sounds: int | None = None,
) -> Scene:
    """Draws a scene; "test" and "val" take single things from combinations never trained on.

    "any" takes everything, for what is only put into words: text that leaves a combination out
    would teach the language model that it does not exist.

    ``sounds`` asks for that many sounds (0 is silence); by default clips have one, two, none or no
    track. A single sound matches the object in half of the clips and contradicts it in the others.
    """
    kind = kind or rng.choice(list(SHARES), p=list(SHARES.values())).item()
    things = _things(rng, split, kind)
    if sounds is None and rng.random() < 0.08:
        heard = None
    else:
        count = int(rng.choice(3, p=(0.1, 0.55, 0.35))) if sounds is None else sounds
        heard = tuple(rng.choice(OBJECTS, count, replace=False).tolist())
        if count == 1 and things and rng.random() < 0.5:
            heard = (things[0].object,)
    return Scene(
        kind,
        things,
        heard,
        seconds=rng.integers(16, 33).item() / 8,
        boundary=rng.uniform(0.42, 0.58),
        seed=rng.integers(2**31).item(),
    )


def _things(rng: np.random.Generator, split: Split, kind: Kind) -> tuple[Thing, ...]:
    if kind == "empty":
        return ()
    if kind == "one":
        triples = {"train": TRAIN_TRIPLES, "any": ALL_TRIPLES}.get(split, TEST_TRIPLES)
        if split in ("train", "any") and rng.random() < MORE_STILL:
            triples = tuple(t for t in triples if t[2] == "still")
        return (Thing(*triples[rng.integers(len(triples))]),)
    first, second = rng.choice(OBJECTS, 2, replace=False).tolist()
    if split == "any":
        return tuple(Thing(o, rng.choice(COLOURS).item()) for o in (first, second))
    return tuple(Thing(o, _seen_colour(rng, o)) for o in (first, second))


def _seen_colour(rng: np.random.Generator, obj: str) -> str:
    return rng.choice([c for o, c in SEEN_PAIRS if o == obj]).item()

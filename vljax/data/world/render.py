"""Pictures of the tiny world: icons on tinted, noisy gradients, moving along overlapping paths."""

import functools
import math

import numpy as np
from PIL import Image, ImageDraw

from vljax.data.world.scenes import OBJECTS, Kind, Scene, Thing

SIDE = 48  # pixels
RATE = 8  # frames a second
ICON = 96  # pixels an icon is drawn at before it is scaled down
RGB = {
    "red": (215, 35, 35),
    "green": (35, 165, 55),
    "blue": (45, 75, 225),
    "yellow": (240, 215, 40),
    "purple": (160, 50, 190),
    "white": (245, 245, 245),
}
INK = np.array((25, 25, 30), np.float32)


@functools.cache
def icon(name: str) -> np.ndarray:
    """Two masks [ICON, ICON, 2] in [0, 1]: where the icon is, and where it is inked dark."""
    masks = []
    for layer in _SHAPES[name]:
        image = Image.new("L", (4 * ICON, 4 * ICON))
        draw = ImageDraw.Draw(image)
        for shape, points, *rest in layer:
            scaled = [4 * ICON * p / 100 for p in points]
            fill = rest[0] if rest else 255
            if shape == "line":
                draw.line(scaled, fill=fill, width=round(4 * ICON * 0.06))
            else:
                getattr(draw, shape)(scaled, fill=fill)
        masks.append(np.asarray(image.resize((ICON, ICON), Image.Resampling.BOX)) / 255.0)
    return np.stack(masks, -1).astype(np.float32)


# Fill and ink of every icon on a square of 100 x 100.
_SHAPES = {
    "bell": (
        [
            ("ellipse", (22, 6, 78, 70)),
            ("polygon", (22, 38, 78, 38, 96, 80, 4, 80)),
            ("ellipse", (38, 74, 62, 98)),
        ],
        [("ellipse", (40, 78, 60, 96)), ("rectangle", (8, 68, 92, 74))],
    ),
    "drum": (
        [
            ("rectangle", (6, 30, 94, 84)),
            ("ellipse", (6, 14, 94, 46)),
            ("ellipse", (6, 70, 94, 98)),
        ],
        [
            ("line", (8, 34, 36, 90)),
            ("line", (36, 90, 64, 36)),
            ("line", (64, 36, 92, 86)),
            ("line", (4, 30, 96, 30)),
        ],
    ),
    "siren": (
        [
            ("ellipse", (28, 34, 72, 120)),
            ("rectangle", (12, 78, 88, 98)),
            ("line", (50, 2, 50, 24)),
            ("line", (10, 20, 26, 38)),
            ("line", (90, 20, 74, 38)),
        ],
        [("rectangle", (12, 84, 88, 98))],
    ),
    "kettle": (
        [
            ("ellipse", (18, 34, 78, 98)),
            ("polygon", (66, 62, 98, 30, 98, 44, 74, 84)),
            ("polygon", (22, 30, 74, 30, 74, 22, 22, 22)),
            ("ellipse", (42, 24, 54, 38)),
        ],
        [("line", (22, 48, 74, 48))],
    ),
    "bird": (
        [
            ("ellipse", (20, 38, 76, 84)),
            ("ellipse", (58, 16, 90, 48)),
            ("polygon", (86, 26, 100, 34, 86, 40)),
            ("polygon", (30, 52, 0, 28, 4, 66)),
        ],
        [("ellipse", (70, 24, 80, 34)), ("polygon", (34, 56, 62, 52, 40, 76))],
    ),
    "car": (
        [
            ("rectangle", (2, 48, 98, 78)),
            ("polygon", (22, 50, 34, 24, 70, 24, 84, 50)),
            ("ellipse", (12, 64, 40, 94)),
            ("ellipse", (60, 64, 88, 94)),
        ],
        [
            ("ellipse", (14, 66, 38, 92)),
            ("ellipse", (62, 66, 86, 92)),
            ("polygon", (34, 46, 40, 30, 50, 30, 50, 46)),
            ("polygon", (56, 46, 56, 30, 66, 30, 74, 46)),
        ],
    ),
}
assert set(_SHAPES) == set(OBJECTS)


def draw(canvas: np.ndarray, name: str, rgb: np.ndarray, x: float, y: float, size: float) -> None:
    """Paints an icon of ``size`` pixels centred at (x, y) onto float32 canvas [side, side, 3]."""
    left, top = max(math.floor(x - size / 2), 0), max(math.floor(y - size / 2), 0)
    right = min(math.ceil(x + size / 2) + 1, canvas.shape[1])
    bottom = min(math.ceil(y + size / 2) + 1, canvas.shape[0])
    if right <= left or bottom <= top:
        return
    box = (left, top, right, bottom)
    mask = _resample(icon(name), (np.array(box, np.float32) - (x, y, x, y)) / size + 0.5, box)
    region = canvas[top:bottom, left:right]
    alpha, ink = mask[..., :1], mask[..., 1:]
    colour = rgb * (1 - ink) + INK * ink
    region += alpha * (colour - region)


def _resample(mask: np.ndarray, extent: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """Box-averages the icon over each pixel of ``box``; ``extent`` is its place in icon units.

    Exact area averages from an integral image, so that small icons keep their shape.
    """
    columns = np.linspace(extent[0], extent[2], box[2] - box[0] + 1).clip(0, 1) * ICON
    rows = np.linspace(extent[1], extent[3], box[3] - box[1] + 1).clip(0, 1) * ICON
    total = _integral_at(mask, rows, columns)
    block = total[1:, 1:] - total[:-1, 1:] - total[1:, :-1] + total[:-1, :-1]
    area = ICON**2 * (extent[2] - extent[0]) * (extent[3] - extent[1])
    cells = (box[2] - box[0]) * (box[3] - box[1])
    return block * (cells / area)


def _integral_at(mask: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    table = _integral(mask.tobytes(), mask.shape[-1])

    def split(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        base = np.minimum(v.astype(int), ICON - 1)
        return base, (v - base)

    r, fr = split(rows)
    c, fc = split(columns)
    fr, fc = fr[:, None, None], fc[None, :, None]
    top = table[r][:, c] * (1 - fc) + table[r][:, c + 1] * fc
    bottom = table[r + 1][:, c] * (1 - fc) + table[r + 1][:, c + 1] * fc
    return top * (1 - fr) + bottom * fr


@functools.cache
def _integral(data: bytes, layers: int) -> np.ndarray:
    mask = np.frombuffer(data, np.float32).reshape(ICON, ICON, layers)
    return np.pad(mask.cumsum(0, dtype=np.float64).cumsum(1), ((1, 0), (1, 0), (0, 0)))


def background(rng: np.random.Generator, side: int = SIDE) -> np.ndarray:
    """A tinted gradient [side, side, 3], float32 in 0..255."""
    corners = rng.uniform(70, 150) + rng.uniform(-35, 35, (2, 3))
    angle = rng.uniform(0, 2 * math.pi)
    grid = np.linspace(-0.5, 0.5, side)
    ramp = 0.5 + 0.7 * (grid[None] * math.cos(angle) + grid[:, None] * math.sin(angle))
    ramp = ramp[..., None].clip(0, 1)
    return (corners[0] * ramp + corners[1] * (1 - ramp)).astype(np.float32)


def path(rng: np.random.Generator, motion: str, p: np.ndarray) -> np.ndarray:
    """(x, y, size) in pixels at times ``p`` in [0, 1]: [len(p), 3].

    Paths cross the middle with random offsets, so that one frame does not tell the motion.
    """
    x, y = rng.uniform(20, 28, 2)
    size = rng.uniform(20, 27)
    track = np.stack([np.full_like(p, x), np.full_like(p, y), np.full_like(p, size)], 1)
    swing = rng.uniform(15, 22) * (p - 0.5 + rng.uniform(-0.08, 0.08))
    if motion in ("left", "right"):
        track[:, 0] += swing if motion == "right" else -swing
    elif motion in ("up", "down"):
        track[:, 1] += swing if motion == "down" else -swing
    elif motion in ("grows", "shrinks"):
        scale = rng.uniform(11, 16) * (p - 0.5)
        track[:, 2] = rng.uniform(21, 25) + (scale if motion == "grows" else -scale)
    elif motion == "circles":
        turn = rng.choice((-1, 1)) * 2 * math.pi * p * rng.uniform(0.95, 1.3)
        turn = turn + rng.uniform(0, 2 * math.pi)
        radius = rng.uniform(6, 9)
        track[:, 0] += radius * np.cos(turn)
        track[:, 1] += radius * np.sin(turn)
    return track


def colour(rng: np.random.Generator, name: str) -> np.ndarray:
    """The named colour with a little jitter: RGB float32."""
    return (np.array(RGB[name]) + rng.uniform(-14, 14, 3)).clip(0, 255).astype(np.float32)


def frames(scene: Scene, count: int | None = None) -> np.ndarray:
    """The clip's frames [T, SIDE, SIDE, 3] uint8: all of them at RATE, or ``count`` spread evenly.

    ``count`` frames are those that uniform sampling of the written clip would pick.
    """
    rng = np.random.default_rng(scene.seed)
    total = round(scene.seconds * RATE)
    index = np.arange(total) if count is None else (np.arange(count) * total) // count
    p = index / max(total - 1, 1)
    base = background(rng)
    tracks = _tracks(rng, scene, p)
    out = np.empty((len(p), SIDE, SIDE, 3), np.uint8)
    level = rng.uniform(1, 5)
    for t in range(len(p)):
        canvas = base.copy()
        for name, rgb, track in tracks:
            x, y, size = track[t]
            if size > 0:
                draw(canvas, name, rgb, x, y, size)
        out[t] = _grain(rng, canvas, level)
    return out


def _tracks(
    rng: np.random.Generator, scene: Scene, p: np.ndarray
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Icon, colour and (x, y, size) over time; size 0 where a thing is not on."""
    tracks = []
    for i, thing in enumerate(scene.things):
        track = path(rng, thing.motion, p)
        if scene.kind == "pair":
            track[:, 0] = (13, 35)[i] + rng.uniform(-2, 2)
            track[:, 1] = rng.uniform(14, 34)
            track[:, 2] = rng.uniform(17, 21)
        elif scene.kind == "cut":
            on = p < scene.boundary if i == 0 else p >= scene.boundary
            track[~on, 2] = 0
        tracks.append((thing.object, colour(rng, thing.colour), track))
    return tracks


def still(rng: np.random.Generator, things: tuple[Thing, ...]) -> np.ndarray:
    """One image [SIDE, SIDE, 3] uint8 of one thing, of two side by side, or of nothing."""
    return snapshot(rng, [(t.object, colour(rng, t.colour), *p) for t, p in place(rng, things)])


Placed = tuple[str, np.ndarray, float, float, float]  # icon, RGB, x, y, size


def place(
    rng: np.random.Generator, things: tuple[Thing, ...]
) -> list[tuple[Thing, tuple[float, float, float]]]:
    """Where things are at some moment of some clip: (x, y, size) in pixels."""
    kind: Kind = ("empty", "one", "pair")[len(things)]
    scene = Scene(kind, things, None, 2.0, 0.5, 0)
    tracks = _tracks(rng, scene, rng.uniform(size=1))
    return [(t, tuple(track[0])) for t, (_, _, track) in zip(things, tracks, strict=True)]


def snapshot(rng: np.random.Generator, placed: list[Placed]) -> np.ndarray:
    """One image [SIDE, SIDE, 3] uint8 of what is placed where."""
    canvas = background(rng)
    for name, rgb, x, y, size in placed:
        draw(canvas, name, rgb, x, y, size)
    return _grain(rng, canvas, rng.uniform(1, 5))


def _grain(rng: np.random.Generator, canvas: np.ndarray, level: float) -> np.ndarray:
    """Adds brightness noise and rounds to uint8."""
    return (
        (canvas + rng.normal(0, level, canvas.shape[:2])[..., None]).clip(0, 255).astype(np.uint8)
    )

"""A contact sheet: examples as the model is given them, and which words of them are taught."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vljax.data import text
from vljax.data.audio import mel_clips, read_audio
from vljax.data.check import Subject
from vljax.data.clips import load_frames
from vljax.data.examples import Record
from vljax.data.pipeline import TextSpec, text_example
from vljax.data.tokenizer import PromptError, Tokenizer, load_tokenizer

WIDTH, MARGIN, LINE = 1600, 16, 22  # pixels
INK, GREY, TAUGHT, RED = (20, 20, 24), (150, 150, 156), (12, 92, 60), (180, 30, 30)
MARK, MEDIA = (214, 240, 224), (60, 90, 160)
LEGEND = (
    ("title", "frames and sound as the model gets them; the prompt: "),
    ("masked", "given"),
    ("title", ", "),
    ("taught", "taught"),
    ("title", ", "),
    ("media", "[vectors of media]"),
)


@dataclasses.dataclass(frozen=True)
class Shown:
    """One example of the sheet; what could not be read is told in ``error``.

    Attributes:
      frames: uint8 [T, size, size, 3]. mel: float32 [S, M, F].
      pieces: the prompt in pieces of (what it is, words); see ``pieces``.
    """

    title: str
    frames: np.ndarray | None = None
    mel: np.ndarray | None = None
    pieces: Sequence[tuple[str, str]] = ()
    error: str = ""


def show(subject: Subject, index: int, seed: int = 0) -> Shown:
    """Reads a record as training does, and its sound whether or not training would."""
    rng = np.random.default_rng((seed, index))
    record, frames, spec = subject.records[index], subject.frames, subject.text
    title = f"{subject.name} · {record.id} · {record.path}"
    try:
        seen, message = load_frames(record, frames, rng)
        track = read_audio(record.path) if record.kind == "video" else None
        mel = None if track is None else mel_clips(*track, subject.sound)
    except (ValueError, OSError) as error:
        return Shown(title, error=str(error))
    if spec is None:
        return Shown(title, seen, mel, plain(record))
    prompt = None
    if spec.prompts:
        line = text.CAPTION_PROMPTS[rng.integers(len(text.CAPTION_PROMPTS))]
        prompt = text.TEMPLATES[spec.template].caption.format(line)
    try:
        example = text_example(record, spec, message, prompt)
    except PromptError as error:
        return Shown(title, seen, mel, plain(record), str(error))
    return Shown(title, seen, mel, pieces(example, spec))


def plain(record: Record) -> list[tuple[str, str]]:
    """The words alone, where there is no tokenizer to say which are taught."""
    if record.caption is not None:
        return [("masked", record.caption)]
    return [("masked", f"{role}: {words} ") for role, words in record.turns]


def pieces(example: text.TextExample, spec: TextSpec) -> list[tuple[str, str]]:
    """Runs of ("masked" | "taught" | "media" | "other", words).

    "other" is a distractor (see ``Record``); media are told by their number of vectors.
    """
    tokenizer = load_tokenizer(spec.tokenizer, spec.vocab)
    found: list[tuple[str, str]] = []
    start = 0
    kinds = [
        _kind(int(token), int(label), tokenizer.image_here)
        for token, label in zip(example.tokens, example.labels, strict=True)
    ]
    for at in range(1, len(kinds) + 1):
        if at < len(kinds) and kinds[at] == kinds[start]:
            continue
        ids = example.tokens[start:at].tolist()
        if kinds[start] in ("media", "other"):
            words = f"[{len(ids)} vectors{' of another' if kinds[start] == 'other' else ''}]"
        else:
            words = _spell(tokenizer, ids)
        found.append((kinds[start], words))
        start = at
    return found


def _kind(token: int, label: int, media: int) -> str:
    if token >= media:
        return "media" if token == media else "other"
    return "masked" if label == text.IGNORE else "taught"


def _spell(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The words with the blank they may begin with, which a text's first word would lose."""
    before = tokenizer.encode("a")
    return tokenizer.decode([*before, *ids])[len(tokenizer.decode(before)) :]


def draw(examples: Sequence[Shown], path: str | Path) -> None:
    """Writes the sheet as a PNG, 1600 pixels wide."""
    from PIL import Image

    rows = [_words(LEGEND), _rule(), *(part for e in examples for part in _parts(e))]
    height = sum(r.height for r in rows) + 2 * MARGIN
    sheet = Image.new("RGB", (WIDTH, height), "white")
    top = MARGIN
    for row in rows:
        sheet.paste(row, (MARGIN, top))
        top += row.height
    sheet.save(path)


def _parts(example: Shown) -> Iterator[Any]:
    yield _words([("title", example.title)])
    if example.frames is not None:
        yield _strip(example.frames)
    if example.mel is not None:
        yield _strip(heat(example.mel), 96)
    if example.pieces:
        yield _words(example.pieces)
    if example.error:
        yield _words([("error", example.error)])
    yield _rule()


def _strip(images: np.ndarray, height: int | None = None) -> Any:
    """Images [N, H, W, 3] in a row, as many as fit side by side, enlarged by whole pixels."""
    from PIL import Image

    gap = 4
    width = (WIDTH - 2 * MARGIN) // len(images) - gap
    if height is None:
        width = min(width, 224)
        height = round(width * images.shape[1] / images.shape[2])
    row = Image.new("RGB", (WIDTH - 2 * MARGIN, height + 2 * gap), "white")
    for i, image in enumerate(images):
        smaller = width < image.shape[1]
        how = Image.Resampling.BICUBIC if smaller else Image.Resampling.NEAREST
        row.paste(Image.fromarray(image).resize((width, height), how), (i * (width + gap), gap))
    return row


def heat(mel: np.ndarray) -> np.ndarray:
    """[..., bins, frames] as uint8 RGB, from black over violet and orange to white; high is up."""
    low, high = mel.min(), max(mel.max(), mel.min() + 1e-6)
    grey = ((mel - low) / (high - low) * 255)[..., ::-1, :]
    stops = np.array([(0, 0, 8), (90, 20, 110), (220, 80, 50), (250, 200, 70), (255, 255, 230)])
    positions = np.linspace(0, 255, len(stops))
    return np.stack([np.interp(grey, positions, s) for s in stops.T], -1).astype(np.uint8)


STYLES = {  # ink, background
    "title": (INK, None),
    "masked": (GREY, None),
    "taught": (TAUGHT, MARK),
    "media": (MEDIA, None),
    "other": (MEDIA, None),
    "error": (RED, None),
}


def _words(runs: Sequence[tuple[str, str]]) -> Any:
    """Runs of text on as many lines as they need, each in its style; line ends are spelt."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(16)
    placed, x, y, room = [], 0.0, 0, WIDTH - 2 * MARGIN
    for kind, words in runs:
        for word in re.findall(r"\s*\S+|\s+", words.replace("\n", "\\n")):
            if x and x + font.getlength(word) > room:
                x, y, word = 0.0, y + LINE, word.lstrip()
            placed.append((kind, word, x, y))
            x += font.getlength(word)
    row = Image.new("RGB", (room, y + LINE + 6), "white")
    pen = ImageDraw.Draw(row)
    for kind, word, left, top in placed:
        ink, background = STYLES[kind]
        if background:
            pen.rectangle((left, top, left + font.getlength(word), top + LINE - 2), background)
        pen.text((left, top + 1), word, ink, font)
    return row


def _rule() -> Any:
    from PIL import Image

    row = Image.new("RGB", (WIDTH - 2 * MARGIN, 25), "white")
    row.paste((225, 225, 228), (0, 8, row.width, 9))
    return row

"""What is wrong with a data set, before a run finds out: every file read as training reads it."""

import collections
import concurrent.futures
import dataclasses
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vljax.data import text, video
from vljax.data.audio import AudioSpec
from vljax.data.clips import FrameSpec
from vljax.data.decode_worker import DecoderDied, Decoders
from vljax.data.examples import Record
from vljax.data.pipeline import TextSpec, text_example
from vljax.data.tokenizer import PromptError

Kind = Literal["missing", "unreadable", "text", "cut", "untaught", "duplicate", "few"]
FRAMES, SOUND = FrameSpec(), AudioSpec()
WHOLE = 1 << 20  # tokens, a limit that cuts nothing
FILES = ("missing", "unreadable")
MEANING: dict[Kind, str] = {
    "missing": "media files are not there",
    "unreadable": "media files cannot be read in time",
    "text": "texts do not fit: placeholders would be cut, or no length holds them",
    "cut": "texts are longer than the limit: their ends are not taught",
    "untaught": "texts have no token that is taught",
    "duplicate": "ids were met before",
    "few": "batch cannot be filled: there are too few records",
}


@dataclasses.dataclass(frozen=True)
class Subject:
    """A source to check.

    Attributes:
      text: None leaves texts unchecked. batch_size: 0 asks for none.
      max_bad: the share of files that may be missing or unreadable, since the run skips them.
      sound: how a track becomes mel clips, where that is shown.
    """

    name: str
    records: Sequence[Record]
    frames: FrameSpec = FRAMES
    text: TextSpec | None = None
    batch_size: int = 0
    max_bad: float = 0.0
    sound: AudioSpec = SOUND


@dataclasses.dataclass(frozen=True)
class Look:
    """What one record turned out to be; what could not be learnt is None.

    Attributes:
      seconds: of a clip. sound: whether a clip has a sound track. tokens: before anything is cut.
      problems: kind and reason of each.
    """

    seconds: float | None = None
    height: int | None = None
    width: int | None = None
    fps: float | None = None
    sound: bool | None = None
    tokens: int | None = None
    problems: tuple[tuple[Kind, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Problem:
    """How many records of a source have a problem, and the first of them.

    Attributes:
      breaks: whether training would stop of it.
      examples: id and reason of at most five records.
    """

    kind: Kind
    count: int
    breaks: bool
    examples: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class SourceReport:
    """One source: figures over the records looked at, of ``records`` in all.

    Quantiles are least, median, 95 % and most; None where nothing was measured.
    """

    name: str
    records: int
    looked: int
    clips: int
    images: int
    seconds: tuple[float, ...] | None
    fps: tuple[float, ...] | None
    resolutions: dict[str, int]  # the ten most frequent, as "640x360" (width first)
    sound: int
    tokens: tuple[float, ...] | None
    limit: int | None
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        return not any(p.breaks for p in self.problems)


def check(
    subject: Subject,
    sample: int | None = None,
    seed: int = 0,
    workers: int = 2,
    seconds: float = 60.0,
    progress: Callable[[int, int], None] | None = None,
) -> SourceReport:
    """Reads every record's file and text, in worker processes that are stopped after ``seconds``.

    With ``sample``, of that many records drawn at random; ids are compared over all.
    """
    total = len(subject.records)
    chosen = list(range(total))
    if sample is not None and sample < total:
        chosen = sorted(random.Random(seed).sample(chosen, sample))
    looks: list[Look] = []
    with Decoders(workers, seconds) as decoders:
        for done, found in enumerate(_looks(subject, chosen, decoders, 4 * workers), 1):
            looks.append(found)
            if progress:
                progress(done, len(chosen))
    return summarise(subject, chosen, looks)


def _looks(
    subject: Subject, chosen: Sequence[int], decoders: Decoders, ahead: int
) -> Iterator[Look]:
    """Looks in the order of ``chosen``, with as many jobs ``ahead``: media are not piled up."""
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    for index in chosen:
        record = subject.records[index]
        waiting.append(decoders.submit(look, record, subject.frames, subject.text))
        if len(waiting) > ahead:
            yield _outcome(waiting.popleft())
    while waiting:
        yield _outcome(waiting.popleft())


def _outcome(answer: concurrent.futures.Future) -> Look:
    try:
        return answer.result()
    except (DecoderDied, MemoryError) as error:
        return Look(problems=(("unreadable", str(error) or "it takes too much memory"),))


def look(record: Record, frames: FrameSpec, spec: TextSpec | None) -> Look:
    """Reads one record as training would, but for random crops."""
    if isinstance(record.path, Path) and not record.path.is_file():
        return _with_text(
            Look(problems=(("missing", f"{record.path}: no such file"),)), record, spec
        )
    try:
        seen, message = (
            _read_image(record) if record.kind == "image" else _read_clip(record, frames)
        )
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        return _with_text(Look(problems=(("unreadable", reason),)), record, spec)
    return _with_text(seen, record, spec, message)


def _read_image(record: Record) -> tuple[Look, str]:
    height, width = video.read_image(record.path).shape[:2]
    return Look(height=height, width=width), ""


def _read_clip(record: Record, frames: FrameSpec) -> tuple[Look, str]:
    pick = functools.partial(video.uniform_indices, n=frames.count)
    if frames.policy == "headtail":
        pick = functools.partial(video.headtail_indices, n=frames.count, rng=random.Random(0))
    clip = video.read_clip(record.path, pick, (frames.size, frames.size))
    with video.open_media(record.path) as container:
        context = container.streams.video[0].codec_context
        seen = Look(
            seconds=clip.duration,
            height=context.height,
            width=context.width,
            fps=clip.fps,
            sound=any(s.codec_context for s in container.streams.audio),
        )
    return seen, video.frame_message(clip.indices, clip.fps)


def _with_text(seen: Look, record: Record, spec: TextSpec | None, message: str = "") -> Look:
    if spec is None:
        return seen
    tokens, problems = look_at_text(record, spec, message)
    return dataclasses.replace(seen, tokens=tokens, problems=seen.problems + problems)


def look_at_text(
    record: Record, spec: TextSpec, message: str
) -> tuple[int | None, tuple[tuple[Kind, str], ...]]:
    """Tokens before anything is cut, after the longest prompt, and what is wrong with them."""
    prompt = None
    if spec.prompts:
        line = max(text.CAPTION_PROMPTS, key=len)
        prompt = text.TEMPLATES[spec.template].caption.format(line)
    tokens: int | None = None
    try:
        whole = text_example(record, dataclasses.replace(spec, limit=WHOLE), message, prompt)
        tokens = len(whole.tokens)
        kept = text_example(record, spec, message, prompt)
    except PromptError as error:
        return tokens, (("text", str(error)),)
    if len(kept.tokens) > max(spec.lengths):
        told = f"{len(kept.tokens)} tokens, expected at most {max(spec.lengths)}"
        return tokens, (("text", told),)
    problems: tuple[tuple[Kind, str], ...] = ()
    if len(kept.tokens) < tokens:
        problems += (("cut", f"{tokens - len(kept.tokens)} of {tokens} tokens are cut"),)
    if not (kept.labels != text.IGNORE).any():
        problems += (("untaught", "every label is masked"),)
    return tokens, problems


def summarise(subject: Subject, chosen: Sequence[int], looks: Sequence[Look]) -> SourceReport:
    found: dict[Kind, list[tuple[str, str]]] = collections.defaultdict(list)
    kinds: collections.Counter[str] = collections.Counter()
    for index, one in zip(chosen, looks, strict=True):
        record = subject.records[index]
        kinds[record.kind] += 1
        for kind, reason in one.problems:
            found[kind].append((record.id, reason))
    found["duplicate"] = duplicates(subject.records)
    if len(subject.records) < subject.batch_size:
        told = f"{len(subject.records)} records, expected at least {subject.batch_size}"
        found["few"] = [("", told)]
    sizes = collections.Counter(f"{x.width}x{x.height}" for x in looks if x.width)
    return SourceReport(
        name=subject.name,
        records=len(subject.records),
        looked=len(looks),
        clips=kinds["video"],
        images=kinds["image"],
        seconds=_quantiles([x.seconds for x in looks]),
        fps=_quantiles([x.fps for x in looks]),
        resolutions=dict(sizes.most_common(10)),
        sound=sum(bool(x.sound) for x in looks),
        tokens=_quantiles([x.tokens for x in looks]),
        limit=subject.text.limit if subject.text else None,
        problems=tuple(_problem(subject, k, found[k], len(looks)) for k in MEANING if found[k]),
    )


def _problem(subject: Subject, kind: Any, rows: list[tuple[str, str]], looked: int) -> Problem:
    breaks = kind in ("text", "few")
    if kind in FILES:
        breaks = len(rows) > subject.max_bad * looked
    return Problem(kind, len(rows), breaks, tuple(rows[:5]))


def duplicates(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Ids that were met before. Conversations about one clip rightly share its id."""
    first: dict[str, int] = {}
    rows = []
    for number, record in enumerate(records):
        if record.id in first:
            rows.append((record.id, f"records {first[record.id]} and {number}"))
        first.setdefault(record.id, number)
    return rows


def _quantiles(values: Sequence[float | None]) -> tuple[float, ...] | None:
    there = [v for v in values if v is not None]
    if not there:
        return None
    return tuple(round(float(q), 3) for q in np.quantile(there, (0, 0.5, 0.95, 1)))


def format_report(report: SourceReport) -> str:
    """A line a figure, a line a problem with an example."""
    lines = [f"{report.name}: {report.records} records, {report.looked} looked at"]

    def row(name: str, told: str) -> None:
        lines.append(f"  {name:12} {told}")

    row(
        "media", f"{report.clips} clips ({report.sound} with a sound track), {report.images} images"
    )
    if report.resolutions:
        row("pixels", ", ".join(f"{size} ({n})" for size, n in report.resolutions.items()))
    for name, quantiles in (("seconds", report.seconds), ("frames/s", report.fps)):
        if quantiles:
            row(name, _told(quantiles))
    if report.tokens:
        row("tokens", f"{_told(report.tokens)}; limit {report.limit}")
    elif report.limit is None:
        row("tokens", "not looked at: no tokenizer is named")
    for problem in report.problems:
        severity = "ERROR" if problem.breaks else "warning"
        row(severity, f"{problem.count} {MEANING[problem.kind]}")
        lines += [f"{'':15}{id}: {reason}".rstrip() for id, reason in problem.examples[:3]]
    return "\n".join(lines)


def _told(quantiles: tuple[float, ...]) -> str:
    names = ("least", "median", "95 %", "most")
    return ", ".join(f"{name} {q:g}" for name, q in zip(names, quantiles, strict=True))

"""tf.data batches of media and tokens, of static shapes; what batch k holds is pure in (seed, k).

Each batch comes whole from one source, drawn by the sources' weights (as the original does), so
clips and images keep their own shapes and a step compiles once a shape; or, if asked for, each row
is drawn so. A host loads its own rows of a batch alone: the hosts' rows in order are the batch of
one host, bit for bit, since chance depends on the row and shapes on all of the batch's texts.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from vljax.data import text, video
from vljax.data.audio import AudioSpec
from vljax.data.clips import FrameSpec, Media, load_frames
from vljax.data.decode_worker import Decoders
from vljax.data.examples import Record
from vljax.data.features import Features, stack_features
from vljax.data.plan import Plan, own_rows
from vljax.data.quarantine import Quarantine, Reader
from vljax.data.tokenizer import PromptError, load_tokenizer

__all__ = [
    "DTYPES",
    "FrameSpec",
    "HostBatch",
    "MediaSource",
    "Plan",
    "Source",
    "TextSpec",
    "batches",
    "load_frames",
    "text_example",
]

HostBatch = dict[str, np.ndarray]
ALL = slice(None)
NO_FRAMES = np.zeros((0, 0, 0, 3), np.uint8)
PARALLEL = 2  # batches under way: one is put together while the next one's clips are decoded
LATE = 99_999  # the longest that a frame's time is told, in tenths of a second


class Source(Protocol):
    """Where whole batches come from; of those that are no ``MediaSource`` all rows are made."""

    name: str
    weight: float
    batch_size: int

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> HostBatch: ...


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """How records become token arrays.

    Attributes:
      tokenizer: path of the tokenizer. vocab: rows of the embedding table, see ``Tokenizer``.
      template: a name in ``text.TEMPLATES``.
      media: placeholders a clip takes. limit: most tokens of a caption or a conversation.
      end: what ends a caption. prompts: whether captions follow a random prompt.
      masking: which labels of a conversation, see ``text.conversation_example``.
      lengths: the static lengths there are; a batch takes the smallest that fits.
    """

    tokenizer: str
    template: str
    media: int
    limit: int
    end: str = "\n"
    prompts: bool = False
    masking: Literal["original", "clean"] = "original"
    vocab: int | None = None
    lengths: tuple[int, ...] = (32, 64, 96, 128, 256, 512, 640)


@dataclasses.dataclass(frozen=True)
class MediaSource:
    """Records of clips or images, with their texts.

    Attributes:
      sound: how the track becomes mel clips, for batches with ``mel``; None leaves it out.
      on_bad: what a record whose media cannot be read is: "raise", an error; or "skip", a row that
        teaches nothing, told by ``missing`` and in the quarantine.
      max_bad: the share of such records from which on skipping is an error, too.
      features: what frozen towers made of the records, to be read in place of their media.
    """

    name: str
    weight: float
    batch_size: int
    records: Sequence[Record]
    frames: FrameSpec
    text: TextSpec
    sound: AudioSpec | None = None
    on_bad: Literal["raise", "skip"] = "raise"
    max_bad: float = 0.01
    features: Features | None = None

    def __post_init__(self) -> None:
        if self.features is not None and self.sound is not None:
            raise ValueError(f"features of {self.name}: hold no sound; set one of both to None")
        if self.on_bad not in ("raise", "skip"):
            raise ValueError(f"on_bad of {self.name}: got {self.on_bad!r}, expected raise or skip")
        if not 0 <= self.max_bad <= 1:
            raise ValueError(f"max_bad of {self.name}: got {self.max_bad}, expected 0 to 1")

    def __len__(self) -> int:
        return len(self.records)

    def batch(
        self,
        indices: np.ndarray,
        rng: np.random.Generator,
        rows: slice = ALL,
        read: Reader | None = None,
    ) -> HostBatch:
        """The ``rows`` of the batch of the records at ``indices``; read in this process by default.

        The original draws one captioning prompt a batch, so do we.
        """
        return assemble([(self, int(i)) for i in indices], rng, rows, read or Reader())


def assemble(
    picks: Sequence[tuple[MediaSource, int]], rng: np.random.Generator, rows: slice, read: Reader
) -> HostBatch:
    """The ``rows`` of a batch of (source, record): the same whatever the other rows' hosts do.

    Of the other rows only the texts are looked at, for the batch's length.
    """
    sources = [source for source, _ in picks]
    records = [source.records[i] for source, i in picks]
    distinct = {s.name: s for s in sources}
    prompts = {name: _draw_prompt(s.text, rng) for name, s in distinct.items()}
    each = list(zip(sources, records, rng.spawn(len(picks)), strict=True))
    wanted = [tokens_at_most(r, s.text, s.frames, prompts[s.name]) for s, r, _ in each]
    lengths = sources[0].text.lengths
    length = _bucket(wanted, lengths)
    count = max((s.frames.count if r.kind == "video" else 1) for s, r, _ in each)
    own = each[rows]
    kept = [(s.features, i) for s, i in picks[rows] if s.features is not None]
    media = read.settle(own, [_encoded(f, i) for f, i in kept]) if kept else read(own)
    examples = [
        _taught(r, s.text, m, prompts[s.name]) for (s, r, _), m in zip(own, media, strict=True)
    ]
    spec = sources[0].text
    pad = load_tokenizer(spec.tokenizer, spec.vocab).special.pad
    batch = text.collate(examples, length, pad)
    if kept:
        there = zip(kept, media, strict=True)
        outputs = [None if m is None else f.read(i) for (f, i), m in there]
        batch |= stack_features(outputs, kept[0][0].padding, count)
    else:
        batch |= _stack_frames(media, count, sources[0].frames.size)
    if sources[0].sound is not None:
        batch |= _stack_mel(media, sources[0].sound)
    if any(s.on_bad == "skip" for s in sources):
        batch["missing"] = np.array([m is None for m in media])
    return batch


def _encoded(features: Features, index: int) -> Media | video.MediaError:
    if reason := features.unreadable.get(index):
        return video.MediaError(reason)
    return Media(NO_FRAMES, features.message(index))


def _draw_prompt(spec: TextSpec, rng: np.random.Generator) -> str | None:
    if not spec.prompts:
        return None
    line = text.CAPTION_PROMPTS[rng.integers(len(text.CAPTION_PROMPTS))]
    return text.TEMPLATES[spec.template].caption.format(line)


def _taught(record: Record, spec: TextSpec, media: Media | None, prompt: str | None) -> Any:
    """A record's tokens and labels; none of the labels where its media are missing."""
    example = text_example(record, spec, media.message if media else "", prompt)
    if media is None:
        return dataclasses.replace(example, labels=np.full_like(example.labels, text.IGNORE))
    return example


def tokens_at_most(record: Record, spec: TextSpec, frames: FrameSpec, prompt: str | None) -> int:
    """The tokens of a record with the longest times its frames may have: no clip is looked at."""
    message = video.frame_message(np.full(frames.count, LATE), 10.0)
    try:
        return len(text_example(record, spec, message, prompt).tokens)
    except PromptError:  # only the true message tells whether it fits
        return spec.limit


def text_example(
    record: Record, spec: TextSpec, message: str, prompt: str | None
) -> text.TextExample:
    """Tokens and labels of a record; raises PromptError naming it."""
    tokenizer = load_tokenizer(spec.tokenizer, spec.vocab)
    if record.caption is not None:
        return text.caption_example(
            tokenizer, record.caption, spec.media, prompt, spec.end, spec.limit
        )
    template = text.TEMPLATES[spec.template]
    turns = list(record.turns)
    if record.frame_message and template.frame_message:
        turns[0] = (turns[0][0], turns[0][1].replace("<image> ", f"<image> {message}", 1))
    expanded = [(role, text.expand(value, spec.media, record.tags)) for role, value in turns]
    try:
        return text.conversation_example(
            tokenizer, expanded, template, spec.media, spec.limit, spec.masking
        )
    except PromptError as error:
        raise PromptError(f"record {record.id}: {error}") from error


def _bucket(wanted: Sequence[int], lengths: Sequence[int]) -> int:
    longest = max(wanted)
    fitting = [n for n in lengths if n >= longest]
    if not fitting:
        raise PromptError(
            f"batch: got {longest} tokens, expected at most {max(lengths)}; add a longer length"
        )
    return min(fitting)


def _stack_frames(media: Sequence[Media | None], count: int, size: int) -> HostBatch:
    """Pads clips to ``count`` frames and says which are there; what is missing is a black one."""
    frames = np.zeros((len(media), count, size, size, 3), np.uint8)
    mask = np.zeros((len(media), count), bool)
    mask[:, 0] = True
    for i, one in enumerate(media):
        if one is not None:
            n = min(len(one.frames), count)
            frames[i, :n], mask[i, :n] = one.frames[:n], True
    return {"frames": frames, "frame_mask": mask}


def _stack_mel(media: Sequence[Media | None], spec: AudioSpec) -> HostBatch:
    mel = np.zeros((len(media), spec.clips, spec.mel_bins, spec.mel_frames), np.float32)
    sound = np.zeros(len(media), bool)
    for i, one in enumerate(media):
        if one is not None and one.mel is not None:
            mel[i], sound[i] = one.mel, True
    return {"mel": mel, "sound": sound}


def batches(
    sources: Sequence[Source],
    seed: int,
    steps: int,
    start: int = 0,
    workers: int = 2,
    *,
    host: tuple[int, int] = (0, 1),
    mixed: bool = False,
    seconds: float = 60.0,
    quarantine: Quarantine | None = None,
) -> Iterator[tuple[str, HostBatch]]:
    """Pairs of source name and batch for steps ``start`` to ``steps``, prefetched by tf.data.

    Args:
      workers: processes that decode; what they deliver does not depend on how many there are.
      host: which of how many processes this is, each of which loads its rows of a batch.
      mixed: draws each row's source by weight, instead of the batch's; the name is "mixed".
      seconds: most time that a clip may take to decode.
      quarantine: where files that cannot be read are noted, see ``MediaSource.on_bad``.
    """
    plan = Plan(
        seed,
        tuple(len(s) for s in sources),
        tuple(s.weight for s in sources),
        tuple(s.batch_size for s in sources),
        mixed,
    )
    if mixed:
        _check_mixed(sources)
    for source in sources:
        own_rows(source.batch_size, host, source.name)
    rows = plan.rows(steps)
    decoders = Decoders(workers, seconds)
    read = Reader(decoders, quarantine)

    def load(step: int) -> tuple[str, HostBatch]:
        picks = [(sources[s], i) for s, i in rows.picks(step)]
        own = own_rows(len(picks), host, picks[0][0].name)
        rng = np.random.default_rng((seed, 3, step))
        return ("mixed" if mixed else picks[0][0].name), _load(picks, rng, own, read)

    return _prefetched(load, start, steps, decoders)


def _load(
    picks: Sequence[tuple[Any, int]], rng: np.random.Generator, own: slice, read: Reader
) -> HostBatch:
    if isinstance(picks[0][0], MediaSource):
        return assemble(picks, rng, own, read)
    whole = picks[0][0].batch(np.array([i for _, i in picks]), rng)
    return {name: x[own] for name, x in whole.items()}


def _check_mixed(sources: Sequence[Source]) -> None:
    """Rows of one batch have one shape."""
    shapes = collections.defaultdict(list)
    for s in sources:
        if not isinstance(s, MediaSource):
            raise ValueError(f"mixed: got source {s.name}, expected only sources of records")
        text = s.text.tokenizer, s.text.vocab, s.text.lengths
        shapes[s.frames.size, s.frames.count, s.sound, s.features is None, *text].append(s.name)
    if len(shapes) > 1:
        one, other, *_ = shapes.values()
        raise ValueError(
            f"mixed: got sources {one[0]} and {other[0]} with other sizes or numbers of frames, "
            "sound, features, tokenizers or lengths, expected the same for all; or leave mixed off"
        )


def _prefetched(
    load: Callable[[int], tuple[str, HostBatch]], start: int, steps: int, decoders: Decoders
) -> Iterator[tuple[str, HostBatch]]:
    """``load`` of each step in order, two at a time, through tf.data; closes ``decoders``."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    union = list(DTYPES)
    dtypes = [tf.as_dtype(DTYPES[name]) for name in union]
    names: dict[int, tuple[str, list[str]]] = {}  # of steps under way: the source, its fields
    failed: list[Exception] = []  # tf.data would wrap it in a traceback of its own

    def load_all(step: np.ndarray) -> list[np.ndarray]:
        try:
            source, batch = load(int(step))
        except Exception as error:
            failed.append(error)
            raise
        names[int(step)] = source, list(batch)
        return [batch.get(name, np.zeros(0, DTYPES[name])) for name in union]

    options = tf.data.Options()
    options.autotune.enabled = False  # its thread holds up the end of the data for up to a minute
    dataset = tf.data.Dataset.range(start, steps).with_options(options)
    dataset = dataset.map(
        lambda step: (step, tuple(tf.numpy_function(load_all, [step], dtypes))),
        num_parallel_calls=PARALLEL,
        deterministic=True,
    ).prefetch(PARALLEL)
    iterator = dataset.as_numpy_iterator()
    with decoders:  # closed before the iterator, which waits for the batches under way
        while True:
            try:
                step, arrays = next(iterator)
            except StopIteration:
                return
            except tf.errors.OpError as error:
                raise (failed[0] if failed else error) from None
            source, fields = names.pop(int(step))
            batch = dict(zip(union, arrays, strict=True))
            yield source, {name: batch[name] for name in fields}


DTYPES: dict[str, Any] = {
    "frames": np.uint8,
    "frame_mask": np.bool_,
    "frame_tokens": np.float32,
    "sight_features": np.float32,
    "mel": np.float32,
    "sound": np.bool_,
    "missing": np.bool_,
    "tokens": np.int32,
    "mask": np.bool_,
    "labels": np.int32,
    "context": np.bool_,
    "tags": np.int32,
    "patch_tags": np.int32,
    "rgb": np.float32,
    "kinds": np.int32,
}

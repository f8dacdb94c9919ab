"""tf.data batches of frames and tokens, of static shapes; what batch k holds is pure in (seed, k).

Each batch comes whole from one source, drawn by the sources' weights (as the original does), so
clips and images keep their own shapes and a step compiles once a shape.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from vljax.data import text, video
from vljax.data.examples import Record
from vljax.data.features import Features
from vljax.data.tokenizer import PromptError, load_tokenizer

HostBatch = dict[str, np.ndarray]


class Source(Protocol):
    """Where whole batches come from."""

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
class FrameSpec:
    """Which frames of a clip, how large in pixels, and whether crops are random."""

    count: int = 8
    size: int = 224
    policy: Literal["uniform", "headtail"] = "uniform"
    augment: bool = True


@dataclasses.dataclass(frozen=True)
class MediaSource:
    """Records of clips or images on disk, with their texts.

    ``features``: what frozen towers made of the records, to be read in place of their frames.
    """

    name: str
    weight: float
    batch_size: int
    records: Sequence[Record]
    frames: FrameSpec
    text: TextSpec
    features: Features | None = None

    def __len__(self) -> int:
        return len(self.records)

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> HostBatch:
        """One batch of records; the original draws one captioning prompt a batch, so do we."""
        records = [self.records[i] for i in indices]
        prompt = None
        if self.text.prompts:
            line = text.CAPTION_PROMPTS[rng.integers(len(text.CAPTION_PROMPTS))]
            prompt = text.TEMPLATES[self.text.template].caption.format(line)
        media, messages = self._media(indices, records, rng)
        examples = [
            text_example(r, self.text, message, prompt)
            for r, message in zip(records, messages, strict=True)
        ]
        pad = load_tokenizer(self.text.tokenizer, self.text.vocab).special.pad
        tokens = text.collate(examples, _bucket(examples, self.text.lengths), pad)
        return tokens | media

    def _media(
        self, indices: np.ndarray, records: Sequence[Record], rng: np.random.Generator
    ) -> tuple[HostBatch, list[str]]:
        """The arrays of media, and the sentences that tell the times of their frames."""
        count = self.frames.count if any(r.kind == "video" for r in records) else 1
        if self.features is not None:
            messages = [self.features.message(i) for i in indices]
            return self.features.batch(indices, count), messages
        seen = [load_frames(r, self.frames, rng) for r in records]
        frames = _stack_frames([frames for frames, _ in seen], count, self.frames.size)
        return frames, [message for _, message in seen]


def load_frames(
    record: Record, spec: FrameSpec, rng: np.random.Generator
) -> tuple[np.ndarray, str]:
    """Frames [T, size, size, 3] uint8 and the sentence that tells their times (clips only)."""
    size = (spec.size, spec.size)
    if record.kind == "image":
        image = video.read_image(record.path)
        if spec.augment:
            box = video.random_crop_box(image.shape[0], image.shape[1], rng)
            return video.crop_resize_image(image, box, size)[None], ""
        return video.resize_image(image, size)[None], ""
    pick = functools.partial(video.uniform_indices, n=spec.count)
    if spec.policy == "headtail":
        import random

        draw = random.Random(int(rng.integers(2**31)))
        pick = functools.partial(video.headtail_indices, n=spec.count, rng=draw)
    clip = video.read_clip(record.path, pick, size)
    message = video.frame_message(clip.indices, clip.fps)
    if spec.augment:
        box = video.random_crop_box(spec.size, spec.size, rng)
        return video.crop_resize_clip(clip.frames, box, size), message
    return clip.frames, message


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


def _bucket(examples: Sequence[text.TextExample], lengths: Sequence[int]) -> int:
    longest = max(len(e.tokens) for e in examples)
    fitting = [n for n in lengths if n >= longest]
    if not fitting:
        raise PromptError(
            f"batch: got {longest} tokens, expected at most {max(lengths)}; add a longer length"
        )
    return min(fitting)


def _stack_frames(clips: list[np.ndarray], count: int, size: int) -> HostBatch:
    """Pads clips to ``count`` frames; says which are there."""
    frames = np.zeros((len(clips), count, size, size, 3), np.uint8)
    mask = np.zeros((len(clips), count), bool)
    for i, clip in enumerate(clips):
        n = min(len(clip), count)
        frames[i, :n], mask[i, :n] = clip[:n], True
    return {"frames": frames, "frame_mask": mask}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which records batch k holds: a pure function of the seed, k and the sources' sizes."""

    seed: int
    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    batch_sizes: tuple[int, ...]

    def sources(self, steps: int) -> np.ndarray:
        """The source of each of the first ``steps`` batches."""
        share = np.array(self.weights) / sum(self.weights)
        return np.random.default_rng((self.seed, 1)).choice(len(share), steps, p=share)

    def indices(self, source: int, nth: int) -> np.ndarray:
        """The records of a source's n-th batch: a new permutation a pass, the last part dropped."""
        size, batch = self.sizes[source], self.batch_sizes[source]
        per_pass = size // batch
        if not per_pass:
            raise ValueError(f"source {source}: got {size} records, expected at least {batch}")
        passes, position = divmod(nth, per_pass)
        order = _permutation(self.seed, source, passes, size)
        return order[position * batch : (position + 1) * batch]


@functools.lru_cache(maxsize=64)
def _permutation(seed: int, source: int, passes: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, 2, source, passes)).permutation(size)


def batches(
    sources: Sequence[Source], seed: int, steps: int, start: int = 0, workers: int = 2
) -> Iterator[tuple[str, HostBatch]]:
    """Pairs of source name and batch for steps ``start`` to ``steps``, prefetched by tf.data."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    plan = Plan(
        seed,
        tuple(len(s) for s in sources),
        tuple(s.weight for s in sources),
        tuple(s.batch_size for s in sources),
    )
    chosen = plan.sources(steps)
    nth = np.zeros(steps, int)  # how many batches of its source came before
    for i in range(len(sources)):
        nth[chosen == i] = np.arange((chosen == i).sum())

    def load(step: int) -> HostBatch:
        source = int(chosen[step])
        rng = np.random.default_rng((seed, 3, step))
        return sources[source].batch(plan.indices(source, int(nth[step])), rng)

    names = {i: sorted(load_one(s, plan, i)) for i, s in enumerate(sources) if i in chosen}
    union = sorted(set().union(*names.values()))
    dtypes = [tf.as_dtype(DTYPES[name]) for name in union]

    failed: list[Exception] = []  # tf.data would wrap it in a traceback of its own

    def load_all(step: np.ndarray) -> list[np.ndarray]:
        try:
            batch = load(int(step))
        except (ValueError, OSError) as error:
            failed.append(error)
            raise
        return [batch.get(name, np.zeros(0, DTYPES[name])) for name in union]

    options = tf.data.Options()
    options.autotune.enabled = False  # its thread holds up the end of the data for up to a minute
    dataset = tf.data.Dataset.range(start, steps).with_options(options)
    dataset = dataset.map(
        lambda step: (step, tuple(tf.numpy_function(load_all, [step], dtypes))),
        num_parallel_calls=workers,
        deterministic=True,
    ).prefetch(workers)
    iterator = dataset.as_numpy_iterator()
    while True:
        try:
            step, arrays = next(iterator)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            raise (failed[0] if failed else error) from None
        source = int(chosen[step])
        batch = dict(zip(union, arrays, strict=True))
        yield sources[source].name, {name: batch[name] for name in names[source]}


DTYPES: dict[str, Any] = {
    "frames": np.uint8,
    "frame_mask": np.bool_,
    "frame_tokens": np.float32,
    "sight_features": np.float32,
    "mel": np.float32,
    "tokens": np.int32,
    "mask": np.bool_,
    "labels": np.int32,
    "context": np.bool_,
    "tags": np.int32,
    "patch_tags": np.int32,
    "rgb": np.float32,
    "kinds": np.int32,
}


def load_one(source: Source, plan: Plan, number: int) -> HostBatch:
    """A source's first batch, to learn its fields and to fail early."""
    return source.batch(plan.indices(number, 0), np.random.default_rng(0))

"""Runs the frozen towers once over all media, and names what they are by their weights."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vljax import store
from vljax.data.decode_worker import Decoders
from vljax.data.features import FeaturesError, Writer
from vljax.data.quarantine import BAD, reason
from vljax.data.views import Item, Loaded, Unreadable, identify, load
from vljax.models.precision import form_of
from vljax.models.sizes import VideoLlamaSize
from vljax.models.video_llama import VideoLlama
from vljax.progress import Progress
from vljax.sharding.mesh import make_mesh
from vljax.sharding.placement import Placement
from vljax.sharding.strategy import strategy
from vljax.store import Tree
from vljax.train.step import Problem
from vljax.train.watch import stop_signals

Key = tuple[str, str]  # media hash, view


def _frame_tokens(model: VideoLlama, frames: jax.Array) -> jax.Array:
    return model.frame_tokens(frames, pixels=True)


def _sight_features(model: VideoLlama, frames: jax.Array) -> jax.Array:
    return model.sight_features(frames, pixels=True)


@dataclasses.dataclass(frozen=True)
class Output:
    """What a frozen tower makes: ``method`` of the model, on uint8 frames or on mel [B, T, ...].

    ``sizes``: the part of a size that its weights' shapes do not tell all of.
    """

    method: Callable[[VideoLlama, jax.Array], jax.Array]
    sizes: Callable[[VideoLlamaSize], Any]
    hears: bool = False

    def example(self, size: VideoLlamaSize) -> jax.Array:
        if self.hears:
            sound = size.imagebind.sound
            return jnp.zeros((1, 1, sound.mel_bins, sound.mel_frames))
        return jnp.zeros((1, 1, size.vit.image, size.vit.image, 3), jnp.uint8)


OUTPUTS = {
    "frame_tokens": Output(_frame_tokens, lambda s: (s.vit, s.qformer)),
    "sight_features": Output(_sight_features, lambda s: (s.imagebind.vision, s.imagebind.out)),
    "sound_features": Output(
        VideoLlama.sound_features, lambda s: (s.imagebind.sound, s.imagebind.out), hears=True
    ),
}


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Frozen towers of a run, their weights in its dtype; ``hashes`` by output."""

    size: VideoLlamaSize
    dtype: Any
    params: Tree
    hashes: Mapping[str, str]

    @classmethod
    def load(cls, problem: Problem, start: Sequence[str], outputs: Sequence[str]) -> "Encoder":
        """The towers behind ``outputs`` from a run's start folders, later ones over earlier ones.

        Raises WeightsError for weights that are missing, FeaturesError for a tower that is trained.
        """
        trees, hashes = [], {}
        for name in outputs:
            wanted = _abstract(problem, name)
            names = tuple(store.flatten(wanted))
            _require_frozen(problem, name, names)
            _require_float(problem, name, names)
            given = store.merge(*[store.load(folder, under=names)[0] for folder in start])
            tree = store.pick(given, wanted, f"start={', '.join(start) or '(nothing)'}")
            tree = jax.tree.map(lambda x: np.asarray(x).astype(problem.dtype), tree)
            whole = f"{store.content_hash(tree)} {OUTPUTS[name].sizes(problem.size)}"
            hashes[name] = hashlib.sha256(whole.encode()).hexdigest()[:16]
            trees.append(tree)
        return cls(problem.size, problem.dtype, store.merge(*trees), hashes)

    def compiled(self, outputs: Sequence[str]) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        """A function from inputs [N, ...] to each output [N, *shape], over this host's devices."""
        rule = strategy("dp")
        placement = Placement(rule, make_mesh(rule, jax.local_devices()))
        params = jax.device_put(self.params, placement.replicated)
        model = VideoLlama(self.size, self.dtype)

        def one(params: Tree, inputs: jax.Array, name: str) -> jax.Array:
            made: Any = model.apply({"params": params}, inputs, method=OUTPUTS[name].method)
            return made[:, 0]

        @jax.jit
        def run(params: Tree, inputs: jax.Array) -> dict[str, jax.Array]:
            return {name: one(params, inputs, name) for name in outputs}

        def call(inputs: np.ndarray) -> dict[str, np.ndarray]:
            inputs = inputs[:, None]
            return jax.device_get(run(params, jax.device_put(inputs, placement.batch(inputs))))

        return call


def _abstract(problem: Problem, output: str) -> Tree:
    """The abstract weights behind an output, and no others."""
    model, one = VideoLlama(problem.size, problem.dtype), OUTPUTS[output]
    init = functools.partial(model.init, method=one.method)
    return nn.unbox(jax.eval_shape(init, jax.random.key(0), one.example(problem.size))["params"])


def _require_frozen(problem: Problem, output: str, names: Sequence[str]) -> None:
    for regex in problem.trainable:
        trained = [n for n in names if re.match(regex, n)]
        if trained:
            raise FeaturesError(
                f"trainable: {regex!r} trains {trained[0]}, on which {output} rest; features are "
                "of frozen towers only, so train this one from frames"
            )


def _require_float(problem: Problem, output: str, names: Sequence[str]) -> None:
    for name in names:
        if form := form_of(name, problem.formats):
            raise FeaturesError(
                f"quantise_vit: got {form.name}, but {output} are encoded by the ViT as it is; "
                "leave it empty"
            )


def encode(
    items: Sequence[Item],
    writers: Mapping[str, Writer],
    encoder: Encoder,
    batch: int = 64,
    workers: int = 2,
    seconds: float = 60.0,
) -> list[tuple[Item, str]]:
    """Adds what each writer's store lacks of ``items``; returns those unreadable, with reasons.

    Args:
      writers: by output; all of them see, or all of them hear, what ``items`` show.
      batch: frames, or clips of sound, that go through the towers at once.
      workers: processes that decode. seconds: most time that a file may take.

    Raises KeyboardInterrupt after what was done is written, when stopped by a signal.
    """
    todo = [i for i in items if not all(i.known(w.store) for w in writers.values())]
    if not todo:
        return []
    devices = jax.local_device_count()
    batch = -(-batch // devices) * devices
    run = encoder.compiled(list(writers))
    progress = Progress("views encoded", len(items), len(items) - len(todo))
    bad: list[tuple[Item, str]] = []
    waiting: list[tuple[Item, Loaded]] = []

    def flush() -> None:
        _encode_group(run, waiting, writers, batch)
        waiting.clear()

    with stop_signals() as stopped, contextlib.closing(_read_ahead(todo, workers, seconds)) as read:
        for done, (item, loaded) in enumerate(read, len(items) - len(todo) + 1):
            if isinstance(loaded, Unreadable):
                bad.append((item, loaded.reason))
                _note_unreadable(item, loaded, writers)
            else:
                if sum(len(x.array) for _, x in waiting) + len(loaded.array) > batch:
                    flush()
                waiting.append((item, loaded))
            if stopped:
                break
            progress.show(done, f"{len(bad)} unreadable")
        flush()
        for writer in writers.values():
            writer.commit()
        if stopped:
            raise KeyboardInterrupt
    return bad


def _read_ahead(
    items: Sequence[Item], workers: int, seconds: float
) -> Generator[tuple[Item, Loaded | Unreadable], None, None]:
    """Items in order with what is in their files, a few of them decoded ahead."""
    with Decoders(workers, seconds) as decoders:
        left = iter(items)
        under_way = [(i, decoders.submit(load, i)) for i in itertools.islice(left, 4 * workers)]
        while under_way:
            item, future = under_way.pop(0)
            under_way += [(i, decoders.submit(load, i)) for i in itertools.islice(left, 1)]
            try:
                yield item, future.result()
            except BAD as error:
                yield item, _unreadable(item, error, decoders)


def _unreadable(item: Item, error: Exception, decoders: Decoders) -> Unreadable:
    try:
        media, stamp = decoders.submit(identify, item.path).result()
        return Unreadable(media, stamp, reason(error))
    except BAD:  # not even its bytes
        return Unreadable(None, (0, 0), reason(error))


def _note_unreadable(item: Item, found: Unreadable, writers: Mapping[str, Writer]) -> None:
    if found.media is None or item.path is None:
        return
    for writer in writers.values():
        writer.note(item.path, found.stamp, found.media)
        writer.refuse(found.media, item.view, found.reason)


def _encode_group(
    run: Callable[[np.ndarray], dict[str, np.ndarray]],
    group: Sequence[tuple[Item, Loaded]],
    writers: Mapping[str, Writer],
    batch: int,
) -> None:
    """Encodes some items in batches of one shape, and adds each where it lacks.

    Files of equal bytes are encoded once.
    """
    keys = [(loaded.media, item.view) for item, loaded in group]
    arrays = {
        key: loaded.array
        for key, (_, loaded) in zip(keys, group, strict=True)
        if not all(key in w.store.rows for w in writers.values())
    }
    rows = _run_in_batches(run, arrays, batch) if arrays else {}
    for name, writer in writers.items():
        for key, (item, loaded) in zip(keys, group, strict=True):
            if item.path is not None:
                writer.note(item.path, loaded.stamp, loaded.media)
            if key not in writer.store.rows:
                writer.add(*key, rows[name][key], loaded.message)


def _run_in_batches(
    run: Callable[[np.ndarray], dict[str, np.ndarray]], arrays: Mapping[Key, np.ndarray], batch: int
) -> dict[str, dict[Key, np.ndarray]]:
    """``run`` of arrays [T_i, ...] one after the other, ``batch`` rows at once: [T_i, *shape]."""
    whole = np.concatenate(list(arrays.values()))
    room = max(1, -(-len(whole) // batch)) * batch
    padded = np.concatenate([whole, np.zeros((room - len(whole), *whole.shape[1:]), whole.dtype)])
    parts = [run(padded[i : i + batch]) for i in range(0, room, batch)]
    ends = np.cumsum([len(x) for x in arrays.values()])
    return {
        name: dict(
            zip(arrays, np.split(np.concatenate([p[name] for p in parts]), ends), strict=False)
        )
        for name in parts[0]
    }

"""What a stage minimises: a module and a method of it, ``(module, batch) -> (loss, metrics)``.

Only the parameters that the method touches are initialised, loaded and sharded.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from vljax.data.text import IGNORE
from vljax.models.imagebind import ImageBind
from vljax.models.sizes import VideoLlamaSize
from vljax.models.video_llama import FrameEncoder, VideoLlama, normalise
from vljax.nn.layers import Dense

Batch = Mapping[str, jax.Array]
Loss = tuple[jax.Array, dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Objective:
    """``module`` builds the Linen module of a size; ``method`` is its loss on a batch.

    ``module``: of a size, a dtype, a remat policy and a chunk of frames.
    ``batch`` gives abstract arrays of a smallest batch of a size: the fields the method reads.
    ``encodes``: outputs of frozen towers that a batch may hold in place of its frames.
    ``weight``: what a loss and its metrics are means over, as a number; None where a batch's loss
    is no mean over its rows, so that it can't be had from parts of the batch.
    ``fewest``: rows that such a part must have.
    """

    module: Callable[[VideoLlamaSize, Any, str, int], nn.Module]
    method: Callable[[Any, Batch], Loss]
    batch: Callable[[VideoLlamaSize], dict[str, jax.ShapeDtypeStruct]]
    encodes: tuple[str, ...] = ()
    weight: Callable[[Batch], jax.Array] | None = None
    fewest: int = 1

    def from_features(self) -> "Objective":
        """The same, of batches that hold what the towers made: these are never run or loaded."""
        return dataclasses.replace(
            self, batch=functools.partial(_encoded_batch, outputs=self.encodes)
        )


def cross_entropy(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """logits [..., C], labels [...] -> mean loss and accuracy over labels that are not IGNORE."""
    taught = labels != IGNORE
    count = jnp.maximum(taught.sum(), 1)
    safe = jnp.where(taught, labels, 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), safe)
    hits = (logits.argmax(-1) == safe) & taught
    return (losses * taught).sum() / count, hits.sum() / count


def language_loss(logits: jax.Array, labels: jax.Array) -> Loss:
    """Next-token loss: logits [B, L, V] against labels [B, L] one to the left (paper's code).

    The labels move, so that logits whose L is split stay where they are.
    """
    loss, accuracy = cross_entropy(logits, _next(labels))
    return loss, {"token_accuracy": accuracy}


def _next(labels: jax.Array) -> jax.Array:
    return jnp.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORE)


def taught_tokens(batch: Batch) -> jax.Array:
    """How many tokens ``language_loss`` is a mean over."""
    return (_next(batch["labels"]) != IGNORE).sum()


def vision(model: VideoLlama, batch: Batch, distract: bool = False) -> Loss:
    """Vision branch: frames through the frozen encoder, captions or answers through LLaMA.

    ``distract``: in the sound's place, where a row has one, stands another row's media.
    """
    media = model.video_tokens(_frame_tokens(model, batch), batch["frame_mask"], train=True)
    if distract:
        other = jax.lax.stop_gradient(_of_another_row(media))
        own_first, own_last = (
            jnp.concatenate(pair, axis=1) for pair in ((media, other), (other, media))
        )
        media = jnp.where(_other_first(model, batch), own_last, own_first)
    return language_loss(model.logits(batch["tokens"], batch["mask"], media), batch["labels"])


def audio(model: VideoLlama, batch: Batch, feature_noise: float, distract: bool = False) -> Loss:
    """Audio branch, trained on pictures: ImageBind's vision features stand for sounds.

    ``distract``: a row with two media has a picture too, through the frozen vision branch. One of
    both is the row's own, which is asked about, the other another row's.
    ``feature_noise``: up to how much Gaussian noise, relative to a feature's size, is added to each
    feature, and again to all of a row alike: sounds lie off their pictures by as much.
    """
    features = _sight_features(model, batch)
    features = _noisy(model.make_rng("noise"), features, feature_noise)
    features = _noisy(model.make_rng("noise"), features, feature_noise, alike=True)
    media = model.audio_tokens(features, batch["frame_mask"], train=True)
    if distract:
        seen = model.video_tokens(_frame_tokens(model, batch), batch["frame_mask"])
        own = jnp.concatenate([media, _of_another_row(seen)], axis=1)
        others = jnp.concatenate([_of_another_row(media), seen], axis=1)
        media = jnp.where(_other_first(model, batch), others, own)
    return language_loss(model.logits(batch["tokens"], batch["mask"], media), batch["labels"])


def _frame_tokens(model: VideoLlama, batch: Batch) -> jax.Array:
    """[B, T, Q, D] of the frozen encoder, made now or before."""
    if "frame_tokens" in batch:
        return batch["frame_tokens"].astype(model.dtype)
    return model.frame_tokens(batch["frames"], pixels=True)


def _sight_features(model: VideoLlama, batch: Batch) -> jax.Array:
    """[B, T, D] of ImageBind's vision tower, made now or before."""
    if "sight_features" in batch:
        return batch["sight_features"]
    return model.sight_features(batch["frames"], pixels=True)


def _of_another_row(media: jax.Array) -> jax.Array:
    return jnp.roll(media, 1, axis=0)


def _other_first(model: VideoLlama, batch: Batch) -> jax.Array:
    """bool [B, 1, 1]: whether a row's first placeholder is of the kind that is not its own."""
    own = model.size.llama.vocab
    first = (batch["tokens"] >= own).argmax(1)
    return jnp.take_along_axis(batch["tokens"], first[:, None], axis=1)[..., None] > own


def text(model: VideoLlama, batch: Batch, context_noise: float) -> Loss:
    """The language model alone; noise on what stands where media will stand."""
    embeddings = model.splice(batch["tokens"])
    noisy = _noisy(model.make_rng("noise"), embeddings, context_noise)
    embeddings = jnp.where(batch["context"][..., None], noisy, embeddings)
    hidden, _ = model.llama(embeddings, batch["mask"])
    return language_loss(model.llama.logits(hidden), batch["labels"])


def _noisy(key: jax.Array, x: jax.Array, most: float, alike: bool = False) -> jax.Array:
    """Adds noise of U(0, most) times x's root mean square, one level a row of x [B, T, D].

    ``alike``: the same noise all along T.
    """
    level_key, key = jax.random.split(key)
    level = jax.random.uniform(level_key, (x.shape[0],) + (1,) * (x.ndim - 1), maxval=most)
    rms = jax.lax.stop_gradient(jnp.sqrt((x * x).mean()))
    shape = (x.shape[0], 1, *x.shape[2:]) if alike else x.shape
    return x + level * rms * jax.random.normal(key, shape, x.dtype)


class TagPretraining(nn.Module):
    """The image encoder with linear heads that name what is where; the heads are thrown away.

    Two heads read the Q-Former's tokens: every tag of every thing, and its colour as RGB, which
    ties colours to no object. One reads each patch: the object that covers it, without which shapes
    are learnt several times more slowly.
    """

    size: VideoLlamaSize
    classes: tuple[int, ...]
    things: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.frame_encoder = FrameEncoder(self.size, self.dtype)
        self.tag_heads = Dense(self.things * sum(self.classes), ("embed", "joint"))
        self.rgb_head = Dense(self.things * 3, ("embed", "joint"))
        self.patch_head = Dense(self.classes[0], ("embed", "joint"))

    def __call__(self, batch: Batch) -> Loss:
        """frames [B, 1, H, W, 3]; tags [B, things, len(classes)]; patch_tags [B, P];
        rgb [B, things, 3], NaN where there is no thing.
        """
        patches = self.frame_encoder.patches(normalise(batch["frames"][:, 0]))
        x = self.frame_encoder.qformer(patches)
        covered, _ = cross_entropy(self.patch_head(patches[:, 1:]), batch["patch_tags"])
        x = x.reshape(x.shape[0], -1)
        there = ~jnp.isnan(batch["rgb"])
        error = self.rgb_head(x).reshape(there.shape) - jnp.where(there, batch["rgb"], 0)
        colour_error = (error**2 * there).sum() / jnp.maximum(there.sum(), 1)
        logits = self.tag_heads(x).reshape(x.shape[0], self.things, -1)
        bounds = [sum(self.classes[:i]) for i in range(1, len(self.classes))]
        parts = jnp.split(logits, bounds, axis=-1)
        pairs = [cross_entropy(p, batch["tags"][..., i]) for i, p in enumerate(parts)]
        metrics = {f"tag_{i}": accuracy for i, (_, accuracy) in enumerate(pairs)}
        return sum((loss for loss, _ in pairs), 3 * covered + 10 * colour_error), metrics


class PairPretraining(nn.Module):
    """ImageBind's two towers, drawn together where picture and sound are of one kind."""

    size: VideoLlamaSize
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.imagebind = ImageBind(self.size.imagebind, self.dtype)
        self.log_scale = self.param("log_scale", nn.initializers.constant(jnp.log(10.0)), ())

    def __call__(self, batch: Batch) -> Loss:
        """frames [B, 1, H, W, 3], mel [B, 1, bins, frames], kinds [B].

        Contrastive both ways; all of the batch's pairs of one kind are positives of each other.
        """
        sight = self.imagebind.see(batch["frames"], pixels=True)[:, 0]
        sound = self.imagebind.hear(batch["mel"])[:, 0] / self.size.imagebind.sound.norm
        logits = sight @ sound.T * jnp.exp(jnp.minimum(self.log_scale, jnp.log(100.0)))
        same = batch["kinds"][:, None] == batch["kinds"][None]
        target = same / same.sum(1, keepdims=True)
        losses = [optax.softmax_cross_entropy(x, target).mean() for x in (logits, logits.T)]
        hits = jnp.take_along_axis(same, logits.argmax(1)[:, None], axis=1)
        return sum(losses, jnp.zeros(())) / 2, {"retrieval": hits.mean()}


def _array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _text_batch(size: VideoLlamaSize) -> dict[str, jax.ShapeDtypeStruct]:
    arrays = {name: _array(jnp.int32, 1, 8) for name in ("tokens", "labels")}
    return arrays | {name: _array(jnp.bool_, 1, 8) for name in ("mask", "context")}


def _media_batch(size: VideoLlamaSize) -> dict[str, jax.ShapeDtypeStruct]:
    arrays = _text_batch(size) | _frames(size) | {"frame_mask": _array(jnp.bool_, 1, 1)}
    del arrays["context"]
    return arrays


def _frames(size: VideoLlamaSize) -> dict[str, jax.ShapeDtypeStruct]:
    return {"frames": _array(jnp.uint8, 1, 1, size.vit.image, size.vit.image, 3)}


def _encoded_batch(
    size: VideoLlamaSize, outputs: tuple[str, ...]
) -> dict[str, jax.ShapeDtypeStruct]:
    arrays = _media_batch(size)
    del arrays["frames"]
    shapes = {
        "frame_tokens": (size.qformer.queries, size.qformer.width),
        "sight_features": (size.imagebind.out,),
    }
    return arrays | {name: _array(jnp.float32, 1, 1, *shapes[name]) for name in outputs}


def _pairs_batch(size: VideoLlamaSize) -> dict[str, jax.ShapeDtypeStruct]:
    sound = size.imagebind.sound
    mel = _array(jnp.float32, 1, 1, sound.mel_bins, sound.mel_frames)
    return _frames(size) | {"mel": mel, "kinds": _array(jnp.int32, 1)}


def make_objective(name: str, **options: Any) -> Objective:
    """The named objective. Raises ValueError for a name or an option that does not exist."""
    if name == "tags":
        classes, things = tuple(options["classes"]), options["things"]

        def tags(size: VideoLlamaSize, dtype: Any, *_: Any) -> TagPretraining:
            return TagPretraining(size, classes, things, dtype)

        def tags_batch(size: VideoLlamaSize) -> dict[str, jax.ShapeDtypeStruct]:
            tags = _array(jnp.int32, 1, things, len(classes))
            patches = (size.vit.image // size.vit.patch) ** 2
            arrays = {"tags": tags, "patch_tags": _array(jnp.int32, 1, patches)}
            return _frames(size) | arrays | {"rgb": _array(jnp.float32, 1, things, 3)}

        return Objective(tags, TagPretraining.__call__, tags_batch)
    if name == "pairs":

        def pairs(size: VideoLlamaSize, dtype: Any, *_: Any) -> PairPretraining:
            return PairPretraining(size, dtype)

        return Objective(pairs, PairPretraining.__call__, _pairs_batch)
    methods: dict[str, Callable[..., Loss]] = {"vision": vision, "audio": audio, "text": text}
    if name not in methods:
        raise ValueError(f"objective: got {name!r}, expected one of {[*methods, 'tags', 'pairs']}")
    batch = _text_batch if name == "text" else _media_batch
    encodes = {
        "vision": ("frame_tokens",),
        "audio": ("sight_features", "frame_tokens")[: 2 if options.get("distract") else 1],
    }
    method = functools.partial(methods[name], **options)
    fewest = 2 if options.get("distract") else 1  # another row is one of the same part
    return Objective(VideoLlama, method, batch, encodes.get(name, ()), taught_tokens, fewest)

"""What the towers make of a file: ImageBind's vectors, the Q-Formers' tokens."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vljax import store
from vljax.generate.compiled import jit, placed
from vljax.generate.engine import SIZES, Engine, fit
from vljax.generate.media import Media
from vljax.models.sizes import VideoLlamaSize
from vljax.models.video_llama import VideoLlama
from vljax.store import Tree

SIGHT_TOWER = "imagebind/vision"  # which answering does without


@dataclasses.dataclass(frozen=True)
class Embedding:
    """What is made of one file; None where the file or the weights lack it.

    Attributes:
      sight: [T, out], ImageBind's of each frame, of length 1.
      sound: [S, out], ImageBind's of each clip of the sound, as the audio branch takes them: of
        length ``size.imagebind.sound.norm`` (20 as published).
      picture_tokens: [Q, D], the Video Q-Former's; of weights without one [T * Q, D], the image
        Q-Former's of each frame.
      sound_tokens: [Q, D], the Audio Q-Former's.
    """

    sight: np.ndarray | None = None
    sound: np.ndarray | None = None
    picture_tokens: np.ndarray | None = None
    sound_tokens: np.ndarray | None = None

    @property
    def seen(self) -> np.ndarray | None:
        """[out], of length 1: the frames' direction in ImageBind's space."""
        return None if self.sight is None else _direction(self.sight)

    @property
    def heard(self) -> np.ndarray | None:
        """[out], of length 1: the sound's direction in the same space."""
        return None if self.sound is None else _direction(self.sound)


def _direction(vectors: np.ndarray) -> np.ndarray:
    mean = vectors.mean(axis=0)
    return mean / max(float(np.linalg.norm(mean)), 1e-12)


def read_sight_tower(folder: Path, dtype: Any) -> Tree:
    """{"imagebind": {"vision": ...}} of a folder of weights; {} where it has none."""
    arrays = store.flatten(store.unflatten(dict(store.stored(folder)[0])))
    wanted = {n: x for n, x in arrays.items() if store.is_under(n, (SIGHT_TOWER,))}
    return store.unflatten({n: jax.device_put(x.read(dtype)) for n, x in wanted.items()})


def sight_size(size: VideoLlamaSize) -> VideoLlamaSize:
    """With frames as large as ImageBind's vision tower takes them."""
    return dataclasses.replace(
        size, vit=dataclasses.replace(size.vit, image=size.imagebind.vision.image)
    )


def embed(
    engine: Engine, media: Sequence[Media], sights: Sequence[Media], tower: Tree
) -> list[Embedding]:
    """Of each medium; ``sights`` are the same read at ``sight_size``, for the ``tower``."""
    model, params = engine.model, engine.params
    frames, mels = [m.frames for m in media], [m.mel for m in media]
    makers: dict[str, tuple[Sequence[np.ndarray | None], Callable[[np.ndarray], jax.Array]]] = {}
    if tower:
        makers["sight"] = [m.frames for m in sights], lambda x: see(model, tower, x)
    if engine.has("imagebind/sound"):
        makers["sound"] = mels, lambda x: hear(model, params, x)
    if engine.sees:
        makers["picture_tokens"] = frames, lambda x: picture_tokens(model, params, x)
    if engine.hears:
        makers["sound_tokens"] = mels, lambda x: sound_tokens(model, params, x)
    made = {}
    for name, (arrays, make) in makers.items():
        with placed(None if name == "sight" else engine.placement):
            made[name] = _of_each(arrays, make)
    return [
        Embedding(**{name: values[i] for name, values in made.items()}) for i in range(len(media))
    ]


def _of_each(
    arrays: Sequence[np.ndarray | None], make: Callable[[np.ndarray], jax.Array]
) -> list[np.ndarray | None]:
    """``make`` of the arrays, in batches of one shape and static sizes."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for i, x in enumerate(arrays):
        if x is not None:
            shapes.setdefault(x.shape, []).append(i)
    results: list[np.ndarray | None] = [None] * len(arrays)
    for indices in shapes.values():
        for start in range(0, len(indices), SIZES[-1]):
            part = indices[start : start + SIZES[-1]]
            filled = part + part[-1:] * (fit(len(part), SIZES) - len(part))
            batch = np.stack([x for i in filled if (x := arrays[i]) is not None])
            made = np.asarray(make(batch).astype(np.float32))
            for i, x in zip(part, made, strict=False):
                results[i] = x
    return results


@jit("model")
def see(model: VideoLlama, tower: Tree, frames: jax.Array) -> jax.Array:
    """frames uint8 [B, T, image, image, 3] -> ImageBind's [B, T, out]."""
    made: Any = model.apply({"params": tower}, frames, True, method="sight_features")
    return made


@jit("model")
def hear(model: VideoLlama, params: Tree, mel: jax.Array) -> jax.Array:
    """mel float32 [B, S, bins, frames] -> ImageBind's [B, S, out]."""
    made: Any = model.apply({"params": params}, mel, method="sound_features")
    return made


@jit("model")
def picture_tokens(model: VideoLlama, params: Tree, frames: jax.Array) -> jax.Array:
    """frames uint8 [B, T, image, image, 3] -> [B, Q, D]."""

    def run(model: VideoLlama, frames: jax.Array) -> jax.Array:
        tokens = model.frame_tokens(frames, True)
        if "video_qformer" in params:
            model.video_tokens(tokens)
        B, T, Q, D = tokens.shape
        return tokens.reshape(B, T * Q, D)

    return _kept(model, params, run, frames, "video_qformer_out")


@jit("model")
def sound_tokens(model: VideoLlama, params: Tree, mel: jax.Array) -> jax.Array:
    """mel float32 [B, S, bins, frames] -> [B, Q, D]."""

    def run(model: VideoLlama, mel: jax.Array) -> jax.Array:
        return model.audio_tokens(model.sound_features(mel))

    return _kept(model, params, run, mel, "audio_qformer_out")


def _kept(
    model: VideoLlama, params: Tree, run: Callable[..., jax.Array], x: jax.Array, name: str
) -> jax.Array:
    """What the model keeps by this name on the way, or what ``run`` ends with."""
    out, state = model.apply({"params": params}, x, method=run, mutable=["intermediates"])
    kept: Any = state["intermediates"].get(name, (out,))[0]
    return kept

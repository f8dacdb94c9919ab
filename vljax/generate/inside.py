"""Where the query tokens look: weights of the Q-Formers' cross-attention.

The model does not keep them. They are made again from the queries and keys that its modules
project, which Flax captures on the way.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vljax.generate.compiled import jit, placed
from vljax.generate.engine import Engine
from vljax.generate.media import Media
from vljax.models.sizes import QFormerSize
from vljax.models.video_llama import VideoLlama
from vljax.store import Tree


@dataclasses.dataclass(frozen=True)
class Looks:
    """Of one file; the last axis, of ``frames`` the last two, adds up to 1. None where it lacks it.

    Attributes:
      patches: [N, H, T, Q, P], of the image Q-Former's N cross-attending layers and H heads: where
        in each of T frames each of its Q queries looks. P is 1, the class token, and the patches,
        row by row.
      frames: [N, H, Q, T, q], of the Video Q-Former: at which of the q tokens of which frame.
      clips: [N, H, Q, S], of the Audio Q-Former: at which clip of the sound.
    """

    patches: np.ndarray | None = None
    frames: np.ndarray | None = None
    clips: np.ndarray | None = None


def looks(engine: Engine, media: Media) -> Looks:
    """Runs the towers on ``media``, as answering does, for what their queries look at."""
    size, found = engine.size, Looks()
    whole = engine.has("video_qformer")
    with placed(engine.placement):
        if media.frames is not None and engine.sees:
            seen = see(engine.model, engine.params, media.frames[None], whole)
            patches = np.asarray(seen[0])
            found = dataclasses.replace(found, patches=patches.swapaxes(1, 2))
            if whole:
                frames = np.asarray(seen[1])[:, 0]
                shape = (*frames.shape[:3], -1, size.qformer.queries)
                found = dataclasses.replace(found, frames=frames.reshape(shape))
        if media.mel is not None and engine.hears:
            clips = np.asarray(hear(engine.model, engine.params, media.mel[None]))
            found = dataclasses.replace(found, clips=clips[:, 0])
    return found


@jit(("model", "whole"))
def see(model: VideoLlama, params: Tree, frames: jax.Array, whole: bool) -> tuple[jax.Array, ...]:
    """uint8 [1, T, image, image, 3] -> the image Q-Former's, and if ``whole`` the video's."""

    def run(model: VideoLlama, frames: jax.Array) -> None:
        tokens = model.frame_tokens(frames, True)
        if whole:
            model.video_tokens(tokens)

    kept = _projected(model, params, run, frames)
    first = weights(kept["frame_encoder"]["qformer"], model.size.qformer)
    return (first, weights(kept["video_qformer"], model.size.video_qformer)) if whole else (first,)


@jit("model")
def hear(model: VideoLlama, params: Tree, mel: jax.Array) -> jax.Array:
    """mel float32 [1, S, bins, frames] -> the Audio Q-Former's."""

    def run(model: VideoLlama, mel: jax.Array) -> None:
        model.audio_tokens(model.sound_features(mel))

    kept = _projected(model, params, run, mel)
    return weights(kept["audio_qformer"], model.size.audio_qformer)


def weights(trunk: Tree, size: QFormerSize) -> jax.Array:
    """What one Q-Former projected -> float32 [N, B, H, Q, S], of its cross-attending layers."""
    groups = [trunk["groups"]] if "groups" in trunk else []
    tail = [jax.tree.map(lambda x: x[None], trunk["tail"])] if "tail" in trunk else []
    made = []
    for group in groups + tail:
        projected = group["layer_0"]["cross_attention"]
        q, k = (_heads(projected[name]["__call__"][0], size) for name in ("query", "key"))
        scores = jnp.einsum("NBLHK,NBSHK->NBHLS", q, k) * q.shape[-1] ** -0.5
        made.append(jax.nn.softmax(scores, axis=-1))
    return jnp.concatenate(made)


def _heads(x: jax.Array, size: QFormerSize) -> jax.Array:
    return x.reshape(*x.shape[:-1], size.heads, -1).astype(jnp.float32)


def _projected(model: VideoLlama, params: Tree, run: Any, x: jax.Array) -> Any:
    """Outputs of all cross-attentions' query and key projections, where the modules lie."""

    def wanted(module: nn.Module, method: str) -> bool:
        return module.name in ("query", "key") and "cross_attention" in module.path

    _, state = model.apply(
        {"params": params}, x, method=run, capture_intermediates=wanted, mutable=["intermediates"]
    )
    return state["intermediates"]

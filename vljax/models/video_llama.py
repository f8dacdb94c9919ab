"""Video-LLaMA: two branches of soft prompts in front of one frozen LLaMA (paper, section 2)."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vljax.models.eva_vit import EvaViT, normalise
from vljax.models.imagebind import ImageBind
from vljax.models.llama import Llama
from vljax.models.memory import stretched
from vljax.models.qformer import QFormer
from vljax.models.sizes import VideoLlamaSize
from vljax.nn.attention import Caches
from vljax.nn.layers import Dense, LayerNorm, Table
from vljax.nn.stack import over_frames

LN_VISION_EPS = 1e-5  # torch's default, unlike the ViT's own norms
FRAMES = ("frames", None)  # of an encoder's [N, P, ...]


class FrameEncoder(nn.Module):
    """The frozen image side, vit -> ln_vision -> qformer, under whoever shares its scope."""

    size: VideoLlamaSize
    dtype: jnp.dtype = jnp.float32
    frame_chunk: int = 0

    def setup(self) -> None:
        self.vit = EvaViT(self.size.vit, self.dtype, FRAMES)
        self.ln_vision = LayerNorm(LN_VISION_EPS)
        self.qformer = QFormer(self.size.qformer, self.dtype, FRAMES)

    def __call__(self, frames: jax.Array, pixels: bool = False) -> jax.Array:
        """frames [B, T, image, image, 3] -> [B, T, Q, D], each frame on its own.

        ``pixels``: frames are uint8 and not yet normalised.
        """

        def encode(encoder: "FrameEncoder", images: jax.Array) -> jax.Array:
            images = normalise(images) if pixels else images
            return encoder.qformer(encoder.patches(images))

        return over_frames(self, encode, frames, self.frame_chunk)

    def patches(self, images: jax.Array) -> jax.Array:
        """images [N, image, image, 3], normalised -> [N, 1 + P, D_vit], normed."""
        x = self.ln_vision(self.vit(images))
        self.sow("intermediates", "ln_vision_out", x)
        return x


class VideoLlama(nn.Module):
    """All of the model as methods; use what a caller needs: only that is initialised.

    Top-level parameter names: ``frame_encoder/{vit,ln_vision,qformer}``, ``frame_position``,
    ``video_qformer``, ``video_proj``, ``imagebind``, ``audio_position``, ``audio_qformer``,
    ``audio_proj``, ``llama``. ``remat`` and ``apart`` are the language model's, ``frame_chunk`` the
    encoders'.
    """

    size: VideoLlamaSize
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    frame_chunk: int = 0
    apart: bool = False

    def setup(self) -> None:
        s = self.size
        self.frame_encoder = FrameEncoder(s, self.dtype, self.frame_chunk)
        self.frame_position = Table(s.max_frames, s.qformer.width, std=s.position_std)
        self.video_qformer = QFormer(s.video_qformer, self.dtype)
        self.video_proj = Dense(s.llama.width, ("embed", "llm"), dtype=self.dtype)
        self.imagebind = ImageBind(s.imagebind, self.dtype, self.frame_chunk)
        self.audio_position = Table(s.max_clips, s.imagebind.out, std=s.position_std)
        self.audio_qformer = QFormer(s.audio_qformer, self.dtype)
        self.audio_proj = Dense(s.llama.width, ("embed", "llm"), dtype=self.dtype)
        self.llama = Llama(s.llama, self.dtype, self.remat, self.apart)

    def frame_tokens(self, frames: jax.Array, pixels: bool = False) -> jax.Array:
        """frames [B, T, image, image, 3] -> [B, T, Q, D] of the frozen encoder.

        Frames are normalised already, or ``pixels``, which take less memory.
        """
        return jax.lax.stop_gradient(self.frame_encoder(frames, pixels))

    def video_tokens(
        self,
        frame_tokens: jax.Array,
        valid: jax.Array | None = None,
        train: bool = False,
        stretch: int = 0,
    ) -> jax.Array:
        """frame_tokens [B, T, Q, D], valid bool [B, T] -> soft prompts [B, video queries, D_llm].

        A frame's position is added to all of its tokens, then frames are flattened frame-major.
        ``stretch``: so many rows of the table are drawn out over all T frames.
        """
        B, T, Q, D = frame_tokens.shape
        table = self.frame_position()
        if stretch:
            table = stretched(table[:stretch], T)
        if table.shape[0] < T:
            raise ValueError(f"frames: got {T}, expected at most {table.shape[0]}; sample fewer")
        x = frame_tokens + table[:T, None].astype(frame_tokens.dtype)
        x = x.reshape(B, T * Q, D)
        self.sow("intermediates", "positioned", x)
        mask = None if valid is None else jnp.repeat(valid.astype(bool), Q, axis=1)
        x = self.video_qformer(x, mask, train)
        self.sow("intermediates", "video_qformer_out", x)
        return self.video_proj(x)

    def image_tokens(self, frame_tokens: jax.Array) -> jax.Array:
        """frame_tokens [B, 1, Q, D] -> soft prompts [B, Q, D_llm], as in MiniGPT-4."""
        return self.video_proj(frame_tokens[:, 0])

    def sight_features(self, frames: jax.Array, pixels: bool = False) -> jax.Array:
        """frames [B, T, image, image, 3], as ``frame_tokens``'s -> ImageBind's [B, T, out]."""
        return jax.lax.stop_gradient(self.imagebind.see(frames, pixels))

    def sound_features(self, mel: jax.Array) -> jax.Array:
        """mel [B, T, mel_bins, mel_frames], normalised -> ImageBind's [B, T, out]."""
        return jax.lax.stop_gradient(self.imagebind.hear(mel))

    def audio_tokens(
        self,
        features: jax.Array,
        valid: jax.Array | None = None,
        train: bool = False,
        stretch: int = 0,
    ) -> jax.Array:
        """ImageBind's features [B, T, out] -> soft prompts [B, audio queries, D_llm].

        Trained on ``sight_features`` and used on ``sound_features``: the space is shared.
        ``stretch`` as in ``video_tokens``.
        """
        table = self.audio_position()
        T = features.shape[1]
        if stretch:
            table = stretched(table[:stretch], T)
        if table.shape[0] < T:
            raise ValueError(f"sound clips: got {T}, expected at most {table.shape[0]}")
        x = (features + table[:T].astype(features.dtype)).astype(self.dtype)
        x = self.audio_qformer(x, valid, train)
        self.sow("intermediates", "audio_qformer_out", x)
        return self.audio_proj(x)

    def splice(self, tokens: jax.Array, media: jax.Array | None = None) -> jax.Array:
        """tokens [B, L], media [B, M, D] -> embeddings [B, L, D].

        Ids beyond the embedding table are placeholders: the n-th one of a row is replaced by
        that row's n-th media vector. (The original: ``<ImageHere>`` has the first id after the
        table, which is never resized.)
        """
        here = tokens >= self.size.llama.vocab
        embeddings = self.llama.embed(jnp.where(here, 0, tokens))
        if media is None:
            return embeddings
        slot = jnp.clip(jnp.cumsum(here, axis=1) - 1, 0, media.shape[1] - 1)
        spread = jnp.take_along_axis(media.astype(embeddings.dtype), slot[..., None], axis=1)
        return jnp.where(here[..., None], spread, embeddings)

    def logits(self, tokens: jax.Array, mask: jax.Array, media: jax.Array | None) -> jax.Array:
        """tokens and mask [B, L], media [B, M, D] -> float32 [B, L, V]."""
        hidden, _ = self.llama(self.splice(tokens, media), mask)
        return self.llama.logits(hidden)

    def empty_cache(self, batch: int, slots: int) -> Caches:
        """A cache for ``batch`` rows of ``slots`` positions, with nothing in it."""
        return self.llama.empty_cache(batch, slots)

    def head(self, hidden: jax.Array) -> jax.Array:
        """hidden [B, L, D] -> float32 logits [B, L, V]."""
        return self.llama.logits(hidden)

    def decode(
        self, embeddings: jax.Array, mask: jax.Array, positions: jax.Array, cache: Caches
    ) -> tuple[jax.Array, Caches]:
        """One cached call: embeddings [B, L, D], mask bool [B, L, S] -> hidden [B, L, D], cache."""
        hidden, filled = self.llama(embeddings, mask, positions, cache)
        assert filled is not None
        return hidden, filled


def abstract_parameters(size: VideoLlamaSize) -> dict[str, Any]:
    """The abstract tree of the whole model, its leaves boxed with their logical axis names.

    It is the one truth that conversion, export and restoring go by.
    """
    sound, image, sight = size.imagebind.sound, size.vit.image, size.imagebind.vision.image

    def everything(model: VideoLlama, *arrays: jax.Array) -> None:
        frames, sights, mel, tokens = arrays
        model.video_tokens(model.frame_tokens(frames))
        model.sight_features(sights)
        model.audio_tokens(model.sound_features(mel))
        model.logits(tokens, jnp.ones_like(tokens), None)

    return jax.eval_shape(
        functools.partial(VideoLlama(size).init, method=everything),
        jax.random.key(0),
        jnp.zeros((1, 1, image, image, 3)),
        jnp.zeros((1, 1, sight, sight, 3)),
        jnp.zeros((1, 1, sound.mel_bins, sound.mel_frames)),
        jnp.zeros((1, 1), jnp.int32),
    )["params"]

"""A golden set: inputs, weights and outputs of the original, and our model with its weights."""

import functools
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vljax.convert.towers import to_vljax
from vljax.data.tokenizer import Tokenizer
from vljax.models.sizes import (
    ImageBindSize,
    LlamaSize,
    QFormerSize,
    SoundTowerSize,
    VideoLlamaSize,
    VisionTowerSize,
    ViTSize,
)
from vljax.models.video_llama import VideoLlama

IMAGEBIND_MLP_RATIO = 4  # fixed in the original, so no golden set states it


class GoldenSet:
    """One folder: its sizes, and our model of them with the original's weights, converted.

    Raises ValueError, with a sentence, for a folder that lacks ``config.json`` or ``weights.npz``,
    or whose weights are not all there or not of the sizes that the config states.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.config: dict[str, Any] = self.json("config")
        try:
            self.size = size_from_config(self.config)
        except KeyError as error:
            raise ValueError(f"{self.folder}/config.json: lacks the field {error}") from error
        self.model = VideoLlama(self.size)
        self.weights = self.arrays("weights")
        self.params, self.coverage = to_vljax(self.weights, self.size)
        if missing := self.coverage.missing:
            raise ValueError(
                f"{self.folder}/weights.npz: lacks {len(missing)} tensors, {missing[0]} first; "
                "fetch the whole set"
            )
        self._jitted: dict[Callable, Callable] = {}

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """All arrays of ``name``.npz."""
        path = self._existing(f"{name}.npz")
        try:
            with np.load(path) as file:
                return dict(file)
        except (zipfile.BadZipFile, EOFError, ValueError) as error:
            raise ValueError(f"{path}: is not a whole npz file ({error}); fetch it anew") from error

    def json(self, name: str) -> Any:
        """The content of ``name``.json."""
        path = self._existing(f"{name}.json")
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: is not JSON ({error}); fetch it anew") from error

    def has(self, file: str) -> bool:
        return (self.folder / file).is_file()

    def _existing(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise ValueError(f"{path}: not there; name the folder of a golden set")
        return path

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.folder / "tokenizer.model")

    @functools.cached_property
    def texts(self) -> dict[str, Any]:
        return self.json("text_cases")

    @functools.cached_property
    def vision(self) -> dict[str, np.ndarray]:
        return self.arrays("vision_forward")

    def apply(self, method: Callable, *arguments: Any) -> tuple[Any, dict[str, Any]]:
        """``method(model, *arguments)`` with the set's weights -> (outputs, intermediates)."""
        if method not in self._jitted:
            run = functools.partial(self.model.apply, method=method, mutable=["intermediates"])
            self._jitted[method] = jax.jit(run)
        out, state = self._jitted[method]({"params": self.params}, *arguments)
        return out, nn.unbox(state).get("intermediates", {})

    @functools.cached_property
    def soft_prompts(self) -> dict[str, np.ndarray]:
        """What our branches make of the set's clips, sounds and images: [B, queries, D] each."""
        return {
            "video": self.apply(see, frames_last(self.vision["video"]))[0],
            "image": self.apply(see, frames_last(self.vision["image_as_1frame/video"]))[0],
            "audio": self.apply(hear, self.arrays("audio_imagebind")["audio"][:, :, 0])[0][1],
        }


def frames_last(video: np.ndarray) -> np.ndarray:
    """torch's [B, 3, T, height, width] -> [B, T, height, width, 3]."""
    return video.transpose(0, 2, 3, 4, 1)


def see(model: VideoLlama, frames: jax.Array) -> jax.Array:
    """frames [B, T, image, image, 3], normalised -> soft prompts."""
    return model.video_tokens(model.frame_tokens(frames))


def hear(model: VideoLlama, mel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """mel [B, S, bins, frames] -> ImageBind's features and soft prompts."""
    features = model.sound_features(mel)
    return features, model.audio_tokens(features)


def hear_by_sight(model: VideoLlama, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
    """As ``hear``, of frames: the way the audio branch is trained."""
    features = model.sight_features(frames)
    return features, model.audio_tokens(features)


def size_from_config(config: Mapping[str, Any]) -> VideoLlamaSize:
    """The sizes that a golden set's ``config.json`` states; KeyError for a field it lacks.

    What the original fixes in code (ImageBind's patch, stem and output norm) is our default.
    """
    c = config
    trunk = {"width": c["q_hidden"], "heads": c["q_heads"], "mlp": c["q_inter"]}
    branch = {
        **trunk,
        "depth": c["num_layers_video_audio_qformer"],
        "cross_every": c["cross_attention_freq_video_audio_qformer"],
    }
    return VideoLlamaSize(
        name="golden",
        llama=LlamaSize(
            vocab=c["vocab"],
            width=c["llm_hidden"],
            depth=c["llm_layers"],
            heads=c["llm_heads"],
            kv_heads=c.get("llm_kv_heads", c["llm_heads"]),
            mlp=c["llm_inter"],
            eps=c["llm_eps"],
            rope_base=c["rope_base"],
        ),
        vit=ViTSize(
            image=c["img_size"],
            patch=c["patch"],
            width=c["vit_width"],
            depth=c["vit_depth"],
            heads=c["vit_heads"],
            mlp=c["vit_mlp_hidden"],
        ),
        qformer=QFormerSize(
            queries=c["n_query"],
            depth=c["q_layers"],
            encoder_width=c["vit_width"],
            cross_every=c["cross_attention_freq_image_qformer"],
            **trunk,
        ),
        video_qformer=QFormerSize(
            queries=c["n_video_query"], encoder_width=c["q_hidden"], **branch
        ),
        audio_qformer=QFormerSize(queries=c["n_audio_query"], encoder_width=c["ib_out"], **branch),
        imagebind=_imagebind(c),
        max_frames=c["max_frame_pos"],
        max_clips=c["audio_position_rows"],
    )


def _imagebind(c: Mapping[str, Any]) -> ImageBindSize:
    _, mel_bins, mel_frames = c["imagebind_audio_input"]
    vision = VisionTowerSize(
        image=c["imagebind_image_size"],
        width=c["ib_vision_width"],
        depth=c["ib_vision_depth"],
        heads=c["ib_vision_heads"],
        mlp=IMAGEBIND_MLP_RATIO * c["ib_vision_width"],
    )
    sound = SoundTowerSize(
        mel_bins=mel_bins,
        mel_frames=mel_frames,
        width=c["ib_audio_width"],
        depth=c["ib_audio_depth"],
        heads=c["ib_audio_heads"],
        mlp=IMAGEBIND_MLP_RATIO * c["ib_audio_width"],
    )
    return ImageBindSize(vision=vision, sound=sound, out=c["ib_out"])

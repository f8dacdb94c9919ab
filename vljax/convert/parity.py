"""Comparison with the original's numbers: the sizes of a golden set, and how far off we are."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vljax.models.sizes import (
    ImageBindSize,
    LlamaSize,
    QFormerSize,
    SoundTowerSize,
    VideoLlamaSize,
    VisionTowerSize,
    ViTSize,
)

IMAGEBIND_MLP_RATIO = 4  # fixed in the original, so no golden set states it


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


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """Largest absolute difference over the largest magnitude of ``want``; inf where not finite.

    Raises ValueError for different shapes: nothing is broadcast.
    """
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape:
        raise ValueError(f"shapes differ: got {got.shape}, expected {want.shape}")
    if got.size == 0:
        return 0.0
    error = float(np.abs(got - want).max() / max(float(np.abs(want).max()), 1e-30))
    return error if np.isfinite(error) else float("inf")

"""The visual branch and the audio branch, layer by layer."""

import re
from typing import Any

import jax
import numpy as np

from vljax.convert.parity.compare import CLOSE, EXACT, PIXEL, Check
from vljax.convert.parity.golden import GoldenSet, frames_last, hear, hear_by_sight, see
from vljax.data.video import eval_frames
from vljax.nn.block import EPS
from vljax.nn.layers import LayerNorm

Sown = dict[str, Any]


def vision_forward(golden: GoldenSet, check: Check) -> None:
    """vision_forward.npz: every case that has a ``video``."""
    for prefix in check.cases("video"):
        with check.attempt(f"{prefix}video"):
            frames = frames_last(check[f"{prefix}video"])
            tokens, sown = golden.apply(see, frames)
            for name, x in _visual_arrays(golden, np.asarray(tokens), sown).items():
                check(f"{prefix}{name}", x, EXACT if name == "atts_llama" else CLOSE)
    for prefix in check.cases("video_u8"):
        pixels = frames_last(check[f"{prefix}video_u8"])
        check(f"{prefix}video", eval_frames(pixels).transpose(0, 4, 1, 2, 3), PIXEL)


def _visual_arrays(golden: GoldenSet, tokens: np.ndarray, sown: Sown) -> dict[str, np.ndarray]:
    size, encoder = golden.size, sown["frame_encoder"]
    blocks = encoder["vit"]["layers"]["out"][0]
    layers = qformer_layers(encoder["qformer"], size.qformer.cross_every)
    video_layers = qformer_layers(sown["video_qformer"], size.video_qformer.cross_every)
    return {
        "vit_patch_tokens": encoder["vit"]["patches"][0],
        "vit_tokens_with_cls_pos": encoder["vit"]["positioned"][0],
        **{f"vit_block_{i}": x for i, x in enumerate(blocks)},
        "vit_out": blocks[-1],
        "ln_vision_out": encoder["ln_vision_out"][0],
        "qformer_embed_ln": encoder["qformer"]["embedded"][0],
        **{f"qformer_layer_{i}": x for i, x in enumerate(layers)},
        "qformer_out": layers[-1],
        "frame_tokens_with_pos": sown["positioned"][0],
        "video_qformer_embed_ln": sown["video_qformer"]["embedded"][0],
        **{f"video_qformer_layer_{i}": x for i, x in enumerate(video_layers)},
        "video_qformer_out": sown["video_qformer_out"][0],
        "llama_proj_out": tokens,
        "inputs_llama": tokens,
        "atts_llama": np.ones(tokens.shape[:2], int),
    }


def qformer_layers(sown: Sown, every: int) -> list[np.ndarray]:
    """Hidden states of all layers in order, from the groups and the tail."""
    groups, layers = sown.get("groups", {}), []
    if groups:
        stacked = [groups[f"layer_{i}"]["out"][0] for i in range(every)]
        layers = [stacked[i][g] for g in range(len(stacked[0])) for i in range(every)]
    tail = sown.get("tail", {})
    return layers + [tail[f"layer_{i}"]["out"][0] for i in range(len(tail))]


def audio_imagebind(golden: GoldenSet, check: Check) -> None:
    """audio_imagebind.npz: sounds, and the frames that stand for them in training."""
    for prefix in check.cases("audio"):
        with check.attempt(f"{prefix}audio"):
            _sound(golden, check, prefix)
    for prefix in check.cases("images_b_t_c_h_w"):
        with check.attempt(f"{prefix}images_b_t_c_h_w"):
            _sight(golden, check, prefix)


def _sound(golden: GoldenSet, check: Check, prefix: str) -> None:
    mel = check[f"{prefix}audio"]
    (features, tokens), sown = golden.apply(hear, mel[:, :, 0])
    sound = sown["imagebind"]["sound"]
    pooled = sound["head"]["pooled"][0].reshape(*mel.shape[:2], -1)
    check(f"{prefix}clip_feature_pre_head", pooled)
    check(f"{prefix}clip_feature_final", features)
    check(f"{prefix}audio_qformer_out", sown["audio_qformer_out"][0])
    check(f"{prefix}audio_llama_proj_out", tokens)
    check(f"{prefix}atts_llama", np.ones(tokens.shape[:2], int), EXACT)
    check(f"{prefix}imagebind_forward_mean_over_clips", features.mean(1))
    # Clip 0 of sample 0, layer by layer.
    blocks = sound["layers"]["out"][0][:, 0]
    check(f"{prefix}clip0/stem_tokens", sound["stem_out"][0][0])
    for i, x in enumerate(blocks):
        check(f"{prefix}clip0/audio_block_{i}", x)
    check(f"{prefix}clip0/trunk_out", blocks[-1])
    norm = {"params": golden.params["imagebind"]["sound"]["head"]["norm"]}
    check(f"{prefix}clip0/head_ln", LayerNorm(EPS).apply(norm, blocks[-1]))


def _sight(golden: GoldenSet, check: Check, prefix: str) -> None:
    images = check[f"{prefix}images_b_t_c_h_w"]
    (features, tokens), sown = golden.apply(hear_by_sight, images.transpose(0, 1, 3, 4, 2))
    vision = sown["imagebind"]["vision"]
    pooled = vision["head"]["pooled"][0].reshape(*images.shape[:2], -1)
    check(f"{prefix}frame_feature_pre_head", pooled)
    check(f"{prefix}frame_feature_final", features)
    check(f"{prefix}audio_llama_proj_out", tokens)
    firsts: dict[str, jax.Array] = {
        "frame0_stem_tokens_first": vision["stem_out"][0][0],
        "frame0_trunk_out_first": vision["layers"]["out"][0][-1, 0],
    }
    for name in check.wants:
        found = re.fullmatch(re.escape(prefix) + r"(frame0_\w+_first)(\d+)", name)
        if found and found[1] in firsts:
            check(name, firsts[found[1]][: int(found[2])])

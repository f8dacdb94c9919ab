"""Every array of the original's visual and audio branches, given the original's weights."""

import copy

import numpy as np
import pytest

from vljax.data.video import CLIP_MEAN, CLIP_STD
from vljax.models import imagebind, qformer, video_llama
from vljax.models.video_llama import VideoLlama
from vljax.nn import block
from vljax.nn.layers import LayerNorm


def frames_last(video: np.ndarray) -> np.ndarray:
    """torch's [B, 3, T, height, width] -> [B, T, height, width, 3]."""
    return video.transpose(0, 2, 3, 4, 1)


def see(model: VideoLlama, frames: np.ndarray):
    return model.video_tokens(model.frame_tokens(frames))


def hear(model: VideoLlama, mel: np.ndarray):
    features = model.sound_features(mel)
    return features, model.audio_tokens(features)


def hear_by_sight(model: VideoLlama, frames: np.ndarray):
    features = model.sight_features(frames)
    return features, model.audio_tokens(features)


def qformer_layers(sown: dict, every: int) -> list[np.ndarray]:
    """Hidden states of all layers in order, from the groups and the tail."""
    groups = [sown["groups"][f"layer_{i}"]["out"][0] for i in range(every)]
    layers = [groups[i][g] for g in range(len(groups[0])) for i in range(every)]
    tail = sown.get("tail", {})
    return layers + [tail[f"layer_{i}"]["out"][0] for i in range(len(tail))]


def check_video(check, golden, prefix: str = "") -> None:
    """Checks every array under ``prefix`` that a clip has."""
    tokens, sown = golden.apply(frames_last(check.arrays[f"{prefix}video"]), method=see)
    size, encoder = golden.size, sown["frame_encoder"]
    blocks = encoder["vit"]["layers"]["out"][0]
    layers = qformer_layers(encoder["qformer"], size.qformer.cross_every)
    video_layers = qformer_layers(sown["video_qformer"], size.video_qformer.cross_every)
    assert (len(blocks), len(layers)) == (size.vit.depth, size.qformer.depth)
    assert len(video_layers) == size.video_qformer.depth
    found = {
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
        "atts_llama": np.ones(tokens.shape[:2]),
    }
    for name, x in found.items():
        if not prefix or f"{prefix}{name}" in check.arrays:
            check(f"{prefix}{name}", x)


def test_vision(golden, checked):
    check = checked(golden.arrays("vision_forward"))
    check_video(check, golden)
    check_video(check, golden, "image_as_1frame/")
    pixels = check.arrays["video_u8"].transpose(0, 2, 3, 4, 1).astype(np.float32) / 255
    check("video", ((pixels - CLIP_MEAN) / CLIP_STD).transpose(0, 4, 1, 2, 3))
    check.finish(set(check.arrays) - {"video_u8", "image_as_1frame/video"})


def test_audio(golden, checked):
    check = checked(golden.arrays("audio_imagebind"))
    mel = check.arrays["audio"]
    (features, tokens), sown = golden.apply(mel[:, :, 0], method=hear)
    clips, sound = mel.shape[:2], sown["imagebind"]["sound"]
    check("clip_feature_pre_head", sound["head"]["pooled"][0].reshape(*clips, -1))
    check("clip_feature_final", features)
    check("audio_qformer_out", sown["audio_qformer_out"][0])
    check("audio_llama_proj_out", tokens)
    check("atts_llama", np.ones(tokens.shape[:2]))
    check("imagebind_forward_mean_over_clips", features.mean(1))
    assert np.allclose(np.linalg.norm(features, axis=-1), golden.size.imagebind.sound.norm)

    check("clip0/stem_tokens", sound["stem_out"][0][0])
    blocks = sound["layers"]["out"][0][:, 0]
    assert len(blocks) == golden.size.imagebind.sound.depth
    for i, x in enumerate(blocks):
        check(f"clip0/audio_block_{i}", x)
    check("clip0/trunk_out", blocks[-1])
    norm = golden.params["imagebind"]["sound"]["head"]["norm"]
    check("clip0/head_ln", LayerNorm(block.EPS).apply({"params": norm}, blocks[-1]))

    three = check.arrays["three_clips/audio"]
    (features, tokens), _ = golden.apply(three[:, :, 0], method=hear)
    check("three_clips/clip_feature_final", features)
    check("three_clips/audio_llama_proj_out", tokens)
    check_sight(check, golden)
    check.finish(set(check.arrays) - {"audio", "three_clips/audio", "vision/images_b_t_c_h_w"})


def check_sight(check, golden) -> None:
    """ImageBind's vision tower, by which the audio branch is trained."""
    images = check.arrays["vision/images_b_t_c_h_w"]
    frames = images.transpose(0, 1, 3, 4, 2)
    (features, tokens), sown = golden.apply(frames, method=hear_by_sight)
    vision = sown["imagebind"]["vision"]
    pooled = vision["head"]["pooled"][0].reshape(*images.shape[:2], -1)
    check("vision/frame_feature_pre_head", pooled)
    check("vision/frame_feature_final", features)
    check("vision/audio_llama_proj_out", tokens)
    check("vision/frame0_stem_tokens_first16", vision["stem_out"][0][0, :16])
    check("vision/frame0_trunk_out_first16", vision["layers"]["out"][0][-1, 0, :16])


def test_the_eps_of_every_norm(golden):
    """Most are too small for the activations to tell, so they are compared as numbers."""
    config = golden.config
    assert config["vit_layer_norm_eps"] == block.EPS  # ImageBind's too, but for its sound stem
    assert config["ln_vision_eps"] == video_llama.LN_VISION_EPS
    assert config["bert_layer_norm_eps"] == qformer.EPS
    assert imagebind.STEM_EPS == 1e-5


def test_a_wrong_image_size_is_refused(golden):
    with pytest.raises(ValueError, match="images: got shape"):
        golden.apply(np.zeros((1, 1, 8, 8, 3), np.float32), method=see)


def test_too_many_frames_are_refused(golden):
    size = golden.size
    tokens = np.zeros((1, size.max_frames + 1, size.qformer.queries, size.qformer.width))
    with pytest.raises(ValueError, match="frames: got"):
        golden.apply(tokens, method=VideoLlama.video_tokens)


def test_a_wrong_weight_is_noticed(golden, checked):
    """The comparison can fail: one bias moved by a hundredth of its scale is enough."""
    params = copy.deepcopy(golden.params)
    params["frame_encoder"]["vit"]["patch"]["bias"] *= 1.01
    check = checked(golden.arrays("vision_forward"))
    frames = frames_last(check.arrays["video"])
    check("llama_proj_out", golden.model.apply({"params": params}, frames, method=see))
    with pytest.raises(AssertionError, match="off by more"):
        check.finish({"llama_proj_out"})

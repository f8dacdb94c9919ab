"""What the parity command does not compare of the branches: constants, and what is refused."""

import numpy as np
import pytest

from vljax.models import imagebind, qformer, video_llama
from vljax.models.video_llama import VideoLlama
from vljax.nn import block


def see(model: VideoLlama, frames: np.ndarray):
    return model.video_tokens(model.frame_tokens(frames))


def test_the_eps_of_every_norm(golden):
    """Most are too small for the activations to tell, so they are compared as numbers."""
    config = golden.config
    assert config["vit_layer_norm_eps"] == block.EPS  # ImageBind's too, but for its sound stem
    assert config["ln_vision_eps"] == video_llama.LN_VISION_EPS
    assert config["bert_layer_norm_eps"] == qformer.EPS
    assert imagebind.STEM_EPS == 1e-5


def test_sounds_have_the_length_that_the_size_says(golden):
    mel = golden.arrays("audio_imagebind")["audio"][:, :, 0]
    features, _ = golden.apply(mel, method=VideoLlama.sound_features)
    assert np.allclose(np.linalg.norm(features, axis=-1), golden.size.imagebind.sound.norm)


def test_a_wrong_image_size_is_refused(golden):
    with pytest.raises(ValueError, match="images: got shape"):
        golden.apply(np.zeros((1, 1, 8, 8, 3), np.float32), method=see)


def test_too_many_frames_are_refused(golden):
    size = golden.size
    tokens = np.zeros((1, size.max_frames + 1, size.qformer.queries, size.qformer.width))
    with pytest.raises(ValueError, match="frames: got"):
        golden.apply(tokens, method=VideoLlama.video_tokens)

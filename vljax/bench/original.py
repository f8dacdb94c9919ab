"""The original's way from a file to frames and mel clips, to measure ours against.

decord's frames at 224 pixels, normalised in torch, and torchaudio's Kaldi filter bank (Video-LLaMA
`processors/video_processor.py`, `models/ImageBind/data.py`). Sound is read by decord as well, mono
at 16 kHz: torchaudio reads none itself any more, and this is the cheapest of the ways at hand.
"""

import functools
import importlib.util
import sys
import types
from typing import Any

import numpy as np

from vljax.data.audio import AudioSpec, clip_bounds
from vljax.data.clips import FrameSpec
from vljax.data.video import CLIP_MEAN, CLIP_STD, uniform_indices

NEEDED = ("decord", "torch", "torchaudio")


def missing() -> list[str]:
    """Which of the packages are not installed; none of them is imported."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def load(path: str) -> tuple[Any, Any]:
    """A clip's tensors: frames [3, T, H, W] float32 and mel [S, 1, M, F] float32."""
    return load_frames(path), load_mel(path)


def load_and_drop(path: str) -> None:
    """``load`` for timing: nothing is carried to the main process, which would only cost more."""
    load(path)


def load_frames(path: str, spec: FrameSpec = FrameSpec()) -> Any:
    decord, torch = _decord(), _torch()
    video = decord.VideoReader(uri=path, height=spec.size, width=spec.size)
    indices = uniform_indices(len(video), spec.count, literal=True).tolist()
    frames = video.get_batch(indices).permute(3, 0, 1, 2).float()
    mean, std = (torch.from_numpy(x)[:, None, None, None] for x in (CLIP_MEAN, CLIP_STD))
    return (frames.to(torch.uint8).float().div(255.0) - mean) / std


def load_mel(path: str, spec: AudioSpec = AudioSpec()) -> Any:
    torch = _torch()
    wave = _decord().AudioReader(path, sample_rate=spec.rate, mono=True)[:]
    clips = []
    for start, end in clip_bounds(wave.shape[1], spec):
        view = wave[:, start:end]
        view -= view.mean()
        mel = (
            _kaldi()
            .fbank(
                view,
                htk_compat=True,
                sample_frequency=spec.rate,
                use_energy=False,
                window_type="hanning",
                num_mel_bins=spec.mel_bins,
                dither=0.0,
                frame_length=25,
                frame_shift=10,
            )
            .T
        )
        room = spec.mel_frames - mel.shape[1]
        mel = torch.nn.functional.pad(mel, (0, room)) if room > 0 else mel[:, : spec.mel_frames]
        clips.append((mel[None] - spec.mean) / spec.std)
    return torch.stack(clips)


def arrays(path: str) -> tuple[np.ndarray, np.ndarray]:
    """What ``load`` gives as ours has it: uint8 [T, H, W, 3] and float32 [S, M, F]."""
    frames, mel = load(path)
    frames = frames.permute(1, 2, 3, 0).numpy() * CLIP_STD + CLIP_MEAN
    return (frames * 255).round().astype(np.uint8), mel[:, 0].numpy()


@functools.cache
def _torch() -> Any:
    import torch

    torch.set_num_threads(1)  # as in every worker of torch's DataLoader
    return torch


@functools.cache
def _decord() -> Any:
    import decord

    _torch()
    decord.bridge.set_bridge("torch")
    return decord


@functools.cache
def _kaldi() -> Any:
    """torchaudio's module without the package around it, whose libraries want a torch with CUDA."""
    found = importlib.util.find_spec("torchaudio")
    assert found is not None and found.submodule_search_locations is not None
    package = types.ModuleType("torchaudio")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules.setdefault("torchaudio", package)
    return importlib.import_module("torchaudio.compliance.kaldi")

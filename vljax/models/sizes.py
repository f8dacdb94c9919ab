"""Every size of every tower, as frozen dataclasses. Modules take these and know no other number."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # sizes are needed where nothing is decoded
    from vljax.data.audio import AudioSpec


@dataclasses.dataclass(frozen=True)
class ViTSize:
    """EVA-CLIP ViT: ``image`` and ``patch`` in pixels; no final norm, so ``depth`` counts all."""

    image: int = 224
    patch: int = 14
    width: int = 1408
    depth: int = 39
    heads: int = 16
    mlp: int = 6144


@dataclasses.dataclass(frozen=True)
class QFormerSize:
    """A BERT trunk with learned queries; every ``cross_every``-th layer looks at the encoder."""

    queries: int
    depth: int
    encoder_width: int
    cross_every: int = 1
    width: int = 768
    heads: int = 12
    mlp: int = 3072
    dropout: float = 0.1


@dataclasses.dataclass(frozen=True)
class VisionTowerSize:
    """ImageBind's vision tower; ``temporal`` time slices of the stem kernel."""

    image: int = 224
    patch: int = 14
    temporal: int = 2
    width: int = 1280
    depth: int = 32
    heads: int = 16
    mlp: int = 5120


@dataclasses.dataclass(frozen=True)
class SoundTowerSize:
    """ImageBind's audio tower over [mel_bins, mel_frames] spectrograms of clips of ``seconds``.

    ``norm`` is the length of the feature vectors it returns (the original: exp of a fixed log
    scale, 20), while the vision tower's have length 1.
    """

    seconds: float = 2.0
    mel_bins: int = 128
    mel_frames: int = 204
    kernel: int = 16
    stride: int = 10
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    norm: float = 20.0


@dataclasses.dataclass(frozen=True)
class ImageBindSize:
    vision: VisionTowerSize = VisionTowerSize()
    sound: SoundTowerSize = SoundTowerSize()
    out: int = 1024


@dataclasses.dataclass(frozen=True)
class LlamaSize:
    """A LLaMA-architecture decoder; ``tied`` shares the embedding with the output head."""

    vocab: int = 32000
    width: int = 4096
    depth: int = 32
    heads: int = 32
    kv_heads: int = 32
    mlp: int = 11008
    eps: float = 1e-6
    rope_base: float = 10000.0
    tied: bool = False


@dataclasses.dataclass(frozen=True)
class VideoLlamaSize:
    """The whole model. ``max_frames`` and ``max_clips`` are rows of the two position tables."""

    name: str
    llama: LlamaSize
    vit: ViTSize = ViTSize()
    qformer: QFormerSize = QFormerSize(queries=32, depth=12, encoder_width=1408, cross_every=2)
    video_qformer: QFormerSize = QFormerSize(queries=32, depth=2, encoder_width=768)
    audio_qformer: QFormerSize = QFormerSize(queries=8, depth=2, encoder_width=1024)
    imagebind: ImageBindSize = ImageBindSize()
    max_frames: int = 32
    max_clips: int = 8
    position_std: float = 1.0

    def without_dropout(self) -> "VideoLlamaSize":
        """The same model whose training is deterministic."""
        trunks = {
            name: dataclasses.replace(getattr(self, name), dropout=0.0)
            for name in ("qformer", "video_qformer", "audio_qformer")
        }
        return dataclasses.replace(self, **trunks)

    @property
    def audio(self) -> "AudioSpec":
        """How sound is cut into clips and turned into mel spectrograms for this model."""
        from vljax.data.audio import AudioSpec

        sound = self.imagebind.sound
        return AudioSpec(
            clips=self.max_clips,
            clip_seconds=sound.seconds,
            mel_bins=sound.mel_bins,
            mel_frames=sound.mel_frames,
        )


LLAMA_7B = LlamaSize()
LLAMA_13B = LlamaSize(width=5120, depth=40, heads=40, kv_heads=40, mlp=13824)

TINY = VideoLlamaSize(
    name="tiny",
    llama=LlamaSize(vocab=576, width=128, depth=3, heads=4, kv_heads=4, mlp=352),
    vit=ViTSize(image=48, patch=8, width=96, depth=3, heads=4, mlp=384),
    qformer=QFormerSize(
        queries=4, depth=2, encoder_width=96, width=96, heads=4, mlp=192, dropout=0.0
    ),
    video_qformer=QFormerSize(queries=8, depth=2, encoder_width=96, width=96, heads=4, mlp=192),
    audio_qformer=QFormerSize(queries=8, depth=2, encoder_width=32, width=96, heads=4, mlp=192),
    imagebind=ImageBindSize(
        vision=VisionTowerSize(image=48, patch=8, temporal=1, width=96, depth=3, heads=4, mlp=384),
        sound=SoundTowerSize(
            seconds=1.0,
            mel_bins=32,
            mel_frames=96,
            kernel=8,
            stride=8,
            width=64,
            depth=2,
            heads=4,
            mlp=256,
            norm=1.0,
        ),
        out=32,
    ),
    max_frames=8,
    position_std=0.7,
)

SMOLLM2_135M = LlamaSize(
    vocab=49152,
    width=576,
    depth=30,
    heads=9,
    kv_heads=3,
    mlp=1536,
    eps=1e-5,
    rope_base=100000.0,
    tied=True,
)

# A decoder's own size comes first. LLaMA-1 (Vicuna) norms with 1e-6, Llama-2 with 1e-5.
DECODERS = {
    ("7b", "vicuna"): LLAMA_7B,
    ("13b", "vicuna"): LLAMA_13B,
    ("7b", "llama2"): dataclasses.replace(LLAMA_7B, eps=1e-5),
    ("13b", "llama2"): dataclasses.replace(LLAMA_13B, eps=1e-5),
    ("135m", "smollm2_135m"): SMOLLM2_135M,
}


def own_size(llm: str) -> str:
    """The size that a decoder is meant by its name alone: vicuna is 7b. Raises ValueError."""
    for size, name in DECODERS:
        if name == llm:
            return size
    known = ", ".join(dict.fromkeys(name for _, name in DECODERS))
    raise ValueError(f"llm: got {llm}, expected one of {known}")


def video_llama_size(size: str = "", llm: str = "vicuna") -> VideoLlamaSize:
    """The named size, by default the decoder's own, with the named decoder.

    Raises ValueError for a pair that does not exist.
    """
    size = size or own_size(llm)
    if size == "tiny" and llm == "vicuna":
        return TINY
    if (size, llm) not in DECODERS:
        pairs = ", ".join(f"size={s},llm={m}" for s, m in [("tiny", "vicuna"), *DECODERS])
        raise ValueError(f"size={size},llm={llm}: no such model; choose one of {pairs}")
    return VideoLlamaSize(name=size, llama=DECODERS[size, llm])


def size_of(manifest: Mapping[str, Any]) -> VideoLlamaSize:
    """The size that a manifest states, whole ("model") or by its name."""
    if "model" in manifest:
        return size_from_dict(manifest["model"])
    return video_llama_size(manifest["size"], manifest["llm"])


def size_as_dict(size: VideoLlamaSize) -> dict[str, Any]:
    """Nested dicts of plain numbers, for a manifest."""
    return dataclasses.asdict(size)


def size_from_dict(fields: Mapping[str, Any]) -> VideoLlamaSize:
    """The inverse of ``size_as_dict``. Raises ValueError for fields that are not a size's."""
    try:
        return _from_dict(VideoLlamaSize, fields)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"size: {error}; expected the fields of a VideoLlamaSize") from error


def _from_dict(kind: Any, fields: Mapping[str, Any]) -> Any:
    types = typing.get_type_hints(kind)
    return kind(
        **{
            name: _from_dict(types[name], value)
            if dataclasses.is_dataclass(types.get(name))
            else value
            for name, value in fields.items()
        }
    )

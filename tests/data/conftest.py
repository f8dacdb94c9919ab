"""Media files that the tests write themselves, and one vocabulary in both kinds of file."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vljax.data.tokenizer import Tokenizer

MODEL = Path(__file__).parent.parent / "golden" / "tokenizer.model"


def grey_level(position: int) -> int:
    """The grey of frame `position`: steps of 7 survive lossy codecs."""
    return 20 + 7 * position % 210


def grey_frames(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """[T, H, W, 3] uint8 frames, each one flat, told apart by its grey."""
    levels = np.array([grey_level(i) for i in range(count)], np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3))


def tone(seconds: float, rate: int, channels: int) -> np.ndarray:
    """[channels, samples] float32: 440 Hz at 0.5 in channel 0, at 0.25 in channel 1."""
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    return np.stack([wave / (i + 1) for i in range(channels)]).astype(np.float32)


def write(
    path: Path,
    frames: np.ndarray | None = None,
    sound: np.ndarray | None = None,
    *,
    rate: int = 16000,
    fps: int = 25,
    codec: str = "libx264",
    sound_codec: str = "aac",
    times: list[int] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Writes a media file; `times` are the frames' display times in 1/1000 s."""
    with av.open(str(path), "w") as container:
        video = audio = None
        if frames is not None:
            video = container.add_stream(codec, rate=fps, options=options or {})
            video.height, video.width = frames.shape[1:3]
            video.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
            if times:
                video.codec_context.time_base = Fraction(1, 1000)
        if sound is not None:
            layout = {1: "mono", 2: "stereo"}[len(sound)]
            audio = container.add_stream(sound_codec, rate=rate, layout=layout)
        container.start_encoding()
        if video:
            for i, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
                frame = frame.reformat(format=video.pix_fmt)
                if times:
                    frame.pts, frame.time_base = times[i], Fraction(1, 1000)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        if audio and sound.size:
            frame = av.AudioFrame.from_ndarray(sound, "fltp", layout)
            frame.sample_rate = rate
            resampler = av.AudioResampler(format=audio.format)
            for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(audio.encode(piece))
            container.mux(audio.encode(None))
    return path


@pytest.fixture(name="write")
def write_fixture() -> Callable[..., Path]:
    return write


@pytest.fixture(name="grey_frames")
def grey_frames_fixture() -> Callable[..., np.ndarray]:
    return grey_frames


@pytest.fixture(name="tone")
def tone_fixture() -> Callable[..., np.ndarray]:
    return tone


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory) -> Path:
    """The golden sentencepiece model as transformers writes it: its own rule about spaces."""
    pytest.importorskip("tokenizers")
    import sentencepiece
    from tokenizers import pre_tokenizers

    from vljax.convert.vocabulary import Kind, sentencepiece_bpe

    model = sentencepiece.SentencePieceProcessor(model_file=str(MODEL))

    def kind(i: int) -> Kind:
        if model.is_unknown(i):
            return Kind.UNKNOWN
        if model.is_control(i):
            return Kind.CONTROL
        return Kind.BYTE if model.is_byte(i) else Kind.NORMAL

    ids = range(model.vocab_size())
    pieces, scores = ([f(i) for i in ids] for f in (model.id_to_piece, model.get_score))
    built = sentencepiece_bpe(pieces, [kind(i) for i in ids], scores)
    built.normalizer = None
    built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    path = tmp_path_factory.mktemp("json") / "tokenizer.json"
    built.save(str(path))
    return path


@pytest.fixture(scope="module", params=["tokenizer.model", "tokenizer.json"])
def tokenizer(request) -> Tokenizer:
    """The golden vocabulary, in both kinds of file."""
    json = request.param == "tokenizer.json"
    return Tokenizer(request.getfixturevalue("tokenizer_json") if json else MODEL)

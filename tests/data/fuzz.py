"""Mutated media files through the decoding processes: each decoded, or quarantined for a reason.

``python tests/data/fuzz.py COUNT [--seed 0] [--workers 2] [--seconds 10] [--keep DIR]`` prints what
became of them as JSON, and fails if the main process leaves a worker behind.
"""

import argparse
import collections
import json
import re
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from PIL import Image

from vljax.data.audio import AudioSpec
from vljax.data.clips import FrameSpec
from vljax.data.decode_worker import Decoders
from vljax.data.examples import Record
from vljax.data.pipeline import MediaSource, TextSpec
from vljax.data.quarantine import Quarantine, Reader
from vljax.data.video import is_image
from vljax.progress import Progress

MUTATIONS = ("flip", "truncate", "header", "zero", "splice", "sizes")
KINDS = {  # suffix: codecs of picture and sound
    "mp4": ("libx264", "aac"),
    "mkv": ("libx264", "pcm_s16le"),
    "webm": ("libvpx-vp9", "libopus"),
    "avi": ("mpeg4", "libmp3lame"),
    "mov": ("mjpeg", "pcm_s16le"),
    "gif": ("gif", None),
}
IMAGES = ("jpg", "png", "webp", "bmp")


def originals(folder: Path, rng: np.random.Generator) -> list[Path]:
    """A small whole clip of each kind of container, and images."""
    clips = [write(folder / f"whole.{kind}", *codecs, rng) for kind, codecs in KINDS.items()]
    images = [folder / f"whole.{kind}" for kind in IMAGES]
    for path in images:
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).save(path)
    return clips + images


def write(path: Path, codec: str, sound: str | None, rng: np.random.Generator) -> Path:
    noise = rng.integers(0, 60, (30, 64, 96, 3), np.uint8)
    frames = noise + np.arange(0, 180, 6, np.uint8)[:, None, None, None]
    wave = (0.3 * np.sin(np.arange(96000) / 17)).astype(np.float32)[None]
    with av.open(str(path), "w") as out:
        video = out.add_stream(codec, rate=15)
        video.height, video.width = 64, 96
        formats = {"gif": "rgb8", "mjpeg": "yuvj420p"}
        video.pix_fmt = formats.get(codec, "yuv420p")
        track = out.add_stream(sound, rate=48000, layout="mono") if sound else None
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format=video.pix_fmt)
            out.mux(video.encode(frame))
        out.mux(video.encode())
        if track is not None:
            block = av.AudioFrame.from_ndarray(wave, "fltp", "mono")
            block.sample_rate = 48000
            resampler = av.AudioResampler(track.format, "mono", 48000, track.frame_size or None)
            for piece in [*resampler.resample(block), *resampler.resample(None)]:
                out.mux(track.encode(piece))
            out.mux(track.encode())
    return path


def mutate(data: bytes, how: str, rng: np.random.Generator) -> bytes:
    """One of MUTATIONS of a file's bytes."""
    out = np.frombuffer(data, np.uint8).copy()
    size = len(out)
    if how == "truncate":
        return data[: rng.integers(size)]
    if how == "flip":  # single bits, anywhere
        for at in rng.integers(size, size=2 ** rng.integers(1, 10)):
            out[at] ^= 1 << rng.integers(8)
    elif how == "header":  # bytes of the head or the tail, where containers keep their tables
        ends = np.r_[0 : min(size, 600), max(size - 2500, 0) : size]
        at = rng.choice(ends, rng.integers(1, 40))
        out[at] = rng.integers(0, 256, len(at))
    elif how == "zero":
        start = rng.integers(size)
        out[start : start + rng.integers(1, size // 4)] = 0
    elif how == "splice":  # a piece is cut out, or stands twice
        a, b = sorted(rng.integers(size, size=2))
        return data[:a] + data[b:] if rng.integers(2) else data[:b] + data[a:]
    else:  # a number of four bytes becomes a huge one
        heads = np.r_[0 : min(size, 600) - 4, max(size - 2500, 0) : size - 4]
        at = rng.choice(heads)
        out[at : at + 4] = rng.choice([0, 127, 255], 4)
    return out.tobytes()


def make(folder: Path, count: int, seed: int) -> list[Path]:
    """So many mutated files, of all kinds and mutations in turn."""
    rng = np.random.default_rng(seed)
    wholes = originals(folder, rng)
    paths = []
    for i in range(count):
        whole, how = wholes[i % len(wholes)], MUTATIONS[i // len(wholes) % len(MUTATIONS)]
        path = folder / f"{i:05d}-{how}{whole.suffix}"
        path.write_bytes(mutate(whole.read_bytes(), how, rng))
        paths.append(path)
    return paths


def kind_of(reason: str) -> str:
    """A reason without what is particular to a file."""
    reason = re.sub(r"(/\S+/)?\d{5}-\w+\.\w+", "FILE", reason)
    return re.sub(r"\d+", "N", reason.split(": use ")[0])


def fuzz(
    folder: Path, count: int, seed: int, workers: int = 2, seconds: float = 10.0
) -> dict[str, object]:
    """What became of the files: counts, reasons, wall time, and the workers left."""
    paths = make(folder, count, seed)
    records = [
        Record(path.name, path, "image" if is_image(path) else "video", caption="")
        for path in paths
    ]
    frames, text = FrameSpec(8, 64), TextSpec("", "vicuna", 1, 1)
    source = MediaSource(
        "fuzz", 1.0, 1, records, frames, text, AudioSpec(), on_bad="skip", max_bad=1.0
    )
    kept, progress = Quarantine(folder), Progress("fuzz", count)
    began, decoded = time.monotonic(), 0
    with Decoders(workers, seconds) as decoders:
        read = Reader(decoders, kept)
        for start in range(0, count, 16):
            rngs = [np.random.default_rng((seed, i)) for i in range(start, start + 16)]
            wanted = [(source, r, g) for r, g in zip(records[start : start + 16], rngs)]  # noqa: B905
            decoded += sum(media is not None for media in read(wanted))
            progress.show(min(start + 16, count))
        pids = decoders.pids()
    reasons = collections.Counter(kind_of(r) for r in kept.reasons.values())
    return {
        "files": count,
        "decoded": decoded,
        "quarantined": len(kept.reasons),
        "reasons": dict(reasons.most_common()),
        "seconds": round(time.monotonic() - began, 1),
        "workers_left": [pid for pid in pids if Path(f"/proc/{pid}").exists()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--keep", type=Path, help="a folder to leave the files in")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        told = fuzz(folder, args.count, args.seed, args.workers, args.seconds)
    print(json.dumps(told, indent=1))
    whole = told["decoded"] + told["quarantined"] == told["files"]
    sys.exit(0 if whole and not told["workers_left"] else 1)


if __name__ == "__main__":
    main()

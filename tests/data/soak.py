"""Decodes at full speed for a while and watches the resident memory of main process and workers.

``python tests/data/soak.py [--minutes 10] [--workers 2]`` prints JSON: clips a second, MiB after a
fifth of the time (warm-up) and at the end, and the largest growth; it fails where that is over 5 %.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from vljax.data.audio import AudioSpec
from vljax.data.examples import Record
from vljax.data.pipeline import FrameSpec, MediaSource, TextSpec, batches

ROOT = Path(__file__).parents[1]
BATCH = 8


def write_clip(path: Path, rng: np.random.Generator) -> None:
    """Five seconds of moving noise at 320 x 180, with sound."""
    with av.open(str(path), "w") as out:
        video, audio = out.add_stream("libx264", rate=25), out.add_stream("aac", rate=44100)
        video.options = {"preset": "ultrafast"}
        video.width, video.height, video.pix_fmt = 320, 180, "yuv420p"
        coarse = rng.integers(0, 256, (125, 18, 32, 3), np.uint8)
        for frame in coarse.repeat(10, 1).repeat(10, 2):
            out.mux(video.encode(av.VideoFrame.from_ndarray(frame)))
        out.mux(video.encode())
        wave = rng.normal(0, 0.1, (2, 5 * 44100)).astype(np.float32)
        block = av.AudioFrame.from_ndarray(wave, "fltp", "stereo")
        block.sample_rate = 44100
        resampler = av.AudioResampler("fltp", "stereo", 44100, 1024)
        for piece in [*resampler.resample(block), *resampler.resample(None)]:
            out.mux(audio.encode(piece))
        out.mux(audio.encode())


def resident(pid: int) -> float:
    """MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def children() -> list[int]:
    """The processes that any thread of this one has started."""
    tasks = Path(f"/proc/{os.getpid()}/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rng, records = np.random.default_rng(0), []
        for i in range(32):
            path = Path(folder) / f"{i}.mp4"
            if i < 4:
                write_clip(path, rng)
            else:
                shutil.copyfile(records[i % 4].path, path)
            records.append(Record(str(i), path, "video", caption=f"noise {i}"))
        text = TextSpec(str(ROOT / "golden" / "tokenizer.model"), "vicuna", media=8, limit=64)
        source = MediaSource("s", 1.0, BATCH, records, FrameSpec(), text, AudioSpec())
        told = soak(source, 60 * args.minutes, args.workers)
    print(json.dumps(told, indent=1))
    sys.exit(0 if told["growth"] <= 0.05 else 1)


def soak(source: MediaSource, seconds: float, workers: int) -> dict[str, float]:
    began = shown = time.monotonic()
    samples: list[tuple[float, float, float]] = []  # seconds, MiB of main, MiB of the workers
    steps = 0
    for _ in batches([source], 0, 10**6, workers=workers):
        steps += 1
        now = time.monotonic()
        if now - shown >= min(5.0, seconds / 50):
            shown = now
            mine, theirs = resident(os.getpid()), sum(resident(p) for p in children())
            samples.append((now - began, mine, theirs))
            left = seconds - (now - began)
            print(f"{mine:.0f} + {theirs:.0f} MiB, {left:.0f} s left", file=sys.stderr, flush=True)
        if now - began > seconds:
            break
    warm = [m + t for s, m, t in samples if s > seconds / 5]
    first = statistics.median(warm[: max(1, len(warm) // 10)])
    last = statistics.median(warm[-max(1, len(warm) // 10) :])
    return {
        "clips_a_second": round(steps * BATCH / (time.monotonic() - began), 2),
        "minutes": round(seconds / 60, 2),
        "mib_after_warm_up": round(first, 1),
        "mib_at_the_end": round(last, 1),
        "mib_at_most": round(max(warm), 1),
        "growth": round(last / first - 1, 4),
    }


if __name__ == "__main__":
    main()

"""How fast clips become frames and mel clips: ours beside the original's recipe, and the floor.

Both run in the worker processes that training decodes in, each worker on a core of its own, on the
same clips, in rounds by turns: what else the machine does meets both. Medians of the rounds count.
"""

import collections
import contextlib
import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from vljax.bench import original
from vljax.data.audio import AudioSpec
from vljax.data.clips import FrameSpec, load_media
from vljax.data.decode_worker import Decoders
from vljax.data.examples import Record
from vljax.data.video import MediaError, uniform_indices

FRAMES = FrameSpec(augment=False)  # the original's transform of an evaluation: no crop
SOUND = AudioSpec()
Job = tuple[Any, ...]  # a function and its arguments


@dataclasses.dataclass(frozen=True)
class Timing:
    """One stretch of work; CPU seconds are those of the workers and of this process."""

    clips: int
    wall: float
    cpu: float


class Pool:
    """Workers with a core each; they live through all rounds, so that no import is measured."""

    def __init__(self, workers: int):
        self._cores = sorted(os.sched_getaffinity(0))[:workers]
        self.decoders, self.workers = Decoders(workers), workers

    @contextlib.contextmanager
    def pinned(self) -> Iterator[None]:
        """This thread, and what it starts meanwhile, runs on the pool's cores alone."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self._cores)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)

    def warm_up(self, job: Job) -> None:
        with self.pinned():
            for future in [self.decoders.submit(*job) for _ in range(self.workers)]:
                future.result()
        for pid, core in zip(self.decoders.pids(), self._cores, strict=True):
            os.sched_setaffinity(pid, {core})

    def run(self, jobs: Sequence[Job]) -> Timing:
        with self.pinned():
            cpu, wall = self._cpu(), time.monotonic()
            futures = collections.deque(self.decoders.submit(*job) for job in jobs)
            while futures:
                futures.popleft().result()
            return Timing(len(jobs), time.monotonic() - wall, self._cpu() - cpu)

    def _cpu(self) -> float:
        return time.process_time() + sum(cpu_seconds(pid) for pid in self.decoders.pids())


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, by /proc."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def our_job(path: Path) -> Job:
    """What training has its workers do for a clip."""
    record = Record(path.name, path, "video", caption="")
    return load_media, record, FRAMES, np.random.default_rng(0), SOUND


def measure(
    paths: Sequence[Path],
    workers: Sequence[int] = (1, 2),
    rounds: int = 5,
    jobs: int = 24,
    show: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """A report, see ``summary``; without the original where its packages are not installed.

    Args:
      paths: clips with sound. workers: numbers of worker processes to measure.
      rounds: how often each is measured. jobs: clips that a worker reads each time.

    Raises MediaError for a clip that cannot be read or is without sound, ValueError for more
    workers than there are cores.
    """
    cores = len(os.sched_getaffinity(0))
    if not 1 <= min(workers) <= max(workers) <= cores:
        raise ValueError(
            f"workers: got {', '.join(map(str, workers))}, expected 1 to {cores}: one a core"
        )
    clips = [describe(path) for path in paths]
    makers: dict[str, Callable[[Path], Job]] = {"ours": our_job}
    if not original.missing():
        makers["original"] = lambda path: (original.load_and_drop, str(path))
    timings: dict[tuple[str, int], list[Timing]] = {}
    floors = []
    with contextlib.ExitStack() as stack:
        pools = {(name, n): Pool(n) for n in workers for name in makers}
        for (name, _), pool in pools.items():
            stack.enter_context(pool.decoders)
            pool.warm_up(makers[name](paths[0]))
        one = pools["ours", workers[0]]
        for i in range(rounds):
            for key, pool in pools.items():
                turns = [makers[key[0]](paths[j % len(paths)]) for j in range(jobs * key[1])]
                timings.setdefault(key, []).append(pool.run(turns))
            with one.pinned():
                floors += [one.decoders.submit(decode_alone, str(p)).result() for p in paths]
            show(i + 1)
        differences = compare(paths, one.decoders) if "original" in makers else None
    return summary(timings, statistics.median(floors)) | {"clips": clips, "apart": differences}


def summary(timings: Mapping[tuple[str, int], Sequence[Timing]], floor: float) -> dict[str, Any]:
    """Medians of the rounds, by who and number of workers.

    clips_a_second, cpu_ms (of a clip); scaling: clips a second over those of the fewest workers,
    a worker; ratio: ours over the original's clips a second, and cpu_ratio theirs over our CPU
    time; floor_ms: CPU time of bare decoding, and over_floor: our share beyond it.
    """
    names = list(dict.fromkeys(name for name, _ in timings))
    workers = list(dict.fromkeys(n for _, n in timings))
    speed, cpu = (
        {key: statistics.median(f(t) for t in rounds) for key, rounds in timings.items()}
        for f in (lambda t: t.clips / t.wall, lambda t: 1000 * t.cpu / t.clips)
    )
    least = min(workers)
    report: dict[str, Any] = {
        name: {
            str(n): {
                "clips_a_second": speed[name, n],
                "cpu_ms": cpu[name, n],
                "scaling": speed[name, n] / n / (speed[name, least] / least),
            }
            for n in workers
        }
        for name in names
    }
    if "original" in names:
        report["ratio"] = {str(n): speed["ours", n] / speed["original", n] for n in workers}
        report["cpu_ratio"] = {str(n): cpu["original", n] / cpu["ours", n] for n in workers}
    over = cpu["ours", least] / (1000 * floor) - 1
    return report | {"floor_ms": 1000 * floor, "over_floor": over}


def decode_alone(path: str) -> float:
    """CPU seconds that libavcodec takes for what the wanted frames rest on, and for the sound.

    Nothing is opened, scaled, converted or resampled in that time.
    """
    with av.open(path) as container:
        video = container.streams.video[0]
        video.thread_type = "NONE"
        packets = list(container.demux(video, container.streams.audio[0]))
        pictures = [p for p in packets if p.stream is video and p.size]
        needed, wanted = needed_packets(pictures, FRAMES.count)
        sound = [p for p in packets if p.stream is not video]
        began = time.process_time()
        for packet in needed:
            video.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            packet.decode()
        video.codec_context.decode(None)
        for packet in sound:
            packet.decode()
        return time.process_time() - began


def needed_packets(packets: Sequence[av.Packet], count: int) -> tuple[list[av.Packet], set[int]]:
    """Packets, in order, from each keyframe to the last wanted frame behind it; the wanted pts."""
    times = sorted(p.pts for p in packets if p.pts is not None)
    wanted = {times[i] for i in uniform_indices(len(times), count)}
    needed: list[av.Packet] = []
    since: list[av.Packet] = []
    for packet in packets:
        since = [] if packet.is_keyframe else since
        since.append(packet)
        if packet.pts in wanted:
            needed, since = needed + since, []
    return needed, wanted


def describe(path: Path) -> dict[str, Any]:
    """What decides how long a clip takes; ``needed``: the share of frames up to the last wanted."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video or not container.streams.audio:
                raise MediaError(f"{path}: got no picture or no sound, expected a clip with both")
            video = container.streams.video[0]
            packets = [p for p in container.demux(video) if p.size]
            seconds = float(container.duration or 0) / av.time_base
            return {
                "name": path.name,
                "codec": video.codec_context.name,
                "size": [video.width, video.height],
                "seconds": round(seconds, 2),
                "frames": len(packets),
                "keyframes": sum(p.is_keyframe for p in packets),
                "mbit_a_second": round(path.stat().st_size * 8e-6 / max(seconds, 1e-3), 2),
            }
    except av.FFmpegError as error:
        raise MediaError(f"{path}: can't be read ({error.strerror}); name clips") from error


def compare(paths: Sequence[Path], decoders: Decoders) -> dict[str, float]:
    """Mean absolute differences: of pixels in 0..255, of normalised mel cells."""
    apart = [decoders.submit(differences, path).result() for path in paths]
    return {name: float(np.mean([one[name] for one in apart])) for name in apart[0]}


def differences(path: Path) -> dict[str, float]:
    load, *args = our_job(path)
    ours, (frames, mel) = load(*args), original.arrays(str(path))
    if ours.frames.shape != frames.shape or ours.mel.shape != mel.shape:
        raise MediaError(
            f"{path}: got {ours.frames.shape} and {ours.mel.shape}, and by the original's way "
            f"{frames.shape} and {mel.shape}; leave this clip out"
        )
    return {
        "pixels": float(np.abs(ours.frames.astype(float) - frames).mean()),
        "mel": float(np.abs(ours.mel - mel).mean()),
    }


def table(report: Mapping[str, Any]) -> str:
    """The report in lines."""
    names = [n for n in ("ours", "original") if n in report]
    workers = list(report["ours"])
    head = f"{'':10}" + "".join(f"{n + ' worker' + 's' * (n != '1'):>20}" for n in workers)
    lines = [head, f"{'':10}" + f"{'clips/s':>10}{'CPU ms':>10}" * len(workers)]
    for name in names:
        cells = [report[name][n] for n in workers]
        lines.append(
            f"{name:10}" + "".join(f"{c['clips_a_second']:10.2f}{c['cpu_ms']:10.1f}" for c in cells)
        )
    if "ratio" in report:
        pairs = [(report["ratio"][n], report["cpu_ratio"][n]) for n in workers]
        lines.append(f"{'ratio':10}" + "".join(f"{a:10.2f}{b:10.2f}" for a, b in pairs))
    for name in names:
        told = [f"{n}: {report[name][n]['scaling']:.0%}" for n in workers[1:]]
        lines += [f"scaling with workers, {name}: {', '.join(told)}"] if told else []
    lines.append(
        f"floor: libavcodec alone takes {report['floor_ms']:.1f} CPU ms a clip; ours takes "
        f"{report['over_floor']:.0%} more"
    )
    if report.get("apart"):
        lines.append(
            f"apart: {report['apart']['pixels']:.2f} of 255 a pixel, {report['apart']['mel']:.3f} "
            "a mel cell, on average"
        )
    return "\n".join(lines)

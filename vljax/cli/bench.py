"""``vljax bench data``: measures speed."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int | None:
    parser = argparse.ArgumentParser(prog="vljax bench", description=__doc__)
    parser.add_argument("what", choices=VERBS, help="what to measure; --help behind it says more")
    args = parser.parse_args(argv[:1])
    return VERBS[args.what](argv[1:])


def data(argv: Sequence[str]) -> None:
    """Clips a second from file to frames and mel clips, beside the original's recipe."""
    parser = argparse.ArgumentParser(prog="vljax bench data", description=data.__doc__)
    parser.add_argument(
        "--clips", type=Path, metavar="DIR", help="h264 clips with sound; else made"
    )
    parser.add_argument("--make", type=int, default=4, metavar="N", help="how many are made")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--rounds", type=int, default=5, help="medians of so many are told")
    parser.add_argument("--jobs", type=int, default=24, help="clips a worker reads in a round")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    for name in ("make", "rounds", "jobs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}: got {getattr(args, name)}, expected at least 1")
    from vljax.bench.data import measure, table
    from vljax.bench.original import missing
    from vljax.progress import Progress

    if missing():
        print(
            f"vljax bench: without {', '.join(missing())} ours is measured alone; for the "
            "original's recipe pip install 'vljax[bench]'",
            file=sys.stderr,
        )
    progress = Progress("rounds", args.rounds)
    with tempfile.TemporaryDirectory() as made:
        paths = clips_of(args.clips) if args.clips else make(Path(made), args.make)
        report = measure(paths, args.workers, args.rounds, args.jobs, progress.show)
    print(json.dumps(report, indent=1) if args.json else table(report))


VERBS: dict[str, Callable[[Sequence[str]], int | None]] = {"data": data}


def clips_of(folder: Path) -> list[Path]:
    from vljax.data.video import CLIP_SUFFIXES

    found = sorted(p for p in folder.glob("*") if p.suffix.lower() in CLIP_SUFFIXES)
    if not found:
        raise ValueError(f"--clips: got {folder}, expected a folder with clips such as a.mp4")
    return found


def make(folder: Path, count: int) -> list[Path]:
    from vljax.bench.clips import make_clips
    from vljax.progress import Progress

    progress = Progress("clips made", count)
    return make_clips(folder, count, show=progress.show)

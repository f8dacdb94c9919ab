"""``vljax make-world``: mp4 files and images of the tiny world, annotated as real data sets."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="vljax make-world", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a new or empty folder")
    parser.add_argument("--n", type=int, default=3000, help="clips, and as many images")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.n < 3:
        raise ValueError(f"--n: got {args.n}, expected at least 3: one clip a split")
    from vljax.data.world.files import make_world
    from vljax.progress import Progress

    progress = Progress("clips", args.n)
    make_world(args.out, args.n, args.seed, lambda done, total: progress.show(done))
    print(args.out)

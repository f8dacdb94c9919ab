"""``vljax evaluate --world``: fresh clips of the tiny world, answered from their files, scored."""

import argparse
import json
from collections.abc import Sequence
from typing import Any


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="vljax evaluate", description=__doc__)
    parser.add_argument("--world", action="store_true", required=True, help="the tiny world's exam")
    parser.add_argument("--model", default="tiny", help='"tiny" or a folder of weights')
    parser.add_argument("--seed", type=int, default=1, help="of the exam's clips")
    parser.add_argument("--n", type=int, default=256, help="clips a score")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    if args.n < 1:
        raise ValueError(f"--n: got {args.n}, expected at least 1")
    from vljax.evaluate.world import evaluate_world
    from vljax.generate.chat import load
    from vljax.progress import Progress

    progress = Progress("clips written", 2 * args.n + 3 * max(1, args.n // 4))
    model = load(args.model)
    report = evaluate_world(
        model.engine, args.seed, args.n, lambda done, total: progress.show(done)
    )
    print(json.dumps(report) if args.json else format_report(report))


def format_report(report: dict[str, Any]) -> str:
    """A table, the ablations below."""
    lines = [f"{'':32} {'accuracy':>8}  {'95 % interval':14} {'n':>5} {'chance':>7}"]
    for name, row in (report | report["ablations"]).items():
        if name == "ablations":
            continue
        chance = "" if row["chance"] is None else f"{row['chance']:.3f}"
        interval = f"{row['low']:.3f} to {row['high']:.3f}"
        lines.append(f"{name:32} {row['accuracy']:>8.3f}  {interval:14} {row['n']:>5} {chance:>7}")
    return "\n".join(lines)

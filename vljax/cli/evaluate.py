"""``vljax evaluate WHAT``: measures answers.

``vljax evaluate --world`` and the like, as it once was, go on working.
"""

import argparse
import importlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vljax.generate.engine import Engine

EXAMS = {
    "world": "the tiny world's exam",
    "long": "policies on clips of 2 to 120 s",
    "live": "a generated stream that is followed",
}
FILES = {  # each a file of its own, evaluate_WHAT.py
    "sound": "the sound's exam",
    "qa": "questions and answers, as MSVD-QA, MSRVTT-QA and ActivityNet-QA have them",
    "choices": "questions with candidates, as MVBench has them",
    "captions": "captions of clips",
    "judge": "has a model behind an endpoint judge answers that are there",
}


def main(argv: Sequence[str]) -> int | None:
    if argv and argv[0] in FILES:
        return importlib.import_module(f"vljax.cli.evaluate_{argv[0]}").main(argv[1:])
    if argv and argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    old = [f"--{name}" for name in EXAMS]
    named = next((word for word in argv if word in old), argv[0] if argv else "")
    if named.removeprefix("--") not in EXAMS:
        got = f"got {named!r}, " if argv else ""
        print(f"vljax evaluate: {got}expected one of {', '.join(EXAMS | FILES)}", file=sys.stderr)
        return 2
    rest = list(argv)
    rest.remove(named)
    return exam(named.removeprefix("--"), rest)


def usage() -> str:
    lines = [f"  {name:10} {told}" for name, told in (EXAMS | FILES).items()]
    head = "usage: vljax evaluate WHAT [...]   (vljax evaluate WHAT --help says more)"
    return "\n".join([head, "", *lines])


def exam(what: str, argv: Sequence[str]) -> int | None:
    """An exam of the tiny world, answered from files that are made for it."""
    parser = argparse.ArgumentParser(prog=f"vljax evaluate {what}", description=EXAMS[what])
    parser.add_argument("--model", default="tiny", help='"tiny" or a folder of weights')
    parser.add_argument("--seed", type=int, default=1, help="of the exam's clips")
    parser.add_argument("--n", type=int, default=256, help="clips a score")
    if what == "long":
        parser.add_argument(
            "--png", type=Path, metavar="FILE", help="draws the curves; data: FILE's .json"
        )
    if what == "live":
        parser.add_argument("--minutes", type=float, default=10.0, help="of the stream (10)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    if args.n < 1:
        raise ValueError(f"--n: got {args.n}, expected at least 1")
    if what == "long":
        from vljax.cli.asking import check_png

        check_png(args.png)
    return {"world": world, "long": long, "live": live}[what](args)


def load_engine(name: str) -> "Engine":
    """Raises ValueError unless it both sees and hears, as every exam here asks for both."""
    from vljax.generate.chat import load

    engine = load(name).engine
    for has, branch in ((engine.sees, "vision"), (engine.hears, "audio")):
        if not has:
            raise ValueError(
                f"--model: {name} has no {branch} branch; name a model that both sees and hears"
            )
    return engine


def world(args: argparse.Namespace) -> None:
    from vljax.evaluate.world import evaluate_world
    from vljax.progress import Progress

    progress = Progress("clips written", 2 * args.n + 3 * max(1, args.n // 4))
    engine = load_engine(args.model)
    report = evaluate_world(engine, args.seed, args.n, lambda done, total: progress.show(done))
    print(json.dumps(report) if args.json else format_report(report))


def long(args: argparse.Namespace) -> None:
    from vljax.evaluate.long import DURATIONS, draw, evaluate_long
    from vljax.progress import Progress

    progress = Progress("clips", args.n * len(DURATIONS))
    engine = load_engine(args.model)
    rows = evaluate_long(
        engine, args.seed, args.n, progress=lambda done, total: progress.show(done)
    )
    if args.png:
        args.png.with_suffix(".json").write_text(lines(rows))
        draw(rows, args.png)
    print(json.dumps(rows) if args.json else format_long(rows))


def lines(rows: Sequence[Any]) -> str:
    """JSON with a row a line."""
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"


def live(args: argparse.Namespace) -> int:
    """Exits with 1 where memory grew by more than 5 %."""
    from vljax.evaluate.live import TOPICS, evaluate_live, stream_scenes, write_stream
    from vljax.progress import Progress

    if args.minutes <= 0:
        raise ValueError(f"--minutes: got {args.minutes:g}, expected more than 0")
    engine = load_engine(args.model)
    scenes = stream_scenes(args.seed, args.minutes)
    writing, following = (Progress(f"scenes {what}", len(scenes)) for what in ("written", "asked"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stream.mkv"
        write_stream(path, scenes, lambda done, total: writing.show(done))
        following.begin(0)
        report = evaluate_live(
            engine, path, scenes, progress=lambda done, total: following.show(done)
        )
    if args.json:
        print(json.dumps(report))
    else:
        print("\n".join([HEAD, *(row_line(t, report[t]) for t in TOPICS), told(report)]))
    flat = abs(report["growth"]) <= 0.05
    if not flat:
        print(f"vljax evaluate: memory grew by {report['growth']:.1%}", file=sys.stderr)
    return 0 if flat else 1


def told(report: dict[str, Any]) -> str:
    samples = report["samples"]
    fifths = [samples[len(samples) * i // 5 - 1] for i in range(1, 6)]
    memory = ", ".join(f"{s['mib']:.0f} after {s['at']:.0f} s" for s in fifths)
    lines = [
        f"{samples[-1]['at']:.0f} s of stream in {report['seconds']:.0f} s; "
        f"{report['dropped']} frames dropped",
        f"MiB: {memory}; {report['mib_at_most']:.0f} at most; grew by {report['growth']:.1%}",
    ]
    for half in ("first_half", "second_half"):
        if half in report:
            spent = ", ".join(f"{kind} {1000 * s:.1f}" for kind, s in report[half].items())
            lines.append(f"CPU ms a second of stream, {half.replace('_', ' ')}: {spent}")
    return "\n".join(lines)


HEAD = f"{'':32} {'accuracy':>8}  {'95 % interval':14} {'n':>5} {'chance':>7}"


def format_report(report: dict[str, Any]) -> str:
    """A table, the ablations below."""
    rows = (report | report["ablations"]).items()
    return "\n".join([HEAD, *(row_line(n, row) for n, row in rows if n != "ablations")])


def row_line(name: str, row: dict[str, Any]) -> str:
    chance = "" if row["chance"] is None else f"{row['chance']:.3f}"
    interval = f"{row['low']:.3f} to {row['high']:.3f}"
    return f"{name:32} {row['accuracy']:>8.3f}  {interval:14} {row['n']:>5} {chance:>7}"


def format_long(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each duration, policy and number of frames."""
    lines = [f"{'seconds':>7} {'policy':12} {'frames':>6}  {'shown':22} {'heard':22} {'n':>4}"]
    for row in rows:
        found = [
            f"{s['accuracy']:.3f} ({s['low']:.3f} to {s['high']:.3f})"
            for s in (row["object"], row["order"])
        ]
        start = f"{row['seconds']:>7g} {row['policy']:12} {row['frames']:>6}"
        lines.append(f"{start}  {found[0]:22} {found[1]:22} {row['object']['n']:>4}")
    return "\n".join(lines)

"""``vljax evaluate sound``: do answers about sound come from the sound?

Clips of the tiny world, or your own with labels, are asked about with their own sound, silence,
another clip's, noise and none, with and without their picture; with balanced questions about sounds
that are there and that are not; and with the audio features at several scales.
"""

import argparse
import contextlib
import hashlib
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vljax.cli.asking import add_model_flags, check_png, load_model, weights_of

if TYPE_CHECKING:
    from vljax.evaluate.sound_clips import Labelled
    from vljax.generate.engine import Engine

DRAWN = 256  # clips of the tiny world


def main(argv: Sequence[str]) -> int | None:
    """Exits with 1 where clips can't be read; the others are evaluated."""
    args = parse(argv)
    with clips_of(args) as clips:
        report, failed = evaluate(args, load_model(args).engine, clips)
    if args.out:
        write(args.out / "report.json", report)
    if args.png:
        from vljax.evaluate.honesty_report import draw

        write(args.png.with_suffix(".json"), report)
        draw(report, args.png)
    print(json.dumps(report) if args.json else format_report(report))
    for told in failed:
        print(f"vljax evaluate sound: {told}", file=sys.stderr)
    return 1 if failed else 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vljax evaluate sound", description=__doc__)
    parser.add_argument(
        "--clips",
        type=Path,
        metavar="PATH",
        help="your own: a CSV with the columns file_name, sound (several with ;) and, if you like, "
        "shown; a folder with it as metadata.csv; or a folder of clips for each sound",
    )
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn")
    parser.add_argument("--n", type=int, help=f"clips; else {DRAWN}, or all of your own")
    parser.add_argument("--question", default="What do you hear?", help="the open question")
    parser.add_argument(
        "--yes-no", default="Do you hear {}?", metavar="Q", help="{} is a sound with its article"
    )
    parser.add_argument(
        "--scales",
        default="0,0.5,0.7,1,1.5,2,3,5,10,20",
        metavar="LIST",
        help="lengths of the audio features to compare; the model's own is 20 as published",
    )
    parser.add_argument("--batch", type=int, default=16, help="questions asked at once, at most 64")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="for answers.jsonl, from which a run that was stopped goes on, and report.json",
    )
    parser.add_argument(
        "--png", type=Path, metavar="FILE", help="draws accuracy over scale; data: FILE's .json"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that decode media")
    parser.add_argument("--seconds", type=float, default=60.0, help="most that a file may take")
    add_model_flags(parser)
    args = parser.parse_args(argv)
    check(args)
    return args


def check(args: argparse.Namespace) -> None:
    """Raises ValueError for what can't be meant, before anything is loaded."""
    if args.n is not None and args.n < 2:
        raise ValueError(f"--n: got {args.n}, expected at least 2 clips, with different sounds")
    if not 1 <= args.batch <= 64:
        raise ValueError(f"--batch: got {args.batch}, expected 1 to 64")
    if "{}" not in args.yes_no:
        raise ValueError(f"--yes-no: got {args.yes_no!r}, expected {{}} where the sound stands")
    check_png(args.png)
    try:
        args.scales = sorted({float(x) for x in args.scales.split(",")})
    except ValueError:
        args.scales = [-1.0]
    if not all(0 <= s < float("inf") for s in args.scales):
        raise ValueError("--scales: expected numbers from 0 on with commas between, such as 1,20")


@contextlib.contextmanager
def clips_of(args: argparse.Namespace) -> Iterator[list["Labelled"]]:
    """The user's clips, or fresh ones of the tiny world that are gone afterwards."""
    from vljax.evaluate.sound_clips import own_clips, vocabulary, world_clips
    from vljax.progress import Progress

    if args.clips:
        clips = own_clips(args.clips)
        if args.n and args.n < len(clips):
            keep = sorted(random.Random(args.seed).sample(range(len(clips)), args.n))
            clips = [clips[i] for i in keep]
        vocabulary(clips)
        yield clips
        return
    n = args.n or DRAWN
    progress = Progress("clips written", n)
    with tempfile.TemporaryDirectory() as folder:
        yield world_clips(Path(folder), args.seed, n, lambda done, _: progress.show(done))


def evaluate(
    args: argparse.Namespace, engine: "Engine", clips: Sequence["Labelled"]
) -> tuple[dict[str, Any], list[str]]:
    """The report, and a sentence for each clip that can't be read."""
    from vljax.data.decode_worker import Decoders
    from vljax.evaluate.honesty import Asker, Wording, read_exam
    from vljax.evaluate.honesty_report import evaluate_sound
    from vljax.progress import Progress

    reading = Progress("clips read", len(clips))
    with Decoders(args.workers, args.seconds) as decoders:
        exam, failed = read_exam(
            engine, clips, args.seed, decoders, lambda done, _: reading.show(done)
        )
    about = {
        "model": args.model,
        "clips_from": str(args.clips or "the tiny world"),
        "seed": args.seed,
        "question": args.question,
        "yes_no_question": args.yes_no,
    }
    labels = [(case.name, case.heard, case.shown) for case in exam.cases]
    settings = about | {
        "clips": hashlib.sha256(json.dumps(labels).encode()).hexdigest()[:16],
        "max_new_tokens": args.max_new_tokens,
        "weights": weights_of(args),
        "held": [args.llm, args.dtype, args.quantise, args.quantise_vit],
    }
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "answers.jsonl" if args.out else None
    asker = Asker(engine, exam, args.batch, args.max_new_tokens, path, settings)
    answering = Progress("answers", 1)

    def show(done: int, total: int) -> None:
        answering.total = total
        answering.show(done)

    asker.show = show
    found = evaluate_sound(asker, Wording(args.question, args.yes_no), args.scales)
    return about | found | {"failed": failed}, failed


def write(path: Path, report: dict[str, Any]) -> None:
    from vljax.store import write_whole

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def format_report(report: dict[str, Any]) -> str:
    """Tables: the claim, the conditions, the probes, the scales."""
    from vljax.evaluate.honesty import VIEWS

    lines = claim_lines(report)
    for view, rows in report["conditions"].items():
        lines += ["", f"Asked {report['question']!r} {VIEWS[view]}, the answer names"]
        lines += condition_lines(rows)
    for view, rows in report["probes"].items():
        lines += [
            "",
            f"Is this sound there? {VIEWS[view].capitalize()}; half of the answers is yes",
        ]
        lines += probe_lines(rows)
    return "\n".join([*lines, "", *scale_lines(report)])


def claim_lines(report: dict[str, Any]) -> list[str]:
    told = {
        "real": "sounds named right, by the sound alone",
        "zeroed": "the same with the audio features zeroed",
        "muted": "the same with silence for the sound",
    }
    lines = [f"{told[name]:42} {interval(row)}" for name, row in report["claim"].items()]
    chance = f"{'chance: the best answer that never changes':42} {report['chance']:.3f}"
    return [*lines, f"{chance}{'':17}{report['clips']:>6} clips"]


def condition_lines(rows: dict[str, Any]) -> list[str]:
    from vljax.evaluate.honesty import CONDITIONS

    columns = {"own": "its own sound", "given": "the sound given", "seen": "only what is seen"}
    columns |= {"any": "any known sound", "same": "same as to its own"}
    head = f"{'':30} " + " ".join(f"{c:20}" for c in columns.values())
    lines = [head.rstrip()]
    for name, row in rows.items():
        cells = [interval(row[c]) if c in row and row[c]["n"] else "-" for c in columns]
        lines.append((f"{CONDITIONS[name]:30} " + " ".join(f"{c:20}" for c in cells)).rstrip())
        common = ", ".join(f"{text!r} {count}" for text, count in row["answers"].items())
        lines.append(f"    most often: {common}")
    return lines


def probe_lines(rows: dict[str, Any]) -> list[str]:
    told = {
        "naming": "named when asked freely",
        "words": "first word yes or no",
        "pope": "POPE's reading of the words",
        "likelihood": '"Yes." likelier than "No."',
    }
    columns = ("accuracy", "yes_rate", "neither", "precision", "recall", "f1")
    lines = [f"{'':30} " + " ".join(f"{c:20}" for c in columns).rstrip()]
    for name, label in told.items():
        cells = [interval(rows[name][c]) if rows[name][c]["n"] else "-" for c in columns]
        lines.append((f"{label:30} " + " ".join(f"{c:20}" for c in cells)).rstrip())
    lines.append("absent sounds that are claimed:")
    for name, label in told.items():
        cells = [f"{k} {interval(row)}" for k, row in rows[name]["hallucinated"].items()]
        lines.append(f"  {label:28} " + "  ".join(cells))
    ranked = interval(rows["likelihood"]["ranked"])
    lines.append(f'"Yes." rather for what is there than for what is not: {ranked}, chance 0.5')
    lines.append(
        f"what is said names a sound that is there: {interval(rows['names_heard'])}, and one that "
        f"is only asked about: {interval(rows['echoes'])}"
    )
    common = ", ".join(f"{text!r} {count}" for text, count in rows["answers"].items())
    return [*lines, f"said most often: {common}"]


def scale_lines(report: dict[str, Any]) -> list[str]:
    from vljax.evaluate.honesty import VIEWS

    head = f"{'named':20} {'named among others':20} {'only what is seen'}"
    lines = [f"{'length of the audio features':57} {head}"]
    for view in (v for v in VIEWS if v in report["conditions"]):
        for row in report["scales"]:
            name = f"{row['scale']:g}" + " (the model's own)" * row["own"]
            parts = row[view], row[view]["among"], row[view]["seen"]
            cells = " ".join(f"{interval(p) if p['n'] else '-':20}" for p in parts)
            lines.append(f"{name:29} {VIEWS[view]:27} {cells}".rstrip())
    return lines


def interval(row: dict[str, Any]) -> str:
    share = row["value"] if "value" in row else row["accuracy"]
    return f"{share:.3f} ({row['low']:.3f}-{row['high']:.3f})"

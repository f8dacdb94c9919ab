"""What ``vljax evaluate qa``, ``choices`` and ``captions`` share: flags, the run, the report."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vljax.cli.asking import add_model_flags, weights_of

if TYPE_CHECKING:
    from vljax.evaluate.sets import Asking, Questions
    from vljax.generate.batch import Job

MODEL_FLAGS = ("model", "llm", "dtype", "quantise", "quantise_vit", "sharding")


def add_flags(parser: argparse.ArgumentParser, tokens: int) -> None:
    """``tokens``: of an answer, at most, if the flag is not given."""
    parser.add_argument("--media", type=Path, required=True, metavar="DIR", help="the clips")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="of answers and figures"
    )
    parser.add_argument(
        "--wording",
        default="{question}",
        help='how a question is put: "{question} Answer in one word."',
    )
    parser.add_argument("--no-audio", action="store_true", help="do not listen")
    parser.add_argument("--no-video", action="store_true", help="do not look")
    parser.add_argument(
        "--no-baselines", action="store_true", help="without blank video and text only"
    )
    parser.add_argument("--max-new-tokens", type=int, default=tokens)
    parser.add_argument("--batch", type=int, default=16, help="questions asked at once")
    parser.add_argument("--retry", action="store_true", help="ask rows that failed again")
    parser.add_argument(
        "--process",
        metavar="I/N",
        help="this host's part, in a file of its own; the same command without it puts them "
        "together",
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that decode media")
    parser.add_argument("--seconds", type=float, default=60.0, help="most that a file may take")
    parser.add_argument("--json", action="store_true", help="the report on stdout, not the table")
    add_model_flags(parser)


def asking_of(args: argparse.Namespace, options: bool = False) -> "Asking":
    from vljax.evaluate.sets import Asking
    from vljax.generate.sampling import Sampling

    if args.batch < 1:
        raise ValueError(f"--batch: got {args.batch}, expected 1 or more")
    senses = not args.no_video, not args.no_audio
    sampling = Sampling(max_new_tokens=args.max_new_tokens)
    return Asking(sampling, args.wording, options, senses)


def examine(
    name: str,
    questions: "Questions",
    args: argparse.Namespace,
    candidates: Sequence[str] = (),
    more: Mapping[str, Any] | None = None,
) -> int:
    """Asks what is not answered yet, writes the report; 1 where something is missing in it.

    ``more``: how this set is asked, beside the shared flags.
    """
    from vljax.cli.encode import process_of
    from vljax.cli.run import answer
    from vljax.evaluate.run import Examiner, require_same_answers, settle_about
    from vljax.generate.batch import Job

    process, items = process_of(args.process), questions.items
    about = described(name, args) | dict(more or {})
    if candidates:
        about["candidates"] = list(candidates)
    settle_about(args.out, about)
    job = Job.open(
        questions.asked,
        args.out / "predictions.jsonl",
        args.model,
        process,
        args.retry,
        args.batch,
    )
    require_same_answers(job.out, items, job.answers)
    if not job.done:
        answer(job, args, Examiner(items, candidates, not args.no_baselines))
    if process[1] > 1:
        return told(job)
    return write_report(questions, job, about, args)


def described(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Of the flags, what the answers depend on."""
    flags = {f: getattr(args, f) for f in MODEL_FLAGS if getattr(args, f)}
    return {
        "set": name,
        **flags,
        "weights": weights_of(args),
        "media": str(args.media),
        "wording": args.wording,
        "look": not args.no_video,
        "listen": not args.no_audio,
        "baselines": not args.no_baselines,
        "max_new_tokens": args.max_new_tokens,
        "batch": args.batch,
    }


def told(job: "Job") -> int:
    """Of one process of several."""
    failed = len(job.failed)
    print(f"{job.out}: {len(job.answers) - failed} answered, {failed} failed", file=sys.stderr)
    return 1 if failed else 0


def write_report(
    questions: "Questions", job: "Job", about: Mapping[str, Any], args: argparse.Namespace
) -> int:
    from vljax.evaluate.run import report, summary
    from vljax.store import write_whole

    made = report(questions, job.answers, about)
    whole = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
    write_whole(args.out / "report.json", whole)
    write_whole(args.out / "report.md", summary(made))
    print(whole if args.json else summary(made), end="")
    missing = len(made["failed"]) + len(made["unasked"])
    if missing:
        print(f"vljax evaluate: {missing} rows are in no figure, named above", file=sys.stderr)
    return 1 if missing else 0

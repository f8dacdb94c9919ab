"""``vljax run REQUESTS.jsonl --out ANSWERS.jsonl``: answers a file of questions, in batches.

A request is a line such as {"id": 7, "media": "a.mp4", "question": "What happens?"}. In place of
"media" there may be "video" or "image", "audio" names sound (beside a picture, in place of its
own), "conversation" turns ({"from": "human", "value": ...}) in place of "question"; "sampling"
({"temperature": 1, "seed": 3}), "look" and "listen" (false) are the row's own. Given again, the
command goes on where it was stopped.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vljax.cli.asking import add_model_flags, add_sampling_flags, load_model, names, sampling_of

if TYPE_CHECKING:
    from vljax.generate.batch import Answering, Job, Rows
    from vljax.generate.rows import Requests

TOLD = 10  # failed rows of which the summary gives the reason


def main(argv: Sequence[str]) -> int:
    args = parse(argv)
    from vljax.cli.encode import process_of
    from vljax.generate.rows import read_requests

    process = process_of(args.process)
    root = args.root or args.requests.parent
    requests = read_requests(args.requests, root, sampling_of(args))
    if not requests.rows:
        raise ValueError(f"{args.requests}: holds no line, expected a request on each")
    tell_unread(args.requests, requests)
    if args.print_prompt:
        return print_prompts(requests.rows[process[0] :: process[1]], args)
    from vljax.generate.batch import Job

    job = Job.open(requests.rows, args.out, args.model, process, args.retry)
    if not job.done:
        answer(job, args)
    return summarise(job)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vljax run", description=__doc__)
    parser.add_argument("requests", type=Path, metavar="REQUESTS.jsonl")
    parser.add_argument("--out", type=Path, metavar="ANSWERS.jsonl", help="a line for each request")
    parser.add_argument("--root", type=Path, metavar="DIR", help="of the media; else REQUESTS' own")
    parser.add_argument("--batch", type=int, default=16, help="rows answered at once")
    parser.add_argument("--retry", action="store_true", help="ask rows that failed again")
    parser.add_argument(
        "--process",
        metavar="I/N",
        help="this host's part, in a file of its own; the same command without it puts them "
        "together",
    )
    parser.add_argument(
        "--print-prompt", action="store_true", help="the prompts and their ids; answers nothing"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that decode media")
    parser.add_argument("--seconds", type=float, default=60.0, help="most that a file may take")
    add_model_flags(parser)
    add_sampling_flags(parser)
    args = parser.parse_args(argv)
    if not (args.out or args.print_prompt):
        parser.error("name a file for the answers: --out ANSWERS.jsonl")
    if args.batch < 1:
        raise ValueError(f"--batch: got {args.batch}, expected 1 or more")
    return args


def tell_unread(path: Path, requests: "Requests") -> None:
    if requests.unread:
        names = ", ".join(f"{name} ({count} rows)" for name, count in requests.unread.items())
        print(f"{path}: fields that mean nothing here: {names}", file=sys.stderr)


def answer(job: "Job", args: argparse.Namespace, answering: "Answering | None" = None) -> None:
    """Answers what is missing of a job; ``answering``: by what, see ``Job.run``."""
    from vljax.data.decode_worker import Decoders
    from vljax.progress import Progress

    engine = load_model(args).engine
    progress = Progress("answers", len(job.rows), len(job.answers))
    with Decoders(args.workers, args.seconds) as decoders:
        job.run(
            engine,
            decoders,
            args.batch,
            lambda: progress.show(len(job.answers), f"{len(job.failed)} failed"),
            answering,
        )


def summarise(job: "Job") -> int:
    """Says what became of the rows; 1 where some failed."""
    failed, kept = job.failed, f", {job.kept} of {len(job.answers)} there before" * bool(job.kept)
    answered = len(job.answers) - len(failed)
    print(f"{job.out}: {answered} answered, {len(failed)} failed{kept}", file=sys.stderr)
    for row in failed[:TOLD]:
        print(f"  {row['id']}: {row['error']}", file=sys.stderr)
    if len(failed) > TOLD:
        print(f"  {len(failed) - TOLD} more: lines with error there", file=sys.stderr)
    return 1 if failed else 0


def print_prompts(rows: "Rows", args: argparse.Namespace) -> int:
    """The prompt of each row; weights are not read."""
    from vljax.data.quarantine import BAD, reason
    from vljax.generate.batch import limited
    from vljax.generate.media import read_pair
    from vljax.generate.prompts import Prompter, show_prompt
    from vljax.generate.rows import BadRow
    from vljax.obtain import obtain

    prompter, failed = Prompter(obtain(names(args.model), args.llm)), 0
    for row in limited(rows, prompter):
        print(f"# {row.id}")
        try:
            if isinstance(row, BadRow):
                raise ValueError(row.error)
            request = row.request(read_pair(row.look, row.listen, prompter.size, row.span))
            print(show_prompt(prompter, request, row.sampling.max_new_tokens))
        except BAD as error:
            failed += 1
            print(reason(error), file=sys.stderr)
    return 1 if failed else 0

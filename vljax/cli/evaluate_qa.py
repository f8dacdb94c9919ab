"""``vljax evaluate qa``: MSVD-QA, MSRVTT-QA, ActivityNet-QA, in their own files.

Questions are [{"question", "video_name", "question_id"}], answers [{"answer", "question_id",
"type"}]. Given again, the command goes on where it was stopped.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vljax.cli.evaluating import add_flags, asking_of, examine

if TYPE_CHECKING:
    from vljax.evaluate.sets import Questions


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="vljax evaluate qa", description=__doc__)
    parser.add_argument("--questions", type=Path, required=True, metavar="test_q.json")
    parser.add_argument("--answers", type=Path, required=True, metavar="test_a.json")
    parser.add_argument(
        "--candidates",
        metavar="FILE|N",
        help="ranks these by their likelihood, too: an answer a line, or the N commonest of "
        "the answers",
    )
    add_flags(parser, 64)
    args = parser.parse_args(argv)
    from vljax.evaluate.sets import Folder, read_qa

    folder, asking = Folder(args.media), asking_of(args)
    questions = read_qa(args.questions, args.answers, folder, asking)
    return examine("qa", questions, args, candidates_of(args.candidates, questions))


def candidates_of(flag: str | None, questions: "Questions") -> list[str]:
    from vljax.evaluate.sets import common_answers, read_candidates

    if flag is None:
        return []
    if not flag.isdigit():
        return read_candidates(Path(flag))
    if int(flag) < 2:
        raise ValueError(f"--candidates: got {flag}, expected a file, or 2 or more")
    return common_answers(questions.items.values(), int(flag))

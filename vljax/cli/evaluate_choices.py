"""``vljax evaluate choices``: MVBench's lists, and others like them.

[{"video", "question", "candidates", "answer", "start"?, "end"?}]: the candidates are ranked by
their likelihood, and the generated answer is matched with them. Of several lists each gets figures
of its own. Given again, the command goes on where it was stopped.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vljax.cli.evaluating import add_flags, asking_of, examine


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="vljax evaluate choices", description=__doc__)
    parser.add_argument("--annotations", type=Path, nargs="+", required=True, metavar="LIST.json")
    parser.add_argument(
        "--plain", action="store_true", help="do not list the candidates below the question"
    )
    add_flags(parser, 64)
    args = parser.parse_args(argv)
    from vljax.evaluate.sets import Folder, read_choices

    asking = asking_of(args, options=not args.plain)
    questions = read_choices(args.annotations, Folder(args.media), asking)
    return examine("choices", questions, args, more={"options_listed": not args.plain})

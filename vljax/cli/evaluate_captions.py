"""``vljax evaluate captions``: generated captions against one or several that people wrote.

A table (.csv, .tsv, .jsonl) of the columns file_name and text, or WebVid's videoid, name and
page_dir; a file may be there several times. Given again, the command goes on where it was stopped.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vljax.cli.evaluating import add_flags, asking_of, examine


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="vljax evaluate captions", description=__doc__)
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE")
    parser.add_argument("--question", default="What happens?", help="that captions answer")
    add_flags(parser, 64)
    args = parser.parse_args(argv)
    from vljax.evaluate.sets import Folder, read_captions

    folder, asking = Folder(args.media), asking_of(args)
    questions = read_captions(args.annotations, folder, args.question, asking)
    return examine("captions", questions, args, more={"question": args.question})

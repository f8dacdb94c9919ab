"""``vljax parity DIR``: our numbers against the original's, array by array."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Returns 0 if every array is close enough, 1 if not."""
    parser = argparse.ArgumentParser(prog="vljax parity", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="a golden set")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true")
    form.add_argument("--markdown", action="store_true", help="as a page to publish")
    args = parser.parse_args(argv)
    from vljax.convert.parity import compare_set
    from vljax.convert.parity.report import as_markdown, as_text
    from vljax.convert.parity.run import FILES
    from vljax.progress import Progress

    progress, done = Progress("files", len(FILES)), iter(range(len(FILES)))
    report = compare_set(args.folder, show=lambda file: progress.show(next(done, len(FILES))))
    print(report.as_json() if args.json else (as_markdown if args.markdown else as_text)(report))
    return 0 if report.ok else 1

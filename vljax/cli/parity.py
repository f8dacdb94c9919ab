"""``vljax parity DIR``: our numbers against the original's, array by array."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vljax.convert.parity import Report


def main(argv: Sequence[str]) -> int:
    """Returns 0 if every array is close enough, 1 if not."""
    parser = argparse.ArgumentParser(prog="vljax parity", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="a golden set")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    from vljax.convert.parity import compare_set
    from vljax.convert.parity.run import FILES
    from vljax.progress import Progress

    progress, done = Progress("files", len(FILES)), iter(range(len(FILES)))
    report = compare_set(args.folder, show=lambda file: progress.show(next(done, len(FILES))))
    print(report.as_json() if args.json else format_report(report))
    return 0 if report.ok else 1


def format_report(report: "Report") -> str:
    """A line an array, what was not compared, and the verdict."""
    header = ("file", "name", "shape", "max abs", "max rel", "tolerance", "verdict")
    table = [header]
    for row in report.rows:
        shape = "x".join(map(str, row.shape)) or "-"
        errors = (f"{row.max_abs:.1e}", f"{row.max_rel:.1e}")
        verdict = "ok" if row.ok else f"FAIL {row.note}".strip()
        table.append((row.file, row.name, shape, *errors, str(row.tolerance), verdict))
    widths = [max(len(line[i]) for line in table) for i in range(len(header) - 1)]
    lines = [
        "  ".join([*(x.ljust(w) for x, w in zip(line, widths, strict=False)), line[-1]])
        for line in table
    ]
    if report.not_compared:
        lines += ["", "not compared:"]
        lines += [f"  {s.file}  {s.name}  ({s.why})" for s in report.not_compared]
    failed = sum(not row.ok for row in report.rows)
    verdict = f"{failed} of {len(report.rows)} arrays differ" if failed else "all are close enough"
    lines += ["", f"{len(report.rows)} arrays compared: {verdict}"]
    return "\n".join(lines)

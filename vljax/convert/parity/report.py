"""A report as text for a terminal, and as a page to publish."""

import itertools
from collections.abc import Sequence

from vljax.convert.parity.compare import Report, Row

HEADER = ("name", "shape", "max abs", "max rel", "tolerance", "verdict")


def as_text(report: Report) -> str:
    """A line an array, what was not compared, and the verdict."""
    table = [("file", *HEADER), *((row.file, *_cells(row)) for row in report.rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(HEADER))]
    lines = [
        "  ".join([*(x.ljust(w) for x, w in zip(line, widths, strict=False)), line[-1]])
        for line in table
    ]
    if report.not_compared:
        lines += ["", "not compared:"]
        lines += [f"  {s.file}  {s.name}  ({s.why})" for s in report.not_compared]
    return "\n".join([*lines, "", _verdict(report)])


def as_markdown(report: Report) -> str:
    """A page: the worst errors of each file, then every array, then what was not compared."""
    files = {
        file: list(rows) for file, rows in itertools.groupby(report.rows, lambda row: row.file)
    }
    summary = [
        (
            file,
            str(len(rows)),
            f"{max(r.max_abs for r in rows):.1e}",
            f"{max(r.max_rel for r in rows):.1e}",
            str(sum(not r.ok for r in rows)),
        )
        for file, rows in files.items()
    ]
    parts = [
        "# Parity with the original, array by array",
        "Written by `vljax parity tests/golden --markdown > docs/parity.md`: what the original "
        "computed on given inputs and weights, at small sizes, against what this code computes on "
        "the same, on a CPU in float32. The relative error is the largest difference over the "
        f"largest value of the array. **{_verdict(report)}.**",
        _table(("file", "arrays", "max abs", "max rel", "failed"), summary),
    ]
    for file, rows in files.items():
        parts += [f"## {file}", _table(HEADER, [_cells(row) for row in rows])]
    if report.not_compared:
        cells = [(s.file, s.name, s.why) for s in report.not_compared]
        parts += ["## Not compared", _table(("file", "name", "why"), cells)]
    return "\n\n".join(parts)


def _cells(row: Row) -> tuple[str, ...]:
    shape = "x".join(map(str, row.shape)) or "-"
    verdict = "ok" if row.ok else f"FAIL {row.note}".strip()
    errors = (f"{row.max_abs:.1e}", f"{row.max_rel:.1e}")
    return (row.name, shape, *errors, str(row.tolerance), verdict)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )


def _verdict(report: Report) -> str:
    failed = sum(not row.ok for row in report.rows)
    verdict = f"{failed} of {len(report.rows)} arrays differ" if failed else "all are close enough"
    return f"{len(report.rows)} arrays compared: {verdict}"

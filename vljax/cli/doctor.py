"""``vljax doctor DIR_OR_FILE...``: what is wrong with weights, before they are used."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vljax.convert.doctor import Report


def main(argv: Sequence[str]) -> int:
    """Returns 0 for weights without an error, 1 if there is one."""
    parser = argparse.ArgumentParser(prog="vljax doctor", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="DIR_OR_FILE")
    parser.add_argument("--template", metavar="NAME", help="prompt template they are wanted for")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    from vljax.convert.doctor import diagnose
    from vljax.progress import Megabytes

    report = diagnose(args.paths, args.template, progress=Megabytes())
    print(as_json(report) if args.json else format_report(report))
    return 0 if report.ok else 1


def format_report(report: "Report") -> str:
    """A line a finding, and the verdict."""
    lines = [f"{f.severity}: {f.message} [{f.what}]" for f in report.findings]
    errors = sum(f.severity == "error" for f in report.findings)
    warnings = len(report.findings) - errors
    verdict = f"{errors} errors, {warnings} warnings" if report.findings else "healthy"
    return "\n".join([*lines, f"{report.files} files, {report.tensors} tensors: {verdict}"])


def as_json(report: "Report") -> str:
    findings = [dataclasses.asdict(f) | {"file": str(f.file)} for f in report.findings]
    return json.dumps(
        {
            "ok": report.ok,
            "files": report.files,
            "tensors": report.tensors,
            "findings": findings,
        }
    )

"""``vljax convert FILE... --out DIR``: published weights -> one folder, and trained ones back.

FILE is any of EVA-CLIP's ViT, BLIP-2, ImageBind, MiniGPT-4's projection, Video-LLaMA's two branches
(torch files) and a LLaMA (a Hugging Face folder or a .gguf). Some of them make a part of a model.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    args = parse(argv)
    if args.export:
        from vljax.convert.export import export

        count = export(args.export, args.out, args.branch)
        print(f"{args.out}: {count} tensors of the {args.branch} branch")
        return 0
    from vljax.convert.convert import convert
    from vljax.convert.plan import Options, make_plan, report, require_complete
    from vljax.store import require_new

    require_new(args.out)  # before the doctor takes minutes
    if not healthy(args):
        return 1
    options = Options(args.size, args.llm, args.template, args.dtype, args.delta)
    plan = make_plan(args.files, options)
    print(report(plan), file=sys.stderr)
    require_complete(plan)
    convert(plan, args.out, options)
    print(args.out)
    return 0


def healthy(args: argparse.Namespace) -> bool:
    """Lets the doctor look at the files first; prints what it finds."""
    from vljax.convert.doctor import examine
    from vljax.progress import Megabytes

    template = args.template or args.llm
    findings = examine(args.files, template, not args.quick, Megabytes())
    if args.delta:
        # A delta may well be all zero, and has the tokens of what it makes of its base.
        findings += examine([args.delta], deep=False, paired=False)
    for finding in findings:
        print(f"{finding.severity}: {finding.message}", file=sys.stderr)
    return all(finding.severity != "error" for finding in findings)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    from vljax.models.sizes import DECODERS

    parser = argparse.ArgumentParser(prog="vljax convert", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument(
        "--out", type=Path, required=True, help="a new folder (or, of --export, file)"
    )
    parser.add_argument("--size", help="7b, 13b, tiny or a JSON file; else what fits the files")
    llms = tuple(dict.fromkeys(llm for _, llm in DECODERS))
    parser.add_argument("--llm", default="vicuna", choices=llms)
    parser.add_argument("--delta", type=Path, metavar="DIR", help="added to the LLaMA's weights")
    parser.add_argument(
        "--dtype", default="keep", choices=("keep", "bfloat16", "float16", "float32")
    )
    parser.add_argument("--quick", action="store_true", help="do not look for zeros and NaN first")
    parser.add_argument("--template", help="how the model is talked to; else --llm's")
    parser.add_argument(
        "--export", type=Path, metavar="DIR", help="weights of a branch to write back"
    )
    parser.add_argument("--branch", default="vision", choices=("vision", "audio"))
    args = parser.parse_args(argv)
    if bool(args.files) == bool(args.export):
        parser.error("name files to convert, or a folder to --export")
    return args

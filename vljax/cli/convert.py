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

    options = Options(args.size, args.llm, args.template, args.dtype, args.delta)
    plan = make_plan(args.files, options)
    print(report(plan), file=sys.stderr)
    require_complete(plan)
    convert(plan, args.out, options)
    print(args.out)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vljax convert", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument(
        "--out", type=Path, required=True, help="a new folder (or, of --export, file)"
    )
    parser.add_argument("--size", help="7b, 13b, tiny or a JSON file; else what fits the files")
    parser.add_argument("--llm", default="vicuna", choices=("vicuna", "llama2", "smollm2_135m"))
    parser.add_argument("--delta", type=Path, metavar="DIR", help="added to the LLaMA's weights")
    parser.add_argument(
        "--dtype", default="keep", choices=("keep", "bfloat16", "float16", "float32")
    )
    parser.add_argument("--template", help="how the model is talked to; else --llm's")
    parser.add_argument(
        "--export", type=Path, metavar="DIR", help="weights of a branch to write back"
    )
    parser.add_argument("--branch", default="vision", choices=("vision", "audio"))
    args = parser.parse_args(argv)
    if bool(args.files) == bool(args.export):
        parser.error("name files to convert, or a folder to --export")
    return args

"""``vljax probe [CLIP|IMAGE] --ask Q``: does the model look and listen, or does it guess?

How likely its answer is with the real clip, and with a blank picture, another clip's, its frames
shuffled, its sound muted or another's: a table and a sentence.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vljax.cli.asking import add_model_flags, load_model

if TYPE_CHECKING:
    from vljax.generate.probe import Probe


def main(argv: Sequence[str]) -> None:
    args = parse(argv)
    from vljax.generate.chat import SAMPLE
    from vljax.generate.media import read_media
    from vljax.generate.probe import as_dict, probe

    engine = load_model(args).engine
    senses = engine.senses(not args.no_video, not args.no_audio)
    media = read_media(args.clip or SAMPLE, engine.size, *senses)
    other = read_media(args.other, engine.size, *senses) if args.other else None
    for i, question in enumerate(args.ask):
        found = probe(engine, media, question, args.answer, other, args.times, args.max_new_tokens)
        if args.json:
            print(json.dumps(as_dict(found)))
        else:
            print("\n" * bool(i) + table(found))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vljax probe", description=__doc__)
    parser.add_argument("clip", nargs="?", type=Path, help="a clip or an image; else a sample clip")
    parser.add_argument(
        "--ask", action="append", required=True, metavar="Q", help="a question; may be repeated"
    )
    parser.add_argument("--answer", default="", help="whose likelihood is taken; else the model's")
    parser.add_argument(
        "--other", type=Path, metavar="CLIP", help="the other clip; else one of the tiny world"
    )
    parser.add_argument(
        "--times",
        type=float,
        default=10.0,
        help="less likely, from which on the answer rests on what was taken away (10)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a question on stdout")
    parser.add_argument("--no-audio", action="store_true", help="do not listen")
    parser.add_argument("--no-video", action="store_true", help="do not look")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    add_model_flags(parser)
    args = parser.parse_args(argv)
    if args.times <= 1:
        raise ValueError(f"--times: got {args.times:g}, expected more than 1")
    return args


def table(found: "Probe") -> str:
    """The rows, and the verdict below."""
    lines = [
        f"{found.question}  {found.answer}  ({found.tokens} tokens)",
        f"{'':24} {'log-likelihood':>14} {'times less likely':>18}  its answer then",
    ]
    for row in found.rows:
        times = found.less_likely(row)
        lines.append(f"{row.given:24} {row.log_likelihood:14.2f} {times:18.4g}  {row.answer}")
    return "\n".join([*lines, found.verdict])

"""``vljax evaluate judge FOLDER``: has predictions judged by a model behind an endpoint.

Any that speaks as OpenAI's /v1/chat/completions does. Its name, the date and every reply are kept
in FOLDER/judge.jsonl. Given again, the command goes on where it was stopped.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    args = parse(argv)
    from vljax.evaluate.judge import Judge, judge, told, verdict
    from vljax.generate.rows import key, read_answers
    from vljax.progress import Progress
    from vljax.store import write_whole

    api_key = os.environ.get(args.api_key_env, "") if args.api_key_env else ""
    if args.api_key_env and not api_key:
        raise ValueError(f"--api-key-env: the variable {args.api_key_env} is not set")
    path = args.folder / "predictions.jsonl"
    answers = [row for row in read_answers(path).values() if "error" not in row]
    if not answers:
        raise ValueError(f"{path}: holds no prediction; name a folder of vljax evaluate's")
    who = Judge(args.endpoint, args.judge_model, api_key, args.seconds)
    progress = Progress("judged", len(answers))
    out = args.out or args.folder / "judge.jsonl"
    replies = judge(who, answers, out, progress.show, args.retry)
    made = verdict(replies, {key(row["id"]): row["video"] for row in answers})
    write_whole(out.with_suffix(".json"), json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    print(told(made))
    if made["unreadable"]:
        print(f"vljax evaluate: {len(made['unreadable'])} replies: see {out}", file=sys.stderr)
    return 1 if made["unreadable"] else 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vljax evaluate judge", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of vljax evaluate's answers")
    parser.add_argument("--endpoint", required=True, metavar="URL", help="its /v1, or its host")
    parser.add_argument(
        "--judge-model", required=True, metavar="NAME", help="the endpoint's; a dated one, if any"
    )
    parser.add_argument("--api-key-env", metavar="VAR", help="the variable that holds the key")
    parser.add_argument("--out", type=Path, metavar="FILE", help="else FOLDER/judge.jsonl")
    parser.add_argument("--seconds", type=float, default=60.0, help="that a reply may take")
    parser.add_argument("--retry", action="store_true", help="ask again what could not be read")
    args = parser.parse_args(argv)
    others = ("predictions.jsonl", "report.jsonl", "asked.jsonl")  # or figures beside them
    if args.out and (args.out.suffix == ".json" or args.out.name in others):
        raise ValueError(
            f"--out: got {args.out}, expected a name for the replies that ends in .jsonl, beside "
            "whose .json nothing is yet: the figures are written there"
        )
    return args

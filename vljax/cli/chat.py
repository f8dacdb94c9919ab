"""``vljax chat [CLIP|IMAGE]``: ask about what a clip shows and sounds like."""

import argparse
import functools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main(argv: Sequence[str]) -> None:
    args = parse(argv)
    from vljax.generate.chat import SAMPLE, Conversation, load, read
    from vljax.generate.media import Media, draw
    from vljax.generate.sampling import Sampling

    chosen = args.temperature, args.top_k, args.top_p, args.max_new_tokens, args.repetition_penalty
    sampling = Sampling(*chosen, args.beams, args.length_penalty)
    clip = args.clip or SAMPLE
    shown = Path(f"{clip.name}-shown.png")
    if args.show and shown.exists():
        raise ValueError(f"{shown}: is there already; move it away, or ask without --show")
    told = functools.partial(print, file=sys.stderr)
    wanted = {n: getattr(args, n) for n in ("quantise", "quantise_vit", "sharding")}
    model = load(args.model, args.dtype, **wanted, tell=told)
    senses = model.engine.senses(not args.no_video, not args.no_audio)
    if args.live:
        from vljax.cli.live import follow

        follow(args, model.engine, senses, sampling)
        return
    media = read(
        model.engine, clip, *senses, policy=args.policy, frames=args.frames, window=args.window
    )
    if args.clip and args.model == "tiny":
        print(
            "vljax-tiny knows only its own world of six icons and their sounds; for real clips, "
            "load published weights with --model DIR",
            file=sys.stderr,
        )
    if args.show and isinstance(media, Media):
        draw(media, shown)
        print(f"frames and sound as the model gets them: {shown}", file=sys.stderr)
    conversation = Conversation(model.engine, media, sampling)
    if args.ask:
        answers = [timed(conversation, question) for question in args.ask]
        if args.json:
            facts = {"clip": str(clip), "frames": media.sees, "sound": media.hears}
            print(json.dumps(facts | {"answers": answers}))
        else:
            print("\n".join(a["answer"] for a in answers))
        return
    talk(conversation, str(clip))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vljax chat", description=__doc__)
    parser.add_argument("clip", nargs="?", type=Path, help="a clip or an image; else a sample clip")
    parser.add_argument("--ask", action="append", metavar="Q", help="a question; may be repeated")
    parser.add_argument("--model", default="tiny", help='"tiny" or a folder of weights')
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), help="to compute in; else as the folder says"
    )
    parser.add_argument(
        "--quantise", choices=("int8", "int4"), default="", help="to hold the language model in"
    )
    parser.add_argument(
        "--quantise-vit", choices=("int8",), default="", help="to hold the image encoder in"
    )
    parser.add_argument(
        "--sharding", default="", metavar="STRATEGY", help="over all devices, as in training: fsdp"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--no-audio", action="store_true", help="do not listen")
    parser.add_argument("--no-video", action="store_true", help="do not look")
    parser.add_argument(
        "--show", action="store_true", help="draw what the model gets as CLIP-shown.png, here"
    )
    parser.add_argument(
        "--policy",
        choices=("uniform", "interpolate", "windows", "memory"),
        default="uniform",
        help="how long clips are looked at: 8 frames (default); more, at positions in between; "
        "8 of every window; or a memory in which the likest neighbours are merged",
    )
    parser.add_argument(
        "--frames",
        type=int,
        default=0,
        metavar="N",
        help="of the clip or window; else the policy's",
    )
    parser.add_argument("--window", type=float, default=4.0, metavar="SECONDS", help="(4)")
    parser.add_argument(
        "--live", metavar="SOURCE", help="follow a stream: a device, URL, pipe or file"
    )
    parser.add_argument("--fps", type=float, default=0.0, help="frames a second of a stream")
    parser.add_argument(
        "--speed", type=float, default=1.0, help="of a file that is followed; 0: as fast as it goes"
    )
    parser.add_argument(
        "--every", type=float, metavar="SECONDS", help="ask of a stream again and again"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy")
    parser.add_argument("--top-k", type=int, default=50)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="1 (default) is none")
    parser.add_argument("--beams", type=int, default=1, help="of beam search; 1 (default) is none")
    parser.add_argument(
        "--length-penalty", type=float, default=1.0, help="of beams; longer above 0"
    )
    args = parser.parse_args(argv)
    if args.json and not args.ask:
        parser.error("--json needs --ask")
    if args.show and (args.live or args.policy != "uniform" or args.frames):
        parser.error("--show draws what the paper's policy takes of a clip; leave it or the others")
    if args.live and (args.clip or args.frames):
        parser.error("--live SOURCE takes no clip besides, and --fps in the place of --frames")
    if not args.live and (args.every or args.fps or args.speed != 1):
        parser.error("--every, --fps and --speed are for --live SOURCE")
    return args


def timed(conversation: Any, question: str) -> dict[str, Any]:
    began = time.monotonic()
    answer = conversation.ask(question)
    seconds = round(time.monotonic() - began, 3)
    return {"question": question, "answer": answer, "seconds": seconds}


def talk(conversation: Any, clip: str) -> None:
    """Reads questions until the input ends."""
    print(f"{clip}: ask away; an empty line or Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            return
        if not question:
            return
        try:
            for piece in conversation.stream(question):
                print(piece, end="", flush=True)
            print()
        except ValueError as error:  # of this question alone
            print(error, file=sys.stderr)

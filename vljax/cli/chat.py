"""``vljax chat [CLIP|IMAGE]``: ask about what a clip shows and sounds like."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vljax.cli.asking import add_model_flags, add_sampling_flags, load_model, names, sampling_of


def main(argv: Sequence[str]) -> None:
    args = parse(argv)
    from vljax.generate.chat import SAMPLE, Conversation, read
    from vljax.generate.media import Media, draw

    sampling = sampling_of(args)
    clip = args.clip or SAMPLE
    shown = Path(f"{clip.name}-shown.png")
    if args.print_prompt and len(args.ask) == 1:  # later ones hold answers
        print_prompt(args, clip)
        return
    if args.show and shown.exists():
        raise ValueError(f"{shown}: is there already; move it away, or ask without --show")
    model = load_model(args)
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
    if args.print_prompt:
        print_prompts(conversation, args)
        return
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
    parser.add_argument(
        "--print-prompt", action="store_true", help="the prompt and its ids, in an answer's place"
    )
    add_model_flags(parser)
    add_sampling_flags(parser)
    args = parser.parse_args(argv)
    for flag in ("json", "print_prompt"):
        if getattr(args, flag) and not args.ask:
            parser.error(f"--{flag.replace('_', '-')} needs --ask")
    for flag in ("show", "print_prompt"):
        if getattr(args, flag) and (args.live or args.policy != "uniform" or args.frames):
            parser.error(f"--{flag.replace('_', '-')} is of the paper's policy for clips")
    if args.live and (args.clip or args.frames):
        parser.error("--live SOURCE takes no clip besides, and --fps in the place of --frames")
    if not args.live and (args.every or args.fps or args.speed != 1):
        parser.error("--every, --fps and --speed are for --live SOURCE")
    return args


def print_prompt(args: argparse.Namespace, clip: Path) -> None:
    """The only question's prompt, for which no weights are read."""
    from vljax.generate.engine import Request
    from vljax.generate.media import read_media
    from vljax.generate.prompts import Prompter, show_prompt
    from vljax.obtain import obtain

    prompter = Prompter(obtain(names(args.model), args.llm))
    senses = prompter.senses(not args.no_video, not args.no_audio)
    request = Request(args.ask[0], read_media(clip, prompter.size, *senses))
    print(show_prompt(prompter, request, args.max_new_tokens))


def print_prompts(conversation: Any, args: argparse.Namespace) -> None:
    """Those of several questions: all but the first hold answers, which are generated."""
    from vljax.generate.engine import Request
    from vljax.generate.prompts import show_prompt

    for i, question in enumerate(args.ask):
        request = Request(question, conversation.media, conversation.history)
        print(show_prompt(conversation.engine, request, args.max_new_tokens))
        if i + 1 < len(args.ask):
            conversation.ask(question)


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

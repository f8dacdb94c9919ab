"""``vljax chat --live SOURCE``: questions about a stream while it runs."""

import argparse
import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any


def follow(args: argparse.Namespace, engine: Any, senses: tuple[bool, bool], sampling: Any) -> None:
    """Opens the stream, and asks what is asked by the flags, or at the prompt."""
    from vljax.data.stream import Ring, Source
    from vljax.generate.live import Live, Pace
    from vljax.generate.media import FRAMES

    if args.every is not None and (args.every <= 0 or not args.ask):
        raise ValueError(f"--every: got {args.every:g}, expected more than 0 s, with --ask")
    if args.speed < 0:
        raise ValueError(f"--speed: got {args.speed:g}, expected 0 or more")
    if args.live == "-" and not args.ask:
        raise ValueError("--live -: what is piped in leaves no prompt to ask at; add --ask")
    pace = Pace(args.window, args.fps or FRAMES / args.window)
    live = Live(engine, args.policy, pace, *senses)
    image = engine.size.vit.image
    source = Source(args.live, (image, image), pace.fps, *senses)
    with Ring(source, pace.room, args.speed) as ring:
        session = Session(live, ring, engine, sampling)
        if args.ask:
            for answer in session.answers(args.ask, args.every, args.window):
                print(json.dumps(answer) if args.json else line(answer), flush=True)
        else:
            talk(session, args.live)
        print(session.summary(), file=sys.stderr)


class Session:
    """A stream that is followed, with who answers."""

    def __init__(self, live: Any, ring: Any, engine: Any, sampling: Any):
        self.live, self.ring, self.engine, self.sampling = live, ring, engine, sampling

    def answer(self, question: str, now: float | None = None) -> dict[str, Any]:
        """Asks about the stream as it is, or as it was ``now`` seconds after its beginning."""
        from vljax.generate.engine import Request

        began = time.monotonic()
        media = self.live.media(now)
        said = self.engine.answer([Request(question, media)], self.sampling, 0)[0]
        return {
            "at": round(self.live.seconds if now is None else now, 2),
            "question": question,
            "answer": said,
            "seconds": round(time.monotonic() - began, 3),
            "dropped": self.ring.dropped,
        }

    def answers(
        self, questions: list[str], every: float | None, first: float
    ) -> Iterator[dict[str, Any]]:
        """Answers ``every`` so many seconds; without, once: when a window is full, or at the end.

        Raises MediaError for a stream that never began.
        """
        due = every or first
        for piece in self.ring:
            self.live.take(piece)
            while self.live.past(due):
                yield from (self.answer(q, due) for q in questions)
                if every is None:
                    return
                due += every
        if self.live.seconds > due - (every or first) + 0.5:
            yield from (self.answer(q) for q in questions)

    def watch(self) -> threading.Thread:
        """Takes what comes, in a thread of its own."""

        def run() -> None:
            with contextlib.suppress(ValueError):  # of a stream that never began; it is told
                for piece in self.ring:
                    self.live.take(piece)
            if self.ring.ended:
                print(f"\n{self.ring.ended}", file=sys.stderr, flush=True)

        thread = threading.Thread(target=run, name="watch", daemon=True)
        thread.start()
        return thread

    def summary(self) -> str:
        told = f"{self.live.seconds:.0f} s followed"
        if self.ring.dropped or self.ring.missed:
            told += (
                f"; it fell behind: {self.ring.dropped} frames and {self.ring.missed:.1f} s of "
                "sound dropped (a lower --fps costs less)"
            )
        return f"{told}; {self.ring.ended}" if self.ring.ended else told


def talk(session: Session, name: str) -> None:
    """Reads questions until the input ends, or the stream does before it began."""
    watching = session.watch()
    print(f"{name}: ask away; an empty line or Ctrl-D ends.", file=sys.stderr)
    while watching.is_alive() or session.live.seconds:
        try:
            question = input("> ").strip()
        except EOFError:
            return
        if not question:
            return
        try:
            print(line(session.answer(question)), flush=True)
        except ValueError as error:  # of this moment alone
            print(error, file=sys.stderr)
    raise ValueError(session.ring.ended)


def line(answer: dict[str, Any]) -> str:
    """ "0:12  A red bell moves left." """
    minutes, seconds = divmod(int(answer["at"]), 60)
    lost = f"  ({answer['dropped']} frames dropped)" if answer["dropped"] else ""
    return f"{minutes}:{seconds:02}  {answer['answer']}{lost}"

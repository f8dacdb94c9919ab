"""``vljax bench train``: measures speed."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence


def main(argv: Sequence[str]) -> int | None:
    parser = argparse.ArgumentParser(prog="vljax bench", description=__doc__)
    parser.add_argument("what", choices=VERBS, help="what to measure; --help behind it says more")
    args = parser.parse_args(argv[:1])
    return VERBS[args.what](argv[1:])


def train(argv: Sequence[str]) -> int:
    """The vision step, beside the same one in PyTorch."""
    parser = argparse.ArgumentParser(
        prog="vljax bench train",
        description="Times the vision stage's step with random weights on the first device, and "
        "beside it the same step in PyTorch (transformers' LLaMA and BLIP-2), if it is installed.",
    )
    add = parser.add_argument
    add("--size", default="7b", help="7b (the default), 13b or tiny")
    add("--layers", type=int, default=0, help="of ViT and LLaMA each; 0, the default, is all")
    add("--batch", type=int, default=4, help="clips a step (4)")
    add("--seq", type=int, default=512, help="tokens of a row, media among them (512)")
    add("--frames", type=int, default=8, help="of a clip (8)")
    add("--remat", default="none", help="what is made again: all, or names with commas (none)")
    add("--attention", default="xla", help="all, or of xla and cudnn (xla)")
    add("--loop", default="scanned", help="over layers: all, or of scanned and unrolled (scanned)")
    add("--steps", type=int, default=5, help="timed ones a round, after one that is not (5)")
    add("--rounds", type=int, default=2, help="turns of every contender (2)")
    add("--json", action="store_true")
    args = parser.parse_args(argv)

    from vljax.bench.train import Case, compare, require_sensible, table, variants
    from vljax.progress import Progress

    numbers = {n: getattr(args, n) for n in ("size", "layers", "batch", "seq", "frames")}
    cases = [Case(**numbers, **v) for v in variants(args.remat, args.attention, args.loop)]
    require_sensible(cases[0], args.steps, args.rounds)
    line: list[Progress] = []

    def show(done: int, total: int) -> None:
        line[:] = line or [Progress("turns", total)]
        line[0].show(done)

    found = compare(cases, args.steps, args.rounds, lambda told: print(told, file=sys.stderr), show)
    if args.json:
        rows = [dataclasses.asdict(m) | {"mfu": m.mfu if m.seconds else None} for m in found]
        print(json.dumps({"case": numbers, "measured": rows}))
    else:
        device = next((m.device for m in found if m.device), "no device")
        print(f"{device}, {', '.join(f'{n} {x}' for n, x in numbers.items())}\n{table(found)}")
    return 0 if any(m.seconds for m in found) else 1


VERBS: dict[str, Callable[[Sequence[str]], int | None]] = {"train": train}

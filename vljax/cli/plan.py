"""``vljax plan``: which sharding strategy fits which machine, and what a step costs there at least.

The real training step is compiled for machines that are not here. Memory, collectives and FLOPs
are facts of the compiled program; times are bounds from stated rates, not measured.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main(argv: Sequence[str]) -> int:
    if "--infer" in argv:
        from vljax.cli import plan_infer

        return plan_infer.main([a for a in argv if a != "--infer"])
    parser = argparse.ArgumentParser(
        prog="vljax plan",
        description=__doc__,
        epilog="every field of the config is a flag: --config.remat=dots. Compilers: pip install "
        "'vljax[plan-tpu]' for TPUs; for GPUs see the README.",
    )
    add = parser.add_argument
    add("--config", metavar="FILE[:ARG]", required=True, help="a stage's config, with its size")
    add("--topology", required=True, help="one or more with commas: v5e:4x4,v5p:4x4x4,h100:1x1x8")
    add("--strategy", default="all", help="all (the default), or names with commas: fsdp,tp")
    add("--batch-per-device", default="4", help="clips; auto finds the most that fit (4)")
    add("--most", type=int, default=64, help="clips a device that auto tries at most (64)")
    add("--seq", type=int, default=512, help="tokens a row, media among them (512)")
    add("--frames", type=int, default=8, help="frames a clip (8)")
    add("--json", metavar="FILE", help="the rows, in order; - prints them")
    add("--markdown", metavar="FILE", help="the table")
    add("--cache", metavar="DIR", help="what was compiled before (~/.cache/vljax/plan)")
    add("--infer", action="store_true", help="does it fit to answer? see vljax plan --infer --help")
    args, overrides = parser.parse_known_args(argv)
    os.environ["JAX_PLATFORMS"] = "cpu"  # an accelerator that is here is left alone

    from vljax.bench import plan
    from vljax.bench.roofline import assumptions
    from vljax.bench.topology import describe
    from vljax.cli.train import live_problem, load_config
    from vljax.progress import Progress
    from vljax.train.optimizer import OptimizerConfig

    config = load_config(args.config, overrides)
    if "stages" in config:
        raise ValueError(f"--config={args.config}: got a chain, expected one stage of it")
    described = [describe(name) for name in args.topology.split(",")]
    candidates = plan.candidates(
        [topology.name for topology in described],
        strategies(args.strategy),
        batch_size(args.batch_per_device),
        args.frames,
        args.seq,
    )
    problem, optimizer = live_problem(config), OptimizerConfig(**config.optimizer)
    cache = Path(args.cache) if args.cache else Path.home() / ".cache" / "vljax" / "plan"
    progress = Progress("plans", len(candidates))
    most = args.most if args.batch_per_device == "auto" else 0
    rows = plan.plan(
        problem, optimizer, candidates, cache, lambda done, total: progress.show(done), most
    )
    tell(rows, [assumptions(t) for t in described], args)
    return 0 if any(r["fits"] for r in rows) else 1


def strategies(text: str) -> list[str]:
    from vljax.sharding.strategy import STRATEGIES

    return list(STRATEGIES) if text == "all" else text.split(",")


def batch_size(text: str) -> int:
    if text == "auto":
        return 1
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--batch-per-device: got {text!r}, expected a number of clips, or auto")
    return int(text)


def tell(rows: list[dict[str, Any]], rates: Sequence[str], args: argparse.Namespace) -> None:
    """The answer, the table and what the bounds rest on; with ``--json -`` the rows alone."""
    from vljax.bench.plan import answer, table

    text = "\n\n".join([answer(rows), table(rows), *dict.fromkeys(rates)])
    if args.markdown:
        Path(args.markdown).write_text(text + "\n")
    if args.json and args.json != "-":
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows) if args.json == "-" else text)
    sys.stdout.flush()

"""``vljax plan``: which sharding strategy fits which machine, and what a step costs there at least.

The real training step is compiled for machines that are not here. Memory, collectives and FLOPs
are facts of the compiled program; times are bounds from stated rates, not measured.
"""

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
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
        "'vljax[plan-tpu]' for TPUs, 'vljax[plan-gpu]' for GPUs.",
    )
    add = parser.add_argument
    add("--config", metavar="FILE[:ARG]", required=True, help="a stage's config, with its size")
    add("--topology", required=True, help="one or more with commas: v5e:4x4,v5p:4x4x4,h100:1x1x8")
    add("--strategy", default="all", help="all (the default), or names with commas: fsdp,tp")
    add("--batch-per-device", default="4", help="clips; auto finds the most that fit (4)")
    add("--most", type=int, default=64, help="clips a device that auto tries at most (64)")
    add(
        "--quick",
        action="store_true",
        help="compile without the encoders, and add what they hold, gather and do",
    )
    add(
        "--search",
        action="store_true",
        help="try other meshes too, then other remat policies and int8 on the best",
    )
    add("--seq", type=int, default=512, help="tokens a row, media among them (512)")
    add("--frames", type=int, default=8, help="frames a clip (8)")
    add("--json", metavar="FILE", help="the rows, in order; - prints them")
    add("--markdown", metavar="FILE", help="the table")
    add("--html", metavar="FILE", help="the whole plan as a page, with charts")
    add("--png", metavar="DIR", help="the charts")
    add("--cache", metavar="DIR", help="what was compiled before (~/.cache/vljax/plan)")
    add("--infer", action="store_true", help="does it fit to answer? see vljax plan --infer --help")
    args, overrides = parser.parse_known_args(argv)
    os.environ["JAX_PLATFORMS"] = "cpu"  # an accelerator that is here is left alone

    from vljax.bench import bars, plan, search
    from vljax.bench.roofline import assumptions
    from vljax.bench.topology import reserve
    from vljax.cli.configs import load_config

    if args.html or args.png:
        bars.require_matplotlib()
    config = load_config(args.config, overrides)
    if "stages" in config:
        raise ValueError(f"--config={args.config}: got a chain, expected one stage of it")
    topologies = args.topology.split(",")
    reserve(topologies)
    described = [stand_in(name) for name in topologies]
    run = planned(config, args.quick)
    auto, least = args.batch_per_device == "auto", search.least_batch(run.problem)
    size = least if auto else batch_size(args.batch_per_device)
    if auto and args.most < least:
        raise ValueError(f"--most: got {args.most}, expected at least {least} clips a device")
    names = strategies(args.strategy)
    wanted = [
        search.Candidate(t.name, s, size, args.frames, args.seq) for t in described for s in names
    ]
    cache = Path(args.cache) if args.cache else Path.home() / ".cache" / "vljax" / "plan"
    compiled = functools.partial(plan.row_apart, run, cache)
    if auto:
        compiled = functools.partial(search.largest_batch, compiled, least=least, most=args.most)
    if args.search:
        rows = searched(wanted, described, run, compiled)
    else:
        rows = plan.plan(wanted, compiled, progress("plans"))
    tell(rows, [assumptions(t) for t in described], args)
    return 0 if any(r["fits"] for r in rows) else 1


def stand_in(name: str) -> Any:
    """The topology; for the processor's compiler, and told, where its own is not installed."""
    from vljax.bench.topology import MissingCompiler, describe

    try:
        return describe(name)
    except MissingCompiler as error:
        print(f"{error}; until then the CPU's stands in: {name}@cpu", file=sys.stderr)
        return describe(f"{name}@cpu")


def planned(config: Any, quick: bool = False) -> Any:
    """The problem, the optimizer, and the clips of the whole run."""
    from vljax.bench.plan import Planned
    from vljax.cli.train import live_problem
    from vljax.train.optimizer import OptimizerConfig

    sources = config.sources.values()
    weights = [s.get("weight", 1) for s in sources]  # drawn from the world itself: its stage's only
    # A step's, in the mean.
    each = sum(s.batch_size * w / sum(weights) for s, w in zip(sources, weights, strict=True))
    optimizer, samples = OptimizerConfig(**config.optimizer), round(config.steps * each)
    return Planned(live_problem(config), optimizer, samples, quick)


def searched(
    wanted: list[Any], described: list[Any], run: Any, compiled: Any
) -> list[dict[str, Any]]:
    """Meshes first; then the best of each topology with what else could be changed."""
    from vljax.bench import plan, search

    meshes = [
        candidate
        for topology in described
        for candidate in search.factorised(
            [c for c in wanted if c.topology == topology.name], run.problem, topology
        )
    ]
    rows = plan.plan(meshes, compiled, progress("meshes"))
    more = search.varied(rows, run.problem)
    return plan.ranked(rows + plan.plan(more, compiled, progress("remat and int8")))


def progress(name: str) -> Callable[[int, int], None]:
    from vljax.progress import Progress

    line: list[Progress] = []

    def show(done: int, total: int) -> None:
        line[:] = line or [Progress(name, total)]
        line[0].show(done)

    return show


def strategies(text: str) -> list[str]:
    from vljax.sharding.strategy import STRATEGIES

    return list(STRATEGIES) if text == "all" else text.split(",")


def batch_size(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--batch-per-device: got {text!r}, expected a number of clips, or auto")
    return int(text)


def tell(rows: list[dict[str, Any]], rates: Sequence[str], args: argparse.Namespace) -> None:
    """The answer, the table and what the bounds rest on; with ``--json -`` the rows alone."""
    from vljax.bench import report
    from vljax.bench.plan import answer, table

    text = "\n\n".join([answer(rows), table(rows), *dict.fromkeys(rates)])
    if args.markdown:
        Path(args.markdown).write_text(text + "\n")
    if args.html:
        Path(args.html).write_text(report.page(rows, rates), encoding="utf-8")
    if args.png:
        report.write_pngs(rows, Path(args.png))
    if args.json and args.json != "-":
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows) if args.json == "-" else text)
    sys.stdout.flush()

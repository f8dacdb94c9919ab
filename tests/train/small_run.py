"""A run of the small model as a program, for tests that kill it, stop it and split it up.

python small_run.py WORKDIR --frozen FOLDER --cache FOLDER [--cpu-devices M --coordinator ...]
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from conftest import SMALL, media_batch

from vljax.cli import processes
from vljax.config import VISION
from vljax.sharding.mesh import make_mesh
from vljax.sharding.placement import Placement
from vljax.sharding.strategy import strategy
from vljax.train.loop import Run, fit
from vljax.train.objectives import make_objective
from vljax.train.optimizer import OptimizerConfig
from vljax.train.step import Problem


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--frozen", required=True)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--objective", default="vision", choices=("vision", "text"))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--save-every", type=int, default=4)
    parser.add_argument("--sharding", default="dp")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds a batch takes")
    parser.add_argument("--hang-at", type=int, help="the batch that never comes")
    parser.add_argument("--watchdog", type=float, default=0.0)
    processes.add_flags(parser)
    return parser.parse_args(argv)


def make_problem(objective: str) -> Problem:
    """The vision branch; or, which is traced in a fraction of the time, the decoder alone."""
    if objective == "vision":
        return Problem(SMALL, make_objective("vision"), VISION)
    return Problem(SMALL, make_objective("text", context_noise=0.1), (r"llama/(head|norm)",))


def make_batch(objective: str, step: int) -> dict:
    batch = media_batch(step)
    if objective == "vision":
        return batch
    tokens = batch["tokens"] % SMALL.llama.vocab
    kept = {n: batch[n] for n in ("labels", "mask")}
    return kept | {"tokens": tokens, "context": batch["mask"]}


def main(argv: Sequence[str]) -> int:
    args = parse(argv)
    jax.config.update("jax_compilation_cache_dir", args.cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_disable_most_optimizations", True)
    processes.join(args)
    run = Run(
        name="small_run",
        problem=make_problem(args.objective),
        optimizer=OptimizerConfig(
            peak_lr=1e-2, min_lr=1e-3, warmup_steps=2, steps_per_epoch=args.steps
        ),
        strategy=strategy(args.sharding),
        steps=args.steps,
        workdir=args.workdir,
        start=(args.frozen,),
        save_every=args.save_every,
        log_every=1,
        watchdog_seconds=args.watchdog,
    )
    index, count = Placement(run.strategy, make_mesh(run.strategy)).readers()

    def batches(start: int) -> Iterator[tuple[str, dict]]:
        for step in range(start, args.steps):
            if step == args.hang_at:
                time.sleep(1e6)
            time.sleep(args.pause)
            whole = make_batch(args.objective, step)
            rows = len(whole["tokens"]) // count
            own = slice(index * rows, (index + 1) * rows)
            yield ("clips", "images")[step % 2], {n: x[own] for n, x in whole.items()}

    try:
        fit(run, batches, {})
    except KeyboardInterrupt as stop:
        return 128 + stop.args[0]
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

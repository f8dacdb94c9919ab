"""``vljax plan --infer``: whether a model that answers fits a machine, and how fast it is at best.

The programs of ``vljax chat`` are compiled for machines that are not here. Memory, collectives and
FLOPs are facts of the compiled programs; times are bounds from stated rates, not measured.
"""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CARDS = (
    "Of a card JAX takes three quarters for itself; XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 lets it "
    "take nearly all."
)


def main(argv: Sequence[str]) -> int:
    args, overrides = parser().parse_known_args(argv)
    os.environ["JAX_PLATFORMS"] = "cpu"  # an accelerator that is here is left alone

    from vljax.bench import infer
    from vljax.bench.answering import Load
    from vljax.bench.roofline import assumptions
    from vljax.bench.topology import describe, reserve
    from vljax.cli.configs import load_config
    from vljax.cli.train import live_problem
    from vljax.progress import Progress

    stage, senses = stage_and_senses(load_config(args.config, overrides))
    problem = live_problem(stage)
    names = args.topology.split(",")
    reserve(names)
    topologies = [describe(name) for name in names]
    loads = [
        Load(batch, context, args.new_tokens, args.frames)
        for batch, context in itertools.product(
            numbers("batch", args.batch), numbers("context", args.context)
        )
    ]
    wanted = infer.candidates(
        topologies, args.strategy.split(","), args.dtype.split(","), loads, args.quantise_vit
    )
    cache = Path(args.cache) if args.cache else Path.home() / ".cache" / "vljax" / "plan"
    progress = Progress("plans", len(wanted))
    rows = infer.plan(
        problem, "audio" in senses, wanted, cache, lambda done, total: progress.show(done)
    )
    rates = [assumptions(t) for t in topologies]
    rates += [CARDS] if any(t.backend == "cuda" for t in topologies) else []
    tell(rows, [infer.answer(rows, f"{stage.size} ({stage.llm})"), infer.table(rows), *rates], args)
    return 0 if any(r["fits"] for r in rows) else 1


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="vljax plan --infer",
        description=__doc__,
        epilog="compilers: pip install 'vljax[plan-tpu]' for TPUs, 'vljax[plan-gpu]' for GPUs.",
    )
    add = made.add_argument
    add("--config", metavar="FILE[:ARG]", required=True, help="a config of the model's size")
    add("--topology", required=True, help="one or more with commas: t4:1x1x1,l4:1x1x1,v5e:2x2")
    add("--strategy", default="tp", help="names with commas, for more than one device (tp)")
    add("--dtype", default="bfloat16,int8,int4", help="the LLM's weights (bfloat16,int8,int4)")
    add("--quantise-vit", choices=("int8",), default="", help="the image encoder's weights")
    add("--batch", default="1", help="prompts answered at once, one or more with commas (1)")
    add("--context", default="512", help="tokens of a prompt, media among them (512)")
    add("--new-tokens", type=int, default=64, help="tokens of an answer at most (64)")
    add("--frames", type=int, default=8, help="frames a clip (8)")
    add("--json", metavar="FILE", help="the rows, in order; - prints them")
    add("--markdown", metavar="FILE", help="the answer and the table")
    add("--cache", metavar="DIR", help="what was compiled before (~/.cache/vljax/plan)")
    return made


def stage_and_senses(config: Any) -> tuple[Any, set[str]]:
    """A stage that states the model's size, and what any of the config's stages is about."""
    stages = list(config.stages.values()) if "stages" in config else [config]
    return stages[-1], {stage.objective.name for stage in stages}


def numbers(flag: str, text: str) -> list[int]:
    """ "1,4" -> [1, 4]. Raises ValueError for what is no number, or none from 1 on."""
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"--{flag}: got {text!r}, expected numbers with commas, such as 1,4")
    return [int(part) for part in parts]


def tell(rows: list[dict[str, Any]], told: Sequence[str], args: argparse.Namespace) -> None:
    """The answer, the table and what the bounds rest on; with ``--json -`` the rows alone."""
    text = "\n\n".join([*dict.fromkeys(told), "Times are bounds, not measured."])
    if args.markdown:
        Path(args.markdown).write_text(text + "\n")
    if args.json and args.json != "-":
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows) if args.json == "-" else text)
    sys.stdout.flush()

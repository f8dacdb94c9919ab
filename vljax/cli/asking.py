"""The flags of verbs that ask a model: which weights, how they are held, how tokens are chosen."""

import argparse
import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vljax.generate.chat import Model
    from vljax.generate.sampling import Sampling


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="tiny",
        metavar="NAME",
        help='"tiny", a folder of weights or of published files, or a hub\'s "user/repository"; '
        "several with commas",
    )
    parser.add_argument(
        "--llm",
        default="vicuna",
        choices=("vicuna", "llama2", "smollm2_135m"),
        help="whose the language model among published files is",
    )
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


def check_png(path: Path | None) -> None:
    """Raises ValueError where ``--png`` can't be drawn; None is no chart."""
    from vljax.bench.bars import require_matplotlib

    if path and path.suffix != ".png":
        raise ValueError(f"--png: got {path}, expected a name that ends in .png")
    if path:
        require_matplotlib()


def load_model(args: argparse.Namespace) -> "Model":
    """As the flags say; what is fetched, converted and held goes to stderr."""
    from vljax.obtain import load

    wanted = {n: getattr(args, n) for n in ("llm", "quantise", "quantise_vit", "sharding")}
    tell = functools.partial(print, file=sys.stderr)
    return load(names(args.model), args.dtype, **wanted, tell=tell)


def weights_of(args: argparse.Namespace) -> str:
    """What tells the weights from others that went by the same name."""
    from vljax.obtain import obtain
    from vljax.store import manifest_hash

    tell = functools.partial(print, file=sys.stderr)
    return manifest_hash(obtain(names(args.model), args.llm, tell))


def names(flag: str) -> list[str]:
    """Of ``--model``: a file's name may hold a comma, if there is such a file."""
    return [flag] if os.path.exists(flag) else flag.split(",")


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy")
    parser.add_argument("--top-k", type=int, default=50)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="1 (default) is none")
    parser.add_argument("--beams", type=int, default=1, help="of beam search; 1 (default) is none")
    parser.add_argument(
        "--length-penalty", type=float, default=1.0, help="of beams; longer above 0"
    )


def sampling_of(args: argparse.Namespace) -> "Sampling":
    from vljax.generate.sampling import Sampling

    chosen = args.temperature, args.top_k, args.top_p, args.max_new_tokens, args.repetition_penalty
    return Sampling(*chosen, args.beams, args.length_penalty)

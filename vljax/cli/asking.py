"""The flags of verbs that ask a model: which weights, how they are held, how tokens are chosen."""

import argparse
import functools
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vljax.generate.chat import Model
    from vljax.generate.sampling import Sampling

MODEL_HELP = '"tiny", a folder of weights or of published files, or a hub\'s "user/repository"'
LLM_HELP = "whose the language model among published files is: vicuna, llama2 or smollm2_135m"


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="tiny", help=MODEL_HELP)
    parser.add_argument("--llm", default="vicuna", help=LLM_HELP)
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), help="to compute in; else as the folder says"
    )
    parser.add_argument(
        "--quantise", choices=("int8", "int4"), default="", help="to hold the language model in"
    )
    parser.add_argument(
        "--quantise-vit", choices=("int8",), default="", help="to hold the image encoder in"
    )


def load_model(args: argparse.Namespace) -> "Model":
    """As the flags say; the line about memory goes to stderr."""
    from vljax.obtain import load

    wanted = {"quantise": args.quantise, "quantise_vit": args.quantise_vit, "llm": args.llm}
    return load(args.model, args.dtype, **wanted, tell=functools.partial(print, file=sys.stderr))


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy")
    parser.add_argument("--top-k", type=int, default=50)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--max-new-tokens", type=int, default=64)


def sampling_of(args: argparse.Namespace) -> "Sampling":
    from vljax.generate.sampling import Sampling

    return Sampling(args.temperature, args.top_k, args.top_p, args.max_new_tokens)

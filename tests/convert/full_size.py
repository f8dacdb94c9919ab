"""Writes a random 7B set in the published layouts, converts it, asks it a question, and measures.

    python tests/convert/full_size.py FOLDER [--size 7b] [--keep]

FOLDER needs about 40 GB; what was written there is deleted afterwards. Prints seconds and peak
memory (resident, GiB) as JSON: of converting, the doctor's look included, and of loading and
answering twice, the first time with compilation.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from vljax.convert.plan import named_size
from vljax.convert.published import random_weights, write_published
from vljax.progress import Progress

ROOT = Path(__file__).parent.parent.parent
HALF = ("visual_encoder.", "llama_model.")  # published in float16, the rest in float32
SAY = """
import sys, time, vljax
began = time.monotonic()
model = vljax.load(sys.argv[1])
print("load", time.monotonic() - began, flush=True)
for _ in range(2):
    began = time.monotonic()
    from vljax.generate.chat import SAMPLE
    from vljax.generate.sampling import Sampling
    asked = model.conversation(SAMPLE, sampling=Sampling(0.0, max_new_tokens=4))
    print(repr(asked.ask("What do you see and hear?")), file=sys.stderr)
    print("answer", time.monotonic() - began, flush=True)
"""


class AsPublished(dict):
    """Random weights in the dtypes of the published files, with a progress line."""

    def __init__(self, weights):
        super().__init__(dict.fromkeys(weights))
        self.weights, self.progress, self.done = weights, Progress("tensors", len(weights)), 0

    def __getitem__(self, name):
        self.done += 1
        self.progress.show(self.done)
        x = self.weights[name]
        return x.astype(np.float16) if name.startswith(HALF) else x


def pieces_32000(small: Path, out: Path) -> None:
    """A tokeniser of 32000 pieces: those of ``small``, and others that no text holds.

    Repeated fields of protobuf messages concatenate, so pieces can be appended as bytes.
    """
    import sentencepiece

    have = sentencepiece.SentencePieceProcessor(model_file=str(small)).vocab_size()
    more = b""
    for i in range(have, 32000):
        piece = f"\u27e6{i}\u27e7".encode()
        body = b"\x0a" + bytes([len(piece)]) + piece + b"\x15" + np.float32(-1e4 - i).tobytes()
        more += b"\x0a" + bytes([len(body)]) + body
    out.write_bytes(small.read_bytes() + more)


def measured(*command: str) -> tuple[float, float, str]:
    """Runs it; seconds, peak memory in GiB (of all runs so far), standard output."""
    began = time.monotonic()
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return round(time.monotonic() - began, 1), round(peak, 2), done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="7b", help="7b, 13b or a JSON file")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--keep", action="store_true", help="do not delete what was written")
    args = parser.parse_args()
    size = named_size(args.size, "vicuna")
    files, out = args.folder / "published", args.folder / "converted"
    args.folder.mkdir(parents=True, exist_ok=True)
    pieces_32000(ROOT / "vljax/weights/tiny/tokenizer.model", args.folder / "tokenizer.model")
    if not files.exists():
        weights = AsPublished(random_weights(size))
        paths = write_published(
            files, weights, size, args.folder / "tokenizer.model", kind="bin", shards=2
        )
    else:
        paths = {p.name: p for p in files.iterdir()}
    shutil.rmtree(out, ignore_errors=True)
    verb = [sys.executable, "-m", "vljax.cli.main", "convert", *map(str, paths.values())]
    seconds, peak, _ = measured(
        *verb, "--size", args.size, "--out", str(out), "--dtype", args.dtype
    )
    stored = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    report = {"convert_s": seconds, "convert_peak_gib": peak, "stored_gb": round(stored / 1e9, 2)}
    print(json.dumps(report), flush=True)
    _, peak, said = measured(sys.executable, "-c", SAY, str(out))
    report |= {"chat_peak_gib": peak, "chat": said.split("\n")[:-1]}
    print(json.dumps(report), flush=True)
    if not args.keep:
        shutil.rmtree(files)
        shutil.rmtree(out)
        (args.folder / "tokenizer.model").unlink()


if __name__ == "__main__":
    main()

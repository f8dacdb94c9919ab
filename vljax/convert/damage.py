"""Files and tensors that broke on their way: stubs, cut downloads, lost shards, zeros, NaN."""

import itertools
import json
import math
import re
import struct
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vljax.convert.findings import Finding, listed

WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".gguf")
STUB = b"version https://git-lfs"
BLOCK = 1 << 22  # numbers looked at together
# Bits of infinity by dtype. Without the sign, floats order like their bits read as integers, so
# one integer maximum tells both "all zero" and "not finite", several times faster than isfinite.
INFINITY: dict[np.dtype, tuple[Any, int]] = {
    np.dtype(np.float16): (np.uint16, 0x7C00),
    np.dtype(ml_dtypes.bfloat16): (np.uint16, 0x7F80),
    np.dtype(np.float32): (np.uint32, 0x7F80_0000),
    np.dtype(np.float64): (np.uint64, 0x7FF0_0000_0000_0000),
}


def of_file(path: Path) -> Finding | None:
    """What is wrong with the file as such, before any tensor of it is read."""
    size = path.stat().st_size
    if size == 0:
        text = f"{path}: got an empty file, expected {kind(path)}; download it anew"
        return Finding(path, "empty-file", text)
    with path.open("rb") as file:
        head = file.read(1024)
    if head.startswith(STUB):
        return _stub(path, size, head)
    if path.suffix in (*WEIGHTS, ".model", ".json") and head.lstrip()[:5].lower() in HTML:
        text = (
            f"{path}: got a web page, expected {kind(path)}; the server answered with an error or"
            " a log-in page: open the link in a browser, then download it anew"
        )
        return Finding(path, "web-page", text)
    if path.suffix == ".safetensors":
        return _safetensors(path, size, head)
    if head.startswith(b"PK\3\4") and not zipfile.is_zipfile(path):
        text = (
            f"{path}: got {size} bytes of a torch file without the table of contents, expected"
            " that at its end; the download was cut off: fetch it anew"
        )
        return Finding(path, "truncated", text)
    if path.suffix == ".json":
        return _json(path)
    return _tokenizer(path) if path.name == "tokenizer.model" else None


HTML = (b"<!doc", b"<html")


def kind(path: Path) -> str:
    """What a file of this name should hold."""
    if path.name.startswith("tokenizer"):
        return "a tokenizer"
    return "weights" if path.suffix in WEIGHTS else f"a {path.suffix or 'data'} file"


def _stub(path: Path, size: int, head: bytes) -> Finding:
    found = re.search(rb"^size (\d+)", head, re.MULTILINE)
    real = f" of {int(found[1])} bytes" if found else ""
    text = (
        f"{path}: got a Git LFS stub of {size} bytes, expected {kind(path)}{real}; fetch what it"
        " stands for with `git lfs pull`"
    )
    return Finding(path, "lfs-stub", text)


def _safetensors(path: Path, size: int, head: bytes) -> Finding | None:
    """The header says where each tensor ends; the last of these must be the file's end."""
    length = struct.unpack("<Q", head[:8])[0] if size >= 8 else size
    if length > size - 8:
        if head[8:9] not in (b"{", b""):
            text = f"{path}: got a file of another kind, expected safetensors; download it anew"
            return Finding(path, "unreadable", text)
        expected = f"over {length + 8}"
    else:
        with path.open("rb") as file:
            header = file.read(8 + length)[8:]
        try:
            entries = json.loads(header)
            ends = [e["data_offsets"][1] for n, e in entries.items() if n != "__metadata__"]
        except (ValueError, AttributeError, KeyError, TypeError, IndexError):
            text = f"{path}: got a header that is no JSON table, expected safetensors' own; "
            return Finding(path, "unreadable", text + "download it anew")
        whole = 8 + length + max(ends, default=0)
        if whole == size:
            return None
        expected = str(whole)
    text = (
        f"{path}: got {size} bytes, expected {expected} as its header says; the download was cut"
        " off or mixed with another: fetch it anew"
    )
    return Finding(path, "truncated", text)


def _json(path: Path) -> Finding | None:
    try:
        json.loads(path.read_bytes())
    except ValueError as error:
        text = f"{path}: got what is no JSON ({error}), expected a JSON file; download it anew"
        return Finding(path, "bad-json", text)
    return None


def _tokenizer(path: Path) -> Finding | None:
    import sentencepiece

    try:
        sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError):
        text = f"{path}: got what is no sentencepiece model, or part of one, expected a tokenizer"
        return Finding(path, "bad-tokenizer", f"{text}; download it anew")
    return None


def of_shards(files: Collection[Path], names: Mapping[Path, Collection[str]]) -> Iterator[Finding]:
    """Shards that are not there and tensors that they lack.

    ``files``: all that there are; ``names``: the tensors of those that could be opened.
    """
    for folder in sorted({f.parent for f in files}):
        here = {f.name: f for f in files if f.parent == folder}
        told: set[str] = set()
        for index in sorted(n for n in here if n.endswith(".index.json")):
            where = _weight_map(here[index])
            shards = set(where.values())
            if shards.isdisjoint(here) and any(n.endswith(WEIGHTS) for n in here):
                continue  # the index of a second format that was not downloaded
            told |= shards
            yield from _lost(folder, sorted(shards - set(here)), f"as {index} says")
            for shard in sorted(shards & set(here)):
                yield from _lacking(here[shard], index, where, names.get(here[shard]))
        yield from _lost(folder, sorted(_numbered(here) - told - set(here)), "by their numbers")


def _weight_map(index: Path) -> dict[str, str]:
    try:
        where = json.loads(index.read_bytes())["weight_map"]
        return {str(name): str(shard) for name, shard in where.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # not JSON: told already


def _numbered(names: Collection[str]) -> set[str]:
    """All shards of which the given ones are "NAME-00001-of-00003.EXT"."""
    found = [m for n in names if (m := re.fullmatch(r"(.+-)(\d+)(-of-)(\d+)(\.\w+)", n))]
    return {
        f"{m[1]}{i:0{len(m[2])}}{m[3]}{m[4]}{m[5]}" for m in found for i in range(1, int(m[4]) + 1)
    }


def _lost(folder: Path, shards: list[str], why: str) -> Iterator[Finding]:
    if shards:
        text = f"{folder}: lacks {listed(shards)}, expected {why}; download what is missing"
        yield Finding(folder / shards[0], "shard-missing", text)


def _lacking(
    shard: Path, index: str, where: Mapping[str, str], has: Collection[str] | None
) -> Iterator[Finding]:
    lost = sorted(
        n for n, s in where.items() if s == shard.name and has is not None and n not in has
    )
    if lost:
        text = (
            f"{shard}: lacks {listed(lost)}, expected there as {index} says; files of two models"
            " are mixed or one is old: take all of them from one place"
        )
        yield Finding(shard, "tensor-missing", text)


def blocks(x: Any, stacked: bool = False) -> Iterator[np.ndarray]:
    """Parts of ``x`` along its first axis, about ``BLOCK`` numbers each and about equal.

    ``stacked``: one part a layer. ``x`` may be lazy: each part is read when its turn comes.
    """
    rows = x.shape[0] if x.shape else 0
    if rows < 2:
        yield np.asarray(x)
        return
    parts = rows if stacked else min(rows, -(-math.prod(x.shape) // BLOCK))
    edges = [rows * i // parts for i in range(parts + 1)]
    for start, end in itertools.pairwise(edges):
        yield np.asarray(x[start:end])


def look(block: np.ndarray) -> tuple[bool, int]:
    """(whether all numbers are zero, how many are not finite); integers count as sound."""
    if block.dtype not in INFINITY or not block.size:
        return False, 0
    integers, infinity = INFINITY[block.dtype]
    no_sign = integers((1 << (8 * block.itemsize - 1)) - 1)
    bits = np.ascontiguousarray(block).view(integers) & no_sign
    top = int(bits.max())
    return top == 0, int((bits >= infinity).sum()) if top >= infinity else 0


def may_be_zero(name: str, shape: tuple[int, ...]) -> bool:
    """Whether all zeros are a legitimate value of this parameter.

    Biases start at zero and the frozen towers' may have stayed there (EVA's q_bias and v_bias,
    LayerNorms' biases), and so do single tokens (class, mask). Kernels, tables, queries and the
    gains of norms do not: a zero one cuts off whatever flows through it.
    """
    last = re.split(r"[./]", name)[-1]
    if last in ("weight", "kernel", "scale", "embedding", "in_proj_weight"):
        return False
    return "bias" in last or sum(n > 1 for n in shape) < 2


def may_be_infinite(name: str) -> bool:
    """Causal masks are kept as buffers (ImageBind's text tower), with -inf above the diagonal."""
    return name.endswith("mask")


def of_tensor(name: str, x: Any) -> Iterator[tuple[str, str]]:
    """(code, the name with what was seen) for zeros and for NaN or Inf, block by block."""
    stacked = "/layers/" in name or "/groups/" in name
    looks = [look(block) for block in blocks(x, stacked)]
    zero = [i for i, (all_zero, _) in enumerate(looks) if all_zero]
    wild = sum(count for _, count in looks)
    if wild and not may_be_infinite(name):
        yield "not-finite", f"{name} ({wild} values)"
    if zero and not may_be_zero(name, tuple(x.shape)):
        if len(zero) == len(looks):
            yield "zero-tensor", name
        else:
            yield "zero-part", f"{name} ({len(zero)} of {len(looks)} parts)"


VALUES = {
    "zero-tensor": "is all zeros in {}, expected trained weights; the download or the conversion"
    " lost them: fetch the file anew",
    "zero-part": "is zeros over long stretches of {}, expected trained weights throughout; the"
    " download or the conversion lost them: fetch the file anew",
    "not-finite": "holds NaN or Inf in {}, expected finite weights; the file is damaged or was"
    " saved from a run that diverged: take another copy",
}


def of_values(file: Path, seen: Mapping[str, list[str]]) -> Iterator[Finding]:
    """One sentence a code of ``of_tensor`` for all the tensors of a file that it was seen in."""
    for what, names in seen.items():
        yield Finding(file, what, f"{file}: {VALUES[what].format(listed(names))}")

"""Published files -> one folder of weights, a tensor at a time and all or nothing."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vljax import __version__, store
from vljax.convert.layouts import UNITS
from vljax.convert.mapping import Rule
from vljax.convert.plan import TOKENIZERS, Options, Plan
from vljax.convert.towers import expected
from vljax.models.sizes import size_as_dict
from vljax.progress import Progress
from vljax.store import WeightsError, Writer

BESIDE = (*TOKENIZERS, "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json")
Step = Callable[[int], None]  # told how many bytes were dealt with


def convert(plan: Plan, out: Path, options: Options) -> None:
    """Writes ``out``, which must not be there; ``out``.partial is what it is called until whole.

    Holds about one tensor of the sources at a time. Raises WeightsError, and leaves nothing.
    """
    store.require_new(out)
    tokenizers = tokenizer_files(plan)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a conversion that was killed
    arrays = {
        name: jax.ShapeDtypeStruct(expected(plan.size)[name].shape, dtype)
        for name, dtype in plan.dtypes.items()
    }
    size = sum(x.size * x.dtype.itemsize for x in arrays.values())
    out.parent.mkdir(parents=True, exist_ok=True)
    _require_room(out.parent, size)
    sources = sum(file.stat().st_size for file in plan.tensors.files)
    step = _counter(size + sources)
    try:
        writer = Writer(partial, arrays)
        for rule in plan.table:
            write(rule, plan.tensors, writer, step)
        for file in tokenizers:
            shutil.copyfile(file, partial / file.name)
        if plan.added:
            (partial / "added_tokens.json").write_text(json.dumps(plan.added) + "\n")
        if gguf := _gguf(plan):
            from vljax.convert.gguf import write_tokenizer

            write_tokenizer(gguf, partial)
        writer.finish(manifest(plan, options, step))
        os.replace(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write(rule: Rule, tensors: Mapping[str, np.ndarray], writer: Writer, step: Step) -> None:
    """One parameter, cast to what the writer expects of it."""
    wanted = writer.arrays[rule.name]

    def get(name: str) -> np.ndarray:
        return cast(tensors[name], wanted.dtype, name)

    nbytes = wanted.size * wanted.dtype.itemsize
    if not (rule.stacked and nbytes > store.SLICED):
        writer.write(rule.name, rule.build(get))
        step(nbytes)
        return
    for i in range(len(rule.sources)):
        writer.write(rule.name, np.ascontiguousarray(rule.piece(get, i)), i)
        step(nbytes // len(rule.sources))


def cast(x: np.ndarray, dtype: Any, name: str) -> np.ndarray:
    """As ``dtype``. Raises WeightsError where float16 is too small for a number."""
    if x.dtype == dtype:
        return x
    if dtype == np.float16 and np.abs(x).max(initial=0) > np.finfo(np.float16).max:
        raise WeightsError(f"{name}: holds numbers beyond float16's; use --dtype bfloat16")
    return x.astype(dtype)


def manifest(plan: Plan, options: Options, step: Step) -> dict[str, Any]:
    """Where the weights came from and what they are."""
    decoder = plan.dtypes.get("llama/tokens/embedding")
    sources = [
        {
            "path": f"{file.absolute().parent.name}/{file.name}"  # a delta's folder is another
            if source.path.is_dir()
            else file.name,
            "kind": source.layout.name,
            "sha256": sha256(file, step),
        }
        for source in plan.sources
        for file in source.tensors.files
    ]
    return {
        "size": plan.size.name,
        "llm": options.llm,
        "template": plan.template,
        "model": size_as_dict(plan.size),
        "parts": [prefix for unit in plan.units for prefix in UNITS[unit]],
        "dtype": options.dtype,
        # Published decoders in half precision are meant to be computed in bfloat16.
        "compute": "float32" if decoder in (None, np.float32) else "bfloat16",
        "sources": sources,
        "converter": f"vljax {__version__}",
    }


def sha256(file: Path, step: Step) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(2**20):
            digest.update(block)
            step(len(block))
    return digest.hexdigest()


def tokenizer_files(plan: Plan) -> list[Path]:
    """What stands beside a LLaMA's weights. Raises WeightsError if its folder has no tokeniser."""
    if plan.decoder is None or _gguf(plan):
        return []
    folders = dict.fromkeys(file.parent for file in plan.decoder.tensors.files)
    for folder in folders:
        if any((folder / name).is_file() for name in TOKENIZERS):
            return [folder / name for name in BESIDE if (folder / name).is_file()]
    raise WeightsError(
        f"{plan.decoder.path}: got none of {', '.join(TOKENIZERS)}; copy the LLM's there"
    )


def _gguf(plan: Plan) -> Path | None:
    path = None if plan.decoder is None else plan.decoder.path
    return path if path is not None and path.suffix == ".gguf" else None


def _counter(total: int) -> Step:
    progress, done = Progress("converted MB", total // 10**6), 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        progress.show(done // 10**6)

    return step


def _require_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise WeightsError(
            f"{folder}: has {free / 1e9:.1f} GB free, the weights need {size / 1e9:.1f}; make room"
        )

"""Weights in the layouts that the original's parts were published in, of any size.

For trying out what reads such files where none are: random ones, or a trained model's.
"""

import dataclasses
import json
import math
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vljax.convert.torch_writer import save_torch
from vljax.convert.towers import expected, rules
from vljax.models.sizes import LlamaSize, VideoLlamaSize

# Whole-model names by the file they come in, and the prefix that the file itself does without.
FILES = {
    "eva_vit_g.pth": (("visual_encoder.",), "visual_encoder."),
    "blip2.pth": (("Qformer.", "ln_vision.", "query_tokens"), ""),
    "imagebind_huge.pth": (("audio_encoder.",), "audio_encoder."),
    "minigpt4.pth": (("llama_proj.",), ""),
    "vl.pth": (("video_", "llama_proj."), ""),
    "al.pth": (("audio_Q", "audio_query", "audio_position", "audio_llama_proj."), ""),
    "llama": (("llama_model.",), "llama_model."),
}
BARE = ("eva_vit_g.pth", "imagebind_huge.pth")  # without a {"model": ...} around


def torch_shapes(size: VideoLlamaSize) -> dict[str, tuple[int, ...]]:
    """The original's names and shapes of all that our model reads."""
    shapes = {}
    for rule in rules(size):
        hollow = np.broadcast_to(np.zeros(()), expected(size)[rule.name].shape)
        for source, x in rule.unbuild(hollow):
            shapes[source] = (x.shape[0] * rule.part[1], *x.shape[1:])
    return shapes


@dataclasses.dataclass(frozen=True)
class Random(Mapping[str, np.ndarray]):
    """Weights that depend on name and seed alone, made when they are looked up."""

    shapes: Mapping[str, tuple[int, ...]]
    dtype: Any = np.float32
    seed: int = 0

    def __getitem__(self, name: str) -> np.ndarray:
        shape = self.shapes[name]
        rng = np.random.default_rng((self.seed, zlib.crc32(name.encode())))
        x = rng.standard_normal(shape, np.float32)
        if len(shape) == 1 and name.endswith("weight"):
            return (1 + 0.2 * x).astype(self.dtype)
        return (x * (math.prod(shape[1:]) or 1) ** -0.5).astype(self.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def random_weights(size: VideoLlamaSize, dtype: Any = np.float32, seed: int = 0) -> Random:
    """All that a model of this size reads, and some of what its files hold besides."""
    width = size.vit.width
    extra = {
        f"visual_encoder.blocks.{size.vit.depth}.norm1.weight": (width,),
        "visual_encoder.head.weight": (3, width),
        "Qformer.bert.embeddings.word_embeddings.weight": (5, 4),
        "Qformer.bert.encoder.layer.0.intermediate.dense.weight": (4, 4),
        "Qformer.cls.predictions.bias": (5,),
        "audio_encoder.modality_trunks.text.blocks.0.norm_1.weight": (4,),
    }
    return Random(torch_shapes(size) | extra, dtype, seed)


def config_json(size: LlamaSize) -> dict[str, object]:
    return {
        "model_type": "llama",
        "vocab_size": size.vocab,
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "intermediate_size": size.mlp,
        "rms_norm_eps": size.eps,
        "rope_theta": size.rope_base,
        "tie_word_embeddings": size.tied,
    }


def write_published(
    folder: Path,
    weights: Mapping[str, np.ndarray],
    size: VideoLlamaSize,
    tokenizer: Path | None = None,
    kind: str = "safetensors",
    shards: int = 1,
) -> dict[str, Path]:
    """Writes every file whose tensors are in ``weights``; returns the paths by FILES' names."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for file, (prefixes, prefix) in FILES.items():
        names = [n for n in weights if n.startswith(prefixes)]
        if not names:
            continue
        paths[file] = folder / file
        pairs = ((n.removeprefix(prefix), weights[n]) for n in names)
        if file == "minigpt4.pth":  # the branch that was trained from it holds other values
            pairs = ((n, x * 2) for n, x in pairs)
        if file != "llama":
            save_torch(paths[file], pairs, None if file in BARE else "model")
            continue
        short = [n.removeprefix(prefix) for n in names]
        write_llama(paths[file], short, lambda n: weights["llama_model." + n], kind, shards)
        (paths[file] / "config.json").write_text(json.dumps(config_json(size.llama)))
        if tokenizer is not None:
            shutil.copyfile(tokenizer, paths[file] / "tokenizer.model")
    return paths


def write_llama(
    folder: Path, names: list[str], get: Callable[[str], np.ndarray], kind: str, shards: int
) -> None:
    """The weights of a Hugging Face folder, with an index if there are several shards."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    stem, end = ("model", ".safetensors") if kind == "safetensors" else ("pytorch_model", ".bin")
    where: dict[str, str] = {}
    for i in range(shards):
        part = f"-{i + 1:05}-of-{shards:05}" if shards > 1 else ""
        held = names[i::shards]
        where |= dict.fromkeys(held, f"{stem}{part}{end}")
        if kind == "safetensors":
            save_file(
                {n: np.ascontiguousarray(get(n)) for n in held}, folder / f"{stem}{part}{end}"
            )
        else:
            save_torch(folder / f"{stem}{part}{end}", ((n, get(n)) for n in held), None)
    if shards > 1:
        (folder / f"{stem}{end}.index.json").write_text(json.dumps({"weight_map": where}))

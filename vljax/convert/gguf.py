"""GGUF files of the LLaMA architecture, as Hugging Face's tensors, config and tokenizer.

Needs the package ``gguf``; dequantising is numpy's work.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from vljax.convert import vocabulary
from vljax.convert.readers import Entry, TensorInfo, Tensors
from vljax.store import WeightsError

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONFIG = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "intermediate_size": "feed_forward_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position_embeddings": "context_length",
}


def open_gguf(path: str | Path) -> Tensors:
    """The tensors of a GGUF file under Hugging Face's LLaMA names, dequantised when looked up.

    float16 and float32 tensors keep their dtype, all others become float32. ``metadata["config"]``
    is what ``config.json`` would say. Raises WeightsError for a file of another architecture, or
    one that can't be read.
    """
    path = Path(path)
    reader = _reader(path)
    stored = {t.name: t for t in reader.tensors}
    config = _config(path, reader, stored)
    entries = {}
    for name, tensor in stored.items():
        heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
        key = heads.get(name.split(".")[-2])
        read = functools.partial(_read, tensor, config[key] if key else 0)
        info = TensorInfo(tuple(int(n) for n in reversed(tensor.shape)), _dtype(tensor), path)
        entries[_name(path, name)] = Entry(info, read)
    return Tensors(entries, (path,), {"config": config})


def write_tokenizer(path: str | Path, out: str | Path) -> None:
    """Writes a GGUF file's vocabulary as ``tokenizer.json`` and ``tokenizer_config.json``.

    ``out`` is a folder. Raises WeightsError for a kind of vocabulary that is not known.
    """
    path = Path(path)
    reader = _reader(path)
    get = functools.partial(_field, path, reader)
    pieces, kinds = get("tokenizer.ggml.tokens"), get("tokenizer.ggml.token_type")
    kind, split = get("tokenizer.ggml.model"), get("tokenizer.ggml.pre", "default")
    if (kind, split) == ("gpt2", "smollm"):
        model = vocabulary.byte_level(pieces, kinds, get("tokenizer.ggml.merges"))
    elif kind == "llama":
        model = vocabulary.sentencepiece_bpe(pieces, kinds, get("tokenizer.ggml.scores"))
    else:
        raise WeightsError(
            f"{path}: got a vocabulary of kind {kind} with words split as {split}, expected llama, "
            "or gpt2 split as smollm; put the model's own tokenizer.json in the folder instead"
        )
    kept = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {k: get(f"tokenizer.ggml.{name}_token_id", -1) for k, name in kept.items()}
    names = {k: pieces[i] for k, i in ids.items() if i >= 0}
    add_bos = get("tokenizer.ggml.add_bos_token", kind == "llama")
    vocabulary.write(model, names, bool(add_bos), out)


def _reader(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise WeightsError(f"{path}: needs the package gguf; pip install gguf") from error
    try:
        return GGUFReader(str(path))
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise WeightsError(f"{path}: can't be read as GGUF ({error}); download it anew") from error


def _field(path: Path, reader: Any, name: str, default: Any = None) -> Any:
    """A value of the file's header. Raises WeightsError where it has none, nor a default."""
    field = reader.get_field(name)
    value = default if field is None else field.contents()
    if value is None:
        raise WeightsError(f"{path}: its header lacks {name}; download it anew")
    return value


def _config(path: Path, reader: Any, stored: dict[str, Any]) -> dict[str, Any]:
    """The header as a Hugging Face ``config.json`` would put it."""
    get = functools.partial(_field, path, reader)
    if (kind := get("general.architecture")) != "llama":
        raise WeightsError(f"{path}: holds a {kind} model, expected a llama one")
    scaled = get("llama.rope.scaling.type", "none")
    if scaled != "none" or "rope_freqs.weight" in stored:
        raise WeightsError(f"{path}: has scaled rotary positions, expected plain ones as LLaMA's")
    config: dict[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    config["num_key_value_heads"] = get("llama.attention.head_count")  # unless it says otherwise
    for ours, theirs in CONFIG.items():
        config[ours] = get(f"llama.{theirs}", config.get(ours))
    if "token_embd.weight" not in stored:
        raise WeightsError(f"{path}: lacks token_embd.weight; name a file with the whole model")
    return config | {
        "rms_norm_eps": _shortest(config["rms_norm_eps"]),
        "rope_theta": _shortest(get("llama.rope.freq_base", 10000.0)),
        "vocab_size": int(stored["token_embd.weight"].shape[1]),
        "tie_word_embeddings": "output.weight" not in stored,
    }


def _shortest(value: float) -> float:
    """The decimal number that was meant by a float32."""
    return float(str(np.float32(value)))


def _name(path: Path, name: str) -> str:
    """ "blk.3.attn_q.weight" -> "model.layers.3.self_attn.q_proj.weight"."""
    *layer, part, kind = name.split(".")
    if part not in NAMES or kind != "weight":
        raise WeightsError(f"{path}: holds {name}, which no llama model has; is it another's?")
    if layer:
        return f"model.layers.{layer[1]}.{NAMES[part]}.weight"
    return f"{NAMES[part]}.weight"


def _dtype(tensor: Any) -> np.dtype:
    kind = tensor.tensor_type.name
    return np.dtype(np.float16 if kind == "F16" else np.float32)


def _read(tensor: Any, heads: int) -> np.ndarray:
    """Dequantised; ``heads`` of a query or key projection, whose rows GGUF interleaves, else 0.

    A head's rows come as pairs (0, K/2), (1, K/2 + 1), ..., for another rotary layout.
    """
    from gguf import dequantize

    if tensor.tensor_type.name in ("F16", "F32"):
        x = np.array(tensor.data)  # a copy, which outlives the mapped file
    else:
        x = dequantize(tensor.data, tensor.tensor_type)
    if heads:
        x = x.reshape(heads, -1, 2, x.shape[-1]).swapaxes(1, 2).reshape(x.shape)
    return x

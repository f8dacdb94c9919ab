"""Hugging Face's ``generate`` in PyTorch, for a language model's weights as ours are."""

import os
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vljax.bench.generate import Turn
from vljax.bench.hugging_face import frozen, language_model
from vljax.models.sizes import LlamaSize
from vljax.nn.layers import JOINED
from vljax.store import Tree

NAMES = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


class Theirs:
    """``llama``: our parameters, layers apart; without, weights are random."""

    ours = False

    def __init__(self, size: LlamaSize, dtype: str, llama: Tree | None = None):
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.dtype = dtype
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = frozen(language_model(size), self.device, getattr(torch, dtype))
        self.model.tie_weights()
        if llama is not None:
            self.model.load_state_dict(state_of(llama), strict=not size.tied)
        self.model.generation_config.eos_token_id = None

    def turn(self, tokens: np.ndarray, new: int) -> Turn:
        import torch

        ids = torch.from_numpy(tokens).long().to(self.device)
        first, _ = self._timed(ids, 1)
        whole, out = self._timed(ids, new)
        return Turn(first, whole - first, out[:, tokens.shape[1] :])

    def _timed(self, ids: Any, new: int) -> tuple[float, np.ndarray]:
        import torch

        mask = torch.ones_like(ids)
        began = time.perf_counter()
        with torch.inference_mode():
            out = self.model.generate(
                ids, attention_mask=mask, do_sample=False, max_new_tokens=new, pad_token_id=0
            )
        said = out.cpu().numpy()  # waits for the device
        return time.perf_counter() - began, said


def state_of(llama: Tree) -> dict[str, Any]:
    """Our language model's parameters under Hugging Face's names."""
    import torch

    def tensor(x: jax.Array) -> Any:
        return torch.from_numpy(np.array(x, np.float32))

    def columns(dense: Tree) -> Any:
        return tensor(dense["turned"]) if "turned" in dense else tensor(dense["kernel"]).T

    state = {
        "model.embed_tokens.weight": tensor(llama["tokens"]["embedding"]),
        "model.norm.weight": tensor(llama["norm"]["scale"]),
    }
    if "head" in llama:
        state["lm_head.weight"] = columns(llama["head"])
    for i, layer in llama["layers"].items():
        parts = {n: layer[n]["scale"] for n in ("attention_norm", "mlp_norm")}
        state |= {f"model.layers.{i}.{NAMES[n]}.weight": tensor(x) for n, x in parts.items()}
        kernels = {n: columns(x) for n, x in (layer["attention"] | layer["mlp"]).items()}
        for whole in JOINED.keys() & kernels.keys():
            kernels |= parted(kernels.pop(whole), JOINED[whole], kernels["out"].shape[1])
        state |= {f"model.layers.{i}.{NAMES[n]}.weight": x for n, x in kernels.items()}
    return state


def parted(rows: Any, names: Sequence[str], width: int) -> dict[str, Any]:
    """What was joined: equal parts, or queries of so many rows and equal keys and values."""
    if len(names) == 2:
        return dict(zip(names, rows.split(len(rows) // 2), strict=True))
    rest = (len(rows) - width) // 2
    return dict(zip(names, rows.split([width, rest, rest]), strict=True))

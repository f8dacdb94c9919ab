"""The same step by others: transformers' BLIP-2 and LLaMA in PyTorch, frozen in the same way."""

import contextlib
import os
import resource
from typing import Any

from vljax.bench.train import PYTORCH, RATES, Case, Measurement, Step, make_batch, timed
from vljax.models.eva_vit import MEAN, STD
from vljax.models.sizes import LlamaSize, QFormerSize, ViTSize


def theirs(case: Case, steps: int) -> Measurement:
    """Eager PyTorch with its fused attention; on a GPU in bfloat16."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    gpu = torch.cuda.is_available()
    try:
        seconds = timed(make_step(case, "cuda" if gpu else "cpu"), steps)
    except RuntimeError as error:  # out of memory among them
        return Measurement(PYTORCH, failed=str(error).strip().splitlines()[0][:200])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Measurement(
        PYTORCH,
        seconds,
        torch.cuda.max_memory_allocated() if gpu else memory,
        torch.cuda.get_device_name() if gpu else "cpu",
    )


def make_step(case: Case, device: str) -> Step:
    """Frames through what is frozen, the Video Q-Former and a projection trained by AdamW."""
    import torch

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    size, batch = case.model, make_batch(case)
    vit, qformer, llama = (
        frozen(kind, device, dtype)
        for kind in (vision_model(size.vit), q_former(size.qformer), language_model(size.llama))
    )
    video_qformer = built(*q_former(size.video_qformer), device, torch.float32).train()
    width, rows = size.qformer.width, size.video_qformer.queries
    with torch.device(device):
        proj = torch.nn.Linear(width, size.llama.width)
        queries = 0.02 * torch.randn(1, size.qformer.queries, width, dtype=dtype)
        video_queries = torch.nn.Parameter(0.02 * torch.randn(1, rows, width))
        positions = torch.nn.Parameter(torch.randn(size.max_frames, 1, width))
    trained = [*video_qformer.parameters(), *proj.parameters(), video_queries, positions]
    optimizer = torch.optim.AdamW(
        trained, RATES.peak_lr, (RATES.b1, RATES.b2), RATES.eps, RATES.weight_decay
    )
    frames, tokens, labels, mask = (
        torch.from_numpy(batch[name]).to(device) for name in ("frames", "tokens", "labels", "mask")
    )
    mean, std = (torch.tensor(x, device=device) for x in (MEAN, STD))
    labels, tokens = labels.long(), torch.where(tokens < size.llama.vocab, tokens, 0).long()
    half: Any = contextlib.nullcontext()
    if device == "cuda":
        half = torch.autocast("cuda", dtype)

    def frame_tokens() -> Any:
        pixels = ((frames.float() / 255 - mean) / std).flatten(0, 1).permute(0, 3, 1, 2)
        patches = vit(pixel_values=pixels.to(dtype)).last_hidden_state
        spread = queries.expand(len(patches), -1, -1)
        return qformer(query_embeds=spread, encoder_hidden_states=patches).last_hidden_state

    def loss() -> Any:
        with torch.no_grad():
            seen = frame_tokens().unflatten(0, frames.shape[:2])
            embeddings = llama.get_input_embeddings()(tokens)
        seen = (seen + positions[: case.frames]).flatten(1, 2)
        spread = video_queries.expand(case.batch, -1, -1)
        read = video_qformer(query_embeds=spread, encoder_hidden_states=seen).last_hidden_state
        before, after = embeddings[:, :1], embeddings[:, 1 + rows :]
        spliced = torch.cat([before, proj(read).to(dtype), after], dim=1)
        out = llama(inputs_embeds=spliced, attention_mask=mask, labels=labels, use_cache=False)
        return out.loss

    def step() -> float:
        with half:
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        return value.item()  # waits for the device

    return step


def vision_model(s: ViTSize) -> tuple[Any, Any]:
    """A class and its config."""
    from transformers import Blip2VisionConfig, Blip2VisionModel

    return Blip2VisionModel, Blip2VisionConfig(
        hidden_size=s.width,
        intermediate_size=s.mlp,
        num_hidden_layers=s.depth,
        num_attention_heads=s.heads,
        image_size=s.image,
        patch_size=s.patch,
    )


def q_former(s: QFormerSize) -> tuple[Any, Any]:
    from transformers import Blip2QFormerConfig, Blip2QFormerModel

    return Blip2QFormerModel, Blip2QFormerConfig(
        hidden_size=s.width,
        num_hidden_layers=s.depth,
        num_attention_heads=s.heads,
        intermediate_size=s.mlp,
        cross_attention_frequency=s.cross_every,
        encoder_hidden_size=s.encoder_width,
        hidden_dropout_prob=s.dropout,
        attention_probs_dropout_prob=s.dropout,
    )


def language_model(s: LlamaSize) -> tuple[Any, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM, LlamaConfig(
        vocab_size=s.vocab,
        hidden_size=s.width,
        intermediate_size=s.mlp,
        num_hidden_layers=s.depth,
        num_attention_heads=s.heads,
        num_key_value_heads=s.kv_heads,
        rms_norm_eps=s.eps,
        rope_parameters={"rope_type": "default", "rope_theta": s.rope_base},
        tie_word_embeddings=s.tied,
    )


def built(kind: Any, config: Any, device: str, dtype: Any) -> Any:
    """With random weights, without the libraries' own slow way of drawing them."""
    import torch
    from transformers.initialization import no_init_weights

    config._attn_implementation = "sdpa"
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), no_init_weights():
            model = kind(config)
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.fill_(1)
            else:
                parameter.uniform_(-0.03, 0.03)
    return model


def frozen(kind: tuple[Any, Any], device: str, dtype: Any) -> Any:
    return built(*kind, device, dtype).eval().requires_grad_(False)

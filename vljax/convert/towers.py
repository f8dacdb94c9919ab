"""The tables: which torch tensor of the original becomes which of our parameters.

Torch names are those of the original's whole model (``visual_encoder.``, ``Qformer.``,
``llama_model.``, ...); a reader of one tower's own file adds that prefix.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vljax.convert.mapping import Coverage, Rule, cover, stream, unstream
from vljax.models.sizes import LlamaSize, QFormerSize, VideoLlamaSize, VisionTowerSize
from vljax.models.video_llama import abstract_parameters
from vljax.store import is_under

SOUND_SCALE = "audio_encoder.modality_postprocessors.audio.1.log_logit_scale"


def to_vljax(
    tensors: Mapping[str, np.ndarray], size: VideoLlamaSize, parts: Sequence[str] | None = None
) -> tuple[dict, Coverage]:
    """Torch-named tensors -> (nested params, coverage); dtypes are kept, nothing is invented.

    A parameter that lacks a source is left out and reported as missing: call
    ``coverage.require_complete()`` where all are needed. ``parts`` as in ``rules``.
    Raises ValueError for a shape that ``size`` does not have.
    """
    table = rules(size, parts)
    shapes = {name: x.shape for name, x in expected(size).items()}
    check_sound_scale(tensors, size)
    params = {}
    for name, value in stream(tensors, table):
        if value.shape != shapes[name]:
            raise ValueError(
                f"{name}: got shape {value.shape}, expected {shapes[name]} for size {size.name};"
                " choose the size that this checkpoint was trained with"
            )
        params[name] = value
    return unflatten_dict(params, sep="/"), cover(tensors.keys(), table, droppable(size))


def to_torch(params: Mapping, size: VideoLlamaSize) -> dict[str, np.ndarray]:
    """Nested params, or a part of them (the trainable ones, say) -> torch-named tensors.

    The exact inverse of ``to_vljax``: what that loaded comes back byte for byte.
    """
    flat = flatten_dict(nn.meta.unbox(dict(params)), sep="/")
    return unstream(flat, rules(size))


@functools.lru_cache(maxsize=8)
def expected(size: VideoLlamaSize) -> dict[str, jax.ShapeDtypeStruct]:
    """Slash name -> shape and dtype of every parameter, without allocating any."""
    flat = flatten_dict(abstract_parameters(size), sep="/")
    return {name: nn.meta.unbox(leaf) for name, leaf in flat.items()}


def rules(size: VideoLlamaSize, parts: Sequence[str] | None = None) -> list[Rule]:
    """One rule for each parameter of a model of this size.

    ``parts`` keeps those under any of these slash prefixes, such as "llama" or "frame_encoder/vit".
    Raises ValueError for a part that holds no parameter.
    """
    table = [
        *_vit("frame_encoder/vit", "visual_encoder", size.vit.depth),
        *_norm("frame_encoder/ln_vision", "ln_vision"),
        *_qformer("frame_encoder/qformer", "", size.qformer),
        Rule("frame_position/embedding", ("video_frame_position_embedding.weight",)),
        *_qformer("video_qformer", "video_", size.video_qformer),
        *_dense("video_proj", "llama_proj"),
        *_imagebind_vision(size.imagebind.vision),
        *_imagebind_sound(size.imagebind.sound.depth),
        Rule("audio_position/embedding", ("audio_position_embedding.weight",)),
        *_qformer("audio_qformer", "audio_", size.audio_qformer),
        *_dense("audio_proj", "audio_llama_proj"),
        *_llama("llama", "llama_model", size.llama),
    ]
    if parts is None:
        return table
    for part in parts:
        if not any(is_under(rule.name, (part,)) for rule in table):
            raise ValueError(f"parts: got {part!r}, expected a prefix such as 'llama'")
    return [rule for rule in table if is_under(rule.name, tuple(parts))]


def droppable(size: VideoLlamaSize) -> list[str]:
    """Regexes of torch names that the original's files hold and that this model has no use for."""
    bert = r"^(video_|audio_)?Qformer\."
    patterns = [
        r"\.position_ids$",
        r"\.rotary_emb\.inv_freq$",
        r"\.log_logit_scale$",
        r"^t5_proj\.",
        bert + r"cls\.",
        bert + r"bert\.embeddings\.(word|position)_embeddings\.",
        bert + r"bert\.encoder\.layer\.\d+\.(intermediate|output)\.",  # the text FFN
        # EVA's last block, norm and head: the original does not build them.
        rf"^visual_encoder\.blocks\.{size.vit.depth}\.",
        r"^visual_encoder\.((norm|fc_norm|head|lm_head)\.|mask_token$)",
        r"^audio_encoder\.modality_\w+\.(text|depth|thermal|imu)\.",
    ]
    return [*patterns, r"^llama_model\.lm_head\."] if size.llama.tied else patterns


def check_sound_scale(tensors: Mapping[str, np.ndarray], size: VideoLlamaSize) -> None:
    """The scale is a buffer in the original and a number of the size here: they must agree."""
    if SOUND_SCALE in tensors:
        scale = min(np.exp(np.asarray(tensors[SOUND_SCALE], np.float32)).item(), 100.0)
        if abs(scale - size.imagebind.sound.norm) > 0.01 * scale:
            raise ValueError(
                f"{SOUND_SCALE}: got a scale of {scale:g}, expected {size.imagebind.sound.norm:g};"
                " set the sound tower's norm to it"
            )


Layers = Sequence[int] | None  # torch indices along our "layers" axis; None: not stacked


def _rule(
    ours: str, theirs: str, how: str = "same", layers: Layers = None, part: tuple[int, int] = (0, 1)
) -> Rule:
    """``theirs`` holds ``{}`` for the layer when ``layers`` are given."""
    if layers is None:
        return Rule(ours, (theirs,), how, part)
    return Rule(ours, tuple(theirs.format(i) for i in layers), how, part, stacked=True)


def _dense(ours: str, theirs: str, layers: Layers = None) -> Iterator[Rule]:
    yield _rule(f"{ours}/kernel", f"{theirs}.weight", "transpose", layers)
    yield _rule(f"{ours}/bias", f"{theirs}.bias", "same", layers)


def _norm(ours: str, theirs: str, layers: Layers = None) -> Iterator[Rule]:
    yield _rule(f"{ours}/scale", f"{theirs}.weight", "same", layers)
    yield _rule(f"{ours}/bias", f"{theirs}.bias", "same", layers)


def _fused_kernels(ours: str, theirs: str, layers: Layers) -> Iterator[Rule]:
    for i, name in enumerate(("query", "key", "value")):
        yield _rule(f"{ours}/{name}/kernel", theirs, "transpose", layers, (i, 3))


def _vit(ours: str, theirs: str, depth: int) -> Iterator[Rule]:
    """EVA: one fused qkv weight, no key bias, query and value biases of their own."""
    yield _rule(f"{ours}/class_token", f"{theirs}.cls_token", "vector")
    yield _rule(f"{ours}/position/embedding", f"{theirs}.pos_embed", "rows")
    yield _rule(f"{ours}/patch/kernel", f"{theirs}.patch_embed.proj.weight", "conv2d")
    yield _rule(f"{ours}/patch/bias", f"{theirs}.patch_embed.proj.bias")
    layers, block, to = range(depth), f"{theirs}.blocks.{{}}", f"{ours}/layers"
    yield from _fused_kernels(f"{to}/attention", f"{block}.attn.qkv.weight", layers)
    yield _rule(f"{to}/attention/query/bias", f"{block}.attn.q_bias", "same", layers)
    yield _rule(f"{to}/attention/value/bias", f"{block}.attn.v_bias", "same", layers)
    yield from _dense(f"{to}/attention/out", f"{block}.attn.proj", layers)
    for name in ("norm1", "norm2"):
        yield from _norm(f"{to}/{name}", f"{block}.{name}", layers)
    for name in ("fc1", "fc2"):
        yield from _dense(f"{to}/mlp/{name}", f"{block}.mlp.{name}", layers)


def _qformer(ours: str, prefix: str, size: QFormerSize) -> Iterator[Rule]:
    """Whole groups of ``cross_every`` layers are stacked; what remains is ``tail``."""
    bert = f"{prefix}Qformer.bert"
    yield _rule(f"{ours}/queries", f"{prefix}query_tokens", "rows")
    yield from _norm(f"{ours}/norm", f"{bert}.embeddings.LayerNorm")
    every = size.cross_every
    grouped = size.depth - size.depth % every
    for i in range(every if grouped else 0):
        layers = range(i, grouped, every)
        yield from _bert(f"{ours}/groups/layer_{i}", f"{bert}.encoder.layer.{{}}", i == 0, layers)
    for i in range(size.depth - grouped):
        theirs = f"{bert}.encoder.layer.{grouped + i}"
        yield from _bert(f"{ours}/tail/layer_{i}", theirs, i == 0, None)


def _bert(ours: str, theirs: str, cross: bool, layers: Layers) -> Iterator[Rule]:
    attentions = {"attention": "attention", "cross_attention": "crossattention"}
    for to, source in attentions.items() if cross else [("attention", "attention")]:
        for name in ("query", "key", "value"):
            yield from _dense(f"{ours}/{to}/{name}", f"{theirs}.{source}.self.{name}", layers)
        yield from _dense(f"{ours}/{to}/out", f"{theirs}.{source}.output.dense", layers)
        yield from _norm(f"{ours}/{to}_norm", f"{theirs}.{source}.output.LayerNorm", layers)
    yield from _dense(f"{ours}/fc1", f"{theirs}.intermediate_query.dense", layers)
    yield from _dense(f"{ours}/fc2", f"{theirs}.output_query.dense", layers)
    yield from _norm(f"{ours}/mlp_norm", f"{theirs}.output_query.LayerNorm", layers)


def _imagebind_vision(size: VisionTowerSize) -> Iterator[Rule]:
    ours, stem = "imagebind/vision", "audio_encoder.modality_preprocessors.vision"
    trunk = "audio_encoder.modality_trunks.vision"
    # A stem without a time axis (tiny's) is a plain convolution.
    kernel = "conv3d" if size.temporal > 1 else "conv2d"
    yield _rule(f"{ours}/stem/kernel", f"{stem}.rgbt_stem.proj.1.weight", kernel)
    yield from _norm(f"{ours}/norm", f"{trunk}.pre_transformer_layer.0")
    yield from _imagebind_tower(ours, "vision", size.depth)


def _imagebind_sound(depth: int) -> Iterator[Rule]:
    ours, stem = "imagebind/sound", "audio_encoder.modality_preprocessors.audio.rgbt_stem"
    yield _rule(f"{ours}/stem/kernel", f"{stem}.proj.weight", "conv2d")
    yield from _norm(f"{ours}/stem_norm", f"{stem}.norm_layer")
    block = "audio_encoder.modality_trunks.audio.blocks.{}"
    for name in ("bias_k", "bias_v"):
        to = f"{ours}/layers/attention/{name}"
        yield _rule(to, f"{block}.attn.{name}", "vector", range(depth))
    yield from _imagebind_tower(ours, "audio", depth)


def _imagebind_tower(ours: str, modality: str, depth: int) -> Iterator[Rule]:
    """What both modalities share: torch's fused in_proj in q|k|v order, weight and bias."""
    stem = f"audio_encoder.modality_preprocessors.{modality}"
    head = f"audio_encoder.modality_heads.{modality}"
    yield _rule(f"{ours}/class_token", f"{stem}.cls_token", "vector")
    yield _rule(f"{ours}/position/embedding", f"{stem}.pos_embedding_helper.pos_embed", "rows")
    yield from _norm(f"{ours}/head/norm", f"{head}.0")
    yield _rule(f"{ours}/head/proj/kernel", f"{head}.2.weight", "transpose")
    layers, to = range(depth), f"{ours}/layers"
    block = f"audio_encoder.modality_trunks.{modality}.blocks.{{}}"
    yield from _fused_kernels(f"{to}/attention", f"{block}.attn.in_proj_weight", layers)
    for i, name in enumerate(("query", "key", "value")):
        bias = f"{to}/attention/{name}/bias"
        yield _rule(bias, f"{block}.attn.in_proj_bias", "same", layers, (i, 3))
    yield from _dense(f"{to}/attention/out", f"{block}.attn.out_proj", layers)
    for i in (1, 2):
        yield from _norm(f"{to}/norm{i}", f"{block}.norm_{i}", layers)
        yield from _dense(f"{to}/mlp/fc{i}", f"{block}.mlp.fc{i}", layers)


def _llama(ours: str, theirs: str, size: LlamaSize) -> Iterator[Rule]:
    """Hugging Face's names; its rotary layout is ours, so heads are not permuted."""
    yield _rule(f"{ours}/tokens/embedding", f"{theirs}.model.embed_tokens.weight")
    yield _rule(f"{ours}/norm/scale", f"{theirs}.model.norm.weight")
    if not size.tied:
        yield _rule(f"{ours}/head/kernel", f"{theirs}.lm_head.weight", "transpose")
    layers, layer, to = range(size.depth), f"{theirs}.model.layers.{{}}", f"{ours}/layers"
    norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    for name, source in norms.items():
        yield _rule(f"{to}/{name}/scale", f"{layer}.{source}.weight", "same", layers)
    kernels = {
        **{f"attention/{n}": f"self_attn.{n[0]}_proj" for n in ("query", "key", "value", "out")},
        **{f"mlp/{n}": f"mlp.{n}_proj" for n in ("gate", "up", "down")},
    }
    for name, source in kernels.items():
        yield _rule(f"{to}/{name}/kernel", f"{layer}.{source}.weight", "transpose", layers)

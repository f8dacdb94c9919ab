"""The published files: which one is this, what belongs in it, what are its names in the model.

A layout adds the prefix that its tensors have in the original's whole model, whose names the
tables of ``towers`` know.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vljax.convert.mapping import Rule
from vljax.convert.readers import Tensors
from vljax.models.sizes import LlamaSize
from vljax.store import WeightsError, is_under

# What comes and goes together: a unit is whole or absent. Prefixes of our names.
UNITS: dict[str, tuple[str, ...]] = {
    "vit": ("frame_encoder/vit",),
    "image Q-Former": ("frame_encoder/ln_vision", "frame_encoder/qformer"),
    "video Q-Former": ("frame_position", "video_qformer"),
    "video projection": ("video_proj",),
    "ImageBind": ("imagebind",),
    "audio Q-Former": ("audio_position", "audio_qformer"),
    "audio projection": ("audio_proj",),
    "LLaMA": ("llama",),
}

# The original saves what it trained and the buffers of all towers, trained in that run or not.
BUFFERS = (".position_ids", ".inv_freq", ".log_logit_scale", ".mask")


@dataclasses.dataclass(frozen=True)
class Layout:
    """A kind of published file.

    Attributes:
      name: its short name. title: what people call it.
      marks: prefixes of names of parameters, each of which only this kind has (of those behind it
        in LAYOUTS).
      prefix: of its names in the whole model.
      units: keys of UNITS that such a file must hold.
      order: when it is loaded; of what two files hold, the one of higher order stays.
    """

    name: str
    title: str
    marks: tuple[str, ...]
    prefix: str
    units: tuple[str, ...]
    order: int


LAYOUTS = (
    Layout(
        "llama",
        "a LLaMA model",
        ("model.layers.", "model.embed_tokens."),  # an lm_head is in some of EVA's files, too
        "llama_model.",
        ("LLaMA",),
        2,
    ),
    Layout("imagebind", "ImageBind", ("modality_trunks.",), "audio_encoder.", ("ImageBind",), 4),
    Layout(
        "video_llama_vl",
        "Video-LLaMA's vision branch",
        ("video_Qformer.", "video_query_tokens"),
        "",
        ("video Q-Former", "video projection"),
        5,
    ),
    Layout(
        "video_llama_al",
        "Video-LLaMA's audio branch",
        ("audio_Qformer.", "audio_query_tokens"),
        "",
        ("audio Q-Former", "audio projection"),
        6,
    ),
    Layout("blip2", "BLIP-2", ("Qformer.",), "", ("image Q-Former",), 1),
    Layout("eva_vit_g", "EVA-CLIP's ViT", ("blocks.0.attn.",), "visual_encoder.", ("vit",), 0),
    Layout("minigpt4", "MiniGPT-4's projection", ("llama_proj.",), "", ("video projection",), 3),
)


def identify(path: str | Path, tensors: Tensors) -> Layout:
    """The kind of file, by its names. Raises WeightsError for one that none of them is."""
    parameters = [name for name in tensors if not name.endswith(BUFFERS)]
    for layout in LAYOUTS:
        if any(name.startswith(layout.marks) for name in parameters):
            return layout
    some = ", ".join(list(tensors)[:3])
    kinds = ", ".join(layout.title for layout in LAYOUTS)
    raise WeightsError(f"{path}: got tensors such as {some}, expected one of {kinds}")


def as_whole(layout: Layout, tensors: Tensors) -> Tensors:
    """The tensors under their names in the original's whole model."""
    return tensors.renamed(layout.prefix)


def unit_of(rule: Rule) -> str:
    """The key of UNITS that a rule's parameter belongs to."""
    for unit, prefixes in UNITS.items():
        if is_under(rule.name, tuple(prefixes)):
            return unit
    raise AssertionError(f"{rule.name} is in no unit")


def touched(names: Mapping[str, Any], table: Sequence[Rule]) -> set[str]:
    """Units of which at least one tensor is there."""
    return {unit_of(rule) for rule in table if any(source in names for source in rule.sources)}


def decoder_size(config: Mapping[str, Any], where: str | Path = "config.json") -> LlamaSize:
    """The decoder that a Hugging Face ``config.json`` describes.

    Raises WeightsError for an architecture that ours can't be, naming the field.
    """
    try:
        width, depth = int(config["hidden_size"]), int(config["num_hidden_layers"])
        heads, mlp = int(config["num_attention_heads"]), int(config["intermediate_size"])
        vocab = int(config["vocab_size"])
    except KeyError as error:
        raise WeightsError(f"{where}: lacks {error}, expected a LLaMA model's config") from error
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{where}: {error}; expected whole numbers for its sizes") from error
    wanted = {
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "head_dim": width // heads,
    }
    for field, value in wanted.items():
        if config.get(field) not in (None, value):
            raise WeightsError(
                f"{where}: {field} is {config[field]!r}, expected {value!r}; "
                "only plain LLaMA decoders can be used"
            )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise WeightsError(f"{where}: rope of type {kind!r}, expected 'default', unscaled")
    return LlamaSize(
        vocab=vocab,
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        mlp=mlp,
        eps=float(config.get("rms_norm_eps", 1e-6)),
        rope_base=float(config.get("rope_theta") or rope.get("rope_theta", 10000.0)),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def projection_width(tensors: Tensors) -> int | None:
    """How wide an LLM the file's projection is for, whole-model names; None if it has none."""
    for name in ("llama_proj.weight", "audio_llama_proj.weight"):
        if name in tensors:
            return tensors.info(name).shape[0]
    return None

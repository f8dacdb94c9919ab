"""Files are told apart by their names, decoders by their config.json."""

from pathlib import Path

import pytest

from vljax.convert.layouts import UNITS, decoder_size, identify, unit_of
from vljax.convert.readers import Tensors
from vljax.convert.towers import rules
from vljax.models.sizes import LLAMA_7B, SMOLLM2_135M, TINY, LlamaSize
from vljax.store import WeightsError

LLAMA = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("blocks.0.attn.q_bias", "eva_vit_g"),
        ("Qformer.bert.embeddings.LayerNorm.bias", "blip2"),
        ("modality_trunks.vision.blocks.0.attn.in_proj_bias", "imagebind"),
        ("model.layers.0.mlp.up_proj.weight", "llama"),
        ("llama_proj.bias", "minigpt4"),
        ("video_Qformer.bert.embeddings.LayerNorm.bias", "video_llama_vl"),
        ("audio_query_tokens", "video_llama_al"),
    ],
)
def test_identify(name, kind):
    # ImageBind's buffers lie in files of the audio branch, a projection in those of the visual one.
    others = {"video_llama_vl": "llama_proj.bias", "video_llama_al": "audio_encoder.a"}
    tensors = Tensors(dict.fromkeys([others.get(kind, name), name]), ())
    assert identify(Path("a.pth"), tensors).name == kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llama_proj.weight", "minigpt4"),
        ("video_query_tokens", "video_llama_vl"),
        ("audio_llama_proj.weight", "video_llama_al"),
    ],
)
def test_buffers_of_other_towers_make_no_kind(name, kind):
    # What a training run saves: its parameters, and the buffers of all towers there were.
    buffers = (
        "Qformer.bert.embeddings.position_ids",
        "video_Qformer.bert.embeddings.position_ids",
        "audio_Qformer.bert.embeddings.position_ids",
        "llama_model.model.layers.0.self_attn.rotary_emb.inv_freq",
        "audio_encoder.modality_preprocessors.text.mask",
    )
    also = ["audio_query_tokens"] if kind == "video_llama_al" else []
    tensors = Tensors(dict.fromkeys([*buffers, *also, name]), ())
    assert identify(Path("a.pth"), tensors).name == kind


def test_an_eva_with_a_head_is_no_llama():
    tensors = Tensors(dict.fromkeys(["lm_head.weight", "blocks.0.attn.q_bias"]), ())
    assert identify(Path("a.pth"), tensors).name == "eva_vit_g"


def test_a_stranger_is_told_what_it_holds():
    with pytest.raises(WeightsError, match=r"a\.pth: got tensors such as fc\.weight, expected one"):
        identify(Path("a.pth"), Tensors({"fc.weight": None}, ()))


def test_every_parameter_is_in_one_unit():
    assert {unit_of(rule) for rule in rules(TINY)} == set(UNITS)


def test_decoder_of_old_and_new_configs():
    assert decoder_size(LLAMA) == LLAMA_7B
    assert decoder_size(LLAMA | {"rms_norm_eps": 1e-5}).eps == 1e-5
    new = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    assert decoder_size(LLAMA | new).rope_base == 5e5
    smol = {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
    }
    assert decoder_size(smol) == SMOLLM2_135M
    assert isinstance(decoder_size(smol), LlamaSize)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral', expected 'llama'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"head_dim": 64}, "head_dim is 64, expected 128"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope of type 'linear'"),
    ],
)
def test_decoders_that_ours_is_not(change, told):
    with pytest.raises(WeightsError, match=told):
        decoder_size(LLAMA | change, "x/config.json")


def test_a_config_that_misstates_a_field():
    with pytest.raises(WeightsError, match=r"^config\.json: .*'many'; expected whole numbers"):
        decoder_size(LLAMA | {"num_attention_heads": "many"})


def test_a_config_that_lacks_a_field():
    with pytest.raises(WeightsError, match=r"c\.json: lacks 'hidden_size'"):
        decoder_size({}, "c.json")

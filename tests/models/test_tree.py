"""The parameter tree: counts of the real sizes, names, axes, and the way from torch and back."""

import dataclasses
import math
import re

import ml_dtypes
import numpy as np
import pytest
from flax.linen import LogicallyPartitioned
from flax.traverse_util import flatten_dict

from vljax.convert.towers import droppable, expected, rules, to_torch, to_vljax
from vljax.models.sizes import TINY, video_llama_size
from vljax.models.video_llama import abstract_parameters

PREFIXES = {
    "vision trainable": ("video_qformer/", "frame_position/", "video_proj/"),
    "audio trainable": ("audio_qformer/", "audio_position/", "audio_proj/"),
}
COMMON = {
    "frame_encoder/vit": 985_894_528,
    "frame_encoder/ln_vision": 2_816,
    "frame_encoder/qformer/queries": 24_576,
    "frame_encoder/qformer/groups": 105_137_664 - 2 * 768,
    "frame_encoder/qformer/norm": 2 * 768,
    "frame_position": 24_576,
    "video_qformer/queries": 24_576,
    "video_qformer": 18_905_088 + 24_576,
    "imagebind/sound": 86_235_648,
    "imagebind/vision": 632_829_440,
    "audio_qformer/queries": 6_144,
    "audio_qformer": 19_691_520 + 6_144,
    "audio_position": 8_192,
}
COUNTS = {
    "7b": {
        "video_proj": 3_149_824,
        "audio_proj": 3_149_824,
        "llama": 6_738_415_616,
        "vision trainable": 22_104_064,
        "audio trainable": 22_855_680,
    },
    "13b": {
        "video_proj": 3_937_280,
        "audio_proj": 3_937_280,
        "llama": 13_015_864_320,
        "vision trainable": 22_891_520,
        "audio trainable": 23_643_136,
    },
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_to_the_last_digit(name):
    shapes = {n: x.shape for n, x in expected(video_llama_size(name)).items()}

    def count(component: str) -> int:
        prefixes = PREFIXES.get(component, (component + "/",))
        return sum(
            math.prod(shape)
            for n, shape in shapes.items()
            if n == component or n.startswith(prefixes)
        )

    want = COMMON | COUNTS[name]
    assert {component: count(component) for component in want} == want
    tops = {n.split("/")[0] for n in shapes}
    assert tops == {component.split("/")[0] for component in want if " " not in component}
    # No parameter outside of the table: a tower's own top level and its counted parts agree.
    assert count("frame_encoder") == sum(v for n, v in want.items() if n.startswith("frame_enc"))
    assert count("imagebind") == sum(v for n, v in want.items() if n.startswith("imagebind"))


def names(size) -> set[str]:
    """Parameter names, the index of a layer within a Q-Former's group aside."""
    return {re.sub(r"layer_\d+", "layer", name) for name in expected(size)}


def test_tiny_and_real_sizes_have_the_same_parameters():
    assert names(TINY) == names(video_llama_size("7b")) == names(video_llama_size("13b"))
    assert "llama/layers/attention/query/kernel" in names(TINY)


@pytest.mark.parametrize("name", ["tiny", "7b"])
def test_every_parameter_names_its_axes(name):
    flat = flatten_dict(abstract_parameters(video_llama_size(name)), sep="/")
    for path, leaf in flat.items():
        assert isinstance(leaf, LogicallyPartitioned), path
        assert len(leaf.names) == len(leaf.value.shape), path
        stacked = any(part in ("layers", "groups") for part in path.split("/"))
        assert (leaf.names[0] == "layers") == stacked, path
        if path.endswith(("/kernel", "/embedding")):
            assert leaf.names[-1] is not None, path


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["golden", "tiny", "7b", "13b"])
def test_there_is_one_rule_for_each_parameter(golden, name, tied):
    size = golden.size if name == "golden" else video_llama_size(name)
    size = dataclasses.replace(size, llama=dataclasses.replace(size.llama, tied=tied))
    table = rules(size)
    assert len({rule.name for rule in table}) == len(table)
    assert {rule.name for rule in table} == set(expected(size))
    for rule in table:
        layers = expected(size)[rule.name].shape[0] if rule.stacked else 1
        assert len(rule.sources) == layers


def test_the_golden_weights_are_all_accounted_for(golden):
    cover = golden.coverage
    cover.require_complete()
    assert not cover.stranded
    kinds = (r"position_ids", r"inv_freq", r"log_logit_scale")
    assert all(name.endswith(kinds) for name in cover.dropped)
    assert set(cover.loaded) | set(cover.dropped) == set(golden.weights)
    assert set(flatten_dict(golden.params, sep="/")) == set(expected(golden.size))


def identical(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    def key(x: np.ndarray) -> tuple:
        return x.shape, x.dtype, np.asarray(x).tobytes()

    return set(a) == set(b) and all(key(a[name]) == key(b[name]) for name in a)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_round_trip_is_exact_to_the_byte(golden, dtype):
    weights = {n: golden.weights[n].astype(dtype) for n in golden.coverage.loaded}
    params, _ = to_vljax(weights, golden.size)
    back = to_torch(params, golden.size)
    assert identical(back, weights)


def test_the_other_round_trip_is_exact_too(randomly):
    params = randomly(TINY)
    tensors = to_torch(params, TINY)
    back, cover = to_vljax(tensors, TINY)
    cover.require_complete()
    assert identical(flatten_dict(back, sep="/"), flatten_dict(params, sep="/"))
    trained = {"video_proj": params["video_proj"]}
    assert set(to_torch(trained, TINY)) == {"llama_proj.weight", "llama_proj.bias"}


def test_coverage_is_two_way(golden):
    weights = dict(golden.weights)
    lost = "visual_encoder.blocks.1.attn.qkv.weight"
    del weights[lost]
    weights["visual_encoder.blocks.0.attn.relative_position_bias_table"] = np.zeros(1)
    params, cover = to_vljax(weights, golden.size)
    assert cover.missing == (lost,)
    assert cover.unexpected == ("visual_encoder.blocks.0.attn.relative_position_bias_table",)
    assert set(cover.stranded) == {
        f"visual_encoder.blocks.{i}.attn.qkv.weight" for i in range(golden.size.vit.depth) if i != 1
    }
    assert "kernel" not in params["frame_encoder"]["vit"]["layers"]["attention"].get("query", {})
    shares = (cover.loaded, cover.dropped, cover.unexpected, cover.stranded)
    assert sorted(sum(shares, ())) == sorted(weights)
    with pytest.raises(ValueError, match=r"1 missing.*1 unexpected"):
        cover.require_complete()


def test_known_leftovers_of_the_originals_files_are_dropped():
    size = video_llama_size("7b")
    known = [
        "Qformer.cls.predictions.bias",
        "video_Qformer.bert.embeddings.position_ids",
        "Qformer.bert.embeddings.word_embeddings.weight",
        "Qformer.bert.encoder.layer.3.intermediate.dense.weight",
        "Qformer.bert.encoder.layer.11.output.LayerNorm.bias",
        "t5_proj.weight",
        "visual_encoder.blocks.39.norm1.weight",
        "visual_encoder.fc_norm.weight",
        "audio_encoder.modality_trunks.text.blocks.0.norm_1.weight",
        "audio_encoder.modality_postprocessors.thermal.1.log_logit_scale",
        "llama_model.model.layers.31.self_attn.rotary_emb.inv_freq",
    ]
    patterns = droppable(size)
    assert not [name for name in known if not any(re.search(p, name) for p in patterns)]
    sources = {source for rule in rules(size) for source in rule.sources}
    assert not [name for name in sources if any(re.search(p, name) for p in patterns)]
    assert "visual_encoder.blocks.38.norm1.weight" in sources


def test_wrong_checkpoints_are_refused(golden):
    weights = golden.weights | {"llama_proj.weight": np.zeros((3, 4), np.float32)}
    with pytest.raises(ValueError, match="video_proj/kernel: got shape"):
        to_vljax(weights, golden.size)
    scale = "audio_encoder.modality_postprocessors.audio.1.log_logit_scale"
    with pytest.raises(ValueError, match="got a scale of 1"):
        to_vljax(golden.weights | {scale: np.float32(0)}, golden.size)
    norm = "visual_encoder.blocks.1.norm1.weight"
    with pytest.raises(ValueError, match="must agree"):
        to_vljax(golden.weights | {norm: np.ones(1, np.float32)}, golden.size)
    with pytest.raises(ValueError, match="does not fit"):
        to_vljax(golden.weights | {"query_tokens": np.zeros((2, 5, 48))}, golden.size)


def test_a_fused_tensor_needs_all_of_its_parts(golden):
    key = {"kernel": golden.params["imagebind"]["vision"]["layers"]["attention"]["key"]["kernel"]}
    part = {"imagebind": {"vision": {"layers": {"attention": {"key": key}}}}}
    with pytest.raises(ValueError, match="fused"):
        to_torch(part, golden.size)
    with pytest.raises(ValueError, match="no rule"):
        to_torch({"video_projection": {"kernel": np.zeros(1)}}, golden.size)


def test_parts_of_a_model(golden):
    table = rules(golden.size, ["llama", "frame_encoder/vit"])
    assert {rule.name.split("/")[0] for rule in table} == {"llama", "frame_encoder"}
    assert all(not rule.name.startswith("frame_encoder/qformer") for rule in table)
    with pytest.raises(ValueError, match="parts"):
        rules(golden.size, ["vit"])


def test_sources_are_read_one_parameter_at_a_time(golden):
    """A rule reads its own sources only, so that a large checkpoint can be streamed."""
    rule = next(r for r in rules(golden.size) if r.name.endswith("vit/layers/mlp/fc1/kernel"))
    read = []
    rule.build(lambda name: (read.append(name), golden.weights[name])[1])
    assert read == [f"visual_encoder.blocks.{i}.mlp.fc1.weight" for i in range(len(read))]
    assert len(read) == golden.size.vit.depth

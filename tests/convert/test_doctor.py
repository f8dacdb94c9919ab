"""A healthy set of every kind of file, and the same set broken in one way each."""

import json
import re
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vljax import store
from vljax.convert import damage
from vljax.convert.doctor import diagnose, examine
from vljax.convert.torch_writer import save_torch
from vljax.convert.towers import expected
from vljax.models.sizes import TINY

TOKENIZER = Path(__file__).parent.parent / "golden" / "tokenizer.model"
PIECES = 430  # of that tokenizer
STUB = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 499723\n"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
UP, DOWN = "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"
NORM = "model.layers.1.input_layernorm.weight"


def normal(*shape: int, dtype: type = np.float16) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(0, 0.02, shape).astype(dtype)


def decoder(width: int = 16, rows: int = PIECES) -> dict[str, np.ndarray]:
    """A LLaMA of two layers."""
    names = {
        "model.embed_tokens.weight": normal(rows, width),
        "lm_head.weight": normal(rows, width),
    }
    for i in range(2):
        layer = f"model.layers.{i}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            # As in real ones, the first layer's gains are far smaller than the others'.
            names[f"{layer}.{name}.weight"] = np.full(width, (0.015, 0.4)[i], np.float16)
        names[f"{layer}.mlp.up_proj.weight"] = normal(24, width)
        names[f"{layer}.mlp.down_proj.weight"] = normal(width, 24)
    return names | {"model.norm.weight": np.full(width, 1.5, np.float16)}


def write_decoder(folder: Path, tensors: dict[str, np.ndarray], **config: object) -> Path:
    """A Hugging Face folder of two shards, an index, a config.json and a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    where = {n: SHARDS[i >= len(names) // 2] for i, n in enumerate(names)}
    for shard in SHARDS:
        save_file({n: x for n, x in tensors.items() if where[n] == shard}, folder / shard)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    rows, width = tensors["model.embed_tokens.weight"].shape
    facts = {"hidden_size": width, "vocab_size": rows, "rms_norm_eps": 1e-6}
    facts |= {"max_position_embeddings": 2048} | config
    (folder / "config.json").write_text(json.dumps(facts))
    if rows == PIECES:
        shutil.copy(TOKENIZER, folder / "tokenizer.model")
    return folder


def branch(kind: str, width: int = 16) -> dict[str, np.ndarray]:
    """A part of Video-LLaMA's vision ("") or audio ("audio_") branch."""
    video = kind or "video_"
    query = f"{video}Qformer.bert.encoder.layer.0.attention.self.query"
    return {
        f"{video}query_tokens": normal(1, 8, 12),
        f"{kind}llama_proj.weight": normal(width, 12),
        f"{kind}llama_proj.bias": np.zeros(width, np.float16),
        f"{query}.weight": normal(12, 12),
        f"{query}.bias": np.zeros(12, np.float16),
        f"{video}Qformer.bert.embeddings.position_ids": np.zeros((1, 4), np.int64),
    }


@pytest.fixture
def healthy(tmp_path):
    """A folder with a decoder, both branches, EVA's and ImageBind's peculiarities, healthy."""
    write_decoder(tmp_path / "llama-7b", decoder())
    save_torch(tmp_path / "VL.pth", branch("").items())
    save_torch(tmp_path / "AL.pth", branch("audio_").items())
    eva = {
        "cls_token": np.zeros((1, 1, 8), np.float32),
        "blocks.0.attn.q_bias": np.zeros(8, np.float32),
        "blocks.0.attn.qkv.weight": normal(24, 8, dtype=np.float32),
        "patch_embed.proj.weight": normal(8, 3, 2, 2, dtype=np.float32),
    }
    save_torch(tmp_path / "eva_vit_g.pth", eva.items(), wrap=None)
    mask = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
    imagebind = {
        "modality_preprocessors.text.mask": mask,
        "modality_trunks.audio.blocks.0.attn.bias_k": np.zeros((1, 1, 8), np.float32),
        "modality_trunks.audio.blocks.0.attn.in_proj_weight": normal(24, 8, dtype=np.float32),
    }
    save_torch(tmp_path / "imagebind_huge.pth", imagebind.items(), wrap=None)
    return tmp_path


FACTS = {"size": "tiny", "llm": "vicuna", "template": "tiny"}


def tiny() -> dict[str, np.ndarray]:
    """Parameters of a converted set, none of them zero."""
    return {n: normal(*x.shape) + np.float16(0.5) for n, x in expected(TINY).items()}


@pytest.fixture(scope="module")
def converted_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "tiny"
    store.save(folder, store.unflatten(tiny()), FACTS)
    return folder


@pytest.fixture
def converted(converted_once, tmp_path):
    return Path(shutil.copytree(converted_once, tmp_path / "tiny"))


def rewrite(folder: Path, changes: dict[str, np.ndarray | None]) -> None:
    """Tensors of the decoder's shards changed, or taken out, wherever they are."""
    for shard in SHARDS:
        tensors = load_file(folder / shard)
        changed = {n: changes.get(n, x) for n, x in tensors.items()}
        save_file({n: x for n, x in changed.items() if x is not None}, folder / shard)


def the_one(findings, what: str, *parts: str):
    """Asserts that there is this one finding, a sentence with these parts."""
    assert [f.what for f in findings] == [what], [f.message for f in findings]
    message = findings[0].message
    for part in parts:
        assert part in message, message
    assert "\n" not in message
    assert ", expected " in message or "lacks" in message
    assert str(findings[0].file) in message or findings[0].what == "shard-missing"
    return findings[0]


def test_a_healthy_set(healthy):
    report = diagnose([healthy])
    assert report.findings == ()
    assert report.ok
    assert (report.files, report.tensors) == (9, 11 + 6 + 6 + 4 + 3)


@pytest.mark.parametrize(
    "name",
    [
        "VL.pth",
        "llama-7b/tokenizer.model",
        "llama-7b/tokenizer.json",
        "llama-7b/pytorch_model.bin",
        "llama-7b/model-00001-of-00002.safetensors",
        "llama-7b/config.json",
    ],
)
def test_a_git_lfs_stub(healthy, name):
    (healthy / name).write_text(STUB)
    found = the_one(examine([healthy]), "lfs-stub", name, "499723 bytes", "git lfs pull")
    assert found.file == healthy / name


@pytest.mark.parametrize("name", ["VL.pth", "llama-7b/tokenizer.model", f"llama-7b/{SHARDS[1]}"])
def test_an_empty_file(healthy, name):
    (healthy / name).write_bytes(b"")
    the_one(examine([healthy]), "empty-file", name, "download it anew")


def test_a_web_page_for_weights(healthy):
    (healthy / "VL.pth").write_text("<!DOCTYPE html><title>Quota exceeded</title>")
    the_one(examine([healthy]), "web-page", "VL.pth")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_a_torch_file_that_was_cut_off(healthy, part):
    path = healthy / "VL.pth"
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    the_one(examine([path]), "truncated", "VL.pth", "fetch it anew")


def test_a_torch_file_with_a_broken_pickle(healthy):
    path = healthy / "VL.pth"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v9"))
    assert examine([path])[0].what == "unreadable"


@pytest.mark.parametrize(("keep", "expected"), [(0.5, "expected"), (0.001, "expected over")])
def test_safetensors_shorter_than_their_header_says(healthy, keep, expected):
    path = healthy / "llama-7b" / SHARDS[0]
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: max(12, int(keep * size))])
    the_one(
        examine([healthy]), "truncated", str(path), f"got {path.stat().st_size} bytes", expected
    )


def test_a_shard_that_is_missing(healthy):
    (healthy / "llama-7b" / SHARDS[1]).unlink()
    the_one(examine([healthy]), "shard-missing", SHARDS[1], "model.safetensors.index.json")


def test_a_shard_that_is_missing_without_an_index(healthy):
    (healthy / "llama-7b" / SHARDS[0]).unlink()
    (healthy / "llama-7b" / "model.safetensors.index.json").unlink()
    the_one(examine([healthy]), "shard-missing", SHARDS[0], "by their numbers")


def test_an_index_names_what_its_shard_lacks(healthy):
    rewrite(healthy / "llama-7b", {DOWN: None})
    the_one(examine([healthy]), "tensor-missing", SHARDS[1], DOWN)


def test_the_index_of_a_format_that_was_not_downloaded_is_let_pass(healthy):
    index = {"weight_map": {UP: "pytorch_model-00001-of-00001.bin"}}
    (healthy / "llama-7b" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert examine([healthy]) == []


def test_a_damaged_tokenizer(healthy):
    path = healthy / "llama-7b" / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:1000])
    the_one(examine([healthy]), "bad-tokenizer", str(path))


def test_a_damaged_config(healthy):
    (healthy / "llama-7b" / "config.json").write_text('{"hidden_size": 16')
    the_one(examine([healthy]), "bad-json", "config.json")


@pytest.mark.parametrize("name", [UP, "model.embed_tokens.weight", NORM])
def test_a_tensor_of_zeros(healthy, name):
    folder = healthy / "llama-7b"
    shape = decoder()[name].shape
    rewrite(folder, {name: np.zeros(shape, np.float16)})
    the_one(examine([healthy]), "zero-tensor", name, "fetch the file anew")
    assert examine([healthy], deep=False) == []


def test_many_tensors_of_zeros_are_one_sentence(healthy):
    tensors = branch("")
    zeros = {n: np.zeros_like(x) for n, x in tensors.items()}
    save_torch(healthy / "VL.pth", zeros.items())
    found = the_one(examine([healthy]), "zero-tensor", "llama_proj.weight", "video_query_tokens")
    assert "bias" not in found.message
    assert "position_ids" not in found.message


def test_the_zero_row_of_pad_is_let_pass(healthy):
    table = normal(PIECES, 16)
    table[-1] = 0
    rewrite(healthy / "llama-7b", {"model.embed_tokens.weight": table})
    assert examine([healthy]) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_nan_and_infinity(healthy, bad, dtype):
    x = normal(24, 16).astype(dtype)
    x[3, 4] = x[23, 15] = bad
    rewrite(healthy / "llama-7b", {UP: x})
    the_one(examine([healthy]), "not-finite", UP, "2 values")


def test_zeros_over_a_long_stretch(monkeypatch):
    monkeypatch.setattr(damage, "BLOCK", 64)
    x = normal(33, 8)
    x[:8] = 0
    assert list(damage.of_tensor("a.weight", x)) == [("zero-part", "a.weight (1 of 5 parts)")]
    assert [len(b) for b in damage.blocks(x)] == [6, 7, 6, 7, 7]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_look_agrees_with_numpy(dtype):
    rng = np.random.default_rng(0)
    for _ in range(50):
        x = rng.normal(0, 1, 30).astype(dtype) * (rng.random(30) < 0.1).astype(dtype)
        x[rng.random(30) < 0.03] = np.nan
        x[rng.random(30) < 0.03] = -np.inf
        assert damage.look(x) == (bool((x == 0).all()), int((~np.isfinite(x)).sum()))
    assert damage.look(np.array([0, -0.0], dtype)) == (True, 0)
    assert damage.look(np.zeros(3, np.int64)) == (False, 0)


@pytest.mark.parametrize(("llm", "projection"), [(4096, 5120), (5120, 4096)])
def test_a_projection_for_an_llm_of_another_width(tmp_path, llm, projection):
    folder = write_decoder(tmp_path / "llm", decoder(llm, 8))
    save_torch(tmp_path / "VL.pth", branch("", projection).items())
    names = {4096: "4096 (7B)", 5120: "5120 (13B)"}
    sentence = (f"llama_proj.weight is {projection} wide", names[projection][4:], names[llm])
    the_one(examine([tmp_path / "VL.pth", folder], deep=False), "width", *sentence, str(folder))


def test_an_audio_projection_for_an_llm_of_another_width(healthy):
    save_torch(healthy / "AL.pth", branch("audio_", 20).items())
    the_one(examine([healthy]), "width", "AL.pth", "audio_llama_proj.weight is 20", "expected 16")


def test_branches_of_different_widths(healthy):
    save_torch(healthy / "AL.pth", branch("audio_", 20).items())
    paths = [healthy / "VL.pth", healthy / "AL.pth"]
    the_one(examine(paths), "width", "VL.pth", "AL.pth", "20", "16")


def test_a_config_of_another_width(healthy):
    write_decoder(healthy / "llama-7b", decoder(), hidden_size=24)
    the_one(examine([healthy]), "width", "config.json", "hidden_size is 24", "expected 16")


VICUNA = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048}
LLAMA2 = {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("name", "config", "template"),
    [
        ("model", VICUNA, "llama2"),
        ("model", LLAMA2, "vicuna"),
        ("model", {"rms_norm_eps": 1e-5, "max_position_embeddings": None}, "vicuna"),
        ("vicuna-7b", {}, "llama2"),
        ("model", LLAMA2 | {"_name_or_path": "lmsys/vicuna-7b-v1.5"}, "llama2"),
        ("model", {"_name_or_path": "meta-llama/Llama-2-7b-chat-hf"}, "vicuna"),
        ("Llama-2-7b-chat-hf", {}, "tiny"),
    ],
)
def test_a_template_of_another_family(tmp_path, name, config, template):
    folder = write_decoder(tmp_path / name, decoder(4, 32000), **config)
    the_one(examine([folder], template), "template", name, repr(template), "use template")
    other = "vicuna" if template == "llama2" else "llama2"
    assert examine([folder], other) == []


@pytest.mark.parametrize("template", ["vicuna", "llama2", "smollm2_135m", None])
@pytest.mark.parametrize(("eps", "positions"), [(1e-6, 4096), (1e-5, 8192)])
def test_marks_at_odds_prove_nothing(tmp_path, template, eps, positions):
    odd = {"rms_norm_eps": eps, "max_position_embeddings": positions}
    folder = write_decoder(tmp_path / "model", decoder(4, 32000), **odd)
    assert examine([folder], template) == []
    other_tokens = write_decoder(tmp_path / "another", decoder(), **VICUNA)
    assert examine([other_tokens], template) == []


def test_a_branch_named_for_another_llm_is_a_warning(healthy):
    (healthy / "VL.pth").rename(healthy / "VL_LLaMA_2_7B_Finetuned.pth")
    (healthy / "llama-7b").rename(healthy / "vicuna-7b")
    report = diagnose([healthy])
    found = the_one(report.findings, "template", "VL_LLaMA_2_7B_Finetuned.pth", "vicuna-7b")
    assert found.severity == "warning"
    assert report.ok


def test_a_template_of_no_family_goes_with_any_model(healthy):
    assert examine([healthy], "smollm2_135m") == []


def test_an_unknown_template(healthy):
    with pytest.raises(ValueError, match="template: got 'chatml', expected one of vicuna"):
        examine([healthy], "chatml")


def words(folder: Path, pieces: int, added: dict[str, int]) -> None:
    """A tokenizer.json with so many pieces."""
    vocab = {f"p{i}": i for i in range(pieces)}
    content = {
        "model": {"vocab": vocab},
        "added_tokens": [{"content": n, "id": i} for n, i in added.items()],
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("rows", "pieces", "added", "fits"),
    [
        (32000, 32000, {"<s>": 1}, True),
        (32001, 32000, {"[PAD]": 32000}, True),
        (32000, 32000, {"<pad>": 32000}, True),
        (32064, 32000, {"[PAD]": 32000}, True),
        (32001, 32000, {}, False),
        (32000, 32000, {"[PAD]": 32000}, False),
        (32000, 16000, {}, False),
    ],
)
def test_tokens_against_rows(tmp_path, rows, pieces, added, fits):
    folder = write_decoder(tmp_path / "model", decoder(4, rows))
    words(folder, pieces, added)
    findings = examine([folder], deep=False)
    if fits:
        assert findings == []
    else:
        tokens = f"has {len([i for i in added.values() if i >= pieces]) + pieces} tokens"
        the_one(findings, "tokenizer", "tokenizer.json", tokens, f"expected {rows}")


def test_added_tokens_beside_a_sentencepiece_model(healthy):
    folder = healthy / "llama-7b"
    (folder / "added_tokens.json").write_text(json.dumps({"[PAD]": PIECES}))
    parts = (f"has {PIECES + 1} tokens", "[PAD]", f"expected {PIECES}")
    the_one(examine([folder]), "tokenizer", "tokenizer.model", *parts)
    write_decoder(folder, decoder(rows=PIECES + 1))
    assert examine([folder]) == []


def test_config_counts_other_tokens(tmp_path):
    folder = write_decoder(tmp_path / "model", decoder(4, 32000), vocab_size=32001)
    parts = ("vocab_size counts 32001", "expected 32000", "delta")
    the_one(examine([folder], deep=False), "vocabulary", "config.json", *parts)


def test_the_head_of_a_delta_on_the_embedding_of_a_base(tmp_path):
    tensors = decoder(4, 32000) | {"lm_head.weight": normal(32001, 4)}
    folder = write_decoder(tmp_path / "model", tensors)
    parts = ("lm_head.weight counts 32001", "expected 32000")
    the_one(examine([folder], deep=False), "vocabulary", SHARDS[0], *parts)


def test_the_head_of_another_model_in_the_same_folder_is_let_pass(healthy):
    shutil.move(healthy / "eva_vit_g.pth", healthy / "llama-7b")
    save_file({"lm_head.weight": normal(99, 8)}, healthy / "llama-7b" / "eva_head.safetensors")
    assert examine([healthy]) == []


def delta_of(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What fine-tuning changes: gains by some 1e-3."""
    rng = np.random.default_rng(0)
    return {n: rng.normal(0, 2e-3, x.shape).astype(x.dtype) for n, x in tensors.items()}


def test_a_delta_used_as_a_model(tmp_path):
    folder = write_decoder(tmp_path / "vicuna-7b-delta-v0", delta_of(decoder()))
    for deep in (True, False):
        parts = ("got a delta", "so it is named", "apply_delta")
        the_one(examine([folder], deep=deep), "delta", *parts)


def test_a_delta_by_itself_need_not_be_a_model(tmp_path):
    folder = write_decoder(tmp_path / "delta", delta_of(decoder()))
    assert examine([folder], deep=False, paired=False) == []
    (folder / SHARDS[0]).write_text(STUB)
    the_one(examine([folder], deep=False, paired=False), "lfs-stub", SHARDS[0])


def test_a_delta_with_another_name(tmp_path):
    folder = write_decoder(tmp_path / "vicuna-7b", delta_of(decoder()))
    assert "named" not in the_one(examine([folder]), "delta", "got a delta").message


def test_the_name_alone_makes_no_delta(tmp_path):
    assert examine([write_decoder(tmp_path / "vicuna-delta-applied", decoder())]) == []


def test_a_shard_of_a_delta_among_those_of_a_model(healthy):
    rewrite(healthy / "llama-7b", {NORM: delta_of(decoder())[NORM]})
    parts = (NORM, "1 of 3 norms", SHARDS[1])
    the_one(examine([healthy]), "delta-mixed", *parts)


def test_a_healthy_converted_folder(converted):
    report = diagnose([converted], "tiny")
    assert report.findings == ()
    assert report.tensors == len(expected(TINY))


def test_a_converted_folder_without_manifest(converted):
    (converted / "manifest.json").unlink()
    the_one(examine([converted]), "manifest-missing", "manifest.json")


def test_a_manifest_of_other_weights(converted):
    path = converted / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"shapes": "0123456789abcdef"}))
    the_one(examine([converted]), "manifest-differs", "0123456789abcdef", manifest["shapes"])


def test_a_converted_folder_that_lacks_parameters(tmp_path):
    arrays = tiny()
    del arrays["llama/norm/scale"]
    store.save(tmp_path / "a", store.unflatten(arrays), FACTS)
    the_one(examine([tmp_path / "a"]), "parameter-missing", "llama/norm/scale", "176")
    only = {n: x for n, x in arrays.items() if not n.startswith("llama/")}
    store.save(tmp_path / "b", store.unflatten(only), FACTS)
    assert examine([tmp_path / "b"]) == []  # a part that is absent altogether is a choice
    store.save(tmp_path / "c", store.unflatten(only), FACTS | {"parts": ["video_proj", "llama"]})
    the_one(examine([tmp_path / "c"]), "parameter-missing", "llama/head/kernel", "12 in all")


def test_zeros_and_nan_in_a_converted_folder(tmp_path):
    arrays = tiny()
    for name in arrays:
        if name.endswith(("/bias", "/class_token")):
            arrays[name][:] = 0  # as they may be
    arrays["video_proj/kernel"][:] = 0
    arrays["llama/layers/mlp/up/kernel"][1] = 0
    arrays["audio_position/embedding"][0, 0] = np.nan
    store.save(tmp_path / "a", store.unflatten(arrays), FACTS)
    found = {f.what: f.message for f in examine([tmp_path / "a"])}
    assert set(found) == {"zero-tensor", "zero-part", "not-finite"}
    assert "video_proj/kernel" in found["zero-tensor"]
    assert "llama/layers/mlp/up/kernel (1 of 3 parts)" in found["zero-part"]
    assert "audio_position/embedding (1 values)" in found["not-finite"]


def test_a_layer_that_was_never_written(tmp_path):
    arrays = tiny()
    writer = store.Writer(
        tmp_path / "a", {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in arrays.items()}
    )
    late = "llama/layers/mlp/up/kernel"
    for name, x in arrays.items():
        if name != late:
            writer.write(name, x)
    for i in range(len(arrays[late]) - 1):
        writer.write(late, arrays[late][i], i)
    writer.finish(FACTS)
    the_one(examine([tmp_path / "a"]), "zero-part", f"{late} (1 of 3 parts)")


def test_a_converted_folder_with_damaged_data(converted):
    data = max((converted / "params").rglob("d/*"), key=lambda p: p.stat().st_size)
    data.write_bytes(data.read_bytes()[:100])
    findings = examine([converted])
    assert findings
    assert {f.what for f in findings} == {"unreadable"}
    assert all("\n" not in f.message for f in findings)


def test_a_converted_folder_of_stubs(converted):
    data = max((converted / "params").rglob("d/*"), key=lambda p: p.stat().st_size)
    data.write_text(STUB)
    the_one(examine([converted]), "lfs-stub", data.name)


def test_a_converted_folder_for_another_template(converted):
    the_one(examine([converted], "llama2"), "template", "manifest.json", "'llama2'")


def test_a_tokenizer_of_another_model_in_a_converted_folder(converted):
    shutil.copy(TOKENIZER, converted / "tokenizer.model")
    rows = TINY.llama.vocab
    the_one(examine([converted]), "tokenizer", f"has {PIECES} tokens", f"expected {rows}")


def test_a_folder_without_weights(tmp_path):
    (tmp_path / "readme.md").write_text("nothing here")
    the_one(examine([tmp_path]), "no-weights", str(tmp_path))


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'no'}: got no such file")):
        examine([tmp_path / "no"])


def test_tables_of_odd_shapes_and_ids_that_are_none_are_survived(tmp_path):
    tensors = {"model.embed_tokens.weight": normal(3), "llama_proj.weight": normal()}
    save_torch(tmp_path / "pytorch_model.bin", tensors.items(), None)
    shutil.copy(TOKENIZER, tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"[PAD]": "last"}')
    assert diagnose([tmp_path]).ok


def test_what_trainers_leave_and_hidden_files_are_not_weights(healthy):
    (healthy / "llama-7b" / "training_args.bin").write_bytes(b"\x80\x02not a state dict")
    (healthy / ".git").mkdir()
    (healthy / ".git" / "VL.pth").write_text(STUB)
    assert examine([healthy]) == []


def test_progress_counts_bytes(healthy):
    steps: list[tuple[int, int]] = []
    examine([healthy], progress=lambda done, total: steps.append((done, total)))
    done = [d for d, _ in steps]
    assert done == sorted(done)
    assert {total for _, total in steps} == {done[-1]}
    assert len(steps) == 30

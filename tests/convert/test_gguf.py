"""GGUF files written here by the package's own writer: tensors, config and vocabulary."""

import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from vljax.convert.gguf import open_gguf, write_tokenizer
from vljax.data.tokenizer import Special, Tokenizer
from vljax.store import WeightsError

gguf = pytest.importorskip("gguf")
pytest.importorskip("tokenizers")

MODEL = Path(__file__).parent.parent / "golden" / "tokenizer.model"
WIDTH, HEADS, KV_HEADS, MLP, VOCAB = 64, 4, 2, 96, 40
HEAD = WIDTH // HEADS
SHAPES = {
    "blk.0.attn_q": (WIDTH, WIDTH),
    "blk.0.attn_k": (KV_HEADS * HEAD, WIDTH),
    "blk.0.attn_v": (KV_HEADS * HEAD, WIDTH),
    "blk.0.attn_output": (WIDTH, WIDTH),
    "blk.0.ffn_gate": (MLP, WIDTH),
    "blk.0.ffn_up": (MLP, WIDTH),
    "blk.0.ffn_down": (WIDTH, MLP),
    "blk.0.attn_norm": (WIDTH,),
    "blk.0.ffn_norm": (WIDTH,),
    "output_norm": (WIDTH,),
    "token_embd": (VOCAB, WIDTH),
    "output": (VOCAB, WIDTH),
}


def interleaved(x: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to queries and keys, a row at a time."""
    out = np.empty_like(x)
    size = len(x) // heads
    for row in range(len(x)):
        head, i = divmod(row, size)
        half, pair = divmod(i, size // 2)
        out[head * size + 2 * pair + half] = x[row]
    return out


def write(path: Path, tensors=None, architecture="llama", scaling=None, words=None) -> Path:
    """``tensors``: name -> (array, quantisation type or None)."""
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_feed_forward_length(MLP)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(25000.0)
    writer.add_context_length(2048)
    if scaling:
        writer.add_rope_scaling_type(scaling)
    if words:
        words(writer)
    for name, (x, kind) in (tensors or {}).items():
        data = x if kind is None else gguf.quantize(x, kind)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def whole(*without: str) -> dict:
    rng = np.random.default_rng(0)
    drawn = {n: rng.normal(size=shape).astype(np.float32) for n, shape in SHAPES.items()}
    return {name: (x, None) for name, x in drawn.items() if name not in without}


def test_names_shapes_and_numbers(tmp_path):
    tensors = whole()
    tensors["blk.0.ffn_up"] = (tensors["blk.0.ffn_up"][0].astype(np.float16), None)
    stored = dict(tensors)
    for name, heads in (("blk.0.attn_q", HEADS), ("blk.0.attn_k", KV_HEADS)):
        stored[name] = (interleaved(tensors[name][0], heads), None)
    got = open_gguf(write(tmp_path / "a.gguf", stored))
    layer = "model.layers.0."
    names = {
        "blk.0.attn_q": f"{layer}self_attn.q_proj",
        "blk.0.attn_k": f"{layer}self_attn.k_proj",
        "blk.0.attn_v": f"{layer}self_attn.v_proj",
        "blk.0.attn_output": f"{layer}self_attn.o_proj",
        "blk.0.ffn_gate": f"{layer}mlp.gate_proj",
        "blk.0.ffn_up": f"{layer}mlp.up_proj",
        "blk.0.ffn_down": f"{layer}mlp.down_proj",
        "blk.0.attn_norm": f"{layer}input_layernorm",
        "blk.0.ffn_norm": f"{layer}post_attention_layernorm",
        "output_norm": "model.norm",
        "token_embd": "model.embed_tokens",
        "output": "lm_head",
    }
    assert set(got) == {f"{name}.weight" for name in names.values()}
    for theirs, ours in names.items():
        want, _ = tensors[theirs]
        info = got.info(f"{ours}.weight")
        assert (info.shape, info.dtype) == (want.shape, want.dtype)
        np.testing.assert_array_equal(got[f"{ours}.weight"], want)
    assert got.files == (tmp_path / "a.gguf",)


@pytest.mark.parametrize(("kind", "steps"), [("Q8_0", 127), ("Q4_1", 15), ("Q5_0", 16)])
def test_quantised_tensors(tmp_path, kind, steps):
    tensors = {n: x for n, x in whole().items() if n in ("token_embd", "blk.0.ffn_gate")}
    gate = tensors["blk.0.ffn_gate"][0]
    tensors["blk.0.ffn_gate"] = (gate, gguf.GGMLQuantizationType[kind])
    got = open_gguf(write(tmp_path / "a.gguf", tensors))
    name = "model.layers.0.mlp.gate_proj.weight"
    assert got.info(name).shape == got[name].shape == gate.shape
    assert got.info(name).dtype == got[name].dtype == np.float32
    error = np.abs(got[name] - gate).max()
    assert 0 < error < 2 * np.abs(gate).max() / steps


def test_config(tmp_path):
    config = {
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "rms_norm_eps": 1e-5,
        "rope_theta": 25000.0,
        "vocab_size": 40,
        "max_position_embeddings": 2048,
    }
    untied = open_gguf(write(tmp_path / "a.gguf", whole())).metadata["config"]
    assert untied.items() >= (config | {"tie_word_embeddings": False}).items()
    tied = open_gguf(write(tmp_path / "b.gguf", whole("output"))).metadata["config"]
    assert tied.items() >= (config | {"tie_word_embeddings": True}).items()


def other(name: str) -> dict:
    return whole() | {name: (np.ones(8, np.float32), None)}


@pytest.mark.parametrize(
    ("said", "options"),
    [
        ("holds a qwen2 model, expected a llama one", {"architecture": "qwen2"}),
        ("holds blk.0.ffn_gate_inp.weight, which no", {"tensors": other("blk.0.ffn_gate_inp")}),
        ("lacks token_embd.weight", {"tensors": whole("token_embd")}),
        ("has scaled rotary positions", {"tensors": other("rope_freqs")}),
        ("has scaled rotary positions", {"scaling": gguf.RopeScalingType.LINEAR}),
    ],
)
def test_what_can_t_be_used(tmp_path, said, options):
    path = write(tmp_path / "a.gguf", **({"tensors": whole()} | options))
    with pytest.raises(WeightsError, match=said):
        open_gguf(path)


def test_a_damaged_file(tmp_path):
    path = write(tmp_path / "a.gguf", whole())
    data = path.read_bytes()
    for content in (b"", data[:20], b"GGML" + data[4:], data[: len(data) // 2]):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"a\.gguf: can't be read as GGUF"):
            open_gguf(path)


def of_sentencepiece(writer) -> None:
    """LLaMA's kind of vocabulary, of the golden tokenizer."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(MODEL))
    ids = range(model.vocab_size())
    writer.add_tokenizer_model("llama")
    writer.add_token_list([model.id_to_piece(i) for i in ids])
    writer.add_token_scores([model.get_score(i) for i in ids])
    kinds = [2 if model.is_unknown(i) else 3 if model.is_control(i) else 1 for i in ids]
    writer.add_token_types([6 if model.is_byte(i) else kinds[i] for i in ids])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def test_a_sentencepiece_vocabulary(tmp_path):
    write_tokenizer(write(tmp_path / "a.gguf", whole(), words=of_sentencepiece), tmp_path / "new")
    got, want = Tokenizer(tmp_path / "new"), Tokenizer(MODEL)
    for text in ("what is red?", " a dog\n\n<ImageHere> x</s> boats", "naïve 日本 3.14"):
        assert got.encode(text, bos=True) == want.encode(text, bos=True)
        assert got.decode(want.encode(text)) == want.decode(want.encode(text))
    assert got.special == want.special


def of_smollm(writer, split="smollm") -> None:
    pieces = [
        "<|none|>",
        "<|begin|>",
        "<|end|>",
        "a",
        "d",
        "o",
        "g",
        "Ġ",
        "1",
        "2",
        "do",
        "Ġdo",
        "12",
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(pieces)
    writer.add_token_types([3] * 3 + [1] * 10)
    writer.add_token_merges(["d o", "Ġ do", "1 2"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)


def test_a_byte_level_vocabulary(tmp_path):
    write_tokenizer(write(tmp_path / "a.gguf", whole(), words=of_smollm), tmp_path)
    got = Tokenizer(tmp_path, vocab=VOCAB)
    assert got.special == Special(pad=0, bos=1, eos=2)
    # Digits stand alone, whatever the merges say.
    assert got.encode("a dog12<|end|><ImageHere>", bos=True) == [3, 11, 6, 8, 9, 2, VOCAB]
    assert got.decode([2, 3, 11, 6, 8]) == "a dog1"
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["pad_token"] == "<|end|>"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("kind gpt2 with words split as llama-bpe", lambda w: of_smollm(w, "llama-bpe")),
        ("its header lacks tokenizer.ggml.tokens", None),
    ],
)
def test_a_vocabulary_that_is_not_known(tmp_path, said, words):
    path = write(tmp_path / "a.gguf", whole(), words=words)
    with pytest.raises(WeightsError, match=said):
        write_tokenizer(path, tmp_path / "new")
    assert not (tmp_path / "new").exists()

